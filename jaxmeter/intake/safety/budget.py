"""What opening a file may take of a machine: bytes, and seconds, counted before they are spent.

A few hundred bytes of a model can ask for terabytes, or for days. So whatever a file makes this
process compute (constants, initial weights, the pass over a probe batch) is traced first, and what
the trace needs is charged to the account of the file that is being opened. What the account cannot
pay is refused, with what it was and how much it would have taken.

Seconds are counted twice. Operations are counted before they run and take `1 / RATE` seconds each:
a rate that one old core reaches, so that a machine of today is done several times sooner. And a
clock is looked at between operations, for what the count has wrong.

Where no file is being opened there is no account, and nothing is counted.
"""

import glob
import math
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxmeter.jaxpr.memory import human, tree_bytes
from jaxmeter.jaxpr.shapes import TooExpensive

RATE = 2.5e9  # operations a second: multiplications and additions of numbers in a large product
STEP = 1e-3 * RATE  # operations that tracing one more operation or layer is worth: a millisecond
# What may multiply, an operator in a branch or in a loop's body, is worth more: with NumPy, traced.
EVALUATED_AGAIN, TRACED_AGAIN = STEP / 2, 8 * STEP

# Of the default: what any file may take, and what it may for each byte of its own. A byte may be
# compressed, and a layer's output be larger than its weights. In the first part of a file a
# kilobyte may be a layer, which takes long to trace and to compile; the rest is weights.
_BYTES, _BYTES_EACH = 3 * 2**28, 16
_SECONDS, _DENSE, _DENSE_RATE, _BYTE_RATE = 120.0, 2**23, 2**13, 2**22
_SMALL = 1024  # bytes of an array that is not worth counting

_T = TypeVar("_T")


@dataclass(frozen=True)
class OpeningBudget:
    """What opening a file may take.

    Attributes:
      max_bytes: of memory, beyond what the process has: variables and what is computed of them.
      max_seconds: of computation at `RATE`, and on the clock.
    """

    max_bytes: int
    max_seconds: float


