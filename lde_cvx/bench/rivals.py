"""The attacks that `lde bench witness` compares with, each over a small grid of its own settings.

A rival sees a float32 copy of the network, as its package expects, and answers changed inputs in [0, 1]. It is judged elsewhere, in float64. The grids
take about 1,000 passes of each kind, and more where an attack has several rounds.

foolbox: Rauber et al., JOSS 2020; DDN Rony 2019, FMN Pintor 2021, Brendel & Bethge 2019, EAD Chen 2018, C&W 2017, DeepFool Moosavi-Dezfooli 2016.
torchattacks: Kim 2020; FAB Croce & Hein 2020.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from formulations.errors import DependencyError
from formulations.norms import INF

INSTALL = (
    "pip install 'lde-cvx[bench]' && pip install --no-deps torchattacks==3.5.1"  # its metadata asks for torchvision and an old requests
)
LABEL = {1.0: "L1", 2.0: "L2", INF: "Linf"}
BRIEF = {"steps": 100, "restarts": 1, "binary_search_steps": 3}
# what foolbox says of its own arrays and compiler; nothing is written into those arrays here
NOISE = ("At the first initialisation the optimizer needs to be compiled", "The given NumPy array is not writable")

Settings = Mapping[str, Any]
Run = Callable[["Counted", Tensor, Tensor, float, Settings], Tensor]


class Counted(nn.Module):
    """A network that counts what is asked of it: `forward_passes` and `backward_passes`, in inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forward_passes, self.backward_passes = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forward_passes += len(x)
        y: Tensor = self.model(x)
        if y.requires_grad:
            y.register_hook(self._count)  # type: ignore[no-untyped-call]
        return y

    def _count(self, slope: Tensor) -> None:
        self.backward_passes += len(slope)


@dataclass(frozen=True)
class Rival:
    """`run(model, x, labels, p, settings)` answers changed inputs; `grid` holds the settings tried, a list for each norm p that it is made for.

    compiled: its loops are compiled anew in every process, half a minute a norm.
    """

    name: str
    package: str
    grid: Mapping[float, Sequence[Settings]]
    run: Run
    compiled: bool = False

    def brief(self, p: float) -> Rival:
        """Its first setting at the norm, with few steps: shows that it runs, not how near it comes."""
        few = {k: min(v, BRIEF[k]) if k in BRIEF else v for k, v in self.grid[p][0].items()}
        return replace(self, grid={p: [few]})


