"""Finished models in a folder of Orbax checkpoints; a training that was killed goes on from there.

One checkpoint is a chunk of models, under a name that says which; it is there whole or not at all.
`training.json` says what the models follow from, and what does not match it is refused.
"""

import hashlib
import importlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxmeter import disk
from jaxmeter.jaxpr.equations import Body, bodies, body_of, is_literal

MANIFEST = "training.json"
_CHUNK = re.compile(r"models-(\d+(?:-\d+)*)")
_CUT = re.compile(rf"{_CHUNK.pattern}\.orbax-checkpoint-tmp(-\d+)?")  # left by Orbax itself
_FORMAT = 1


def digest(*arrays: Any) -> str:
    """A hash of arrays' contents, shapes and types."""
    found = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def program_digest(traced: Any) -> str:
    """A hash of a traced program: its equations and constants, without addresses in memory."""
    body = body_of(traced)
    text = re.sub(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}", "", str(body.jaxpr))
    return hashlib.sha256((text + digest(*_constants(body))).encode()).hexdigest()


def _constants(body: Body) -> Iterator[Any]:
    """Every array that a program and the programs inside it hold; a printed one shows no values."""
    yield from body.consts
    for eqn in body.jaxpr.eqns:
        yield from (v.val for v in eqn.invars if is_literal(v))
        for inner in bodies(eqn):
            yield from _constants(inner)


@contextmanager
def opened(folder: str | os.PathLike[str], follows_from: Mapping[str, Any]) -> Iterator[Path]:
    """The folder, made if need be, for as long as this process alone trains into it.

    Raises:
      ValueError: if it belongs to another training; the message says what differs.
      FileExistsError: if it holds something else.
      BlockingIOError: if another process trains into it now.
    """
    folder = Path(folder).expanduser().resolve()
    given = {"kind": "jaxmeter references", "format": _FORMAT, **follows_from}
    manifest = folder / MANIFEST
    if not manifest.exists() and folder.exists():
        ours = ("lock", f".{MANIFEST}.tmp")
        names = [path.name for path in folder.iterdir() if path.name not in ours]
        if not all(disk.is_litter(n) or disk.is_leftover(n, re.escape(MANIFEST)) for n in names):
            raise FileExistsError(
                f"{folder} is not empty and holds no training ({MANIFEST} is missing), so models "
                "are not written there. Name a new folder."
            )
    disk.make_folder(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(disk.locked(folder / "lock", wait=False))
        except disk.Busy:
            raise BlockingIOError(
                f"another process trains references into {folder} now. Wait for it, or name "
                "another folder."
            ) from None
        if manifest.exists():
            _compared(manifest, given)
        else:
            disk.replace(manifest, json.dumps(given, indent=1).encode())
        yield folder


def _compared(manifest: Path, given: Mapping[str, Any]) -> None:
    try:
        found = json.loads(manifest.read_text("utf-8"))
        differs = [name for name in given if found.get(name) != given[name]]
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{manifest} is damaged: {error}. Remove its folder.") from None
    if differs:
        raise ValueError(
            f"the models in {manifest.parent} follow from another {', another '.join(differs)} "
            "than these, so the two must not be mixed. Name another folder, or remove this one."
        )


def save(folder: Path, models: list[int], arrays: list[Any]) -> None:
    """Saves finished models, given as stacked arrays."""
    name = "models-" + "-".join(map(str, _runs(models)))
    tree = {f"{i:03d}": np.asarray(array) for i, array in enumerate(arrays)}
    with disk.apart(folder / name) as room:  # Orbax writes as the umask has it
        _orbax().PyTreeCheckpointer().save(room / name, tree)
        disk.settle(room)
        (room / name).rename(folder / name)


def restore(folder: Path, shapes: list[Any]) -> dict[int, list[Any]]:
    """Every finished model of a folder by number, as arrays of these shapes and types.

    What was cut off in the writing is removed; whatever else lies there stays.

    Raises:
      ValueError: if a checkpoint is damaged.
    """
    orbax, found = _orbax(), {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_dir():
            continue
        if disk.is_leftover(path.name, _CHUNK.pattern) or _CUT.fullmatch(path.name):
            shutil.rmtree(path)  # we hold the lock, so whoever wrote it is dead
            continue
        name = _CHUNK.fullmatch(path.name)
        if name is None:
            continue
        ends = [int(n) for n in name[1].split("-")]
        count = sum(b - a + 1 for a, b in zip(ends[::2], ends[1::2], strict=False))
        try:
            tree = orbax.PyTreeCheckpointer().restore(path)
            leaves = [np.asarray(tree[f"{i:03d}"]) for i in range(len(shapes))]
        except Exception as error:  # of Orbax, its readers and their formats
            raise ValueError(f"{path} cannot be read: {error}. Remove it.") from error
        for leaf, like in zip(leaves, shapes, strict=True):
            if leaf.shape != (count, *like.shape) or leaf.dtype != like.dtype or len(ends) % 2:
                raise ValueError(
                    f"{path} holds {leaf.dtype}{leaf.shape}, and {count} models have "
                    f"{like.dtype}{(count, *like.shape)}: it was changed. Remove it."
                )
        models = _numbers(ends)
        found.update({m: [leaf[j] for leaf in leaves] for j, m in enumerate(models)})
    return found


def _runs(models: list[int]) -> list[int]:
    """First and last of each run of successive numbers."""
    ends: list[int] = []
    for m in sorted(models):
        if ends and m == ends[-1] + 1:
            ends[-1] = m
        else:
            ends += [m, m]
    return ends


def _numbers(ends: list[int]) -> list[int]:
    return [m for a, b in zip(ends[::2], ends[1::2], strict=True) for m in range(a, b + 1)]


def _orbax() -> Any:
    return importlib.import_module("orbax.checkpoint")
