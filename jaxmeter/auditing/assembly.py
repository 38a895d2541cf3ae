"""The last step of every audit: from what was found to the report."""

import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import jax
from numpy.typing import NDArray

from jaxmeter.auditing.rows import declined
from jaxmeter.data.records import Records
from jaxmeter.report.layer_map import LayerMap
from jaxmeter.report.report import Report
from jaxmeter.report.result import LayerRanking, Row
from jaxmeter.scores import correctness
from jaxmeter.signals.spec import Signals
from jaxmeter.target import TargetSpec


def assembled(
    *,
    rows: Sequence[Row],
    held: Records,
    held_index: NDArray,
    parts: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    target: TargetSpec,
    accuracy: tuple[float, float],
    layers: LayerRanking | None,
    notes: Sequence[str],
    seed: str,
    settings: Mapping[str, Any],
    signal_seconds: float,
    signal_bytes: int,
    device: str | None = None,
    packages: Sequence[tuple[str, str]] | None = None,
) -> Report:
    """The report of an audit, whoever ran it: `jaxmeter.audit`, a study or `jaxmeter.meter`.

    Arguments are as in `AuditResult`; `device` and `packages` are those of this process if None.
    """
    return Report(
        rows=tuple(rows),
        held=held,
        held_index=held_index,
        parts=parts,
        target=target,
        accuracy=accuracy,
        layers=None if layers is None else LayerMap.of(layers),
        notes=tuple(dict.fromkeys([*notes, *declined(rows)])),
        seed=seed,
        settings=dict(settings),
        signal_seconds=signal_seconds,
        signal_bytes=signal_bytes,
        device=devices() if device is None else device,
        versions=versions() if packages is None else tuple(packages),
    )


def accuracy_of(signals: Signals, is_member: NDArray) -> tuple[float, float]:
    """The target's accuracy on the members and on the non-members of these records."""
    correct = correctness(signals)
    return float(correct[is_member].mean()), float(correct[~is_member].mean())


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects the texts of warnings; the list is complete after the block.

    Then they are raised, of the caller of the function with the block: the caller's own filters
    decide what becomes of them.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    notes += [str(warning.message) for warning in caught]
    for warning in caught:
        warnings.warn(warning.message, warning.category, stacklevel=4)


def devices() -> str:
    """What JAX computes on in this process."""
    return ", ".join(map(str, jax.local_devices()))


def versions() -> tuple[tuple[str, str], ...]:
    """Python and the packages that a report names, with their versions."""
    packages = ("jaxmeter", "jax", "jaxlib", "flax", "optax", "numpy", "keras", "jax-privacy")
    return (("python", platform.python_version()), *((name, version(name)) for name in packages))
