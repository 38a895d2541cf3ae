import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeter as jm
from helpers import assert_close
from jaxmeter.jaxpr import chunks
from jaxmeter.jaxpr.chunks import by_chunks, gradient_by_chunks
from jaxmeter.jaxpr.memory import peak, tree_bytes


@pytest.fixture
def small_cache(monkeypatch):
    """Chunks of few records, for few records."""
    monkeypatch.setattr(chunks, "CACHE", 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


def loops(fun, *args):
    return str(jax.make_jaxpr(fun)(*args)).count("scan[")


@pytest.mark.parametrize("n", [0, 1, 8, 9, 16, 23, 24])
def test_chunks_are_vmap(small_cache, n):
    def fun(x, y):
        return {"a": jnp.sin(jnp.outer(x, x)).sum(0), "b": (y, x.sum() * y)}

    x, y = normal(n, 3), jnp.arange(n)
    assert loops(lambda x, y: by_chunks(fun, x, y), x, y) == (n > 8)
    jax.tree.map(np.testing.assert_array_equal, by_chunks(fun, x, y), jax.vmap(fun)(x, y))


@pytest.mark.parametrize("n", [1, 8, 9, 16, 23, 24])
def test_sums_by_chunks_count_every_record_once(small_cache, n):
    def losses(params, x, weight):
        return weight * (x @ params["w"]) ** 2

    params, x, weight = {"w": normal(3)}, normal(n, 3, seed=1), 2.0 ** jnp.arange(n)
    found = gradient_by_chunks(losses, params, x, weight)
    expected = 2 * (weight * (x @ params["w"])) @ x
    assert_close(found["w"], expected)


def test_a_record_that_is_not_finite_stays_in_its_row(small_cache):
    x = normal(23, 3).at[5].set(jnp.nan)
    found = by_chunks(lambda x: jnp.tanh(jnp.outer(x, x)).sum(0), x)
    assert np.isnan(found).all(axis=1).tolist() == [i == 5 for i in range(23)]


def test_chunks_can_be_differentiated_mapped_and_compiled(small_cache):
    fun = lambda x: jnp.sin(jnp.outer(x, x)).sum(0)  # noqa: E731
    x = normal(2, 19, 3)
    square = lambda mapped: lambda x: jnp.sum(mapped(fun, x) ** 2)  # noqa: E731
    plain = lambda fun, x: jax.vmap(fun)(x)  # noqa: E731
    for way in (lambda f: jax.grad(f), lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2))):
        assert_close(
            jax.jit(jax.vmap(way(square(by_chunks))))(x), jax.vmap(way(square(plain)))(x), rtol=2e-5
        )


def test_large_results_are_not_written_twice(small_cache):
    x = normal(64, 3)
    assert loops(lambda x: by_chunks(lambda x: jnp.outer(x, x), x), x) == 0
    assert loops(lambda x: by_chunks(lambda x: jnp.outer(x, x).sum(), x), x) == 1


def test_a_chunk_fits_the_cache_and_divides_the_records_where_it_can():
    assert chunks._chunk(128, 2**21) == 8
    assert chunks._chunk(128, 2**20) == 16
    assert chunks._chunk(100, 2**20) == 10
    assert chunks._chunk(127, 2**20) == 16  # nothing divides it
    assert chunks._chunk(128, 2**40) == 8  # weights are not read for fewer
    assert chunks._chunk(128, 1) == 128
    spilled = 128 * 2**18 - 2**24  # two chunks, so weights are read once more
    assert chunks._chunk(128, 2**18, shared=spilled) == 64
    assert chunks._chunk(128, 2**18, shared=spilled + 1) == 128


def convolutional_target() -> jm.Target:
    def apply(params, state, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        for name in ("a", "b"):
            x = jax.lax.conv_general_dilated(
                x, params[name], (1, 1), "SAME", dimension_numbers=numbers
            )
            x = jnp.tanh(x)
        return x.mean((1, 2)) @ params["c"]

    params = {"a": normal(3, 3, 2, 5), "b": normal(3, 3, 5, 6, seed=1), "c": normal(6, 4, seed=2)}
    return jm.from_function(apply, params, input_shape=(6, 6, 2))


def test_signals_and_gradients_are_the_same_by_chunks(monkeypatch):
    target = convolutional_target()
    x, y = np.asarray(normal(19, 6, 6, 2)), np.arange(19) % 4
    records = jm.Records(x, y, y < 2)
    spec = jm.SignalSpec(gradients=("c",), gradient_norm=True)
    ways = {
        "gradients": lambda: jm.per_example_gradients(target, x, y),
        "norms": lambda: jm.gradient_norms(target, x, y),
        "signals": lambda: jm.extract(target, records, spec),
        "mean": lambda: jm.directions.mean_gradient(target, x, y),
        "projections": lambda: jm.directions.projections(target, x, y, seed=0, dimensions=9),
        "cosines": lambda: jm.directions.cosines_to_mean(target, x, y, (x[:12], y[:12])),
        "input": lambda: jm.directions.input_gradients(target, x, y),
    }
    whole = {name: way() for name, way in ways.items()}
    calls = []
    windows = chunks._windows
    monkeypatch.setattr(chunks, "_windows", lambda *a: calls.append(a) or windows(*a))
    monkeypatch.setattr(chunks, "CACHE", 2**13)
    jax.clear_caches()
    for name, way in ways.items():
        calls.clear()
        jax.tree.map(lambda a, b: assert_close(a, b, rtol=1e-5, floor=1e-2), way(), whole[name])
        assert calls or name == "cosines", name  # those have no loop where they go forward
    jax.clear_caches()


def test_peak_counts_what_depends_on_the_arguments_named():
    def fun(w, x):
        big = jnp.sin(w)  # 400 bytes, of w alone
        return (big @ x).sum()  # 40 bytes, and the result's 4

    jaxpr = jax.make_jaxpr(fun)(jnp.ones((10, 10)), jnp.ones(10)).jaxpr
    assert peak(jaxpr) == 400 + 40
    assert peak(jaxpr, jaxpr.invars[1:]) == 40 + 4
    assert peak(jaxpr, jaxpr.invars[1:], results=False) == 40
    inner = jax.make_jaxpr(jax.jit(fun))(jnp.ones((10, 10)), jnp.ones(10)).jaxpr
    assert peak(inner, inner.invars[1:], results=False) == 40
    assert tree_bytes({"a": jnp.ones(3), "b": np.ones(2)}) == 12 + 16
