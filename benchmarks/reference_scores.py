"""Seconds and peak memory of every reference attack.

    python benchmarks/reference_scores.py [--records 50000] [--models 256] [--only lira rmia]

Each score runs in a process of its own, once on a few records (so that imports and compilation
count for neither figure) and then on all, from float64 signals `[models, records]`, half of the
models having seen each record. Peak is the most the process holds while it runs, less what it held
before the input was made, over the input (signals and membership): 1 is the input alone.
`leave_out` and `choose_a` attack with `lira` and `rmia_offline`.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import timing

from jaxmeter import reference

KEY = jax.random.key(0)
JOINT = 4  # signals, checkpoints or features of the scores that take several: so many less records


def given(k: int, n: int) -> dict[str, Any]:
    """Signals, log-probabilities as they come, and who saw what; complementary pairs."""
    random = np.random.default_rng(0)
    half = np.empty((k, n), bool)
    for i in range(0, k, 2):
        half[i] = random.random(n) < 0.5
        np.logical_not(half[i], out=half[i + 1])
    signals = np.empty((k, n))
    for row, seen in zip(signals, half, strict=True):
        row[:] = -np.log1p(np.exp(random.normal(size=n) - seen))
    return {"observed": -np.log1p(np.exp(random.normal(size=n))), "s": signals, "m": half}


def population(k: int, z: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the target and the models say of z other records that nobody saw."""
    signals = -np.log1p(np.exp(np.random.default_rng(1).normal(size=(k + 1, z))))
    return signals[0], signals[1:], np.zeros((k, z), bool)


def scores() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Name -> the score of `given`."""
    plain: dict[str, Callable[..., Any]] = {
        "lira": reference.lira,
        "lira, own": partial(reference.lira, variance="own"),
        "lira_offline": reference.lira_offline,
        "lira_offline_two_sided": reference.lira_offline_two_sided,
        "bavaria": reference.bavaria,
        "bavaria_offline": reference.bavaria_offline,
        "log_ratio": reference.log_ratio,
        "log_ratio_offline": reference.log_ratio_offline,
        "base_offline": reference.base_offline,
        "attack_r": reference.attack_r,
        "difficulty_calibration": reference.difficulty_calibration,
    }

    def several(d: dict[str, Any], last: bool) -> tuple[Any, Any, Any]:
        k, n = d["s"].shape[0], d["s"].shape[1] // JOINT * JOINT
        shape = (-1, JOINT) if last else (JOINT, -1)
        signals = d["s"][:, :n].reshape(k, *shape)
        return signals[0], signals, d["m"][:, : n // JOINT]

    def alone(score: Callable[..., Any], d: dict[str, Any]) -> Any:
        return score(d["observed"], d["s"], d["m"])

    def against(score: Callable[..., Any], d: dict[str, Any]) -> Any:
        calibration = reference.Population(*d["z"])
        return score(d["observed"], d["s"], d["m"], population=calibration)

    def joint(variance: Any, d: dict[str, Any]) -> Any:
        return reference.lira_joint(*several(d, False), variance=variance)

    def quantile(score: Callable[..., Any], d: dict[str, Any]) -> Any:
        x = d["s"].T  # the input's columns are features here, the same bytes
        half = len(x) // 2
        observed = d["observed"]
        return score(KEY, observed[:half], x[:half], observed[half:], x[half:])

    found: dict[str, Callable[[dict[str, Any]], Any]] = {
        **{name: partial(alone, score) for name, score in plain.items()},
        "rmia": partial(against, reference.rmia),
        "rmia_offline": partial(against, reference.rmia_offline),
        "lira_joint, shared": partial(joint, "shared"),
        "lira_joint, own": partial(joint, "own"),
        "quantile_gaussian": partial(quantile, reference.quantile_gaussian),
        "quantile_pinball": partial(quantile, reference.quantile_pinball),
    }
    found["shokri"] = lambda d: reference.shokri(KEY, *several(d, True))
    found["trajectory"] = lambda d: reference.trajectory(KEY, *several(d, False))
    found["choose_a"] = lambda d: reference.choose_a(d["s"], d["m"], population=d["z"][1:])
    found["leave_out"] = lambda d: reference.leave_out(reference.lira, d["s"], d["m"])
    return found


def peak() -> float:
    """Bytes this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def held() -> float:
    """Bytes this process holds now (Linux)."""
    with open("/proc/self/statm") as file:
        return resource.getpagesize() * int(file.read().split()[1])


def one(name: str, k: int, n: int) -> None:
    """Runs a score and prints seconds, the peak over the input, and the input's bytes."""
    run = scores()[name]
    few = given(k, 64 * JOINT)
    few["z"] = population(k, 64)
    run(few)
    before = held()
    d = given(k, n)
    size = sum(array.nbytes for array in d.values())
    d["z"] = population(k, 2500)
    start = time.perf_counter()
    run(d)
    print(time.perf_counter() - start, (peak() - before) / size, size)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--models", type=int, default=256)
    parser.add_argument("--only", nargs="*", default=list(scores()))
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        one(arguments.inside, arguments.models, arguments.records)
        return
    print(timing.machine(), timing.load(), sep="\n")
    print(f"{arguments.records:,} records, {arguments.models} models")
    print(f"\n{'score':26}{'seconds':>9}{'peak / input':>14}", flush=True)
    for name in arguments.only:
        command = [sys.executable, __file__, "--inside", name]
        command += ["--records", str(arguments.records), "--models", str(arguments.models)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, ratio, _ = map(float, done.stdout.split())
        print(f"{name:26}{seconds:9.2f}{ratio:14.2f}", flush=True)


if __name__ == "__main__":
    main()
