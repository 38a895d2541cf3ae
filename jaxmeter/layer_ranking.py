"""Which layer of a target gives away how much: signals of each, measured and ranked."""

import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from jaxmeter import reference
from jaxmeter.calibrated import warn_if_unlike
from jaxmeter.calibrated_inference import Signal, by_place
from jaxmeter.data import Records, unambiguous
from jaxmeter.findings import at_fpr, clean, percent, percents, plain, plural, rate_name, resolvable
from jaxmeter.metrics import AttackResult, Difference, Interval, MetricWarning, evaluate
from jaxmeter.parts import SeenBy
from jaxmeter.referenced import References, Shadows, epochs_shown, seen_by, trained
from jaxmeter.signals import (
    DEVICE_BUDGET,
    ResolvedSpec,
    Signals,
    SignalSpec,
    check_records,
    extract,
)
from jaxmeter.target import LOGITS, Target, TargetSpec, layer_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["activation", "gradient", "gradient norm"]
KINDS: dict[Kind, Signal] = {
    "activation": "class distance",
    "gradient": "alignment",
    "gradient norm": "gradient norms",
}
READS = SignalSpec(
    loss=False, label=False, gradient_norm=True, scalars=("alignment", "class distance")
)
_FPR = 0.01
_CONFIDENCE = 0.95
_NAMED = 6  # places that a sentence lists


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
class LayerMap:
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
        level = 1 - (1 - _CONFIDENCE) / max(1, len(self.rows) - 1)
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
        return 1 - (1 - _CONFIDENCE) / len(self.rows)

    def table(self) -> Table:
        """One line a signal of a layer, the largest AUC first, for a terminal or a notebook."""
        table = Table(
            box=box.SIMPLE_HEAD,
            title="Which layer gives away how much",
            title_style="bold",
            title_justify="left",
            caption=Text("\n".join([*self.finding(), self.scored()])),
            caption_style="",
            caption_justify="left",
            padding=(0, 1, 0, 0),
        )
        table.add_column("Layer", overflow="fold")
        table.add_column("Signal", no_wrap=True)
        heads = ("AUC", f"TPR at {rate_name(_FPR)} FPR", "Best AUC\nminus this")
        for head in heads:
            table.add_column(head, justify="right", vertical="top")
        for row, behind in zip(self.rows, self.behind, strict=True):
            low, high = row.result.auc_interval()
            style = "bold" if behind.low <= 0 and self.best_interval.low > 0.5 else ""
            at = at_fpr(row.result, _FPR)
            rate = Text(at["reason"] or "", style="dim italic")
            if at["value"] is not None:
                rate = _figure(percent(at["value"]), percents(row.result.tpr_interval(_FPR)))
            minus = Text("–")
            if row is not self.rows[0]:
                minus = _figure(f"{behind.value:.3f}", f"{behind.low:.3f} to {behind.high:.3f}")
            table.add_row(
                Text(clean(row.place), style=style),
                row.signal,
                _figure(f"{row.result.auc:.3f}", f"{low:.3f}–{high:.3f}", style),
                rate,
                minus,
            )
        return table

    def figure(self) -> "Figure":
        """Every signal's AUC with its interval, layer by layer in the model's order."""
        from jaxmeter import layer_figures  # Brings in matplotlib, which takes long to import.

        return layer_figures.layer_figure(self)

    def facts(self) -> dict[str, Any]:
        """All figures as strict JSON's types."""
        beyond, output = self.beyond_output, self.output
        return plain(
            {
                "models": self.models,
                "confidence": _CONFIDENCE,
                "layers": self.layers,
                "finding": self.finding(),
                "scored": self.scored(),
                "best_interval": self.best_interval,
                "output": None
                if output is None or beyond is None
                else {**_measured(output), "best_minus_this": beyond},
                "signals": [
                    {
                        "layer": row.layer,
                        "signal": row.signal,
                        "variable": row.variable,
                        **_measured(row.result),
                        "best_minus_this": behind,
                        "may_be_best": behind.low <= 0,
                    }
                    for row, behind in zip(self.rows, self.behind, strict=True)
                ],
            }
        )

    def finding(self) -> list[str]:
        """What it says, in sentences."""
        first, (low, high) = self.rows[0], self.best_interval
        found, rows = self.candidates, len(self.rows)
        said = [
            f"The {_name(first)} gives away most: as a score, it ranks a random member above a "
            f"random non-member with probability {first.result.auc:.3f} (the AUC; 95% interval, "
            f"allowing for the choice of the best of {rows}, {low:.3f} to {high:.3f})."
        ]
        if low <= 0.5:
            said = [
                "No layer's signal told members from non-members better than chance: the largest "
                f"AUC is {first.result.auc:.3f} (95% interval, allowing for the choice of the best "
                f"of {rows}, {low:.3f} to {high:.3f})."
            ]
        elif len(found) == 1 < rows:
            said.append("All others give away less (DeLong's paired test, Bonferroni).")
        elif len(found) == rows > 1:
            said.append(f"None of the other {rows - 1} can be told from it on these records.")
        elif rows > 1:
            named = ", ".join(f"the {_name(row)}" for row in found[1 : _NAMED + 1])
            more = len(found) - 1 - _NAMED
            said.append(
                f"{len(found) - 1} of the other {rows - 1} cannot be told from it on these records "
                f"(DeLong's paired test, Bonferroni): {named}"
                + (f" and {more} more." if more > 0 else ".")
            )
        said += self._at_low_rate()
        if self.output is not None and self.beyond_output is not None:
            gain = self.beyond_output
            said.append(
                f"The log-odds of the target's answer, which a black box has, have an AUC of "
                f"{self.output.auc:.3f}; the largest AUC minus that is {gain.value:+.3f} "
                f"({gain.low:+.3f} to {gain.high:+.3f})."
            )
        return said

    def _at_low_rate(self) -> list[str]:
        """Which signal finds the most members at a low FPR, if it is another one."""
        best = self.rows[0].result
        if not resolvable(best, _FPR):
            return []
        row = max(self.rows, key=lambda row: row.result.tpr_at(_FPR))
        most, found = row.result.tpr_at(_FPR), best.tpr_at(_FPR)
        if most <= found:
            return []
        low, high = row.result.tpr_interval(_FPR)
        return [
            f"At a false positive rate of {rate_name(_FPR)} the {_name(row)} finds the most "
            f"members: {percent(most)} (95% interval {percent(low)} to {percent(high)}), to "
            f"{percent(found)} by the largest AUC."
        ]

    def scored(self) -> str:
        """How a signal became a score, in a sentence."""
        if self.models:
            return (
                "A score is the log-likelihood ratio of one signal, by what "
                f"{plural(self.models, 'reference model')} that saw the record, or did not, say "
                "of it."
            )
        return (
            "A score is the signal itself. Reference models would take out what makes a record "
            "easy or hard for any model."
        )


