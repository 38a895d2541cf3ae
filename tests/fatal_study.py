"""A study whose targets kill their process, for test_experiment_ray; as a script, its sweep."""

import json
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from fatal_width import WIDTH

import jaxmeter as jm
from jaxmeter import experiment


@dataclass(frozen=True, kw_only=True)
class Fatal:
    """A classifier that kills the process that makes it so many times, and then is made."""

    folder: Path
    deaths: int = 0

    def trained(self, x, y, *, n_classes, seed) -> Any:
        """As recipes have it."""
        died = len(list(self.folder.glob(f"died-{self.deaths}-*")))
        if died < self.deaths:
            (self.folder / f"died-{self.deaths}-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        shares = ("PJRT_NPROC", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_PLATFORMS", "JAX_ENABLE_X64")
        found = {name: os.environ.get(name) for name in shares}
        (self.folder / f"process-{os.getpid()}").write_text(json.dumps(found))
        print("the target prints")
        warnings.warn("the target warns", stacklevel=1)
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Flatten(), keras.layers.Dense(WIDTH, "tanh", name="hidden")]
        layers += [keras.layers.Dense(n_classes, "softmax", name="out")]
        return keras.Sequential([keras.layers.Input(x.shape[1:]), *layers])


@dataclass(frozen=True, kw_only=True)
class Study(experiment.Config):
    """With a target of its own."""

    target: Fatal


BASE = Study(
    study="fatal",
    seed=0,
    data=experiment.Digits(members=100, nonmembers=100),
    target=Fatal(folder=Path("marks")),
    attacks=(jm.NegativeLoss(), jm.GradientNorm()),
)
AXES = ({}, {"known": 20}, {"target.deaths": 1}, {"target.deaths": 9})
if __name__ == "__main__":
    if "--shared-gpu" in sys.argv:  # as Ray would find it on a machine with one
        import ray

        sys.argv.remove("--shared-gpu")
        ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
    experiment.main(BASE, AXES)
