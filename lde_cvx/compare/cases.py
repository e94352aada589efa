"""What a comparison explains: a network and its inputs, the set of changes, what stands for a removed feature; and the explainers bound to it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.sets import Box, ConvexSet
from lde_cvx.attribution import Explainer
from lde_cvx.compare.config import CaseTable, MethodTable

if TYPE_CHECKING:
    from lde_cvx.explainer import LagrangeDualExplainer


@dataclass(frozen=True, eq=False)
class Case:
    """x (n, *shape) in float64; box: the range that moved inputs are clipped to; reference (*shape): the training mean, None where it is not known.

    features: the names of the entries of a flat input, () where they have none.
    """

    model: nn.Module
    x: Tensor
    constraints: ConvexSet | None
    box: tuple[float, float] | None
    reference: Tensor | None
    title: str
    features: tuple[str, ...] = ()


def load_case(table: CaseTable) -> Case:
    """Raises InputError where a file is missing or does not fit."""
    if table.name == "mnist_cnn":
        from lde_cvx.bench.networks import mnist_cnn

        found = mnist_cnn(table.count)
        return Case(
            standard_layers(found.model),
            found.x,
            Box(0, 1),
            (0.0, 1.0),
            None,
            f"mnist_cnn.pth, {len(found.x)} correctly classified test images",
        )
    if table.name == "digits":
        from lde_cvx.bench.networks import digits

        found = digits(table.count)
        return Case(found.model, found.x, Box(0, 1), (0.0, 1.0), None, f"{found.name}, {len(found.x)} correctly classified held-out images")
    if table.name == "german_credit":
        return _german_credit(table.count)
    return _own(table)


def standard_layers(model: nn.Module) -> nn.Module:
    """The same network with its input normalisation as a batch norm, a layer that every method has a rule for."""
    first, *rest = model.children()
    norm = nn.BatchNorm2d(1, eps=0.0).double().eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(float(first.mean))  # type: ignore[arg-type]
    norm.running_var.fill_(float(first.std) ** 2)  # type: ignore[arg-type]
    return nn.Sequential(norm, *rest).eval().requires_grad_(False)


def _german_credit(count: int) -> Case:
    from formulations.semantic import Schema
    from lde_cvx.data import german_credit
    from lde_cvx.models import german_credit_model

    schema = Schema.from_frame(german_credit().X)
    trained, _, data = german_credit_model(schema=schema)
    X = torch.tensor(schema.encode(data.X))
    x = X[torch.as_tensor(trained.test_rows[:count])]
    mean = X[torch.as_tensor(trained.train_rows)].mean(0)
    title = f"German credit MLP 61-32-32-2, {len(x)} applicants of the test split"
    return Case(trained.model, x, schema.polytope(), None, mean, title, tuple(schema.feature_names))


def _own(table: CaseTable) -> Case:
    from lde_cvx.models import load_model

    model, path = load_model(str(table.model)), Path(str(table.inputs))
    try:
        X = np.asarray(np.load(path, allow_pickle=False), dtype=float)
    except FileNotFoundError:
        raise InputError(f"case.inputs: {path} does not exist.") from None
    except (ValueError, TypeError, EOFError) as e:
        raise InputError(f"case.inputs: {path} is not a .npy file of numbers ({str(e).splitlines()[0]}).") from None
    box = None if table.box is None else (table.box[0], table.box[1])
    return Case(
        model,
        torch.tensor(X[: table.count]),
        None if box is None else Box(*box),
        box,
        None,
        f"{table.model}, {min(len(X), table.count)} inputs",
    )


@dataclass(frozen=True, eq=False)
class Contributions:
    """An LDE explainer read as λ a_i (x_i − reference_i); reference None: zero."""

    explainer: LagrangeDualExplainer
    reference: Tensor | None

    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        return self.explainer.attribute(inputs, target, baselines=0.0 if self.reference is None else self.reference)

    def explain(self, x0: Any) -> Any:
        return self.explainer.explain(x0)


def build(method: MethodTable, case: Case, seed: int) -> Explainer:
    """The explainer of a method's table. Raises InputError, naming the method, on a setting that it does not have or cannot take."""
    s = dict(method.settings)
    try:
        if method.kind == "baseline":
            from lde_cvx.baselines import baseline

            _refuse(s, GIVEN & set(s))
            if s.get("reference") == "case":
                s["reference"] = 0.0 if case.reference is None else case.reference
            return baseline(str(method.method), case.model, seed=seed, **s)
        if method.kind == "lde":
            from lde_cvx.explainer import LagrangeDualExplainer

            _known(s, LagrangeDualExplainer, "reading")
            reading = s.pop("reading", "scores")
            if reading not in ("scores", "contributions"):
                raise InputError(f"reading={reading!r} is not known; use 'scores' or 'contributions'.")
            explainer = LagrangeDualExplainer(case.model, constraints=case.constraints, seed=seed, **s)
            return explainer if reading == "scores" else Contributions(explainer, case.reference)
        if method.kind == "rate-distortion":
            from lde_cvx.rate_distortion import RateDistortion

            _known(s, RateDistortion)
            return RateDistortion(case.model, s.pop("kind", "constrained"), seed=seed, **s)
        from lde_cvx.leg import LEG, LEGTV

        kind = LEG if method.kind == "leg" else LEGTV
        _known(s, kind)
        return kind(case.model, seed=seed, **s)
    except InputError as error:
        raise InputError(f"methods.{method.name}: {error}") from None
    except TypeError as error:  # a value of another type: only names were looked at so far
        raise InputError(f"methods.{method.name}: a setting has a value of the wrong type ({error}): {method.settings}.") from None


GIVEN = {"model", "constraints", "target", "seed", "device"}
"""What a comparison hands to every method itself, or leaves to the prediction."""


def _known(settings: dict[str, Any], explainer: Any, *more: str) -> None:
    names = [*(k for k in inspect.signature(explainer).parameters if k not in GIVEN), *more]
    _refuse(settings, set(settings) - set(names), f"its settings are: {', '.join(names)}")


def _refuse(settings: dict[str, Any], wrong: set[str], known: str = "leave it out") -> None:
    for name in settings:
        if name in GIVEN:
            raise InputError(f"{name} is not a method's own: all are asked about the same; leave it out.")
        if name in wrong:
            raise InputError(f"there is no setting {name!r}; {known}.")
