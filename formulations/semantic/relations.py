r"""Linear relations between columns, read from text with exact coefficients.

    relation  := sum ("<=" | ">=" | "==") sum
    sum       := ["+" | "-"] product (("+" | "-") product)*
    product   := factor (("*" | "/") factor)*               at most one factor may hold columns; divisors are numbers
    factor    := number | column | `column with spaces` | "(" sum ")" | "-" factor

Everything is moved to one side:  Σ c_i·x_i ≤ r  (or = r), with rational c and r, so `0.1 * a` means one tenth and not its float.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from formulations.errors import InputError

MAX_DEPTH = 40  # nested parentheses: far beyond any real relation, far below Python's recursion limit
MAX_EXPONENT = 300  # 1e±300 still fits a float, and keeps the exact numbers short

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|`(?P<quoted>[^`]+)`"
    r"|(?P<compare><=|>=|==|≤|≥)|(?P<sign>[-+*/()])|(?P<other>\S))"
)
_COMPARISONS = {"<=": "<=", "≤": "<=", ">=": ">=", "≥": ">=", "==": "=="}


@dataclass(frozen=True)
class Relation:
    """``Σ coefficient·column ≤ bound`` (``= bound`` when `equality`), in the columns' own units; `text` is what the user wrote."""

    text: str
    coefficients: tuple[tuple[str, Fraction], ...]
    bound: Fraction
    equality: bool

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.coefficients)


def parse_relation(text: str, columns: Iterable[str]) -> Relation:
    """The relation that `text` states over `columns`.

    Raises InputError with the position (counted from 1) and what may stand there, on a typo, an unknown column or a product of columns.
    """
    return _Parser(text, tuple(columns)).relation()


def closest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known ones."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names[:30])}{' …' if len(names) > 30 else ''}."


@dataclass
class _Linear:
    """Σ terms·column + constant, with the place in the text where it began."""

    terms: dict[str, Fraction] = field(default_factory=dict)
    constant: Fraction = Fraction(0)

    def plus(self, other: _Linear, sign: int) -> _Linear:
        terms = dict(self.terms)
        for name, c in other.terms.items():
            terms[name] = terms.get(name, Fraction(0)) + sign * c
        return _Linear(terms, self.constant + sign * other.constant)

    def times(self, c: Fraction) -> _Linear:
        return _Linear({name: c * v for name, v in self.terms.items()}, c * self.constant)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


class _Parser:
    def __init__(self, text: str, columns: tuple[str, ...]) -> None:
        if not isinstance(text, str) or len(text) > 2000:
            raise InputError(f"relation {text!r:.60}: must be a text of at most 2000 characters such as 'a <= 2 * b'.")
        self.text, self.columns, self.next, self.depth = text, columns, 0, 0
        self.tokens = [
            _Token(str(m.lastgroup), str(m[str(m.lastgroup)]), m.start(str(m.lastgroup)) + 1) for m in _TOKEN.finditer(text.rstrip())
        ]
        self.tokens.append(_Token("end", "the end", len(text) + 1))

    def relation(self) -> Relation:
        left = self.sum()
        token = self.take()
        if token.kind != "compare":
            hint = " (the set is closed: write <= or >=)" if token.text in ("<", ">") else ""
            self.fail(token, f"'<=', '>=', '==' or an operator{hint}")
        right = self.sum()
        end = self.take()
        if end.kind == "compare":
            self.fail(end, "the end: one comparison per relation, write the second as its own relation")
        if end.kind != "end":
            self.fail(end, "an operator or the end")
        kind = _COMPARISONS[token.text]
        gap = right.plus(left, -1) if kind == ">=" else left.plus(right, -1)  # gap ≤ 0 (or = 0)
        kept = tuple((name, c) for name, c in gap.terms.items() if c)
        if not kept:
            raise InputError(f"relation {self.text!r}: no column is left after both sides are collected; drop it.")
        try:
            for number in (*(c for _, c in kept), gap.constant):
                float(number)
        except OverflowError:
            raise InputError(f"relation {self.text!r}: a collected coefficient exceeds 1e308; rescale the relation.") from None
        return Relation(self.text, kept, -gap.constant, kind == "==")

    def sum(self) -> _Linear:
        total = self.product()
        while self.peek().text in ("+", "-") and self.peek().kind == "sign":
            sign = 1 if self.take().text == "+" else -1
            total = total.plus(self.product(), sign)
        return total

    def product(self) -> _Linear:
        value = self.factor()
        while self.peek().text in ("*", "/") and self.peek().kind == "sign":
            token = self.take()
            other = self.factor()
            if token.text == "/":
                if other.terms or not other.constant:
                    self.fail(token, "a number other than 0 after '/'")
                value = value.times(1 / other.constant)
            elif other.terms and value.terms:
                self.fail(token, "a number on one side of '*': a product of columns is not linear")
            else:
                value = value.times(other.constant) if value.terms else other.times(value.constant)
        return value

    def factor(self) -> _Linear:
        token = self.take()
        if token.kind == "number":
            return _Linear({}, self.number(token))
        if token.kind in ("name", "quoted"):
            if token.text not in self.columns:
                near = closest(token.text, self.columns)
                raise InputError(f"relation {self.text!r}: position {token.at}: no numeric column {token.text!r}; {near}")
            return _Linear({token.text: Fraction(1)})
        if token.kind == "sign" and token.text in ("-", "+", "("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.fail(token, f"at most {MAX_DEPTH} nested signs and parentheses")
            if token.text == "(":
                inner = self.sum()
                if self.peek().text != ")":
                    self.fail(self.peek(), "')' or an operator")
                self.take()
            else:
                inner = self.factor().times(Fraction(-1 if token.text == "-" else 1))
            self.depth -= 1
            return inner
        self.fail(token, "a number, a column or '('")
        raise AssertionError  # fail raises

    def number(self, token: _Token) -> Fraction:
        exponent = re.search(r"[eE]([+-]?\d+)", token.text)
        if exponent and abs(int(exponent[1][:12])) > MAX_EXPONENT:
            self.fail(token, f"an exponent of at most {MAX_EXPONENT}")
        return Fraction(token.text)

    def take(self) -> _Token:
        token = self.peek()
        self.next += 1
        return token

    def peek(self) -> _Token:
        return self.tokens[min(self.next, len(self.tokens) - 1)]

    def fail(self, token: _Token, expected: str) -> None:
        found = token.text if token.kind == "end" else repr(token.text)
        raise InputError(f"relation {self.text!r}: position {token.at}: found {found}, expected {expected}.")
