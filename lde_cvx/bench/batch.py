"""`lde bench batch`: certified radii of a batch (CROWN, ℓ∞) beside a loop over its inputs with auto_LiRPA used alone, on the digits network.

Both get the same inputs, the box [0, 1] and the same decisions. The loop bisects each radius from its witness; the batch searches all inputs in lockstep. The
loop is timed on some of the inputs and its time scaled to all of them; its certified radii are compared on those.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from lde_cvx.bench.networks import digits
from lde_cvx.bench.table import show, write_whole
from verification.attack import find_witness
from verification.lirpa import BoundEngine
from verification.lirpa.alone import library_radius
from verification.model import decide, outputs
from verification.radius import certified_radius


def measure(n: int, looped: int, device: str) -> pd.DataFrame:
    """One row each for the batch and the loop: passes, seconds for n inputs, mean ratio to the witness, and how many times faster the batch is."""
    case = digits(n)
    model, x = case.model.to(device), case.x.to(device)
    engine = BoundEngine(model, tuple(x.shape[1:]), device)
    certified_radius(engine, x[:2], "inf", case.constraints, max_passes=2)  # warms torch up
    start = time.perf_counter()
    found = certified_radius(engine, x, "inf", case.constraints)
    batch = time.perf_counter() - start
    some = x[:looped]
    upper = find_witness(model, some, "inf", case.constraints, device=device).upper
    radii, seconds = library_radius(model, some, decide(outputs(model, some), None), "inf", upper, box=case.box)
    loop = float(seconds.mean()) * len(x)
    lower = found.lower[:looped]
    return pd.DataFrame(
        [
            {"method": "batch, CROWN", "inputs": len(x), "passes": found.passes, "seconds": batch, "ratio": float(np.mean(lower / upper)), "faster": loop / batch},
            {"method": f"auto_LiRPA alone, loop (timed on {len(some)})", "inputs": len(x), "passes": 12 * len(x), "seconds": loop,
             "ratio": float(np.mean(radii / upper)), "faster": 1.0},
        ]
    )  # fmt: skip


def bench(out: Path, *, device: str = "cpu", quick: bool = False, console: Console | None = None) -> pd.DataFrame:
    """256 inputs (16 when quick); prints the table and writes `batch.csv` into `out`."""
    console = console or Console()
    frame = measure(16 if quick else 256, 4 if quick else 32, device)
    show(frame, "certified radii of a batch, ℓ∞, digits", console)
    console.print(str(write_whole(out / "batch.csv", lambda path: frame.to_csv(path, index=False))))
    return frame
