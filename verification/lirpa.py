r"""Sound minorants of a network's margins over { ‖Wδ‖ ≤ r_i } ∩ C_i, by auto_LiRPA: the one module that imports it.

The library relaxes the layers; every linear function it meets on the way is bounded over the region itself by `Region.support`, not over a bigger
ball or box. To that end its perturbation class is replaced (it ignores boxes at p = 2), and so is its shortcut that answers the first linear layer
from the box hull, which is exact for a box only. A pass is CROWN (Zhang et al. 2018): bounds of every layer's inputs, then

    m_k(δ) ≥ a_k·δ + b_k   on R_i,      lower_k = b_k − σ_{R_i}(−a_k)

Everything runs in float64 with round-to-nearest; b_k is lowered by `SLACK` of its terms, far above the rounding of a forward pass. While the
library works, torch's default dtype is float64 (its α tensors ask for it): the one global setting touched, restored afterwards, not thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from enum import Enum
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.support import Region
from verification._lirpa_compat import library
from verification.minorant import Minorant
from verification.model import float64_copy, outputs

SLACK = 1e-12  # of |b| + Σ|a||x0| and the margin's size, taken off every row: float64 rounding of the passes
MEMORY = 1 << 30  # bytes of bound matrices in one chunk of inputs


class BoundMethod(Enum):
    """How layers are bounded; the value says what to expect."""

    IBP = "Intervals: fast, loose, and only a constant row."
    CROWN = "Linear relaxations with fixed slopes."
    ALPHA_CROWN = "Linear relaxations whose slopes are raised for this region."

    @staticmethod
    def of(name: BoundMethod | str) -> BoundMethod:
        """From "ibp", "crown" or "alpha-crown". Raises InputError on another name."""
        if isinstance(name, BoundMethod):
            return name
        known = {m.name.lower().replace("_", "-"): m for m in BoundMethod}
        if str(name).lower() not in known:
            raise InputError(f"method={name!r} is not known; use one of {', '.join(known)}.")
        return known[str(name).lower()]


@contextlib.contextmanager
def float64_default() -> Iterator[None]:
    """torch's default dtype is float64 inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class BoundEngine:
    """Bounds of one network. The caller's model is copied (float64, evaluation mode), never changed.

    `passes` counts bound passes. Raises DependencyError when auto_LiRPA is missing, and InputError that names the layer it cannot bound.
    """

    def __init__(
        self, model: nn.Module, input_shape: tuple[int, ...], device: torch.device | str | None = None, *, memory: int = MEMORY
    ) -> None:
        self.model = float64_copy(model, device)
        self.device = next((p.device for p in self.model.parameters()), torch.device("cpu" if device is None else device))
        self.input_shape, self.dim, self.memory, self.passes = tuple(input_shape), prod(input_shape), memory, 0
        probe = torch.linspace(-1, 1, 2 * self.dim, dtype=torch.float64, device=self.device).reshape(2, *self.input_shape)
        self.outputs = int(outputs(self.model, probe).shape[1])
        self._bounded = _convert(self.model, probe[:1])
        self._check_parity(probe)
        self._row_bytes = _bytes_per_input(self._bounded, self.dim)

    def rows(self, x0: Tensor, Q: Tensor, s: Tensor, region: Region, method: BoundMethod | str = BoundMethod.CROWN) -> Minorant:
        """Minorants of the margins Q f(x0 + δ) + s on the region, for inputs x0 (n, *shape), Q (n, K, m), s (n, K).

        Inputs are taken in chunks of bounded memory. Raises InputError on shapes that do not fit and on a layer that cannot be bounded, and
        RuntimeError when a row lies above the network at δ = 0: a region without x0, or a fault of the bound library.
        """
        how, n = BoundMethod.of(method), len(x0)
        if tuple(x0.shape[1:]) != self.input_shape or Q.shape[-1] != self.outputs or region.count != n or region.dim != self.dim:
            raise InputError(
                f"rows: inputs {tuple(x0.shape)}, margin rows {tuple(Q.shape)} and a region of {region.count} × {region.dim} do not fit "
                f"inputs of shape {self.input_shape} and {self.outputs} outputs."
            )
        per_input = self._row_bytes * (3 if how is BoundMethod.ALPHA_CROWN else 1)
        width = max(1, int(self.memory // max(per_input, 1)))
        done = [self._chunk(x0[i : i + width], Q[i : i + width], s[i : i + width],
                            region if width >= n else region.take(range(i, min(i + width, n))), how) for i in range(0, n, width)]  # fmt: skip
        self.passes += 1
        return done[0] if len(done) == 1 else Minorant(*(torch.cat([getattr(m, f) for m in done]) for f in ("a", "b", "lower")))

    def _chunk(self, x: Tensor, Q: Tensor, s: Tensor, region: Region, how: BoundMethod) -> Minorant:
        a, b = self._linear_bounds(x, Q, region, how)
        a, b = a.detach(), b.detach() + s
        flat = x.flatten(1)
        b = b + torch.einsum("nkd,nd->nk", a, flat)  # rows over the input become rows over the change
        with torch.no_grad():
            value = torch.einsum("nkm,nm->nk", Q, self.model(x)) + s
        size = 1 + b.abs() + value.abs() + torch.einsum("nkd,nd->nk", a.abs(), flat.abs())
        b = b - SLACK * size
        lower = b - region.support(-a)
        broken = ~(torch.isfinite(a).all(-1) & torch.isfinite(b) & torch.isfinite(lower))
        if bool((~broken & (b > value + 1e-6 * size)).any()):
            i, k = (int(v) for v in torch.nonzero(~broken & (b > value + 1e-6 * size))[0])
            raise RuntimeError(f"bounds: row {k} of input {i} exceeds its margin at x0 ({float(b[i, k]):g} > {float(value[i, k]):g}); "
                               "the region does not hold x0, or the bound library is at fault.")  # fmt: skip
        nothing = torch.full_like(b, -torch.inf)
        return Minorant(torch.where(broken[..., None], 0.0, a), torch.where(broken, nothing, b), torch.where(broken, nothing, lower))

    def _linear_bounds(self, x: Tensor, Q: Tensor, region: Region, how: BoundMethod) -> tuple[Tensor, Tensor]:
        """(A (n, K, d), bias (n, K)) with A·z + bias ≤ Q f(z) for z ∈ x0 + R."""
        net, n, K = self._bounded, len(x), Q.shape[1]
        root, final = net.input_name[0], net.final_name
        net.repaired = not region.is_box
        given = library().BoundedTensor(x, _set_perturbation()(x, region))
        how_called: dict[str, Any] = {"x": (given,), "C": Q, "bound_upper": False}
        with float64_default(), torch.set_grad_enabled(how is BoundMethod.ALPHA_CROWN):
            try:
                if how is BoundMethod.IBP:
                    lower = net.compute_bounds(method="IBP", **how_called)[0]
                    return torch.zeros(n, K, self.dim, dtype=x.dtype, device=x.device), lower.reshape(n, K)
                name = "CROWN" if how is BoundMethod.CROWN else "alpha-CROWN"
                lower, _, found = net.compute_bounds(method=name, return_A=True, needed_A_dict={final: [root]}, **how_called)
            except (NotImplementedError, AssertionError, AttributeError, TypeError, KeyError, ValueError) as error:
                raise InputError(_blame(self.model, self.input_shape, error)) from error
            finally:
                _forget(net)
        record = found.get(final, {}).get(root)
        if record is None or record["lA"] is None:  # every relaxation ends before the input: the margin's bound is a constant
            return torch.zeros(n, K, self.dim, dtype=x.dtype, device=x.device), lower.reshape(n, K)
        A = record["lA"].reshape(n, K, self.dim)
        bias = record["lbias"]
        return A, torch.zeros(n, K, dtype=x.dtype, device=x.device) if bias is None else bias.reshape(n, K)

    def _check_parity(self, probe: Tensor) -> None:
        """The library's graph must compute the same function as the model."""
        with float64_default(), torch.no_grad():
            ours, theirs = self.model(probe), self._bounded(probe)
        if not torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9):
            gap = float((ours - theirs).abs().max())
            raise InputError(f"model: {type(self.model).__name__} is translated wrongly for bounding (outputs differ by {gap:g}); "
                             "avoid layers that depend on the batch size or on random numbers.")  # fmt: skip


@functools.cache
def _set_perturbation() -> Any:
    """The perturbation class: the library's ℓ∞ box for intervals, and the region's support function wherever a linear function is concretized."""
    lib = library()

    class SetPerturbation(lib.PerturbationLpNorm):  # type: ignore[misc, name-defined]
        def __init__(self, x: Tensor, region: Region) -> None:
            lo, hi = region.hull()
            super().__init__(norm=torch.inf, x_L=x + lo.view_as(x), x_U=x + hi.view_as(x))
            self.region, self.flat = region, x.flatten(1)

        def concretize_matrix(self, x: Tensor, A: Any, sign: int, extra_constr: Any = None) -> Tensor:
            if isinstance(A, lib.eyeC) or self.region.is_box:  # the hull is exact for one coordinate, and for a box
                return super().concretize_matrix(x, A, sign, extra_constr)  # type: ignore[no-any-return]
            rows = A.reshape(A.shape[0], A.shape[1], -1)
            return torch.einsum("nsd,nd->ns", rows, self.flat) + sign * self.region.support(sign * rows)

        def concretize_patches(self, x: Tensor, A: Any, sign: int, extra_constr: Any = None) -> Tensor:
            if A.identity == 1 or self.region.is_box:
                return super().concretize_patches(x, A, sign, extra_constr)  # type: ignore[no-any-return]
            matrix = lib.patches_to_matrix(A.patches, x.shape, A.stride, A.padding, A.output_shape, A.unstable_idx)
            bound = self.concretize_matrix(x, matrix, sign)
            return bound if A.unstable_idx is not None else bound.reshape(len(x), A.patches.shape[0], *A.patches.shape[2:4])

    return SetPerturbation


def _convert(model: nn.Module, probe: Tensor) -> Any:
    """auto_LiRPA's module, with its first-layer shortcut off where the region is no box. Raises InputError that names the layer it does not know."""
    lib = library()

    class Bounded(lib.BoundedModule):  # type: ignore[misc, name-defined]
        repaired = True

        def check_IBP_first_linear(self, node: Any) -> bool:
            return False if self.repaired else bool(super().check_IBP_first_linear(node))

    options = {
        "conv_mode": "patches", "sparse_features_alpha": False, "sparse_spec_alpha": False,
        "optimize_bound_args": {"iteration": 20, "lr_alpha": 0.2, "early_stop_patience": 10},
    }  # fmt: skip
    try:
        with float64_default():
            return Bounded(model, probe, bound_opts=options, device=probe.device)
    except Exception as error:  # the library raises whatever the translation trips over
        raise InputError(_blame(model, tuple(probe.shape[1:]), error)) from error


def _blame(model: nn.Module, shape: tuple[int, ...], error: Exception) -> str:
    """One line that names the first layer which cannot be bounded on its own, or what the library said."""
    met: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    hooks = [module.register_forward_hook(functools.partial(_note, met, name))
             for name, module in model.named_modules() if not any(module.children())]  # fmt: skip
    try:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            model(torch.zeros(1, *shape, dtype=torch.float64, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer, size in met:
        if not _boundable(layer, size):
            return f"model: layer {name!r} ({layer}) cannot be bounded by auto_LiRPA {library().version}; replace it by one that can."
    detail = (str(error).splitlines() or [""])[0]
    return f"model: {type(model).__name__} cannot be bounded by auto_LiRPA {library().version} ({type(error).__name__}: {detail})."


def _note(met: list[Any], name: str, layer: nn.Module, given: tuple[Any, ...], _: Any) -> None:
    if given and isinstance(given[0], Tensor) and given[0].is_floating_point():
        met.append((name or type(layer).__name__, layer, tuple(given[0].shape[1:])))


def _boundable(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    lib = library()
    before = nn.Linear(prod(shape), prod(shape), dtype=torch.float64)
    unfold = [nn.Unflatten(1, shape)] if len(shape) > 1 else []  # the library does not know one that changes nothing
    alone = nn.Sequential(nn.Flatten(), before, *unfold, layer, nn.Flatten()).double().eval()
    x = torch.zeros(1, prod(shape), dtype=torch.float64)
    try:
        with float64_default(), torch.no_grad():
            net = lib.BoundedModule(alone, x, bound_opts={"conv_mode": "matrix"}, device=x.device)
            given = lib.BoundedTensor(x, lib.PerturbationLpNorm(norm=torch.inf, x_L=x - 0.1, x_U=x + 0.1))
            net.compute_bounds(x=(given,), method="CROWN", bound_upper=False)
    except Exception:  # whatever it raises, the layer is not one it can bound
        return False
    return True


def _forget(net: Any) -> None:
    """Drop the matrices that the library keeps on its nodes between passes."""
    for node in net._modules.values():
        node.lA = node.uA = None


def _bytes_per_input(net: Any, dim: int) -> int:
    """A crude upper estimate of what bounding one input keeps at once: a few matrices of (neurons bounded) × (neurons or inputs that they depend on).

    Convolutions keep patches, and a matrix over the inputs only where the region is asked.
    """
    largest, wide = 0, dim
    for node in net._modules.values():
        shape = tuple(getattr(node, "output_shape", None) or ())
        if len(shape) < 2 or not getattr(node, "inputs", None):
            continue
        size = prod(int(v) for v in shape[1:])
        largest = max(largest, size * (dim if len(shape) == 4 else wide))
        wide = max(wide, size)
    return 8 * 6 * largest
