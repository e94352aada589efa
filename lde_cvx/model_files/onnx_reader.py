r"""ONNX classifiers as torch modules.

Nodes become layers one by one (`onnx_layers`); x·W followed by + b becomes one linear layer; a chain becomes a `Sequential`, any other graph a
module that keeps every value by name. The outputs are compared with another implementation (onnxruntime, else onnx's reference) before the module
is handed over, so a misread operator is an error and never a silently different network.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.model_files.onnx_layers import LAYERS, Arithmetic, Node, as_bias, tensor

MAX_BYTES = 2**31 - 1  # protobuf's own limit
AGREEMENT = 1e-4  # of the largest output: the other implementation computes in float32


@dataclass(frozen=True, eq=False)
class Step:
    """output = layer(*inputs), values by name."""

    layer: nn.Module
    inputs: tuple[str, ...]
    output: str


class Graph(nn.Module):
    """Steps in order; every value is kept until the end of the pass."""

    def __init__(self, steps: tuple[Step, ...], given: str, answer: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(s.layer for s in steps)
        self.wiring = tuple((s.inputs, s.output) for s in steps)
        self.given, self.answer = given, answer

    def forward(self, x: Tensor) -> Tensor:
        values = {self.given: x}
        for layer, (inputs, output) in zip(self.layers, self.wiring, strict=True):
            values[output] = layer(*(values[name] for name in inputs))
        return values[self.answer]


def load_onnx(path: str | Path, *, logits: bool = False) -> nn.Module:
    """The network (n, *shape) → (n, m) of an ONNX file in float64, evaluation mode, frozen; `logits` leaves out a softmax at the end.

    Raises InputError naming the first operator that is not known, and when the outputs differ from the other implementation's.
    """
    import onnx

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give an ONNX file.")
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"{file}: is larger than 2 GiB; networks of that size are not read.")
    try:
        stored = onnx.load(file, load_external_data=False)
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in stored.graph.initializer):
            raise InputError(
                f"{file}: keeps weights in another file; store it again with onnx.save(model, path, save_as_external_data=False)."
            )
        onnx.checker.check_model(stored)
    except InputError:
        raise
    except Exception as error:  # protobuf and the checker raise classes of their own, without a common base
        raise InputError(
            f"{file}: is no valid ONNX file ({(str(error).strip().splitlines() or [type(error).__name__])[0][:120]})."
        ) from None
    try:
        reading = _Reading(file, stored)
    except InputError:
        raise
    except ValueError as error:  # a tensor whose bytes do not fit its shape
        raise InputError(f"{file}: is no valid ONNX file ({str(error).splitlines()[0][:120]}).") from None
    steps = _join_biases(reading.steps, reading.answer)
    answer = reading.answer
    if logits and steps and isinstance(steps[-1].layer, nn.Softmax) and steps[-1].output == answer:
        softmax, steps = steps[-1], steps[:-1]
        answer = softmax.inputs[0]
        model = _assemble(steps, reading.given, answer)
        compared: nn.Module = nn.Sequential(model, softmax.layer)
    else:
        compared = model = _assemble(steps, reading.given, answer)
    _compare(file, stored, compared, reading.sizes, reading.fixed_batch)
    return model


class _Reading:
    """The graph of a file as steps, with constants folded in."""

    def __init__(self, file: Path, stored: Any) -> None:
        import onnx
        from onnx import numpy_helper

        graph = stored.graph
        self.constants = {t.name: tensor(numpy_helper.to_array(t)) for t in graph.initializer}
        inputs = [v for v in graph.input if v.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise InputError(f"{file}: has {len(inputs)} inputs and {len(graph.output)} outputs; one of each is read.")
        self.given, self.answer = inputs[0].name, graph.output[0].name
        shapes = _shapes(onnx.shape_inference.infer_shapes(stored).graph)
        sizes = shapes.get(self.given)
        if sizes is None or len(sizes) < 2 or any(s is None or s < 1 for s in sizes[1:]):
            raise InputError(f"{file}: its input has the shape {sizes}; every size after the batch must be stored.")
        if inputs[0].type.tensor_type.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            raise InputError(f"{file}: its input is not float32 or float64; convert it.")
        self.sizes: tuple[int, ...] = tuple(int(s) for s in sizes[1:] if s is not None)
        self.fixed_batch = sizes[0]
        opset = max((o.version for o in stored.opset_import if o.domain in ("", "ai.onnx")), default=1)
        steps: list[Step] = []
        secondary: set[str] = set()  # masks, indices and statistics that some operators give besides their value
        for number, node in enumerate(graph.node):
            where = f"{file}: node {node.name or number!r}"
            kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if kind == "Constant":
                self.constants[node.output[0]] = _constant(where, attributes)
                continue
            if kind not in LAYERS:
                raise InputError(f"{where}: operator {kind} is not known; known are {', '.join(sorted(LAYERS))}.")
            used = [name for name in node.input if name]
            secondary.update(node.output[1:])
            if secondary.intersection(used):
                raise InputError(f"{where}: operator {kind} uses the second output of another one; only first outputs are read.")
            first = shapes.get(used[0]) if used else None
            values = tuple(self.constants.get(name) for name in used)
            layer = LAYERS[kind](Node(where, kind, attributes, values, first, opset))
            if all(v is not None for v in values):
                if kind not in ("Identity", "Transpose"):  # what exporters do to stored weights
                    raise InputError(f"{where}: operator {kind} works on constants only; simplify the model (onnxsim) and store it again.")
                self.constants[node.output[0]] = layer(values[0])
                continue
            steps.append(Step(layer, tuple(n for n, v in zip(used, values, strict=True) if v is None), node.output[0]))
        self.steps = tuple(_live(steps, self.answer))
        if not self.steps:
            raise InputError(f"{file}: its output does not depend on its input.")


def _constant(where: str, attributes: dict[str, Any]) -> Tensor:
    from onnx import numpy_helper

    if len(attributes) == 1:
        ((name, value),) = attributes.items()
        if name == "value":
            return tensor(numpy_helper.to_array(value))
        if name in ("value_float", "value_floats", "value_int", "value_ints"):
            return tensor(np.array(value))
    raise InputError(f"{where}: operator Constant: {sorted(attributes)} is not a number or an array of numbers.")


def _shapes(graph: Any) -> dict[str, tuple[int | None, ...]]:
    """Inferred shapes; None for a size that is not a number. The batch may be dynamic or stored."""
    out: dict[str, tuple[int | None, ...]] = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            out[value.name] = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in dims)
    return out


def _live(steps: list[Step], answer: str) -> list[Step]:
    """Only what the answer needs."""
    needed, kept = {answer}, []
    for step in reversed(steps):
        if step.output in needed:
            needed.update(step.inputs)
            kept.append(step)
    return kept[::-1]


def _join_biases(steps: tuple[Step, ...], answer: str) -> tuple[Step, ...]:
    """x·W, whose only use is + b, becomes one linear layer."""
    uses = Counter(name for s in steps for name in s.inputs)
    uses[answer] += 1
    out: list[Step] = []
    for step in steps:
        before = next((k for k, s in enumerate(out) if step.inputs == (s.output,)), None)
        layer = step.layer
        if before is not None and uses[out[before].output] == 1 and isinstance(layer, Arithmetic) and layer.op == "Add":
            product = out[before].layer
            if isinstance(product, nn.Linear) and product.bias is None and layer.constant is not None:
                bias = as_bias(layer.constant, product.out_features)
                if bias is not None:
                    product.bias = nn.Parameter(bias.contiguous())
                    out[before] = Step(product, out[before].inputs, step.output)
                    continue
        out.append(step)
    return tuple(out)


def _assemble(steps: tuple[Step, ...], given: str, answer: str) -> nn.Module:
    """A chain as a `Sequential` (nested ones unrolled, identities left out), anything else as a `Graph`."""
    last, layers = given, []
    for step in steps:
        if step.inputs != (last,):
            return Graph(steps, given, answer).eval().requires_grad_(False)
        last = step.output
        layers += list(step.layer) if isinstance(step.layer, nn.Sequential) else [step.layer]
    kept = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    return nn.Sequential(*kept).eval().requires_grad_(False)


def _compare(file: Path, stored: Any, model: nn.Module, sizes: tuple[int, ...], fixed_batch: int | None) -> None:
    """Raises InputError unless both implementations agree on random inputs of two scales."""
    rng = np.random.default_rng(0)
    batch = fixed_batch or 3
    for x in (rng.uniform(size=(batch, *sizes)), rng.normal(size=(batch, *sizes))):
        single = x.astype(np.float32)
        try:
            ours = model(torch.from_numpy(single.astype(np.float64))).numpy()
            alone = torch.cat([model(torch.from_numpy(row[None].astype(np.float64))) for row in single]).numpy()
        except RuntimeError as error:
            raise InputError(f"{file}: the layers do not fit each other ({str(error).strip().splitlines()[0][:120]}).") from None
        try:
            theirs, who = _reference(stored, single)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # onnxruntime's errors are RuntimeErrors
            raise InputError(f"{file}: cannot be run for comparison ({str(error).strip().splitlines()[0][:120]}).") from None
        if ours.ndim != 2 or ours.shape != theirs.shape:
            raise InputError(f"{file}: gives outputs of shape {ours.shape}, {who} {theirs.shape}; (n, outputs) is expected.")
        apart = float(np.abs(ours - theirs).max())
        if not apart <= AGREEMENT * max(1.0, float(np.abs(theirs).max())):
            raise InputError(f"{file}: its outputs differ from {who}'s by {apart:.3g}; an operator was misread, please report the file.")
        if alone.shape != ours.shape or not np.allclose(alone, ours, rtol=1e-9, atol=1e-9):
            raise InputError(f"{file}: the output of one input depends on the others in its batch; such networks are not read.")


def _reference(stored: Any, x: Any) -> tuple[Array, str]:
    """Outputs of onnxruntime where it is installed, else of onnx's reference implementation."""
    import onnx

    stored_names = {t.name for t in stored.graph.initializer}
    given = next(v for v in stored.graph.input if v.name not in stored_names)
    fed = {given.name: x.astype(np.float64) if given.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE else x}
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        return np.asarray(ReferenceEvaluator(stored).run(None, fed)[0], dtype=float), "onnx.reference"
    session = onnxruntime.InferenceSession(stored.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, fed)[0], dtype=float), "onnxruntime"
