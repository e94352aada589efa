"""What identifies a network in a certificate: the hash of its weights, and its layers in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formulations.errors import InputError
from verification.checking.text import weights_hash

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelRecord:
    """What identifies a network: its weights' sha256 (floats widened to float64, exactly) and its layers in words."""

    sha256: str
    architecture: str

    @staticmethod
    def of(model: torch.nn.Module | ModelRecord) -> ModelRecord:
        """The record of a module. Its float64 copy has the same one; moving it to another device changes nothing."""
        if isinstance(model, ModelRecord):
            return model
        import torch

        if not isinstance(model, torch.nn.Module):
            raise InputError(f"model is a {type(model).__name__}; a certificate needs a torch.nn.Module, whose weights can be hashed.")
        every = model.named_modules(remove_duplicate=False)  # a module that is used twice is told twice
        layers = [f"{name or 'model'}: {_layer(m)}" for name, m in every]
        architecture = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(layers))  # functions print their address
        arrays = {k: (v.double() if v.is_floating_point() else v).detach().cpu().numpy() for k, v in model.state_dict().items()}
        return ModelRecord(weights_hash(architecture, arrays), architecture)


def _layer(module: torch.nn.Module) -> str:
    name = type(module).__qualname__
    return "Identity()" if "Dropout" in name else f"{name}({module.extra_repr()})"  # what dropout is in evaluation mode
