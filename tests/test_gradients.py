import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmeter as jm
from helpers import assert_close, linear_target, mlp_target, reference_gradients
from jaxmeter.gradients.per_example import cross_entropy, of_loss


def test_softmax_regression_has_the_closed_form_gradient():
    target = linear_target(d=5, classes=3)
    x = np.random.default_rng(1).normal(size=(11, 5)).astype(np.float32)
    y = np.arange(11) % 3
    p = jax.nn.softmax(target(x).logits)
    error = p - np.eye(3)[y]  # p - onehot
    found = jm.per_example_gradients(target, x, y)
    assert_close(found["out/kernel"], x[:, :, None] * error[:, None, :])
    assert_close(found["out/bias"], error)
    norms = jm.gradient_norms(target, x, y)
    length = np.linalg.norm(error, axis=1)
    assert_close(norms["out/kernel"], np.linalg.norm(x, axis=1) * length)
    assert_close(norms["out/bias"], length)


def test_mean_of_per_example_gradients_is_the_gradient_of_the_mean():
    target = mlp_target()
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    y = np.arange(32) % 4

    def mean_loss(params):
        return cross_entropy(target.apply(params, {}, jnp.asarray(x)).logits, jnp.asarray(y)).mean()

    batch = jax.grad(mean_loss)(target.params)
    found = jm.per_example_gradients(target, x, y)
    for name, gradient in found.items():
        assert_close(gradient.mean(axis=0), batch[name])


def dense_twice(shared: bool):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            first = nn.Dense(6, use_bias=False)
            second = first if shared else nn.Dense(6)
            return nn.Dense(3)(nn.tanh(second(nn.tanh(first(x)))))

    return Net(), (6,)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=(2, 1))(x))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2, use_bias=False)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(5))(x)
        return nn.Dense(3)(x[:, -1])


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(num_heads=2)(x))
        return nn.Dense(3)(nn.gelu(nn.Dense(8)(x)).mean(axis=1))


class TiedEmbedding(nn.Module):
    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(7, 6)
        hidden = nn.tanh(nn.Dense(6)(embed(x).mean(axis=1)))
        return embed.attend(hidden)


class Odd(nn.Module):
    """A parameter added to the logits, one squared, one never used, one as a whole output."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.normal(1.0), (4,))
        prior = self.param("prior", nn.initializers.normal(1.0), (3,))
        self.param("unused", nn.initializers.normal(1.0), (2,))
        w = self.param("w", nn.initializers.normal(1.0), (3, 4))
        return x @ (scale[:, None] ** 2 * w.T) + prior


class Fourier(nn.Module):
    """Filters in the frequency domain: complex values on the way."""

    @nn.compact
    def __call__(self, x):
        w = self.param("filter", nn.initializers.normal(1.0), (4,))
        phase = self.param("phase", nn.initializers.normal(1.0), (3,))
        spectrum = jnp.fft.rfft(x) * jnp.exp(1j * phase)
        return nn.Dense(3)(jnp.fft.irfft(spectrum * jnp.fft.rfft(w), n=4))


NETS = {
    "dense": dense_twice(False),
    "dense used twice": dense_twice(True),
    "convolutions and BatchNorm": (ConvNet(), (8, 8, 2)),
    "LSTM": (Recurrent(), (5, 4)),
    "attention": (Attention(), (5, 4)),
    "odd parameters": (Odd(), (4,)),
    "Fourier filters": (Fourier(), (4,)),
    "tied embedding": (TiedEmbedding(), (5,)),
}


def flax_target(module: nn.Module, shape: tuple[int, ...], seed: int = 0) -> jm.Target:
    integers = isinstance(module, TiedEmbedding)
    dtype = "int32" if integers else "float32"
    with jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(seed), jnp.ones((1, *shape), dtype))
    leaves, tree = jax.tree.flatten(variables)
    random = np.random.default_rng(seed)  # no zero biases: they would hide mistakes
    leaves = [leaf + 0.1 * np.abs(random.normal(size=leaf.shape)).astype("f") for leaf in leaves]
    return jm.from_flax(
        Promoting(module), tree.unflatten(leaves), input_shape=shape, input_dtype=dtype
    )


class Promoting:
    """flax relies on rank promotion, which the tests forbid in jaxmeter's own code."""

    def __init__(self, module: nn.Module):
        self.module = module

    def apply(self, *args, **kwargs):
        with jax.numpy_rank_promotion("allow"):
            return self.module.apply(*args, **kwargs)


def inputs_for(target: jm.Target, n: int, seed: int = 1):
    random = np.random.default_rng(seed)
    shape = (n, *target.spec.input_shape)
    if target.spec.input_dtype == "int32":
        return random.integers(0, 7, size=shape), np.arange(n) % target.spec.n_classes
    return random.normal(size=shape).astype("f"), np.arange(n) % target.spec.n_classes


@pytest.mark.parametrize("net", NETS, ids=NETS.keys())
def test_equals_vmap_of_grad(net):
    target = flax_target(*NETS[net])
    x, y = inputs_for(target, 6)
    with jax.numpy_rank_promotion("allow"):
        expected = reference_gradients(target, x, y)
        found = jm.per_example_gradients(target, x, y)
        norms = jm.gradient_norms(target, x, y)
    assert tuple(found) == target.spec.variables
    # Some gradients are zero but for rounding: a key bias has no influence on attention.
    floor = 1e-2 * max(float(jnp.abs(gradient).max()) for gradient in expected.values())
    for name in expected:
        assert_close(found[name], expected[name], floor=floor)
        lengths = np.linalg.norm(np.asarray(expected[name]).reshape(6, -1), axis=1)
        assert_close(norms[name], lengths, floor=floor)


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**16),
)
def test_equals_vmap_of_grad_on_random_networks(sizes, classes, seed):
    target = mlp_target((*sizes, classes), seed)
    x, y = inputs_for(target, 3, seed)
    found, expected = jm.per_example_gradients(target, x, y), reference_gradients(target, x, y)
    for name in expected:
        assert_close(found[name], expected[name])


