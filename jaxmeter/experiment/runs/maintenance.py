"""Keeping a store in order: what is damaged, what nothing refers to."""

import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxmeter.disk import Busy, is_held, is_leftover, locked
from jaxmeter.experiment.runs import states
from jaxmeter.experiment.runs.states import STATUS, folders
from jaxmeter.experiment.store.files import examined, parsed, read, unsealed
from jaxmeter.experiment.store.store import (
    JOURNAL,
    MARK,
    Damage,
    Store,
    StoreError,
    StoreWarning,
    opened,
)

_KEY = "[0-9a-f]{64}"
_JOURNAL = {"event", "stage", "key", "pid", "time", "host"}  # of a line, before they had seals


def verify(store: Store | str | os.PathLike[str]) -> tuple[Damage, ...]:
    """Reads every byte of a store and says what is not as it was written.

    Nothing is changed: a damaged entry is put aside and computed again when a run next needs it.
    Of a store at a URL this is the working copy: what was brought here.
    """
    store = opened(store)
    stages = store.path / "stages"
    found = [
        Damage(path, "it is a link, and links are not followed here.")
        for path in (stages, *sorted(stages.glob("*")))
        if path.is_symlink()
    ]
    for place in entries(store):
        try:
            examined(place, place.parent.name, place.name)
        except ValueError as error:
            found.append(Damage(place, str(error)))
    for folder in states.run_folders(store.runs):
        found += _damages(folder)
    return (*_mark_damages(store.path / MARK), *found, *_journal_damages(store.path / JOURNAL))


def gc(
    store: Store | str | os.PathLike[str],
    *,
    keep: Sequence[str] | None = None,
    remove: bool = False,
) -> tuple[Path, ...]:
    """What nothing refers to: entries of no run, what dead processes left, what was put aside.

    Where the status.json of a run that stays is damaged or missing, nobody knows which entries are
    the run's. Then all entries stay, and a `StoreWarning` names the file. What the store did not
    write itself stays too, and links are not followed.

    Args:
      store: the store.
      keep: names of the runs whose entries stay; None for all runs there are. Of an interrupted
        run those stay that it had got. Folders of runs are never removed.
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
        with locked(lock, wait=False, common=store.shared):
            found = tuple(_useless(store, keep))
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for kind in folders(store.path / "locks"):
                for file in kind.glob("*.lock"):
                    if not store.folder(kind.name, file.stem).exists():
                        file.unlink()
            return found
    except Busy:
        raise StoreError(
            f"runs are in progress in {store.path}, and what they have just computed would be "
            "taken for useless. Clean up when they are done."
        ) from None


def entries(store: Store) -> Iterator[Path]:
    """Folders of all entries."""
    for stage in folders(store.path / "stages"):
        yield from (place for place in folders(stage) if re.fullmatch(_KEY, place.name))


def _useless(store: Store, keep: Sequence[str] | None) -> Iterator[Path]:
    kept, unknown = _entries_of(store, keep)
    if unknown:
        listed = "; ".join(f"{path}: {reason}" for path, reason in unknown[:5])
        warnings.warn(
            f"of {len(unknown)} run(s) nobody knows which entries are theirs, so all entries stay "
            f"({listed}{'; ...' if len(unknown) > 5 else ''}). Sweep these again, or remove their "
            "folders, and clean up then.",
            StoreWarning,
            stacklevel=3,
        )
    for place in entries(store):
        if not unknown and f"{place.parent.name}/{place.name}" not in kept:
            yield place
    for stage in folders(store.path / "stages"):
        for place in folders(stage):
            if is_leftover(place.name, _KEY):
                key = place.name.split(".")[1]
                if not is_held(store.lock(stage.name, key)):
                    yield place
    yield from (place for place in folders(store.runs) if is_leftover(place.name))
    names = "|".join(map(re.escape, (*states.FILES, STATUS)))
    for folder in folders(store.runs):
        yield from sorted(p for p in folder.glob(".*") if is_leftover(p.name, names))
    for place in folders(store.path / "damaged"):
        if re.fullmatch(rf".+-{_KEY}-[0-9a-f]{{8}}", place.name):
            yield place


def _entries_of(store: Store, names: Sequence[str] | None) -> tuple[set[str], list[Damage]]:
    """The entries that runs refer to, "stage/key"; and the runs of which nobody knows them."""
    kept: set[str] = set()
    unknown: list[Damage] = []
    if os.path.lexists(store.runs) and not store.runs.is_dir():
        unknown.append(Damage(store.runs, "it is no folder"))
    for folder in states.run_folders(store.runs):
        if names is not None and folder.name not in names:
            continue
        try:
            found = states.unchanged(read(folder / STATUS)).entries
        except FileNotFoundError:
            if folder.is_symlink() or _written(folder):
                unknown.append(Damage(folder, f"{STATUS} is missing"))
        except (OSError, ValueError) as error:
            unknown.append(Damage(folder / STATUS, str(error)))
        else:
            if found is None:
                unknown.append(Damage(folder / STATUS, "it does not say"))
            kept.update(found or ())
    return kept, unknown


def _damages(folder: Path) -> Iterator[Damage]:
    """What is wrong with a run's files, each by itself."""
    hashes: dict[str, str] = {}
    wanted = states.FILES if _written(folder) else ()  # as far as one knows without its status
    try:
        status = states.unchanged(read(folder / STATUS))
        hashes, wanted = status.files, states.FILES if status.state == "done" else ()
    except FileNotFoundError:
        yield Damage(folder, f"{STATUS} is missing.")
    except (OSError, ValueError) as error:
        yield Damage(folder / STATUS, f"{error}.")
    for name in wanted:
        try:
            content = read(folder / name)
            if name not in hashes and name.endswith(".json"):
                parsed(content, name)
            if name in hashes and hashlib.sha256(content).hexdigest() != hashes[name]:
                yield Damage(folder / name, "it has another content than was written.")
        except FileNotFoundError:
            yield Damage(folder, f"{name} is missing.")
        except (OSError, ValueError) as error:
            yield Damage(folder / name, f"it cannot be read: {error}.")


def _written(folder: Path) -> list[str]:
    """Which of a finished run's files there are."""
    return [name for name in states.FILES if os.path.lexists(folder / name)]


def _mark_damages(path: Path) -> Iterator[Damage]:
    try:
        unsealed(read(path), path.name)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        yield Damage(path, f"{error}; the next run writes it again.")


def _journal_damages(path: Path) -> Iterator[Damage]:
    try:
        lines = read(path).splitlines(keepends=True)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Damage(path, f"it cannot be read: {error}.")
        return
    odd = [str(i) for i, line in enumerate(lines, start=1) if not _is_line(line)]
    if odd:
        more = ", ..." if len(odd) > 5 else ""
        yield Damage(path, f"it was changed or cut in line {', '.join(odd[:5])}{more}.")


def _is_line(line: bytes) -> bool:
    """Whether a line of the journal is as it was written, as far as it can tell."""
    try:
        if parsed(line, JOURNAL).keys() != _JOURNAL:
            unsealed(line, JOURNAL, indent=None)
        return line.endswith(b"\n")
    except ValueError:
        return False
