"""A plain PyTorch loop as tutorials write it; --best adds channels_last and, where it is multiplied, bf16 autocast.

On a GPU, --best also pins the memory of the batches, keeps the workers and lets cuDNN choose.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.common import Report, count, pictures, vgg11, work


def main() -> None:
    asked = work()
    report = Report()
    on_gpu = asked.best and asked.device == "cuda"
    torch.backends.cudnn.benchmark = on_gpu
    batches = DataLoader(
        pictures(asked.images, asked.size),
        asked.batch_size,
        shuffle=True,
        num_workers=asked.workers,
        pin_memory=on_gpu,
        persistent_workers=on_gpu,
    )
    model = vgg11(asked.size).to(asked.device)
    loss_of = nn.CrossEntropyLoss()
    if asked.best:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=on_gpu or None)
    for _ in range(asked.epochs):
        report.epoch()
        total = 0.0
        correct = 0.0
        for images, labels in batches:
            images, labels = (
                part.to(asked.device, non_blocking=on_gpu) for part in (images, labels)
            )
            optimizer.zero_grad()
            with torch.autocast(asked.device, torch.bfloat16, enabled=asked.bf16):
                logits = model(
                    images.to(memory_format=torch.channels_last) if asked.best else images
                )
                loss = loss_of(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            report.step()
        report.epoch_done()
    report.done(count(model), asked.images)


if __name__ == "__main__":
    main()
