"""Signals of many records, streamed through the devices in batches."""

import shutil
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from jaxmeter.data.records import Records
from jaxmeter.devices import Devices, devices_for
from jaxmeter.jaxpr.memory import human
from jaxmeter.signals import storage
from jaxmeter.signals.planning import DEVICE_BUDGET, Plan, plan
from jaxmeter.signals.program import Storage, traced, wire_dtype
from jaxmeter.signals.scalars import context as scalars_context
from jaxmeter.signals.scalars.values import Context
from jaxmeter.signals.spec import AnySpec, Signals, SignalSpec
from jaxmeter.target import Target


def extract(
    target: Target,
    records: Records,
    spec: AnySpec = SignalSpec(),  # noqa: B008 (frozen)
    *,
    device_budget: int = DEVICE_BUDGET,
    host_budget: int | None = None,
    out: str | PathLike[str] | None = None,
    dtype: Storage = "float32",
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Signals:
    """Signals of many records, streamed through the devices in batches.

    Equal to `jax.vmap(of_example)`, so a record's signals do not depend on its batch. One program
    is compiled for a target, a spec and a size of batch, and kept by JAX from call to call. While
    a device computes a batch, the last one's signals go to the host and the next one's records to
    the device.

    Args:
      target: the classifier.
      records: n records; `is_member` is not looked at.
      spec: what to compute.
      device_budget: bytes that the target, a batch and its intermediate arrays may take on each
        device; the batch is chosen by it, see `signals.plan`.
      host_budget: bytes that the result may take in host memory; None for no limit.
      out: a folder, not there yet or empty, for a result larger than memory. It is written under
        another name and renamed when complete; `signals.load` reads it.
      dtype: "bfloat16" stores outputs and gradients in half the bytes. Each number is rounded to 8
        bits: an error of at most 2^-8 (0.4%) of itself. They are computed as always, and loss,
        norms and labels are stored as computed.
      devices: what computes; None for all of this process (`jax.local_devices()`). The records of
        a batch are dealt evenly to them. With devices of other processes too (`jax.devices()`
        under `jax.distributed`) the call is collective: every process passes the same records,
        each computes its share, and each gets the whole result. A folder is then written by the
        first process and read by all, so it must lie where all see it.
      progress: called as `progress(records done, n)` before the first and after every batch.

    Returns:
      Signals as NumPy arrays in the order of the records: in host memory, or memory-mapped and
      read-only where `out` is given.

    Raises:
      ValueError: for records the target cannot take (shape, labels outside its classes, values
        that are not finite), names it does not have, a budget or a disk that is too small, or
        processes that do not pass the same records.
      FileExistsError: if there is something at `out` already.

    >>> from jaxmeter import Records, from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": np.zeros((3, 2), np.float32)})
    >>> records = Records.of(members=(np.ones((4, 3)), [0, 1, 1, 0]),
    ...                      nonmembers=(np.zeros((4, 3)), [0, 1, 1, 0]))
    >>> extract(net, records).loss.shape
    (8,)
    """
    target = target.for_inputs(np.shape(records.x)[1:])
    check_records(target, records)
    spec = spec.resolved(target)
    group = devices_for(jax.local_devices() if devices is None else devices, len(records.y))
    todo = plan(
        target,
        records.x,
        spec,
        device_budget=device_budget,
        host_budget=None if out is not None else host_budget,
        dtype=dtype,
        devices=group.devices,
    )
    trouble = None
    if out is not None and group.rank == 0:
        try:
            _check_disk(storage.check_free(out), todo)
        except (OSError, ValueError) as error:
            if group.processes == 1:
                raise
            trouble = error
    if group.processes > 1:
        _agree(records, trouble)
    # Every process makes the same context of the same records: that is less than to agree on one.
    context = context_of(target, records, spec, device_budget=device_budget)
    program = traced(target, records.x, spec, dtype, group, todo.batch)
    held = jax.device_put((target, context), group.everywhere)
    run = partial(_stream, program.lower().compile(), held, records, group, todo.batch, progress)
    whole = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((todo.n, *leaf.shape[1:]), leaf.dtype), program.out_info
    )
    if out is None:
        result = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), whole)
        run(result)
        return result.only(spec)  # a pytree's dicts come back sorted by name
    if group.rank == 0:
        with storage.writing(out, whole.only(spec)) as result:
            run(result)
    else:
        run(None)
    if group.processes > 1:
        multihost_utils.sync_global_devices("jaxmeter: the folder of signals is complete")
    return storage.load(out)


def context_of(
    target: Target, records: Records, spec: AnySpec, *, device_budget: int = DEVICE_BUDGET
) -> Context:
    """What the scalars of a spec compare each of these records with, for `of_example`."""
    target = target.for_inputs(np.shape(records.x)[1:])
    kinds = spec.resolved(target).scalars
    return scalars_context.context_of(target, records.x, records.y, kinds, device_budget)


