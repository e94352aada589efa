"""`lde explain`: one input of a model file, its bracket and scores on the terminal, its certificate in a file."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from formulations.errors import InputError
from lde_cvx.cli.common import err, out
from verification.checking.outward import down, down_words, up_words

if TYPE_CHECKING:
    from formulations.norms import Array
    from lde_cvx.explanation import Explanation


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .onnx file, or a .safetensors file of lde_cvx.models.save_model.")],
    data: Annotated[Path, typer.Option("--input", "-i", metavar="FILE", help="Inputs: .npy (one or a batch), or .csv (a row each).")],
    row: Annotated[int, typer.Option("--row", metavar="N", help="Which input of the file, from 0.")] = 0,
    norm: Annotated[str, typer.Option("--norm", help="1, 2 or inf.")] = "2",
    box: Annotated[
        tuple[float, float] | None, typer.Option("--box", metavar="LO HI", help="Range of every feature of the changed input.")
    ] = None,
    max_change: Annotated[float | None, typer.Option("--max-change", metavar="R", help="No feature may change by more.")] = None,
    target: Annotated[int | None, typer.Option("--target", metavar="T", help="Only flips to this class.")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", metavar="TAU", help="The decision is on which side of TAU output 0 lies.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="crown, crown-ibp, ibp, alpha-crown, dual-network; branching (splits ReLUs, else inputs) or exact (ReLU networks); or linear (certifies nothing).",
        ),
    ] = "crown",
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", metavar="S", help="Seconds for branching (10) or exact (no limit).")
    ] = None,
    to: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The certificate file.")] = Path("certificate.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    top: Annotated[int, typer.Option("--top", metavar="N", help="How many features to show.")] = 10,
) -> None:
    """Explain one decision: certified distance, witness, sensitivities, and a certificate file."""
    if not to.parent.is_dir():
        raise InputError(f"--out {to}: {to.parent} {'is no folder' if to.parent.exists() else 'does not exist; create it first'}.")
    for what, given in (("the model", model), ("the inputs", data)):
        if to.exists() and given.exists() and to.samefile(given):
            raise InputError(f"--out {to}: is {what}, which the certificate would overwrite; name another file.")
    if top < 0:
        raise InputError(f"--top {top}: must not be negative.")
    if row < 0:
        raise InputError(f"--row {row}: rows are counted from 0.")
    inputs, names = read_inputs(data)
    from lde_cvx.models import load_model

    network = load_model(model)
    constraints = allowed(box, max_change)
    from lde_cvx.explainer import LagrangeDualExplainer
    from lde_cvx.inputs import read_batch

    explainer = LagrangeDualExplainer(
        network,
        norm=norm,
        constraints=constraints,
        method=method,
        target=target,
        decision=side_of(threshold),
        time_limit=time_limit,
        feature_names=names,
        rederive=True,
    )
    batch = read_batch(explainer.model, inputs)
    if row >= len(batch):
        raise InputError(f"--row {row}: {data} holds {len(batch)} input{'s' if len(batch) > 1 else ''}, rows are counted from 0.")
    with err.status("bounding the network", spinner="dots"):
        explanation = explainer.explain(batch.x[row], quiet=True)
    if explanation.certificate is not None:
        explanation.certificate.save(to)
    if as_json:
        from lde_cvx.auditing.record import to_json

        out.print_json(json.dumps(to_json({**explanation.to_dict(), "certificate": str(to)}), allow_nan=False))
    else:
        show(explanation, top)
        out.print(
            f"certificate: {to}" if explanation.certificate is not None else "no certificate: method linear certifies nothing",
            soft_wrap=True,
        )


def show(e: Explanation, top: int) -> None:
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, words in (
        ("decision", e.decision.label),
        ("distance", f"{down_words(e.lower, 6)} ≤ {e.norm.label} ≤ {up_words(e.upper, 6)}   (gap {e.gap:.1%})"),
        ("verdict", f"{e.verdict.name}: {e.verdict.sentence(e.lower)}"),
        *([("binding rival", e.rival_words())] if e.decision.kind in ("classification", "rival", "pair") else []),
        ("linearised", linear_words(e)),
        *(("λ", words) for words in e.multiplier_words()),
    ):
        facts.add_row(f"[bold]{key}[/]", words)
    out.print(facts)
    table = Table()
    for column in ("feature", "value", "score λ|a|", "witness"):
        table.add_column(column, justify="left" if column == "feature" else "right")
    for r in e.to_frame(top).itertuples():
        table.add_row(
            str(r.feature),
            f"{r.value:.5g}",
            f"{r.score:.5g}" if e.reading.has_lambda else "–",
            f"{r.witness:.5g}" if e.witness is not None else "–",
        )
    out.print(table)


def linear_words(e: Explanation) -> str:
    if math.isnan(e.linear_radius):
        return "not solved; a looser set or a longer time limit may help"
    return f"{e.linear_radius:.6g}, {e.linear_validity.name.lower()}; certified up to {down(e.linear_certified_fraction, 2):.0%} of it"


def allowed(box: tuple[float, float] | None, max_change: float | None) -> Any:
    """The set that the options describe, None for all changes."""
    from formulations.sets import Box

    sets: list[Any] = [] if box is None else [Box(*box)]
    if max_change is not None:
        if not max_change > 0:
            raise InputError(f"--max-change {max_change}: must be positive.")
        sets.append(Box(-max_change, max_change, on="change", name="max_change"))
    return None if not sets else sets[0] if len(sets) == 1 else sets[0] & sets[1]


def side_of(threshold: float | None) -> Any:
    """Output 0 stays on its side of the threshold."""
    if threshold is None:
        return None
    from verification.decision import Decision

    return lambda outputs: Decision.threshold(0, threshold, len(outputs), above=bool(outputs[0] > threshold))


def read_inputs(path: Path) -> tuple[Array, list[str] | None]:
    """(numbers, feature names of a CSV header). Raises InputError naming the cell that is no number."""
    import numpy as np

    if not path.is_file():
        raise InputError(f"--input {path}: {'is a folder; name a file in it' if path.is_dir() else 'there is no such file'}.")
    if path.suffix == ".npy":
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header cannot ask for more memory than the file has bytes
            if values.dtype.kind not in "fiub":
                raise TypeError(f"it holds {values.dtype}")
            return np.array(values, dtype=float), None
        except Exception as e:  # numpy evaluates the header as Python text: SyntaxError, TokenError and others, without a common base
            why = (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
            raise InputError(f"--input {path}: is not a .npy file of numbers ({why}).") from None
    if path.suffix != ".csv":
        raise InputError(f"--input {path}: suffix {path.suffix!r} is not known; give .npy or .csv.")
    try:
        lines = [line for line in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if line]
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"--input {path}: is not a CSV table ({e}).") from None
    names = None if not lines or all(map(_is_number, lines[0])) else [cell.strip() for cell in lines.pop(0)]
    if not lines:
        raise InputError(f"--input {path}: holds no rows of numbers.")
    width = len(names or lines[0])
    for i, line in enumerate(lines):
        if len(line) != width:
            raise InputError(f"--input {path}: row {i} has {len(line)} columns, expected {width}; fill in the missing column.")
        wrong = next((k for k, cell in enumerate(line) if not _is_number(cell)), None)
        if wrong is not None:
            raise InputError(f"--input {path}: row {i}, column {names[wrong] if names else wrong}: {line[wrong]!r} is not a number.")
    return np.array(lines, dtype=float), names


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