def layer_map(
    target: Target,
    records: Records,
    references: References | Shadows | None = None,
    *,
    key: jax.Array | None = None,
    overlap: Literal["error", "drop"] = "error",
    device_budget: int = DEVICE_BUDGET,
    progress: Callable[[str, int, int], None] | None = None,
) -> LayerMap:
    """Ranks a target's layers by what activations, gradients and gradient norms give away.

    One number a record and layer of each kind, with a sign that is fixed beforehand (see
    `LayerSignal`), is scored and measured by itself. Membership is looked at only to measure, so
    all records serve. What several layers give away together is `jaxmeter.CalibratedInference`'s
    to say.

    Args:
      target: the classifier under audit.
      records: records of known membership, members and non-members drawn alike.
      references: models like the target, or how to train some on the records. The score is then
        the log-likelihood ratio of `reference.calibrate`, with shared variances; of records that
        none of them saw, how far the signal is above what they say.
      key: PRNG key, consumed; for `Shadows`.
      overlap: what to do if a record is given both as member and as non-member, see `split`.
      device_budget: bytes on the device for target, batch and intermediate arrays.
      progress: called as `progress(stage, done, total)`.

    Returns:
      A `LayerMap`, with `table()`, `figure()` and `facts()`.

    Raises:
      ValueError: for records that do not fit the target or are given both as member and as
        non-member, a target without trainable variables, reference models of other layers, or
        `Shadows` without a key.

    >>> import jaxmeter as jm
    >>> net = jm.from_function(lambda p, s, x: x @ p["out/kernel"], {"out/kernel": np.eye(3, 2)})
    >>> x, y = np.random.default_rng(0).normal(size=(80, 3)), np.arange(80) % 2
    >>> records = jm.Records.of(members=(x[:40], y[:40]), nonmembers=(x[40:], y[40:]))
    >>> sorted((row.place, row.signal) for row in jm.layer_map(net, records).rows)
    [('out', 'gradient'), ('out', 'gradient norm')]
    """
    if isinstance(references, Shadows) and key is None:
        raise ValueError(
            "reference models are to be trained, which takes random numbers: pass "
            "key=jax.random.key(0)."
        )
    target = target.for_inputs(np.shape(records.x)[1:])
    if not target.spec.variables:
        raise ValueError("the target has no trainable variables, so there are no layers to rank.")
    check_records(target, records)
    keep = unambiguous(records, overlap)
    records = records if keep.all() else records.rows(np.flatnonzero(keep))

    def stage(name: str) -> Callable[[int, int], None] | None:
        return progress and functools.partial(progress, name)

    signals = extract(
        target, records, READS, device_budget=device_budget, progress=stage("signals")
    )
    seen = None
    if references is not None:
        if isinstance(references, Shadows):
            assert key is not None
            references = trained(key, references, records, epochs_shown(progress))
        seen = seen_by(
            references,
            records,
            READS,
            device_budget=device_budget,
            progress=stage("reference signals"),
        )
        own, theirs = (by_place("log odds", s, records.y)[""] for s in (signals, seen.signals))
        warn_if_unlike("log odds", own, theirs)
    found = measured_layers(signals, records, target.spec, seen)
    if references is not None and found is not None and not found.models:
        raise ValueError(
            "the reference models have other layers than the target, so that these cannot be "
            "compared one by one; give models of the target's architecture."
        )
    if found is None:
        raise ValueError(
            "fewer than two signals of layers are finite, so that there is nothing to rank."
        )
    return found


