"""The truth about a network: margins, sound bounds, certified radii, witnesses, certificates and their independent checker.

Names load on first use, so that importing the package, or running the checker, loads neither torch nor a solver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verification.attack import find_counterfactuals, find_witness, witness_multiplier
    from verification.certificate import Certificate
    from verification.checker import CheckReport, CheckStatus, Verdict, check_file
    from verification.curvature import margin_curvature, quadratic_radii
    from verification.decision import Decision
    from verification.dual_network import DualNetwork, dual_radii
    from verification.exact import exact_radius
    from verification.nested import nested_radii
    from verification.radius import certified_radius
    from verification.scales import multiscale

_HOMES = {
    "Certificate": "certificate", "CheckReport": "checker", "CheckStatus": "checker", "Decision": "decision", "Verdict": "checker",
    "certified_radius": "radius", "check_file": "checker", "exact_radius": "exact",
    "find_witness": "attack", "find_counterfactuals": "attack", "witness_multiplier": "attack", "margin_curvature": "curvature", "quadratic_radii": "curvature",
    "multiscale": "scales", "nested_radii": "nested", "DualNetwork": "dual_network", "dual_radii": "dual_network",
}  # fmt: skip

__all__ = [
    "Certificate",
    "CheckReport",
    "CheckStatus",
    "Decision",
    "DualNetwork",
    "Verdict",
    "certified_radius",
    "check_file",
    "dual_radii",
    "exact_radius",
    "find_counterfactuals",
    "find_witness",
    "margin_curvature",
    "multiscale",
    "nested_radii",
    "quadratic_radii",
    "witness_multiplier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'verification' has no attribute {name!r}")
    return getattr(import_module(f"verification.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
