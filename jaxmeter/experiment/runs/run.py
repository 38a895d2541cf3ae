"""Runs: a config in, a finished folder out; and what is known of all runs of a study."""

import contextlib
import hashlib
import json
import os
import re
import socket
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxmeter import disk
from jaxmeter.auditing.assembly import devices, versions
from jaxmeter.disk import Busy, is_held, locked
from jaxmeter.experiment.config import Config, valid
from jaxmeter.experiment.runs import states
from jaxmeter.experiment.runs.states import CONFIG, COST, STATUS, SUMMARY
from jaxmeter.experiment.serialization import ConfigError, flat, plain
from jaxmeter.experiment.stages import graph
from jaxmeter.experiment.stages.graph import Entries, Progress
from jaxmeter.experiment.stages.metrics import RESULTS, SCORES
from jaxmeter.experiment.store.files import FORMAT, encoded, parsed, read, sha256
from jaxmeter.experiment.store.fingerprint import content_of, digest, surroundings
from jaxmeter.experiment.store.store import Entry, FailedBefore, Store, StoreWarning, opened
from jaxmeter.report import columns

_RUN = re.compile(r"[\w-]+-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
      run: its name; the study's alone where it has none, because an input file is missing.
      state: "done" or "failed"; in what `status` gives also "running", "interrupted" or "damaged".
      error: what went wrong, in a line.
      seconds: wall time.
      computed: stages that were computed, by label.
      cached: stages that were in the store, by label.
    """

    run: str
    state: str
    error: str | None = None
    seconds: float = 0.0
    computed: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()


def run(
    config: Config,
    store: Store | str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    wait: bool = True,
) -> Path:
    """Computes what of a run is not there yet.

    Args:
      config: what to run.
      store: the folder, or URL, that keeps what was computed.
      progress: called as `progress(stage, done, total)`.
      wait: whether to wait for another process that does the same run.

    Returns:
      The run's folder: config.json, results.json, summary.json and scores.npz, the same bytes
      whenever and however often interrupted; cost.json and status.json.

    Raises:
      ConfigError: for a config that is not valid.
      Busy: if another process does this run and `wait` is False.
      StoreError: if something has to be computed and the store cannot be written.
      Exception: whatever a stage raises; status.json keeps it.
    """
    store, config = opened(store), valid(config)
    _once(config, store, progress=progress, wait=wait)
    return store.runs / name_of(config)


def attempt(
    config: Config,
    store: Store | str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    wait: bool = True,
) -> Outcome:
    """As `run`, but an error is an outcome. What a launcher calls for each config, anywhere.

    Raises:
      Busy: if another process does this run and `wait` is False.
    """
    store, start, name = opened(store), time.perf_counter(), config.study
    try:
        name = name_of(config)
        made = _once(valid(config), store, progress=progress, wait=wait)
    except Busy:
        raise
    except Exception as error:
        seconds = time.perf_counter() - start
        return Outcome(run=name, state="failed", error=_line(error), seconds=seconds)
    return Outcome(
        run=name,
        state="done",
        seconds=time.perf_counter() - start,
        computed=tuple(label for label, entry in made.items() if not entry.cached),
        cached=tuple(label for label, entry in made.items() if entry.cached),
    )


def name_of(config: Config) -> str:
    """`<study>-<12 hex>`: of the config and the content of its input files.

    Raises:
      FileNotFoundError: if an input file is not there.
    """
    return f"{config.study}-{digest([plain(config), contents_of(config)])[:12]}"


def contents_of(config: Config) -> dict[str, str]:
    """SHA-256 of the input files by the path in the config."""
    return {str(path): content_of(path) for path in config.files()}


def _once(config: Config, store: Store, *, progress: Progress | None, wait: bool) -> Entries:
    """The run's entries; empty if the run was done already."""
    contents, name = contents_of(config), name_of(config)
    folder = store.runs / name
    there = fetch(store, (name,))
    if is_done(store, config, name):
        if store.mirror is not None and name not in there:  # it was stopped before the upload
            store.mirror.replace(folder, f"runs/{name}", STATUS)
        return Entries()

    def waiting() -> None:
        store.say(f"another process is at {name}; waiting for it.")

    lock = store.lock("runs", name)
    with (
        store.writable(),
        locked(lock, wait=wait, waiting=waiting, common=store.shared),
    ):
        if is_done(store, config, name):  # another process may have done it meanwhile
            return Entries()
        disk.make_folder(disk.below(store.path, f"runs/{name}"), shared=store.shared)
        before = states.recorded(folder)  # by a run that was stopped; some may be needed again

        def tell(state: str, entries: Iterable[str], **more: Any) -> None:
            states.write_status(folder, state, shared=store.shared, entries=list(entries), **more)

        class Told(Entries):
            """Says in the run's status what there is of it, so that nobody takes it for useless."""

            def __setitem__(self, label: str, entry: Entry) -> None:
                super().__setitem__(label, entry)
                tell("running", dict.fromkeys([*before, *_names(self)]))

        tell("running", before)
        started, start, made = datetime.now(UTC), time.perf_counter(), Told()
        try:
            graph.make(config, store, contents, made=made, progress=progress)
            described = _described(config, name, contents)
            results = json.loads((made["metrics"].folder / RESULTS).read_bytes())
            files = {
                CONFIG: encoded(described),
                RESULTS: encoded({**_head(name), **results}),
                SUMMARY: encoded(summarized(described, results), indent=None),
                SCORES: (made["metrics"].folder / SCORES).read_bytes(),
            }
            cost = {
                "stages": {
                    label: {"seconds": entry.seconds, "cached": entry.cached}
                    for label, entry in made.items()
                },
                "seconds": time.perf_counter() - start,
                "started": started.isoformat(),
                "host": socket.gethostname(),
            }
            files[COST] = encoded(cost)
            for file, content in files.items():
                disk.replace(folder / file, content, shared=store.shared)
            hashes = {file: digest_of(content) for file, content in files.items()}
            tell("done", _names(made), files=hashes)
            if store.mirror is not None:
                store.mirror.replace(folder, f"runs/{name}", STATUS)
        except BaseException as error:
            # If even this cannot be written, the outcome still says it.
            with contextlib.suppress(OSError):
                text = "".join(traceback.format_exception(error))
                entries = dict.fromkeys([*before, *_names(made)])
                state = "failed" if isinstance(error, Exception) else "interrupted"
                tell(state, entries, error=_line(error), traceback=text)
                if store.mirror is not None:
                    store.mirror.replace(folder, f"runs/{name}", STATUS)
            raise
        return made


def abandon(name: str, store: Store, error: str) -> None:
    """Says in a run's status that it failed, for one whose process was lost and could not.

    Nothing is said of a run that is done, or that another process is at by now.
    """
    with contextlib.suppress(OSError, Busy):
        lock = store.lock("runs", name)
        with store.writable(), locked(lock, wait=False, common=store.shared):
            folder = store.runs / name
            with contextlib.suppress(OSError, ValueError):
                if states.read_status(folder).state == "done":
                    return
            disk.make_folder(disk.below(store.path, f"runs/{name}"), shared=store.shared)
            entries = states.recorded(folder)
            states.write_status(folder, "failed", shared=store.shared, error=error, entries=entries)
            if store.mirror is not None:
                store.mirror.replace(folder, f"runs/{name}", STATUS)


def digest_of(content: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def _names(made: Entries) -> list[str]:
    return [entry.name for entry in made.values()]


def _head(name: str) -> dict[str, Any]:
    return {"tool": "jaxmeter", "format": FORMAT, "run": name}


def _described(config: Config, name: str, contents: Mapping[str, str]) -> dict[str, Any]:
    return {
        **_head(name),
        "study": config.study,
        "config": plain(config),
        "fields": flat(config),
        "inputs": dict(contents),
        "versions": {**dict(versions()), **_more_versions()},
        "device": devices(),
        "code": graph.code(config),
        "surroundings": surroundings(),
    }


def summarized(described: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows of a run: its config's fields and its figures, without curves."""
    kept = ("study", "fields", "versions", "device")
    attacks = list(map(columns.brief, results["attacks"]))
    for row in attacks:
        if row.get("over_targets"):
            row["over_targets"] = _summary(row["over_targets"])
    return {
        **_head(described["run"]),
        **{name: described[name] for name in kept},
        "attacks": attacks,
        "accuracy": results["accuracy"],
    }


def _summary(value: Any) -> Any:
    """The figures over targets without each target's own."""
    if isinstance(value, list):
        return [_summary(item) for item in value]
    if isinstance(value, dict):
        return {name: _summary(item) for name, item in value.items() if name != "values"}
    return value


def _more_versions() -> dict[str, str]:
    found = surroundings()
    return {"scipy": found["scipy"], "scikit-learn": found["scikit-learn"]}


def _line(error: BaseException) -> str:
    """An error in a line, with the stage it was raised in."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("in stage ")]
    text = re.sub(r"\s+", " ", str(error)).strip()
    kind = "" if isinstance(error, ConfigError | FailedBefore) else f"{type(error).__name__}: "
    return f"{kind}{text}{f' ({notes[0]})' if notes else ''}"


# --- What is known of runs -----------------------------------------------------------------------


def is_done(store: Store, config: Config, name: str) -> bool:
    """Whether the run is finished, its files are as they were written, and its code is today's."""
    folder = store.runs / name
    try:
        status = states.unchanged(read(folder / STATUS))
        if status.state != "done":
            return False
        if set(status.files) != set(states.FILES):
            return False  # of before there were hashes of all
        if any(sha256(folder / file) != wanted for file, wanted in status.files.items()):
            store.say(f"{name} was changed since it was written; it is put together again.")
            return False
        found = parsed(read(folder / CONFIG), CONFIG)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        store.say(f"{name} is damaged; it is put together again. {_line(error)}")
        return False
    now = (name, plain(config), graph.code(config), surroundings())
    return now == tuple(found.get(k) for k in ("run", "config", "code", "surroundings"))


def status(study: str, store: Store | str | os.PathLike[str]) -> tuple[Outcome, ...]:
    """What is known of all runs of a study, by name; nothing is written.

    A run whose process died is "interrupted": run it again. Runs on another machine that shares
    the store are seen if its file system has locks.
    """
    store = opened(store)
    fetch(store)
    names = (folder.name for folder in states.run_folders(store.runs))
    return tuple(_seen(store, n) for n in names if n.rpartition("-")[0] == study)


def fetch(store: Store, names: Sequence[str] | None = None) -> set[str]:
    """Makes runs (None: all) in the working copy of a store at a URL what they are at the URL.

    Runs that this machine is at are left as they are. One with a file whose name leads out of the
    run's folder is not fetched, and named in a `StoreWarning`.

    Returns:
      Those that are at the URL.
    """
    if store.mirror is None:
        return set()
    if names is None:
        names = [name for name in store.mirror.names("runs") if _RUN.fullmatch(name)]
    found = store.mirror.contents([f"runs/{name}/{STATUS}" for name in names])
    there = {name for name in names if f"runs/{name}/{STATUS}" in found}
    for name in sorted(there):
        with contextlib.suppress(OSError):
            if read(store.runs / name / STATUS) == found[f"runs/{name}/{STATUS}"]:
                continue
        lock = store.lock("runs", name)
        try:
            with contextlib.suppress(Busy), locked(lock, wait=False, common=store.shared):
                store.fetched(f"runs/{name}", STATUS)
        except disk.UnsafeName as error:
            there.remove(name)
            warnings.warn(
                f"{name} is not fetched from {store.name}: {error}", StoreWarning, stacklevel=3
            )
    return there


def _seen(store: Store, name: str) -> Outcome:
    try:
        found = states.read_status(store.runs / name)
    except FileNotFoundError:
        return Outcome(run=name, state="interrupted", error=f"it has no {STATUS}")
    except (OSError, ValueError) as error:
        return Outcome(run=name, state="damaged", error=str(error))
    state = found.state
    if state == "running":
        with contextlib.suppress(OSError):  # a store that cannot be written has no live runs
            state = "running" if is_held(store.lock("runs", name)) else "interrupted"
    return Outcome(run=name, state=state, error=found.error)
