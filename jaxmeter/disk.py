"""Files and folders on disk: for their owner alone, whole or not at all, below the folder named.

Reports, signals, models and stores say much about the records that they were made of. So what is
written here may be read by its owner alone from the moment that it is there: folders have the mode
0700, files 0600. A folder that exists keeps its mode. With `shared=True` the umask decides, as it
does for other programs.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# --- Where a name may lead -----------------------------------------------------------------------

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\:]")  # and what divides a path on Windows
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.I)
_LITTER = re.compile(
    r"\._.*|\.nfs.*|\.fuse_hidden.*|\.smbdelete.*|\.~lock\..*|~\$.*|\.trash(es|-\d+)?|\.ds_store|"
    r"\.appledouble|\.documentrevisions-v100|\.fseventsd|\.spotlight-v100|\.temporaryitems|"
    r"\.localized|\.directory|\.ipynb_checkpoints|\.dropbox(\.attr|\.cache)?|\.stfolder|"
    r"icon\r|ehthumbs(_vista)?\.db|thumbs\.db(:encryptable)?|desktop\.ini|@eadir|lost\+found",
    re.I,
)


class UnsafeName(ValueError):
    """A name from a file or a listing that would lead out of the folder it belongs to."""


def below(root: Path, name: Any) -> Path:
    """The path of a name that comes from a store, a listing or a file, below a folder.

    Args:
      root: the folder.
      name: a relative path with slashes.

    Raises:
      UnsafeName: if it is no text, empty, absolute, has empty parts, "." or "..", a backslash, a
        colon or a control character, the name of a device of Windows, or leads out of the folder
        by a link.
    """
    if not is_plain(name):
        raise UnsafeName(
            f"{str(name)[:200]!r} is no plain name of a file below {root}, and nothing is read or "
            "written there. Somebody made it up, or it was damaged."
        )
    path = root / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise UnsafeName(
            f"{path} is, or lies below, a link that leads out of {root}, and nothing is read or "
            "written through it. Put the folder itself there, or move all of the outer one."
        )
    return path


def is_plain(name: Any) -> bool:
    """Whether a name is a relative path that means the same on every system.

    >>> is_plain("runs/x-1/scores.npz"), is_plain("runs/../x"), is_plain("c:x"), is_plain("nul.txt")
    (True, False, False, False)
    """
    return isinstance(name, str) and all(map(_is_plain, name.split("/")))


def _is_plain(part: str) -> bool:
    try:
        size = len(part.encode())
    except UnicodeEncodeError:  # half a character
        return False
    odd = _CONTROL.search(part) or _DEVICES.fullmatch(part) or part.endswith((".", " "))
    return 0 < size <= 255 and not odd


def is_litter(name: str) -> bool:
    """Whether a file or folder is one that systems leave anywhere: it is not ours, and stays.

    >>> [is_litter(name) for name in (".DS_Store", "._scores.npz", "scores.npz")]
    [True, True, False]
    """
    return _LITTER.fullmatch(name) is not None


# --- For their owner alone -----------------------------------------------------------------------


def make_folder(path: Path, *, shared: bool = False) -> Path:
    """Makes a folder, and those that it lies in, where they are not there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing or [path]):
        folder.mkdir(0o777 if shared else 0o700, exist_ok=True)
    return path


def create(path: Path, *, shared: bool = False) -> BinaryIO:
    """A new file, open for writing.

    Raises:
      FileExistsError: if there is something, be it a link that leads nowhere.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666 if shared else 0o600), "w+b")


def write(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Writes a new file and waits until the disk has it."""
    with create(path, shared=shared) as file:
        file.write(content)
        _sync(file)


def settle(folder: Path) -> None:
    """Gives all that is in a folder the folder's own mode, whoever wrote it there.

    Libraries write files as the umask has it. In a folder of 0700 nobody sees that, and before it
    is opened to others, or its files are moved elsewhere, this closes them.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for root, inner, files in os.walk(folder):
        for name, its in [*((n, mode) for n in inner), *((n, mode & 0o666) for n in files)]:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                os.chmod(path, its)


# --- Whole or not at all -------------------------------------------------------------------------


def beside(path: Path, ending: str = "tmp") -> Path:
    """A new name in the same folder, hidden; `is_leftover` knows it."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.{ending}"


