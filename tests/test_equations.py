"""One test a primitive: what its equation says is what was traced.

A failure names the primitive whose parameters this release of JAX writes another way, to be mended
in `jaxmeter/jaxpr/equations.py` and nowhere else.
"""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmeter.jaxpr.equations import (
    Body,
    Window,
    as_function,
    bind,
    bodies,
    body_of,
    called,
    convolution_of,
    equations_in,
    is_literal,
    lookup_of,
    pad_of,
    permutation_of,
    product_of,
    scan_of,
    values_of,
    variables,
    window_of,
    with_bodies,
    with_padding,
    wrapped_of,
)

X = jnp.arange(6.0).reshape(2, 3)


@contextmanager
def reading(primitive: str):
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"jax {jax.__version__} writes {primitive!r} another way than jaxmeter.jaxpr.equations "
            f"reads it: {error}"
        ) from error


def jaxpr_of(fun, *args):
    return body_of(jax.make_jaxpr(fun)(*args)).jaxpr


def equation(primitive: str, fun, *args):
    """The only equation of its kind that a function is traced to."""
    names = [eqn.primitive.name for eqn in jaxpr_of(fun, *args).eqns]
    assert names.count(primitive) == 1, (
        f"jax {jax.__version__} traces {names}, no {primitive!r}; jaxmeter knows it by that name"
    )
    return jaxpr_of(fun, *args).eqns[names.index(primitive)]


def doubled(body: Body):
    """A program's results, twice as large."""
    return lambda *args: [2 * out for out in as_function(body)(*args)]


# --- loops and calls ----------------------------------------------------------------------------


@pytest.mark.parametrize("consts", [0, 2])
@pytest.mark.parametrize("carry", [0, 1, 3])
@pytest.mark.parametrize("xs", [0, 2])
@pytest.mark.parametrize("ys", [0, 1])
def test_scan(consts, carry, xs, ys):
    """Its body, gone through by hand, gives the results of the whole."""
    random = np.random.default_rng(0)
    shared, start = (
        [jnp.asarray(random.normal(size=3)) for _ in range(k)] for k in (consts, carry)
    )
    slices = [jnp.asarray(random.normal(size=(4, 3))) for _ in range(xs)]

    def fun(shared, start, slices):
        def step(state, row):
            total = sum([*shared, *state, *row], jnp.ones(3))
            return [total * (i + 1) - s for i, s in enumerate(state)], [jnp.sin(total)] * ys

        return lax.scan(step, start, slices, length=4, reverse=True, unroll=2)

    args = shared, start, slices
    expected = jax.tree.leaves(fun(*args))
    with reading("scan"):
        eqn = equation("scan", fun, *args)
        scan = scan_of(eqn)
        taken = scan.consts, scan.carry, scan.length, scan.reverse, scan.unroll
        # A value that the body does not read need not go in.
        assert taken == (consts if carry or ys else scan.consts, carry, 4, True, 2)
        assert len(eqn.invars) == scan.consts + carry + xs
        state, rows = start, []
        for i in reversed(range(4)):
            step = as_function(scan.body)
            outs = step(*shared[: scan.consts], *state, *(s[i] for s in slices))
            state, rows = outs[:carry], [outs[carry:], *rows]
        found = [*state, *(jnp.stack(column) for column in zip(*rows, strict=True))]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_scan_of_keys_and_of_a_derivative():
    """What it goes over is seen from ranks alone, also where those are of no plain arrays."""

    def keys(key, keys):
        return lax.scan(lambda k, own: (jax.random.fold_in(k, 1), own), key, keys)

    def loss(w, x):
        return jnp.sum(lax.scan(lambda h, row: (jnp.tanh(h @ w + row), h), jnp.ones(3), x)[0])

    with reading("scan"):
        key = jax.random.key(0)
        scan = scan_of(equation("scan", keys, key, jax.random.split(key, 5)))
        assert (scan.consts, scan.carry, scan.length) == (0, 1, 5)
        loops = jaxpr_of(jax.vmap(jax.grad(loss), (None, 0)), jnp.ones((3, 3)), jnp.ones((7, 2, 3)))
        forward, backward = (scan_of(e) for e in loops.eqns if e.primitive.name == "scan")
        assert (forward.reverse, backward.reverse) == (False, True)
        assert forward.carry == 1 and backward.carry == 2  # the state's error, the weights' sum
    assert scan_of(equation("sin", jnp.sin, X)) is None


