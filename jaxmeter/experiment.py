"""One audit: from a target and records to a report."""

import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Literal

import jax
import numpy as np

from jaxmeter.catalogue import TRAINING_FREE, AnyAttack, Blind, Learned, Part
from jaxmeter.data import Records, split_indices
from jaxmeter.metrics import best_threshold, evaluate
from jaxmeter.report import Budget, Report, Row
from jaxmeter.scores import correctness
from jaxmeter.signals import DEVICE_BUDGET, ResolvedSpec, SignalSpec, check_records, extract
from jaxmeter.target import Target, layer_of, resolve_variables

Progress = Callable[[str, int, int], None]


def audit(
    target: Target,
    records: Records,
    *,
    key: jax.Array,
    attacks: Sequence[AnyAttack] | None = None,
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
      key: PRNG key, consumed: split and learned attacks follow from it.
      attacks: what to run, in the order of the report's rows; None for the training-free attacks of
        `TRAINING_FREE`, the learned black box and white box, and the blind baseline.
      fractions: shares of fit, select and held-out part.
      overlap: what to do if a record is given both as member and as non-member, see `split`.
      device_budget: bytes on the device for target, batch and intermediate arrays.
      host_budget: bytes of host memory the signals may take; None for no limit.
      progress: called as `progress(stage, done, total)`.

    Raises:
      ValueError: for records that do not fit the target or overlap, parts that are too small, names
        the target does not have, two attacks of one name, or a budget that is too small. All of it
        before the first signal is computed.

    >>> import jax, numpy as np, jaxmeter as jm
    >>> net = jm.from_function(lambda p, s, x: x @ p["w"], {"w": np.ones((3, 2), "f")})
    >>> x, y = np.random.default_rng(0).normal(size=(80, 3)), np.arange(80) % 2
    >>> records = jm.Records.of(members=(x[:40], y[:40]), nonmembers=(x[40:], y[40:]))
    >>> report = jm.audit(net, records, key=jax.random.key(0), attacks=[jm.NegativeLoss()])
    >>> report.rows[0].name, report.rows[0].result.n_members
    ('negative loss', 20)
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = _audit(
            target, records, key, attacks, fractions, overlap, device_budget, host_budget, progress
        )
    notes = [str(warning.message) for warning in caught]
    notes += [
        f"{row.name}: nothing significantly better than the loss threshold was found on "
        f"{row.budget.known_members}+{row.budget.known_nonmembers} records of known membership, so "
        "its scores are the loss threshold's."
        for row in report.rows
        if row.best_epoch == 0
    ]
    for warning in caught:  # the caller's own filters decide what becomes of them
        warnings.warn(warning.message, warning.category, stacklevel=2)
    return replace(report, notes=tuple(dict.fromkeys(notes)))


def _audit(
    target: Target,
    records: Records,
    key: jax.Array,
    attacks: Sequence[AnyAttack] | None,
    fractions: tuple[float, float, float],
    overlap: Literal["error", "drop"],
    device_budget: int,
    host_budget: int | None,
    progress: Progress | None,
) -> Report:
    if attacks is None:
        attacks = (*TRAINING_FREE, Learned(spec=SignalSpec()), Learned(), Blind())
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks are named {names}; give at least one, and each its own name.")
    target = target.for_inputs(records.x.shape[1:])
    check_records(target, records)
    asked = [attack.reads(target) for attack in attacks]
    reads = [None if spec is None else spec.resolved(target) for spec in asked]
    seed = " ".join(map(str, jax.random.key_data(key).ravel().tolist()))
    key, split_key = jax.random.split(key)
    indices = split_indices(split_key, records, fractions, overlap=overlap)

    wanted = SignalSpec().resolved(target)
    for spec in reads:
        wanted = wanted.union(spec) if spec else wanted
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
    bounds = np.cumsum([0, *(index.size for index in indices)])
    slices = [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    parts = [
        Part(records.rows(index), signals.rows(rows))
        for index, rows in zip(indices, slices, strict=True)
    ]
    rows = []
    for i, (attack, spec) in enumerate(zip(attacks, reads, strict=True)):
        if progress:
            progress("attacks", i, len(attacks))
        mine = [p._replace(signals=p.signals.only(spec)) if spec else p for p in parts]
        rows.append(_row(target, jax.random.fold_in(key, i), attack, spec, mine))
    if progress:
        progress("attacks", len(attacks), len(attacks))
    correct = correctness(signals)
    known = records.is_member[used]
    return Report(
        rows=tuple(rows),
        held=parts[2].records,
        held_index=indices[2],
        parts=tuple(_counts(p.records) for p in parts),  # type: ignore[arg-type]
        target=target.spec,
        accuracy=(float(correct[known].mean()), float(correct[~known].mean())),
        seed=seed,
        signal_seconds=signal_seconds,
        signal_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(signals)),
        versions=_versions(),
        device=", ".join(str(device) for device in jax.local_devices()),
        settings={
            "fractions": list(fractions),
            "overlap": overlap,
            "attacks": [repr(attack) for attack in attacks],
        },
    )


def _row(
    target: Target, key: jax.Array, attack: AnyAttack, spec: ResolvedSpec | None, parts: list[Part]
) -> Row:
    start = time.perf_counter()
    found = attack.run(key, *parts)
    seconds = time.perf_counter() - start
    fit, select, held = (part.records for part in parts)
    threshold = best_threshold(found.select, select.is_member)
    known = [_counts(part) for part in ([fit, select] if attack.fits else [select])]
    return Row(
        name=attack.name,
        result=evaluate(found.held, held.is_member, threshold=threshold),
        budget=Budget(
            known_members=sum(members for members, _ in known),
            known_nonmembers=sum(others for _, others in known),
            queries=int(spec is not None),
            reads=_reads(spec),
            parameters=_parameters(target, spec) if spec else (),
        ),
        seconds=seconds,
        history=found.history,
        best_epoch=found.best_epoch,
    )


def _reads(spec: ResolvedSpec | None) -> tuple[str, ...]:
    if spec is None:
        return ("x", "y")
    layers = tuple(dict.fromkeys(layer_of(name) for name in spec.gradients))
    return (
        *spec.outputs,
        *([f"gradients of {_listed(layers)}"] if layers else []),
        *([f"gradient norms of {_listed(spec.norms)}"] if spec.norms else []),
        *(["loss"] if spec.loss else []),
        *(["label"] if spec.label else []),
    )


def _parameters(target: Target, spec: ResolvedSpec) -> tuple[str, ...]:
    """The variables whose values the attack needs."""
    normed = resolve_variables(target.spec, spec.norms)
    return tuple(dict.fromkeys((*spec.gradients, *normed)))


def _listed(layers: tuple[str, ...]) -> str:
    return " and ".join(layers) if len(layers) <= 2 else f"{len(layers)} layers"


def _counts(records: Records) -> tuple[int, int]:
    members = int(records.is_member.sum())
    return members, len(records.y) - members


def _versions() -> tuple[tuple[str, str], ...]:
    packages = ("jaxmeter", "jax", "jaxlib", "flax", "optax", "numpy", "keras", "jax-privacy")
    return (("python", platform.python_version()), *((name, version(name)) for name in packages))
