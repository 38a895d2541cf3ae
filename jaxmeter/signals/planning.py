"""How much memory signals take on the device and on the host, known before any work."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxmeter.devices import devices_for
from jaxmeter.jaxpr.equations import bodies, body_of
from jaxmeter.jaxpr.memory import human, nbytes, peak, tree_bytes
from jaxmeter.signals.program import Storage, batch_of, traced
from jaxmeter.signals.scalars.context import context_shapes
from jaxmeter.signals.spec import AnySpec
from jaxmeter.target import Target

DEVICE_BUDGET = 2**30  # bytes a batch may occupy while it is computed
LARGEST_BATCH = 1024


class Plan(NamedTuple):
    """How `extract` would work, known before any work.

    Attributes:
      n: records.
      devices: how many devices share them.
      batch: records that one device computes at once.
      record_bytes: memory one record's signals take, on the host or in the folder.
      batch_bytes: memory of one device at work, without the target: a batch's inputs, signals and
        intermediate arrays, the next batch's inputs and the last one's signals.
      model_bytes: the target's arrays, and what scalars compare records with; every device has
        them.
    """

    n: int
    devices: int
    batch: int
    record_bytes: int
    batch_bytes: int
    model_bytes: int

    @property
    def batches(self) -> int:
        """How often the compiled program runs."""
        return -(-self.n // (self.batch * self.devices))

    @property
    def result_bytes(self) -> int:
        """Memory the whole result takes, on the host or in the folder."""
        return self.n * self.record_bytes

    @property
    def device_bytes(self) -> int:
        """Memory of one device at work."""
        return self.model_bytes + self.batch_bytes


def plan(
    target: Target,
    x: ArrayLike,
    spec: AnySpec,
    *,
    device_budget: int = DEVICE_BUDGET,
    host_budget: int | None = None,
    dtype: Storage = "float32",
    devices: Sequence[jax.Device] | None = None,
) -> Plan:
    """How `extract` would go about records `x` `[n, ...]`; computes no signal.

    The batch is a power of two: at most 1024, and no more than the records need. A first one is
    chosen by the most bytes that are alive at once in the traced program. That program is then
    compiled, as `extract` would have to, and the batch made smaller until what the compiler reports
    fits into `device_budget` beside the target's arrays. (On CPU, where the compiler does not count
    all, the larger of the two estimates is taken, and room for a copy of the largest operands.)
    Arguments are those of `extract`.

    Raises:
      ValueError: if not even one record fits `device_budget`, or the result exceeds `host_budget`
        (bytes; None: no limit). The message has the numbers.

    >>> from jaxmeter import SignalSpec, from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": np.zeros((256, 100), np.float32)})
    >>> todo = plan(net, np.zeros((50_000, 256), np.float32), SignalSpec(gradients=("w",)))
    >>> todo.result_bytes, 4 * (256 + 100 + 100 + 1) + 100  # factors, logits, loss, label a record
    (96400000, 1928)
    """
    n, shape = np.shape(x)[0], np.shape(x)[1:]
    target = target.for_inputs(shape)
    spec = spec.resolved(target)
    group = devices_for(jax.local_devices() if devices is None else devices, n)
    batch = LARGEST_BATCH
    while batch // 2 * len(group.devices) >= max(n, 1):
        batch //= 2
    model_bytes = tree_bytes(target) + tree_bytes(context_shapes(target, x, spec.scalars))
    room = device_budget - model_bytes

    def needs(batch: int, compiled: bool) -> int:
        alone = traced(target, x, spec, dtype, group.alone, batch)
        between = _alive(alone)
        if compiled:
            program = traced(target, x, spec, dtype, group, batch)
            between = _counted(program, alone, group.devices[0].platform)
        # The next inputs wait, and the last signals are on their way to the host, meanwhile.
        return 2 * (tree_bytes(batch_of(target, x, batch)) + tree_bytes(alone.out_info)) + between

    while batch > 1 and (guess := needs(batch, compiled=False)) > room:
        batch = smaller(batch, guess, room)
    while (batch_bytes := needs(batch, compiled=True)) > room:
        if batch == 1:
            raise ValueError(
                f"one record's signals need {human(batch_bytes)} beside the target's "
                f"{human(model_bytes)}, more than the device budget of {human(device_budget)}. "
                "Ask for fewer gradients (their norms, or the last layer's, are cheap) or raise "
                "the budget."
            )
        batch = smaller(batch, batch_bytes, room)
    program = traced(target, x, spec, dtype, group, batch)
    record_bytes = tree_bytes(program.out_info) // (batch * group.here)
    if host_budget is not None and n * record_bytes > host_budget:
        raise ValueError(
            f"the signals of {n} records take {human(n * record_bytes)} ({n * record_bytes:,} "
            f"bytes), more than the host budget of {human(host_budget)}: {human(record_bytes)} a "
            "record. Let extract write them to a folder (out=...), ask for fewer or smaller "
            "signals or dtype='bfloat16', audit fewer records, or raise the budget."
        )
    return Plan(n, len(group.devices), batch, record_bytes, batch_bytes, model_bytes)


def smaller(batch: int, needs: int, may: int) -> int:
    """The next smaller batch to try, when one of `batch` records needs more bytes than it may."""
    # 5% more than its share, for what does not grow with the batch and for alignment.
    return power_of_two(max(1, int(1.05 * batch * max(may, 0) / needs)), at_most=batch // 2)


def power_of_two(number: int, at_most: int) -> int:
    """The largest power of two that is neither above `number` nor above `at_most`."""
    return 2 ** (max(1, min(number, at_most)).bit_length() - 1)


def _counted(program: jax.stages.Traced, alone: jax.stages.Traced, platform: str) -> int:
    """Bytes of intermediate arrays on a device, by the compiler's count; if it has none, ours.

    `alone` is the same program for one device, whose arrays are all on it.
    """
    memory = program.lower().compile().memory_analysis()
    if memory is None:
        return _alive(alone)
    if platform != "cpu":
        return memory.temp_size_in_bytes
    # XLA's libraries on the CPU fuse products with what surrounds them, convolutions above all, and
    # pack copies of operands, in memory that the compiler does not count.
    return max(memory.temp_size_in_bytes, _alive(alone)) + _packed(body_of(alone.jaxpr).jaxpr)


@lru_cache(maxsize=1024)
def _packed(jaxpr: Any) -> int:
    """Bytes that the largest matrix product or convolution reads and writes."""
    sizes = [max((_packed(inner.jaxpr) for inner in bodies(eqn)), default=0) for eqn in jaxpr.eqns]
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in {"dot_general", "conv_general_dilated"}:
            sizes.append(sum(nbytes(v.aval) for v in (*eqn.invars, *eqn.outvars)))
    return max(sizes, default=0)


def _alive(program: jax.stages.Traced) -> int:
    """The most bytes of intermediate arrays that are alive at once, in the order of the trace."""
    return _between(body_of(program.jaxpr).jaxpr)


@lru_cache(maxsize=64)  # JAX keeps traces, so that a second call has the same program
def _between(jaxpr: Any) -> int:
    return max(0, peak(jaxpr) - sum(nbytes(v.aval) for v in jaxpr.outvars))
