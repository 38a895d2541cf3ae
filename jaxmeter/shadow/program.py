"""The compiled program that trains reference models: loops over models, epochs and steps.

A model's part of it depends on the model's key and row of the membership matrix, and on nothing
that its company decides: how many others there are, how many members they have, on which device
they run. All trip counts are arguments, so that XLA compiles the same body whatever they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from jaxmeter.jaxpr.equations import body_of, equations_in
from jaxmeter.jaxpr.lowering import lowered
from jaxmeter.shadow.architecture import Architecture
from jaxmeter.shadow.devices import AXIS
from jaxmeter.shadow.recipe import Recipe


class TrainState(NamedTuple):
    """A model on its way; stacked, with a leading axis of models.

    Attributes:
      params: all parameters, by name.
      state: what else the model reads.
      optimizer: the optimiser's state.
      losses: mean loss of each epoch, `[epochs]`; NaN for those not run.
      epoch: how many were run.
      over: whether the training has ended, by `stop_at` or a loss that is not finite.
    """

    params: dict[str, Array]
    state: dict[str, Any]
    optimizer: Any
    losses: Array
    epoch: Array
    over: Array


class Data(NamedTuple):
    """What all models are trained on: records `x` `[n, ...]` and labels `[n]`."""

    x: Any
    y: Any


def width_of(architecture: Architecture, platform: str) -> int:
    """How many models are trained at once on one device.

    On CPU one: its weights stay in the caches, where those of many do not (measured by
    `benchmarks/shadows.py --widths`). Elsewhere small matrix products of many models fill the
    device better together; convolutions of several would become grouped ones, which are slow.
    """
    if platform == "cpu":
        return 1
    target = architecture.target
    record = [8 if size is None else size for size in target.spec.input_shape or ()]
    x = jax.ShapeDtypeStruct((2, *record), target.spec.input_dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(architecture.forward)(target.params, target.state, x, key)
    kinds = {eqn.primitive.name for eqn in equations_in(body_of(traced).jaxpr)}
    return 1 if "conv_general_dilated" in kinds else 16


@partial(jax.jit, static_argnames=("architecture", "recipe"))
def begin(key: Array, *, architecture: Architecture, recipe: Recipe) -> TrainState:
    """One model before its first step."""
    params, state = architecture.init(jax.random.fold_in(key, 0))
    return TrainState(
        params=params,
        state=state,
        optimizer=recipe.optimizer.init(_trained(params, architecture.frozen)),
        losses=jnp.full(recipe.epochs, jnp.nan),
        epoch=jnp.zeros((), jnp.int32),
        over=jnp.zeros((), bool),
    )


def advance(
    run: TrainState,
    key: Array,
    is_mine: Array,
    data: Data,
    until: Array,
    *,
    architecture: Architecture,
    recipe: Recipe,
) -> TrainState:
    """One model trained up to an epoch, unless its training ends before.

    Each epoch goes through the model's own records in a new order; the last batch is filled up with
    the epoch's first records.

    Args:
      run: the model so far.
      key: its own.
      is_mine: its row of the membership matrix, `[n]`.
      data: the records.
      until: the epoch.
      architecture: static.
      recipe: static.
    """
    forward = lowered(architecture.forward, looped=True)
    dtype, frozen = architecture.target.spec.input_dtype, architecture.frozen
    order_key, step_key = jax.random.split(jax.random.fold_in(key, 1))
    n, size = len(data.y), recipe.batch_size
    mine = jnp.sum(is_mine)
    steps = -(-mine // size)

    def step(j: Array, carry: Any, epoch: Array, order: Array) -> Any:
        params, state, optimizer, total = carry
        rows = order[(j * size + jnp.arange(size)) % mine]
        augment_key, forward_key = jax.random.split(
            jax.random.fold_in(jax.random.fold_in(step_key, epoch), j)
        )
        x, y = data.x[rows].astype(dtype), data.y[rows]
        if recipe.augment is not None:
            x = recipe.augment(augment_key, x).astype(dtype)

        def mean_loss(trained: Any) -> Any:
            every = {**params, **trained}
            logits, after, penalty = forward(every, state, x, forward_key)
            loss = jnp.mean(recipe.losses(logits, y))
            return loss + penalty, (loss, after)

        trained = _trained(params, frozen)
        gradient, (loss, state) = jax.grad(mean_loss, has_aux=True)(trained)
        updates, optimizer = recipe.optimizer.update(gradient, optimizer, trained)
        if recipe.schedule is not None:
            done = (epoch * steps + j) / (recipe.epochs * steps)
            factor = recipe.schedule(done)
            updates = jax.tree.map(lambda u: (u * factor).astype(u.dtype), updates)
        trained = optax.apply_updates(trained, updates)
        params = {name: trained.get(name, value) for name, value in params.items()}
        if architecture.project is not None:
            params = architecture.project(params)
        return params, state, optimizer, total + loss

    def one_epoch(run: TrainState) -> TrainState:
        random = jax.random.bits(jax.random.fold_in(order_key, run.epoch), (n,), "uint32")
        numbers = jnp.arange(n, dtype=jnp.int32)
        *_, order = lax.sort((~is_mine, random, numbers), num_keys=2)  # own records first
        start = (run.params, run.state, run.optimizer, jnp.zeros(()))
        params, state, optimizer, total = lax.fori_loop(
            0, steps, partial(step, epoch=run.epoch, order=order), start
        )
        loss = total / steps
        over = ~jnp.isfinite(loss)
        if recipe.stop_at is not None:
            over |= loss < recipe.stop_at
        return TrainState(
            params, state, optimizer, run.losses.at[run.epoch].set(loss), run.epoch + 1, over
        )

    return lax.while_loop(lambda run: (run.epoch < until) & ~run.over, one_epoch, run)


def _advance_all(
    runs: TrainState,
    keys: Array,
    was_member: Array,
    count: Array,
    data: Data,
    until: Array,
    *,
    advance_one: Callable[..., TrainState],
    width: int,
) -> TrainState:
    """The first `count` of some stacked models, `width` at a time; those after them rest."""
    # A group always has its full width, so that no number depends on how many are in the last.
    many = jax.vmap(advance_one, in_axes=(0, 0, 0, None, None))

    def group(i: Array, runs: TrainState) -> TrainState:
        if width == 1:
            run = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), runs)
            after = advance_one(run, keys[i], was_member[i], data, until)
            put = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
            return jax.tree.map(lambda a, new: put(a, new), runs, after)

        def part(a: Array) -> Array:
            return lax.dynamic_slice_in_dim(a, i * width, width)

        after = many(jax.tree.map(part, runs), part(keys), part(was_member), data, until)
        return jax.tree.map(
            lambda a, new: lax.dynamic_update_slice_in_dim(a, new, i * width, 0), runs, after
        )

    return lax.fori_loop(0, -(-count // width), group, runs)


@partial(
    jax.jit, static_argnames=("architecture", "recipe", "width", "mesh"), donate_argnames=("runs",)
)
def advance_all(
    runs: TrainState,
    keys: Array,
    was_member: Array,
    counts: Array,
    data: Data,
    until: Array,
    *,
    architecture: Architecture,
    recipe: Recipe,
    width: int,
    mesh: Mesh | None,
) -> TrainState:
    """Stacked models trained up to an epoch, each device its own share of them.

    Args:
      runs: c models a device.
      keys: of each.
      was_member: row of each, `[models, n]`.
      counts: how many of each device's are to be trained, `[devices]`; they are its first.
      data: the records, on every device.
      until: the epoch.
      architecture: static.
      recipe: static.
      width: models that are trained at once; it divides c.
      mesh: of the devices; None for a single one.
    """
    one = partial(advance, architecture=architecture, recipe=recipe)

    def here(
        runs: TrainState, keys: Array, was_member: Array, counts: Array, data: Data, until: Array
    ) -> TrainState:
        return _advance_all(
            runs, keys, was_member, counts[0], data, until, advance_one=one, width=width
        )

    if mesh is None:
        return here(runs, keys, was_member, counts, data, until)
    mine, every = PartitionSpec(AXIS), PartitionSpec()
    dealt = jax.shard_map(
        here,
        mesh=mesh,
        in_specs=(mine, mine, mine, mine, every, every),
        out_specs=mine,
        check_vma=False,
    )
    return dealt(runs, keys, was_member, counts, data, until)


def _trained(params: dict[str, Array], frozen: tuple[str, ...]) -> dict[str, Array]:
    return {name: value for name, value in params.items() if name not in frozen}
