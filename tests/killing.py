"""Sweeps that are killed again and again, for test_experiment_store.

    python killing.py STORE TARGET PLAN

Forks a process for each item of PLAN, a JSON list: a number of seconds after which it is killed, a
string "k" for dying at its k-th file operation, null for a sweep to its end. A list of items is so
many processes at once. TARGET is a .keras file, or "train". Prints how each ended, and damage
found after each.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: F401
import sklearn.datasets  # noqa: F401

import jaxmeter as jm
from jaxmeter import disk, experiment
from jaxmeter.experiment import config


def study(target: str) -> tuple[experiment.Config, config.Axes]:
    """24 small runs that share stages."""
    trained = target == "train"
    base = experiment.Config(
        study="killed",
        seed=0,
        data=experiment.Digits(members=120, nonmembers=120),
        target=experiment.Mlp(widths=(8,), training=experiment.Training(epochs=2))
        if trained
        else experiment.TargetFile(path=Path(target)),
        attacks=(jm.NegativeLoss(), jm.GradientNorm(), jm.ClassWise())
        + ((jm.Learned(config=jm.FitConfig(epochs=2, members=5)),) if trained else ()),
    )
    return base, {
        "seed": (0, 1, 2) if trained else (0, 1, 2, 3),
        "target.training.epochs" if trained else "device_mib": (1, 2) if trained else (512, 1024),
        "known": (None, 20, 30, 40) if trained else (None, 20, 30),
    }


def dying(k: int) -> None:
    """Kills this process at its k-th operation on files, half way through if it is a write."""
    left = [k]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def halved(function, place):
        def call(path: Path, content: bytes, **how) -> None:
            left[0] -= 1
            if left[0] == 0:
                place(path).write_bytes(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            function(path, content, **how)

        return call

    disk.write = halved(disk.write, lambda path: path)
    disk.replace = halved(disk.replace, disk.beside)
    for name in ("rename", "replace", "fsync", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def started(store: str, target: str, item: float | str | None) -> int:
    """A process that sweeps."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if isinstance(item, str):
            dying(int(item))
        summary = experiment.sweep(*study(target), store)
        os._exit(len(summary.failed))
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(99)


def main() -> None:
    """See above."""
    store, target, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    ends, damage = [], []
    for item in plan:
        items = item if isinstance(item, list) else [item]
        pids = [started(store, target, one) for one in items]
        if isinstance(item, float | int):
            time.sleep(item)
            os.kill(pids[0], signal.SIGKILL)
        ends.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
        found = [d for d in experiment.verify(store) if d.reason != "status.json is missing."]
        damage += [f"{d.path}: {d.reason}" for d in found]
    print(json.dumps({"ends": ends, "damage": damage}))


if __name__ == "__main__":
    main()
