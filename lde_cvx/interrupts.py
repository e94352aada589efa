"""Ctrl-C in a run that keeps its answers: a search answers an interrupt with what it has, a valid bound but no finished measurement."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, TypeVar

from lde_cvx.progress import Progress

Answer = TypeVar("Answer")


class Finished(Protocol):
    def __call__(self, answer: Answer) -> Answer:
        """The answer itself. Raises KeyboardInterrupt where one came while it was made and a search swallowed it."""


@contextmanager
def only_finished() -> Iterator[Finished]:
    """SIGINT raises KeyboardInterrupt as ever, and is remembered: what is kept goes through the function yielded, which raises it again.

    Only the main thread hears signals, and a process that was started to ignore SIGINT goes on ignoring it: there every answer passes.
    """
    came, before = False, signal.getsignal(signal.SIGINT)

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        if callable(before):
            before(number, frame)

    def finished(answer: Answer) -> Answer:
        if came:
            raise KeyboardInterrupt
        return answer

    heard = callable(before)
    if heard:
        try:
            signal.signal(signal.SIGINT, hear)
        except ValueError:  # another thread than the main one
            heard = False
    try:
        yield finished
    finally:
        if heard:
            signal.signal(signal.SIGINT, before)


def until_interrupted(tell: Progress, finished: Finished) -> Progress:
    """`tell`, which ends the stages after one that was interrupted."""
    return lambda what, done, total: tell(finished(what), done, total)
