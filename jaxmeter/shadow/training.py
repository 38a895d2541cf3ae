"""`train`: reference models as one program, chunk by chunk of models."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.progress import Clock, Progress
from jaxmeter.shadow import checkpoint as saved
from jaxmeter.shadow.architecture import Architecture
from jaxmeter.shadow.devices import DeviceGroup, device_group
from jaxmeter.shadow.membership import checked_membership
from jaxmeter.shadow.program import Data, TrainState, advance, advance_all, begin, width_of
from jaxmeter.shadow.recipe import Recipe
from jaxmeter.shadow.stacked import finite
from jaxmeter.target import Target

_BUDGET = 2**30  # bytes that the models being trained may take on each device, by default
_LARGEST = 16  # models of a device's share of a chunk, by default: how much a kill costs


class Trained(NamedTuple):
    """What training gives.

    Attributes:
      references: the k models, a stacked target of NumPy arrays.
      losses: mean training loss of each epoch, `[k, epochs]`; NaN for epochs after a model's end.
      finite: which models have finite losses and variables, `[k]`; leave the others out
        (`model(references, finite)`).
    """

    references: Target
    losses: NDArray[np.float32]
    finite: NDArray[np.bool_]


def train(
    key: Array,
    architecture: Architecture,
    x: ArrayLike,
    y: ArrayLike,
    was_member: ArrayLike,
    recipe: Recipe,
    *,
    chunk: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Target:
    """The references of `train_all`, whose arguments it takes: a stacked target of k models.

    >>> from jaxmeter.shadow import balanced_membership, of_functions, RecipeConfig
    >>> net = of_functions(lambda key: {"w": jax.random.normal(key, (4, 3))},
    ...                    lambda params, state, x: x @ params["w"], input_shape=(4,))
    >>> x, y = np.eye(4, dtype=np.float32).repeat(5, axis=0), np.arange(20) % 3
    >>> was_member = balanced_membership(jax.random.key(0), k=4, n=20)
    >>> recipe = RecipeConfig(epochs=2).recipe()
    >>> references = train(jax.random.key(1), net, x, y, was_member, recipe)
    >>> references.params["w"].shape
    (4, 4, 3)
    """
    return train_all(
        key,
        architecture,
        x,
        y,
        was_member,
        recipe,
        chunk=chunk,
        checkpoint=checkpoint,
        devices=devices,
        progress=progress,
    ).references


def train_all(
    key: Array,
    architecture: Architecture,
    x: ArrayLike,
    y: ArrayLike,
    was_member: ArrayLike,
    recipe: Recipe,
    *,
    chunk: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Trains k models, each on its own records, as one compiled program.

    A model's result depends on its key (`key` folded with its number), its row of `was_member`, the
    records and the recipe: the same bits whatever the chunk, the devices of one kind, and the
    other models.

    Args:
      key: PRNG key, consumed.
      architecture: what is trained, from `of_keras`, `of_flax` or `of_functions`.
      x: records `[n, ...]`; bytes stay bytes until a batch is taken.
      y: labels `[n]`, counted from 0.
      was_member: bool `[k, n]`, see `balanced_membership`.
      recipe: how; see `Recipe` and `RecipeConfig`.
      chunk: models trained in one call of the program and saved together; None for 16 a device, or
        what fits into a GiB.
      checkpoint: a folder for finished chunks. If the process is killed, the same call goes on with
        the models that are missing and gives the same arrays.
      devices: what trains; None for all of this process. Models are dealt to them.
      progress: called with a `Progress` every few seconds; `bar()` makes one.

    Raises:
      ValueError: for records that are not finite or do not fit the model, labels outside its
        classes, a membership matrix that does not fit, or a folder of another training.

    A model whose loss or variables are not finite is named in a warning; the others are trained.
    """
    x, y = _checked(architecture, x, y)
    matrix = checked_membership(was_member, len(y))
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    task = _Task(key, architecture, recipe, x, y, matrix, device_group(devices))
    place: AbstractContextManager[Path | None] = nullcontext()
    if checkpoint is not None:
        place = saved.opened(checkpoint, _follows_from(task))
    with place as folder:
        params, state, losses = _trained(task, chunk, folder, progress)
    references = architecture.target.replace(params=params, state=state)  # type: ignore[attr-defined]
    good = finite(references) & ~np.isinf(losses).any(axis=1) & ~np.isnan(losses[:, 0])
    if not good.all():
        bad = np.flatnonzero(~good)
        warnings.warn(
            f"{bad.size} of {len(good)} reference models diverged (models "
            f"{', '.join(map(str, bad[:10]))}{', ...' if bad.size > 10 else ''}): their loss or "
            "variables are not finite, so no attack can use them. The others are whole. Lower the "
            "learning rate, or leave these out with jaxmeter.shadow.model(references, finite).",
            RuntimeWarning,
            stacklevel=2,
        )
    return Trained(references, losses, good)


# --- the chunks ---------------------------------------------------------------------------------


class _Task(NamedTuple):
    """What is to be trained, on what and where."""

    key: Array
    architecture: Architecture
    recipe: Recipe
    x: NDArray
    y: NDArray
    matrix: NDArray[np.bool_]
    group: DeviceGroup


