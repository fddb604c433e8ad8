"""Recalibrate a network on a new domain: handwritten digits, then the same from a darker scanner.

    python recalibrate_domain.py

A small network is trained on scikit-learn's digits.  The images of the new domain have less
contrast and a grey background, so the running statistics of training do not fit them.  The batches
of the new domain need no labels, and the weights do not change.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import bncore.torch


def network() -> nn.Sequential:
    """Two convolutions with batch norm, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, padding_mode="replicate", bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, padding=1, padding_mode="replicate", bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def train(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Take a few epochs of ordinary training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()


def accuracy(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of right answers in evaluation."""
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == labels).double().mean())


def main() -> dict[str, float]:
    """Train, meet the new domain, and recalibrate; return the accuracies."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    scanned = 0.15 * x + 0.6  # the new domain
    model = bncore.torch.convert(network())
    train(model, x[:1000], labels[:1000])
    found = {
        "old domain": accuracy(model, x[1400:], labels[1400:]),
        "new domain": accuracy(model, scanned[1400:], labels[1400:]),
    }
    unlabeled = scanned[1000:1400].split(96)  # the last batch is smaller, and counts as such
    bncore.torch.recalibrate(model, unlabeled)
    found["new domain, recalibrated"] = accuracy(model, scanned[1400:], labels[1400:])
    return found


if __name__ == "__main__":
    for name, share in main().items():
        print(f"{name}: {share:.1%}")
