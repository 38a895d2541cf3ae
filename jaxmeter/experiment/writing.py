"""Files written whole and waited for, and entries read with suspicion."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from jaxmeter.experiment.fingerprint import digest

MANIFEST = "entry.json"
FORMAT = 1


def examined(place: Path, stage: str, key: str) -> dict[str, Any]:
    """The manifest of an entry whose files are all as they were written.

    Raises:
      ValueError: if anything is missing, changed or of another entry.
    """
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        seal = manifest.pop("seal")
        if seal != digest(manifest):
            raise ValueError("its entry.json was edited.")
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
            if (place / name).stat().st_size != file["size"]:
                raise ValueError(f"{name} has another size than was written.")
            if sha256(place / name) != file["sha256"]:
                raise ValueError(f"{name} has another content than was written.")
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it cannot be read: {error!r}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"its entry.json is no JSON: {error}.") from error
    return manifest


def leftovers(place: Path) -> list[Path]:
    """Temporary folders of an entry."""
    return list(place.parent.glob(f".{place.name}.*.tmp"))


def write(path: Path, content: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """Writes a file in one step: it is as before or as given."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        write(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    """All files of a folder, those of inner ones by their path."""
    found = set()
    for root, _, files in os.walk(folder):
        within = Path(root).relative_to(folder)
        found |= {(within / name).as_posix() for name in files}
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


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the folder's list of files."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
