"""If, Loop and Scan.

Reverse-mode differentiation needs to know how many steps a loop takes before the data are there, so
`Loop` finds that out: from its trip count, or by computing its condition (and what the condition
depends on) step by step with NumPy. Then it is a `lax.scan`, whose size does not grow with the
number of steps.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeter.intake.onnx.ops.steps import (
    LONGEST_UNROLLED,
    Step,
    as_jax,
    cast_like,
    iterate,
    repeated,
    step_of,
)
from jaxmeter.intake.onnx.ops.values import Table, affordable, backend, is_known, jax_dtype, known

_LONGEST = 1_000_000  # steps of any loop
_LONGEST_MASKED = 65_536  # steps of a loop that the data may leave early


def if_(condition: Any, *, then_branch: Any, else_branch: Any) -> Any:
    """If: one branch where the condition is known, else `lax.cond`."""
    if is_known(condition):
        return (then_branch if _truth(condition) else else_branch)()
    shapes: dict[int, Any] = {}

    def branch(i: int, body: Any) -> Any:
        out = jax.tree.map(as_jax, body())
        shapes[i] = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", out)
        return out

    # Each branch is traced once: an `If` in an `If` in an `If` would multiply what is more.
    branches = [partial(branch, 0, then_branch), partial(branch, 1, else_branch)]
    try:
        return lax.cond(_truth(condition), *branches)
    except TypeError:
        if len(shapes) == 2 and shapes[0] != shapes[1]:
            raise ValueError(
                "its condition depends on the data, and its branches give "
                f"{shapes[0]} and {shapes[1]}."
            ) from None
        raise


def loop(
    trip_count: Any = None, condition: Any = None, *initial: Any, body: Any, n_outputs: int
) -> tuple[Any, ...]:
    """Loop, differentiable in reverse: `lax.scan` over a number of steps known before the data.

    Where the data decide when it ends, it goes on to a known bound and keeps what it had when its
    condition became false.
    """
    # A body's inputs are the step's number, whether the loop is running, then what is carried; its
    # outputs are whether it goes on, what is carried on, then what each step adds to the stacks.
    number, running, *names = body.graph.inputs
    inside, *after = body.graph.outputs
    n = len(initial)
    # A body that runs is in a loop that is running, so that input is known. What a body hands on
    # unchanged is not carried: it stays known, and with it shapes that are computed of it.
    step, moving = step_of(body, {running: np.True_}, initial, names, after)
    start: Sequence[Any] = [initial[i] for i in moving]
    condition = np.True_ if condition is None else condition
    most = math.inf
    if trip_count is not None and is_known(trip_count):
        most = max(0, int(_scalar(trip_count)))
    if is_known(condition) and not _truth(condition):
        most = 0
    # Three ways, the cheapest that will do. Known steps are a scan; where values are sequences,
    # whose lengths change, each step is a program of its own; and where the data decide when to
    # stop, a scan to the bound computes on after that, and throws it away.
    counted = _count(step, start, number, inside, most)

    if counted is not None and is_known(condition, trip_count):
        if counted > _LONGEST:
            raise ValueError(f"it takes more than {_LONGEST} steps.")
        counted = int(counted)
        # What follows from the step's number alone is computed here, with NumPy, and fed.
        step, start, slices, told = _told(step, start, number, counted)
        end, collected = iterate(step, start, slices, counted)
        ends = {**told, **dict(zip(step.carried_in, end, strict=True))}
        end = [ends[names[i]] for i in moving]
    elif any(isinstance(v, list) for v in start):
        end, collected = _written_out(step, start, number, inside, most)
    else:
        what = "trip count" if is_known(condition) and counted is not None else "condition"
        bound = most if counted is None else counted
        if bound > _LONGEST_MASKED:
            raise ValueError(
                f"its {what} depends on the data and nothing that is known before them bounds its "
                "steps: such a loop cannot be differentiated in reverse. Export it with a bound."
            )
        if n_outputs > n:  # a stack as long as the loop took: shapes must not depend on data
            raise ValueError(
                f"its {what} depends on the data, and so would the length of what it stacks."
            )
        # A condition that was counted out holds to the end, so only the trip count can stop it.
        stop = (number, inside if counted is None else None, trip_count)
        end, collected = _masked(step, start, _truth(condition), stop, int(bound)), ()
    finals = dict(zip(moving, end, strict=True))
    return (*(finals[i] if i in finals else initial[i] for i in range(n)), *collected)


def scan(
    *inputs: Any,
    body: Any,
    num_scan_inputs: int,
    directions: Sequence[int] = (),
    scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
    opset: int,
) -> tuple[Any, ...]:
    """Scan; that of opset 8 has a batch axis first and an optional input of lengths."""
    if opset < 9:
        return _batched_scan(*inputs, body=body, count=num_scan_inputs, directions=directions)
    names, outputs = body.graph.inputs, body.graph.outputs
    n = len(inputs) - num_scan_inputs
    step, moving = step_of(body, {}, inputs[:n], names, outputs)
    # `iterate` goes forward over first axes: inputs are moved and turned to that, outputs back.
    slices = {}
    for i in range(num_scan_inputs):
        x = _moved(inputs[n + i], _item(scan_input_axes, i), 0)
        slices[names[n + i]] = x[::-1] if _item(scan_input_directions, i) else x
    (length,) = {len(x) for x in slices.values()}
    end, collected = iterate(step, [inputs[i] for i in moving], slices, length)
    finals = dict(zip(moving, end, strict=True))
    stacked = (y[::-1] if _item(scan_output_directions, i) else y for i, y in enumerate(collected))
    return (
        *(finals[i] if i in finals else inputs[i] for i in range(n)),
        *(_moved(y, 0, _item(scan_output_axes, i)) for i, y in enumerate(stacked)),
    )


def _batched_scan(
    lengths: Any, *inputs: Any, body: Any, count: int, directions: Sequence[int]
) -> tuple[Any, ...]:
    """Opset 8's Scan, one example after the other."""
    n = len(inputs) - count
    size, steps = inputs[n].shape[:2]
    if lengths is not None and np.any(known(lengths, "sequence_lens") != steps):
        raise ValueError("sequences of different lengths are not supported.")
    each = [
        scan(
            *(x[i] for x in inputs),
            body=body,
            num_scan_inputs=count,
            scan_input_directions=directions,
            opset=9,
        )
        for i in range(size)
    ]
    return tuple(backend(*values).stack(values) for values in zip(*each, strict=True))


