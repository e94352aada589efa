"""The methods of `LagrangeDualExplainer` by name; whatever offers a choice of them asks here."""

from __future__ import annotations

from formulations.errors import InputError

DUAL = "dual-network"
BOUNDS = ("ibp", "crown-ibp", "crown", "alpha-crown", DUAL)  # those of `certified_radius`
SEARCHES = ("branching", "exact")  # go on from CROWN's radii by branch and bound
CERTIFYING = (*BOUNDS, *SEARCHES)
CHAINS = (DUAL, "exact")  # networks of affine layers and ReLUs alone
METHODS = ("linear", *CERTIFYING)


def known(method: str) -> str:
    """The name itself. Raises InputError on another."""
    return _one_of(METHODS, method)


def certifying(method: str) -> str:
    """The name of a method that certifies. Raises InputError on another."""
    return _one_of(CERTIFYING, method)


def _one_of(names: tuple[str, ...], method: str) -> str:
    if method not in names:
        what = "certifies nothing" if method in METHODS else "is not known"
        raise InputError(f"method={method!r} {what}; use one of {', '.join(names)}.")
    return method
