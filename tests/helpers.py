"""Small targets and records written by hand, so that few tests need Keras."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeter as jm
from jaxmeter.gradients.per_example import cross_entropy
from jaxmeter.jaxpr.equations import body_of, equations_in


def linear_target(d: int = 5, classes: int = 3, seed: int = 0) -> jm.Target:
    """Softmax regression, whose gradients have a closed form."""
    random = np.random.default_rng(seed)
    params = {
        "out/kernel": random.normal(size=(d, classes)).astype(np.float32),
        "out/bias": random.normal(size=classes).astype(np.float32),
    }
    return jm.from_function(
        lambda params, state, x: x @ params["out/kernel"] + params["out/bias"][None],
        params,
        input_shape=(d,),
    )


def mlp_target(sizes: tuple[int, ...] = (6, 8, 7, 4), seed: int = 0) -> jm.Target:
    """A tanh network with layers a, b, c, ..."""
    random = np.random.default_rng(seed)
    params = {
        name: {
            "kernel": random.normal(size=(m, n)).astype(np.float32),
            "bias": random.normal(size=n).astype(np.float32),
        }
        for name, m, n in zip("abcdefg", sizes[:-1], sizes[1:], strict=False)
    }

    def apply(params, state, x):
        layers = {}
        for i, (name, layer) in enumerate(params.items()):
            x = x @ layer["kernel"] + layer["bias"][None]
            x = jnp.tanh(x) if i < len(params) - 1 else x
            layers[name] = x
        return jm.Outputs(x, layers)

    return jm.from_function(apply, params, input_shape=sizes[:1])


def some_records(n: int, shape: tuple[int, ...], classes: int, seed: int = 0) -> jm.Records:
    """Distinct random records, the first half members."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, *shape)).astype(np.float32)
    y = random.integers(0, classes, size=n)
    return jm.Records.of(members=(x[: n // 2], y[: n // 2]), nonmembers=(x[n // 2 :], y[n // 2 :]))


def reference_gradients(target: jm.Target, x, y) -> dict[str, jax.Array]:
    """The definition: `vmap(grad)` of one record's loss with respect to every parameter."""

    def loss(params, x, y):
        return cross_entropy(target.apply(params, target.state, x[None]).logits[0], y)

    every = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))  # one compilation, not many
    return every(target.params, jnp.asarray(x), jnp.asarray(y))


def assert_close(
    found, expected, rtol: float = 1e-5, floor: float = 1e-30, err_msg: str = ""
) -> None:
    """Equal to `rtol` relative to the largest entry of `expected`, or to `floor` if larger."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    scale = max(np.abs(expected).max(initial=0.0), floor)
    np.testing.assert_allclose(found / scale, expected / scale, atol=rtol, rtol=0, err_msg=err_msg)


def equations(fun, *args):
    """Equations of a traced function, of its inner programs too."""
    return list(equations_in(body_of(jax.make_jaxpr(fun)(*args)).jaxpr))


def skip_where_xla_lacks(dtype: str) -> None:
    """Skips where XLA cannot compile a type: float16, for processors that do not convert it."""
    try:
        jax.jit(lambda x: (x + x).astype("float32"))(jnp.ones(2, dtype)).block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        pytest.skip(f"XLA has no {dtype} on this processor: {error}")
