"""The networks and inputs of an ablation: the benchmarks' ReLU networks, and tanh networks of the same sizes trained here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from formulations.norms import Array
from formulations.sets import ConvexSet
from lde_cvx.ablate.grid import Grid
from lde_cvx.bench import networks
from lde_cvx.models import one_thread


@dataclass(frozen=True, eq=False)
class Case:
    """A network, correctly classified held-out inputs x (n, *shape), the data's own set, and the image shape ((), for tables)."""

    model: nn.Module
    x: Tensor
    own: ConvexSet
    image: tuple[int, ...]


def build_case(grid: Grid, folder: Path) -> Case:
    """Trained deterministically; a network on MNIST is kept in `folder`. Raises InputError where the data set is not here."""
    n, image = grid.inputs, tuple[int, ...]()
    if grid.data == "digits":
        made, image = networks.digits(n), (8, 8)
    elif grid.data == "mnist":
        made, image = networks.mnist_mlp(n, folder / "networks"), (28, 28)
    else:
        made = networks.german_credit(n)
    if grid.network == "relu":
        return Case(made.model, made.x, made.constraints, image)
    X, y, X_test, y_test = _data(grid)
    model = _tanh(X, y, hidden={"digits": (64, 64), "mnist": (128, 64), "german_credit": (32, 32)}[grid.data], seed=grid.seed)
    held = torch.tensor(X_test)
    right = held[model(held).argmax(1) == torch.tensor(y_test)]
    if grid.data == "german_credit":  # declined applicants, as the ReLU network's
        right = right[model(right).argmax(1) == 0]
    return Case(model, right[:n].reshape(-1, *made.x.shape[1:]), made.constraints, image)


def _data(grid: Grid) -> tuple[Any, Any, Any, Any]:
    from formulations.semantic import Schema
    from lde_cvx.data import digits, german_credit, mnist
    from lde_cvx.models import split_rows

    if grid.data == "mnist":
        train, test = mnist("train", limit=20_000), mnist("test", limit=4 * grid.inputs + 50)
        return train.X.reshape(len(train), -1), train.y, test.X.reshape(len(test), -1), test.y
    if grid.data == "digits":
        data = digits()
        X = data.X
    else:
        data = german_credit()
        X = Schema.from_frame(data.X, immutable=["age", "foreign_worker"]).encode(data.X)
    train_rows, test_rows = split_rows(data.y, 0.25, 0)
    return X[train_rows], data.y[train_rows], X[test_rows], data.y[test_rows]


def _tanh(X: Array, y: Any, *, hidden: tuple[int, int], seed: int) -> nn.Module:
    """Flatten, two tanh layers, scores; AdamW at 3e-3, batches of 64, 20 epochs (at most 6,000 steps)."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        a, b = hidden
        classes = int(np.max(y)) + 1
        model = nn.Sequential(nn.Flatten(), nn.Linear(X.shape[1], a), nn.Tanh(), nn.Linear(a, b), nn.Tanh(), nn.Linear(b, classes)).double()
        x, t = torch.tensor(X), torch.tensor(y)
        optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.1)
        epochs = max(1, min(20, 6000 * 64 // len(x)))
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(x)), 64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), t[batch]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return model.eval().requires_grad_(False)
