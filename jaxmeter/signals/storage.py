"""Signals in a folder: one .npy an array, memory-mapped, and a manifest; complete or not there."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeter import disk
from jaxmeter.gradients.factors import Outer
from jaxmeter.signals.spec import Signals

MANIFEST = "signals.json"
_FORMAT = 1


def load(folder: str | PathLike[str]) -> Signals:
    """Signals that `extract(..., out=folder)` wrote, memory-mapped and read-only.

    Nothing is read but headers. `Signals.rows` reads the rows it gives; NumPy and JAX functions of
    whole arrays read whole arrays.

    Raises:
      FileNotFoundError: if the folder holds no signals.
      ValueError: if its files are not what the manifest says. Nothing is unpickled.
    """
    folder = Path(folder).expanduser()
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no signals (no {MANIFEST}). jm.extract(..., out=folder) writes them; "
            "an extraction that was interrupted leaves nothing."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / MANIFEST} is not a manifest of signals: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != "jaxmeter signals":
        raise ValueError(f"{folder / MANIFEST} is not a manifest of jaxmeter's signals.")
    if manifest.get("format") != _FORMAT:
        raise ValueError(
            f"{folder} has signals of format {manifest.get('format')!r}; this version of jaxmeter "
            f"reads format {_FORMAT}. Extract them again."
        )
    try:
        leaves = {tuple(e["path"]): _opened(folder, e) for e in manifest["arrays"]}
        return _assembled(leaves, manifest["names"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error!r}.") from None


@contextmanager
def writing(folder: str | PathLike[str], shapes: Signals) -> Iterator[Signals]:
    """Writable arrays of these shapes in a temporary folder, renamed to `folder` at the end.

    If anything is raised meanwhile, the temporary folder is removed. Killed, the process leaves it
    beside `folder`, under a name that begins with a dot and ends in ".tmp".

    Raises:
      OSError: if the disk has not the space, which is reserved before the first signal is written.
    """
    folder = check_free(folder)
    disk.make_folder(folder.parent)
    temporary = disk.beside(folder)
    try:
        disk.make_folder(temporary)
        entries, maps, leaves = [], [], {}
        total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for _, leaf in _leaves(shapes))
        for i, (path, leaf) in enumerate(_leaves(shapes)):
            name, dtype, shape = f"{i:03d}.npy", np.dtype(leaf.dtype), tuple(leaf.shape)
            entries.append({"path": path, "file": name, "dtype": dtype.name, "shape": shape})
            maps.append(_reserved(temporary / name, _on_disk(dtype), shape, total))
            leaves[path] = np.asarray(maps[-1]).view(dtype)
        names = {field: list(getattr(shapes, field)) for field in _DICTS}
        yield _assembled(leaves, names)
        for mapped in maps:
            mapped.flush()
        text = json.dumps(
            {"kind": "jaxmeter signals", "format": _FORMAT, "names": names, "arrays": entries},
            indent=1,
        )
        disk.write(temporary / MANIFEST, text.encode())
        check_free(folder)  # it may have changed while we wrote
        disk.swap(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_free(folder: str | PathLike[str]) -> Path:
    """The folder as an absolute path; an error if anything is there but an empty folder.

    What systems leave in folders, such as .DS_Store, does not count, and stays.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not (
        folder.is_dir() and all(disk.is_litter(path.name) for path in folder.iterdir())
    ):
        raise FileExistsError(
            f"{folder} exists, and signals are never written over anything. Read it with "
            "jm.signals.load if it holds the signals you want, remove it, or name another folder."
        )
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"signals cannot be written to {folder}: {existing} is not yours.")
    return folder


def _reserved(path: Path, dtype: np.dtype, shape: tuple[int, ...], total: int) -> np.memmap:
    """A new array, memory-mapped, whose space is its own.

    Of a sparse file the disk could fill up while its pages are written, and that is no error that
    Python could catch: the process is killed by SIGBUS.
    """
    with disk.create(path) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
        file.flush()
        size = math.prod(shape) * dtype.itemsize
        try:
            _reserve(file.fileno(), file.tell(), size)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            raise OSError(
                error.errno,
                f"{error.strerror}: the signals take {total:,} bytes, and for an array of "
                f"{size:,} of them {path.parent.parent} has {free:,} free (a quota may allow "
                "less). Free some, or write to another disk: out= takes any folder",
            ) from error
    return np.lib.format.open_memmap(path, mode="r+")


def _reserve(file: int, start: int, size: int) -> None:
    """Makes the file longer by bytes that the disk has set aside."""
    if not size:
        return
    try:
        os.posix_fallocate(file, start, size)
    except (AttributeError, OSError) as error:  # macOS has none, and some file systems neither
        if getattr(error, "errno", errno.ENOSYS) not in _UNSUPPORTED:
            raise
        zeros = memoryview(bytes(min(size, 2**24)))
        while size:
            written = os.pwrite(file, zeros[: min(size, len(zeros))], start)
            start, size = start + written, size - written


_UNSUPPORTED = (errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP)
_DICTS = ("outputs", "gradients", "gradient_norms", "scalars")


def _leaves(signals: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every array with its path, in the order of the signals' own dicts."""
    for field in _DICTS:
        for name, value in getattr(signals, field).items():
            if isinstance(value, Outer):
                yield (field, name, "a"), value.a
                yield (field, name, "delta"), value.delta
            else:
                yield (field, name), value
    for field in ("loss", "label"):
        if getattr(signals, field) is not None:
            yield (field,), getattr(signals, field)


def _assembled(leaves: dict[tuple[str, ...], Any], names: dict[str, list[str]]) -> Signals:
    def value(*path: str) -> Any:
        if path in leaves:
            return leaves[path]
        return Outer(leaves[(*path, "a")], leaves[(*path, "delta")])

    return Signals(
        **{field: {name: value(field, name) for name in names.get(field, ())} for field in _DICTS},
        loss=leaves.get(("loss",)),
        label=leaves.get(("label",)),
    )


def _opened(folder: Path, entry: dict[str, Any]) -> Any:
    """One array, as a plain read-only view of its memory map."""
    name, dtype = entry["file"], jnp.dtype(entry["dtype"])
    try:
        path = disk.below(folder, name)
    except disk.UnsafeName as error:
        raise ValueError(f"{folder / MANIFEST} names a file outside its folder: {error}") from error
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header, which can fail in a dozen ways
        raise ValueError(f"{folder / name} cannot be read as an array: {error}") from error
    if mapped.dtype != _on_disk(dtype) or list(mapped.shape) != entry["shape"]:
        raise ValueError(
            f"{folder / name} holds {mapped.dtype}{list(mapped.shape)}, but the manifest says "
            f"{entry['dtype']}{entry['shape']}: the folder was changed. Extract the signals again."
        )
    return np.asarray(mapped).view(dtype)


def _on_disk(dtype: np.dtype) -> np.dtype:
    """NumPy's file format knows no bfloat16: its bits are kept as integers."""
    return np.dtype(np.uint16) if dtype == jnp.bfloat16 else dtype
