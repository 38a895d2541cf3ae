"""The compiled program that a device runs on a batch, as often as there are batches."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from jaxmeter.devices import AXIS, Devices
from jaxmeter.jaxpr.chunks import by_chunks
from jaxmeter.signals.example import of_example
from jaxmeter.signals.scalars.context import context_shapes
from jaxmeter.signals.scalars.values import NOTHING, Context
from jaxmeter.signals.spec import ResolvedSpec, Signals
from jaxmeter.target import Target

Storage = Literal["float32", "bfloat16"]


def traced(
    target: Target, x: ArrayLike, spec: ResolvedSpec, dtype: Storage, group: Devices, batch: int
) -> jax.stages.Traced:
    """The program for `batch` records like `x` a device, traced from shapes.

    The model's own function is traced once for a target and a spec, whatever the batch and the
    devices, and `traced(...).lower().compile()` compiles once for equal arguments: JAX keeps both.
    """
    context = context_shapes(target, x, spec.scalars)
    whole = jax.tree.map(lambda leaf: _like(leaf, group.everywhere), (target, context))
    inputs = batch_of(target, x, batch * group.here, group.dealt)
    return _program.trace(*whole, *inputs, spec=spec, dtype=dtype, mesh=group.mesh)


@partial(jax.jit, static_argnames=("spec", "dtype", "mesh"))
def _program(
    target: Target,
    context: Context,
    x: Array,
    y: Array,
    *,
    spec: ResolvedSpec,
    dtype: Storage,
    mesh: Mesh | None,
) -> Signals:
    run = partial(of_batch, spec=spec, dtype=dtype)
    if mesh is None:
        return run(target, x, y, context)
    # Each device runs the program of one device: nothing for a partitioner to decide.
    rows = PartitionSpec(AXIS)
    every = (PartitionSpec(), rows, rows, PartitionSpec())
    return jax.shard_map(run, mesh=mesh, in_specs=every, out_specs=rows, check_vma=False)(
        target, x, y, context
    )


def of_batch(
    target: Target,
    x: Array,
    y: Array,
    context: Context = NOTHING,
    *,
    spec: ResolvedSpec,
    dtype: Storage = "float32",
) -> Signals:
    """Signals of one batch, as they are stored."""
    x = x.astype(target.spec.input_dtype)
    # The inner jit is traced once for all sizes of batch.
    signals = by_chunks(lambda x, y: _one_record(target, x, y, context=context, spec=spec), x, y)
    if dtype == "float32":
        return signals

    def rounded(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return signals._replace(
        outputs=jax.tree.map(rounded, signals.outputs),
        gradients=jax.tree.map(rounded, signals.gradients),
    )


_one_record = jax.jit(of_example, static_argnames=("spec",))


def batch_of(
    target: Target, x: ArrayLike, batch: int, sharding: Any = None
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of a batch of records `x` and labels, as they travel to the device."""
    return (
        jax.ShapeDtypeStruct((batch, *np.shape(x)[1:]), wire_dtype(target, x), sharding=sharding),
        jax.ShapeDtypeStruct((batch,), "int32", sharding=sharding),
    )


def wire_dtype(target: Target, x: ArrayLike) -> np.dtype:
    """Bytes travel as bytes and are cast on the device; what is no smaller is cast before."""
    given, wanted = np.asarray(x).dtype, jnp.dtype(target.spec.input_dtype)
    return given if given.itemsize < wanted.itemsize else wanted


def _like(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    kind: Any = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding, weak_type=kind.weak_type)
