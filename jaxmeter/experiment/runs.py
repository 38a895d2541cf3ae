"""Runs: a config in, a finished folder out; and what is known of all runs of a study."""

import contextlib
import hashlib
import json
import os
import platform
import re
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxmeter.auditing import versions
from jaxmeter.experiment import stages
from jaxmeter.experiment.canonical import ConfigError, flat, plain
from jaxmeter.experiment.configs import Config, valid
from jaxmeter.experiment.fingerprint import content_of, digest, surroundings
from jaxmeter.experiment.locks import Busy, is_held, locked
from jaxmeter.experiment.scoring import RESULTS, SCORES
from jaxmeter.experiment.stages import Made, Progress
from jaxmeter.experiment.store import FailedBefore, Store, opened
from jaxmeter.experiment.writing import FORMAT, encoded, replace, sha256

CONFIG, COST, STATUS, SUMMARY = "config.json", "cost.json", "status.json", "summary.json"
# What a table never shows of an attack, and what makes most of results.json.
_LONG = ("roc", "history", "auc_minus_reference")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
      run: its name; the study's alone where it has none, because an input file is missing.
      state: "done" or "failed"; in what `status` gives also "running" or "interrupted".
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
      locks.Busy: if another process does this run and `wait` is False.
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
      locks.Busy: if another process does this run and `wait` is False.
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


def _once(config: Config, store: Store, *, progress: Progress | None, wait: bool) -> Made:
    """The run's entries; empty if the run was done already."""
    contents, name = contents_of(config), name_of(config)
    folder = store.runs / name
    there = fetch(store, (name,))
    if is_done(store, config, name):
        if store.mirror is not None and name not in there:  # it was stopped before the upload
            store.mirror.replace(folder, f"runs/{name}", STATUS)
        return Made()

    def waiting() -> None:
        store.say(f"another process is at {name}; waiting for it.")

    with store.writable(), locked(store.lock("runs", name), wait=wait, waiting=waiting):
        if is_done(store, config, name):  # another process may have done it meanwhile
            return Made()
        folder.mkdir(parents=True, exist_ok=True)
        _state(folder, "running")
        started, start, made = datetime.now(UTC), time.perf_counter(), Made()
        try:
            stages.make(config, store, contents, made=made, progress=progress)
            described = _described(config, name, contents)
            results = json.loads((made["metrics"].folder / RESULTS).read_bytes())
            files = {
                CONFIG: encoded(described),
                RESULTS: encoded({**_head(name), **results}),
                SUMMARY: encoded(summarized(described, results), indent=None),
                SCORES: (made["metrics"].folder / SCORES).read_bytes(),
            }
            for file, content in files.items():
                replace(folder / file, content)
            cost = {
                "stages": {
                    label: {"seconds": entry.seconds, "cached": entry.cached}
                    for label, entry in made.items()
                },
                "seconds": time.perf_counter() - start,
                "started": started.isoformat(),
                "host": socket.gethostname(),
            }
            replace(folder / COST, encoded(cost))
            hashes = {file: digest_of(content) for file, content in files.items()}
            _state(folder, "done", entries=_names(made), files=hashes)
            if store.mirror is not None:
                store.mirror.replace(folder, f"runs/{name}", STATUS)
        except BaseException as error:
            # If even this cannot be written, the outcome still says it.
            with contextlib.suppress(OSError):
                text = "".join(traceback.format_exception(error))
                _state(folder, "failed", error=_line(error), traceback=text, entries=_names(made))
                if store.mirror is not None:
                    store.mirror.replace(folder, f"runs/{name}", STATUS)
            raise
        return made


def abandon(name: str, store: Store, error: str) -> None:
    """Says in a run's status that it failed, for one whose process was lost and could not.

    Nothing is said of a run that is done, or that another process is at by now.
    """
    with contextlib.suppress(OSError, Busy):
        with store.writable(), locked(store.lock("runs", name), wait=False):
            folder = store.runs / name
            with contextlib.suppress(OSError, ValueError):
                if json.loads((folder / STATUS).read_bytes())["state"] == "done":
                    return
            folder.mkdir(parents=True, exist_ok=True)
            _state(folder, "failed", error=error)
            if store.mirror is not None:
                store.mirror.replace(folder, f"runs/{name}", STATUS)


