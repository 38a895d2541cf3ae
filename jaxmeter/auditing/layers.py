"""The step that ranks layers: what each layer's signals give away by themselves."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.attacks.white_box import Signal, by_place
from jaxmeter.data.records import Records
from jaxmeter.metrics import AttackResult, MetricWarning, evaluate
from jaxmeter.reference.calibration import calibrate, separation
from jaxmeter.reference.inputs import ReferenceWarning
from jaxmeter.report.result import Kind, LayerRanking, LayerSignal
from jaxmeter.signals.spec import ResolvedSpec, Signals, SignalSpec
from jaxmeter.target import LOGITS, Target, TargetSpec, layer_of
from jaxmeter.terminal import printable

KINDS: dict[Kind, Signal] = {
    "activation": "class distance",
    "gradient": "alignment",
    "gradient norm": "gradient norms",
}
READS = SignalSpec(
    loss=False, label=False, gradient_norm=True, scalars=("alignment", "class distance")
)


def completed(spec: ResolvedSpec, target: Target) -> ResolvedSpec:
    """With all that a layer map reads, where the costly part is read anyway: every gradient."""
    return spec.union(READS.resolved(target)) if "alignment" in spec.scalars else spec


def completed_for_references(specs: Sequence[SignalSpec]) -> tuple[SignalSpec, ...]:
    """Likewise what is asked of reference models, before their layers' names are known."""
    costly = any("alignment" in spec.scalars for spec in specs)
    return (*specs, READS) if costly else tuple(specs)


def read_of(spec: ResolvedSpec) -> ResolvedSpec | None:
    """What a layer map reads of signals of this spec; None where they hold nothing of layers."""
    scalars = tuple(kind for kind in READS.scalars if kind in spec.scalars)
    if not (scalars or spec.norms):
        return None
    outputs = tuple(name for name in spec.outputs if name == LOGITS)
    return ResolvedSpec(
        outputs=outputs, gradients=(), norms=spec.norms, loss=False, label=False, scalars=scalars
    )


def measured_layers(
    signals: Signals, records: Records, target: TargetSpec, seen: ReferenceSignals | None = None
) -> LayerRanking | None:
    """The ranking by what the signals hold of it; None where there is nothing to rank.

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
                    f"the {kind} of {printable(place)} is not finite for some records, and left "
                    "out of the layer map.",
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
    return LayerRanking(
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
            pairs = ", ".join(
                f"{printable(a)} with {printable(b)}" for a, b in zip(values, others, strict=True)
            )
            warnings.warn(
                "layers of the target and of the reference models have different names; compared "
                f"is the {kind} of {pairs}. Where these are not the same layers, what the layer "
                "map says of them is wrong.",
                ReferenceWarning,
                stacklevel=3,
            )
        found[kind] = dict(zip(values, others.values(), strict=True))
    return found


def _uncounted(place: str) -> str:
    """A name without the numbers by which frameworks count layers."""
    return re.sub(r"(_?\d+)+", "", place)


def _score(mine: NDArray, theirs: NDArray, seen: ReferenceSignals | None) -> NDArray | None:
    """A score of each record, `[n]`; None where numbers are not finite, which have no ratio."""
    if seen is None:
        return None if np.isnan(mine).any() else mine
    if not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
        return None
    online = bool(seen.was_member.any())
    features = calibrate(mine, theirs, seen.was_member, online=online)
    return separation(features, online=online)[:, 0]


def _output(
    signals: Signals, y: NDArray, is_member: NDArray, seen: ReferenceSignals | None
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


def stored_layers(
    facts: Mapping[str, Any], arrays: Mapping[str, NDArray], is_member: NDArray
) -> LayerRanking:
    """The ranking of which these are the facts and the arrays; see `report.facts.layer_arrays`.

    Raises:
      KeyError, TypeError, ValueError: if they lack something or do not belong together.
    """
    scores, output = arrays["layer_scores"], arrays.get("output_scores")
    rows = tuple(
        LayerSignal(
            layer=row["layer"],
            signal=row["signal"],
            variable=row["variable"],
            result=_evaluated(score, is_member),
        )
        for row, score in zip(facts["signals"], scores, strict=True)
    )
    return LayerRanking(
        rows=rows,
        layers=tuple(facts["layers"]),
        output=None if output is None else _evaluated(output, is_member),
        models=facts["models"],
    )
