"""An audit's results, as values."""

import functools
from dataclasses import dataclass, field
from typing import Literal

from numpy.typing import NDArray

from jaxmeter.attacks.interface import Epoch, Quantity, Spread
from jaxmeter.data.records import Records
from jaxmeter.metrics import AttackResult, Difference, Interval
from jaxmeter.target import TargetSpec

Kind = Literal["activation", "gradient", "gradient norm"]
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerSignal:
    """One signal of one layer, measured.

    Attributes:
      layer: the layer.
      signal: "activation": minus the log of the distance of its output to the mean output of the
        record's class; "gradient": the cosine of the record's gradient, downhill, and a kernel's
        weights, in the measure of K-FAC; "gradient norm": minus the log of the norm of its
        gradient. See `SignalSpec.scalars`.
      variable: the kernel whose gradient it is, where the layer has several; else None.
      result: its scores and every statistic of them.
    """

    layer: str
    signal: Kind
    variable: str | None = None
    result: AttackResult

    @property
    def place(self) -> str:
        """The layer, or the variable of a layer with several kernels."""
        return self.variable or self.layer


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRanking:
    """What the layers of a target give away, each by itself, on the same records.

    Attributes:
      rows: signals of layers, the largest AUC first.
      layers: the layers with a row, in the model's order.
      output: the log-odds of the target's answer, scored in the same way: what a black box has.
        None where they were not read.
      models: reference models that the signals are calibrated by; 0: each signal is the score.
    """

    rows: tuple[LayerSignal, ...]
    layers: tuple[str, ...]
    output: AttackResult | None = None
    models: int = 0

    @functools.cached_property
    def behind(self) -> tuple[Difference, ...]:
        """For each row, the first row's AUC minus its own: DeLong's paired test on these records.

        The confidence of the intervals is Bonferroni's for all rows but one. Whatever row is truly
        the best, with 95% confidence its interval contains 0, although the first row was chosen on
        the same records.
        """
        level = 1 - (1 - CONFIDENCE) / max(1, len(self.rows) - 1)
        return tuple(self.rows[0].result.auc_difference(row.result, level) for row in self.rows)

    @property
    def candidates(self) -> tuple[LayerSignal, ...]:
        """The rows that cannot be told from the first: with 95% confidence the best is one."""
        return tuple(
            row for row, behind in zip(self.rows, self.behind, strict=True) if behind.low <= 0
        )

    @functools.cached_property
    def best_interval(self) -> Interval:
        """The first row's AUC, widened for being the largest of these."""
        return self.rows[0].result.auc_interval(self._level)

    @functools.cached_property
    def beyond_output(self) -> Difference | None:
        """The first row's AUC minus the output's, widened likewise."""
        if self.output is None:
            return None
        return self.rows[0].result.auc_difference(self.output, self._level)

    @property
    def _level(self) -> float:
        return 1 - (1 - CONFIDENCE) / len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an attack was given; figures of two attacks compare only at equal budgets.

    Attributes:
      known_members: members of the target whose membership the attacker used (to fit, to choose
        the epoch or the threshold).
      known_nonmembers: non-members likewise.
      models_trained: models the attacker trained on such data (reference models), 0 for none.
      queries: forward passes of the target for each record.
      reads: the signals read, in words, e.g. ("logits", "loss", "label").
      parameters: trainable variables of the target whose values the attack needs; empty for a black
        box.
      layers: the target's inner layers whose outputs the attack needs; empty for a black box.
    """

    known_members: int
    known_nonmembers: int
    models_trained: int = 0
    queries: int = 1
    reads: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One attack on the held-out records.

    Attributes:
      name: the attack, unique within a report.
      result: its scores on the held-out records (in their order) and every statistic of them;
        `result.threshold` comes from the select part.
      budget: what it was given.
      seconds: wall time of fitting and scoring, without the extraction of signals.
      history: epochs of a learned attack; empty otherwise.
      best_epoch: the epoch kept (0: as initialised); None for training-free attacks.
      spread: the same attack on reference models in turn; None without reference models.
      minus: the quantity that the scores are minus of, see `AttackOutput`.
    """

    name: str
    result: AttackResult
    budget: Budget
    seconds: float
    history: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    spread: Spread | None = None
    minus: Quantity | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditResult:
    """What an audit found, as values.

    Attributes:
      rows: one an attack, in the order asked.
      held: the held-out records that every row is measured on.
      held_index: their indices in the records given to the audit, int `[n]`.
      parts: `(members, non-members)` of the fit, select and held-out part.
      target: facts about the target.
      accuracy: the target's accuracy on the audit's members and on its non-members.
      seed: what everything random followed from, as shown to the reader: the command line's seed,
        or the data of the key given to `audit`.
      signal_seconds: wall time of extracting all signals of all records.
      signal_bytes: memory they took.
      notes: warnings raised on the way.
      versions: `(package, version)` pairs, Python included.
      device: what JAX computed on.
      layers: what each layer gives away on the held-out records, where an attack read signals of
        layers; see `jaxmeter.layer_map`.
    """

    rows: tuple[Row, ...]
    held: Records
    held_index: NDArray
    parts: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    target: TargetSpec
    accuracy: tuple[float, float]
    seed: str
    signal_seconds: float
    signal_bytes: int
    notes: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    device: str = ""
    settings: dict = field(default_factory=dict)
    layers: LayerRanking | None = None
