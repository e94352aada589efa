"""Networks, regions, certificates and attacks that the tests of the checker's levels B and C share."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from formulations.norms import Norm
from formulations.programs import min_norm, relative_parts
from formulations.sets import Box
from formulations.support import Region as SearchRegion
from lde_cvx.model_files import save_model
from lde_cvx.normalize import Normalize
from verification.certificate import CellEvidence, Certificate, ModelRecord, RivalEvidence, WitnessEvidence, evaluate
from verification.certificate_format import parse
from verification.checker import CheckReport, CheckStatus, check_file
from verification.checking.document import Cell
from verification.checking.text import self_hash
from verification.decision import Decision
from verification.evidence import inner_slopes
from verification.lirpa import BoundEngine
from verification.publishing import published
from verification.rechecking.bounds import Bounds
from verification.rechecking.graph import Network
from verification.rechecking.network import read_model
from verification.rechecking.region import Region

VALID, INVALID, CANNOT_DECIDE = CheckStatus.VALID, CheckStatus.INVALID, CheckStatus.CANNOT_DECIDE
ROOT = Path(__file__).resolve().parents[1]


def statistics(net: nn.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    """Batch norms with statistics of their own."""
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, *shape))
    return net.eval()


def seeded(build: Callable[[], nn.Sequential], shape: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return statistics(build(), shape).double()


IMAGE = (2, 6, 6)
LINE = (2, 8)
COVERED: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8, bias=False), nn.ReLU(inplace=True), nn.Linear(8, 3)), (5,)),
    "leaky": (lambda: nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.1), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 3)), (5,)),
    "tanh": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), (5,)),
    "sigmoid": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3)), (5,)),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Identity(), nn.Linear(8, 3)), (5,)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(),
                                   nn.Flatten(), nn.Linear(16, 3)), IMAGE),
    "dilated": (lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 3, (2, 3), dilation=2, padding="valid"), nn.ReLU(),
                                      nn.Conv2d(3, 2, 3, padding="same"), nn.Flatten(), nn.Linear(42, 3)), IMAGE),
    "average": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                                      nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), IMAGE),
    "padded": (lambda: nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d((2, 4)), nn.Flatten(), nn.Linear(16, 3)), IMAGE),
    "max": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2, 1, 1), nn.Flatten(), nn.Linear(48, 3)), IMAGE),
    "pools": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2), nn.LeakyReLU(0.2), nn.MaxPool2d(2),
                                    nn.Flatten(), nn.Linear(4, 3)), IMAGE),
    "normalized": (lambda: nn.Sequential(Normalize([[[0.1]], [[-0.4]]], [[[0.3]], [[1.7]]]), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(),
                                         Normalize(0.25, 3.0), nn.Linear(108, 3)), IMAGE),
    "line": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1),
                                   nn.Flatten(), nn.Linear(4, 3)), LINE),
}  # fmt: skip


def stored(net: nn.Module, folder: Path, name: str) -> Path:
    save_model(net, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def network_of(name: str, folder: Path) -> tuple[nn.Sequential, Network, tuple[int, ...]]:
    build, shape = COVERED[name]
    net = seeded(build, shape)
    return net, read_model(stored(net, folder, name)).network(shape), shape


def in_ball(p: Any, dim: int, radius: float, count: int, seed: int = 0) -> np.ndarray:
    """Points of ‖δ‖_p ≤ radius, many on the sphere and at corners."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(count, dim)) * (rng.uniform(size=(count, dim)) < rng.uniform(0.1, 1, (count, 1)))
    if p == "inf":
        v = np.sign(v) * np.where(rng.uniform(size=v.shape) < 0.5, 1.0, rng.uniform(size=v.shape))
    length = np.maximum(np.linalg.norm(v, {1: 1, 2: 2, "inf": np.inf}[p], axis=1, keepdims=True), 1e-12)
    return v / length * radius * np.where(rng.uniform(size=(count, 1)) < 0.7, 1 - 1e-12, rng.uniform(size=(count, 1)))


def document(x0: np.ndarray, norm: Any, C: Any = None, radius: float = np.inf) -> tuple[Any, Cell]:
    parts = () if C is None else C.parts(x0.size)
    decision = Decision(np.ones((1, 1)), np.zeros(1), (0,), "", "test")
    evidence = CellEvidence(radius, np.zeros(x0.size), np.array([-1.0]), np.array([1.0]), [None] * len(parts))
    cert = Certificate.build(
        model=ModelRecord("0" * 64, ""), x0=x0, outputs=[1.0], decision=decision, norm=norm, parts=parts, evidence=[RivalEvidence([evidence])], command=""
    )  # fmt: skip
    doc = parse(cert.record)
    return doc, doc.cells[0][0]


def bounds_of(network: Network, x0: np.ndarray, norm: Any, radius: float, C: Any = None) -> Bounds:
    doc, cell = document(x0.ravel(), norm, C, radius)
    return Bounds(network, doc, Region(doc, cell), {}, {})