def digest_of(content: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def _names(made: Made) -> list[str]:
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
        "device": stages.device(),
        "code": stages.code(config),
        "surroundings": surroundings(),
    }


def summarized(described: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows of a run: its config's fields and its figures, without curves."""
    kept = ("study", "fields", "versions", "device")
    attacks = [{k: v for k, v in row.items() if k not in _LONG} for row in results["attacks"]]
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


def _state(folder: Path, state: str, **more: Any) -> None:
    status = {
        "state": state,
        "error": None,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        **more,
    }
    replace(folder / STATUS, encoded(status))


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
        status = json.loads((folder / STATUS).read_bytes())
        if status["state"] != "done":
            return False
        hashes = status["files"]
        if set(hashes) != {CONFIG, RESULTS, SUMMARY, SCORES} or not (folder / COST).is_file():
            return False
        if any(sha256(folder / file) != wanted for file, wanted in hashes.items()):
            store.say(f"{name} was changed since it was written; it is put together again.")
            return False
        found = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        store.say(f"{name} is damaged; it is put together again.")
        return False
    now = (name, plain(config), stages.code(config), surroundings())
    return now == tuple(found.get(k) for k in ("run", "config", "code", "surroundings"))


def status(study: str, store: Store | str | os.PathLike[str]) -> tuple[Outcome, ...]:
    """What is known of all runs of a study, by name; nothing is written.

    A run whose process died is "interrupted": run it again. Runs on another machine that shares
    the store are seen if its file system has locks.
    """
    store = opened(store)
    fetch(store)
    return tuple(_seen(store, name) for name in _names_in(store, study))


def fetch(store: Store, names: Sequence[str] | None = None) -> set[str]:
    """Makes runs (None: all) in the working copy of a store at a URL what they are at the URL.

    Runs that this machine is at are left as they are.

    Returns:
      Those that are at the URL.
    """
    if store.mirror is None:
        return set()
    names = store.mirror.names("runs") if names is None else names
    found = store.mirror.contents([f"runs/{name}/{STATUS}" for name in names])
    there = {name for name in names if f"runs/{name}/{STATUS}" in found}
    for name in sorted(there):
        folder = store.runs / name
        with contextlib.suppress(OSError):
            if (folder / STATUS).read_bytes() == found[f"runs/{name}/{STATUS}"]:
                continue
        with contextlib.suppress(Busy), locked(store.lock("runs", name), wait=False):
            (folder / STATUS).unlink(missing_ok=True)  # until all files are there
            store.mirror.fetched(f"runs/{name}", STATUS, folder)
    return there


def _names_in(store: Store, study: str | None) -> Iterator[str]:
    try:
        names = sorted(os.listdir(store.runs))
    except FileNotFoundError:
        return
    for name in names:
        if study is None or name.rpartition("-")[0] == study:
            yield name


def _seen(store: Store, name: str) -> Outcome:
    try:
        found = json.loads((store.runs / name / STATUS).read_bytes())
        state, error = found["state"], found["error"]
    except (OSError, ValueError, KeyError, TypeError):
        return Outcome(run=name, state="interrupted", error="it has no readable status.json")
    if state == "running":
        with contextlib.suppress(OSError):  # a store that cannot be written has no live runs
            state = "running" if is_held(store.lock("runs", name)) else "interrupted"
    return Outcome(run=name, state=state, error=error)


def entries_of(store: Store, names: Sequence[str] | None) -> set[str]:
    """The entries that runs refer to, "stage/key"; of all runs for None."""
    kept: set[str] = set()
    for name in _names_in(store, None):
        if names is None or name in names:
            with contextlib.suppress(OSError, ValueError, TypeError):
                kept.update(json.loads((store.runs / name / STATUS).read_bytes())["entries"])
    return kept
