"""Seconds, by the clock and of the processor, and peak memory of a call."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Cost:
    """result of the call; seconds of wall clock; cpu_seconds of this process, in all its threads.

    peak_bytes: how far memory rose above its start (of the process, sampled every 2 ms; on a GPU, exactly).
    """

    result: Any
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(call: Callable[[], Any]) -> Cost:
    """Run `call` once and measure it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base, begun, busy = torch.cuda.memory_allocated(), time.perf_counter(), time.process_time()
        result = call()
        torch.cuda.synchronize()
        seconds, spent = time.perf_counter() - begun, time.process_time() - busy
        return Cost(result, seconds, spent, int(torch.cuda.max_memory_allocated() - base))
    stop, peak, base = threading.Event(), [0], _resident()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], _resident() - base)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begun, busy = time.perf_counter(), time.process_time()
    try:
        result = call()
        seconds, spent = time.perf_counter() - begun, time.process_time() - busy
    finally:
        stop.set()
        watcher.join()
    return Cost(result, seconds, spent, max(peak[0], _resident() - base, 0))


def _resident() -> int:
    """Bytes of the process in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