def check_records(target: Target, records: Records) -> None:
    """Refuses records that the target cannot have been trained or tested on."""
    n_classes = target.spec.n_classes
    assert n_classes is not None, "for_inputs fills it in"
    if not len(records.y):
        raise ValueError("there are no records to extract signals of.")
    y = np.asarray(records.y)
    wrong = np.flatnonzero((y < 0) | (y >= n_classes))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} labels lie outside 0..{n_classes - 1}, the target's {n_classes} classes "
            f"(first: record {wrong[0]} has label {y[wrong[0]]}). A wrong label gives a "
            "wrong loss; check that labels are counted from 0 and belong to this model."
        )


# --- The stream ----------------------------------------------------------------------------------


def _stream(
    program: Callable[..., Signals],
    held: tuple[Target, Context],
    records: Records,
    group: Devices,
    batch: int,
    progress: Callable[[int, int], None] | None,
    result: Signals | None,
) -> None:
    """Runs all batches and writes their rows into `result`; None where another process has it."""
    target, n = held[0], len(records.y)
    mine = batch * group.here
    step = mine * group.processes
    if progress is not None:
        progress(0, n)

    def put(start: int) -> tuple[Array, Array]:
        first = start + group.rank * mine
        rows = np.minimum(np.arange(first, first + mine), n - 1)  # padded: one compilation
        x = np.asarray(records.x[rows], wire_dtype(target, records.x))
        y = np.asarray(records.y[rows], np.int32)
        return jax.device_put((x, y), group.dealt)

    def fetch(start: int, found: Signals) -> None:
        stop = min(start + step, n)
        if group.processes > 1:
            gathered = multihost_utils.process_allgather(jax.tree.map(_bits, found))
            if result is not None:
                jax.tree.map(
                    lambda to, a: _write(to, start, a.reshape(step, *a.shape[2:]).view(to.dtype)),
                    result,
                    gathered,
                )
        else:
            jax.tree.map(partial(_write_shards, start), result, found)
        if progress is not None:
            progress(stop, n)

    waiting: tuple[int, Signals] | None = None
    for start in range(0, n, step):
        inputs = put(start)
        if waiting is not None and group.devices[0].platform == "cpu":
            # A GPU runs programs one after another; the CPU would run both at once, in twice the
            # memory and no less time.
            jax.block_until_ready(waiting[1])
        found = program(*held, *inputs)
        del inputs
        jax.tree.map(lambda leaf: leaf.copy_to_host_async(), found)
        if waiting is not None:
            fetch(*waiting)
        waiting = (start, found)
        del found
    if waiting is not None:
        fetch(*waiting)


def _write_shards(start: int, to: Any, leaf: Array) -> None:
    """Writes every device's rows straight to where they belong; what pads the last batch, not."""
    for shard in leaf.addressable_shards:
        first = start + (shard.index[0].start or 0)
        count = min(len(to) - first, len(shard.data))
        if count > 0:
            to[first : first + count] = np.asarray(shard.data)[:count]


def _write(to: Any, start: int, rows: Any) -> None:
    to[start : start + len(rows)] = rows[: len(to) - start]


def _bits(leaf: Array) -> Any:
    """The same bits in a type that every collective knows."""
    array = np.asarray(leaf)
    return array if array.dtype == np.float32 else array.view(f"u{array.itemsize}")


# --- Before any work -----------------------------------------------------------------------------


def _check_disk(folder: Path, todo: Plan) -> None:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if todo.result_bytes > free:
        raise ValueError(
            f"the signals of {todo.n} records take {human(todo.result_bytes)}, but the disk of "
            f"{folder} has {human(free)} free. Name a folder on a larger one, or ask for fewer or "
            "smaller signals or dtype='bfloat16'."
        )


def _agree(records: Records, trouble: Exception | None) -> None:
    """All processes learn of what would make one of them stop, and none waits for it forever."""
    content = zlib.crc32(
        np.ascontiguousarray(records.y).data, zlib.crc32(np.ascontiguousarray(records.x).data)
    )
    mine = np.array([content, len(records.y), trouble is not None], np.uint32)
    every = multihost_utils.process_allgather(mine)
    if trouble is not None:
        raise trouble
    if every[:, 2].any():
        raise RuntimeError("another process cannot write the folder of signals; see its error.")
    if (every != every[0]).any():
        raise ValueError(
            f"the {len(every)} processes do not pass the same records ({every[:, 1].tolist()} of "
            "them): each computes its share of every batch, so that all need all. Pass the same "
            "arrays everywhere, or devices=jax.local_devices() to extract alone."
        )
