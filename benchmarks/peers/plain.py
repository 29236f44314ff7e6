"""A plain PyTorch loop as tutorials write it; --best adds bf16 autocast and channels_last."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.common import Report, count, pictures, vgg11, work


def main() -> None:
    asked, report = work(), Report()
    batches = DataLoader(pictures(asked.images, asked.size), asked.batch_size, shuffle=True, num_workers=asked.workers)
    net, loss_of = vgg11(asked.size), nn.CrossEntropyLoss()
    if asked.best:
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(asked.epochs):
        report.epoch()
        total, correct = 0.0, 0.0
        for images, labels in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=asked.best):
                logits = net(images.to(memory_format=torch.channels_last) if asked.best else images)
                loss = loss_of(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            report.step()
        report.epoch_done()
    report.done(count(net), asked.images)


if __name__ == "__main__":
    main()
