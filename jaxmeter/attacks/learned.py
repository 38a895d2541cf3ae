"""The white-box attack that learns: Nasr et al.'s inference model."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import Access, AttackOutput, Epoch, Evidence, access_of
from jaxmeter.inference.attack import Attack, decayed_adamw, inference_model
from jaxmeter.inference.attack import fit as fit_attack
from jaxmeter.signals.spec import Signals, SignalSpec, white_box
from jaxmeter.target import Target

_CHUNK = 16_384  # records scored at once, at the most


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the inference model is fitted: settings of `inference_model` and `fit`.

    Attributes:
      epochs: passes over the fit part.
      learning_rate: AdamW's, at the start of its cosine decay.
      weight_decay: AdamW's.
      batch_size: records a step, half of them members.
      members: size of the ensemble.
      folds: parts of the fit part that models of the ensemble leave out in turn, see `fit`.
    """

    epochs: int = 25
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch_size: int = 128
    members: int = 10
    folds: int = 5


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The inference model of Nasr, Shokri, Houmansadr, fitted on known members; see `inference`.

    Fitted on the fit part; the epoch is chosen on the select part and, by the models that did not
    see them, on the records of the fit part.

    Attributes:
      spec: the signals it reads; None for the white box of `signals.white_box`: last layer's
        gradients, logits, loss, label.
      name: the row's name; by default "white box" if it reads gradients, activations or norms,
        else "black box".
      config: how it is fitted.
    """

    spec: SignalSpec | None = field(default=None, kw_only=False)
    name: str = ""
    config: FitConfig = FitConfig()
    fits: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    needs_population: ClassVar[bool] = False

    def __post_init__(self) -> None:  # noqa: D105
        if not self.name:
            inside = self.access == "white box"
            object.__setattr__(self, "name", "white box" if inside else "black box")

    @property
    def access(self) -> Access:
        """What the attacker sees."""
        return "white box" if self.spec is None else access_of(self.spec)

    def reads(self, target: Target) -> SignalSpec:
        """The signals it needs."""
        return self.spec or white_box(target)

    def run(self, key: jax.Array, fit: Evidence, select: Evidence, held: Evidence) -> AttackOutput:
        """Scores of the select and the held-out part."""
        config = self.config
        attack = inference_model(members=config.members)
        fitted = fit_attack(
            key,
            attack,
            fit.signals,
            fit.records.is_member,
            optimizer=partial(decayed_adamw, config.learning_rate, config.weight_decay),
            epochs=config.epochs,
            batch_size=config.batch_size,
            select=(select.signals, select.records.is_member),
            folds=config.folds,
        )
        largest = max(part.records.is_member.size for part in (select, held))
        chosen, measured = (
            _scored(attack, fitted.params, part.signals, min(largest, _CHUNK))
            for part in (select, held)
        )
        epochs = enumerate(zip(*fitted.history[:3], strict=True))  # what an Epoch has
        history = tuple(Epoch(i, *map(float, epoch)) for i, epoch in epochs)
        return AttackOutput(chosen, measured, history, fitted.best_epoch)


def _scored(attack: Attack, params: Any, signals: Signals, chunk: int) -> NDArray:
    """Scores `[n]`, so many records at a time: one program for parts of all sizes."""
    n = len(jax.tree.leaves(signals)[0])
    found = []
    for start in range(0, n, chunk):
        # The last records are scored again and again where a chunk has places left.
        index = np.minimum(np.arange(start, start + chunk), n - 1)
        found.append(np.asarray(attack.score(params, signals.rows(index))))
    return np.concatenate(found)[:n]
