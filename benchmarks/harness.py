"""What the experiment harness costs beside the work it is for.

    python benchmarks/harness.py [--runs 40] [--finished 10000]

Overhead of a run: its wall time less the time inside the stages' own computations. Measured with
an empty store (cold), with all stages in the store but no run finished (warm, a new process'
memory of them dropped), and with the runs finished. Then `status` of a store with so many finished
runs, copies of one. On two cores of a server, Python 3.11: 32, 15 and 0.4 ms; 0.18 s.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import timing

import jaxmeter as jm
from jaxmeter import experiment
from jaxmeter.experiment.stages import graph
from jaxmeter.experiment.store.store import Store


def study(path: Path, runs: int) -> tuple[experiment.Config, dict]:
    """So many runs of cheap attacks on an untrained target."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    keras.Sequential([keras.layers.Input((8, 8, 1)), *layers]).save(path)
    base = experiment.Config(
        study="bench",
        seed=0,
        target=experiment.TargetFile(path=path),
        attacks=(*jm.TRAINING_FREE, jm.ClassWise()),
    )
    return base, {"seed": tuple(range(runs))}


def overheads(base: experiment.Config, axes: dict, store: Path) -> list[float]:
    """Milliseconds a run beside the stages' own computations."""
    inside = 0.0
    computed = Store._computed

    def timed(self: Store, stage: str, key: str, ingredients: dict, compute):  # noqa: ANN001, ANN202
        def work(folder: Path) -> None:
            nonlocal inside
            start = time.perf_counter()
            compute(folder)
            inside += time.perf_counter() - start

        return computed(self, stage, key, ingredients, work)

    Store._computed = timed  # type: ignore[method-assign, assignment]
    found = []
    try:
        used = Store(store)
        for config in experiment.expand(base, axes):
            inside, start = 0.0, time.perf_counter()
            outcome = experiment.attempt(config, used)
            found.append(1e3 * (time.perf_counter() - start - inside))
            assert outcome.state == "done", outcome.error
    finally:
        Store._computed = computed  # type: ignore[method-assign]
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--finished", type=int, default=10_000)
    arguments = parser.parse_args()
    print(timing.machine(), timing.load(), sep="\n")
    with tempfile.TemporaryDirectory() as place:
        base, axes = study(Path(place, "target.keras"), arguments.runs)
        start = time.perf_counter()
        graph.code(base)
        print(f"hashing the code, once a process: {1e3 * (time.perf_counter() - start):.0f} ms")
        store = Path(place, "store")
        print(f"\n{'ms a run beside the work':28}{'median':>9}{'largest':>9}")
        for name in ("cold", "warm", "finished"):
            if name == "warm":
                shutil.rmtree(store / "runs")
            found = overheads(base, axes, store)[1:]  # the first imports what all need
            print(f"{name:28}{np.median(found):9.1f}{max(found):9.1f}")
        names = copies(store / "runs", arguments.finished)
        start = time.perf_counter()
        assert len(experiment.status("bench", store)) == names
        print(f"status of {names:,} runs: {time.perf_counter() - start:.2f} s")


def copies(runs: Path, count: int) -> int:
    """Fills the folder up with copies of its first run."""
    first = next(iter(sorted(runs.iterdir())))
    for i in range(count - len(list(runs.iterdir()))):
        shutil.copytree(first, runs / f"bench-{i:012x}")
    return len(list(runs.iterdir()))


if __name__ == "__main__":
    main()
