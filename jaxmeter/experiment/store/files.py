"""A store's files: JSON that is the same bytes each time, and all of it read with suspicion."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmeter.disk import is_litter, sync_folder
from jaxmeter.experiment.store.fingerprint import digest

MANIFEST = "entry.json"
# Of stores, entries and runs. 1 named types by their modules, and was never released.
FORMAT = 2


def examined(place: Path, stage: str, key: str) -> dict[str, Any]:
    """The manifest of an entry whose files are all as they were written.

    Raises:
      ValueError: if anything is missing, changed or of another entry.
    """
    try:
        manifest = unsealed(read(place / MANIFEST), MANIFEST)
        if (manifest["tool"], manifest["format"]) != ("jaxmeter", FORMAT):
            raise ValueError("its entry.json is of another version.")
        whole = {"stage": manifest["stage"], **manifest["ingredients"]}
        if (manifest["stage"], manifest["key"], digest(whole)) != (stage, key, key):
            raise ValueError(f"its entry.json belongs to {manifest['stage']} {manifest['key']}.")
        there = names(place) - {MANIFEST}
        if there != set(manifest["files"]):
            odd = sorted(there ^ set(manifest["files"]))
            raise ValueError(f"files are missing or were added: {', '.join(odd)}.")
        for name, file in manifest["files"].items():
            found = (place / name).stat()
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{name} is no file.")
            if found.st_size != file["size"]:
                raise ValueError(f"{name} has another size than was written.")
            if sha256(place / name) != file["sha256"]:
                raise ValueError(f"{name} has another content than was written.")
    except MALFORMED as error:
        raise ValueError(f"it cannot be read: {error!r}.") from error
    except OSError as error:
        raise ValueError(f"it cannot be read: {error}.") from error
    return manifest


# What comes of using a JSON file that does not hold what its writer would have put there; beside
# ValueError, which says it in words.
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError)


def read(path: str | Path) -> bytes:
    """A file's bytes; not those of a pipe or device, which would be waited for.

    Raises:
      OSError: if it cannot be read or is none.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      ValueError: if it holds none; the message begins with the file's name.
    """
    if not content.strip():
        raise ValueError(f"{name} is empty")
    try:
        found = json.loads(content.decode(), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no JSON (it is not UTF-8: {error})") from error
    except RecursionError as error:
        raise ValueError(f"{name} is no JSON of ours (it is nested too deep)") from error
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds no JSON object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON's")


def sealed(facts: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    """A JSON file that says itself whether it was changed; see `unsealed`."""
    return encoded({**facts, "seal": digest(facts)}, indent=indent)


def unsealed(content: bytes, name: str, *, indent: int | None = 1) -> dict[str, Any]:
    """What `sealed` was given, if every byte is as it was.

    Raises:
      ValueError: if it was changed; the message begins with the file's name.
    """
    facts = parsed(content, name)
    seal = facts.pop("seal", None)
    try:
        same = seal == digest(facts) and content == encoded({**facts, "seal": seal}, indent=indent)
    except (RecursionError, ValueError):
        same = False
    if not same:
        raise ValueError(f"{name} was changed since it was written")
    return facts


def encoded(value: Any, *, indent: int | None = 1) -> bytes:
    """A value as JSON, the same bytes for the same value; in one line without indent."""
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashed(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and size of every file, after the disk has it."""
    found = {}
    for name in sorted(names(folder)):
        path = folder / name
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        found[name] = {"sha256": sha, "size": path.stat().st_size}
    for inner in {(folder / name).parent for name in found} - {folder}:
        sync_folder(inner)
    return found


def names(folder: Path) -> set[str]:
    """All files of a folder, those of inner ones by their path; not what systems leave anywhere."""
    found = set()
    for root, inner, files in os.walk(folder):
        within = Path(root).relative_to(folder)
        found |= {(within / name).as_posix() for name in files if not is_litter(name)}
        inner[:] = [name for name in inner if not is_litter(name)]
    return found


def signature(place: Path) -> Any:
    """Changes whenever a file of an entry is written, replaced, added or removed; None if none."""
    try:
        inner = [
            (name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
            for name in sorted(names(place))
            for s in [os.stat(place / name)]
        ]
        return (os.stat(place).st_ino, tuple(inner))
    except FileNotFoundError:
        return None
