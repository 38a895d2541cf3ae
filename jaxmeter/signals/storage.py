"""Signals in a folder: one .npy an array, memory-mapped, and a manifest; complete or not there."""

import json
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
from jaxmeter.gradients import Outer
from jaxmeter.signals.example import Signals

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
    """
    folder = check_free(folder)
    disk.make_folder(folder.parent)
    temporary = disk.beside(folder)
    try:
        disk.make_folder(temporary)
        entries, maps, leaves = [], [], {}
        for i, (path, leaf) in enumerate(_leaves(shapes)):
            name, dtype, shape = f"{i:03d}.npy", np.dtype(leaf.dtype), tuple(leaf.shape)
            entries.append({"path": path, "file": name, "dtype": dtype.name, "shape": shape})
            disk.create(temporary / name).close()
            maps.append(
                np.lib.format.open_memmap(
                    temporary / name, mode="w+", dtype=_on_disk(dtype), shape=shape
                )
            )
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
    except (OSError, ValueError) as error:
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
