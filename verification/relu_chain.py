r"""A network as a chain of affine maps and ReLUs:  f(x) = A_L ∘ relu ∘ … ∘ relu ∘ A_1 (x),  A_l(v) = W_l v + β_l.

Branching and the mixed-integer program need the neurons themselves, not only bounds. The model is traced, split at its ReLUs, and every affine stretch
(linear, convolution, batch norm in evaluation mode, average pooling, flatten, reshape, shifts and scales by constants) becomes one dense matrix, found by
evaluating the stretch on the unit vectors. A model that is no such chain is refused by the name of the layer that breaks it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from formulations.errors import InputError

_AFFINE_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
_AFFINE_CALLS = {
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div, torch.flatten, torch.reshape,
    nn.functional.linear, nn.functional.conv2d, nn.functional.avg_pool2d, torch.squeeze, torch.unsqueeze,
}  # fmt: skip
_AFFINE_METHODS = {
    "view",
    "reshape",
    "flatten",
    "size",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "double",
    "float",
    "add",
    "sub",
    "mul",
    "div",
}
_BLOCK = 4096  # unit vectors pushed through a stretch at once


@dataclass(frozen=True, eq=False)
class ReluChain:
    """Weights W_l (n_l, n_{l−1}) and shifts β_l (n_l,), l = 1 … L, float64 on one device; a ReLU stands after every map but the last."""

    weights: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of neurons of the hidden layers."""
        return tuple(len(b) for b in self.shifts[:-1])

    def preactivations(self, x: Tensor) -> list[Tensor]:
        """Inputs of every ReLU, then the outputs: for x (n, d) a list of (n, n_l)."""
        out, v = [], x
        for W, shift in zip(self.weights, self.shifts, strict=True):
            out.append(v @ W.T + shift)
            v = out[-1].relu()
        return out

    def __call__(self, x: Tensor) -> Tensor:
        return self.preactivations(x.flatten(1))[-1]

    @staticmethod
    def from_model(model: nn.Module, input_shape: tuple[int, ...], *, device: torch.device | str | None = None) -> ReluChain:
        """The chain of a model in evaluation mode, in float64; the model itself is left as it is.

        Raises InputError that names the first layer that is neither affine nor a ReLU, and on models with more than one path.
        """
        import copy

        own = copy.deepcopy(model).double().eval()
        own = own.to(device) if device is not None else own
        try:
            traced = torch.fx.symbolic_trace(own)
        except Exception as reason:  # torch.fx raises many kinds; the message is what counts
            raise InputError(
                f"ReluChain: {type(model).__name__} cannot be traced ({str(reason).splitlines()[0]}); use method='crown'."
            ) from None
        where = next((p.device for p in own.parameters()), torch.device("cpu"))
        stretches = _stretches(traced)
        weights, shifts, shape = [], [], tuple(input_shape)
        for stretch in stretches:
            W, shift, shape = _matrix(stretch, shape, where)
            weights.append(W)
            shifts.append(shift)
        return ReluChain(tuple(weights), tuple(shifts))


def _stretches(traced: torch.fx.GraphModule) -> list[Callable[[Tensor], Tensor]]:
    """The functions between the ReLUs, in order."""
    modules: dict[str, Any] = dict(traced.named_modules())
    steps: list[list[torch.fx.Node]] = [[]]
    data: torch.fx.Node | None = None
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            if data is not None:
                raise InputError("ReluChain: the model takes more than one input; use method='crown'.")
            data = node
            continue
        if node.op in ("output", "get_attr"):
            continue
        sources = [n for n in node.all_input_nodes if n.op != "get_attr" and not _is_size(n)]
        if sources != [data] and not _is_size(node):
            raise InputError(
                f"ReluChain: layer {node.name!r} does not follow {data.name if data else 'the input'!r}: the model is no chain; use method='crown'."
            )
        if _is_relu(node, modules):
            steps.append([])
        elif _is_affine(node, modules):
            steps[-1].append(node)
        else:
            kind = type(modules[node.target]).__name__ if node.op == "call_module" else getattr(node.target, "__name__", str(node.target))
            raise InputError(f"ReluChain: layer {node.name!r} ({kind}) is neither affine nor a ReLU; use method='crown' or 'alpha-crown'.")
        if not _is_size(node):
            data = node
    return [_runner(traced, modules, nodes) for nodes in steps]


def _runner(traced: torch.fx.GraphModule, modules: dict[str, Any], nodes: list[torch.fx.Node]) -> Callable[[Tensor], Tensor]:
    def run(v: Tensor) -> Tensor:
        known: dict[torch.fx.Node, Any] = {}

        def value(n: torch.fx.Node) -> Any:
            if n in known:
                return known[n]
            return operator.attrgetter(str(n.target))(traced) if n.op == "get_attr" else v  # nothing else feeds a stretch but its own start

        for node in nodes:
            args = torch.fx.map_arg(node.args, value)
            kwargs = torch.fx.map_arg(node.kwargs, value)
            if node.op == "call_module":
                known[node] = modules[str(node.target)](*args, **kwargs)
            elif node.op == "call_method":
                known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target)
                known[node] = node.target(*args, **kwargs)
            if not _is_size(node):
                last = known[node]
        return last if nodes and any(not _is_size(n) for n in nodes) else v

    return run


def _matrix(stretch: Callable[[Tensor], Tensor], shape: tuple[int, ...], where: torch.device) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """(W, β, output shape) of an affine function, from its values on 0 and the unit vectors."""
    size = prod(shape)
    with torch.no_grad():
        origin = stretch(torch.zeros(1, *shape, dtype=torch.float64, device=where))
        columns = []
        for start in range(0, size, _BLOCK):
            units = torch.zeros(min(_BLOCK, size - start), size, dtype=torch.float64, device=where)
            units[torch.arange(len(units)), start + torch.arange(len(units))] = 1.0
            columns.append(stretch(units.view(-1, *shape)).flatten(1) - origin.flatten(1))
    return torch.cat(columns).T.contiguous(), origin.flatten(), tuple(origin.shape[1:])


def _is_size(node: torch.fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size"


def _is_relu(node: torch.fx.Node, modules: dict[str, Any]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.target in (torch.relu, nn.functional.relu) or (node.op == "call_method" and node.target == "relu")


def _is_affine(node: torch.fx.Node, modules: dict[str, Any]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _AFFINE_MODULES)
    if node.op == "call_method":
        return node.target in _AFFINE_METHODS
    return node.target in _AFFINE_CALLS
