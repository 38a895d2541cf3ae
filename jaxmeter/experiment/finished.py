"""Finished runs of a store, read quickly and never stale.

A run's four small files are parsed once. What a table needs of them is kept in one Parquet file
beside the study's other results, under the files' stamps: device, inode, size, and the times of the
last change of content (mtime) and of anything (ctime), which no program can set. A file changed
less than two seconds before it was read is parsed again the next time, since a clock that ticks
coarsely could give a second change the same stamp.
"""

import contextlib
import difflib
import gc
import hashlib
import json
import os
import re
import secrets
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jaxmeter.experiment.runs import fetch
from jaxmeter.experiment.store import Store, opened
from jaxmeter.experiment.writing import FORMAT, replace

AnyStore = Store | str | PathLike[str]
FILES = ("status.json", "config.json", "results.json", "cost.json")
# What a table never shows of an attack, and what makes most of results.json.
_LONG = ("roc", "history", "auc_minus_reference")
_SETTLED = 2.0  # seconds after which a file's stamp is trusted
_NAME = re.compile(r"(.+)-[0-9a-f]{12}")
_CACHE = ".read.parquet"
# A cache made by other code than this is not read.
_CODE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


class StoreWarning(UserWarning):
    """Some runs of a store could not be read; the others were."""


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
      notes: warnings raised on the way.
      cost: `cost.json`.
      scores: the SHA-256 that `scores.npz` has, if it is as it was written.
    """

    name: str
    study: str
    folder: Path
    fields: dict[str, Any]
    versions: dict[str, str]
    device: str
    attacks: list[dict[str, Any]]
    accuracy: tuple[float | None, float | None]
    notes: list[str]
    cost: dict[str, Any]
    scores: str


class Unfinished(NamedTuple):
    """A run that has no results: "running", "failed" or "damaged", and why."""

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
    """Reads the finished runs of a store.

    Damaged runs are named in a `StoreWarning`, and left out like failed and running ones.

    Args:
      store: the store, or its folder.
      study: one study's name; None for all.

    Raises:
      FileNotFoundError: if there is no store, or it holds no runs.
      ValueError: if the store has no such study, or none of its runs has finished.
    """
    store = opened(store)
    fetch(store)
    place = store.path
    folder = place / "runs"
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if _NAME.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    if not names:
        raise FileNotFoundError(
            f"{place} holds no runs (looked in {folder}), so there is nothing to show. Name the "
            "store that a study was swept into, or sweep one first."
        )
    studies = sorted({study_of(name) for name in names})
    if study is not None and study not in studies:
        near = difflib.get_close_matches(study, studies, 3, 0.4) or studies[:10]
        raise ValueError(
            f"the store {place} has no study {study!r}; it has {', '.join(map(repr, near))}"
            f"{', ...' if len(near) < len(studies) else ''}. Name one of these."
        )
    found: list[Finished | Unfinished] = []
    with uncollected():
        for each in [study] if study is not None else studies:
            found += _of_study(place, each, [name for name in names if study_of(name) == each])
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
        states = ", ".join(sorted(f"{run.name} ({run.state})" for run in unfinished)[:5])
        raise ValueError(
            f"no run of {study or 'any study'} in {place} has finished: {states}. Look at their "
            "status and sweep again."
        )
    return Runs(finished, unfinished)


def study_of(name: str) -> str:
    """The study in a run's name."""
    return name[:-13]


def results_folder(store: AnyStore, study: str) -> Path:
    """Where tables, figures, pages and events of a study are written."""
    return _place(store) / "studies" / study


def _place(store: AnyStore) -> Path:
    return opened(store).path


def document(folder: Path, name: str) -> dict[str, Any]:
    """One of a run's JSON files, whole.

    Raises:
      DamagedRun: if it is missing, no JSON object, or of another format.
    """
    return _parsed(_content(folder, name), name)


def replaced(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, content)
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


# --- One study, from the cache where the files are as they were.


def _of_study(place: Path, study: str, names: list[str]) -> list[Finished | Unfinished]:
    cache = results_folder(place, study) / _CACHE
    known = _cached(cache)
    now = _clock(cache.parent)
    stamps = {name: _stamp(place / "runs" / name) for name in names}
    found: dict[str, Finished | Unfinished] = {}
    fresh: dict[str, tuple[str, str]] = {}
    for name, (stamp, _) in stamps.items():
        if stamp is not None and name in known and known[name][0] == stamp:
            found[name] = _from_text(known[name][1], place / "runs" / name)
            fresh[name] = known[name]
    rest = [name for name in names if name not in found]
    with ThreadPoolExecutor(4) as pool:  # reading and hashing go on beside parsing
        for run in pool.map(_read, [place / "runs" / name for name in rest]):
            found[run.name] = run
            # The stamp is from before reading: a change meanwhile gives another one.
            stamp, newest = stamps[run.name]
            if isinstance(run, Finished) and stamp is not None and newest < now - _SETTLED:
                fresh[run.name] = (stamp, _to_text(run))
    if fresh != known:
        _keep(cache, fresh)
    return [found[name] for name in names]


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


def _stamp(folder: Path) -> tuple[str | None, float]:
    """What tells a changed file from an unchanged one, and the newest change."""
    parts, newest, start = [], 0.0, os.fspath(folder)
    for name in FILES:
        try:
            s = os.stat(f"{start}/{name}")
        except OSError:
            return None, 0.0
        parts.append(f"{s.st_dev}.{s.st_ino}.{s.st_size}.{s.st_mtime_ns}.{s.st_ctime_ns}")
        newest = max(newest, s.st_ctime, s.st_mtime)
    return " ".join(parts), newest