def test_while():
    def fun(limit, x):
        return lax.while_loop(lambda s: s[0] < limit, lambda s: (s[0] + 1, s[1] * x), (0, x))

    with reading("while"):
        eqn = equation("while", fun, 3, X)
        condition, body = sorted(bodies(eqn), key=lambda b: len(b.jaxpr.outvars))
        assert len(condition.jaxpr.outvars) == 1 and len(body.jaxpr.outvars) == 2
        np.testing.assert_array_equal(as_function(body)(X, 1, X)[1], X * X)
        halved = with_bodies(
            eqn, lambda b: (lambda *args: [args[1] + 2, args[2]]) if b == body else None
        )
        values = values_of(eqn.invars, dict(zip(variables(eqn.invars), (3, X, X), strict=True)))
        assert int(bind(eqn, values)[0]) == 3 and int(bind(halved, values)[0]) == 4


def test_cond():
    def fun(i, x):
        return lax.switch(i, [jnp.sin, jnp.cos, jnp.exp], x)

    with reading("cond"):
        eqn = equation("cond", fun, 2, X)
        for body, branch in zip(bodies(eqn), (jnp.sin, jnp.cos, jnp.exp), strict=True):
            np.testing.assert_allclose(as_function(body)(X)[0], branch(X), rtol=1e-6)
        for i, branch in enumerate((jnp.sin, jnp.cos, jnp.exp)):
            found = bind(with_bodies(eqn, doubled), [jnp.int32(i), X])[0]
            np.testing.assert_allclose(found, 2 * branch(X), rtol=1e-6)


@jax.custom_jvp
def with_a_jvp(x):
    return jnp.sin(x)


with_a_jvp.defjvp(lambda primals, tangents: (jnp.sin(*primals), tangents[0]))


@jax.custom_vjp
def with_a_vjp(x):
    return jnp.sin(x)


with_a_vjp.defvjp(lambda x: (jnp.sin(x), None), lambda _, error: (error,))


@pytest.mark.parametrize(
    ("primitive", "fun", "is_differentiated_as_its_body"),
    [
        ("jit", jax.jit(lambda x: jnp.sin(x)), True),
        ("remat2", jax.checkpoint(lambda x: jnp.sin(x)), True),
        ("custom_jvp_call", with_a_jvp, False),
        ("custom_vjp_call", with_a_vjp, False),
    ],
)
def test_calls(primitive, fun, is_differentiated_as_its_body):
    with reading(primitive):
        eqn = equation(primitive, lambda x: fun(x), X)
        (body,) = bodies(eqn)
        np.testing.assert_allclose(as_function(body)(X)[0], jnp.sin(X), rtol=1e-6)
        assert called(eqn) == (body if is_differentiated_as_its_body else None)
        np.testing.assert_allclose(
            bind(with_bodies(eqn, doubled), [X])[0], 2 * jnp.sin(X), rtol=1e-6
        )
        assert "sin" in [e.primitive.name for e in equations_in(jaxpr_of(fun, X))]


def test_a_call_of_one_equation():
    def called_with(arguments):
        call = jax.custom_jvp(lambda x, y: jnp.matmul(*arguments(x, y)))
        call.defjvp(lambda primals, tangents: (primals[0], tangents[0]))
        return equation(
            "custom_jvp_call", lambda x, y: call(x, y), jnp.ones((3, 3)), jnp.ones((3, 3))
        )

    with reading("custom_jvp_call"):
        assert wrapped_of(called_with(lambda x, y: (x, y))).primitive.name == "dot_general"
        assert wrapped_of(called_with(lambda x, y: (y, x))) is None
        assert wrapped_of(called_with(lambda x, y: (x, jnp.sin(y)))) is None
    assert wrapped_of(equation("sin", jnp.sin, X)) is None


