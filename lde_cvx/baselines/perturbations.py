"""Baselines by replacing parts of the input, which ask for values alone: occlusion, LIME and KernelSHAP by captum; RISE, HSIC and the random control by us."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from formulations.errors import InputError
from lde_cvx.baselines.base import at_least, captum_attr, cells_of, reference_like, score
from lde_cvx.baselines.gradients import Reference


@dataclass(frozen=True, eq=False)
class Occlusion:
    """Mean over the windows that hold i of f(x) − f(x with the window at r). Source: Zeiler, Fergus (2014).

    window: side of the square (length of the run of a vector); stride: None: half of it. All channels are replaced together.
    """

    window: int = 4
    stride: int | None = None
    reference: Reference = 0.0
    name: ClassVar[str] = "occlusion"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        sides = shape[-2:] if len(shape) > 1 else shape
        if not 1 <= self.window <= min(sides):
            raise InputError(f"occlusion: window={self.window} must lie between 1 and the input's smallest side, {min(sides)}.")
        step = max(1, self.window // 2) if self.stride is None else self.stride
        if not 1 <= step <= self.window:
            raise InputError(f"occlusion: stride={step} must lie between 1 and the window's {self.window}, or features would be left out.")
        window = (*shape[: len(shape) - len(sides)], *(self.window for _ in sides))
        strides = (*shape[: len(shape) - len(sides)], *(step for _ in sides))
        found = captum_attr().Occlusion(model).attribute(
            x, sliding_window_shapes=window, strides=strides, baselines=reference_like(x, self.reference), target=targets,
            perturbations_per_eval=16,
        )  # fmt: skip
        return torch.as_tensor(found).detach()


@dataclass(frozen=True, eq=False)
class Lime:
    """Weights of a sparse linear model of f on switched cells, near x. Source: Ribeiro, Singh, Guestrin (2016).

    cell: side of the square cells that are switched together (of a vector: runs). Needs scikit-learn beside captum.
    """

    samples: int = 500
    cell: int = 1
    penalty: float = 0.001
    reference: Reference = 0.0
    name: ClassVar[str] = "lime"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 2)
        at_least("penalty", self.penalty, 0)

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        attr = captum_attr()
        from captum._utils.models.linear_model import SkLearnLasso

        found = attr.Lime(model, interpretable_model=SkLearnLasso(alpha=self.penalty)).attribute(
            x, target=targets, feature_mask=cells_of(tuple(x.shape[1:]), self.cell).to(x.device)[None], n_samples=self.samples,
            perturbations_per_eval=32, baselines=reference_like(x, self.reference),
        )  # fmt: skip
        return torch.as_tensor(found).to(x)


@dataclass(frozen=True, eq=False)
class KernelShap:
    """Shapley values of v(T) = f(x on T, r elsewhere) by weighted least squares over drawn coalitions of cells. Source: Lundberg, Lee (2017).

    A cell's value is given to each of its entries. Needs scikit-learn beside captum.
    """

    samples: int = 500
    cell: int = 1
    reference: Reference = 0.0
    name: ClassVar[str] = "kernel-shap"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 2)

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        cells = cells_of(tuple(x.shape[1:]), self.cell).to(x.device)
        if int(cells.max()) < 1:
            raise InputError(f"kernel-shap: cell={self.cell} leaves one cell; use a smaller one.")
        found = captum_attr().KernelShap(model).attribute(
            x, target=targets, feature_mask=cells[None], n_samples=self.samples, perturbations_per_eval=32,
            baselines=reference_like(x, self.reference),
        )  # fmt: skip
        return torch.as_tensor(found).to(x)


@dataclass(frozen=True, eq=False)
class Rise:
    """Σ_j f(x with mask M_j) M_j / Σ_j M_j over random masks: coarse coin tosses, enlarged smoothly and shifted. Source: Petsiuk, Das, Saenko (2018).

    grid: coarse cells per side; keep: their chance of being kept.
    """

    samples: int = 1000
    grid: int = 7
    keep: float = 0.5
    reference: Reference = 0.0
    name: ClassVar[str] = "rise"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)
        if not 0 < self.keep < 1:
            raise InputError(f"rise: keep={self.keep} must lie between 0 and 1.")

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        sides = shape[-2:] if len(shape) > 1 else (1, shape[0])
        if not 1 <= self.grid <= max(sides):
            raise InputError(f"rise: grid={self.grid} must lie between 1 and the input's largest side, {max(sides)}.")
        rows, columns = min(self.grid, sides[0]), min(self.grid, sides[1])
        tall, wide = -(-sides[0] // rows), -(-sides[1] // columns)
        coins = (torch.rand(self.samples, 1, rows + 1, columns + 1, dtype=x.dtype) < self.keep).to(x)
        large = nn.functional.interpolate(coins, size=((rows + 1) * tall, (columns + 1) * wide), mode="bilinear", align_corners=False)
        down, right = torch.randint(0, tall, (self.samples,)), torch.randint(0, wide, (self.samples,))
        masks = torch.stack([m[:, a : a + sides[0], b : b + sides[1]] for m, a, b in zip(large, down, right, strict=True)])
        masks = masks.reshape(self.samples, *sides) if len(shape) > 1 else masks.reshape(self.samples, shape[0])
        full = masks.reshape(self.samples, *[1] * (len(shape) - masks.ndim + 1), *masks.shape[1:]).expand(self.samples, *shape)
        r = reference_like(x, self.reference)
        values = score(model, r + full * (x - r), int(targets[0]))
        return torch.einsum("n,n...->...", values, full)[None] / full.sum(0).clamp(min=1e-12)


@dataclass(frozen=True, eq=False)
class Hsic:
    """HSIC(M_i, f(x with mask M)) of each cell's coin M_i ∈ {0, 1}: how far the output depends on whether the cell is kept.

    (n − 1)⁻² tr(K_i H L H), K_i(a, b) = [M_i^a = M_i^b], L Gaussian in the output with the median distance as its width, H centring; n draws, each cell
    kept in half of them. Not negative. Source: Novello, Fel, Vigouroux (2022).
    """

    samples: int = 512
    cell: int = 1
    reference: Reference = 0.0
    name: ClassVar[str] = "hsic"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 4)

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        shape, n = tuple(x.shape[1:]), self.samples
        cells = cells_of(shape, self.cell).to(x.device)
        count = int(cells.max()) + 1
        kept = torch.argsort(torch.rand(n, count), dim=0) < n // 2  # exactly half of the draws keep a cell
        kept = kept.to(x)
        r = reference_like(x, self.reference)
        y = score(model, r + kept[:, cells.ravel()].reshape(n, *shape) * (x - r), int(targets[0]))
        return dependence(kept, y)[cells.ravel()].reshape(x.shape)


def dependence(kept: Tensor, y: Tensor) -> Tensor:
    """(n, cells) in {0, 1} and (n,) → HSIC (cells,)."""
    n = len(y)
    gaps = (y[:, None] - y[None]).abs()
    width = gaps[gaps > 0].median() if bool((gaps > 0).any()) else gaps.new_ones(())
    L = torch.exp(-0.5 * (gaps / width) ** 2)
    L = L - L.mean(0) - L.mean(1)[:, None] + L.mean()
    # [a = b] = ½ + ½(2a − 1)(2b − 1), and H removes the constant
    signs = 2 * kept - 1
    return 0.5 * torch.einsum("ni,nm,mi->i", signs, L, signs).clamp(min=0.0) / (n - 1) ** 2


@dataclass(frozen=True)
class Random:
    """Independent uniform numbers that know nothing of the model: the control that every metric must rank last."""

    name: ClassVar[str] = "random"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        # the input's own numbers are part of the seed, so that one seed does not give every input the same map
        salt = zlib.crc32(x.detach().cpu().numpy().tobytes()) ^ torch.initial_seed() & 0xFFFFFFFF
        generator = torch.Generator().manual_seed(salt)
        return torch.rand(1, prod(x.shape[1:]), generator=generator, dtype=x.dtype).reshape(x.shape).to(x.device)
