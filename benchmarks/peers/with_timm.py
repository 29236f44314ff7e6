"""timm's loader and optimizer factory in the loop of its documentation; --best: channels_last, and bf16 autocast where
that is multiplied.

timm's training script is not in its package, so this uses the package's parts with the script's defaults.
"""

import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, accuracy
from torch import nn

from benchmarks.peers.common import Report, count, pictures, vgg11, work


def main() -> None:
    asked = work()
    report = Report()
    data = pictures(asked.images, asked.size)
    batches = create_loader(
        data,
        (1, asked.size, asked.size),
        asked.batch_size,
        is_training=True,
        use_prefetcher=False,
        no_aug=True,
        num_workers=asked.workers,
        persistent_workers=asked.workers > 0,
        device=torch.device("cpu"),
    )
    model = vgg11(asked.size)
    loss_of = nn.CrossEntropyLoss()
    if asked.best:
        model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="momentum", lr=0.01, weight_decay=0, momentum=0)
    for _ in range(asked.epochs):
        model.train()
        report.epoch()
        losses = AverageMeter()
        top1 = AverageMeter()
        for images, labels in batches:
            if asked.best:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=asked.bf16):
                logits = model(images)
                loss = loss_of(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(images))
            top1.update(accuracy(logits, labels)[0].item(), len(images))
            report.step()
        report.epoch_done()
    report.done(count(model), asked.images)


if __name__ == "__main__":
    main()