# --- steps --------------------------------------------------------------------------------------


def _count(step: Step, start: Sequence[Any], number: str, inside: str, most: float) -> float | None:
    """How many steps are taken; None if the data decide, infinity for more than there may be."""
    graph = step.body.graph
    initial = dict(zip(step.carried_in, start, strict=True))
    after = dict(zip(step.carried_in, step.carried_out, strict=True))
    # What the condition depends on over any number of steps: what it reads, what these are carried
    # on from, and so forth, until nothing is added.
    reads = graph.reads([inside])
    while True:
        needed = [name for name in step.carried_in if name in reads]
        more = graph.reads([inside, *(after[name] for name in needed)])
        if more == reads:
            break
        reads = more
    wanted = [inside, *(after[name] for name in needed)]
    carried = {name: initial[name] for name in needed}
    if not is_known(carried) or not step.is_known({*needed, number}, wanted):
        return None
    # A condition of nothing that changes is the same in every step: one look tells all.
    once = not needed and number not in reads
    for i in range(int(min(most, 1 if once else _LONGEST))):
        going, *values = step.body.values({**step.feeds, **carried, number: np.asarray(i)}, wanted)
        if not _truth(going):
            return i + 1
        carried = dict(zip(needed, values, strict=True))
    return most if once or most <= _LONGEST else math.inf


def _told(
    step: Step, start: Sequence[Any], number: str, count: int
) -> tuple[Step, Sequence[Any], dict[str, Any], dict[str, Any]]:
    """Takes out of a loop what can be told beforehand for each of its steps.

    That is its counters, and what `Gather` reads at them, which is how a sequence comes into a loop
    that was a TensorFlow layer. As slices that a scan is fed, their gradients cost no more than
    they do; read inside, each step's would be as large as the whole sequence.

    Returns:
      The step, its initial values, the slices, and what the counters end with.
    """
    slices: dict[str, Any] = {number: np.arange(count)}
    graph = step.body.graph
    initial = dict(zip(step.carried_in, start, strict=True))
    after = dict(zip(step.carried_in, step.carried_out, strict=True))
    names = {name for name, v in initial.items() if isinstance(v, np.ndarray) and v.size <= 16}
    # Counters follow from the step's number and from each other: one that reads anything else is
    # none, and then neither is what reads it.
    while any(gone := [n for n in names if not step.is_known({*names, number}, [after[n]])]):
        names.difference_update(gone)
    counters = [name for name in step.carried_in if name in names]
    reads = {}
    for node in graph.nodes:
        if node.op == "Gather" and node.attributes.get("axis", 0) == 0:
            data, index = node.inputs
            changes = not graph.reads([index]).isdisjoint({*counters, number})
            if (
                changes
                and step.around(data) is not None
                and step.is_known({*names, number}, [index])
            ):
                reads[node.outputs[0]] = (step.around(data), index)
    wanted = [*(after[name] for name in counters), *(index for _, index in reads.values())]
    if not wanted or not 0 < count <= _LONGEST_MASKED:
        return step, start, slices, {}
    carried, rows = {name: initial[name] for name in counters}, []
    for i in range(count):
        feeds = {**step.feeds, **carried, number: np.asarray(i)}
        values = step.body.values(feeds, wanted)
        rows.append([*carried.values(), *values[len(counters) :]])
        carried = dict(zip(counters, values, strict=False))
    columns = list(zip(*rows, strict=True))
    # Rows of one stack have one shape; where it grows from step to step, the loop stays as it was.
    if any(len({np.shape(value) for value in column}) > 1 for column in columns):
        return step, start, slices, {}
    for column in columns:
        affordable((count, *np.shape(column[0])))
    stacked = [np.stack(column) for column in columns]
    slices.update(zip(counters, stacked, strict=False))
    for (output, (data, _)), places in zip(reads.items(), stacked[len(counters) :], strict=True):
        slices[output] = _rows(data, places)
    left = [i for i, name in enumerate(step.carried_in) if name not in names]
    step = step._replace(
        body=type(step.body)(graph.fed(reads), step.body.outer),
        carried_in=[step.carried_in[i] for i in left],
        carried_out=[step.carried_out[i] for i in left],
    )
    return step, [start[i] for i in left], slices, carried