def product(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the choices."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def rivals(p: float, *, quick: bool = False) -> Iterator[Rival]:
    """The rivals made for ‖·‖_p; `quick` keeps one brief setting each, of those that are not compiled. Raises DependencyError where packages are missing."""
    for name in ("foolbox", "torchattacks"):
        _package(name)
    for rival in RIVALS:
        if p in rival.grid and not (quick and rival.compiled):
            yield rival.brief(p) if quick else rival


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as reason:
        raise DependencyError(f"lde bench witness: {name} cannot be imported ({reason}); install the rivals with: {INSTALL}") from reason


def _foolbox(attack: Callable[[Any, float, Settings], Any]) -> Run:
    """An attack of foolbox for the smallest distance at which it succeeds."""

    def run(model: Counted, x: Tensor, labels: Tensor, p: float, settings: Settings) -> Tensor:
        logging.getLogger().setLevel(logging.WARNING)
        box = _package("foolbox")
        seen = box.PyTorchModel(model, bounds=(0, 1), device=x.device)
        changed, _, _ = attack(box.attacks, p, settings)(seen, x, labels, epsilons=None)
        return torch.as_tensor(changed)

    return run


def _brendel_bethge(model: Counted, x: Tensor, labels: Tensor, p: float, settings: Settings) -> Tensor:
    """Brendel & Bethge, from blended noise or from the nearest other input of the batch that is classified otherwise."""
    logging.getLogger().setLevel(logging.WARNING)
    box = _package("foolbox")
    kind = {1.0: "L1", 2.0: "L2", INF: "Linfinity"}[p] + "BrendelBethgeAttack"
    attack = getattr(box.attacks, kind)(steps=settings["steps"], lr=settings["lr"])
    seen = box.PyTorchModel(model, bounds=(0, 1), device=x.device)
    starts = _others(x, labels, p) if settings["start"] == "input" else None
    with warnings.catch_warnings():
        for words in NOISE:
            warnings.filterwarnings("ignore", words, UserWarning)
        changed, _, _ = attack(seen, x, labels, epsilons=None, **({} if starts is None else {"starting_points": starts}))
    return torch.as_tensor(changed)


def _others(x: Tensor, labels: Tensor, p: float) -> Tensor:
    apart = torch.cdist(x.flatten(1), x.flatten(1), p)
    return x[apart.masked_fill(labels[:, None] == labels[None], INF).argmin(1)]


def _fab(model: Counted, x: Tensor, labels: Tensor, p: float, settings: Settings) -> Tensor:
    """FAB, untargeted or once for each of the likeliest other classes; the nearest of its runs is kept (its own loop stops at the first)."""
    attack = _package("torchattacks").FAB(
        model, norm=LABEL[p], eps=INF, steps=settings["steps"], alpha_max=settings["alpha_max"], eta=settings["eta"], multi_targeted=True
    )
    attack.set_device(x.device)
    best, length = x.clone(), torch.full_like(x.flatten(1)[:, 0], INF)
    for k, restart in itertools.product(range(settings["targets"] or 1), range(settings["restarts"])):
        attack.eps, attack.target_class = INF if p == INF else 1e9, k + 2
        single = attack.attack_single_run_targeted if settings["targets"] else attack.attack_single_run
        if restart:
            attack.eps = float(length[torch.isfinite(length)].median()) if torch.isfinite(length).any() else 1.0
        with torch.no_grad():
            found = single(x, labels, use_rand_start=restart > 0)
            flipped = model(found).argmax(1) != labels
        size = torch.where(flipped, torch.linalg.vector_norm((found - x).flatten(1), p, dim=1), INF)
        best = torch.where((size < length).view(-1, *[1] * (x.ndim - 1)), found, best)
        length = torch.minimum(size, length)
    return best


RIVALS = (
    Rival(
        "DDN", "foolbox", {2.0: product(steps=[1000], init_epsilon=[1.0, 0.2], gamma=[0.05, 0.01])},
        _foolbox(lambda a, p, s: a.DDNAttack(**s)),
    ),
    Rival(
        "FMN", "foolbox", {p: product(steps=[1000], max_stepsize=[1.0, 10.0, 0.1], gamma=[0.05]) for p in LABEL},
        _foolbox(lambda a, p, s: {1.0: a.L1FMNAttack, 2.0: a.L2FMNAttack, INF: a.LInfFMNAttack}[p](**s)),
    ),
    Rival("Brendel-Bethge", "foolbox", {p: product(start=["noise", "input"], lr=[1e-3], steps=[1000]) for p in LABEL}, _brendel_bethge, compiled=True),
    Rival(
        "EAD", "foolbox",
        {1.0: product(binary_search_steps=[9], steps=[100], initial_stepsize=[0.01, 0.1], regularization=[0.1, 0.01], decision_rule=["L1"])},
        _foolbox(lambda a, p, s: a.EADAttack(**s)),
    ),
    Rival(
        "C&W", "foolbox", {2.0: product(binary_search_steps=[9], steps=[100], stepsize=[0.01, 0.1], abort_early=[False])},
        _foolbox(lambda a, p, s: a.L2CarliniWagnerAttack(**s)),
    ),
    Rival(
        "DeepFool", "foolbox", {p: product(steps=[100], overshoot=[0.02, 0.001], loss=["logits"]) for p in (2.0, INF)},
        _foolbox(lambda a, p, s: {2.0: a.L2DeepFoolAttack, INF: a.LinfDeepFoolAttack}[p](**s)),
    ),
    Rival(
        "FAB", "torchattacks",
        {
            p: product(targets=[9], steps=[20], restarts=[5], alpha_max=[0.1], eta=[1.05])
            + product(targets=[9], steps=[100], restarts=[1], alpha_max=[0.1], eta=[1.05, 1.01])
            + product(targets=[0], steps=[100], restarts=[1], alpha_max=[0.1], eta=[1.05])
            for p in LABEL
        },
        _fab,
    ),
)  # fmt: skip