def test_a_program_that_would_need_constants_of_its_own_stays():
    """Not every primitive takes a program with constants."""
    weight = jnp.arange(6.0).reshape(2, 3)
    eqn = equation("remat2", jax.checkpoint(lambda x: x + 1), X)
    changed = with_bodies(eqn, lambda body: lambda x: [x + weight])
    np.testing.assert_array_equal(bind(changed, [X])[0], X + 1)


# --- matrix products, convolutions, windows -----------------------------------------------------


def test_dot_general():
    def fun(x, y):
        return lax.dot_general(
            x,
            y,
            (((1,), (2,)), ((0,), (1,))),
            precision=(lax.Precision.HIGHEST, lax.Precision.DEFAULT),
        )

    with reading("dot_general"):
        eqn = equation("dot_general", fun, jnp.ones((2, 3, 5)), jnp.ones((7, 2, 3)))
        product = product_of(eqn)
        contracting, batch = (tuple(map(tuple, p)) for p in (product.contracting, product.batch))
        assert (contracting, batch) == (((1,), (2,)), ((0,), (1,)))
        assert product.precision == lax.Precision.HIGHEST
        assert product_of(equation("dot_general", jnp.matmul, X, X.T)).precision is None


def convolve(x, w, **kwargs):
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(2, 1),
        padding=((1, 2), (0, 3)),
        lhs_dilation=(1, 2),
        rhs_dilation=(2, 1),
        dimension_numbers=("NHWC", "HWIO", "NCHW"),
        precision=lax.Precision.HIGH,
        **kwargs,
    )


def test_conv_general_dilated():
    x, w = jnp.ones((5, 9, 8, 4)), jnp.ones((3, 2, 2, 6))
    fun = lambda x, w: convolve(x, w, feature_group_count=2, preferred_element_type="float32")  # noqa: E731
    with reading("conv_general_dilated"):
        conv = convolution_of(equation("conv_general_dilated", fun, x, w))
        assert conv == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 1, 2, 3)) + (
            *((2, 1), ((1, 2), (0, 3)), (1, 2), (2, 1), 2),
            *(conv.precision, jnp.float32, True),
        )
        precision = conv.precision
        precision = precision if isinstance(precision, tuple) else (precision,)
        assert set(precision) == {lax.Precision.HIGH}
        split = lambda x, w: convolve(x, w, batch_group_count=5)  # noqa: E731
        wide = jnp.ones((3, 2, 4, 5))
        assert not convolution_of(equation("conv_general_dilated", split, x, wide)).is_plain


def test_conv_general_dilated_with_other_padding():
    x, w = jnp.arange(24.0).reshape(1, 2, 12), jnp.ones((3, 2, 2))
    fun = lambda x, w: lax.conv_general_dilated(x, w, (1,), ((0, 1),))  # noqa: E731
    with reading("conv_general_dilated"):
        eqn = equation("conv_general_dilated", fun, x, w)
        padded = jaxpr_of(lambda x, w: lax.conv_general_dilated(x, w, (1,), ((2, 4),)), x, w)
        wider = with_padding(eqn, eqn.invars[0], [(2, 4)]).replace(outvars=padded.eqns[0].outvars)
        expected = lax.conv_general_dilated(x, w, (1,), ((2, 4),))
        np.testing.assert_array_equal(bind(wider, [x, w])[0], expected)


def test_reduce_window_max():
    def fun(x):
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3), (2, 1), ((0, 0), (1, 2)), (1, 2), (1, 3)
        )

    with reading("reduce_window_max"):
        window = window_of(equation("reduce_window_max", fun, jnp.ones((4, 9))))
        assert window == Window((1, 3), (2, 1), ((0, 0), (1, 2)), (1, 2), (1, 3))


# --- entries moved ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 7])
def test_pad(value):
    by_lax = lambda x: lax.pad(x, jnp.float32(value), ((1, 2, 3), (0, 4, 0)))  # noqa: E731
    by_numpy = lambda x: jnp.pad(x, ((1, 2), (0, 4)), constant_values=value)  # noqa: E731
    for fun, gap in ((by_lax, 3), (by_numpy, 0)):
        with reading("pad"):
            jaxpr = jaxpr_of(fun, X)
            (pad,) = (p for p in map(pad_of, jaxpr.eqns) if p is not None)
            assert pad.image is jaxpr.invars[0] and pad.config == ((1, 2, gap), (0, 4, 0))
            assert is_literal(pad.value) and pad.value.val == value


