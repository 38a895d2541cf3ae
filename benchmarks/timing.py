"""How the benchmarks measure: in turns, warm, medians; and what they say about the machine."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax

_PAUSE = 0.02  # seconds in which PyTorch's threads stop spinning


def threads() -> int:
    """Threads that XLA's CPU backend runs on."""
    return len(os.sched_getaffinity(0))


def machine(torch: Any = None) -> str:
    """One line: versions, device, threads. Gives torch, if passed, as many threads as XLA has."""
    names = ["jaxmeter", "jax", "keras"]
    if torch is not None:
        names += ["torch", "opacus"]
        torch.set_num_threads(threads())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    device = jax.devices()[0]
    return (
        f"Python {platform.python_version()}, {versions}; {device.device_kind} on "
        f"{device.platform}, {threads()} threads"
    )


def load() -> str:
    """How busy the machine is; PyTorch's threads wait for each other and suffer most."""
    busy = os.getloadavg()[0]
    warning = ": other programs run, so do not trust the ratios" if busy > threads() + 0.5 else ""
    return f"load {busy:.1f} on {threads()} processors{warning}"


def medians(runs: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 2) -> dict[str, float]:
    """Median seconds of each run until its result is ready.

    All run once a round, in alternating order, so that a busy machine and the neighbours' caches
    disturb them alike. Freeing a result is not timed.
    """
    pause = _PAUSE if "torch" in sys.modules else 0
    for run in (run for run in runs.values() for _ in range(warm)):
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            time.sleep(pause)
            start = time.perf_counter()
            result = jax.block_until_ready(runs[name]())
            seconds[name].append(time.perf_counter() - start)
            del result
    return {name: statistics.median(times) for name, times in seconds.items()}
