"""Reference models: what they learn, what decides their bits, and what is refused."""

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import jaxmeter as jm
from helpers import assert_close
from jaxmeter import shadow
from jaxmeter.shadow import program

pytestmark = pytest.mark.computes  # as the processes do that train beside the tests

TESTS = Path(__file__).parent
KEY = jax.random.key(3)


def mlp(sizes: tuple[int, ...] = (6, 16, 3)) -> shadow.Architecture:
    def init(key):
        return {
            f"layer_{i}": {
                "kernel": jax.random.normal(jax.random.fold_in(key, i), (a, b)) / np.sqrt(a),
                "bias": jnp.zeros(b),
            }
            for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
        }

    def apply(params, state, x):
        for i, layer in enumerate(params.values()):
            x = x @ layer["kernel"] + layer["bias"][None]
            x = jnp.tanh(x) if i < len(params) - 1 else x
        return x

    return shadow.of_functions(init, apply, input_shape=sizes[:1])


def data(n: int = 60, shape: tuple[int, ...] = (6,), classes: int = 3, seed: int = 0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, *shape)).astype(np.float32)
    return x, random.integers(0, classes, n)


NET = mlp()
X, Y = data()
RECIPE = shadow.RecipeConfig(epochs=3, batch_size=8, learning_rate=1e-2).recipe()
ROWS = shadow.balanced_membership(jax.random.key(0), 6, 60)


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


