"""Lagrange Dual Explainers: how far the nearest allowed change that flips a decision is, why there, and a file that lets others check it.

    import lde_cvx as lde
    explanation = lde.LagrangeDualExplainer(model, norm=2, constraints=lde.Box(0, 1)).explain(x0)
    explanation.lower, explanation.upper, explanation.scores, explanation.certificate

Names are loaded when first used, so `import lde_cvx` itself is quick.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def _refuse_shadows() -> None:
    """Our three packages lie side by side; a namesake found first would break in obscure places, so it is named here."""
    here = Path(__file__).resolve().parent.parent
    for name in ("formulations", "verification"):
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded is not None else find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin != here / name / "__init__.py":
            where = (
                "it was not found"
                if spec is None
                else f"another one at {origin.parent if origin else list(spec.submodule_search_locations or [])} comes first"
            )
            raise ImportError(
                f"lde_cvx needs its own package {name!r} ({here / name}), but {where}; remove or rename that one, or reinstall lde-cvx."
            )


_refuse_shadows()

_HOME = {
    "Box": "formulations.sets",
    "ConvexSet": "formulations.sets",
    "Ellipsoid": "formulations.sets",
    "Frozen": "formulations.sets",
    "Simplex": "formulations.sets",
    "Subspace": "formulations.sets",
    "Everything": "formulations.sets",
    "LpBall": "formulations.sets",
    "Polytope": "formulations.sets",
    "TotalVariation": "formulations.sets",
    "Schema": "formulations.semantic",
    "Norm": "formulations.norms",
    "GroupNorm": "formulations.norms",
    "Status": "formulations.status",
    "InputError": "formulations.errors",
    "DependencyError": "formulations.errors",
    "min_norm": "formulations.programs",
    "Decision": "verification.decision",
    "certified_radius": "verification.radius",
    "nested_radii": "verification.nested",
    "find_witness": "verification.attack",
    "find_counterfactuals": "verification.attack",
    "witness_multiplier": "verification.attack",
    "exact_radius": "verification.exact",
    "LEG": "lde_cvx.leg",
    "LEGTV": "lde_cvx.leg",
    "RateDistortion": "lde_cvx.rate_distortion",
    "baseline": "lde_cvx.baselines",
    "Explainer": "lde_cvx.attribution",
    "Certificate": "verification.certificate",
    "LagrangeDualExplainer": "lde_cvx.explainer",
    "dual_ascent": "lde_cvx.dual_ascent",
    "SecondOrder": "lde_cvx.second_order",
    "suggested_temperature": "lde_cvx.second_order",
    "quadratic_radii": "verification.curvature",
    "multiscale": "verification.scales",
    "DualNetwork": "verification.dual_network",
    "dual_radii": "verification.dual_network",
    "QuadraticModel": "formulations.quadratic",
    "min_norm_quadratic": "formulations.quadratic",
    "fenchel_min_norm": "formulations.fenchel",
    "diagnose": "formulations.kkt",
    "PriceFlag": "formulations.kkt",
    "Explanation": "lde_cvx.explanation",
    "SufficientReason": "lde_cvx.sufficient",
    "Relevance": "lde_cvx.sufficient",
    "Verdict": "verification.checker",
    "Normalize": "lde_cvx.normalize",
    "load_model": "lde_cvx.models",
}

_PACKAGES = ("metrics",)

__all__ = ["__version__", *sorted([*_HOME, *_PACKAGES])]

if TYPE_CHECKING:
    from formulations.errors import DependencyError, InputError
    from formulations.fenchel import fenchel_min_norm
    from formulations.kkt import PriceFlag, diagnose
    from formulations.norms import GroupNorm, Norm
    from formulations.programs import min_norm
    from formulations.quadratic import QuadraticModel, min_norm_quadratic
    from formulations.semantic import Schema
    from formulations.sets import Box, ConvexSet, Ellipsoid, Everything, Frozen, LpBall, Polytope, Simplex, Subspace, TotalVariation
    from formulations.status import Status
    from lde_cvx import metrics
    from lde_cvx.attribution import Explainer
    from lde_cvx.baselines import baseline
    from lde_cvx.dual_ascent import dual_ascent
    from lde_cvx.explainer import LagrangeDualExplainer
    from lde_cvx.explanation import Explanation
    from lde_cvx.leg import LEG, LEGTV
    from lde_cvx.models import load_model
    from lde_cvx.normalize import Normalize
    from lde_cvx.rate_distortion import RateDistortion
    from lde_cvx.second_order import SecondOrder, suggested_temperature
    from lde_cvx.sufficient import Relevance, SufficientReason
    from verification.attack import find_counterfactuals, find_witness, witness_multiplier
    from verification.certificate import Certificate
    from verification.checker import Verdict
    from verification.curvature import quadratic_radii
    from verification.decision import Decision
    from verification.dual_network import DualNetwork, dual_radii
    from verification.exact import exact_radius
    from verification.nested import nested_radii
    from verification.radius import certified_radius
    from verification.scales import multiscale


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"lde_cvx.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'lde_cvx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
