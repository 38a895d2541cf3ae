"""One audit: from a target and records to a report."""

import time
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal

import jax
import numpy as np

from jaxmeter.attacks.baselines import Blind
from jaxmeter.attacks.interface import AttackConfig, Evidence, ReferenceSignals
from jaxmeter.attacks.learned import Learned
from jaxmeter.attacks.suite import (
    WITH_REFERENCES,
    asked_of_references,
    check_attacks,
    check_references,
    run_attack,
    spec_of,
    union_of_specs,
)
from jaxmeter.attacks.training_free import TRAINING_FREE
from jaxmeter.auditing.assembly import accuracy_of, assembled, noted
from jaxmeter.auditing.layers import completed, completed_for_references, measured_layers
from jaxmeter.auditing.references import References, Shadows, seen_by
from jaxmeter.auditing.rows import counts, measured
from jaxmeter.data.records import Records
from jaxmeter.data.splits import split_indices
from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.prng import stream
from jaxmeter.report.report import Report
from jaxmeter.report.result import Row
from jaxmeter.shadow.extraction import check_memory
from jaxmeter.signals.extraction import check_records, extract
from jaxmeter.signals.planning import DEVICE_BUDGET
from jaxmeter.signals.spec import ResolvedSpec, SignalSpec
from jaxmeter.target import Target, TargetSpec

Progress = Callable[[str, int, int], None]


