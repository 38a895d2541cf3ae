"""What shapes a function of records gives, found by tracing it, never by running it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array

PROBES = 5  # a batch size that no layer is likely to have as its own first axis
_SIZES = (16, 32, 64, 128, 256)  # tried in turn for dimensions of a record that may be any

Shape = tuple[int | None, ...]  # None where any length will do


class TooExpensive(ValueError):
    """Tracing would take more time or memory than any model is worth, whatever the sizes."""


class Leaf(NamedTuple):
    """What is known of one array that the function gives.

    Attributes:
      full: its shape for `PROBES` records.
      row: the shape of one record's row; None if the array has no row for each record.
      dtype: its dtype.
    """

    full: tuple[int, ...]
    row: Shape | None
    dtype: str


class Traced(NamedTuple):
    """A shape that a record may have, and the arrays that the function then gives, in its order."""

    record: tuple[int, ...]
    leaves: tuple[Leaf, ...]


def traced(run: Callable[[Array], Sequence[Any]], shape: Shape, dtype: str) -> Traced:
    """The shapes of `run(x[n, ...])`, a sequence of arrays, for records of `shape`.

    It is traced on one record and then on `PROBES`. Where dimensions are open the two also differ
    in them if the function allows that, which shows what else is open at no further cost.

    Raises:
      Exception: what `run` raises, if no size that was tried will do.
    """

    def shapes(n: int, record: tuple[int, ...]) -> list[Any]:
        return list(jax.eval_shape(run, jax.ShapeDtypeStruct((n, *record), dtype)))

    failure: Exception
    for one, several in _candidates(shape):
        try:
            single, batch = shapes(1, one), shapes(PROBES, several)
        except TooExpensive:
            raise
        except Exception as error:
            failure = error
            continue
        leaves = (
            Leaf(tuple(b.shape), _row(a.shape, b.shape), str(b.dtype))
            for a, b in zip(single, batch, strict=True)
        )
        return Traced(several, tuple(leaves))
    raise failure


def _candidates(shape: Shape) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the single record and of the several, to be tried in turn."""
    if None not in shape:
        yield _filled(shape, 0), _filled(shape, 0)
        return
    for size in _SIZES:
        yield _filled(shape, 2 * size), _filled(shape, size)
        yield _filled(shape, size), _filled(shape, size)


def _filled(shape: Shape, size: int) -> tuple[int, ...]:
    return tuple(size if d is None else d for d in shape)


def _row(single: tuple[int, ...], batch: tuple[int, ...]) -> Shape | None:
    if len(single) != len(batch) or single[:1] != (1,) or batch[:1] != (PROBES,):
        return None
    return tuple(b if a == b else None for a, b in zip(single[1:], batch[1:], strict=True))
