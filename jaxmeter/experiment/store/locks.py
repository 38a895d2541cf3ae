"""Locks between processes that a crash cannot leave held."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxmeter.disk import make_folder

_NONE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
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
                        "(Lustre: -o flock; NFS: its lock daemon), or put the store elsewhere, "
                        "a file:// URL included",
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