def attacked(net: nn.Sequential, x0: np.ndarray, a: np.ndarray, norm: Any, radius: float, C: Any = None) -> np.ndarray:
    """Changes of the region that make q·f(x0+δ) − a·δ small: random ones, corners, and projected gradient steps from the worst."""
    delta = np.concatenate([in_ball(norm, x0.size, radius, 1500), np.zeros((1, x0.size))])
    if C is not None:
        keep = np.array([C.relative_to(x0.ravel()).contains(d, 0.0) for d in delta[:400]])
        return delta[:400][keep]
    x = torch.as_tensor(x0[None])
    for _ in range(8):
        d = torch.as_tensor(delta).requires_grad_(True)
        value = net(x + d.reshape(-1, *x0.shape))[:, 0] - d @ torch.as_tensor(a)
        worst = value.argsort()[:40]
        g = torch.autograd.grad(value.sum(), d)[0][worst].numpy()
        step = -np.sign(g) * radius if norm == "inf" else -g / (np.linalg.norm(g, axis=1, keepdims=True) + 1e-12) * radius
        if norm == 1:
            step = np.zeros_like(g)
            step[np.arange(len(g)), np.abs(g).argmax(1)] = -np.sign(g[np.arange(len(g)), np.abs(g).argmax(1)]) * radius
        near = delta[worst.numpy()]
        delta = np.concatenate([delta, *(near + t * (step * (1 - 1e-12) - near) for t in (0.2, 0.6, 1.0))])
    return delta


def exact_outputs(weights: list[tuple[np.ndarray, np.ndarray]], x: list[Fraction]) -> list[Fraction]:
    """A ReLU network in rational arithmetic."""
    for k, (W, b) in enumerate(weights):
        x = [
            sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(t)) for row, t in zip(W.tolist(), b.tolist(), strict=True)
        ]
        x = [max(v, Fraction(0)) for v in x] if k < len(weights) - 1 else x
    return x


def cancelling(seed: int, size: float) -> nn.Sequential:
    """Large weights whose sums cancel: in float64 a sum forgets its small terms (Jia & Rinard 2021)."""
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        for layer in (net[0], net[2], net[4]):
            W = rng.normal(size=layer.weight.shape)
            big = 10.0**size * rng.normal(size=(1, W.shape[1]))
            W[0] += big[0]
            if len(W) > 1:
                W[1] += big[0] * (1 + rng.choice([0.0, 1e-12]))
            layer.weight.copy_(torch.as_tensor(W))
            layer.bias.copy_(torch.as_tensor(rng.normal(size=len(W)) * 10.0 ** rng.choice([0, size])))
        net[2].weight[:, 1] = -net[2].weight[:, 0]
        net[4].weight[:, 1] = -net[4].weight[:, 0]
    return net


def certificate(
    net: nn.Module, x0: np.ndarray, norm: Any, radius: float, C: Any = None, method: str = "crown", flip: np.ndarray | None = None
) -> Certificate:  # fmt: skip
    """Rows of the bound engine at one radius, with their exact multipliers."""
    outputs = evaluate(net, x0[None])[0]
    decision, d = Decision.classification(int(outputs.argmax()), len(outputs)), x0.size
    region = SearchRegion.build(Norm.of(norm), relative_parts(C, d, x0.reshape(1, -1), 1), np.array([radius]), d, count=1)
    rows = BoundEngine(net, x0.shape).rows(torch.as_tensor(x0[None]), torch.as_tensor(decision.rows[None]), torch.as_tensor(decision.shifts[None]),
                                           region, method)  # fmt: skip
    evidence = []
    for k in range(len(decision.shifts)):
        a, b = rows.a[0, k].numpy(), rows.b[0, k : k + 1].numpy()
        solution = min_norm(a, b[0], norm, C, x0.ravel())[0]
        slopes = [[v[0, k].numpy() for v in rows.slopes]] if rows.slopes else []
        inner = [inner_slopes(t, s, v[0].numpy()) for (t, s), v in rows.inner.items()] if k == 0 else []
        cell = CellEvidence(radius, a, b, solution.multipliers["margin"], solution.duals, slopes=slopes, inner=inner)
        evidence.append(RivalEvidence([cell], method))
    witness = None
    if flip is not None:
        y = evaluate(net, (x0 + flip)[None])[0]
        witness = WitnessEvidence(flip.ravel(), y, decision.rivals[int(decision.margins(y[None])[0].argmin())])
    return Certificate.build(
        model=net, x0=x0, outputs=outputs, decision=decision, norm=norm, parts=() if C is None else C.parts(d), evidence=evidence, witness=witness,
        command="test", method=method,
    )  # fmt: skip


def rehashed(record: dict[str, Any]) -> dict[str, Any]:
    record["sha256"] = self_hash(record)
    return record


def verdict(record: dict[str, Any], folder: Path, model: Path, level: str = "B") -> CheckReport:
    (folder / "case.json").write_text(json.dumps(record))
    return check_file(folder / "case.json", level=level, model=model)


Honest = tuple[dict[str, Any], nn.Module, Path, np.ndarray]


def honest_case(folder: Path) -> Honest:
    """A certificate's record, its network, the model's file and x0."""
    net, _, shape = network_of("mlp", folder)
    x0 = np.random.default_rng(3).normal(size=shape) * 0.5
    cert = certificate(net, x0, 2, 0.4, Box(-3, 3))
    assert verdict(cert.record, folder, folder / "mlp.safetensors").ok
    return cert.record, net, folder / "mlp.safetensors", x0


def forge(record: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A forger's copy: the changed evidence, and the bounds that it proves."""
    out = copy.deepcopy(record)
    change(out)
    return published(out)


def raised(record: dict[str, Any], k: int, by: float) -> dict[str, Any]:
    def change(r: dict[str, Any]) -> None:
        cell = r["rivals"][k]["cells"][0]
        cell["b"] = [(float.fromhex(cell["b"][0]) + by).hex()]

    return forge(record, change)
