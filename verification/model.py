r"""Networks as the verification sees them: float64, evaluation mode, a copy of the caller's, with flat inputs checked.

margins m = f(x0 + δ) Qᵀ + s,        Q (n, K, m), s (n, K)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from verification.decision import Decision

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def float64_copy(model: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """A deep copy in float64 and evaluation mode, without dropout and gradients; weights of any float type are widened exactly.

    Raises InputError on something that is no module, cannot be copied, or holds a weight that is not finite.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}.")
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # modules may hold anything
        raise InputError(f"model: {type(model).__name__} cannot be copied ({error}); detach what it holds.") from error
    try:
        twin = twin.double().eval().requires_grad_(False)
    except (RuntimeError, NotImplementedError, TypeError) as error:  # torch.jit's modules, weights without storage
        raise InputError(
            f"model: {type(model).__name__} cannot be run in float64 ({str(error).splitlines()[0]:.80}); give the plain module with its weights."
        ) from error
    for child in list(twin.modules()):
        for key, inner in list(child.named_children()):
            if isinstance(inner, _DROPOUT):
                setattr(child, key, nn.Identity())
    for name, layer in twin.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise InputError(
                f"model: layer '{name}' (batch norm without statistics) answers an input differently in other company; give it statistics."
            )
    for name, weight in twin.state_dict().items():
        if weight.is_meta:
            raise InputError(f"model: {name} has no storage (device 'meta'); load the weights first.")
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise InputError(f"model: {name} holds a value that is not finite; train it again or repair the file.")
    where = device if device is not None else next((p.device for p in twin.parameters()), torch.device("cpu"))
    try:
        if torch.device(where).type == "meta":
            raise RuntimeError("it holds no numbers")
        return twin.to(where)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InputError(
            f"device={str(device)!r} cannot be used ({str(error).splitlines()[0]:.100}); leave it out for the model's own."
        ) from error


def numbers(name: str, given: ArrayLike | Tensor, device: torch.device | str | None = None) -> Tensor:
    """`given` as a dense float64 tensor of its own, without gradient. Raises InputError on what holds no real numbers."""
    try:
        if isinstance(given, Tensor):
            held = given.detach()
            held = (held if held.layout == torch.strided else held.to_dense()).to(device="cpu" if device is None else device)
            if held.is_complex():
                raise TypeError("complex numbers")
            return held.to(torch.float64, copy=True)
        array = np.asarray(given)
        if given is None or array.dtype.kind in "cSUmM":
            raise TypeError(f"no real numbers: {array.dtype}")
        return torch.as_tensor(np.array(array, dtype=np.float64), device=device)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise InputError(
            f"{name}: {type(given).__name__} holds something that is not a number; give a numeric array or tensor, of real numbers."
        ) from None


def check_alone(model: nn.Module, x: Tensor) -> None:
    """Raises InputError unless f(x_i) is a matter of x_i alone: the first input's answer must not move with its company, nor from call to call.

    Bounds, witnesses and certificates are about a function of one input. Both calls have the same shape, so that rounding is the same in both.
    """
    first = x[:1]
    seen: list[dict[str, Tensor]] = []
    try:
        with torch.no_grad():
            y, again = (_watched(model, torch.cat([first, company]), seen)[0] for company in (first, first + 1))
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError):
        return  # what the model does not take, or does not answer with, is told elsewhere
    if not _same(y, again):
        where = next((name for name, v in seen[0].items() if name in seen[1] and not _same(v, seen[1][name])), type(model).__name__)
        raise InputError(
            f"model: {where} answers an input differently in other company or at the next call (by {float((y - again).abs().max()):.3g}); "
            "remove what looks at the batch or draws random numbers."
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(a.nan_to_num().abs().max()) if a.numel() else 0.0, equal_nan=True)


def _watched(model: nn.Module, x: Tensor, seen: list[dict[str, Tensor]]) -> Tensor:
    """f(x); what each innermost layer answered for the first input is added to `seen`, in the order of evaluation."""
    answers: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, _: Any, y: Any) -> None:
            if isinstance(y, Tensor) and y.ndim and len(y) == len(x):
                answers[f"layer '{name}' ({layer})"] = y[0]

        return hook

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in model.named_modules() if not list(layer.children())]
    try:
        y: Tensor = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    seen.append(answers)
    return y


