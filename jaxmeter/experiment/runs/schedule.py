"""Which runs of a sweep may start now, so that none waits for a stage that another computes."""

import time
from collections.abc import Mapping, Sequence

from jaxmeter.attacks.suite import needing_references
from jaxmeter.experiment.config import Config, Pool, TargetFile
from jaxmeter.experiment.serialization import plain
from jaxmeter.experiment.store.fingerprint import digest


class StageQueue:
    """Runs waiting for their turn, by position.

    Of runs that share a stage one is let through; the others follow when the stage is there. It
    goes by configs alone, so it is a guess in both directions (the store's locks are what is
    sure): two runs may meet at a stage's lock, or one wait that need not.
    """

    def __init__(self, configs: Sequence[Config]) -> None:
        """All runs wait."""
        self._stages = [shared_stages(config) for config in configs]
        self._waiting = {i: 0.0 for i in range(len(configs))}  # until when, at least
        self._there: set[str] = set()
        self._busy: dict[str, int] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def next(self) -> int | None:
        """A run that may start, which is then at work; None if there is none now."""
        now = time.monotonic()
        for i, until in self._waiting.items():
            missing = [k for k in self._stages[i].values() if k not in self._there]
            if until <= now and not any(k in self._busy for k in missing):
                del self._waiting[i]
                self._busy.update(dict.fromkeys(missing, i))
                return i
        return None

    def passed(self, i: int, label: str) -> None:
        """A run at work has a stage."""
        key = self._stages[i].get(label)
        if key is not None:
            self._there.add(key)
            self._busy.pop(key, None)

    def ended(self, i: int, *, done: bool = False) -> None:
        """A run is no longer at work; if it is done, all its stages are there."""
        self._busy = {key: at for key, at in self._busy.items() if at != i}
        if done:
            self._there.update(self._stages[i].values())

    def again(self, i: int, *, seconds: float = 0.0) -> None:
        """A run that ended waits anew, before the others."""
        self._waiting = {i: time.monotonic() + seconds, **self._waiting}


def shared_stages(config: Config) -> Mapping[str, str]:
    """What other runs may need too, by the labels of `graph.make`: equal text, the same stage."""
    draw = [plain(config.data), config.seed]
    records = digest(["records", draw, plain(config.fractions), config.overlap])
    pool = config.target if isinstance(config.target, Pool) else None
    if pool:
        records = digest([records, pool.models, pool.index, plain(pool.stranger)])
    # A stranger to a pool is trained, a model of it is there.
    trains = pool.stranger is not None if pool else not isinstance(config.target, TargetFile)
    target = digest(["target", draw if trains else plain(config.data), plain(config.target)])
    # What an attack reads of the target is its spec, or follows from all of it.
    reads = [
        [type(attack).__name__, plain(getattr(attack, "spec", attack))] for attack in config.attacks
    ]
    signals = digest(["signals", records, target, reads, config.device_mib])
    found = {"records": records}
    if trains:
        found["target"] = target
    found["intake"] = digest(["intake", target])
    if pool is None or trains:
        found["signals"] = signals
    if pool:
        of_all = [draw, pool.models, plain(pool.recipe), plain(pool.architecture)]
        found["pool"] = digest(["pool", of_all])
        read = plain(pool.spec) if pool.spec else reads
        found["pool_signals"] = digest(["pool_signals", of_all, read, config.device_mib])
    if config.references is not None:
        needing = [plain(attack) for attack in needing_references(config.attacks)]
        found["references"] = digest([records, target, plain(config.references), needing])
    for attack in config.attacks:
        given = [plain(config.references)] if attack.needs_references else []
        key = digest(["attack", records, target, plain(attack), config.known, *given])
        found[f"attack:{attack.name}"] = key
    return found
