r"""Decisions as margin rows.

A decision at x0 is a set of rows  m_k(δ) = q_k · f(x0 + δ) + s_k ;  it stands while all are > 0, and flips where some m_k ≤ 0.

    classification   q_t = e_c − e_t, s = 0           for every rival t ≠ c
    rival            the one row of a given rival t
    threshold (P1)   q = ±e_c, s = ∓τ                  f_c stays above (below) τ
    pair (P2)        q = e_c − e_t, s = −ε             f_c stays ε ahead of f_t
    band             f_o − low > 0 and high − f_o > 0  regression
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formulations.errors import InputError
from formulations.given import whole
from formulations.norms import Array


@dataclass(frozen=True, eq=False)
class Decision:
    """K margin rows over m outputs: margins = outputs @ rows.T + shifts.

    rows (K, m), shifts (K,), rivals (K,) the class (or side) that wins when row k falls, label: words for reports.
    """

    rows: Array
    shifts: Array
    rivals: tuple[int, ...]
    label: str
    kind: str

    def margins(self, outputs: Array) -> Array:
        """(n, m) outputs → (n, K) margins."""
        return np.asarray(np.asarray(outputs, dtype=float) @ self.rows.T + self.shifts)

    def stands(self, outputs: Array) -> Array:
        """(n,) booleans: does the decision stand?"""
        return np.asarray((self.margins(outputs) > 0).all(-1))

    def only(self, k: int) -> Decision:
        """The decision of row k alone."""
        return Decision(self.rows[k : k + 1], self.shifts[k : k + 1], (self.rivals[k],), self.label, self.kind)

    @staticmethod
    def classification(winner: int, classes: int) -> Decision:
        """Class `winner` keeps the largest of `classes` outputs."""
        c = _index("winner", winner, classes)
        if classes < 2:
            raise InputError("Decision.classification: the model has one output; use Decision.threshold(output, tau, outputs=1).")
        rivals = tuple(t for t in range(classes) if t != c)
        rows = -np.eye(classes)[list(rivals)]
        rows[:, c] = 1.0
        return Decision(rows, np.zeros(len(rivals)), rivals, f"class {c} stays ahead of every other class", "classification")

    @staticmethod
    def rival(winner: int, rival: int, classes: int) -> Decision:
        """Class `winner` stays ahead of class `rival`."""
        c, t = _index("winner", winner, classes), _index("rival", rival, classes)
        if c == t:
            raise InputError(f"Decision.rival: the model already answers class {c}; name another class to flip to.")
        row = np.zeros((1, classes))
        row[0, c], row[0, t] = 1.0, -1.0
        return Decision(row, np.zeros(1), (t,), f"class {c} stays ahead of class {t}", "rival")

    @staticmethod
    def threshold(output: int, tau: float, outputs: int, *, above: bool = True) -> Decision:
        """f_output stays above (or below) tau."""
        o, tau = _index("output", output, outputs), _level("tau", tau)
        row = np.zeros((1, outputs))
        row[0, o] = 1.0 if above else -1.0
        return Decision(
            row, np.array([-tau if above else tau], dtype=float), (0 if above else 1,),
            f"output {o} stays {'above' if above else 'below'} {tau:g}", "threshold",
        )  # fmt: skip

    @staticmethod
    def pair(winner: int, rival: int, classes: int, *, epsilon: float = 0.0) -> Decision:
        """Class `winner` stays more than epsilon ahead of class `rival`."""
        base, epsilon = Decision.rival(winner, rival, classes), _level("epsilon", epsilon)
        return Decision(base.rows, np.array([-epsilon]), base.rivals, f"{base.label} by {epsilon:g}", "pair")

    @staticmethod
    def band(low: float, high: float, *, output: int = 0, outputs: int = 1) -> Decision:
        """Regression: low < f_output < high."""
        if not low < high:
            raise InputError(f"Decision.band: low={low} must lie below high={high}.")
        o = _index("output", output, outputs)
        rows = np.zeros((2, outputs))
        rows[0, o], rows[1, o] = 1.0, -1.0
        return Decision(rows, np.array([-low, high], dtype=float), (0, 1), f"output {o} stays within ({low:g}, {high:g})", "band")

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind, "label": self.label, "rivals": list(self.rivals),
            "rows": [[float(v).hex() for v in r] for r in self.rows], "shifts": [float(v).hex() for v in self.shifts],
        }  # fmt: skip


def _index(name: str, value: int, size: int) -> int:
    k = whole(f"Decision: {name}", value)
    if not 0 <= k < size:
        raise InputError(f"Decision: {name}={k} is not one of the model's outputs 0 … {size - 1}.")
    return k


def _level(name: str, value: float) -> float:
    if not np.isfinite(value):
        raise InputError(f"Decision: {name}={value} is not finite; give a number.")
    return float(value)