def batch_of(x0: ArrayLike | Tensor, shape: tuple[int, ...] | None, device: torch.device | str | None = None) -> Tensor:
    """Inputs as (n, *shape) float64. Without a shape the first axis is the batch, and a vector is one input.

    Raises InputError on a shape that does not fit, and on the first NaN or infinity.
    """
    x = numbers("x0", x0, device)
    if x.ndim == 0:
        raise InputError(f"x0: is one number ({float(x):g}); give inputs as (n, features).")
    if shape is None:
        x = x[None] if x.ndim == 1 else x
    elif tuple(x.shape) == shape or (x.ndim == 1 and x.numel() == prod(shape)):
        x = x.reshape(1, *shape)
    elif x.ndim >= 1 and (tuple(x.shape[1:]) == shape or (x.ndim == 2 and x.shape[1] == prod(shape))):
        x = x.reshape(len(x), *shape)
    else:
        raise InputError(f"x0: shape {tuple(x.shape)} does not fit inputs of shape {shape}; give (n, {', '.join(map(str, shape))}).")
    if len(x) == 0:
        raise InputError("x0: the batch is empty; give at least one input.")
    bad = torch.nonzero(~torch.isfinite(x.flatten(1)))
    if len(bad):
        i, j = (int(v) for v in bad[0])
        raise InputError(f"x0: input {i} has {float(x.flatten(1)[i, j])} at coordinate {j}; replace it.")
    return x


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """f(x) (n, m), checked. Raises InputError when the model rejects the shape, or does not answer with (n, m)."""
    try:
        with torch.no_grad():
            y = model(x)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"x0: the model does not take inputs of shape {tuple(x.shape)} ({str(error).splitlines()[0]}).") from error
    if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != len(x):
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"model: answers {got} for {len(x)} inputs; it must answer (n, outputs).")
    if y.dtype != x.dtype:
        raise InputError(
            f"model: answers {str(y.dtype)[6:]} for {str(x.dtype)[6:]} inputs; take out the cast, a float64 copy of it is run."
        )
    return y


def check_decisions(chosen: Sequence[Decision], n: int) -> None:
    """Raises InputError unless these are n decisions."""
    for other in (c for c in chosen if not isinstance(c, Decision)):
        raise InputError(f"decisions: {other!s:.60} is no Decision; give one, or one per input, such as Decision.threshold(0, 0.5, 1).")
    if len(chosen) != n:
        raise InputError(f"decisions: {len(chosen)} decisions for {n} inputs; give one each, or one for all.")


def decide(y: Tensor, decisions: Decision | Sequence[Decision] | None) -> list[Decision]:
    """One decision per row of outputs y (n, m): the given ones, or classification by the largest output.

    Raises InputError on the wrong number of decisions or outputs, a single output without a decision, and a decision that does not stand at x0.
    """
    n, m = y.shape
    if decisions is None:
        if m == 1:
            raise InputError("decisions: the model has one output, so there is no class to keep; pass Decision.threshold or Decision.band.")
        chosen = [Decision.classification(int(c), m) for c in y.argmax(1)]
    else:
        chosen = [decisions] * n if isinstance(decisions, Decision) else list(decisions)
    check_decisions(chosen, n)
    answers = y.detach().cpu().numpy()
    for i, decision in enumerate(chosen):
        if decision.rows.shape[1] != m:
            raise InputError(f"decisions: decision {i} is about {decision.rows.shape[1]} outputs, the model has {m}.")
        margins = decision.margins(answers[i : i + 1])[0]
        if not np.isfinite(margins).all():
            raise InputError(f"model: input {i} gives outputs that are not finite.")
        if margins.min() <= 0:
            k = int(margins.argmin())
            raise InputError(f"decisions: at input {i} '{decision.label}' does not stand (margin {margins[k]:g} to {decision.rivals[k]}); "
                             "explain the decision that the model makes there.")  # fmt: skip
    return chosen


def stack(decisions: Sequence[Decision], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Q (n, K, m), s (n, K), real (n, K)); decisions of fewer rows are filled up with the constant margin 1, marked False."""
    K, m = max(len(d.shifts) for d in decisions), decisions[0].rows.shape[1]
    Q, s, real = np.zeros((len(decisions), K, m)), np.ones((len(decisions), K)), np.zeros((len(decisions), K), dtype=bool)
    for i, d in enumerate(decisions):
        k = len(d.shifts)
        Q[i, :k], s[i, :k], real[i, :k] = d.rows, d.shifts, True
    to = like.device
    return torch.tensor(Q, device=to), torch.tensor(s, device=to), torch.tensor(real, device=to)


def margins(model: nn.Module, x: Tensor, Q: Tensor, s: Tensor) -> Tensor:
    """m_k (n, K) at inputs x (n, *shape)."""
    return torch.einsum("nkm,nm->nk", Q, model(x)) + s


def linearise(model: nn.Module, x: Tensor, Q: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(a (n, K, d), b (n, K)): gradients and values of the margins at x, the rows of the linearised program (not certified).

    Raises InputError on a model that gives no gradient at its input: zeros in its place would read as a decision that nothing can change.
    """
    point = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        value = margins(model, point, Q, s)
        if not value.requires_grad:
            raise InputError("model: gives no gradient at its input; it must not detach, round or threshold it.")
        rows = [torch.autograd.grad(value[:, k].sum(), point, retain_graph=True, allow_unused=True)[0] for k in range(value.shape[1])]
    flat = [torch.zeros_like(x) if g is None else g for g in rows]
    return torch.stack([g.flatten(1) for g in flat], 1), value.detach()