# --- who is trained on what ---------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(2, 2), (4, 10), (16, 101), (64, 1000)])
def test_every_record_is_in_half_of_the_models_and_pairs_are_complements(k, n):
    rows = shadow.balanced_membership(jax.random.key(k), k, n)
    assert rows.dtype == bool and rows.shape == (k, n)
    assert (rows.sum(axis=0) == k // 2).all()
    assert (rows[::2] == ~rows[1::2]).all()
    assert set(rows.sum(axis=1)) <= {n // 2, n - n // 2}
    other = shadow.balanced_membership(jax.random.key(k + 1), k, n)
    assert n < 10 or (rows != other).any()


def test_pairs_are_drawn_independently():
    rows = shadow.balanced_membership(jax.random.key(0), 200, 400)[::2].astype(float)
    centred = rows - 0.5
    products = centred @ centred.T / 400 * 4
    off = products[~np.eye(100, dtype=bool)]
    assert abs(off.mean()) < 0.005  # of hypergeometric counts: mean 0, deviation 1 / sqrt(400)
    assert 0.045 < off.std() < 0.055


@pytest.mark.parametrize("k", [0, 1, 3, 7])
def test_an_odd_number_of_models_is_refused(k):
    with pytest.raises(ValueError, match="must be even"):
        shadow.balanced_membership(KEY, k, 10)


# --- what is learnt -----------------------------------------------------------------------------


def test_members_have_lower_losses_than_others_and_shuffled_membership_tells_nothing():
    recipe = shadow.RecipeConfig(epochs=60, batch_size=16, learning_rate=1e-2).recipe()
    x, y = data(200)
    rows = shadow.balanced_membership(jax.random.key(1), 8, 200)
    references = shadow.train(KEY, mlp((6, 64, 3)), x, y, rows, recipe)
    records = jm.Records(x, y.astype(np.int32), rows[0])
    losses = shadow.extract(references, records).loss
    assert losses.shape == (8, 200)
    found = [jm.evaluate(-loss, row) for loss, row in zip(losses, rows, strict=True)]
    assert min(result.auc for result in found) > 0.7
    shuffled = np.random.default_rng(0).permuted(rows, axis=1)
    null = [jm.evaluate(-loss, row).auc for loss, row in zip(losses, shuffled, strict=True)]
    assert abs(np.mean(null) - 0.5) < 0.05  # deviation of a mean of eight: 0.015


def by_hand(key, x, y, row, epochs, size, optimizer, net=NET):
    """One model, in NumPy's order of events: a Python loop over its own records."""
    params, _ = jax.jit(net.init)(jax.random.fold_in(key, 0))
    state = optimizer.init(params)
    order_key, _ = jax.random.split(jax.random.fold_in(key, 1))
    losses, mine = [], np.flatnonzero(row)

    def loss_of(params, x, y):
        logits = net.target.apply(params, {}, x).logits
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

    @jax.jit
    def step(params, state, x, y):
        loss, gradient = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    for epoch in range(epochs):
        random = np.asarray(jax.random.bits(jax.random.fold_in(order_key, epoch), (len(x),)))
        order = mine[np.argsort(random[mine], kind="stable")]
        total, steps = 0.0, -(-len(mine) // size)
        for j in range(steps):
            batch = np.resize(order, steps * size)[j * size : (j + 1) * size]
            params, state, loss = step(params, state, x[batch], y[batch])
            total += float(loss) / steps
        losses.append(total)
    return params, losses


def test_a_model_is_that_of_a_loop_written_by_hand():
    rows = np.zeros((2, 60), bool)
    rows[0, :27], rows[1, 20:] = True, True  # 27 and 40 records: batches of 8 that are filled up
    recipe = shadow.Recipe(optimizer=optax.adam(1e-2), epochs=3, batch_size=8)
    found = shadow.train_all(KEY, NET, X, Y, rows, recipe)
    for i, row in enumerate(rows):
        key = jax.random.fold_in(KEY, i)
        params, losses = by_hand(key, X, Y, row, 3, 8, optax.adam(1e-2))
        np.testing.assert_allclose(found.losses[i], losses, rtol=1e-5)
        for name, value in params.items():
            assert_close(found.references.params[name][i], value, rtol=5e-5)


def test_fewer_records_than_a_batch_are_gone_through_again():
    rows = np.stack([np.arange(60) < 5, np.arange(60) >= 5])
    recipe = shadow.Recipe(optimizer=optax.sgd(0.1), epochs=2, batch_size=12)
    found = shadow.train_all(KEY, NET, X, Y, rows, recipe)
    params, losses = by_hand(jax.random.fold_in(KEY, 0), X, Y, rows[0], 2, 12, optax.sgd(0.1))
    np.testing.assert_allclose(found.losses[0], losses, rtol=1e-5)


def test_schedules_see_the_fraction_of_a_models_own_training():
    seen = []
    recipe = shadow.Recipe(
        optimizer=optax.sgd(1.0),
        epochs=2,
        batch_size=10,
        schedule=lambda done: (jax.debug.callback(lambda d: seen.append(float(d)), done), 0.0)[1],
    )
    rows = np.ones((1, 60), bool)
    found = shadow.train(KEY, NET, X, Y, rows, recipe)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), np.arange(12) / 12, atol=1e-6)
    first = jax.jit(NET.init)(jax.random.fold_in(jax.random.fold_in(KEY, 0), 0))[0]
    for name, value in first.items():  # a factor of zero: nothing moved
        assert_close(found.params[name][0], value, rtol=1e-6)
    config = shadow.RecipeConfig(schedule="cosine", warmup=0.5)
    schedule = config.recipe().schedule
    np.testing.assert_allclose(
        [schedule(jnp.float32(t)) for t in (0, 0.25, 0.5, 1)],
        [0, (1 + np.cos(np.pi / 4)) / 4, 0.5, 0],
        atol=1e-6,
    )
    assert config.recipe() is shadow.RecipeConfig(schedule="cosine", warmup=0.5).recipe()


def test_smoothing_is_the_cross_entropy_with_smoothed_labels():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
    y = jnp.asarray([0, 1, 2, 3, 0])
    found = shadow.RecipeConfig(smoothing=0.2).recipe().losses(logits, y)
    truth = 0.8 * np.eye(4)[np.asarray(y)] + 0.05
    z = np.asarray(logits, np.float64)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, -(truth * log_p).sum(axis=1), rtol=1e-5)


def test_training_stops_below_a_loss():
    config = {"epochs": 40, "batch_size": 8, "learning_rate": 3e-2}
    whole = shadow.train_all(KEY, NET, X, Y, ROWS, shadow.RecipeConfig(**config).recipe())
    bound = float(np.median(whole.losses[:, 20]))
    stopped = shadow.train_all(
        KEY, NET, X, Y, ROWS, shadow.RecipeConfig(**config, stop_at=bound).recipe()
    )
    for ours, full in zip(stopped.losses, whole.losses, strict=True):
        ran = int((~np.isnan(ours)).sum())
        np.testing.assert_array_equal(ours[:ran], full[:ran])
        below = np.flatnonzero(full < bound)
        assert ran == (below[0] + 1 if below.size else 40)
    assert stopped.finite.all()


