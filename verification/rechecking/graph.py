"""A network as a list of values, each a layer of earlier ones. It needs numpy and python-flint only."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from verification.rechecking.activations import Activation, Rectifier
from verification.rechecking.affine import Add, Affine, Conv, Dense, Reshape, Scale
from verification.rechecking.pooling import MaxPool
from verification.rechecking.rounding import Shape

__all__ = ["Layer", "LayerError", "Network", "Node"]

Layer = Affine | Add | Activation | MaxPool


class LayerError(ValueError):
    """A layer that level B does not cover, or whose arguments do not fit; the message names it."""


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the network: a layer applied to earlier values (−1: the input)."""

    name: str
    layer: Layer
    sources: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """Values in the order of evaluation; the last one is the output."""

    shape_in: Shape
    nodes: tuple[Node, ...]

    def shape(self, i: int) -> Shape:
        return self.shape_in if i < 0 else self.nodes[i].layer.shape

    def activations(self) -> list[int]:
        """Places of the elementwise nonlinear layers, in order: the k-th of them is "layer k" of a certificate's relaxation."""
        return [i for i, node in enumerate(self.nodes) if not isinstance(node.layer, Affine | Add | MaxPool)]

    @functools.cached_property
    def boxed_rectifiers(self) -> int | None:
        """The first ReLU whose input is a linear layer of the network's input, scaled and reshaped at most: there facets.py has lines to offer."""
        first = next((i for i, node in enumerate(self.nodes) if not isinstance(node.layer, Affine)), None)
        layer = None if first is None else self.nodes[first].layer
        if first is None or not isinstance(layer, Rectifier) or layer.negative:
            return None
        value = self.nodes[first].sources[0]
        if value < 0 or not isinstance(self.nodes[value].layer, Dense | Conv):
            return None
        source = self.nodes[value].sources[0]
        while source >= 0 and isinstance(self.nodes[source].layer, Scale | Reshape):
            source = self.nodes[source].sources[0]
        return first if source < 0 else None
