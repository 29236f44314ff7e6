"""Lightning's Trainer with its defaults; --best: channels_last, and bf16-mixed where bf16 is multiplied."""

import warnings
from tempfile import mkdtemp

import lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.peers.common import Report, count, pictures, vgg11, work


class Classifier(lightning.LightningModule):
    def __init__(self, size: int, report: Report):
        super().__init__()
        self.model = vgg11(size)
        self.report = report

    def training_step(self, batch, index):
        images, labels = batch
        logits = self.model(images)
        loss = functional.cross_entropy(logits, labels)
        self.log("train/loss", loss)
        self.log(
            "train/accuracy",
            (logits.argmax(1) == labels).float().mean(),
            on_step=False,
            on_epoch=True,
        )
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_train_epoch_start(self):
        self.report.epoch()

    def on_train_batch_end(self, *_):
        self.report.step()

    def on_train_epoch_end(self):
        self.report.epoch_done()


def main() -> None:
    warnings.simplefilter("ignore")
    asked = work()
    report = Report()
    many = {"num_workers": asked.workers, "persistent_workers": asked.workers > 0}
    batches = DataLoader(pictures(asked.images, asked.size), asked.batch_size, shuffle=True, **many)
    model = Classifier(asked.size, report)
    flags = {"precision": "bf16-mixed"} if asked.bf16 else {}
    if asked.best:
        model = model.to(memory_format=torch.channels_last)
    trainer = lightning.Trainer(
        max_epochs=asked.epochs,
        accelerator="cpu",
        default_root_dir=mkdtemp(),
        enable_progress_bar=False,
        **flags,
    )
    trainer.fit(model, batches)
    report.done(count(model.model), asked.images)


if __name__ == "__main__":
    main()
