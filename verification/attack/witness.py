"""find_witness: real inputs of the set that flip the decision, as near to x0 as a search can find them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from formulations.errors import InputError
from formulations.given import seed_of
from formulations.norms import INF, Array, Norm
from formulations.programs import relative_parts
from formulations.sets.base import FEASIBILITY, ConvexSet
from verification.attack.answers import Budget, Stop, Witnesses
from verification.attack.effort import Effort
from verification.attack.network import Network
from verification.attack.regions import small_chain
from verification.attack.search import Search
from verification.attack.subproblem import Subproblem, subproblem
from verification.decision import Decision
from verification.model import batch_of, check_decisions, float64_copy

CHUNK = 1 << 22  # numbers per array of lanes: larger batches are searched in chunks
BOX_EFFORT = Effort()
SPARSE_EFFORT = Effort(growing_steps=20, leaps=48, walk=((2, 20), (1, 60)))  # p = 1 over a box
PROGRAM_EFFORT = Effort(
    rivals=5, steps=5, growing=1, growing_steps=10, folds=4, probes=0, lost_probes=8, samples=0, polish=((5, 3), (3, 8))
)  # every step of a lane is a solver's run

Progress = Callable[[int, int], None]


def find_witness(
    model: torch.nn.Module,
    x0: torch.Tensor | ArrayLike,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    decisions: Sequence[Decision] | Decision | None = None,
    budget: Budget | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    block: int = 64,
    progress: Progress | None = None,
) -> Witnesses:
    """Upper bounds of ``v* = min ‖Wδ‖ s.t. some m_k(δ) ≤ 0, δ ∈ C``: for every input a δ in C that flips the decision, near x0, where the search finds one.

    model      takes (n, *shape) and answers (n, outputs); a copy of it is run in float64
    x0         (n, *shape) inputs; `constraints` any convex set over the input or the change, by default all of R^d
    decisions  one per input or one for all; by default the predicted class stays ahead of every other class
    budget     passes per input, and seconds for the batch; `effort` says how the passes are spent
    block      inputs that the network sees at once
    progress   called with (steps done, steps in all)

    Every witness returned was checked again: it violates C by ≤ 1e-9 and the decision falls there, on the network in float64. Where x0 itself is allowed
    and flipped, the witness is δ = 0. Same seed, same answer, bit for bit, on one machine; the answer for an input does not depend on the rest of the
    batch, given `block`. An interrupt or the time limit returns the best so far, see `stop`. "Not found" proves nothing: see `WitnessStatus`.
    Raises InputError on shapes that do not fit, numbers that are not finite, and decisions over another number of outputs.
    """
    begun, norm, budget = time.monotonic(), Norm.of(norm), budget or Budget()
    if not isinstance(budget, Budget):
        raise InputError(f"budget={budget!r:.60} is no budget; give Budget(forward, backward, seconds).")
    seed = seed_of(seed)
    twin = float64_copy(model, device)
    place = torch.device(device) if device is not None else next((p.device for p in twin.parameters()), torch.device("cpu"))
    inputs = batch_of(x0, None, place)
    n, d = len(inputs), inputs[0].numel()
    if decisions is not None and not isinstance(decisions, Decision):
        check_decisions(decisions, n)
    most = effort or SPARSE_EFFORT
    size = max(1, CHUNK // (d * max(2 * most.rivals, most.leaps)))
    starts = range(0, n, size)
    chain = small_chain(twin, tuple(inputs.shape[1:]), d, (effort or BOX_EFFORT).neurons) if (effort or BOX_EFFORT).regions else None
    answers, stop = [], Stop.COMPLETE
    for g, i in enumerate(starts):
        chunk = slice(i, i + size)
        net = Network(twin, inputs[chunk], block)
        chosen = net.decide(decisions if decisions is None or isinstance(decisions, Decision) else decisions[chunk])
        if stop is Stop.INTERRUPTED:
            answers.append(_nothing(net))
            continue
        steps = subproblem(norm, relative_parts(constraints, d, net.x0.cpu().numpy(), net.n), net.n, d, place)
        how = effort or _default(steps, norm)
        deadline = INF if budget.seconds is None else begun + budget.seconds * (g + 1) / len(starts)
        tick = _ticker(progress, g * how.phases, len(starts) * how.phases)
        search = Search(net, steps, norm, budget, how, [_seed(seed, z) for z in net.x0.cpu().numpy()], deadline, tick, chain)
        ended = search.run()
        stop = ended if ended is not Stop.COMPLETE else stop
        answers.append(_checked(net, steps, norm, search.best, chosen, search.regions))
    return _joined(answers, stop, time.monotonic() - begun)


def _default(steps: Subproblem, norm: Norm) -> Effort:
    if not steps.boxes:
        return PROGRAM_EFFORT
    return SPARSE_EFFORT if norm.p == 1 else BOX_EFFORT


_Answer = tuple[NDArray[Any], ...]  # the fields of `Witnesses` in order


def _checked(net: Network, steps: Subproblem, norm: Norm, best: torch.Tensor, decisions: list[Decision], regions: torch.Tensor) -> _Answer:
    """Evaluate every candidate once more, alone from the search, and keep those that lie in C and flip."""
    delta, upper = best.cpu().numpy().copy(), np.full(net.n, INF)
    rival, row = np.full(net.n, -1), np.full(net.n, -1)
    margin, violation = np.full(net.n, np.nan), np.full(net.n, np.nan)
    found = torch.isfinite(best).all(1).nonzero()[:, 0]
    if len(found):
        margins, flipped = net.margins(best[found], found)
        lowest = margins.argmin(1).tolist()
        for k, i in enumerate(found.tolist()):
            outside = steps.violation(i, delta[i])
            if bool(flipped[k]) and outside <= FEASIBILITY:
                row[i], rival[i] = lowest[k], decisions[i].rivals[lowest[k]]
                margin[i], violation[i] = float(margins[k, lowest[k]]), max(outside, 0.0)
                upper[i] = float(norm.value(delta[i])) * (1 + (net.d + 4) * np.finfo(float).eps)  # rounded up: it bounds from above
    delta[~np.isfinite(upper)] = np.nan
    spent = (v.cpu().numpy() for v in (net.forward_passes, net.backward_passes, regions))
    return delta, upper, rival, row, margin, violation, *spent


def _nothing(net: Network) -> _Answer:
    blank = np.full(net.n, np.nan)
    spent = net.forward_passes.cpu().numpy(), net.backward_passes.cpu().numpy(), np.zeros(net.n, dtype=np.intp)
    return np.full((net.n, net.d), np.nan), np.full(net.n, INF), np.full(net.n, -1), np.full(net.n, -1), blank, blank, *spent


def _joined(answers: list[_Answer], stop: Stop, seconds: float) -> Witnesses:
    delta, upper, rival, row, margin, violation, forward, backward, regions = (
        np.concatenate(field) for field in zip(*answers, strict=True)
    )
    return Witnesses(delta, upper, rival, row, margin, violation, forward, backward, regions, stop, seconds)


def _seed(seed: int, x0: Array) -> int:
    """A seed of the input's own, whatever its place in the batch."""
    return int.from_bytes(hashlib.sha256(int(seed).to_bytes(16, "little", signed=True) + x0.tobytes()).digest()[:7], "little")


def _ticker(progress: Progress | None, done: int, total: int) -> Callable[[], None]:
    count = done

    def tick() -> None:
        nonlocal count
        count = min(count + 1, total)
        if progress is not None:
            progress(count, total)

    return tick