# --- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_a_model_is_the_same_whatever_the_chunk(chunk):
    expected = shadow.train_all(KEY, NET, X, Y, ROWS, RECIPE)
    found = shadow.train_all(KEY, NET, X, Y, ROWS, RECIPE, chunk=chunk)
    same(
        found._replace(references=found.references.params),
        expected._replace(references=expected.references.params),
    )


def test_a_model_is_the_same_whatever_its_company():
    expected = shadow.train_all(KEY, NET, X, Y, ROWS, RECIPE)
    others = ROWS.copy()
    others[1:] = np.random.default_rng(1).random(others[1:].shape) < 0.8  # more of them, too
    found = shadow.train_all(KEY, NET, X, Y, others, RECIPE)
    same(shadow.model(found.references, 0), shadow.model(expected.references, 0))
    assert (found.losses[1] != expected.losses[1]).all()
    fewer = shadow.train_all(KEY, NET, X, Y, ROWS[:4], RECIPE, progress=lambda now: None)
    same(fewer.references.params, shadow.model(expected.references, slice(0, 4)).params)


def test_models_differ_in_initial_weights_and_order():
    rows = np.ones((2, 60), bool)
    found = shadow.train(KEY, NET, X, Y, rows, RECIPE)
    for values in found.params.values():
        assert (values[0] != values[1]).any()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_groups_of_models_are_the_same_whatever_their_number(count):
    """As on devices that train several models at once; they have the full width always."""
    keys = [jax.random.fold_in(KEY, i) for i in range(4)]
    made = {"architecture": NET, "recipe": RECIPE}
    runs = jax.tree.map(lambda *a: jnp.stack(a), *(program.begin(k, **made) for k in keys))
    arguments = (
        *(jnp.stack(keys), ROWS[:4], np.int32([count])),
        *(program.Data(jnp.asarray(X), jnp.asarray(Y)), jnp.int32(3)),
    )
    expected = shadow.train(KEY, NET, X, Y, ROWS[:4], RECIPE).params
    found = program.advance_all(runs, *arguments, **made, width=2, mesh=None)
    for name, values in found.params.items():
        assert_close(values[:count], expected[name][:count], rtol=5e-5)
    assert list(found.epoch[: count + count % 2]) == [3] * (count + count % 2)


def convolutional() -> keras.Model:
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, padding="same", name="conv", kernel_regularizer="l2"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3, name="drop"),
        keras.layers.Dense(3, "softmax", name="out"),
    ]
    return keras.Sequential(layers)


@functools.cache
def image_net() -> shadow.Architecture:
    return shadow.of_keras(convolutional())


IMAGES = data(24, (8, 8, 3))
IMAGE_ROWS = shadow.balanced_membership(jax.random.key(0), 4, 24)
IMAGE_RECIPE = shadow.RecipeConfig(
    epochs=2, batch_size=8, augment=shadow.MirrorAndShift(shift=1), optimizer="sgd"
).recipe()


@pytest.mark.study
def test_convolutions_with_batchnorm_and_dropout_are_the_same_whatever_the_chunk():
    found = [
        shadow.train(KEY, image_net(), *IMAGES, IMAGE_ROWS, IMAGE_RECIPE, chunk=chunk)
        for chunk in (1, 4)
    ]
    same(found[0].params, found[1].params)
    same(found[0].state, found[1].state)
    assert len({float(moment[0]) for moment in found[0].state["norm/moving_mean"]}) == 4


DEVICES = """
import jax, numpy as np
import test_shadow as t
from jaxmeter import shadow
assert len(jax.devices()) == 8
every = shadow.train_all(t.KEY, t.NET, t.X, t.Y, t.ROWS, t.RECIPE)
one = shadow.train_all(t.KEY, t.NET, t.X, t.Y, t.ROWS, t.RECIPE, devices=jax.devices()[:1])
some = jax.devices()[3:6]
few = shadow.train_all(t.KEY, t.NET, t.X, t.Y, t.ROWS, t.RECIPE, devices=some, chunk=4)
for other in (one, few):
    t.same(every.references.params, other.references.params)
    t.same(every.losses, other.losses)
print("the same")
"""


