"""Every factored form of a gradient against vmap(grad), on drawn networks, and that it is taken."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxmeter as jm
from helpers import assert_close, equations, reference_gradients
from jaxmeter.gradients.factors import (
    Outer,
    Products,
    Rows,
    TransposedOuter,
    ghost_is_cheaper,
    ghost_norm,
)
from jaxmeter.gradients.per_example import of_loss

DTYPES = {"float32": 1e-5, "bfloat16": 5e-2}


def lstm_like(p, x, reverse):
    """[n, t, c] to [n, t, c]; two uses of one kernel in the body, a mask, a nested jit."""
    n, c = len(x), p["u"].shape[0]

    @jax.jit
    def gate(h, x):
        return x @ p["w"] + h @ p["u"] + p["b"][None]

    def step(carry, xs):
        h, m = carry
        x, keep = xs
        z = gate(h, x)
        f, g = jnp.split(z, 2, axis=-1)
        m = jax.nn.sigmoid(f) * m + jnp.tanh(g) + 0.1 * jnp.tanh(m @ p["u"])[:, :c]
        new = jnp.where(keep, jnp.tanh(m), h)
        return (new, m), new

    keep = jnp.arange(x.shape[1]) != 1
    start = jnp.zeros((n, c), x.dtype) + p["h0"][None]
    _, out = lax.scan(step, (start, start), (x.swapaxes(0, 1), keep), reverse=reverse)
    return out.swapaxes(0, 1)


def layer(kind, random, c, dtype):
    """Parameters and a function of `[n, t, c]` to `[n, t', c']`, and c'."""
    out = int(random.integers(1, 5))
    draw = lambda *shape: jnp.asarray(random.normal(size=shape) / 2, dtype)  # noqa: E731
    if kind == "dense":
        return {"w": draw(c, out), "b": draw(out)}, lambda p, x: x @ p["w"] + p["b"], out
    if kind == "biasless":
        return {"w": draw(c, out)}, lambda p, x: x @ p["w"], out
    if kind == "transposed":
        return {"w": draw(out, c)}, lambda p, x: x @ p["w"].T, out
    if kind == "einsum":
        return {"w": draw(c, 2, out)}, lambda p, x: jnp.einsum("ntc,cho->nto", x, p["w"]), out
    if kind == "left":
        return {"w": draw(out, c)}, lambda p, x: jnp.einsum("oc,ntc->nto", p["w"], x), out
    if kind == "heads":
        w = {"w": draw(2, c, out)}
        return w, lambda p, x: jnp.einsum("nhtc,hco->nto", jnp.stack([x, x * x], 1), p["w"]), out
    if kind == "flat":
        return {"w": draw(c * out)}, lambda p, x: x @ p["w"].reshape(c, out), out
    if kind == "twice":
        return {"w": draw(c, c)}, lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], c
    if kind == "tied":
        return {"w": draw(out, c)}, lambda p, x: jnp.tanh(x @ p["w"].T) @ p["w"], c
    if kind == "joined":
        p = {"w": draw(c, out), "v": draw(c, 1)}
        return p, lambda p, x: x @ jnp.concatenate([p["w"], p["v"]], axis=1), out + 1
    if kind == "scaled":
        p = {"s": draw(c), "w": draw(c, c), "g": draw(1)}
        return p, lambda p, x: (x * p["s"]) @ (p["w"] * 2.0) * p["g"], c
    if kind == "norm":
        p = {"s": draw(c), "b": draw(c)}

        def norm(p, x):
            wide = x - x.mean(-1, keepdims=True)
            return wide * lax.rsqrt((wide**2).mean(-1, keepdims=True) + 0.1) * p["s"] + p["b"]

        return p, norm, c
    if kind in ("conv", "strided"):
        numbers = ("NTC", "TIO", "NTC") if kind == "conv" else ("NTC", "OIT", "NTC")
        shape = (2, c, out) if kind == "conv" else (out, c, 2)
        stride = 1 if kind == "conv" else 2

        def conv(p, x):
            return lax.conv_general_dilated(x, p["w"], (stride,), "SAME", dimension_numbers=numbers)

        return {"w": draw(*shape)}, conv, out
    if kind == "depthwise":
        numbers = ("NTC", "TIO", "NTC")

        def depthwise(p, x):
            return lax.conv_general_dilated(
                x, p["w"], (1,), "SAME", dimension_numbers=numbers, feature_group_count=c
            )

        return {"w": draw(2, 1, c)}, depthwise, c
    if kind in ("scan", "reverse"):
        p = {"w": draw(c, 2 * out), "u": draw(out, 2 * out), "b": draw(2 * out), "h0": draw(out)}
        return p, lambda p, x: lstm_like(p, x, kind == "reverse"), out
    raise AssertionError(kind)


KINDS = (
    *("dense", "biasless", "transposed", "einsum", "left", "heads", "flat", "twice", "tied"),
    *("joined", "scaled", "norm", "conv", "strided", "depthwise", "scan", "reverse"),
)


