"""The layers of a model file in a certificate's words, line by line "name: Kind(arguments)", as `repr` of the model's parts has them. It needs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verification.rechecking.graph import LayerError

__all__ = ["describe", "same_words"]


def describe(record: Mapping[str, Any], name: str) -> list[str]:
    kind = record["kind"]
    if kind == "Sequential":
        own = [f"{name or 'model'}: Sequential()"]
        return own + [line for i, layer in enumerate(record["layers"]) for line in describe(layer, f"{name}.{i}".lstrip("."))]
    if kind == "Residual":
        raise LayerError("a Residual has no words")
    head = "Identity" if "Dropout" in kind else kind
    return [f"{name or 'model'}: {head}({_words(kind, record)})"]


def _words(kind: str, r: Mapping[str, Any]) -> str:
    """The arguments as `repr` of the layer shows them, as far as they change the function; "inplace" is dropped."""
    if kind == "Linear":
        return f"in_features={r['in_features']}, out_features={r['out_features']}, bias={r['bias']}"
    if kind in ("Conv1d", "Conv2d"):
        k, p, d = _tuple(r["kernel_size"]), _tuple(r["padding"]), _tuple(r["dilation"])
        out = f"{r['in_channels']}, {r['out_channels']}, kernel_size={k}, stride={_tuple(r['stride'])}"
        out += f", padding={p}" if p != (0,) * len(k) else ""
        out += f", dilation={d}" if d != (1,) * len(k) else ""
        out += f", groups={r['groups']}" if r["groups"] != 1 else ""
        out += "" if r["bias"] else ", bias=False"
        return out + (f", padding_mode={r['padding_mode']}" if r["padding_mode"] != "zeros" else "")
    if kind.startswith("BatchNorm"):
        return (
            f"{r['num_features']}, eps={r['eps']}, momentum={r['momentum']}, affine={r['affine']}, "
            f"track_running_stats={r['track_running_stats']}"
        )
    if kind.startswith("MaxPool"):
        return ", ".join(f"{k}={_tuple(r[k])}" for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))
    if kind.startswith("AvgPool"):
        return ", ".join(f"{k}={_tuple(r[k])}" for k in ("kernel_size", "stride", "padding"))
    if kind.startswith("Adaptive"):
        return f"output_size={_tuple(r['output_size'])}"
    if kind == "ZeroPad2d":
        return str(_tuple(r["padding"]))
    if kind == "Flatten":
        return f"start_dim={r['start_dim']}, end_dim={r['end_dim']}"
    if kind == "Normalize":
        return f"shape={_tuple(r['shape'])}"
    return f"negative_slope={r['negative_slope']}" if kind == "LeakyReLU" else ""


def _tuple(v: Any) -> Any:
    return tuple(v) if isinstance(v, list) else v


def same_words(told: str, found: list[str]) -> bool:
    """Do two descriptions name the same layers? Words that change nothing (inplace, a batch norm's bias flag) may be there or not."""
    return [re.sub(r"(, )?inplace=True", "", line).replace("bias=True, track", "track") for line in told.split("\n")] == found