def started(code: str, *args: object, **environment: str) -> subprocess.Popen:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.study
def test_eight_devices_give_the_bits_of_one():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    process = started(DEVICES, XLA_FLAGS=flags)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "the same" in out


# --- checkpoints --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import test_shadow as t
from jaxmeter import shadow
from jaxmeter.shadow import checkpoint
left = int(sys.argv[2])
save = checkpoint.save
def dying(folder, models, arrays):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    save(folder, models, arrays)
checkpoint.save = dying
shadow.train_all(t.KEY, t.NET, t.X, t.Y, t.ROWS, t.RECIPE, chunk=2, checkpoint=sys.argv[1])
"""


def test_a_killed_training_goes_on_and_ends_with_the_same_arrays(tmp_path):
    expected = shadow.train_all(KEY, NET, X, Y, ROWS, RECIPE)
    process = started(KILLED, tmp_path / "folder", 2)
    process.communicate(timeout=240)
    assert process.returncode == -9
    assert [p.name for p in (tmp_path / "folder").glob("models-*")] == ["models-0-1"]
    half = tmp_path / "folder" / "models-2-3.orbax-checkpoint-tmp"  # killed while it was written
    half.mkdir()
    (half / "manifest.ocdbt").write_bytes(b"half")
    seen = []
    found = shadow.train_all(
        KEY, NET, X, Y, ROWS, RECIPE, chunk=3, checkpoint=tmp_path / "folder", progress=seen.append
    )
    assert seen[0].models == 2 and seen[-1].models == 6 and seen[-1].fraction == 1
    same(found.references.params, expected.references.params)
    same(found.losses, expected.losses)
    assert not half.exists()
    seen.clear()
    again = shadow.train_all(
        KEY, NET, X, Y, ROWS, RECIPE, checkpoint=tmp_path / "folder", progress=seen.append
    )
    assert not seen, "nothing was left to train"
    same(again.references.params, expected.references.params)


def test_another_training_in_the_folder_is_refused(tmp_path):
    folder = tmp_path / "folder"
    shadow.train(KEY, NET, X, Y, ROWS, RECIPE, checkpoint=folder)
    other = ROWS.copy()
    other[0, :2] ^= True
    longer = shadow.RecipeConfig(epochs=3, batch_size=8, learning_rate=2e-2).recipe()
    for arguments, what in [
        ((jax.random.key(4), NET, X, Y, ROWS, RECIPE), "key"),
        ((KEY, NET, X + 1, Y, ROWS, RECIPE), "records"),
        ((KEY, NET, X, Y[::-1], ROWS, RECIPE), "records"),
        ((KEY, NET, X, Y, other, RECIPE), "membership"),
        ((KEY, NET, X, Y, ROWS, longer), "program"),
        ((KEY, mlp((6, 17, 3)), X, Y, ROWS, RECIPE), "program"),
    ]:
        with pytest.raises(ValueError, match=f"follow from another {what}"):
            shadow.train(*arguments, checkpoint=folder)
    shadow.train(KEY, mlp(), X, Y, ROWS, RECIPE, checkpoint=folder)  # made again, the same


def test_frozen_weights_are_part_of_what_a_training_follows_from(tmp_path):
    layers = [keras.layers.Dense(8, name="kept", trainable=False), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    shadow.train(KEY, shadow.of_keras(model), X, Y, ROWS, RECIPE, checkpoint=tmp_path / "a")
    shadow.train(KEY, shadow.of_keras(model), X, Y, ROWS, RECIPE, checkpoint=tmp_path / "a")
    layers[0].kernel.assign(np.ones((6, 8)))
    with pytest.raises(ValueError, match="follow from another program"):
        shadow.train(KEY, shadow.of_keras(model), X, Y, ROWS, RECIPE, checkpoint=tmp_path / "a")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(FileExistsError, match="holds no training"):
        shadow.train(KEY, NET, X, Y, ROWS, RECIPE, checkpoint=tmp_path / "else")


# --- architectures ------------------------------------------------------------------------------


def test_a_keras_step_is_that_of_keras():
    model = convolutional()
    net = shadow.of_keras(model)
    params, state = jax.jit(net.init)(KEY)
    x = jnp.asarray(IMAGES[0][:8])
    logits, after, penalty = net.forward(params, state, x, KEY)

    def values(variables):
        every = {**params, **state}
        return [every[name_of(v)] for v in variables]

    def name_of(variable):
        found = [n for n in (*params, *state) if variable.path.endswith(n)]
        return found[0] if found else next(n for n in state if "seed" in n)

    with jax.numpy_rank_promotion("allow"):
        out, others, losses = model.stateless_call(
            values(model.trainable_variables),
            values(model.non_trainable_variables),
            x,
            training=True,
            return_losses=True,
        )
    assert_close(jax.nn.softmax(logits), out)
    assert_close(penalty, sum(losses))
    for variable, value in zip(model.non_trainable_variables, others, strict=True):
        is_float = jnp.issubdtype(value.dtype, jnp.floating)
        check = assert_close if is_float else np.testing.assert_array_equal
        check(after[name_of(variable)], value)
    assert (after["norm/moving_mean"] != state["norm/moving_mean"]).any()


def test_keras_models_begin_with_their_own_initialisers_and_fresh_keys():
    initial = keras.initializers.RandomNormal(stddev=0.01, seed=7)
    model = keras.Sequential(
        [
            keras.Input((40,)),
            keras.layers.Normalization(name="scaled", mean=1.0, variance=4.0),
            keras.layers.Dense(50, kernel_initializer=initial, name="a"),
            keras.layers.Dense(50, kernel_initializer=initial, bias_initializer="ones", name="b"),
            keras.layers.Dense(30, name="kept"),
            keras.layers.Dense(3, name="out"),
        ]
    )
    model.get_layer("kept").trainable = False
    before = [np.asarray(v) for v in model.variables]
    net = shadow.of_keras(model)
    init = jax.jit(net.init)
    (one, _), (two, _) = init(jax.random.key(0)), init(jax.random.key(1))
    assert net.frozen == ("kept/kernel", "kept/bias")
    assert abs(float(one["a/kernel"].std()) / 0.01 - 1) < 0.1
    assert (one["a/kernel"] != two["a/kernel"]).all()
    assert (one["a/kernel"][:40] != one["b/kernel"][:40]).all()
    assert (one["b/bias"] == 1).all()
    np.testing.assert_array_equal(one["kept/kernel"], model.get_layer("kept").kernel)
    x, y = data(40, (40,))
    found = shadow.train(KEY, net, x, y, np.ones((1, 40), bool), RECIPE)
    np.testing.assert_array_equal(found.params["kept/kernel"][0], model.get_layer("kept").kernel)
    assert (found.params["a/kernel"][0] != one["a/kernel"]).all()
    same([np.asarray(v) for v in model.variables], before)


def test_keras_constraints_hold():
    layer = keras.layers.Dense(3, kernel_constraint=keras.constraints.NonNeg(), name="out")
    net = shadow.of_keras(keras.Sequential([keras.Input((6,)), layer]))
    found = shadow.train(KEY, net, X, Y, np.ones((1, 60), bool), RECIPE)
    assert (found.params["out/kernel"] >= 0).all() and (found.params["out/kernel"] == 0).any()


@pytest.mark.study
def test_flax_modules_with_batchnorm_and_dropout():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
            return nn.Dense(3)(x)

    net = shadow.of_flax(
        Net(), input_shape=(6,), training={"train": True}, inference={"train": False}
    )
    with jax.numpy_rank_promotion("allow"):
        found = shadow.train_all(KEY, net, X, Y, ROWS, RECIPE)
    mean = found.references.state["batch_stats"]["BatchNorm_0"]["mean"]
    assert mean.shape == (6, 16) and (mean != 0).all()
    assert (np.diff(found.losses.mean(axis=0)) < 0).all()


# --- stacks and their signals -------------------------------------------------------------------


def test_signals_are_those_of_each_model(tmp_path):
    references = shadow.train(KEY, NET, X, Y, ROWS, RECIPE)
    records = jm.Records(X, Y.astype(np.int32), ROWS[0])
    spec = jm.SignalSpec(gradients=("layer_1",), gradient_norm=True)
    seen = []
    found = shadow.extract(references, records, spec, progress=lambda *a: seen.append(a))
    assert seen == [(i, 6) for i in range(7)]
    for i in range(6):
        same(found.rows(i), jm.extract(shadow.model(references, i), records, spec))
    stored = shadow.extract(references, records, spec, out=tmp_path / "signals")
    same(stored, found)
    same(shadow.load(tmp_path / "signals"), found)
    assert not stored.loss.flags.writeable
    with pytest.raises(FileExistsError):
        shadow.extract(references, records, spec, out=tmp_path / "signals")


def test_signals_of_views(tmp_path):
    references = shadow.train(KEY, image_net(), *IMAGES, IMAGE_ROWS, IMAGE_RECIPE)
    x, y = IMAGES
    records = jm.Records(x, y.astype(np.int32), IMAGE_ROWS[0])
    queries = (*shadow.views(), shadow.View(down=2, right=-1, padding="zeros"))
    found = shadow.extract(references, records, queries=queries, out=tmp_path / "signals")
    assert found.logits.shape == (4, 3, 24, 3) and found.label is None
    by_hand = np.zeros_like(x)
    by_hand[:, 2:, :7] = x[:, :6, 1:]
    for q, seen in enumerate((x, x[:, :, ::-1], by_hand)):
        one = shadow.extract(references, records._replace(x=np.ascontiguousarray(seen)))
        np.testing.assert_array_equal(found.logits[:, q], one.logits)
    with pytest.raises(ValueError, match="takes images"):
        shadow.extract(
            shadow.train(KEY, NET, X, Y, ROWS, RECIPE),
            jm.Records(X, Y.astype(np.int32), ROWS[0]),
            queries=shadow.views(),
        )


@pytest.mark.parametrize("queries", [(), (shadow.View(), shadow.View())])
def test_a_result_larger_than_the_host_budget_is_refused_before_any_work(queries, tmp_path):
    references = shadow.stack([NET.target] * 3)
    records = jm.Records(X, Y.astype(np.int32), ROWS[0])
    spec = jm.SignalSpec(gradients=("layer_1",), gradient_norm=True)
    found = shadow.extract(references, records, spec, queries=queries)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(found))

    def extracted(**options):
        return shadow.extract(references, records, spec, queries=queries, **options)

    same(extracted(host_budget=size), found)
    with pytest.raises(
        ValueError,
        match=rf"60 records by {3 * max(1, len(queries))} models take .*KiB \({size:,} bytes\), "
        r"more than the host budget of .*KiB.*out=",
    ):
        extracted(host_budget=size - 1, progress=lambda *_: pytest.fail())
    same(extracted(host_budget=0, out=tmp_path / "signals"), found)


def test_augmentation_shows_the_views_that_queries_show():
    x = np.random.default_rng(0).normal(size=(400, 5, 5, 1)).astype(np.float32)
    found = np.asarray(shadow.MirrorAndShift(shift=1)(KEY, jnp.asarray(x)))
    looks = [
        shadow.View(mirror=m, down=d, right=r)
        for m in (False, True)
        for d in (-1, 0, 1)
        for r in (-1, 0, 1)
    ]
    match = np.stack([(look(x) == found).all(axis=(1, 2, 3)) for look in looks])
    assert (match.sum(axis=0) == 1).all()
    assert match.sum(axis=1).min() > 5  # all 18 occur; 22 each are expected


def test_stacks_are_taken_apart_and_put_together():
    references = shadow.train(KEY, NET, X, Y, ROWS, RECIPE)
    assert shadow.count(references) == 6
    apart = [shadow.model(references, i) for i in range(6)]
    same(shadow.stack(apart).params, references.params)
    mask = np.array([True, False, True, False, False, True])
    same(shadow.model(references, mask).params, shadow.stack(apart[:3:2] + apart[5:]).params)
    many = jax.vmap(lambda target: target(X).logits)(references)
    one = apart[2](X).logits
    assert_close(many[2], one)
    with pytest.raises(IndexError, match="no model 6"):
        shadow.model(references, 6)
    with pytest.raises(ValueError, match="not of the same architecture"):
        shadow.stack([apart[0], mlp((6, 5, 3)).target])
    with pytest.raises(ValueError, match="no stack"):
        shadow.count(apart[0])


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_model_that_diverges_is_named_and_the_others_finish():
    x, y = X.copy(), Y.copy()
    x[6:9], y[6:9] = 3e38, (0, 1, 2)  # two of them are misclassified: a step that overflows
    rows = np.ones((3, 60), bool)
    rows[0, 6:9] = rows[2, 6:9] = False
    recipe = shadow.RecipeConfig(epochs=3, batch_size=8, optimizer="sgd").recipe()
    with pytest.warns(RuntimeWarning, match=r"1 of 3 reference models diverged \(models 1\)"):
        found = shadow.train_all(KEY, mlp((6, 3)), x, y, rows, recipe)
    assert list(found.finite) == [True, False, True]
    assert list(shadow.finite(found.references)) == [True, False, True]
    assert np.isfinite(found.losses[[0, 2]]).all()


def test_saturated_models_stay_finite():
    recipe = shadow.RecipeConfig(epochs=30, batch_size=8, learning_rate=1.0).recipe()
    found = shadow.train_all(KEY, NET, 100 * X, Y, ROWS, recipe)
    assert found.finite.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"was_member": ROWS[:, :59]}, "must be \\[k, 60\\]"),
        ({"was_member": ROWS.T}, "must be \\[k, 60\\]"),
        ({"was_member": ROWS[0]}, "must be \\[k, 60\\]"),
        ({"was_member": ROWS * 0.5}, "other than 0 and 1"),
        ({"was_member": ROWS & (np.arange(60) != 3)}, "1 records are in no model .*record 3"),
        ({"was_member": ROWS & (np.arange(6) != 2)[:, None]}, "model 2 is trained on no record"),
        ({"y": np.where(np.arange(60) == 5, 3, Y)}, "record 5 has label 3"),
        ({"y": Y - 1}, "not whole numbers in 0..2"),
        ({"y": Y + 0.5}, "not whole numbers"),
        ({"y": Y[:59]}, r"\[n, ...\] and \[n\]"),
        ({"x": np.where(np.arange(60)[:, None] == 9, np.nan, X)}, "record 9"),
        ({"x": X[:, :5]}, "records have shape"),
        ({"chunk": 0}, "at least one model"),
        ({"devices": ()}, "no device"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"x": X, "y": Y, "was_member": ROWS, "recipe": RECIPE, **change}
    with pytest.raises(ValueError, match=message):
        shadow.train(KEY, NET, **arguments)


def test_architectures_that_cannot_be_trained_are_refused():
    with pytest.raises(TypeError, match="takes a live, built Keras 3 model"):
        shadow.of_keras(NET)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.trainable = False
    with pytest.raises(ValueError, match="nothing of the model"):
        shadow.of_keras(model)

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = keras.layers.Dense(3)

        def call(self, x):
            return self.out(x)

        def get_config(self):
            return {"unknown": 1}

    own = Own()
    with jax.numpy_rank_promotion("allow"):
        own(np.ones((2, 6), np.float32))
    with pytest.raises(ValueError, match="cannot be made again from its config"):
        shadow.of_keras(own)


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch_size": 0}, {"smoothing": 1.0}, {"learning_rate": 0.0}]
)
def test_recipes_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        shadow.RecipeConfig(**{"epochs": 1, **change}).recipe()


def test_the_bar_shows_models_epochs_loss_and_time(capsys):
    with shadow.bar() as progress:
        progress(shadow.Progress(4, 16, 4, 5, 10, 0.25, 75.0))
        progress(shadow.Progress(16, 16, 0, 0, 10, float("nan"), float("nan")))
    out = capsys.readouterr().out
    assert "16/16" in out and "100%" in out
    assert shadow.Progress(4, 16, 4, 5, 10, 0.25, 75.0).fraction == 6 / 16
