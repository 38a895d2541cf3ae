"""Signals of stacked targets, model by model and view by view."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeter.data.records import Records
from jaxmeter.jaxpr.memory import human
from jaxmeter.shadow.stacked import count, model
from jaxmeter.shadow.views import View
from jaxmeter.signals import extraction, planning, storage
from jaxmeter.signals.planning import DEVICE_BUDGET
from jaxmeter.signals.program import Storage
from jaxmeter.signals.spec import AnySpec, Signals, SignalSpec
from jaxmeter.target import Target

LOGITS_AND_LOSS = SignalSpec(label=False)


def extract(
    references: Target,
    records: Records,
    spec: AnySpec = LOGITS_AND_LOSS,
    *,
    queries: Sequence[View] = (),
    out: str | PathLike[str] | None = None,
    device_budget: int = DEVICE_BUDGET,
    host_budget: int | None = None,
    dtype: Storage = "float32",
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Signals:
    """Signals of n records of each of k models; for each model those of `jaxmeter.extract`.

    Args:
      references: stacked targets, or one target (a stack of one).
      records: n records; `is_member` is not looked at.
      spec: what to compute; by default logits and loss.
      queries: views of the records, see `views`; none for the records as they are.
      out: a folder, not there yet or empty, into which the result is streamed. It is written under
        another name and renamed when complete; `load` reads it. The models are not needed then.
      device_budget: as for `jaxmeter.extract`.
      host_budget: bytes that the result may take in host memory; None for no limit. A folder's
        result takes none.
      dtype: as for `jaxmeter.extract`.
      devices: likewise.
      progress: called as `progress(passes done, passes)` before the first and after every pass of
        a model over a view.

    Returns:
      Signals whose arrays have leading axes `[k, n]`, or `[k, q, n]` if there are queries.

    Raises:
      ValueError: as `jaxmeter.extract`; and for views of records that are no images. Before any
        work if the result exceeds `host_budget`.
      FileExistsError: if there is something at `out` already.

    >>> from jaxmeter import from_function
    >>> from jaxmeter.shadow import stack
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": np.zeros((3, 2), np.float32)})
    >>> records = Records.of(members=(np.ones((4, 3)), [0, 1, 1, 0]),
    ...                      nonmembers=(np.zeros((4, 3)), [0, 1, 1, 0]))
    >>> extract(stack([net, net]), records).loss.shape
    (2, 8)
    """
    k, looks = count(references), tuple(queries) or (View(),)
    if out is not None:
        storage.check_free(out)
    settings: dict[str, Any] = {"device_budget": device_budget, "dtype": dtype, "devices": devices}
    if out is None:
        each = k * len(looks)
        check_memory(model(references, 0), each, records, spec, host_budget=host_budget, **settings)
    # View by view, so that each is made once; a model's arrays are small beside the records.
    passes = _passes(references, records, spec, k, looks, settings)
    first = next(passes)
    spec = spec.resolved(model(references, 0).for_inputs(np.shape(records.x)[1:]))
    axes = (k, len(looks)) if queries else (k,)

    def stacked(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype)

    def fill(result: Signals) -> None:
        if progress is not None:
            progress(0, k * len(looks))
        for done, (i, q, one) in enumerate(chain([first], passes), start=1):
            _put(result, (i, q) if queries else (i,), one)
            if progress is not None:
                progress(done, k * len(looks))

    whole = jax.tree.map(stacked, first[2])
    if out is None:
        result = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), whole)
        fill(result)
        return result.only(spec)
    with storage.writing(out, whole.only(spec)) as result:
        fill(result)
    return storage.load(out)


def check_memory(
    one: Target,
    k: int,
    records: Records,
    spec: AnySpec,
    *,
    host_budget: int | None,
    **settings: Any,
) -> None:
    """Raises a ValueError if signals of n records by k models like `one` exceed a host budget.

    A view that models are queried with counts as a model. `settings` are those of `signals.plan`.
    """
    if host_budget is None:
        return
    todo = planning.plan(one, records.x, spec, **settings)
    total = k * todo.result_bytes
    if total > host_budget:
        raise ValueError(
            f"the signals of {todo.n} records by {k} models take {human(total)} ({total:,} bytes), "
            f"more than the host budget of {human(host_budget)}: {human(todo.record_bytes)} a "
            "record and model. Have fewer models, records, or signals (norms of gradients are "
            "small), let shadow.extract write them to a folder (out=...), or raise the budget, "
            "from which an audit takes the target's own signals first."
        )


def load(folder: str | PathLike[str]) -> Signals:
    """Signals that `extract(..., out=folder)` wrote, memory-mapped and read-only.

    Raises:
      FileNotFoundError: if the folder holds no signals.
      ValueError: if its files are not what the manifest says. Nothing is unpickled.
    """
    return storage.load(Path(folder))


def _put(result: Signals, place: tuple[int, ...], one: Signals) -> None:
    def put(to: Any, leaf: Any) -> None:
        to[place] = leaf

    jax.tree.map(put, result, one)


def _passes(
    references: Target,
    records: Records,
    spec: AnySpec,
    k: int,
    looks: Sequence[View],
    settings: dict[str, Any],
) -> Iterator[tuple[int, int, Signals]]:
    for q, look in enumerate(looks):
        seen = records._replace(x=look(np.asarray(records.x)))
        for i in range(k):
            yield i, q, extraction.extract(model(references, i), seen, spec, **settings)