def test_only_the_chosen_variables_are_computed_and_dense_kernels_stay_factored():
    target = mlp_target()
    x, y = inputs_for(target, 1)
    names = ("b/kernel", "c/bias")
    gradients = jax.jit(lambda x, y: of_loss(target, x, y, names)[2])(x[0], y[0])
    assert sorted(gradients) == ["b/kernel", "c/bias"]
    assert isinstance(gradients["b/kernel"], jm.Outer)
    expected = reference_gradients(target, x, y)["b/kernel"][0]
    assert_close(gradients["b/kernel"].materialise(), expected)
    assert_close(gradients["b/kernel"].norm(), np.linalg.norm(expected))


def test_last_layer_gradients_run_no_backward_pass_through_the_others():
    target = mlp_target((6, 50, 50, 4))
    x, y = inputs_for(target, 1)

    def matmuls(names):
        jaxpr = jax.make_jaxpr(lambda x, y: of_loss(target, x, y, names)[2])(x[0], y[0])
        return str(jaxpr).count("dot_general[")

    forward = matmuls(())
    assert forward == 3
    assert matmuls(("c/kernel", "c/bias")) == forward
    assert matmuls(("a/kernel",)) == forward + 2


def test_composes_with_jit_and_vmap_over_stacked_targets():
    targets = [mlp_target(seed=s) for s in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(t.params for t in targets))
    stacked = targets[0].replace(params=stacked)
    x, y = inputs_for(targets[0], 4)
    for run in (jm.gradient_norms, jm.per_example_gradients):
        found = jax.jit(jax.vmap(lambda target: run(target, x, y, params=("a",))))(stacked)  # noqa: B023
        for k, target in enumerate(targets):
            one = run(target, x, y, params=("a",))
            for name in one:
                assert_close(found[name][k], one[name])


def test_names_may_be_layers_variables_or_numbers():
    target = mlp_target()
    x, y = inputs_for(target, 2)
    assert list(jm.gradient_norms(target, x, y, params=("b",))) == ["b/kernel", "b/bias"]
    assert list(jm.gradient_norms(target, x, y, params=(3,))) == ["c/kernel", "c/bias"]
    assert list(jm.gradient_norms(target, x, y, params=("c/bias", "a"))) == [
        "c/bias",
        "a/kernel",
        "a/bias",
    ]
    with pytest.raises(ValueError, match=r"no trainable layer 'b/kernal'.*'b/kernel'"):
        jm.gradient_norms(target, x, y, params=("b/kernal",))
    with pytest.raises(
        ValueError, match=r"no trainable layer number 4; there are 1: a, 2: b, 3: c"
    ):
        jm.gradient_norms(target, x, y, params=(4,))


def test_gradients_have_the_dtype_of_their_variable():
    """A layer that computes in bfloat16 with float32 weights."""
    target = jm.from_function(
        lambda p, s, x: (x.astype("bfloat16") @ p["w"].astype("bfloat16")).astype("float32"),
        {"w": np.ones((3, 2), "f")},
        input_shape=(3,),
    )
    x, y = inputs_for(target, 4)
    found, expected = jm.per_example_gradients(target, x, y), reference_gradients(target, x, y)
    assert found["w"].dtype == expected["w"].dtype == jnp.float32
    assert_close(found["w"], expected["w"], rtol=1e-2)


def test_layers_may_be_of_any_dtype():
    """A layer output that is a mask computed from a weight alone."""
    target = jm.from_function(
        lambda p, s, x: jm.Outputs(x @ p["w"], {"mask": p["w"][None] > 0}),
        {"w": np.eye(3, 2, dtype="f")},
    )
    x, y = np.ones((2, 3), "f"), np.zeros(2, int)
    assert jm.per_example_gradients(target, x, y)["w"].shape == (2, 3, 2)


def test_a_record_that_gives_nan_stays_in_its_own_row():
    target = mlp_target()
    x, y = inputs_for(target, 5)
    x[2] = np.nan
    found = jm.per_example_gradients(target, x, y)["a/kernel"]
    assert np.isnan(found[2]).all()
    assert np.isfinite(np.delete(found, 2, axis=0)).all()


@pytest.mark.parametrize("gap", [5.0, 50.0, 800.0])
def test_loss_keeps_relative_precision_when_confident(gap):
    found = float(cross_entropy(jnp.array([gap, 0.0, 0.0]), 0))
    assert found == pytest.approx(np.log1p(2 * np.exp(-gap)), rel=1e-5, abs=1e-37)
    wrong = float(cross_entropy(jnp.array([gap, 0.0, 0.0]), 1))
    assert wrong == pytest.approx(gap + np.log1p(2 * np.exp(-gap)), rel=1e-6)


def test_loss_is_log_softmax():
    logits = np.random.default_rng(0).normal(size=(9, 4)).astype("f")
    y = np.arange(9) % 4
    expected = -jax.nn.log_softmax(logits)[np.arange(9), y]
    assert_close(cross_entropy(jnp.asarray(logits), y), expected)


def test_second_call_does_not_retrace():
    traces = 0

    def apply(params, state, x):
        nonlocal traces
        traces += 1
        return x @ params["w"]

    target = jm.from_function(apply, {"w": np.ones((3, 2), "f")}, input_shape=(3,))
    x, y = np.ones((4, 3), "f"), np.zeros(4, int)
    jm.gradient_norms(target, x, y)
    seen = traces
    jm.gradient_norms(target, 2 * x, y)
    assert traces == seen