def is_leftover(name: str, of: str = ".+") -> bool:
    """Whether a dead process left it of a file or folder whose name this regex fits."""
    return re.fullmatch(rf"\.({of})\.[0-9a-f]{{8}}\.(tmp|old)", name) is not None


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """A file open for writing that takes its place, or another's, when it is complete."""
    temporary = beside(path)
    try:
        with create(temporary, shared=shared) as file:
            yield file
            _sync(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Writes a file in one step: it is as before or as given."""
    with replacing(path, shared=shared) as file:
        file.write(content)


@contextlib.contextmanager
def apart(place: Path, *, shared: bool = False) -> Iterator[Path]:
    """An empty folder beside a place, for as long as something is written that belongs there."""
    make_folder(place.parent, shared=shared)
    room = beside(place)
    try:
        room.mkdir(0o777 if shared else 0o700)
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def folder(place: Path, *, shared: bool = False) -> Iterator[Path]:
    """An empty folder that takes its place, or another's, when all that is in it is complete.

    The other one's mode is kept, and what systems left in it.
    """
    with apart(place, shared=shared) as room:
        yield room
        settle(room)
        swap(room, place)


def swap(new: Path, place: Path) -> None:
    """Puts a complete folder in the place of an old one, or leaves the old one there.

    Two renames where there is an old one (no system call for one is portable): killed between
    them, both lie complete beside the place, under their temporary names.
    """
    if not os.path.lexists(place):
        new.rename(place)
        return
    if not place.is_symlink():
        _keep_modes(place, new)
    old = beside(place, "old")
    place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        old.rename(place)
        raise
    if old.is_symlink():
        old.unlink()
        return
    _keep_litter(old, place)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the folder's list of files."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _keep_modes(old: Path, new: Path) -> None:
    for root, _, _ in os.walk(old):
        other = new / Path(root).relative_to(old)
        if other.is_dir() and not other.is_symlink():
            before, mode = os.stat(root), stat.S_IMODE(os.stat(root).st_mode)
            try:
                os.chown(other, -1, before.st_gid)
            except OSError:  # that mode was for another group
                mode &= ~0o070
            os.chmod(other, mode)


def _keep_litter(old: Path, new: Path) -> None:
    for root, inner, files in os.walk(old):
        for name in filter(is_litter, [*inner, *files]):
            with contextlib.suppress(OSError):
                os.rename(os.path.join(root, name), new / Path(root).relative_to(old) / name)
        inner[:] = [name for name in inner if not is_litter(name)]


# --- Locks between processes, which a crash cannot leave held -------------------------------------

_NONE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class Busy(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    shared: bool = False,
    wait: bool = True,
    waiting: Callable[[], None] | None = None,
    common: bool = False,
) -> Iterator[None]:
    """Holds the lock of a file, made if need be; the system releases it when the process ends.

    A new file is its owner's alone, or has the mode that the umask leaves if it is `common`.

    Raises:
      Busy: if another process holds it and `wait` is False. `waiting` is called before waiting.
      OSError: if the file system has no locks.
    """
    make_folder(path.parent, shared=common)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        mode = 0o666 if common else 0o600
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise Busy(str(path)) from None
                if waiting is not None:
                    waiting()
                fcntl.flock(file, kind)
            except OSError as error:
                if error.errno in _NONE:
                    raise OSError(
                        error.errno,
                        f"the file system of {path} has no locks ({error.strerror}), so two "
                        "processes could spoil what the other writes. Mount it with locks "
                        "(Lustre: -o flock; NFS: its lock daemon), or name a folder elsewhere; a "
                        "store may also be a file:// URL",
                    ) from error
                raise
            if not _is_still(path, file):  # somebody cleaned up while we waited
                continue
            yield
            return
        finally:
            os.close(file)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock."""
    if not path.exists():
        return False
    try:
        with locked(path, wait=False):
            return False
    except Busy:
        return True


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False
