"""The layer map of a target without an audit: signals of each layer, measured and ranked."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from jaxmeter.attacks.white_box import by_place
from jaxmeter.attacks.with_references import warn_if_unlike
from jaxmeter.auditing.layers import READS, measured_layers
from jaxmeter.auditing.references import References, Shadows, seen_by
from jaxmeter.data.records import Records
from jaxmeter.data.splits import unambiguous
from jaxmeter.report.layer_map import LayerMap
from jaxmeter.signals.extraction import check_records, extract
from jaxmeter.signals.planning import DEVICE_BUDGET
from jaxmeter.target import Target


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
    if references is not None and references.trains and key is None:
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
        seen = seen_by(
            references.ready(key, records, progress),
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
    return LayerMap.of(found)
