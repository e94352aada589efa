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
from verification._lirpa_compat import library

OPTIONS = {
    "sparse_features_alpha": False, "sparse_spec_alpha": False,  # 0.3 crashes on sparse α when bounds change between passes
    "optimize_bound_args": {"iteration": 20, "lr_alpha": 0.2, "early_stop_patience": 10},
}  # fmt: skip
# Operators on the way from the input whose bounds tests/test_lirpa.py attacks; Div by constants only. Others are refused: 0.3's CROWN bound of Sqrt, for one,
# has the derivative of 1/√x in it and is wrong, and its Sin is off by 1e-10.
TESTED = {
    "Abs", "Add", "AveragePool", "BatchNormalization", "Concat", "Conv", "Div", "Exp", "Flatten", "GlobalAveragePool", "Identity", "Input", "LeakyRelu",
    "Linear", "Log", "MatMul", "MaxPool", "Mul", "Neg", "Pad", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Squeeze", "Sub", "Tanh",
    "Transpose", "Unsqueeze",
}  # fmt: skip


@contextlib.contextmanager
def float64_default() -> Iterator[None]:
    """torch's default dtype is float64 inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def convert(model: nn.Module, probe: Tensor) -> Any:
    """auto_LiRPA's module, tried out on one input. Convolutions are bounded as patches, which keeps memory small; what breaks those (0.3 trips over sums
    of vectors and grouped convolutions) is bounded as matrices. Raises InputError that names the layer that neither can do."""
    failure: Exception = NotImplementedError("no layers")
    modes = ("patches", "matrix") if any(isinstance(m, nn.Conv2d) for m in model.modules()) else ("matrix",)
    with _overheard() as said:
        for mode in modes:
            try:
                with float64_default():
                    net = _bounded_module()(model, probe, bound_opts={**OPTIONS, "conv_mode": mode}, device=probe.device)
                    with torch.no_grad():
                        for width in (1e-3, 1.0):  # few neurons unstable, then most of them: the library takes different paths
                            box = library().PerturbationLpNorm(norm=torch.inf, x_L=probe - width, x_U=probe + width)
                            net.compute_bounds(x=(library().BoundedTensor(probe, box),), method="CROWN", bound_upper=False)
                forget(net)
                _refuse_untested(net)
                return net
            except Exception as error:  # the library raises whatever its translation trips over
                failure = error
    raise InputError(blame(model, tuple(probe.shape[1:]), failure, said)) from failure


def _refuse_untested(net: Any) -> None:
    """Raises NotImplementedError on the first operator between input and output that is not `TESTED`."""
    for node in net._modules.values():
        kind = type(node).__name__.removeprefix("Bound")
        if node.perturbed and (kind not in TESTED or (kind == "Div" and node.inputs[1].perturbed)):
            raise NotImplementedError(f"the bounds of operator {kind} are not trusted")


@functools.cache
def _bounded_module() -> Any:
    class Bounded(library().BoundedModule):  # type: ignore[misc]
        repaired = True  # the first linear layer asks the region, instead of taking its box hull

        def check_IBP_first_linear(self, node: Any) -> bool:
            return False if self.repaired else bool(super().check_IBP_first_linear(node))

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


def _boundable(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    lib = library()
    before = nn.Linear(prod(shape), prod(shape), dtype=torch.float64)
    unfold = [nn.Unflatten(1, shape)] if len(shape) > 1 else []  # the library does not know one that changes nothing
    alone = nn.Sequential(nn.Flatten(), before, *unfold, layer, nn.Flatten()).double().eval()
    x = torch.zeros(1, prod(shape), dtype=torch.float64)
    try:
        with float64_default(), torch.no_grad(), _overheard():
            net = lib.BoundedModule(alone, x, bound_opts={"conv_mode": "matrix"}, device=x.device)
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
