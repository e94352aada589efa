"""Random networks, each with the model file that the checker reads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from formulations.whole_file import whole_file
from lde_cvx.model_files import FORMAT, describe

Shape = tuple[int, ...]
Random = np.random.Generator


class Residual(nn.Module):
    """x ↦ layers(x) + shortcut(x); an empty shortcut is the identity."""

    def __init__(self, layers: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.layers, self.shortcut = layers, shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) + self.shortcut(x)
        return out


def draw(kind: str, rng: Random) -> tuple[nn.Sequential, Shape]:
    """A network of one of `KINDS` in float64, and its input shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        net, shape = KINDS[kind](rng)
        net.train()
        with torch.no_grad():
            for _ in range(2 if any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) else 0):
                net(torch.randn(8, *shape))  # batch norms get statistics of their own
        return net.double().eval().requires_grad_(False), shape


def _activation(rng: Random) -> Callable[[], nn.Module]:
    return (nn.ReLU, nn.ReLU, lambda: nn.LeakyReLU(0.1), nn.Tanh, nn.Sigmoid)[int(rng.integers(5))]


def _mlp(rng: Random) -> tuple[nn.Sequential, Shape]:
    act, d, classes = _activation(rng), int(rng.integers(2, 17)), int(rng.integers(2, 6))
    widths = [d, *rng.integers(3, 33, int(rng.integers(1, 4))).tolist()]
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), act())]
    net = nn.Sequential(*layers, nn.Linear(widths[-1], classes))
    gain = 10 ** rng.uniform(-0.3, 0.6)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(gain)
    return net, (d,)


def _residual(rng: Random) -> tuple[nn.Sequential, Shape]:
    act, d, n = _activation(rng), int(rng.integers(2, 13)), int(rng.integers(4, 17))
    layers: list[nn.Module] = [nn.Linear(d, n)]
    for _ in range(int(rng.integers(1, 3))):
        shortcut = nn.Sequential(nn.Linear(n, n)) if rng.random() < 0.3 else nn.Sequential()
        layers += [Residual(nn.Sequential(act(), nn.Linear(n, n)), shortcut), act()]
    return nn.Sequential(*layers, nn.Linear(n, int(rng.integers(2, 5)))), (d,)


def _conv(rng: Random) -> tuple[nn.Sequential, Shape]:
    act, c, side = _activation(rng), int(rng.integers(1, 3)), int(rng.integers(4, 7))
    layers: list[nn.Module] = [nn.Conv2d(c, 4, 3, stride=int(rng.integers(1, 3)), padding=1)]
    layers += [nn.BatchNorm2d(4)] if rng.random() < 0.4 else []
    layers += [act()]
    tails: list[list[nn.Module]] = [[], [nn.AvgPool2d(2)], [nn.MaxPool2d(2)], [nn.Conv2d(4, 3, 2), act()]]
    layers += tails[int(rng.integers(4))]
    body = nn.Sequential(*layers, nn.Flatten()).eval()
    size = body(torch.zeros(1, c, side, side)).shape[1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, int(rng.integers(2, 5)))), (c, side, side)


def _cancelling(rng: Random) -> tuple[nn.Sequential, Shape]:
    """Large weights whose sums cancel: a float64 sum forgets its small terms (Jia & Rinard 2021, "Exploiting verified networks via floating point")."""
    d, n, size = int(rng.integers(2, 6)), 6, 10.0 ** rng.uniform(1, 12)
    first, middle, last = (nn.Linear(a, b, dtype=torch.float64) for a, b in ((d, n), (n, n), (n, 2)))
    with torch.no_grad():
        for layer in (first, middle, last):
            W = rng.normal(size=layer.weight.shape)
            big = size * rng.normal(size=W.shape[1])
            W[0] += big
            W[1] += big * (1 + rng.choice([0.0, 1e-12]))
            layer.weight.copy_(torch.as_tensor(W))
            layer.bias.copy_(torch.as_tensor(rng.normal(size=len(W)) * rng.choice([1.0, size])))
        for layer in (middle, last):
            layer.weight[:, 1] = -layer.weight[:, 0]
    return nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last), (d,)


def _forgetful(rng: Random) -> tuple[nn.Sequential, Shape]:
    """f₁ = ((big + w·x) − big)·gain + c: float64 drops the low digits of w·x, or all of them, and the real function does not."""
    d, big = int(rng.integers(1, 5)), 2.0 ** float(rng.integers(20, 62))
    first, last = nn.Linear(d, 2, dtype=torch.float64), nn.Linear(2, 2, dtype=torch.float64)
    with torch.no_grad():
        first.weight.copy_(torch.as_tensor(np.vstack([rng.normal(size=d), np.zeros(d)])))
        first.bias.fill_(big)
        gain = float(rng.choice([1.0, -1.0, 3.0]))
        last.weight.copy_(torch.as_tensor([[gain, -gain], [0.0, 0.0]], dtype=torch.float64))
        last.bias.copy_(torch.as_tensor([float(rng.uniform(0.1, 2)), 0.0], dtype=torch.float64))
    return nn.Sequential(first, nn.ReLU(), last), (d,)


KINDS: dict[str, Callable[[Random], tuple[nn.Sequential, Shape]]] = {
    "mlp": _mlp, "residual": _residual, "conv": _conv, "cancelling": _cancelling, "forgetful": _forgetful,
}  # fmt: skip


def save(net: nn.Sequential, path: Path) -> Path:
    """The model file, residual connections included (verification/rechecking/network.py tells the format)."""
    import json

    from safetensors.torch import save as encode

    tensors = {name: t.detach().contiguous().clone() for name, t in net.state_dict().items()}
    with whole_file(path) as draft:
        draft.write_bytes(encode(tensors, {"architecture": json.dumps({"format": FORMAT, "model": _described(net)})}))
    return path


def _described(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, Residual):
        return {"kind": "Residual", "layers": [_described(m) for m in module.layers], "shortcut": [_described(m) for m in module.shortcut]}
    return {"kind": "Sequential", "layers": [_described(m) for m in module]} if type(module) is nn.Sequential else describe(module)
