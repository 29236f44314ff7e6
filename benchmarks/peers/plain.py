"""A plain PyTorch loop as tutorials write it.

--best adds channels_last, and bf16 autocast if the device supports it. On a GPU, --best also pins
the memory of the batches, keeps the workers and lets cuDNN choose its algorithms.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.common import Report, build_network, make_dataset, parse_arguments


def main() -> None:
    arguments = parse_arguments()
    network = arguments.network
    report = Report()
    best_on_gpu = arguments.best and arguments.device == "cuda"
    torch.backends.cudnn.benchmark = best_on_gpu
    batches = DataLoader(
        make_dataset(arguments.images, network, arguments.size),
        arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        pin_memory=best_on_gpu,
        persistent_workers=best_on_gpu,
    )
    model = build_network(network, arguments.size).to(arguments.device)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=network.label_smoothing)
    if arguments.best:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), fused=best_on_gpu or None, **network.sgd)
    for _ in range(arguments.epochs):
        report.start_epoch()
        total_loss = 0.0
        correct = 0.0
        for images, labels in batches:
            images = images.to(arguments.device, non_blocking=best_on_gpu)
            labels = labels.to(arguments.device, non_blocking=best_on_gpu)
            if arguments.best:
                images = images.to(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16):
                logits = model(images)
                loss = loss_fn(logits, labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            report.count_step()
        report.end_epoch()
    report.finish(model, arguments.images)


if __name__ == "__main__":
    main()
