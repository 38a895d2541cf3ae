"""Which runs of a sweep may start now, so that none waits for a stage that another computes."""

import time
from collections.abc import Callable, Sequence

from jaxmeter.experiment.config import Config
from jaxmeter.experiment.stages.graph import Ahead

Look = Callable[[Config], Ahead]


class StageQueue:
    """Runs waiting for their turn, by position.

    A run waits while another computes the first stage that it has not. What stage this is says the
    graph of stages, which is asked again when the stage is there: a later stage's key follows from
    what the earlier ones gave. What the store does not show here (a working copy of a URL, workers
    on other devices) is taken to be at work until its run ends.
    """

    def __init__(self, configs: Sequence[Config], look: Look) -> None:
        """All runs wait.

        Args:
          configs: of the runs.
          look: how far a run has come in the store, see `graph.ahead`.
        """
        self._configs, self._look = configs, look
        self._ahead: dict[int, Ahead] = {}
        self._waiting = {i: 0.0 for i in range(len(configs))}  # until when, at least
        self._at_work: set[int] = set()
        self._unseen: set[str] = set()  # computed by runs that are done, and not shown here

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def next(self) -> int | None:
        """A run that may start, which is then at work; None if there is none now."""
        now = time.monotonic()
        busy = {self._first(i) for i in self._at_work} - {None}
        for i, until in self._waiting.items():
            if until <= now and (self._first(i) not in busy or self._first(i) in self._unseen):
                del self._waiting[i]
                self._at_work.add(i)
                return i
        return None

    def forget(self) -> None:
        """Asks anew of every run how far it has come."""
        self._ahead.clear()

    def passed(self, i: int) -> None:
        """A run at work has a stage more."""
        self._ahead.pop(i, None)

    def ended(self, i: int, *, done: bool = False) -> None:
        """A run is no longer at work; if it is done, all its stages are there."""
        self._at_work.discard(i)
        self._ahead.pop(i, None)
        if done and (key := self._first(i)) is not None:
            self._unseen.add(key)

    def again(self, i: int, *, seconds: float = 0.0) -> None:
        """A run that ended waits anew, before the others."""
        self._waiting = {i: time.monotonic() + seconds, **self._waiting}

    def _first(self, i: int) -> str | None:
        """The key of the first stage that is not there; None if all are, or nothing is known."""
        return self._known(i).first

    def _known(self, i: int) -> Ahead:
        known = self._ahead.get(i)
        if known is None or known.is_there():
            known = self._ahead[i] = self._look(self._configs[i])
        return known
