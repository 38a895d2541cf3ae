"""Finished runs of a store, read from small files and never from a cache.

A table needs three of a run's files: `status.json`, `summary.json`, which must have the SHA-256
that the status gives it, and `cost.json`. What else is asked of a run is checked when it is read.
"""

import contextlib
import difflib
import gc
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jaxmeter import disk
from jaxmeter.disk import replace
from jaxmeter.experiment.runs import states
from jaxmeter.experiment.runs.run import fetch
from jaxmeter.experiment.runs.states import COST, STATUS, SUMMARY
from jaxmeter.experiment.store.files import FORMAT, MALFORMED, parsed, read
from jaxmeter.experiment.store.store import Store, StoreWarning, opened
from jaxmeter.terminal import printable

LOCAL = "jaxmeter-studies"
AnyStore = Store | str | PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One finished run, as its table rows need it.

    Attributes:
      name: `<study>-<12 hex>`, also the folder's name.
      study: the study it belongs to.
      folder: where its files lie.
      fields: the config's fields by dotted name.
      versions: of the packages it was computed with.
      device: what JAX computed on.
      attacks: `results.json`'s rows in order, without curves and history.
      accuracy: the target's on members and on non-members.
      cost: `cost.json`.
      hashes: the SHA-256 that each file has, if it is as it was written.
    """

    name: str
    study: str
    folder: Path
    fields: dict[str, Any]
    versions: dict[str, str]
    device: str
    attacks: list[dict[str, Any]]
    accuracy: tuple[float | None, float | None]
    cost: dict[str, Any]
    hashes: dict[str, str]


class Unfinished(NamedTuple):
    """A run that has no results: "running", "interrupted", "failed" or "damaged", and why."""

    name: str
    state: str
    reason: str


class Runs(NamedTuple):
    """The runs of one study or of all, in the order of their names."""

    finished: tuple[Finished, ...]
    unfinished: tuple[Unfinished, ...]


class DamagedRun(ValueError):
    """A file of a run is missing, or does not hold what a finished run's file holds."""


def runs(store: AnyStore, study: str | None = None) -> Runs:
    """Reads the finished runs of a store, as they are now.

    Damaged runs are named in a `StoreWarning`, and left out like failed and running ones.

    Args:
      store: the store, its folder or its URL.
      study: one study's name; None for all.

    Raises:
      FileNotFoundError: if there is no store, or it holds no runs.
      ValueError: if the store has no such study, or none of its runs has finished.
    """
    store = opened(store)
    fetch(store)
    folder = store.runs
    try:
        names = sorted(filter(states.is_run, os.listdir(folder)))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    if not names:
        raise FileNotFoundError(
            f"{store.name} holds no runs (looked in {folder}), so there is nothing to show. Name "
            "the store that a study was swept into, or sweep one first."
        )
    studies = sorted({study_of(name) for name in names})
    if study is not None and study not in studies:
        near = difflib.get_close_matches(study, studies, 3, 0.4) or studies[:10]
        raise ValueError(
            f"the store {store.name} has no study {study!r}; it has {', '.join(map(repr, near))}"
            f"{', ...' if len(near) < len(studies) else ''}. Name one of these."
        )
    mine = [folder / name for name in names if study in (None, study_of(name))]
    with uncollected():
        found = [_read(each) for each in mine]
    finished = tuple(run for run in found if isinstance(run, Finished))
    unfinished = tuple(run for run in found if isinstance(run, Unfinished))
    damaged = [run for run in unfinished if run.state == "damaged"]
    if damaged:
        listed = "; ".join(f"{run.name}: {run.reason}" for run in damaged[:5])
        warnings.warn(
            f"{len(damaged)} damaged run(s) in {folder} are left out ({listed}"
            f"{'; ...' if len(damaged) > 5 else ''}). Sweep again: "
            "they are put together again from stages that are intact.",
            StoreWarning,
            stacklevel=3,
        )
    if not finished:
        known = ", ".join(sorted(f"{run.name} ({run.state})" for run in unfinished)[:5])
        raise ValueError(
            f"no run of {study or 'any study'} in {store.name} has finished: {known}. Look at "
            "their status and sweep again."
        )
    return Runs(finished, unfinished)


def study_of(name: str) -> str:
    """The study in a run's name."""
    return name[:-13]


