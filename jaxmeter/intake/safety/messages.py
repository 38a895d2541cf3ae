"""What goes between this process and the one that opens a file: JSON and arrays, never objects.

A message is the length of its head, the head, and the arrays' bytes one after the other. The other
end may be in a stranger's hands, so every length is checked before anything is made of that size.
"""

import json
import math
import os
import select
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

_PATIENCE = 0.5  # seconds
_LARGEST_HEAD = 2**28  # bytes; names and texts of a model
# By name: numbers only. `ml_dtypes` has the short floats, which NumPy knows once they are imported.
_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "int4", "uint4"),
}

Arrays = Mapping[str, np.ndarray]


class Gone(Exception):
    """The other end closed, was killed, or does not keep to the form."""


class Late(Exception):
    """The deadline passed."""


def send(place: int, head: dict[str, Any], arrays: Arrays = {}) -> None:  # noqa: B006 (never written to)
    """Writes a message to a file descriptor."""
    kept = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    if strange := [name for name, value in kept.items() if value.dtype.name not in _DTYPES]:
        raise ValueError(f"{strange[0]!r} holds {kept[strange[0]].dtype.name}, not numbers.")
    shapes = {name: [value.dtype.name, list(value.shape)] for name, value in kept.items()}
    text = json.dumps([head, shapes]).encode()
    try:
        _write(place, len(text).to_bytes(8, "little") + text)
        for value in kept.values():
            _write(place, value.reshape(-1).view(np.uint8).data)
    except (BrokenPipeError, ConnectionError) as error:
        raise Gone from error


def receive(
    place: int,
    largest: int,
    deadline: float = math.inf,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a message: its head and its arrays.

    Args:
      place: the file descriptor.
      largest: bytes that its arrays may have together.
      deadline: `time.monotonic()` after which to give up.
      meanwhile: called twice a second while nothing comes; what it raises ends the wait.

    Raises:
      Gone: if the other end closes before the message does, or breaks the form.
      Late: if the deadline passes.
    """
    read = partial(_read, place, deadline=deadline, meanwhile=meanwhile)
    length = int.from_bytes(read(8), "little")
    if length > _LARGEST_HEAD:
        raise Gone
    try:
        head, shapes = json.loads(bytes(read(length)))
        if not isinstance(head, dict):
            raise Gone
        found: dict[str, np.ndarray] = {}
        for name, (kind, shape) in shapes.items():
            if kind not in _DTYPES or any(not isinstance(d, int) or d < 0 for d in shape):
                raise Gone
            dtype = _dtype(kind)
            size = dtype.itemsize
            for d in shape:
                size *= d
            largest -= size
            if largest < 0:
                raise Gone
            found[name] = np.frombuffer(read(size), dtype).reshape(shape)
    except (ValueError, TypeError, RecursionError) as error:
        raise Gone from error
    return head, found


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(getattr(__import__("ml_dtypes"), name))


def _write(place: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(place, view[: 2**20]) :]


def _read(place: int, size: int, deadline: float, meanwhile: Callable[[], None]) -> bytearray:
    """Exactly `size` bytes. The buffer grows with what comes, not with what is promised."""
    found = bytearray()
    while len(found) < size:
        left = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([place], [], [], min(left, _PATIENCE))
        if not ready and left <= _PATIENCE:
            raise Late
        if not ready:
            meanwhile()
            continue
        piece = os.read(place, min(size - len(found), 2**20))
        if not piece:
            raise Gone
        found += piece
    return found
