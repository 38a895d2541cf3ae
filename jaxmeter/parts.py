"""What attacks are given and what they give back."""

from typing import NamedTuple

import jax
from numpy.typing import NDArray

from jaxmeter.data import Records
from jaxmeter.signals import Signals
from jaxmeter.spread import Spread


class SeenBy(NamedTuple):
    """Records as k reference models see them.

    Attributes:
      signals: of each model, leaves `[k, n, ...]`.
      was_member: whether model k was trained on record n, bool `[k, n]`.
    """

    signals: Signals
    was_member: NDArray

    def rows(self, index: NDArray | slice) -> "SeenBy":
        """The same of some of the records."""
        signals = jax.tree.map(lambda leaf: leaf[:, index], self.signals)
        return SeenBy(signals, self.was_member[:, index])


class Part(NamedTuple):
    """One part of the records with its signals; `references` where there are reference models."""

    records: Records
    signals: Signals
    references: SeenBy | None = None


class Epoch(NamedTuple):
    """One epoch of fitting a learned attack."""

    epoch: int
    loss: float
    select_loss: float
    select_auc: float


class Found(NamedTuple):
    """What an attack says: scores of the select and of the held-out part, higher = member.

    `spread` is the same attack on reference models in turn, where it has some to be attacked.
    """

    select: NDArray
    held: NDArray
    history: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    spread: Spread | None = None