def _clock(folder: Path) -> float:
    """The time by the clock that stamps the files, which may be another machine's.

    Minus infinity where nothing can be written, since nothing can be kept there either.
    """
    probe = folder / f".clock.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        return -float("inf")
    return min(now, time.time() + 1)


def _cached(cache: Path) -> dict[str, tuple[str, str]]:
    try:
        table = pq.read_table(cache)
        if (table.schema.metadata or {}).get(b"code") != _CODE.encode():
            return {}
        columns = [table[name].to_pylist() for name in ("run", "stamp", "facts")]
    except (OSError, KeyError, pa.ArrowInvalid):
        return {}
    return {run: (stamp, facts) for run, stamp, facts in zip(*columns, strict=True)}


def _keep(cache: Path, fresh: Mapping[str, tuple[str, str]]) -> None:
    stamps = [stamp for stamp, _ in fresh.values()]
    facts = [text for _, text in fresh.values()]
    kind = pa.string()
    table = pa.table(
        {"run": pa.array(list(fresh), kind), "stamp": pa.array(stamps, kind),
         "facts": pa.array(facts, pa.large_string())}
    ).replace_schema_metadata({"code": _CODE})  # fmt: skip
    try:
        replaced(cache, parquet(table))
    except OSError:
        pass  # a store that cannot be written is only read more slowly


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _to_text(run: Finished) -> str:
    kept = {name: getattr(run, name) for name in run.__dataclass_fields__ if name != "folder"}
    return json.dumps(kept, ensure_ascii=True)


def _from_text(text: str, folder: Path) -> Finished:
    return Finished(folder=folder, **json.loads(text))


# --- One run, from its files.


def _read(folder: Path) -> Finished | Unfinished:
    try:
        status = document(folder, "status.json")
        if status.get("state") != "done":
            error = str(status.get("error") or "").strip()
            return Unfinished(folder.name, str(status.get("state")), error or "no error recorded")
        return _finished(folder, status.get("files") or {})
    except DamagedRun as damage:
        return Unfinished(folder.name, "damaged", str(damage))


def _finished(folder: Path, hashes: dict[str, str]) -> Finished:
    config = _parsed(checked(folder, "config.json", hashes), "config.json")
    content = checked(folder, "results.json", hashes)
    results = _parsed(_without_curves(content), "results.json")
    cost = document(folder, "cost.json")
    for name, found in (("config.json", config), ("results.json", results)):
        if found.get("run") != folder.name:
            raise DamagedRun(f"{name} is that of {found.get('run')!r}, so this folder was renamed")
    try:
        study, fields = config["study"], dict(config["fields"])
        attacks = [
            {name: value for name, value in row.items() if name not in _LONG}
            for row in results["attacks"]
        ]
        run = Finished(
            name=folder.name,
            study=study,
            folder=folder,
            fields=fields,
            versions=dict(config["versions"]),
            device=config["device"],
            attacks=attacks,
            accuracy=tuple(results["accuracy"]),
            notes=list(results["notes"]),
            cost={**cost, "stages": dict(cost["stages"])},
            scores=hashes.get("scores.npz", ""),
        )
        [(row["name"], row["auc"]["value"], row["budget"], row["tpr_at_fpr"]) for row in attacks]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedRun(f"an entry is missing or of another kind: {error}") from error
    if study != study_of(folder.name):
        raise DamagedRun(f"config.json is of study {study!r}")
    return run


def _content(folder: Path, name: str) -> bytes:
    try:
        with open(f"{os.fspath(folder)}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        raise DamagedRun(f"{name} cannot be read ({error.strerror or error})") from error


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise DamagedRun(f"{name} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise DamagedRun(f"{name} holds no JSON object")
    if name in ("config.json", "results.json"):
        if found.get("tool") != "jaxmeter":
            raise DamagedRun(f"{name} was not written by jaxmeter")
        if found.get("format") != FORMAT:
            raise DamagedRun(
                f"{name} has format {found.get('format')!r}, and this jaxmeter reads {FORMAT}; "
                "use the version that wrote it"
            )
    return found


def _without_curves(content: bytes) -> bytes:
    """The file with ROC curves and histories emptied: most of its bytes, and no table shows them.

    A curve holds lists of numbers and a history objects of numbers, so the first closing brace or
    bracket ends them. Inside of a JSON string the key's quotes would be escaped, and could not be
    taken for one.
    """
    for key, opening, closing in ((b'"roc":', b"{", b"}"), (b'"history":', b"[", b"]")):
        pieces, at = [], 0
        while (start := content.find(key, at)) >= 0:
            value = start + len(key)
            first = content.find(opening, value)
            end = content.find(closing, value)
            is_key = content[start - 1 : start] != b"\\" and first < end
            if is_key and not content[value:first].strip() and first >= 0:
                pieces.append(content[at : first + 1])
                at = end
            else:
                pieces.append(content[at:value])
                at = value
        pieces.append(content[at:])
        content = b"".join(pieces)
    return content


def listed(names: Iterable[str], unknown: str) -> str:
    """What to say about a name that is not among the names: the nearest ones."""
    names = list(names)
    near = difflib.get_close_matches(unknown, names, 5, 0.4) or names
    return ", ".join(near[:12]) + (", ..." if len(near) > 12 else "")
