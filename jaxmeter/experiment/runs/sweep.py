"""Sweeps: all runs of a study, whatever becomes of some of them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxmeter.disk import Busy
from jaxmeter.experiment.config import Axes, Config, expand
from jaxmeter.experiment.runs.run import Outcome, attempt
from jaxmeter.experiment.stages.graph import Progress
from jaxmeter.experiment.store.store import Store, opened

# From configs and a store to one outcome a config, in any order, as they come.
Launcher = Callable[[Sequence[Config], Store], Iterable[Outcome]]


def in_process(
    configs: Sequence[Config], store: Store, *, progress: Progress | None = None
) -> Iterator[Outcome]:
    """One run after another in this process.

    Runs that another process is at are left until the others are done, so that two sweeps of one
    study share the work.
    """
    waiting = deque(configs)
    for _ in range(len(waiting)):
        config = waiting.popleft()
        try:
            yield attempt(config, store, progress=progress, wait=False)
        except Busy:
            waiting.append(config)
    for config in waiting:
        yield attempt(config, store, progress=progress)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of a sweep's runs, in the order in which they ended."""

    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Those that did not finish; the next sweep tries them again."""
        return tuple(outcome for outcome in self.outcomes if outcome.state != "done")

    @property
    def computed(self) -> int:
        """How many stages were computed."""
        return sum(len(outcome.computed) for outcome in self.outcomes)


def sweep(
    base: Config,
    axes: Axes,
    store: Store | str | os.PathLike[str],
    *,
    launcher: Launcher = in_process,
    shard: tuple[int, int] = (1, 1),
    done: Callable[[Outcome], Any] | None = None,
) -> Summary:
    """Runs a study; what is there already is not computed again, so this is also how to resume.

    A stage that failed is not tried again for other runs that need it, but by the next sweep.

    Args:
      base: see `expand`.
      axes: see `expand`.
      store: the folder, or URL, that keeps what was computed.
      launcher: how the runs get done.
      shard: `(i, n)` for the i-th of n parts, from 1, for jobs of an array; the parts depend on
        nothing but `base` and `axes`.
      done: called with each outcome as it comes.

    Raises:
      ConfigError: if a config is not valid; nothing is run then.
    """
    configs = shard_of(expand(base, axes), shard)
    outcomes = []
    for outcome in launcher(configs, opened(store).for_a_sweep()):
        outcomes.append(outcome)
        if done is not None:
            done(outcome)
    return Summary(outcomes=tuple(outcomes))


def shard_of(configs: Sequence[Config], shard: tuple[int, int]) -> Sequence[Config]:
    """A run of neighbours, which share most stages; all shards together are all configs.

    >>> [list(shard_of(range(5), (i, 3))) for i in (1, 2, 3)]
    [[0], [1, 2], [3, 4]]
    """
    i, n = shard
    if not 1 <= i <= n:
        raise ValueError(f"shard {i}/{n}: it takes 1/{n} to {n}/{n}.")
    return configs[len(configs) * (i - 1) // n : len(configs) * i // n]
