"""Inner products, projections, cosines and input gradients against materialised gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeter as jm
from helpers import assert_close, mlp_target, reference_gradients
from jaxmeter.gradients import directions
from jaxmeter.gradients.per_example import cross_entropy


def some(target, n=7, seed=1):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, *target.spec.input_shape)).astype("f"), np.arange(n) % 4


def flat(gradients):
    return np.concatenate([np.asarray(g).reshape(len(g), -1) for g in gradients.values()], axis=1)


def test_mean_gradient():
    target = mlp_target()
    x, y = some(target)
    expected = {name: g.mean(axis=0) for name, g in reference_gradients(target, x, y).items()}
    found = directions.mean_gradient(target, x, y)
    assert list(found) == list(target.params)
    for name, value in found.items():
        assert_close(value, expected[name], floor=1e-4)
    (only,) = directions.mean_gradient(target, x, y, ["b/bias"]).items()
    assert only[0] == "b/bias"
    assert_close(only[1], expected["b/bias"], floor=1e-4)
    with pytest.raises(ValueError, match="no records"):
        directions.mean_gradient(target, x[:0], y[:0])


def test_inner_products():
    target = mlp_target()
    x, y = some(target)
    random = np.random.default_rng(2)
    direction = {name: random.normal(size=v.shape).astype("f") for name, v in target.params.items()}
    whole = flat(reference_gradients(target, x, y))
    along = np.concatenate([direction[name].ravel() for name in reference_gradients(target, x, y)])
    assert_close(directions.inner_products(target, x, y, direction), whole @ along)
    part = {"b/bias": direction["b/bias"]}
    expected = reference_gradients(target, x, y)["b/bias"] @ part["b/bias"]
    assert_close(directions.inner_products(target, x, y, part), expected)
    assert_close(directions.inner_products(target, x, y, {}), np.zeros(7))


def test_inner_products_refuse_what_is_no_direction():
    target = mlp_target()
    x, y = some(target)
    with pytest.raises(ValueError, match="'a/kernal'.*'a/kernel'"):
        directions.inner_products(target, x, y, {"a/kernal": 1})
    with pytest.raises(ValueError, match="layer 'a'; name its variables: a/kernel, a/bias"):
        directions.inner_products(target, x, y, {"a": 1})
    with pytest.raises(ValueError, match=r"shape \(2,\), the variable \(8,\)"):
        directions.inner_products(target, x, y, {"a/bias": jnp.ones(2)})


@pytest.mark.parametrize("block", [2**22, 40])
def test_projections_are_linear_in_the_gradient_and_keep_lengths(block, monkeypatch):
    monkeypatch.setattr(directions, "_BLOCK", block)
    jax.clear_caches()
    target = mlp_target()
    x, y = some(target, n=5)
    found = directions.projections(target, x, y, seed=3, dimensions=600)
    assert found.shape == (5, 600)
    whole = flat(reference_gradients(target, x, y))
    gram, exact = found @ found.T, whole @ whole.T
    deviation = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / 600)
    assert (np.abs(gram - exact) < 5 * deviation).all()
    again = directions.projections(target, x[:2], y[:2], seed=3, dimensions=600)
    assert_close(again, found[:2])
    other = directions.projections(target, x, y, seed=4, dimensions=600)
    assert np.abs(other - found).max() > 0.1 * np.abs(found).max()


def test_signs_do_not_depend_on_the_form_of_the_gradient():
    """The same function, its kernel met by one row or, looked at through a batch axis, by two."""
    w = {"w": np.random.default_rng(0).normal(size=(6, 4)).astype("f")}
    rows = jm.from_function(lambda p, s, x: x[:, 0] @ p["w"] + x[:, 1] @ p["w"], w)
    sums = jm.from_function(lambda p, s, x: x.sum(1) @ p["w"], w)
    odd = jm.from_function(lambda p, s, x: x.sum(1) @ (p["w"] * jnp.ones((6, 4))), w)
    turned = jm.from_function(lambda p, s, x: (p["w"].T @ x.sum(1).T).T, w)
    x, y = np.random.default_rng(1).normal(size=(5, 2, 6)).astype("f"), np.arange(5) % 4
    found = [
        directions.projections(t, x, y, seed=0, dimensions=8) for t in (rows, sums, odd, turned)
    ]
    for other in found[1:]:
        assert_close(other, found[0])


def test_cosines_to_mean():
    target = mlp_target()
    x, y = some(target)
    reference = some(target, n=4, seed=9)
    mean = flat(reference_gradients(target, *reference)).mean(axis=0)
    whole = flat(reference_gradients(target, x, y))
    expected = whole @ mean / np.linalg.norm(whole, axis=1) / np.linalg.norm(mean)
    assert_close(directions.cosines_to_mean(target, x, y, reference), expected)
    assert directions.cosines_to_mean(target, x[:1], y[:1], (x[:1], y[:1]))[0] == pytest.approx(1)
    zero = target.replace(params={name: 0 * v for name, v in target.params.items()})
    found = directions.cosines_to_mean(zero, 0 * x, y, reference, params=("a/kernel",))
    assert not found.any()
    with pytest.raises(ValueError, match="empty"):
        directions.cosines_to_mean(target, x, y, (x[:0], y[:0]))


def test_input_gradients():
    target = mlp_target()
    x, y = some(target)
    x[2] = np.nan

    def loss(x, y):
        return cross_entropy(target.apply(target.params, {}, x[None]).logits[0], y)

    expected = jax.vmap(jax.grad(loss))(jnp.asarray(x), y)
    found = directions.input_gradients(target, x, y)
    fine = np.arange(7) != 2
    assert_close(found[fine], expected[fine])
    assert np.isnan(found[2]).all()
    norms = directions.input_gradient_norms(target, x, y)
    assert_close(norms[fine], np.linalg.norm(expected[fine], axis=1))


def test_integers_have_no_gradient():
    target = jm.from_function(
        lambda p, s, x: p["w"][x[:, 0]], {"w": np.ones((4, 3), "f")}, input_dtype="int32"
    )
    with pytest.raises(ValueError, match="takes int32: whole numbers have no gradient"):
        directions.input_gradients(target, np.ones((2, 1), int), np.zeros(2, int))
