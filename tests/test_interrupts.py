"""Ctrl-C that a search answers with what it has: the run that keeps answers must hear of it, and keep none of them."""

from __future__ import annotations

import signal
import threading

import pytest

from lde_cvx.interrupts import only_finished, until_interrupted


def cut_short() -> str:
    """What a search does: a signal comes, and it answers all the same."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return "part"
    return "whole"


def test_what_a_search_cut_short_answers_is_not_finished() -> None:
    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []
    with only_finished() as finished:
        assert finished("whole") == "whole"
        tell = until_interrupted(lambda what, *_: told.append(what), finished)
        tell("first", 0, 1)
        part = cut_short()
        assert part == "part", "the search itself sees a KeyboardInterrupt, as ever"
        with pytest.raises(KeyboardInterrupt):
            finished(part)
        with pytest.raises(KeyboardInterrupt):
            tell("second", 0, 1)
    assert told == ["first"]
    assert signal.getsignal(signal.SIGINT) is before
    with only_finished() as finished:
        assert finished(0) == 0, "another run begins anew"


def test_an_interrupt_that_nobody_answers_ends_the_run() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), only_finished():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_who_ignores_the_signal_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with only_finished() as finished:
            assert finished(cut_short()) == "whole"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_run_it() -> None:
    answers: list[int] = []

    def work() -> None:
        with only_finished() as finished:
            answers.append(finished(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [1]
