"""Keeping a store in order: what is damaged, what nothing refers to."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxmeter.experiment.locks import Busy, is_held, locked
from jaxmeter.experiment.runs import STATUS, entries_of
from jaxmeter.experiment.store import Damage, Store, StoreError, opened
from jaxmeter.experiment.writing import examined, sha256


def verify(store: Store | str | os.PathLike[str]) -> tuple[Damage, ...]:
    """Reads every byte of a store and says what is not as it was written.

    Nothing is changed: a damaged entry is put aside and computed again when a run next needs it.
    """
    store = opened(store)
    found = []
    for place in entries(store):
        try:
            examined(place, place.parent.name, place.name)
        except ValueError as error:
            found.append(Damage(place, str(error)))
    for folder in sorted(store.runs.glob("*")):
        try:
            status = json.loads((folder / STATUS).read_bytes())
            for name, wanted in status.get("files", {}).items():
                if sha256(folder / name) != wanted:
                    found.append(Damage(folder / name, "it has another content than was written."))
        except FileNotFoundError as error:
            found.append(Damage(folder, f"{Path(error.filename).name} is missing."))
        except (OSError, ValueError, AttributeError) as error:
            found.append(Damage(folder / STATUS, f"it cannot be read: {error}."))
    return tuple(found)


def gc(
    store: Store | str | os.PathLike[str],
    *,
    keep: Sequence[str] | None = None,
    remove: bool = False,
) -> tuple[Path, ...]:
    """What nothing refers to: entries of no run, what dead processes left, what was put aside.

    Args:
      store: the store.
      keep: names of the runs whose entries stay; None for all runs there are. An interrupted run
        refers to nothing: resume it first. Folders of runs are never removed.
      remove: whether to remove them; otherwise they are only listed.

    Raises:
      StoreError: if runs are in progress, whose entries nothing refers to yet.

    Of a store at a URL this is the working copy; what is at the URL stays.
    """
    store = opened(store)
    if not store.path.is_dir():
        return ()
    lock = store.path / "locks" / "store.lock"
    if not remove:
        return tuple(_useless(store, keep))
    try:
        with locked(lock, wait=False):
            found = tuple(_useless(store, keep))
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for file in (store.path / "locks").glob("*/*.lock"):
                if not store.folder(file.parent.name, file.stem).exists():
                    file.unlink()
            return found
    except Busy:
        raise StoreError(
            f"runs are in progress in {store.path}, and what they have just computed would be "
            "taken for useless. Clean up when they are done."
        ) from None


def entries(store: Store) -> Iterator[Path]:
    """Folders of all entries."""
    for place in sorted((store.path / "stages").glob("*/*")):
        if not place.name.startswith("."):
            yield place


def _useless(store: Store, keep: Sequence[str] | None) -> Iterator[Path]:
    kept = entries_of(store, keep)
    for place in entries(store):
        if f"{place.parent.name}/{place.name}" not in kept:
            yield place
    for place in sorted((store.path / "stages").glob("*/.*.tmp")):
        key = place.name.split(".")[1]
        if not is_held(store.lock(place.parent.name, key)):
            yield place
    yield from sorted(store.runs.glob("*/.*.tmp"))
    yield from sorted((store.path / "damaged").glob("*"))
