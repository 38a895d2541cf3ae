"""The steps of loops: what goes round, what is collected, and how they are taken."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeter.intake.onnx.ops.values import affordable, backend, is_known, jax_dtype
from jaxmeter.intake.safety import budget
from jaxmeter.jaxpr.shapes import TooExpensive

LONGEST_UNROLLED = 1024  # steps written out one by one
_MOST_ROUNDS = 10_000_000  # of the innermost of loops within loops
_rounds: ContextVar[int] = ContextVar("_rounds", default=1)


class Step(NamedTuple):
    """The body of a loop: what goes round in it, what it collects."""

    body: Any
    feeds: dict[str, Any]  # inputs that are the same in every step
    carried_in: Sequence[str] = ()
    carried_out: Sequence[str] = ()
    collected: Sequence[str] = ()

    def __call__(
        self, carried: Sequence[Any], feeds: Mapping[str, Any], *more: str
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The carried values after a step; then what it collects, or `more` in its place."""
        feeds = {**self.feeds, **feeds, **dict(zip(self.carried_in, carried, strict=True))}
        wanted = (*self.carried_out, *(more or self.collected))
        out = self.body.values(feeds, wanted)
        return out[: len(carried)], out[len(carried) :]

    def is_known(self, names: Collection[str], wanted: Sequence[str]) -> bool:
        """Whether values can be computed before the data are there, given known inputs' names."""
        graph = self.body.graph
        unknown = set(graph.inputs) - self.feeds.keys() - set(names)
        reads = graph.reads(wanted)
        return unknown.isdisjoint(reads) and all(is_known(self.around(name)) for name in reads)

    def around(self, name: str) -> Any:
        """A value that is the same in every step; None for one that is not."""
        return self.feeds.get(name, self.body.outer.get(name))


def step_of(
    body: Any,
    feeds: dict[str, Any],
    initial: Sequence[Any],
    names: Sequence[str],
    outputs: Sequence[str],
) -> tuple[Step, list[int]]:
    """A step, and which of the carried values go round: not those the body hands on as they are.

    `names` begins with the carried values' names, `outputs` with theirs after a step.
    """
    graph, n = body.graph, len(initial)

    origins = graph.origins
    moving = [i for i in range(n) if origins.get(outputs[i], outputs[i]) != names[i]]
    fixed = {names[i]: initial[i] for i in sorted({*range(n)} - {*moving})}
    step = Step(
        body,
        {**feeds, **fixed},
        carried_in=[names[i] for i in moving],
        carried_out=[outputs[i] for i in moving],
        collected=outputs[n:],
    )
    return step, moving


def iterate(
    step: Step, start: Sequence[Any], slices: Mapping[str, Any], count: int
) -> tuple[Sequence[Any], Sequence[Any]]:
    """What a known number of steps ends with, and what it collects."""
    with repeated(count):
        return _iterated(step, start, slices, count)


def _iterated(
    step: Step, start: Sequence[Any], slices: Mapping[str, Any], count: int
) -> tuple[Sequence[Any], Sequence[Any]]:
    if count == 0:
        blank = {name: np.zeros(x.shape[1:], x.dtype) for name, x in slices.items()}
        shapes = jax.eval_shape(lambda: step(start, blank)[1])
        return start, [np.zeros((0, *s.shape), s.dtype) for s in shapes]
    given = (*slices.items(), *zip(step.carried_in, start, strict=True))
    names = [name for name, value in given if is_known(value)]
    if step.is_known(names, (*step.carried_out, *step.collected)):
        return _unrolled(step, start, slices, count)
    try:
        return _scanned(step, start, slices)
    except TooExpensive:
        raise
    except ValueError as error:  # a shape grows, or a value inside has to be known
        if count > LONGEST_UNROLLED:
            message = f"{error} (and its {count} steps are too many to write out one by one)"
            raise ValueError(message) from error
        return _unrolled(step, start, slices, count)


@contextmanager
def repeated(count: int) -> Iterator[None]:
    """Bounds how often what is inside goes round, with the loops around it."""
    total = _rounds.get() * max(1, count)
    if total > _MOST_ROUNDS:
        raise TooExpensive(f"loops within loops go round {total:.0e} times.")
    before = _rounds.set(total)
    try:
        yield
    finally:
        _rounds.reset(before)


def _scanned(
    step: Step, start: Sequence[Any], slices: Mapping[str, Any]
) -> tuple[Sequence[Any], Sequence[Any]]:
    def one(carried: Sequence[Any], feeds: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        after, collected = step(carried, feeds)
        return cast_like(after, carried), [as_jax(v) for v in collected]

    arrays = {name: as_jax(x) for name, x in slices.items()}
    end, collected = lax.scan(one, [as_jax(v) for v in start], arrays)
    return end, collected


def _unrolled(
    step: Step, start: Sequence[Any], slices: Mapping[str, Any], count: int
) -> tuple[Sequence[Any], Sequence[Any]]:
    """The steps one by one: what is known before the data stays known, and shapes may change."""
    _foresee(step, count, is_known(list(start), *slices.values()))
    carried, rows = start, []
    for i in range(count):
        feeds = {k: np.asarray(x[i]) if is_known(x) else x[i] for k, x in slices.items()}
        carried, collected = step(carried, feeds)
        rows.append(collected)
    columns = list(zip(*rows, strict=True))
    for column in columns:
        affordable((len(column), *np.shape(column[0])), column[0].dtype)
    return carried, [backend(*values).stack(values) for values in columns]


def _foresee(step: Step, count: int, is_static: bool) -> None:
    """Refuses steps, to be written out one by one, that would take too long together."""
    nodes = len(step.body.graph.needed((*step.carried_out, *step.collected)))
    each = budget.EVALUATED_AGAIN if is_static else budget.TRACED_AGAIN
    budget.foresee(count * nodes * each, f"writing out its {count:,} steps")


def cast_like(values: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Values after a step as the scan needs them: of the shapes and dtypes from before it."""
    out = []
    for value, before in zip(map(as_jax, values), like, strict=True):
        if value.shape != before.shape:
            raise ValueError(
                f"a value it carries changes its shape from {list(before.shape)} to "
                f"{list(value.shape)}"
            )
        out.append(value.astype(before.dtype))
    return out


def as_jax(value: Any) -> Any:
    """A value as a JAX array; a known integer too large for it becomes the largest it has."""
    if isinstance(value, list):
        raise ValueError("a sequence cannot be an array")
    if not is_known(value):
        return value
    value = np.asarray(value)
    dtype = jax_dtype(value.dtype)
    if value.dtype != dtype and np.issubdtype(dtype, np.integer):
        value = value.clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return jnp.asarray(value.astype(dtype))
