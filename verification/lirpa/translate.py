"""From a torch module to auto_LiRPA's: translation, a trial run, and errors that name the layer which cannot be bounded."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from formulations.errors import InputError
from verification.lirpa.compat import library
from verification.lirpa.symbols import symbols, written_out

OPTIONS = {
    "sparse_features_alpha": False, "sparse_spec_alpha": False,  # 0.3 crashes on sparse α when bounds change between passes
    "optimize_bound_args": {"iteration": 20, "lr_alpha": 0.2, "early_stop_patience": 10},
}  # fmt: skip
# Operators on the way from the input whose bounds tests/test_lirpa.py and tests/test_bound_layers.py attack. Others are refused: 0.3's Sin, for one, is off by 1e-10.
TESTED = {
    "Abs", "Add", "AveragePool", "BatchNormalization", "Concat", "Conv", "Curve", "Div", "Exp", "Flatten", "Gather", "GlobalAveragePool", "Identity", "Input",
    "LeakyRelu", "Linear", "Log", "MatMul", "MaxPool", "Mul", "Neg", "Normal", "Pad", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Root", "Shape", "Sigmoid",
    "Slice", "Softmax", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
}  # fmt: skip


@functools.cache
def _operators() -> dict[str, Any]:
    from verification.lirpa.nodes import OPERATORS  # this imports the library, which may be missing

    return OPERATORS


@contextlib.contextmanager
def float64_default() -> Iterator[None]:
    """torch's default dtype is float64 inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def convert(model: nn.Module, probe: Tensor, conv_modes: Sequence[str] = ("patches", "matrix")) -> Any:
    """auto_LiRPA's module, tried out on one input. Convolutions are bounded as patches, which keeps memory small; what breaks those (0.3 trips over sums
    of vectors, and its patches of grouped convolutions are false where no ℓ∞ box asks) is bounded as matrices. Raises InputError that names the layer
    that neither can do."""
    failure: Exception = NotImplementedError("no layers")
    modes = conv_modes if any(isinstance(m, nn.Conv2d) for m in model.modules()) else ("matrix",)
    with _overheard() as said:
        for mode in modes:
            try:
                with float64_default(), symbols():
                    options = {**OPTIONS, "conv_mode": mode}
                    net = _bounded_module()(written_out(model), probe, bound_opts=options, device=probe.device, custom_ops=_operators())
                    with torch.no_grad():
                        for width in (1e-3, 1.0):  # few neurons unstable, then most of them: the library takes different paths
                            box = library().PerturbationLpNorm(norm=torch.inf, x_L=probe - width, x_U=probe + width)
                            net.compute_bounds(x=(library().BoundedTensor(probe, box),), method="CROWN", bound_upper=False)
                forget(net)
                _refuse_untested(net)
                if mode == "patches" and any(getattr(node, "groups", 1) != 1 for node in net._modules.values()):
                    raise NotImplementedError("patches of grouped convolutions")
                return net
            except Exception as error:  # the library raises whatever its translation trips over
                failure = error
    raise InputError(blame(model, tuple(probe.shape[1:]), failure, said)) from failure


def _refuse_untested(net: Any) -> None:
    """Raises NotImplementedError on the first operator between input and output whose bounds are not `TESTED`, or not in the form it has there."""
    for node in net._modules.values():
        kind = type(node).__name__.removeprefix("Bound")
        if not node.perturbed:
            continue
        wrong = kind not in TESTED or (kind == "Pad" and float(node.value) != 0)  # 0.3 forgets what it pads with
        if kind == "Gather" and node.inputs[0].perturbed:  # and of an index that comes twice it keeps one
            index = torch.as_tensor(node.indices).flatten()
            wrong |= len(set(index.tolist())) < len(index) or bool((index < 0).any())
        if wrong:
            raise NotImplementedError(f"the bounds of operator {kind} are not trusted")


@functools.cache
def _bounded_module() -> Any:
    class Bounded(library().BoundedModule):  # type: ignore[misc]
        repaired = True  # the first linear layer asks the region, instead of taking its box hull

        def check_IBP_first_linear(self, node: Any) -> bool:
            return False if self.repaired else bool(super().check_IBP_first_linear(node))

        def compute_intermediate_bounds(self, node: Any, prior_checked: bool = False) -> None:
            """The tighter of linear bounds and of the interval that the inputs' bounds give, neuron by neuron, where a softmax, say, never leaves [0, 1]."""
            if getattr(node, "lower", None) is not None:
                return
            super().compute_intermediate_bounds(node, prior_checked)
            linear = len(node.inputs) > 1 and not all(v.perturbed for v in node.inputs)  # linear bounds alone, as everywhere
            if (
                node.perturbed
                and getattr(node, "own_interval", False)
                and not linear
                and all(getattr(v, "lower", None) is not None for v in node.inputs)
            ):
                low, high = node.interval_propagate(*((v.lower, v.upper) for v in node.inputs))
                node.lower, node.upper = torch.maximum(node.lower, low), torch.minimum(node.upper, high)
                node.interval = node.lower, node.upper

    return Bounded


@contextlib.contextmanager
def _overheard() -> Iterator[list[str]]:
    """The operators that the library complains of while it translates."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            node = record.args[0] if isinstance(record.args, tuple) and record.args else record.args
            op = getattr(node, "op", None)
            if op is not None:
                said.append(str(op))

    log, ear = logging.getLogger("auto_LiRPA.utils"), Ear()
    level, passed_on = log.level, log.propagate
    log.addHandler(ear)
    log.setLevel(logging.ERROR)
    log.propagate = False  # its own handler writes to standard output
    try:
        yield said
    finally:
        log.removeHandler(ear)
        log.setLevel(level)
        log.propagate = passed_on


def blame(model: nn.Module, shape: tuple[int, ...], error: Exception, said: Sequence[str] = ()) -> str:
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
    detail = f"operator {said[0]}" if said else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return f"model: {type(model).__name__} cannot be bounded by auto_LiRPA {library().version} ({detail}); rewrite that step with other operators."


def _note(met: list[Any], name: str, layer: nn.Module, given: tuple[Any, ...], _: Any) -> None:
    if given and isinstance(given[0], Tensor) and given[0].is_floating_point():
        met.append((name or type(layer).__name__, layer, tuple(given[0].shape[1:])))


class _Shaped(nn.Module):
    """(n, …) → (n, *shape); torch's Unflatten is not exported."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)


def _boundable(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    lib = library()
    before = nn.Linear(prod(shape), prod(shape), dtype=torch.float64)
    unfold = [_Shaped(shape)] if len(shape) > 1 else []
    alone = nn.Sequential(nn.Flatten(), before, *unfold, layer, nn.Flatten()).double().eval()
    x = torch.zeros(1, prod(shape), dtype=torch.float64)
    try:
        with float64_default(), torch.no_grad(), _overheard(), symbols():
            net = lib.BoundedModule(alone, x, bound_opts={"conv_mode": "matrix"}, device=x.device, custom_ops=_operators())
            given = lib.BoundedTensor(x, lib.PerturbationLpNorm(norm=torch.inf, x_L=x - 0.1, x_U=x + 0.1))
            net.compute_bounds(x=(given,), method="CROWN", bound_upper=False)
            _refuse_untested(net)
    except Exception:  # whatever it raises, the layer is not one it can bound
        return False
    return True


def forget(net: Any) -> None:
    """Drop the matrices that the library keeps on its nodes between passes."""
    for node in net._modules.values():
        node.lA = node.uA = None
