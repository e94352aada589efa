r"""Models in files, without pickle.

A `.safetensors` file holds the tensors, and in its metadata, as JSON, the layers they belong to:

    {"format": "lde-layers-1", "model": {"kind": "Sequential", "layers": [{"kind": "Linear", "in_features": 61, …}, {"kind": "ReLU"}, …]}}

Reading builds the layers without storage, compares every shape with the file, and only then takes the tensors: a file cannot make it allocate more
than itself.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.whole_file import whole_file
from lde_cvx.normalize import Normalize
from verification.checking.text import FormatError, decode
from verification.rechecking.network import LayerError, ModelFile, Network

FORMAT = "lde-layers-1"
MAX_SPEC_DEPTH = 256  # lists and objects in one another: a hundred nested containers
MAX_SPEC = 1_000_000  # characters of the JSON description: thousands of layers
MAX_DEPTH = 20  # Sequential inside Sequential

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

# layer → constructor arguments that are attributes of the same name; `bias` is stored as whether there is one
LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Conv1d: (*_CONV, "bias"),
    nn.Conv2d: (*_CONV, "bias"),
    nn.BatchNorm1d: _NORM,
    nn.BatchNorm2d: _NORM,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.MaxPool1d: _MAX,
    nn.MaxPool2d: _MAX,
    nn.AvgPool1d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool1d: ("output_size",),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.ZeroPad2d: ("padding",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Dropout: ("p",),
    nn.Identity: (),
    nn.ReLU: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.SiLU: (),
    nn.GELU: ("approximate",),
    nn.ELU: ("alpha",),
    nn.Softplus: ("beta", "threshold"),
    nn.Softmax: ("dim",),
    Normalize: ("shape",),
}
_BY_NAME: dict[str, Callable[..., nn.Module]] = {kind.__name__: kind for kind in LAYERS}


def save_model(model: nn.Module, path: str | Path, *, about: Mapping[str, str] | None = None) -> None:
    """Writes a `Sequential` of known layers (nested ones too) as one safetensors file, atomically; `about` is kept as text beside it.

    Raises InputError that names the first layer the format does not know.
    """
    from safetensors.torch import save

    spec = json.dumps({"format": FORMAT, "model": describe(model)})
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    payload = save(tensors, {**{str(k): str(v) for k, v in (about or {}).items()}, "architecture": spec})
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"{target}: the folder {target.parent} does not exist; create it first.")
    with whole_file(target) as draft:
        draft.write_bytes(payload)


def load_model(path: str | Path) -> nn.Module:
    """The network of a `.safetensors` file written by `save_model`, or of an `.onnx` file; evaluation mode, parameters frozen.

    Raises InputError on a missing, damaged or foreign file.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a .safetensors file of save_model, or an .onnx file.")
    if file.suffix == ".onnx":
        from lde_cvx.model_files.onnx_reader import load_onnx

        return load_onnx(file)
    if file.suffix in (".pt", ".pth", ".ckpt"):
        raise InputError(
            f"{file}: holds weights without their layers; build the module, load_state_dict(load_torch_state(path)), then save_model."
        )
    if file.suffix != ".safetensors":
        raise InputError(f"{file}: suffix {file.suffix!r} is not known; give a .safetensors file of save_model, or an .onnx file.")
    return _load_safetensors(file)


def _load_safetensors(file: Path) -> nn.Module:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            spec = (stored.metadata() or {}).get("architecture")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is not a readable safetensors file ({_first_line(error)}).") from None
    if spec is None:
        raise InputError(f"{file}: has no architecture in its metadata; write it with lde_cvx.models.save_model.")
    try:
        record = decode(spec.encode(), MAX_SPEC_DEPTH) if len(spec) <= MAX_SPEC else {}
    except FormatError:
        record = {}
    if record.get("format") != FORMAT:
        raise InputError(f"{file}: its architecture is not in the format {FORMAT!r}; write it again with this version.")
    try:
        with torch.device("meta"):
            model = build(record.get("model"))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{file}: tensor {name!r} has shape {found.get(name)}, its layer says {expected.get(name)}; the file is damaged."
            )
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def describe(model: nn.Module, depth: int = 0) -> dict[str, Any]:
    """The layers of a model as plain values; raises InputError that names a layer the format does not know."""
    if type(model) is nn.Sequential and depth < MAX_DEPTH:
        return {"kind": "Sequential", "layers": [describe(layer, depth + 1) for layer in model]}
    if type(model) not in LAYERS:
        known = ", ".join(sorted(_BY_NAME))
        raise InputError(
            f"save_model: layer {type(model).__name__} is not known (a Sequential of {known}); export the model to ONNX instead."
        )
    arguments: dict[str, Any] = {}
    for name in LAYERS[type(model)]:
        value = getattr(model, name)
        arguments[name] = (value is not None) if name == "bias" else (list(value) if isinstance(value, tuple) else value)
    return {"kind": type(model).__name__, **arguments}


def checker_network(model: nn.Module, shape: tuple[int, ...]) -> Network | None:
    """The model for inputs of this shape as level B of the checker would read it from its file; None where it has none, or has a layer that is not covered."""
    try:
        tensors = {
            name: v.detach().cpu().double().numpy() if v.is_floating_point() else v.detach().cpu().numpy()
            for name, v in model.state_dict().items()
        }
        return ModelFile(describe(model), tensors).network(shape)
    except (InputError, LayerError):
        return None


def build(record: Any, depth: int = 0) -> nn.Module:
    """The layers that `describe` recorded, with fresh weights; raises InputError on anything else."""
    if not isinstance(record, dict) or depth > MAX_DEPTH:
        raise InputError(f"layer {str(record)[:60]!r} is no table of the format {FORMAT!r}.")
    arguments = {k: v for k, v in record.items() if k != "kind"}
    kind = str(record.get("kind"))
    if kind == "Sequential" and set(arguments) == {"layers"} and isinstance(arguments["layers"], list):
        return nn.Sequential(*(build(layer, depth + 1) for layer in arguments["layers"]))
    if kind not in _BY_NAME:
        raise InputError(f"layer {kind!r:.60} is not known to the format {FORMAT!r}.")
    constructor = _BY_NAME[kind]
    if set(arguments) != set(LAYERS[constructor]):  # type: ignore[index]
        raise InputError(f"layer {kind!r} needs the arguments {sorted(LAYERS[constructor])}, got {sorted(arguments)}.")  # type: ignore[index]
    try:
        return constructor(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"layer {kind!r} cannot be built from {str(arguments)[:80]} ({_first_line(error)}).") from None


def load_torch_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict saved by torch (also under the key "state_dict"), on the CPU. Nothing but tensors is ever unpickled.

    Raises InputError on a missing or damaged file and on one that holds other objects.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a state dict saved with torch.save.")
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, IndexError, TypeError) as error:
        raise InputError(f"{file}: is no file of plain tensors ({_first_line(error)}); save model.state_dict() with torch.save.") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{file}: holds no state dict of tensors; save model.state_dict() with torch.save.")
    return {str(name): value for name, value in state.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