def results_folder(store: AnyStore, study: str, inner: str = "") -> Path:
    """Where tables, figures, pages and events of a study are written.

    `studies/<study>` in the store; for a store at a URL `jaxmeter-studies/<study>` here.

    Raises:
      UnsafeName: if the study's name, which a store gives, leads elsewhere, or a link there does.
    """
    store = opened(store)
    name = f"{study}/{inner}" if inner else study
    if store.mirror is None:
        return disk.below(store.path, f"studies/{name}")
    return disk.below(Path(LOCAL), name)


def document(run: Finished, name: str) -> dict[str, Any]:
    """One of a run's JSON files, whole and as the run wrote it.

    Raises:
      DamagedRun: if it is missing or changed, no JSON object, or of another format.
    """
    return _parsed(checked(run.folder, name, run.hashes), name)


def replaced(path: Path, content: bytes, *, shared: bool = False) -> Path:
    """Writes a file whole or not at all, and its folder if there is none."""
    disk.make_folder(path.parent, shared=shared)
    replace(path, content, shared=shared)
    return path


def checked(folder: Path, name: str, hashes: Mapping[str, str]) -> bytes:
    """One of a run's files, if it is what the run wrote.

    Raises:
      DamagedRun: if it is missing or has another SHA-256 than `status.json` says.
    """
    content = _content(folder, name)
    if hashlib.sha256(content).hexdigest() != hashes.get(name):
        raise DamagedRun(f"{name} was changed since it was written")
    return content


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look through all that was parsed again and again.

    That would be a third of the time of a table of 10,000 runs.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


# --- One run, from its files.


def _read(folder: Path) -> Finished | Unfinished:
    if not os.path.exists(f"{os.fspath(folder)}/{STATUS}"):
        return Unfinished(folder.name, "interrupted", "it has no status.json")
    try:
        content = _content(folder, STATUS)
        try:
            return _as_said(folder, content)
        except DamagedRun:
            again = _content(folder, STATUS)
            if again == content:
                raise
            return _as_said(folder, again)  # it was being written
    except DamagedRun as damage:
        return Unfinished(folder.name, "damaged", str(damage))


def _as_said(folder: Path, content: bytes) -> Finished | Unfinished:
    """The run, by the content of its status.json."""
    try:
        status = states.of(content)
    except ValueError as error:
        raise DamagedRun(str(error)) from error
    if status.state != "done":
        said = (status.error or "").strip()
        return Unfinished(folder.name, status.state, said or "no error recorded")
    hashes = status.files
    summary = _parsed(checked(folder, SUMMARY, hashes), SUMMARY)
    written = checked(folder, COST, hashes) if COST in hashes else _content(folder, COST)
    cost = _parsed(written, COST)
    if summary.get("run") != folder.name:
        raise DamagedRun(f"it is {summary.get('run')!r}, so this folder was renamed")
    try:
        run = Finished(
            name=folder.name,
            study=summary["study"],
            folder=folder,
            fields=summary["fields"],
            versions=summary["versions"],
            device=summary["device"],
            attacks=summary["attacks"],
            accuracy=tuple(summary["accuracy"]),
            cost={**cost, "stages": dict(cost["stages"])},
            hashes=dict(hashes),
        )
    except (*MALFORMED, ValueError) as error:
        raise DamagedRun(f"an entry is missing or of another kind: {error}") from error
    if not disk.is_plain(run.study):
        raise DamagedRun(f"a study cannot be named {run.study!r}")
    if run.study != study_of(folder.name):
        raise DamagedRun(f"its config is of study {run.study!r}")
    return run


def _content(folder: Path, name: str) -> bytes:
    try:
        return read(f"{os.fspath(folder)}/{name}")
    except OSError as error:
        raise DamagedRun(f"{name} cannot be read ({error.strerror or error})") from error


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = parsed(content, name)
    except ValueError as error:
        raise DamagedRun(str(error)) from error
    if name not in (STATUS, COST):
        if found.get("tool") != "jaxmeter":
            raise DamagedRun(f"{name} was not written by jaxmeter")
        if found.get("format") != FORMAT:
            raise DamagedRun(
                f"{name} has format {found.get('format')!r}, and this jaxmeter reads {FORMAT}; "
                "use the version that wrote it"
            )
    return found


def listed(names: Iterable[str], unknown: str) -> str:
    """What to say about a name that is not among the names: the nearest ones."""
    names = list(names)
    near = difflib.get_close_matches(unknown, names, 5, 0.4) or names
    return ", ".join(map(printable, near[:12])) + (", ..." if len(near) > 12 else "")
