"""Lightning's Trainer with its defaults.

--best adds channels_last, and bf16-mixed if the device supports bf16.
"""

import warnings
from tempfile import mkdtemp

import lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.peers.common import Report, build_network, make_dataset, parse_arguments
from benchmarks.peers.networks import Network


class Classifier(lightning.LightningModule):
    def __init__(self, network: Network, size: int, report: Report):
        super().__init__()
        self.network = network
        self.model = build_network(network, size)
        self.report = report

    def training_step(self, batch, index):
        images, labels = batch
        logits = self.model(images)
        smoothing = self.network.label_smoothing
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log("train/loss", loss)
        self.log("train/accuracy", accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.network.sgd)

    def on_train_epoch_start(self):
        self.report.start_epoch()

    def on_train_batch_end(self, *_):
        self.report.count_step()

    def on_train_epoch_end(self):
        self.report.end_epoch()


def main() -> None:
    warnings.simplefilter("ignore")
    arguments = parse_arguments()
    network = arguments.network
    report = Report()
    batches = DataLoader(
        make_dataset(arguments.images, network, arguments.size),
        arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
    )
    model = Classifier(network, arguments.size, report)
    if arguments.best:
        model = model.to(memory_format=torch.channels_last)
    flags = {"precision": "bf16-mixed"} if arguments.bf16 else {}
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        default_root_dir=mkdtemp(),
        enable_progress_bar=False,
        **flags,
    )
    trainer.fit(model, batches)
    report.finish(model.model, arguments.images)


if __name__ == "__main__":
    main()
