"""auto_LiRPA on today's torch and numpy: what its release 0.3 looks for and they keep elsewhere, put back before the import.

0.3 is the registry's release (2022); its metadata pins torch < 1.13, so it is installed without its dependencies. The same shim serves 0.7.
Importing the library configures the root logger and the warning filters; both are restored here.
"""

from __future__ import annotations

import functools
import logging
import sys
import types
import warnings
from dataclasses import dataclass
from typing import Any

from formulations.errors import DependencyError

INSTALL = "pip install --no-deps auto_LiRPA==0.3"


@dataclass(frozen=True)
class Library:
    """The names that the adapter uses, and the version they came from."""

    version: str
    BoundedModule: Any
    BoundedTensor: Any
    PerturbationLpNorm: Any
    eyeC: Any
    Patches: Any
    patches_to_matrix: Any
    inplace_unfold: Any
    Bound: Any
    BoundActivation: Any
    BoundMatMul: Any
    BoundMul: Any
    BoundDiv: Any
    BoundAdd: Any
    BoundSub: Any
    BoundMaxPool: Any
    BoundAveragePool: Any
    BoundCast: Any
    BoundSigmoid: Any
    BoundTanh: Any


@functools.cache
def library() -> Library:
    """auto_LiRPA, imported once. Raises DependencyError that names the command to install it."""
    _restore_moved_names()
    handlers, level = list(logging.root.handlers), logging.root.level
    try:
        with warnings.catch_warnings(record=True):  # it sets filters of its own, and uses what torch deprecates
            import auto_LiRPA
            import auto_LiRPA.bound_ops
            import auto_LiRPA.patches
            import auto_LiRPA.utils
    except ImportError as error:
        command = INSTALL if (error.name or "").startswith("auto_LiRPA") else f"pip install {error.name}"
        raise DependencyError(f"auto_LiRPA cannot be imported ({error}); install what is missing with: {command}") from error
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    logging.getLogger("auto_LiRPA.utils").setLevel(logging.CRITICAL)
    _accept_remove_duplicate(auto_LiRPA.BoundedModule)
    return Library(
        str(auto_LiRPA.__version__),
        auto_LiRPA.BoundedModule,
        auto_LiRPA.BoundedTensor,
        auto_LiRPA.PerturbationLpNorm,
        auto_LiRPA.utils.eyeC,
        auto_LiRPA.patches.Patches,
        auto_LiRPA.patches.patches_to_matrix,
        auto_LiRPA.patches.inplace_unfold,
        *(
            getattr(auto_LiRPA.bound_ops, field)
            for field in (
                "Bound",
                "BoundActivation",
                "BoundMatMul",
                "BoundMul",
                "BoundDiv",
                "BoundAdd",
                "BoundSub",
                "BoundMaxPool",
                "BoundAveragePool",
                "BoundCast",
                "BoundSigmoid",
                "BoundTanh",
            )
        ),
    )


def _restore_moved_names() -> None:
    import numpy as np
    import torch
    import torch.onnx.symbolic_helper as public_helper
    import torch.onnx.utils as public_utils

    if "numpy.lib.arraysetops" not in sys.modules:
        moved: Any = types.ModuleType("numpy.lib.arraysetops")
        moved.isin = np.isin
        sys.modules["numpy.lib.arraysetops"] = moved
    try:  # torch ≥ 2.9 moved the TorchScript exporter
        from torch.onnx._internal.torchscript_exporter import symbolic_helper, utils
        from torch.onnx._internal.torchscript_exporter._globals import GLOBALS
    except ImportError:
        return
    helper, node = public_helper, torch._C.Node
    if not hasattr(public_utils, "_optimize_graph"):
        public_utils._optimize_graph = utils._optimize_graph  # type: ignore[attr-defined]
    if not hasattr(helper, "_set_opset_version"):
        helper._set_opset_version = lambda version: setattr(GLOBALS, "export_onnx_opset_version", version)  # type: ignore[attr-defined]
    if not hasattr(node, "__getitem__"):
        node.__getitem__ = lambda self, key: symbolic_helper._node_get(self, key)  # type: ignore[attr-defined,method-assign]


def _accept_remove_duplicate(module: Any) -> None:
    """torch passes `remove_duplicate` to `_named_members`, which 0.3 overrides without it."""
    import inspect

    members = module._named_members
    if "remove_duplicate" in inspect.signature(members).parameters:
        return

    @functools.wraps(members)
    def named(self: Any, *args: Any, remove_duplicate: bool = True, **kwargs: Any) -> Any:
        return members(self, *args, **kwargs)

    module._named_members = named
