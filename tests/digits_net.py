"""A 64-64-64-10 ReLU network on scikit-learn's 8×8 digits: trained in seconds, the same on every run, shared by the tests of one process."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

TRAIN = 1400


@functools.cache
def digits_net(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """(network in evaluation mode, float64; held-out images (397, 64) in [0, 1]; labels): 60 epochs of Adam, batches of 64. About 94 % correct."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    X, y = torch.tensor(images / 16.0, dtype=torch.float64), torch.tensor(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-4)
        for _ in range(60):
            for i in torch.randperm(TRAIN).split(64):
                loss = nn.functional.cross_entropy(net(X[i]), y[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net.eval(), X[TRAIN:], y[TRAIN:]


def correct_digits(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, and the first `count` held-out images that it classifies correctly, with their labels."""
    net, X, y = digits_net()
    right = torch.nonzero(net(X).argmax(1) == y).flatten()[:count]
    return net, X[right], y[right]
