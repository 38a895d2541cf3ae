"""The store: what stages computed, each in a folder under the hash of all it follows from.

STORE/store.json              the store's format
STORE/stages/<stage>/<key>/   an entry: its files and entry.json, complete or not there
STORE/runs/<name>/            finished runs, see `runs`
STORE/locks/                  empty files to lock; a process that dies holds none
STORE/damaged/                entries that were not what their entry.json says
STORE/journal.jsonl           a line for each beginning and end of a computation
"""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from jaxmeter import disk
from jaxmeter.disk import locked
from jaxmeter.experiment.store.files import (
    FORMAT,
    MALFORMED,
    MANIFEST,
    examined,
    hashed,
    parsed,
    read,
    sealed,
    signature,
    unsealed,
)
from jaxmeter.experiment.store.fingerprint import digest
from jaxmeter.experiment.store.remote import Mirror, url_of, working_copy

JOURNAL, MARK = "journal.jsonl", "store.json"
_READ_ONLY = (13, 30)  # EACCES, EROFS


class StoreError(OSError):
    """The store cannot be used as asked."""


class StoreWarning(UserWarning):
    """Some of a store could not be read; the rest was."""


class FailedBefore(Exception):
    """A stage failed in this sweep already, for another run; the text says how."""


class Damage(NamedTuple):
    """Something in a store that is not what it should be."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Entry:
    """What a stage computed.

    Attributes:
      stage: the stage's name.
      key: SHA-256 of all it follows from.
      folder: where its files lie; read-only by convention.
      files: SHA-256 of each file by its path within the folder.
      seconds: what computing it took, whenever that was.
      cached: whether it was there already.
    """

    stage: str
    key: str
    folder: Path
    files: Mapping[str, str]
    seconds: float
    cached: bool

    @property
    def name(self) -> str:
        """ "stage/key"."""
        return f"{self.stage}/{self.key}"


@dataclass(frozen=True)
class Store:
    """A folder of entries and runs that many processes may use at once.

    Attributes:
      path: the folder; made when first written to.
      say: told what a user should know: damage, waiting.
      mirror: where the store really is, if the folder is a working copy of it; see `opened`.
      shared: whether new files and folders may be used by others as the umask has it; otherwise
        they are their owner's alone. Folders that exist keep their modes.
      failures: what a sweep has seen to fail, by entry; None outside of one. Never written down.
    """

    path: Path
    say: Callable[[str], None] = field(default=lambda text: None, compare=False)
    mirror: Mirror | None = None
    shared: bool = False
    failures: dict[str, str] | None = field(default=None, compare=False, repr=False)
    _known: dict[str, tuple[Any, Entry]] = field(default_factory=dict, compare=False, repr=False)
    _sent: set[str] = field(default_factory=set, compare=False, repr=False)

    def for_a_sweep(self) -> "Store":
        """The same store, which computes no stage again that fails meanwhile."""
        return replace(self, failures={})

    @property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.path / "runs"

    @property
    def name(self) -> str:
        """What a user calls it: the URL, or the folder."""
        return str(self.path) if self.mirror is None else self.mirror.url

    def folder(self, stage: str, key: str) -> Path:
        """Where an entry lies, if it is there."""
        return self.path / "stages" / stage / key

    def lock(self, kind: str, name: str) -> Path:
        """The file to lock for an entry or a run."""
        return self.path / "locks" / kind / f"{name}.lock"

    def obtain(
        self, stage: str, ingredients: Mapping[str, Any], compute: Callable[[Path], None]
    ) -> Entry:
        """The entry that follows from the ingredients, computed if it is not there whole.

        Args:
          stage: the stage's name.
          ingredients: all that the entry follows from, in JSON's types.
          compute: writes the entry's files into an empty folder. Two processes never do that for
            one entry at once; whatever it raises, nothing is left of it.

        Raises:
          FailedBefore: if it was tried in this sweep, and failed.
          StoreError: if it has to be computed and the store cannot be written.
        """
        key = key_of(stage, ingredients)
        found = self._read(stage, key)
        if isinstance(found, Entry):
            return self._published(found)
        if self.failures and f"{stage}/{key}" in self.failures:
            raise FailedBefore(self.failures[f"{stage}/{key}"])
        with self.writable(), self._locked(stage, key):
            found = self._read(stage, key)  # another process may have done it meanwhile
            if isinstance(found, Entry):
                return self._published(found)
            if found is not None:
                self._put_aside(found)
            if self._fetched(stage, key):
                found = self._read(stage, key)
                if isinstance(found, Entry):
                    return found
                if found is not None:
                    self._put_aside(found)
            return self._published(self._computed(stage, key, ingredients, compute))

    def checked(self) -> "Store":
        """The same store, if this jaxmeter reads and writes its format.

        Raises:
          StoreError: if it does not.
        """
        if MARK not in self._sent:
            found = self._format()
            if found not in (None, FORMAT):
                raise StoreError(
                    f"the store {self.name} has format {found}, in which runs and stages have "
                    f"other names than in format {FORMAT}, which this jaxmeter reads and writes: "
                    "name a new folder and sweep again, or use the version that wrote the store."
                )
        return self

    def _format(self) -> Any:
        """The format that the store says it has, or what it holds; None of an empty one."""
        for name in (MARK, *self._telling()):
            content = self._content(name)
            checked = unsealed if name == MARK else parsed
            try:
                facts = {} if content is None else checked(content, name)
            except ValueError:
                continue  # `verify` names it
            if facts.get("tool") == "jaxmeter" and "format" in facts:
                return facts["format"]
        return None

    def _telling(self) -> Iterator[str]:
        """Files that have the store's format in them, of a copy without store.json, say."""
        yield from (f"runs/{run}/config.json" for run in self._inside("runs"))
        for stage in self._inside("stages"):
            yield from (f"stages/{stage}/{k}/{MANIFEST}" for k in self._inside(f"stages/{stage}"))

    def _inside(self, inner: str) -> list[str]:
        """The names in a folder, where the store really is."""
        if self.mirror is not None:
            return self.mirror.names(inner)
        try:
            return sorted(
                name for name in os.listdir(self.path / inner) if not disk.is_litter(name)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _content(self, name: str) -> bytes | None:
        """A file's bytes, where the store really is; None if they cannot be had."""
        if self.mirror is not None:
            return self.mirror.contents([name]).get(name)
        try:
            return read(self.path / name)
        except OSError:
            return None

    def _mark(self) -> None:
        """Writes store.json if it is not there as it should be."""
        mark = sealed({"tool": "jaxmeter", "format": FORMAT})
        if MARK in self._sent or self.checked()._content(MARK) == mark:
            return
        disk.replace(self.path / MARK, mark, shared=self.shared)
        if self.mirror is not None:
            self.mirror.put(self.path / MARK, MARK)
            self._sent.add(MARK)

    def fetched(self, inner: str, last: str) -> bool:
        """Whether the mirror has a folder, which then is here too, as it is there.

        Raises:
          UnsafeName: if a name there, or a link here, leads out of it; nothing is changed then.
        """
        if self.mirror is None:
            return False
        try:
            with disk.folder(disk.below(self.path, inner), shared=self.shared) as temporary:
                if not self.mirror.fetched(inner, last, temporary):
                    raise _NotThere
        except _NotThere:
            return False
        return True

    def _fetched(self, stage: str, key: str) -> bool:
        """Whether the mirror has the entry, which then is here too; it is checked when read."""
        try:
            return self.fetched(f"stages/{stage}/{key}", MANIFEST)
        except disk.UnsafeName as error:
            self.say(f"{stage} {key[:12]} is not taken from {self.name}: {error}")
            return False

    def _published(self, entry: Entry) -> Entry:
        """The entry, which the mirror has now too. A damaged one there is replaced."""
        if self.mirror is not None and entry.name not in self._sent:
            upload = self.mirror.publish if entry.cached else self.mirror.replace
            upload(entry.folder, f"stages/{entry.name}", MANIFEST)
            self._sent.add(entry.name)
        return entry

    def _locked(self, stage: str, key: str) -> Any:
        def waiting() -> None:
            self.say(f"another process is computing {stage} {key[:12]}; waiting for it.")

        return locked(self.lock(stage, key), waiting=waiting, common=self.shared)

    def _computed(
        self, stage: str, key: str, ingredients: Mapping[str, Any], compute: Callable[[Path], None]
    ) -> Entry:
        place = disk.below(self.path, f"stages/{stage}/{key}")
        for left in place.parent.glob(f".{key}.*"):
            if disk.is_leftover(left.name):  # we hold the lock, so whoever wrote it is dead
                shutil.rmtree(left, ignore_errors=True)
        self._journal("computing", stage, key)
        start = time.perf_counter()
        try:
            with disk.folder(place, shared=self.shared) as temporary:
                compute(temporary)
                seconds = time.perf_counter() - start
                files = hashed(temporary)
                manifest: dict[str, Any] = {
                    "tool": "jaxmeter",
                    "format": FORMAT,
                    "stage": stage,
                    "key": key,
                    "ingredients": dict(ingredients),
                    "files": files,
                    "seconds": seconds,
                }
                disk.write(temporary / MANIFEST, sealed(manifest))
                disk.sync_folder(temporary)
            disk.sync_folder(place.parent)
        except BaseException as error:
            if self.failures is not None and _would_again(error):
                self.failures[f"{stage}/{key}"] = f"{type(error).__name__}: {error}"
            raise
        self._journal("computed", stage, key)
        entry = Entry(stage, key, place, {n: f["sha256"] for n, f in files.items()}, seconds, False)
        self._known[entry.name] = (signature(place), entry)
        return entry

    def _read(self, stage: str, key: str) -> Entry | Damage | None:
        """The entry if it is there whole; what is wrong with it otherwise."""
        place = self.folder(stage, key)
        now = signature(place)
        if now is None:
            return None
        known = self._known.get(f"{stage}/{key}")
        if known is None or known[0] != now:
            try:
                manifest = examined(place, stage, key)
            except ValueError as error:
                return Damage(place, str(error))
            files = {name: file["sha256"] for name, file in manifest["files"].items()}
            entry = Entry(stage, key, place, files, manifest["seconds"], True)
            self._known[entry.name] = known = (now, entry)
        entry = known[1]
        return Entry(stage, key, place, entry.files, entry.seconds, True)

    def glanced(self, stage: str, key: str) -> Entry | None:
        """The entry if it seems to be there: its files' contents are not looked at."""
        place = self.folder(stage, key)
        try:
            manifest = unsealed(read(place / MANIFEST), MANIFEST)
            files = {name: file["sha256"] for name, file in manifest["files"].items()}
            return Entry(stage, key, place, files, manifest["seconds"], True)
        except (OSError, ValueError, *MALFORMED):
            return None

    def _put_aside(self, damage: Damage) -> None:
        stage, key = damage.path.parent.name, damage.path.name
        aside = self.path / "damaged" / f"{stage}-{key}-{token_hex(4)}"
        disk.make_folder(aside.parent, shared=self.shared)
        os.rename(damage.path, aside)
        self.say(
            f"{stage} {key[:12]} is damaged and is computed again: {damage.reason} "
            f"What was there is now {aside}."
        )

    def _journal(self, event: str, stage: str, key: str) -> None:
        line = {"event": event, "stage": stage, "key": key, "pid": os.getpid(), "time": time.time()}
        text = sealed({**line, "host": socket.gethostname()}, indent=None)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        file = os.open(self.path / JOURNAL, flags, 0o666 if self.shared else 0o600)
        try:
            os.write(file, text)  # one write at the end of the file: lines do not mix
        finally:
            os.close(file)

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """For writing to the store: says why that is not possible where it is not."""
        try:
            disk.make_folder(self.path / "locks", shared=self.shared)
            lock = self.path / "locks" / "store.lock"
            with locked(lock, shared=True, waiting=self._collecting, common=self.shared):
                self._mark()
                yield
        except OSError as error:
            inside = error.filename is not None and str(self.path) in str(error.filename)
            if error.errno in _READ_ONLY and inside and not isinstance(error, StoreError):
                raise StoreError(
                    f"the store {self.path} cannot be written ({error.strerror}), and something "
                    "has to be computed. Finished runs can be read: status, table, plot. To "
                    "compute, choose another store or ask for the right to write."
                ) from error
            raise

    def _collecting(self) -> None:
        self.say(f"somebody is cleaning up {self.path}; waiting.")


class _NotThere(Exception):
    """The mirror has no such entry."""


def key_of(stage: str, ingredients: Mapping[str, Any]) -> str:
    """The key of a stage's entry that follows from the ingredients."""
    return digest({"stage": stage, **ingredients})


def _would_again(error: BaseException) -> bool:
    """Whether a stage would fail again: not of what may pass, such as a full disk or memory."""
    passing = isinstance(error, OSError | MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, Exception) and not passing


def opened(
    store: Store | str | os.PathLike[str],
    say: Callable[[str], None] = lambda text: None,
    *,
    shared: bool = False,
) -> Store:
    """A store from its folder, or its URL for any file system of fsspec ("s3://bucket/store").

    `shared` is as for `Store`; a store that is one already stays as it is.

    Raises:
      ImportError: for a URL, if fsspec is not installed.
      StoreError: for a store of a format that this jaxmeter does not know.
    """
    if isinstance(store, Store):
        return store.checked()
    url = url_of(store)
    if url is None:
        return Store(Path(store).expanduser(), say, shared=shared).checked()
    place = working_copy(url, FORMAT)
    return Store(place, say, Mirror(url, shared), shared=shared).checked()