def completed(spec: ResolvedSpec, target: Target) -> ResolvedSpec:
    """With all that a layer map reads, where the costly part is read anyway: every gradient."""
    return spec.union(READS.resolved(target)) if "alignment" in spec.scalars else spec


def measured_layers(
    signals: Signals, records: Records, target: TargetSpec, seen: SeenBy | None = None
) -> LayerMap | None:
    """The map of what the signals hold of it; None where there is nothing to rank.

    Args:
      signals: of the records.
      records: what is measured on.
      target: whose layers these are.
      seen: the records as reference models see them. What these lack is left out; if they lack
        everything, the signals are their own scores.
    """
    y, is_member = np.asarray(records.y), np.asarray(records.is_member)
    mine = _places(signals, y)
    theirs = {} if seen is None else _paired(mine, _places(seen.signals, y))
    if theirs:
        mine = {kind: mine[kind] for kind in theirs}
    else:
        seen = None
    rows = []
    for kind, values in mine.items():
        models = theirs.get(kind, values)
        for place, value in values.items():
            layer = layer_of(place) if kind == "gradient" else place
            siblings = [p for p in values if kind == "gradient" and layer_of(p) == layer]
            score = _score(value, models[place], seen)
            if score is None:
                warnings.warn(
                    f"the {kind} of {place} is not finite for some records, and left out of the "
                    "layer map.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            rows.append(
                LayerSignal(
                    layer=layer,
                    signal=kind,
                    variable=place if len(siblings) > 1 else None,
                    result=_evaluated(score, is_member),
                )
            )
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: -row.result.auc)
    present = {row.layer for row in rows}
    return LayerMap(
        rows=tuple(rows),
        layers=tuple(layer for layer in target.trainable_layers if layer in present),
        output=_output(signals, y, is_member, seen),
        models=0 if seen is None else len(seen.was_member),
    )


def _places(signals: Signals, y: NDArray) -> dict[Kind, dict[str, NDArray]]:
    """Signals of layers, `[n]` or `[k, n]`, by kind and place; the logits are no layer."""
    found: dict[Kind, dict[str, NDArray]] = {}
    for kind, name in KINDS.items():
        values = by_place(name, signals, y)
        if kind == "activation":
            values.pop(LOGITS, None)
        if values:
            found[kind] = values
    return found


def _paired(
    mine: dict[Kind, dict[str, NDArray]], theirs: dict[Kind, dict[str, NDArray]]
) -> dict[Kind, dict[str, NDArray]]:
    """The reference models' signals by the target's names, by order where the names are others.

    Kinds of which they have more or fewer than the target are left out.
    """
    found = {}
    for kind, values in mine.items():
        others = theirs.get(kind, {})
        if len(values) != len(others):
            continue
        if set(values) == set(others):
            found[kind] = others
            continue
        if [*map(_uncounted, values)] != [*map(_uncounted, others)]:
            pairs = ", ".join(f"{a} with {b}" for a, b in zip(values, others, strict=True))
            warnings.warn(
                "layers of the target and of the reference models have different names; compared "
                f"is the {kind} of {pairs}. Where these are not the same layers, what the layer "
                "map says of them is wrong.",
                reference.ReferenceWarning,
                stacklevel=3,
            )
        found[kind] = dict(zip(values, others.values(), strict=True))
    return found


def _uncounted(place: str) -> str:
    """A name without the numbers by which frameworks count layers."""
    return re.sub(r"(_?\d+)+", "", place)


def _score(mine: NDArray, theirs: NDArray, seen: SeenBy | None) -> NDArray | None:
    """A score of each record, `[n]`; None where numbers are not finite, which have no ratio."""
    if seen is None:
        return None if np.isnan(mine).any() else mine
    if not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
        return None
    online = bool(seen.was_member.any())
    features = reference.calibrate(mine, theirs, seen.was_member, online=online)
    return reference.separation(features, online=online)[:, 0]


def _output(
    signals: Signals, y: NDArray, is_member: NDArray, seen: SeenBy | None
) -> AttackResult | None:
    if LOGITS not in signals.outputs or (seen and LOGITS not in seen.signals.outputs):
        return None
    mine = by_place("log odds", signals, y)[""]
    theirs = by_place("log odds", seen.signals, y)[""] if seen else mine
    score = _score(mine, theirs, seen)
    return None if score is None else _evaluated(score, is_member)


def _evaluated(score: NDArray, is_member: NDArray) -> AttackResult:
    """Some layers' signals may well have the wrong sign, which the table shows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        return evaluate(score, is_member)


def _measured(result: AttackResult) -> dict[str, Any]:
    return {
        "auc": {"value": result.auc, **result.auc_interval()._asdict()},
        "tpr_at_fpr": at_fpr(result, _FPR),
    }


def _name(row: LayerSignal) -> str:
    return f"{row.signal} of {clean(row.place)}"


def _figure(value: str, interval: str, style: str = "") -> Text:
    return Text.assemble((value, style), "\n", (interval, "dim"))
