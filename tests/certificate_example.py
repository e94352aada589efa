"""Certificates for the tests: of linear networks, whose rows are exact, and of a ReLU network split into all its linear pieces."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch

from formulations.norms import Norm
from formulations.programs import min_norm
from formulations.sets import Box, LpBall, Polytope, TotalVariation
from verification.certificate import CellEvidence, Certificate, ModelRecord, RivalEvidence, Split, WitnessEvidence
from verification.certificate_format import parse
from verification.checking.document import Document
from verification.checking.text import self_hash
from verification.decision import Decision

D, CLASSES = 6, 3
NOBODY = ModelRecord("0" * 64, "none")


def linear_model(seed: int = 0, dim: int = D) -> torch.nn.Module:
    """A float32 network that is linear after flattening."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(dim, CLASSES))


def rich_set() -> Any:
    """Every kind of part, over the input and over the change; each matters to the linear model's optimum in some direction."""
    equal = np.r_[1.0, 1.0, np.zeros(D - 2)][None]
    return (
        Box(np.r_[-np.inf, np.zeros(D - 1)], 1.0)
        & TotalVariation(0.6, (2, 3))
        & Polytope(np.r_[np.zeros(D - 2), 1.0, 2.0][None], [1.6], equal=(equal, [0.9]))
        & LpBall(Norm(2, np.linspace(0.5, 1.5, D)), 0.5, center=np.full(D, 0.4), on="input")
    )


def start() -> np.ndarray:
    return np.array([0.4, 0.5, 0.45, 0.5, 0.55, 0.5])


def linear_certificate(
    norm: Any = 2, constraints: Any = None, *, with_witness: bool = True, dim: int = D, seed: int = 3
) -> tuple[Certificate, torch.nn.Module]:
    """lower is the exact optimum up to the solver's accuracy, and the witness lies a little beyond it. Every rival can be reached, barely."""
    model = linear_model(seed, dim)
    layer = model[1]
    x0 = start() if dim == D else np.random.default_rng(seed).uniform(0.3, 0.7, dim)
    C = rich_set() if constraints is None else constraints
    decision = Decision.classification(0, CLASSES)
    W = layer.weight.detach().double().numpy()
    A = decision.rows @ W
    needed = np.array([0.9 * C.relative_to(x0).support(-a) for a in A])
    with torch.no_grad():
        layer.bias.copy_(torch.as_tensor(np.r_[0.0, -needed] - W @ x0))
    outputs = W @ x0 + layer.bias.detach().double().numpy()
    b = decision.margins(outputs[None])[0]
    solutions = [min_norm(A[k], b[k], norm, C, x0)[0] for k in range(len(A))]
    evidence = [
        RivalEvidence([CellEvidence(np.inf, A[k], b[k], s.multipliers["margin"], s.duals)], "linear") for k, s in enumerate(solutions)
    ]
    k = int(np.argmin([s.value for s in solutions]))
    further = min_norm(A[k], b[k] + 1e-4, norm, C, x0)[0].delta  # beyond the boundary by 1e-4
    witness = WitnessEvidence(further, outputs + W @ further, decision.rivals[k]) if with_witness else None
    cert = Certificate.build(
        model=model, x0=x0, outputs=outputs, decision=decision, norm=norm, parts=C.parts(dim), evidence=evidence, witness=witness,
        method="linear", seed=seed, command="test", notes={"seconds": 0.5, "who": ["a", None]},
    )  # fmt: skip
    return cert, model


def relu_pieces(norm: Any = 2, hidden: int = 3, seed: int = 1) -> tuple[Certificate, torch.nn.Module, Any]:
    """m(δ) of a one-layer ReLU network in 4 dimensions over a box, split into its 2^hidden linear pieces: each leaf is exact, so lower is v*."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1)).double()
    U, beta, v, c = (p.detach().numpy() for p in model.parameters())
    x0, C = np.full(4, 0.5), Box(-1.0, 2.0)
    pre, parts = U @ x0 + beta, C.parts(4)
    value = float(model(torch.as_tensor(x0[None]))[0, 0].detach())
    box = torch.as_tensor(np.random.default_rng(0).uniform(-1.0, 2.0, (500, 4)))
    tau = value - 0.6 * (value - float(model(box).min().detach()))  # within reach
    decision = Decision.threshold(0, tau, 1)
    cells = []
    for sides in itertools.product((-1, 1), repeat=hidden):
        on = np.array(sides) > 0
        rows = np.vstack([v[0, on] @ U[on], -np.array(sides)[:, None] * U])  # the margin on the piece, and ∓(u·δ + pre) ≤ 0
        b = np.r_[v[0, on] @ pre[on] + c[0] - tau, -np.array(sides) * pre]
        s = min_norm(rows[None], b[None], norm, C, x0)[0]
        path = [Split("0", j, 0.0, side) for j, side in enumerate(sides)]
        cells.append(CellEvidence(np.inf, rows, b, s.multipliers["margin"], s.duals, path=path, row_of=[-1, *range(hidden)]))
    cert = Certificate.build(
        model=model,
        x0=x0,
        outputs=[value],
        decision=decision,
        norm=norm,
        parts=parts,
        evidence=[RivalEvidence(cells)],
        command="test",
        method="branching",
    )
    return cert, model, C


def rehashed(record: dict[str, Any]) -> dict[str, Any]:
    """A forger's copy: the self-hash fits again."""
    out = copy.deepcopy(record)
    out["sha256"] = self_hash(out)
    return out


def document(x0: np.ndarray, norm: Any, parts: Any, A: np.ndarray, b: np.ndarray, lam: np.ndarray, duals: Any, w: Any = None) -> Document:
    """One row's evidence as the checker sees it."""
    K = len(A)
    decision = Decision(np.ones((1, 1)), np.zeros(1), (0,), "", "test")
    cell = CellEvidence(np.inf, A, b, lam, duals, w, row_of=[-1] * K)
    cert = Certificate.build(
        model=NOBODY,
        x0=x0,
        outputs=[max(1.0, float(b.max()))],
        decision=decision,
        norm=norm,
        parts=parts,
        evidence=[RivalEvidence([cell])],
        command="",
    )
    return parse(cert.record)
