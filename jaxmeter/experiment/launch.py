"""Launchers: how the runs of a sweep get done. A launcher is a function."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from jaxmeter.experiment.configs import Config
from jaxmeter.experiment.locks import Busy
from jaxmeter.experiment.runs import Outcome, attempt
from jaxmeter.experiment.stages import Progress
from jaxmeter.experiment.store import Store

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
