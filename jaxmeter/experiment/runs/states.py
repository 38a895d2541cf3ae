"""What a run's status.json says: how far the run is, its entries, the hashes of its files."""

import contextlib
import os
import platform
import re
import socket
from pathlib import Path
from typing import Any, NamedTuple

from jaxmeter import disk
from jaxmeter.experiment.stages.metrics import RESULTS, SCORES
from jaxmeter.experiment.store.files import parsed, read, sealed, unsealed

CONFIG, COST, STATUS, SUMMARY = "config.json", "cost.json", "status.json", "summary.json"
FILES = (CONFIG, RESULTS, SUMMARY, SCORES, COST)  # of a finished run, beside its status.json
STATES = ("done", "failed", "interrupted", "running")
_NAMES = {"state", "error", "pid", "host", "python", "traceback", "entries", "files"}
_ENTRY = re.compile(r"[\w-]+/[0-9a-f]{64}")
_HASH = re.compile(r"[0-9a-f]{64}")


class Status(NamedTuple):
    """What a status.json says.

    Attributes:
      state: one of `STATES`.
      error: what went wrong, in a line.
      entries: the entries that the run has got so far, "stage/key"; None if it does not say.
      files: SHA-256 of its files by name.
    """

    state: str
    error: str | None
    entries: tuple[str, ...] | None
    files: dict[str, str]


def of(content: bytes) -> Status:
    """What the bytes of a status.json say; whether they were changed is not looked at.

    Raises:
      ValueError: if they are not those of a status.json.
    """
    facts = parsed(content, STATUS)
    state, error = facts.get("state"), facts.get("error")
    entries, files = facts.get("entries"), facts.get("files", {})
    if state not in STATES:
        raise ValueError(f"{STATUS} has the state {str(state)[:40]!r}, which no run has")
    if not (error is None or isinstance(error, str)):
        raise ValueError(f"the error in {STATUS} is no text")
    if entries is not None and not (
        isinstance(entries, list) and all(_fits(_ENTRY, entry) for entry in entries)
    ):
        raise ValueError(f"the entries in {STATUS} are no names of entries")
    if not isinstance(files, dict) or not all(_fits(_HASH, each) for each in files.values()):
        raise ValueError(f"the files in {STATUS} are no hashes")
    return Status(state, error, None if entries is None else tuple(entries), files)


def unchanged(content: bytes) -> Status:
    """The same, if every byte is as it was written.

    One of before there were seals has no byte that could tell; what it says must be possible.

    Raises:
      ValueError: if it was changed, or a finished run's lacks the hash of a file.
    """
    status, facts = of(content), parsed(content, STATUS)
    wanted = set(FILES)
    if facts.keys() <= _NAMES:
        wanted -= {COST}
    else:
        unsealed(content, STATUS)
    if status.state == "done" and not wanted <= set(status.files) <= set(FILES):
        raise ValueError(f"the files in {STATUS} are not those of a finished run")
    return status


def read_status(folder: Path) -> Status:
    """What a run's status.json says.

    Raises:
      FileNotFoundError: if there is none.
      OSError: if it cannot be read.
      ValueError: if it is not one.
    """
    return of(read(folder / STATUS))


def write_status(folder: Path, state: str, *, shared: bool, **more: Any) -> None:
    """Writes a run's status.json in one step."""
    status = {
        "state": state,
        "error": None,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        **more,
    }
    disk.replace(folder / STATUS, sealed(status), shared=shared)


def recorded(folder: Path) -> list[str]:
    """The entries that a run had got when its status.json was written, as far as it can be read."""
    try:
        return list(read_status(folder).entries or ())
    except (OSError, ValueError):
        return []


def run_folders(runs: Path) -> list[Path]:
    """The folders of runs, by name, to be read; nothing that others or dead processes left."""
    found = {f.name for f in folders(runs, links=True) if not f.name.startswith(".")}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found |= {name for name in os.listdir(runs) if is_run(name)}  # a file in its place, say
    return [runs / name for name in sorted(found)]


def is_run(name: str) -> bool:
    """Whether a run may have the name: `<study>-<12 hex>`."""
    return re.fullmatch(r"[^.].*-[0-9a-f]{12}", name) is not None


def folders(place: Path, *, links: bool = False) -> list[Path]:
    """The folders in a folder, by name, without what systems leave; links only if asked for.

    What is found without links lies where it seems to, and may be removed.
    """
    if not links and place.is_symlink():
        return []
    try:
        with os.scandir(place) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=links))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [place / name for name in names if not disk.is_litter(name)]


def _fits(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
