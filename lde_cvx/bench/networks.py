"""The networks and inputs that the benchmarks share. What needs MNIST is left out, by name, where $LDE_DATA does not hold it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from formulations.sets import Box, ConvexSet
from lde_cvx.data import VARIABLE, mnist
from lde_cvx.model_files import load_model, load_torch_state, save_model
from lde_cvx.models import digits_model, german_credit_model
from lde_cvx.normalize import Normalize


@dataclass(frozen=True, eq=False)
class Case:
    """A network with correctly classified held-out inputs x (n, *shape), the set of allowed changes, and the norms asked of it.

    `box` is the set as (lo, hi) where it is no more than that: what a rival without general sets can use.
    """

    name: str
    model: nn.Module
    x: Tensor
    constraints: ConvexSet
    box: tuple[float, float] | None
    norms: tuple[float | str, ...] = ("inf", 2, 1)
    seconds: float = 10.0


def digits(n: int) -> Case:
    trained, data = digits_model()
    return Case(
        "digits MLP 64-64-64-10",
        trained.model,
        _correct(trained.model, data.X[trained.test_rows], data.y[trained.test_rows], n),
        Box(0, 1),
        (0, 1),
    )


def german_credit(n: int) -> Case:
    """Declined applicants of the test split; age and foreign-worker status fixed."""
    from formulations.semantic import Schema
    from lde_cvx.data import german_credit as load

    schema = Schema.from_frame(load().X, immutable=["age", "foreign_worker"])
    trained, _, data = german_credit_model(schema=schema)
    X = torch.tensor(schema.encode(data.X.iloc[trained.test_rows]))
    declined = X[trained.model(X).argmax(1) == 0][:n]
    return Case("German credit MLP 61-32-32-2", trained.model, declined, schema.polytope(), None, (2, 1))


def mnist_mlp(n: int, cache: Path) -> Case:
    model, x = _mnist(
        "mnist-mlp-2x256",
        cache,
        n,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)),
    )
    return Case("MNIST MLP 784-256-256-10", model, x, Box(0, 1), (0, 1), seconds=30.0)


def mnist_conv(n: int, cache: Path) -> Case:
    model, x = _mnist(
        "mnist-conv-strided", cache, n,
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10),
        ),
    )  # fmt: skip
    return Case("MNIST strided conv", model, x, Box(0, 1), (0, 1), seconds=30.0)


def mnist_cnn(n: int) -> Case:
    """The 99 % network of the file `mnist_cnn.pth`; its input normalisation is part of the model, so x stays in [0, 1]."""
    layers = (nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.Linear(3136, 128), nn.Linear(128, 10))
    tensors = [v for v in load_torch_state(_file("mnist_cnn.pth")).values() if v.ndim]
    for layer, weight, bias in zip(layers, tensors[::2], tensors[1::2], strict=True):
        layer.weight.data, layer.bias.data = weight, bias
    first = layers[0]
    # conv((x − m)/s) with zero padding of the normalised image: only the interior could be folded exactly, so it stays a layer of its own
    model = nn.Sequential(
        Normalize(torch.full((1, 1, 1), 0.1307, dtype=torch.float64), torch.full((1, 1, 1), 0.3081, dtype=torch.float64)),
        first,
        nn.ReLU(),
        nn.MaxPool2d(2),
        layers[1],
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        layers[2],
        nn.ReLU(),
        layers[3],
    )
    model = model.double().eval().requires_grad_(False)
    data = mnist("test", limit=4 * n + 50)
    return Case("mnist_cnn.pth", model, _correct(model, data.X, data.y, n), Box(0, 1), (0, 1), seconds=30.0)


def verix(n: int) -> Case:
    """The 10×2 network of the VeriX paper; its input is 28×28×1, so the change is over the same pixels in the same order."""
    model = load_model(_file("verix_mnist_10x2.onnx"))
    data = mnist("test", limit=4 * n + 50)
    return Case("verix_mnist_10x2.onnx", model, _correct(model, np.moveaxis(data.X, 1, -1), data.y, n), Box(0, 1), (0, 1), ("inf",), 30.0)


def cases(cache: Path, *, quick: bool, tell: Callable[[str], object]) -> Iterator[Case]:
    """Every case that can be built here; `tell` hears what is left out and why."""
    builders: tuple[Callable[[], Case], ...] = (
        lambda: digits(8 if quick else 50), lambda: german_credit(5 if quick else 25), lambda: mnist_mlp(20, cache), lambda: mnist_conv(8, cache),
        lambda: verix(100), lambda: mnist_cnn(4),
    )  # fmt: skip
    return built(builders[: 2 if quick else None], tell)


def built(builders: Iterable[Callable[[], Case]], tell: Callable[[str], object]) -> Iterator[Case]:
    """The cases that can be built; `tell` hears which cannot, and why."""
    for build in builders:
        try:
            yield build()
        except InputError as reason:
            tell(f"left out: {reason}")


def _correct(model: nn.Module, X: Array, y: Any, n: int) -> Tensor:
    x = torch.tensor(X)
    return x[model(x).argmax(1) == torch.tensor(y)][:n]


def _file(name: str) -> Path:
    folder = os.environ.get(VARIABLE)
    path = Path(folder or ".") / "models" / name
    if folder is None or not path.is_file():
        raise InputError(f"{name}: set {VARIABLE} to a folder that holds models/{name}.")
    return path


def _mnist(name: str, cache: Path, n: int, build: Callable[[], nn.Sequential], epochs: int = 4) -> tuple[nn.Module, Tensor]:
    """A network trained on MNIST once (Adam, 1e-3, batches of 128) and kept in `cache`."""
    test = mnist("test", limit=4 * n + 50)
    path = cache / f"{name}.safetensors"
    if path.is_file():
        model = load_model(path).double()
        return model, _correct(model, test.X, test.y, n)
    train = mnist("train")
    X, y = torch.tensor(train.X, dtype=torch.float32), torch.tensor(train.y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build()
        optimiser = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(X)), 128):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(X[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    net = net.double().eval().requires_grad_(False)
    cache.mkdir(parents=True, exist_ok=True)
    save_model(net, path)
    return net, _correct(net, test.X, test.y, n)