def test_others_pad_nothing():
    turned = jax.jit(lambda x, value: lax.pad(value * x, jnp.float32(0), ((1, 1, 0), (0, 0, 0))))
    for jaxpr in (jaxpr_of(turned, X, 2.0), jaxpr_of(lambda x: jnp.pad(x, 1, mode="edge"), X)):
        assert [pad_of(eqn) for eqn in jaxpr.eqns] == [None] * len(jaxpr.eqns)


def test_transpose():
    with reading("transpose"):
        eqn = equation("transpose", lambda x: x.transpose(2, 0, 1), jnp.ones((2, 3, 4)))
        assert permutation_of(eqn) == (2, 0, 1)


def test_gather():
    with reading("gather"):
        eqn = equation(
            "gather", lambda t, i: t.at[i].get(mode="clip"), jnp.ones((5, 3)), jnp.array([[1, 2]])
        )
        lookup = lookup_of(eqn)
        assert lookup.slice_sizes == (1, 3) and lookup.mode == lax.GatherScatterMode.CLIP
        assert tuple(lookup.numbers.offset_dims) == (2,)
        assert tuple(lookup.numbers.collapsed_slice_dims) == (0,)
        assert tuple(lookup.numbers.start_index_map) == (0,)
        assert not lookup.numbers.operand_batching_dims


@pytest.mark.parametrize(
    ("primitive", "fun"),
    [
        ("add", lambda x: x + x),
        ("add_any", jax.grad(lambda x: jnp.sum(jnp.sin(x) * jnp.sin(x)))),
        ("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3, 1), (0, 1))),
        ("convert_element_type", lambda x: x.astype(jnp.bfloat16)),
        ("copy", lambda x: jnp.array(x, copy=True)),
        ("reshape", lambda x: x.reshape(3, 2)),
        ("rev", lambda x: lax.rev(x, (0,))),
        ("squeeze", lambda x: lax.squeeze(x[None], (0,))),
    ],
)
def test_names_by_which_others_are_known(primitive, fun):
    names = [eqn.primitive.name for eqn in jaxpr_of(fun, X).eqns]
    assert primitive in names, f"jax {jax.__version__} traces {names} and no {primitive!r}"


# --- one equation -------------------------------------------------------------------------------


def test_one_equation_evaluated():
    """Also where a variable goes in twice, or a number that is written in it."""
    for fun in (lambda x: x * x, lambda x: 2 * x, lambda x: lax.select(x > 1, x, x)):
        jaxpr = jaxpr_of(fun, X)
        env = {jaxpr.invars[0]: X}
        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, bind(eqn, values_of(eqn.invars, env)), strict=True))
        np.testing.assert_array_equal(values_of(jaxpr.outvars, env)[0], fun(X))


@pytest.mark.parametrize(
    ("primitive", "missing", "read", "fun", "args"),
    [
        ("scan", "length", scan_of, lambda x: lax.scan(lambda h, r: (h + r, r), X[0], x), [X]),
        ("scan", "jaxpr", scan_of, lambda x: lax.scan(lambda h, r: (h + r, r), X[0], x), [X]),
        ("dot_general", "dimension_numbers", product_of, jnp.matmul, [X, X.T]),
        ("transpose", "permutation", permutation_of, jnp.transpose, [X]),
        ("jit", "jaxpr", called, lambda x: jax.jit(jnp.sin)(x), [X]),
    ],
)
def test_a_parameter_that_is_not_there(primitive, missing, read, fun, args):
    eqn = equation(primitive, fun, *args)
    eqn = eqn.replace(params={k: v for k, v in eqn.params.items() if k != missing})
    with pytest.raises(NotImplementedError, match=f"{jax.__version__} writes '{primitive}' with"):
        read(eqn)