def _trained(
    task: _Task,
    chunk: int | None,
    folder: Path | None,
    progress: Callable[[Progress], None] | None,
) -> tuple[Any, Any, NDArray]:
    """Params, state and losses of all models, stacked."""
    k, epochs, group = len(task.matrix), task.recipe.epochs, task.group
    one = jax.eval_shape(lambda key: _begun(task, key), task.key)
    shapes, tree = jax.tree.flatten((one.params, one.state, one.losses))
    whole = [np.empty((k, *shape.shape), shape.dtype) for shape in shapes]
    done = {} if folder is None else saved.restore(folder, shapes)
    for i, leaves in done.items():
        for to, leaf in zip(whole, leaves, strict=True):
            to[i] = leaf
    todo = [i for i in range(k) if i not in done]
    if todo:
        share, width = _share(chunk, one, task, len(todo))
        size = share * len(group.devices)
        data = jax.device_put(Data(task.x, task.y), group.everywhere)
        clock = Clock(progress, k, len(done), epochs)
        for first in range(0, len(todo), size):
            numbers = todo[first : first + size]
            arrays = _chunk(task, numbers, share, width, data, clock)
            for to, leaf in zip(whole, jax.tree.leaves(arrays), strict=True):
                to[numbers] = np.asarray(leaf)[: len(numbers)]
            if folder is not None:
                saved.save(folder, numbers, [leaf[numbers] for leaf in whole])
            clock.finished()
    return jax.tree.unflatten(tree, whole)


def _chunk(
    task: _Task, numbers: list[int], share: int, width: int, data: Data, clock: Clock
) -> tuple[Any, Any, Array]:
    """Params, state and losses of some models; what pads the chunk comes after them."""
    group, epochs, n = task.group, task.recipe.epochs, len(numbers)
    padding = share * len(group.devices) - n
    keys = [jax.random.fold_in(task.key, i) for i in numbers]
    each = [_begun(task, key) for key in keys]
    each, keys = each + each[-1:] * padding, keys + keys[-1:] * padding
    rows = task.matrix[numbers + numbers[-1:] * padding]
    runs: TrainState = jax.device_put(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), group.dealt
    )
    del each
    counts = np.clip(n - share * np.arange(len(group.devices)), 0, share).astype(np.int32)
    inputs = jax.device_put((jnp.stack(keys), rows, counts), group.dealt)
    clock.started(n)
    until = 0
    while until < epochs:
        until = min(until + clock.epochs(), epochs)
        runs = advance_all(
            runs,
            *inputs,
            data,
            jnp.asarray(until, jnp.int32),
            architecture=task.architecture,
            recipe=task.recipe,
            width=width,
            mesh=group.mesh,
        )
        is_over = np.asarray(runs.over)[:n].all()
        clock.looked(until, np.asarray(runs.losses)[:n])
        if is_over:
            break
    return runs.params, runs.state, runs.losses


def _begun(task: _Task, key: Array) -> TrainState:
    return begin(key, architecture=task.architecture, recipe=task.recipe)


def _share(chunk: int | None, one: TrainState, task: _Task, todo: int) -> tuple[int, int]:
    """How many models a device has at a time, and how many of them it trains at once."""
    devices = task.group.devices
    width = width_of(task.architecture, devices[0].platform)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}; at least one model is trained at a time.")
    if chunk is None:
        chunk = len(devices) * min(_LARGEST, max(1, _BUDGET // max(1, tree_bytes(one))))
    share = -(-min(chunk, todo) // len(devices))
    return -(-share // width) * width, width


# --- what goes in -------------------------------------------------------------------------------


def _checked(architecture: Architecture, x: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
    """Records and labels as arrays that the architecture can be trained on."""
    x, y = np.asarray(x), np.asarray(y)
    if not len(x) or y.shape != (len(x),):
        raise ValueError(
            f"x has shape {x.shape} and y {y.shape}; they are [n, ...] and [n], a label a record."
        )
    target = architecture.target.for_inputs(x.shape[1:])
    if np.issubdtype(x.dtype, np.floating):
        x = x if x.dtype.itemsize <= 4 else x.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
        if bad.size:
            raise ValueError(
                f"{bad.size} records hold NaN or infinite values (first: record {bad[0]}); every "
                "model trained on one of them would diverge. Drop or impute them."
            )
    classes = target.spec.n_classes
    assert classes is not None, "for_inputs fills it in"
    wrong = np.flatnonzero((y < 0) | (y >= classes) | (y != np.floor(y)))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} labels are not whole numbers in 0..{classes - 1}, the model's {classes} "
            f"classes (first: record {wrong[0]} has label {y[wrong[0]]}). Count them from 0, or "
            "give the architecture as many classes as there are."
        )
    return x, y.astype(np.int32)


def _follows_from(task: _Task) -> dict[str, str]:
    """What a training follows from, as hashes; the program stands for architecture and recipe."""
    made = {"architecture": task.architecture, "recipe": task.recipe}

    def program(key: Array, is_mine: Array, data: Data) -> TrainState:
        until = jnp.asarray(task.recipe.epochs, jnp.int32)
        return advance(begin(key, **made), key, is_mine, data, until, **made)  # type: ignore

    x, y = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (task.x, task.y))
    row = jax.ShapeDtypeStruct(task.matrix.shape[1:], bool)
    return {
        "key": f"{jax.random.key_impl(task.key)} {saved.digest(jax.random.key_data(task.key))}",
        "records": saved.digest(task.x, task.y),
        "membership": saved.digest(task.matrix),
        "program (architecture, recipe or version of JAX)": saved.program_digest(
            jax.make_jaxpr(program)(task.key, row, Data(x, y))
        ),
    }