def budget_of(
    files: Iterable[Path], max_bytes: int | None = None, max_seconds: float | None = None
) -> OpeningBudget:
    """The budget that was asked for; None: one that grows with the size of the files.

    Raises:
      ValueError: if what was asked for is not positive.
    """
    for name, value in (("max_bytes", max_bytes), ("max_seconds", max_seconds)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, and is {value}.")
    size = sum(file.stat().st_size for file in set(files) if file.is_file())
    seconds = _SECONDS + min(size, _DENSE) / _DENSE_RATE + size / _BYTE_RATE
    return OpeningBudget(
        _BYTES + _BYTES_EACH * size if max_bytes is None else int(max_bytes),
        seconds if max_seconds is None else float(max_seconds),
    )


def files_of(path: Path, weights: Path | None = None) -> list[Path]:
    """The files that a model is in: a folder's all, a checkpoint's by the prefix of their names."""
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    beside = [] if weights is None else weights.parent.glob(f"{glob.escape(weights.name)}*")
    return [path, *(file for file in beside if file.is_file())]


@dataclass
class _Account:
    """What a file may take, and what it has taken so far."""

    files: list[Path]
    max_bytes: int | None
    max_seconds: float | None
    began: float
    budget: OpeningBudget
    operations: float = 0.0
    arrays: dict[int, tuple[Any, int]] = field(default_factory=dict)  # by id: a reference, bytes
    held: int = 0
    refusal: TooExpensive | None = None

    def refuse(self, reason: str) -> TooExpensive:
        """The error, which is kept: frameworks make other errors of what is raised in them."""
        self.refusal = TooExpensive(reason)
        return self.refusal


_account: ContextVar[_Account | None] = ContextVar("_account", default=None)


@contextmanager
def within(
    files: Iterable[Path], max_bytes: int | None = None, max_seconds: float | None = None
) -> Iterator[OpeningBudget]:
    """Charges what is computed in the context to a file's account.

    Raises:
      TooExpensive: inside, for what the budget cannot pay; `budget_of` says what is in it.
    """
    files = list(files)
    budget = budget_of(files, max_bytes, max_seconds)
    before = _account.set(_Account(files, max_bytes, max_seconds, time.monotonic(), budget))
    try:
        yield budget
    finally:
        _account.reset(before)


def current() -> OpeningBudget | None:
    """The budget of the file that is being opened, if one is."""
    account = _account.get()
    return None if account is None else account.budget


def check_refusal() -> None:
    """Raises again what was raised in a framework that made something else of it."""
    account = _account.get()
    if account is not None and account.refusal is not None:
        raise account.refusal


def include(files: Iterable[Path]) -> None:
    """Lets the budget grow by further files of the model, such as those of its weights."""
    if (account := _account.get()) is not None:
        account.files += files
        account.budget = budget_of(account.files, account.max_bytes, account.max_seconds)


def refuse(reason: str) -> TooExpensive:
    """An error that says what is too much, to be raised."""
    account = _account.get()
    return TooExpensive(reason) if account is None else account.refuse(reason)


# --- charges ------------------------------------------------------------------------------------


def work(operations: float, what: str) -> None:
    """Charges operations that are about to run, and looks at the clock.

    Raises:
      TooExpensive: if there are too many, or time is up.
    """
    foresee(operations, what)
    if (account := _account.get()) is not None:
        account.operations += operations
        clock(what)


def foresee(operations: float, what: str) -> None:
    """Raises TooExpensive if operations are too many; what is charged when they run."""
    if (account := _account.get()) is None:
        return
    seconds, most = (account.operations + operations) / RATE, account.budget.max_seconds
    if seconds > most:
        more = f", {seconds:,.0f} s with what came before" if account.operations else ""
        raise account.refuse(
            f"{what} takes {operations:.1e} operations, {operations / RATE:,.0f} s at "
            f"{RATE:.1e} a second{more}; {advice('max_seconds')}"
        )


def clock(what: str) -> None:
    """Raises TooExpensive once opening the file has taken too long by the clock."""
    account = _account.get()
    if account is not None and time.monotonic() - account.began > account.budget.max_seconds:
        raise account.refuse(f"time was up at {what}; {advice('max_seconds')}")


def room(nbytes: int, what: str) -> None:
    """Raises TooExpensive unless there is room for bytes that are about to be taken."""
    if (account := _account.get()) is None:
        return
    if account.held + nbytes > account.budget.max_bytes:
        beside = f" beside {human(account.held)} that are held" if account.held > _SMALL else ""
        raise account.refuse(
            f"{what} takes {nbytes:,} bytes ({human(nbytes)}){beside}, larger than any model "
            f"needs that is so small a file; {advice('max_bytes')}"
        )


def hold(values: _T) -> _T:
    """Counts the NumPy arrays in a pytree for as long as they live; returns it.

    Views count for nothing, as long as what they look at is an array of NumPy's.
    """
    if (account := _account.get()) is not None:
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, list):
                hold(value)
            elif isinstance(value, np.ndarray) and not isinstance(value.base, np.ndarray):
                _count(account, value)
    return values


def _count(account: _Account, array: np.ndarray) -> None:
    key, nbytes = id(array), array.nbytes
    if nbytes < _SMALL or key in account.arrays:
        return

    def forget(_: Any) -> None:
        account.arrays.pop(key)
        account.held -= nbytes

    account.arrays[key] = weakref.ref(array, forget), nbytes
    account.held += nbytes


@contextmanager
def holding(tree: Any, what: str) -> Iterator[None]:
    """Counts the bytes of arrays of any kind while the context lasts."""
    nbytes = tree_bytes(tree)
    room(nbytes, what)
    account = _account.get()
    if account is not None:
        account.held += nbytes
    try:
        yield
    finally:
        if account is not None:
            account.held -= nbytes


def advice(name: str) -> str:
    """What a limit is, and how to have another."""
    budget = current()
    assert budget is not None
    option = "--" + name.replace("_", "-")
    most = human(budget.max_bytes) if name == "max_bytes" else f"{budget.max_seconds:,.0f} s"
    return (
        f"opening it may take {most}. If you know where the file comes from, {name}= in Python or "
        f"{option} on the command line allows more."
    )


def sizes(shape: Iterable[Any]) -> int:
    """Elements of a shape, for one that may be beyond what NumPy could count."""
    return math.prod(int(d) for d in shape)
