r"""How far a float32 evaluation may be from the real-valued network: a running error bound, layer by layer (Higham 2002, section 3).

    affine    |fl(Wx + b) − (Wx̂ + b)| ≤ |W| e + γ (|W|(|x| + e) + |b|),  γ = n u/(1 − n u),  u = 2^-24
    ReLU, max pooling (1-Lipschitz, exact): e;      tanh, sigmoid (1-Lipschitz): e + 8u

So a float64 margin above the bound of q·f stands in float32 as well.
"""

from __future__ import annotations

import numpy as np

from formulations.norms import Array
from verification.rechecking.activations import Rectifier
from verification.rechecking.affine import Add, Affine
from verification.rechecking.graph import Network
from verification.rechecking.pooling import MaxPool
from verification.rechecking.rounding import U

U32 = 2.0**-24
ROOM = 1.01  # float64 rounding of the bound itself, and the second order of γ


def float32_error(network: Network, x: Array) -> Array:
    """Bounds (n, outputs) of |f32(x) − f(x)| for inputs x (n, *shape) that are rounded to float32 first; weights may be rounded as well."""
    n = len(x)
    values, errors = list[Array](), list[Array]()
    start = (x, U32 * np.abs(x) + 2.0**-149)
    for node in network.nodes:
        (v, e), *rest = [start if i < 0 else (values[i], errors[i]) for i in node.sources]
        layer = node.layer
        if isinstance(layer, Add):
            v, e = v + rest[0][0], e + rest[0][1] + U32 * (np.abs(v + rest[0][0]) + e + rest[0][1])
        elif isinstance(layer, Affine):
            shift = 0.0 if layer.shift is None else np.abs(layer.shift)
            shift = shift if layer.tau is None else shift + layer.tau / (16 * U)  # what cancels in a batch norm's shift
            size = np.abs(v) + e
            terms = layer.terms + 4  # and one rounding of the weight, and what batch norm does first
            out = layer.apply(v) + (0 if layer.shift is None else layer.shift)
            if layer.terms:
                e = layer.apply(e, absolute=True) + terms * U32 * (layer.apply(size, absolute=True) + shift)
                e = e + 8 * U32 * layer.apply(size, absolute=True) * (layer.theta > 0)
            else:
                e = layer.apply(e)
            v = out
        elif isinstance(layer, MaxPool):
            gather = np.where(layer.index >= 0, v.reshape(n, -1)[:, layer.index], -np.inf)
            spread = np.where(layer.index >= 0, e.reshape(n, -1)[:, layer.index], 0.0)
            v, e = gather.max(2).reshape(n, *layer.shape), spread.max(2).reshape(n, *layer.shape)
        elif isinstance(layer, Rectifier):
            v, e = np.where(v >= 0, v, layer.negative * v), e + (U32 * np.abs(v) if layer.negative else 0)
        else:
            bent = np.tanh(v) if type(layer).__name__ == "Tanh" else 1 / (1 + np.exp(-v))
            v, e = bent, e + 8 * U32
        values.append(v)
        errors.append(e * ROOM)
    return errors[-1]
