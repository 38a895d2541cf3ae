"""Which layer of a target gives away how much: signals of each, measured and ranked."""

import functools
import re
import warnings
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.attacks.white_box import Signal, by_place
from jaxmeter.attacks.with_references import warn_if_unlike
from jaxmeter.auditing.references import References, Shadows, epochs_shown, seen_by, trained
from jaxmeter.data.records import Records
from jaxmeter.data.splits import unambiguous
from jaxmeter.metrics import AttackResult, MetricWarning, evaluate
from jaxmeter.reference.calibration import calibrate, separation
from jaxmeter.reference.inputs import ReferenceWarning
from jaxmeter.report.layer_map import LayerMap
from jaxmeter.report.result import Kind, LayerSignal
from jaxmeter.signals.extraction import check_records, extract
from jaxmeter.signals.planning import DEVICE_BUDGET
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
    signals: Signals, records: Records, target: TargetSpec, seen: ReferenceSignals | None = None
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
