"""`lde bench witness`: the search for witnesses beside foolbox's and torchattacks' attacks, on the same held-out inputs in one run.

Every rival runs over a grid of its own settings and its best one, by median distance on these very inputs, is reported: the comparison favours the rivals.
All answers are judged alike: within the box, and flipped on the network in float64; a rival's answer that float32 left just short of the boundary is moved
on by up to a thousandth of its length. Passes are counted by wrapping the network; ours are those of the search's own account.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn

from formulations.norms import INF, Array, Norm
from formulations.sets import Box
from lde_cvx.bench.kept import Kept, key, numbers, source, version
from lde_cvx.bench.networks import Case, built, digits, mnist_cnn, mnist_mlp
from lde_cvx.bench.rivals import Counted, Rival, Settings, rivals
from lde_cvx.bench.table import show, write_whole
from lde_cvx.models import digits_model
from verification.attack import find_witness
from verification.attack.answers import Stop

OURS = "lde_cvx"
NORMS = (1.0, 2.0, INF)
SOURCES = ("verification/attack", "formulations")  # our own figures are measured again where these changed


@dataclass(frozen=True, eq=False)
class Attempt:
    """One attack on one network: `distance` (n,) is +inf where it failed; passes and seconds are per input, of the setting reported alone."""

    method: str
    settings: str
    distance: list[float]
    forward: float
    backward: float
    seconds: float

    @property
    def rank(self) -> tuple[float, float]:
        """What is compared between settings: median, failures as +inf, then the mean."""
        return float(np.median(self.distance)), float(np.mean(self.distance))


def networks(cache: Path, *, quick: bool, tell: Callable[[str], object]) -> Iterator[Case]:
    """The cases; `tell` hears what is left out and why."""
    builders: tuple[Callable[[], Case], ...] = (
        lambda: digits(4 if quick else 50), lambda: hardened_digits(20), lambda: mnist_mlp(20, cache), lambda: mnist_cnn(10),
    )  # fmt: skip
    return built(builders[: 1 if quick else None], tell)


def hardened_digits(n: int, *, radius: float = 0.1, epochs: int = 60, steps: int = 7) -> Case:
    """The digits network trained on its own worst inputs within ‖δ‖_∞ ≤ radius (Madry et al. 2018): seconds."""
    trained, data = digits_model()
    X, y = torch.tensor(data.X, dtype=torch.float32), torch.tensor(data.y)
    rows = torch.tensor(np.setdiff1d(np.arange(len(X)), trained.test_rows))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimiser = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(epochs):
            for at in torch.split(rows[torch.randperm(len(rows))], 128):
                worst = _worst(net, X[at], y[at], radius, steps)
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(worst), y[at]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    net = net.double().eval().requires_grad_(False)
    x = torch.tensor(data.X[trained.test_rows])
    right = net(x).argmax(1) == y[trained.test_rows]
    return Case("digits MLP, adversarially trained", net, x[right][:n], Box(0, 1), (0, 1))


def _worst(net: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int) -> Tensor:
    z = (x + radius * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_(True)
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(net(z), y), z)
        z = torch.clamp(z.detach() + radius / 3 * slope.sign(), x - radius, x + radius).clamp(0, 1)
    return z


def measure(case: Case, p: float, device: str, kept: Kept, *, quick: bool, tell: Callable[[str], object]) -> list[Attempt]:
    """Our search, and every rival at its best setting; what `kept` holds is not run again."""
    model, x = copy.deepcopy(case.model).to(device), case.x.to(device)
    same = numbers(model, x), p, device
    ours = kept.take(key(OURS, source(*SOURCES), *same), lambda: asdict(search(case, model, x, p, device)))
    attempts = [Attempt(**ours)]
    for rival in rivals(p, quick=quick):
        tried = []
        for s in rival.grid[p]:
            words = ", ".join(f"{k}={v}" for k, v in s.items())
            mine = key(rival.name, rival.package, version(rival.package), words, *same)
            found = kept.take(mine, lambda rival=rival, s=s: _record(attempt(rival, s, model, x, p, tell)))  # type: ignore[misc]
            tried += [Attempt(**found)] if found is not None else []
        if tried:
            attempts.append(min(tried, key=lambda a: a.rank))
    return attempts


def search(case: Case, model: nn.Module, x: Tensor, p: float, device: str) -> Attempt:
    """Ours, within the default budget."""
    begun = time.perf_counter()
    found = find_witness(model, x, p, case.constraints, device=device)
    if found.stop is Stop.INTERRUPTED:
        raise KeyboardInterrupt  # what it has is no finished measurement
    spent = (time.perf_counter() - begun) / len(x)
    return Attempt(OURS, "defaults", found.upper.tolist(), float(found.forward.mean()), float(found.backward.mean()), spent)


def _record(a: Attempt | None) -> dict[str, Any] | None:
    return None if a is None else asdict(a)


def attempt(rival: Rival, settings: Settings, model: nn.Module, x: Tensor, p: float, tell: Callable[[str], object]) -> Attempt | None:
    """One rival at one setting; None, and a word to `tell`, where it fails with an error."""
    counted, labels = Counted(copy.deepcopy(model).float()).eval(), model(x).argmax(1)
    words = ", ".join(f"{k}={v}" for k, v in settings.items())
    begun = time.perf_counter()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002 (what foolbox draws from)
            changed = rival.run(counted, x.float(), labels, p, settings)
    except Exception as reason:  # a rival's own failure is not ours: it is named, and its other settings are tried
        tell(f"{rival.name} ({words}) failed: {type(reason).__name__}: {reason}")
        return None
    spent = (time.perf_counter() - begun) / len(x)
    distance = judged(model, x, changed.detach(), labels, p)
    return Attempt(rival.name, words, distance.tolist(), counted.forward_passes / len(x), counted.backward_passes / len(x), spent)


def judged(model: nn.Module, x: Tensor, changed: Tensor, labels: Tensor, p: float) -> Array:
    """(n,) ‖changed − x‖_p, +inf where the network in float64 does not flip at the changed input moved into [0, 1]."""
    delta = torch.clamp(changed.double().view_as(x), 0, 1) - x
    best = np.full(len(x), INF)
    for further in (1e-3, 1e-4, 1e-5, 1e-6, 0.0):
        z = torch.clamp(x + (1 + further) * delta, 0, 1)
        with torch.no_grad():
            flipped = (model(z).argmax(1) != labels).cpu().numpy()
        size = torch.linalg.vector_norm((z - x).flatten(1), p, dim=1).cpu().numpy()
        best = np.where(flipped & (size < best), size, best)
    return best


def bench(out: Path, *, device: str = "cpu", quick: bool = False, console: Console | None = None) -> pd.DataFrame:
    """Run every case, print the table as it grows, write `witness.csv`, `witness_distances.csv` and `witness.png` into `out`.

    `quick`: four inputs of the digits network, and of the rivals one setting each of few steps, so that their distances say little; what must be compiled is left out.
    An interrupt keeps what is done, and the next run into the same folder goes on from there: `witness_done.jsonl` holds every finished attack with what
    its figures depend on (network, inputs, norm, settings, versions; for our own search its source). Raises DependencyError, with the command to run,
    where the rivals are not installed.
    """
    console = console or Console()
    rows: list[dict[str, object]] = []
    each: list[dict[str, object]] = []
    tell: Callable[[str], object] = console.print
    kept = Kept(out / "witness_done.jsonl")
    for p in NORMS:
        list(rivals(p))  # what is missing is said before minutes are spent
    try:
        for case in networks(out, quick=quick, tell=tell):
            for p in NORMS:
                label = Norm.of(p).label
                console.print(f"{case.name}, {label}, {len(case.x)} inputs …")
                for a in measure(case, p, device, kept, quick=quick, tell=tell):
                    rows.append(_row(case, label, a))
                    each += [
                        {"network": case.name, "norm": label, "method": a.method, "input": i, "distance": v}
                        for i, v in enumerate(a.distance)
                    ]
                _write(out, rows, each)
    except KeyboardInterrupt:
        console.print("interrupted: the table holds what was measured; the same command goes on from there")
    frame = pd.DataFrame(rows)
    if len(frame):
        _write(out, rows, each)
        show(frame, "distance of the witnesses, rivals at their best settings", console)
        console.print(f"{out / 'witness.csv'}  {write_whole(out / 'witness.png', lambda path: plot(pd.DataFrame(each), path))}")
    return frame


def _row(case: Case, label: str, a: Attempt) -> dict[str, object]:
    distance = np.array(a.distance)
    reached = distance[np.isfinite(distance)]
    return {
        "network": case.name, "norm": label, "method": a.method, "inputs": len(distance), "median": float(np.median(distance)),
        "mean": float(reached.mean()) if len(reached) else float("nan"), "success": float(np.isfinite(distance).mean()), "forward": a.forward,
        "backward": a.backward, "seconds": a.seconds, "settings": a.settings,
    }  # fmt: skip


def _write(out: Path, rows: list[dict[str, object]], each: list[dict[str, object]]) -> None:
    for name, records in (("witness.csv", rows), ("witness_distances.csv", each)):
        frame = pd.DataFrame(records)
        write_whole(out / name, lambda path, frame=frame: frame.to_csv(path, index=False))  # type: ignore[misc]


def plot(each: pd.DataFrame, path: Path) -> None:
    """Success against distance: the share of inputs that flip within it. One panel per network and norm, one line per method."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    cases, norms = list(dict.fromkeys(each["network"])), list(dict.fromkeys(each["norm"]))
    colours = {m: f"C{k}" for k, m in enumerate(dict.fromkeys(each["method"]))}
    figure, axes = plt.subplots(len(cases), len(norms), figsize=(4.4 * len(norms), 3.1 * len(cases)), squeeze=False, sharey=True)
    for line, case in zip(axes, cases, strict=True):
        for axis, norm in zip(line, norms, strict=True):
            part = each[(each["network"] == case) & (each["norm"] == norm)]
            for method, own in part.groupby("method", sort=False):
                size = np.sort(own["distance"].to_numpy())
                axis.step(
                    size, np.arange(1, len(size) + 1) / len(size), where="post", color=colours[str(method)], lw=2 if method == OURS else 1
                )
            axis.set(title=f"{case}, {norm}", xlabel="distance", ylim=(0, 1.02))
            axis.title.set_fontsize(9)
            axis.grid(alpha=0.3)
        line[0].set_ylabel("share flipped")
    handles = [Line2D([], [], color=c, label=m) for m, c in colours.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=8)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)
