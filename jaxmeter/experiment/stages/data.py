"""The stage "records": members and non-members are drawn and dealt into the three parts."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.data.records import Records
from jaxmeter.data.splits import split_indices
from jaxmeter.disk import create, write
from jaxmeter.experiment.stages.notes import recording_warnings
from jaxmeter.prng import stream


class Dataset(NamedTuple):
    """Records, and what reading them had to say."""

    records: Records
    notes: list[str]


class Splits(NamedTuple):
    """What later stages know of the records without reading them.

    Attributes:
      parts: indices of the fit, select and held-out part.
      y: labels of all records `[n]`.
      is_member: their membership `[n]`.
      members: hash of the members' content and order.
      everything: hash of all records' content and order.
      content: the same without who was a member.
      shape: one record's.
      notes: warnings.
    """

    parts: tuple[NDArray, NDArray, NDArray]
    y: NDArray
    is_member: NDArray
    members: str
    everything: str
    content: str
    shape: tuple[int, ...]
    notes: list[str]


@lru_cache(maxsize=2)
def drawn(data: Any, seed: int, contents: tuple[str, ...]) -> Dataset:
    """The records of a data config; `contents` are the hashes of its files."""
    with recording_warnings() as notes:
        records = data.read(stream(jax.random.key(seed), "members"))
    for array in records:
        array.flags.writeable = False  # they are shared by all runs of this process
    return Dataset(records, notes)


def deal(
    folder: Path,
    *,
    data: Any,
    seed: int,
    contents: tuple[str, ...],
    fractions: tuple[float, float, float],
    overlap: Literal["error", "drop"],
) -> None:
    """Writes what `dealt` reads."""
    records, said = drawn(data, seed, contents)
    with recording_warnings() as notes:
        key = stream(jax.random.key(seed), "split")
        parts = split_indices(key, records, fractions, overlap=overlap)
    write_splits(folder, records, parts, [*said, *notes])


def write_splits(
    folder: Path, records: Records, parts: tuple[NDArray, ...], notes: list[str]
) -> None:
    """Writes what `dealt` reads."""
    facts = {
        "members": _content(records.rows(records.is_member)),
        "everything": _content(records),
        "content": _content(records[:2]),
        "shape": list(records.x.shape[1:]),
        "notes": notes,
    }
    write(folder / "records.json", json.dumps(facts, indent=1, sort_keys=True).encode())
    fit, select, held = parts
    with create(folder / "split.npz") as file:
        np.savez(
            file,
            y=records.y,
            is_member=records.is_member,
            fit=fit,
            select=select,
            held=held,
        )


def dealt(folder: Path) -> Splits:
    """What `deal` wrote."""
    facts = json.loads((folder / "records.json").read_bytes())
    with np.load(folder / "split.npz", allow_pickle=False) as found:
        parts = tuple(found[name] for name in ("fit", "select", "held"))
        y, is_member = found["y"], found["is_member"]
    return Splits(
        parts=parts,
        y=y,
        is_member=is_member,
        members=facts["members"],
        everything=facts["everything"],
        content=facts["content"],
        shape=tuple(facts["shape"]),
        notes=facts["notes"],
    )


def known_rows(dealt: Splits, *, known: int | None, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Positions within each part of the records that attacks are given.

    All of the held-out part; of the others so many members and non-members that both parts have
    `known` of each, in the parts' own proportion. What a smaller `known` gives, a larger one gives
    too.
    """
    sizes = [part.size for part in dealt.parts]
    if known is None:
        return tuple(np.arange(size) for size in sizes)  # type: ignore[return-value]
    for_fit = round(known * sizes[0] / (sizes[0] + sizes[1]))
    key = stream(jax.random.key(seed), "known")
    chosen = []
    for i, (part, wanted) in enumerate(zip(dealt.parts[:2], (for_fit, known - for_fit))):  # noqa: B905
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, i), part.size))
        truth = dealt.is_member[part][order]
        sides = [order[truth == side] for side in (True, False)]
        available = min(map(len, sides))
        if wanted > available or wanted < 2:
            raise ValueError(
                f"known is {known}: of it {wanted} members and {wanted} non-members would come "
                f"from the {('fit', 'select')[i]} part, which has {len(sides[0])} and "
                f"{len(sides[1])}; at least 2 are needed. Choose another number, or None for all."
            )
        chosen.append(np.sort(np.concatenate([side[:wanted] for side in sides])))
    return chosen[0], chosen[1], np.arange(sizes[2])


def _content(records: tuple[NDArray, ...]) -> str:
    """A hash of arrays with their types and shapes."""
    found = hashlib.sha256()
    for array in records:
        found.update(f"{array.dtype.str} {array.shape};".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
