"""A run in a process of its own on any machine: what it needs to know, and what it tells."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from jaxmeter.disk import Busy
from jaxmeter.experiment.runs.run import Outcome, attempt
from jaxmeter.experiment.runs.source import SourceBundle, unpacked
from jaxmeter.experiment.serialization import ConfigError, from_json
from jaxmeter.experiment.stages import graph
from jaxmeter.experiment.store.store import StoreError, opened

_PASSED_ON = ("JAX_", "XLA_", "PJRT_NPROC", "KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")
_SECONDS = 0.2  # between two words on how far a stage is


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all runs of a sweep have in common.

    Attributes:
      study: its name.
      store: the store's folder, absolute, or its URL.
      token: a file of the store that is there while the sweep is; None not to look for one.
      folder: what relative paths in configs are relative to.
      shipment: the study's source.
      shared: whether what is written to the store is for others too.
    """

    study: str
    store: str
    token: str | None
    folder: str
    shipment: SourceBundle
    shared: bool = False


def environment(cpus: float, gpus: float, given: Mapping[str, str]) -> dict[str, str]:
    """Variables for a process that shares a machine; XLA reads them when it starts.

    Args:
      cpus: of the machine; so many threads, one at least.
      gpus: a share of one below 1: the process takes 0.9 of it, of the device's memory, and no
        more. 0 for none: JAX then looks for none.
      given: this process' variables. Those on which results depend go along, and go before.

    >>> environment(2, 0.5, {"JAX_ENABLE_X64": "1", "HOME": "/root"})
    {'PJRT_NPROC': '2', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.450', 'JAX_ENABLE_X64': '1'}
    """
    found = {"PJRT_NPROC": str(max(1, round(cpus)))}
    if gpus == 0:
        found["JAX_PLATFORMS"] = "cpu"
    elif gpus < 1:
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * gpus:.3f}"
    passed_on = {name: value for name, value in given.items() if name.startswith(_PASSED_ON)}
    if gpus > 0:
        passed_on.pop("JAX_PLATFORMS", None)  # of a machine that may have no GPU
    return {**found, **passed_on}


def attempted(
    config: str, code: str, errand: Task, post: Callable[[str, int, int], None]
) -> Outcome | None:
    """As `attempt`, of a config's JSON; None if another process does this run.

    Args:
      config: see `to_json`.
      code: the version of its code where the sweep was started.
      errand: the rest.
      post: told how far it is, as (stage, done, total), and what to say, as (text, -1, -1).
    """
    spoken = [0.0]

    def progress(label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if (done, total) in ((0, 1), (1, 1)) or now - spoken[0] > _SECONDS:
            spoken[0] = now
            post(label, done, total)

    def say(text: str) -> None:
        post(f"{text} ({socket.gethostname()})", -1, -1)

    try:
        if Path(errand.folder).is_dir():
            os.chdir(errand.folder)
        with redirect_stdout(sys.stderr):
            unpacked(errand.shipment)
            found = from_json(config)
            if graph.code(found) != code:
                raise ConfigError(
                    f"{socket.gethostname()} has other code than the sweep was started with. "
                    "Install the same jaxmeter, and the same packages of the study, there."
                )
            store = opened(errand.store, say, shared=errand.shared)
            if errand.token and not (store.path / errand.token).exists():
                raise StoreError(
                    f"{store.path} on {socket.gethostname()} is not the sweep's store. Name a "
                    "folder that all nodes share, or a URL."
                )
            return attempt(found, store, progress=progress, wait=False)
    except Busy:
        return None
    except Exception as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        return Outcome(run=errand.study, state="failed", error=f"{kind}{error}")