def network(kinds, seed, dtype="float32", t=3, c=3):
    """A target of some layers over a sequence, with tanh between, and a Dense head."""
    random = np.random.default_rng(seed)
    params, layers = {}, []
    width = c
    for i, kind in enumerate(kinds):
        own, apply, width = layer(kind, random, width, dtype)
        params[f"l{i}"] = own
        layers.append(apply)
    params["head"] = {"w": jnp.asarray(random.normal(size=(width, 3)), dtype)}

    def apply(params, state, x):
        with jax.numpy_rank_promotion("allow"):
            x = x.astype(dtype)
            for i, one in enumerate(layers):
                x = jnp.tanh(one(params[f"l{i}"], x)) + 0.1
            return (x.mean(axis=1) @ params["head"]["w"]).astype(
                jnp.promote_types(dtype, jnp.float32)
            )

    return jm.from_function(apply, params, input_shape=(t, c))


def inputs(target, n, seed=1):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, *target.spec.input_shape)).astype("f"), np.arange(n) % 3


def compare(target, x, y, rtol):
    expected = reference_gradients(target, x, y)
    found, norms = jm.per_example_gradients(target, x, y), jm.gradient_norms(target, x, y)
    largest = max(float(jnp.abs(g).max()) for g in expected.values())
    for name, gradient in expected.items():
        gradient = np.asarray(gradient, "float64")
        assert found[name].dtype == target.params[name].dtype
        assert_close(
            found[name].astype("float64" if rtol < 1e-6 else "float32"),
            gradient,
            rtol,
            1e-2 * largest,
        )
        lengths = np.linalg.norm(gradient.reshape(len(x), -1), axis=1)
        assert_close(norms[name], lengths, rtol, 1e-2 * largest)


@pytest.mark.parametrize("kind", KINDS)
def test_each_form_equals_vmap_of_grad(kind):
    target = network([kind], 0)
    compare(target, *inputs(target, 2), rtol=1e-5)


@settings(max_examples=5, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=2),
    t=st.sampled_from([1, 2, 5]),
    c=st.integers(1, 5),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from(["float32", "float32", "bfloat16"]),
)
def test_drawn_networks_equal_vmap_of_grad(kinds, t, c, seed, dtype):
    target = network(kinds, seed, dtype, t, c)
    compare(target, *inputs(target, 3, seed), rtol=DTYPES[dtype] * (3 if t == 5 else 1))


def test_in_float64():
    with jax.enable_x64(True):
        target = network(["scan", "conv", "transposed"], 0, "float64", t=4)
        compare(target, *inputs(target, 2), rtol=1e-12)


def embedding(index_of, vocabulary=9, t=6):
    random = np.random.default_rng(0)
    params = {
        "table": random.normal(size=(vocabulary, 4)).astype("f"),
        "w": random.normal(size=(4, 3)).astype("f"),
    }

    def apply(params, state, x):
        found = jnp.where(jnp.isnan(found := index_of(params["table"], x)), 0, found)
        return jnp.tanh(found * (1.0 + jnp.arange(t)[None, :, None])).mean(axis=1) @ params["w"]

    return jm.from_function(apply, params, input_shape=(t,), input_dtype="int32")


LOOKUPS = {
    "take": lambda table, x: jnp.take(table, x, axis=0),
    "clip": lambda table, x: jnp.take(table, x, axis=0, mode="clip"),
    "fill": lambda table, x: table.at[x].get(mode="fill", fill_value=0.0),
    "index": lambda table, x: table[x],
    "of columns": lambda table, x: jnp.take(table.T, x, axis=1).transpose(1, 2, 0),
    "one-hot": lambda table, x: jax.nn.one_hot(x, 9) @ table,
    "one by one": lambda table, x: jnp.stack([table[x[:, i]] for i in range(6)], axis=1),
}


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("few", [0, 256], ids=["sorted", "pairs"])
def test_tables_equal_vmap_of_grad(lookup, few, monkeypatch):
    monkeypatch.setattr("jaxmeter.gradients.factors._FEW_LOOKUPS", few)
    jax.clear_caches()
    target = embedding(LOOKUPS[lookup])
    x = np.array([[0, 1, 1, 8, 1, 0], [3, 3, 3, 3, 3, 3], [5, 12, 2, -1, 12, 5]], "int32")
    compare(target, x, np.arange(3), rtol=1e-5)


def forms(target):
    x = jnp.ones(target.spec.input_shape, target.spec.input_dtype)
    names = target.spec.variables
    return jax.eval_shape(lambda x: of_loss(target, x, jnp.array(0), names)[2], x)


def test_forms_are_factored():
    found = forms(network(["dense", "transposed", "einsum", "tied", "scan"], 0, t=3))
    kinds = {name: type(form) for name, form in found.items()}
    for name in ("l0/w", "l1/w", "l2/w", "l3/w", "l4/w", "l4/u"):
        expected = jax.ShapeDtypeStruct if name == "l2/w" else Products  # summed over heads first
        assert kinds[name] in (expected, Products), name
    one_row = forms(network(["transposed", "dense"], 0, t=1))
    assert isinstance(one_row["l0/w"], TransposedOuter)
    assert type(one_row["l1/w"]) is Outer
    assert isinstance(forms(embedding(LOOKUPS["take"]))["table"], Rows)