def _rows(x: Any, places: np.ndarray) -> Any:
    """`x[places]`, where possible without a gather."""
    size = x.shape[0]
    if np.any((places < -size) | (places >= size)):
        raise ValueError(f"it reads beyond the {size} rows of what it goes through.")
    places = np.where(places < 0, places + size, places)
    # All rows in order is the usual case; a slice's gradient is a pad, a gather's a scatter.
    if np.array_equal(places, np.arange(len(places))):
        return x[: len(places)]
    affordable((len(places), *x.shape[1:]), x.dtype)
    return backend(x).take(x, places, axis=0)


def _written_out(
    step: Step, start: Sequence[Any], number: str, inside: str, most: float
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Steps one by one until the condition is false, where it comes from the length of sequences.

    Stacks nothing but what is collected on the way.
    """
    carried, rows = start, []
    for i in range(int(min(most, LONGEST_UNROLLED))):
        carried, (going, *collected) = step(
            carried, {number: np.asarray(i)}, inside, *step.collected
        )
        rows.append(collected)
        if not _truth(known(going, "condition")):
            break
    else:
        if most > LONGEST_UNROLLED:
            raise ValueError(f"it carries sequences for more than {LONGEST_UNROLLED} steps.")
    return carried, [backend(*values).stack(values) for values in zip(*rows, strict=True)]


def _masked(
    step: Step,
    start: Sequence[Any],
    starts: Any,
    stop: tuple[str, str | None, Any],
    count: int,
) -> Sequence[Any]:
    """What a loop ends with that the data may stop before its last step.

    Once it has stopped, the body is fed the initial values again: it can compute on those, while
    on the final ones it might give a NaN, which not even a zero cotangent would stop.
    """
    number, inside, trip_count = stop
    first = [as_jax(v) for v in start]

    def one(state: tuple[Any, list[Any]], i: Any) -> tuple[tuple[Any, list[Any]], None]:
        going, carried = state  # `going`: whether this step still counts
        if trip_count is not None and not is_known(trip_count):
            going = going & (i < _scalar(trip_count))
        fed = [jnp.where(going, v, v0) for v, v0 in zip(carried, first, strict=True)]
        feeds = {number: jnp.where(going, i, 0)}
        if inside is None:
            (after, _), going_on = step(fed, feeds, *step.carried_out), going
        else:
            after, (condition,) = step(fed, feeds, inside)
            going_on = going & _truth(condition)
        kept = zip(cast_like(after, carried), carried, strict=True)
        return (going_on, [jnp.where(going, new, old) for new, old in kept]), None

    with repeated(count):
        (_, end), _ = lax.scan(one, (as_jax(starts), first), jnp.arange(count, dtype=_int()))
    return end


def _int() -> Any:
    return jax_dtype(np.int64)


def _scalar(value: Any) -> Any:
    return backend(value).reshape(value, ())


def _truth(value: Any) -> Any:
    """A condition, also one of shape [1]: a Python bool if it is known."""
    return bool(np.asarray(value).reshape(())) if is_known(value) else value.reshape(())


def _item(values: Sequence[int], i: int) -> int:
    return values[i] if i < len(values) else 0


def _moved(x: Any, source: int, destination: int) -> Any:
    return backend(x).moveaxis(x, source, destination) if source != destination else x


TABLE: Table = {"If": if_, "Loop": loop, "Scan": scan}
