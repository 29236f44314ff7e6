"""timm's loader and optimizer factory in the loop of timm's documentation.

--best adds channels_last, and bf16 autocast if the device supports it. timm's training script is
not in its package, so this program uses the package's parts with the script's defaults.
"""

import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, accuracy
from torch import nn

from benchmarks.peers.common import Report, build_network, make_dataset, parse_arguments


def main() -> None:
    arguments = parse_arguments()
    network = arguments.network
    report = Report()
    batches = create_loader(
        make_dataset(arguments.images, network, arguments.size),
        (1, arguments.size, arguments.size),
        arguments.batch_size,
        is_training=True,
        use_prefetcher=False,
        no_aug=True,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
        device=torch.device("cpu"),
    )
    model = build_network(network, arguments.size)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=network.label_smoothing)
    if arguments.best:
        model = model.to(memory_format=torch.channels_last)
    # Like the other contenders, this decays every parameter.
    optimizer = create_optimizer_v2(model, opt="momentum", filter_bias_and_bn=False, **network.sgd)
    for _ in range(arguments.epochs):
        model.train()
        report.start_epoch()
        losses = AverageMeter()
        top1 = AverageMeter()
        for images, labels in batches:
            if arguments.best:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
                logits = model(images)
                loss = loss_fn(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(images))
            top1.update(accuracy(logits, labels)[0].item(), len(images))
            report.count_step()
        report.end_epoch()
    report.finish(model, arguments.images)


if __name__ == "__main__":
    main()