def shapes_made(fun, *args):
    """Shapes of all arrays a program makes, those of inner programs too."""
    return [v.aval.shape for eqn in equations(fun, *args) for v in eqn.outvars]


def test_norms_of_a_recurrent_layer_hold_no_gradient():
    """Sizes that occur nowhere else: `[17, 46]` is the kernel of four steps."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.normal(1.0), (17, 46))
            u = self.param("u", nn.initializers.normal(1.0), (46, 46))
            step = lambda h, x: (jnp.tanh(x @ w + h @ u), None)  # noqa: E731
            h, _ = lax.scan(step, jnp.zeros((len(x), 46)), x.swapaxes(0, 1))
            return nn.Dense(3)(h)

    module = Net()
    variables = module.init(jax.random.key(0), jnp.ones((1, 4, 17)))
    target = jm.from_flax(module, variables, input_shape=(4, 17))
    x, y = jnp.ones((5, 4, 17)), jnp.zeros(5, int)
    with jax.numpy_rank_promotion("allow"):
        norms = shapes_made(lambda x: jm.gradient_norms(target, x, y), x)
        gradients = shapes_made(lambda x: jm.per_example_gradients(target, x, y), x)
    for shape in ((17, 46), (46, 46)):
        assert not [s for s in norms if s[-2:] == shape and s[:1] == (5,)]
        assert (5, *shape) in gradients
        assert (4, 5, *shape) not in gradients  # none a step


def test_norms_of_a_table_make_no_table():
    target = embedding(LOOKUPS["take"], vocabulary=1000)
    x, y = jnp.zeros((5, 6), "int32"), jnp.zeros(5, int)
    assert (5, 1000, 4) not in shapes_made(lambda x: jm.gradient_norms(target, x, y), x)


def test_ghost_norm_is_taken_where_it_is_cheaper():
    assert ghost_is_cheaper(1, 1, 1)
    assert ghost_is_cheaper(4, 1728, 384)
    assert not ghost_is_cheaper(1024, 27, 16)
    assert not ghost_is_cheaper(8, 2, 2)


def test_ghost_norm_loses_what_it_says_to_cancellation():
    """Rows that are alike but for a share of 1/30, and errors that sum to zero."""
    random = np.random.default_rng(0)
    for share, rtol in ((1.0, 1e-5), (1 / 30, 1e-3)):
        a = 1 + share * random.normal(size=(1, 20, 40)).astype("f")
        delta = random.normal(size=(1, 20, 40)).astype("f")
        delta -= delta.mean(axis=1, keepdims=True)
        exact = np.linalg.norm(a[0].astype("d").T @ delta[0].astype("d"))
        assert float(ghost_norm(jnp.asarray(a), jnp.asarray(delta))) == pytest.approx(exact, rtol)
    opposite = jnp.array([[[1.0, 2.0], [1.0, 2.0]]]), jnp.array([[[0.1, 3.0], [-0.1, -3.0]]])
    assert float(ghost_norm(*opposite)) == 0.0


@pytest.mark.parametrize("kind", ["dense", "conv", "scan", "transposed"])
def test_a_record_that_gives_nan_stays_in_its_own_row(kind):
    target = network([kind], 0)
    x, y = inputs(target, 4)
    x[1] = np.nan
    norms, found = jm.gradient_norms(target, x, y), jm.per_example_gradients(target, x, y)
    assert np.isnan(norms["head/w"][1])
    for name in found:
        assert np.isfinite(np.delete(norms[name], 1, axis=0)).all()
        assert np.isfinite(np.delete(found[name], 1, axis=0)).all()


def test_composes_with_jit_vmap_and_grad():
    target = network(["scan"], 0, t=2)
    x, y = inputs(target, 2)

    def by_norms(x):
        return sum(jnp.sum(v**2) for v in jm.gradient_norms(target, x, y).values())

    def by_definition(x):
        return sum(jnp.sum(v**2) for v in reference_gradients(target, x, y).values())

    x = jnp.asarray(x)
    assert_close(jax.jit(jax.grad(by_norms))(x), jax.grad(by_definition)(x), rtol=1e-4)
    both = jax.jit(jax.vmap(by_norms))(jnp.stack([x, 2 * x]))
    assert_close(both, [by_norms(x), by_norms(2 * x)])


def test_signals_hold_transposed_kernels_as_factors():
    target = network(["transposed"], 0, t=1)
    x, y = inputs(target, 5)
    signals = jm.extract(
        target,
        jm.Records.of(members=(x[:3], y[:3]), nonmembers=(x[3:], y[3:])),
        jm.SignalSpec(gradients=("l0",)),
    )
    found = signals.gradients["l0/w"]
    assert isinstance(found, TransposedOuter)
    assert_close(found.materialise(), reference_gradients(target, x, y)["l0/w"])