def audit(
    target: Target,
    records: Records,
    *,
    key: jax.Array,
    attacks: Sequence[AttackConfig] | None = None,
    references: References | Shadows | None = None,
    fractions: tuple[float, float, float] = (0.4, 0.1, 0.5),
    overlap: Literal["error", "drop"] = "error",
    device_budget: int = DEVICE_BUDGET,
    host_budget: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Runs attacks on a target and measures them on the same held-out records.

    The records are split at random into three parts that share no content: `fit` (learned attacks
    are fitted on it), `select` (best epoch, thresholds), `held` (every figure of the report).
    Signals are extracted once for all attacks.

    Args:
      target: the classifier under audit.
      records: records of known membership, members and non-members drawn alike.
      key: PRNG key, consumed: split and learned attacks follow from it, each attack by its name, so
        that what one finds does not depend on which others run.
      attacks: what to run, in the order of the report's rows; None for the training-free attacks of
        `TRAINING_FREE`, the learned black box and white box, with references the attacks of
        `WITH_REFERENCES`, and the blind baseline.
      references: models for the attacks that compare the target with such: some there are already,
        or how to train some on the audited records. The same attacks on these models in turn show
        how figures spread over targets.
      fractions: shares of fit, select and held-out part.
      overlap: what to do if a record is given both as member and as non-member, see `split`.
      device_budget: bytes on the device for target, batch and intermediate arrays.
      host_budget: bytes of host memory the signals may take, the reference models' included; None
        for no limit.
      progress: called as `progress(stage, done, total)`.

    Raises:
      ValueError: for records that do not fit the target or overlap, parts that are too small, names
        the target does not have, two attacks of one name, or a budget that is too small. All of it
        before the first signal is computed, but for what reference models' signals take: that is
        known after the target's, and before the first model is trained.

    >>> import jax, numpy as np, jaxmeter as jm
    >>> net = jm.from_function(lambda p, s, x: x @ p["w"], {"w": np.ones((3, 2), "f")})
    >>> x, y = np.random.default_rng(0).normal(size=(80, 3)), np.arange(80) % 2
    >>> records = jm.Records.of(members=(x[:40], y[:40]), nonmembers=(x[40:], y[40:]))
    >>> report = jm.audit(net, records, key=jax.random.key(0), attacks=[jm.NegativeLoss()])
    >>> report.rows[0].name, report.rows[0].result.n_members
    ('negative loss', 20)
    """
    with noted() as notes:
        finish = _steps(
            target,
            records,
            key,
            attacks,
            references,
            fractions,
            overlap,
            device_budget,
            host_budget,
            progress,
        )
    return finish(notes=notes)


def _steps(
    target: Target,
    records: Records,
    key: jax.Array,
    attacks: Sequence[AttackConfig] | None,
    references: References | Shadows | None,
    fractions: tuple[float, float, float],
    overlap: Literal["error", "drop"],
    device_budget: int,
    host_budget: int | None,
    progress: Progress | None,
) -> Callable[..., Report]:
    """All steps but the last, which takes the notes."""
    if attacks is None:
        with_references = () if references is None else WITH_REFERENCES
        learned = Learned(spec=SignalSpec()), Learned()
        attacks = (*TRAINING_FREE, *learned, *with_references, Blind())
    check_attacks(attacks)
    check_references(attacks, given=references is not None)
    target = target.for_inputs(records.x.shape[1:])
    check_records(target, records)
    reads = [spec_of(attack, target) for attack in attacks]
    wanted = completed(union_of_specs(reads, target), target)
    seed = " ".join(map(str, jax.random.key_data(key).ravel().tolist()))
    indices = split_indices(stream(key, "split"), records, fractions, overlap=overlap)
    used = np.concatenate(indices)
    start = time.perf_counter()
    signals = extract(
        target,
        records.rows(used),
        wanted,
        device_budget=device_budget,
        host_budget=host_budget,
        progress=progress and partial(progress, "signals"),
    )
    signal_seconds = time.perf_counter() - start
    signal_bytes = tree_bytes(signals)
    bounds = np.cumsum([0, *(index.size for index in indices)])
    slices = [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    start = time.perf_counter()
    seen = None
    if references is not None:
        seen = _seen(
            stream(key, "references"),
            references,
            records.rows(used),
            attacks,
            device_budget,
            None if host_budget is None else host_budget - signal_bytes,
            progress,
        )
    reference_seconds = time.perf_counter() - start
    parts = [
        Evidence(records.rows(index), signals.rows(rows), seen and seen.rows(rows))
        for index, rows in zip(indices, slices, strict=True)
    ]
    held = parts[2]
    return partial(
        assembled,
        rows=_rows(key, attacks, reads, parts, target.spec, progress),
        held=held.records,
        held_index=indices[2],
        parts=tuple(counts(part.records.is_member) for part in parts),  # type: ignore[arg-type]
        target=target.spec,
        accuracy=accuracy_of(signals, records.is_member[used]),
        layers=measured_layers(held.signals, held.records, target.spec, held.references),
        seed=seed,
        settings={
            "fractions": list(fractions),
            "overlap": overlap,
            "attacks": [repr(attack) for attack in attacks],
            **_described(references, seen, reference_seconds),
        },
        signal_seconds=signal_seconds,
        signal_bytes=signal_bytes,
    )


def _rows(
    key: jax.Array,
    attacks: Sequence[AttackConfig],
    reads: Sequence[ResolvedSpec | None],
    parts: Sequence[Evidence],
    target: TargetSpec,
    progress: Progress | None,
) -> list[Row]:
    """Every attack run and measured, in order."""
    rows = []
    seen = parts[2].references
    for i, (attack, spec) in enumerate(zip(attacks, reads, strict=True)):
        if progress:
            progress("attacks", i, len(attacks))
        start = time.perf_counter()
        found = run_attack(key, attack, spec, *parts)
        rows.append(
            measured(
                attack,
                found,
                spec=spec,
                target=target,
                truth=[part.records.is_member for part in parts],
                seconds=time.perf_counter() - start,
                models=len(seen.was_member) if seen and attack.needs_references else 0,
            )
        )
    if progress:
        progress("attacks", len(attacks), len(attacks))
    return rows


def _seen(
    key: jax.Array,
    references: References | Shadows,
    records: Records,
    attacks: Sequence[AttackConfig],
    device_budget: int,
    host_budget: int | None,
    progress: Progress | None,
) -> ReferenceSignals:
    """The records as the reference models see them, which are trained first if need be."""
    model = references.one.for_inputs(records.x.shape[1:])
    asked = completed_for_references(asked_of_references(attacks, model))
    spec = reduce(lambda a, b: a.union(b), (one.resolved(model) for one in asked))
    if references.trains:  # before that takes its time
        check_memory(
            model,
            references.k,
            records,
            spec,
            host_budget=host_budget,
            device_budget=device_budget,
        )
    return seen_by(
        references.ready(key, records, progress),
        records,
        spec,
        device_budget=device_budget,
        host_budget=host_budget,
        progress=progress and partial(progress, "reference signals"),
    )


def _described(
    references: References | Shadows | None, seen: ReferenceSignals | None, seconds: float
) -> dict[str, str]:
    """What reference models there were, for the report's settings."""
    if references is None or seen is None:
        return {}
    models = len(seen.was_member)
    return {"references": f"{models} models, {references.origin}, {seconds:.1f} s"}
