import itertools

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from jax import lax

import jaxmeter as jm
from helpers import assert_close, equations, reference_gradients, skip_where_xla_lacks
from jaxmeter.jaxpr.convolutions import Case, form_of
from jaxmeter.jaxpr.equations import convolution_of
from jaxmeter.jaxpr.lowering import lowered

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def names(fun, *args):
    """Primitives of a traced function, of its inner programs too."""
    return [eqn.primitive.name for eqn in equations(fun, *args)]


def loss(fun):
    return lambda x, w: jnp.sum(jnp.sin(fun(x, w)))


def in_every_mode(fun):
    """A compiled function of x and w that uses `fun` in each of JAX's ways, by name."""

    def scanned(x, w):
        step = lambda w, _: (w + 0.01 * jax.grad(loss(fun), 1)(x, w), None)  # noqa: E731
        return lax.scan(step, w, None, 2)[0]

    one = lambda x, w: loss(fun)(x[None], w)  # noqa: E731
    grad = jax.grad(loss(fun), (0, 1))
    modes = {
        "forward": fun,
        "gradients": grad,
        "per example": jax.vmap(jax.grad(one, (0, 1)), (0, None)),
        "jvp": lambda x, w: jax.jvp(fun, (x, w), (w.mean() * x, x.mean() + w)),
        "forward over reverse": lambda x, w: jax.jvp(grad, (x, w), (x, w)),
        "in a scan": scanned,
    }
    return jax.jit(lambda x, w: {name: mode(x, w) for name, mode in modes.items()})


def assert_equal_in_every_mode(fun, x, w, rtol=1e-5, **kwargs):
    found, expected = in_every_mode(lowered(fun, **kwargs))(x, w), in_every_mode(fun)(x, w)
    for mode in expected:
        pairs = zip(jax.tree.leaves(found[mode]), jax.tree.leaves(expected[mode]), strict=True)
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype, mode
            # Sums that cancel are compared with what they are sums of.
            assert_close(ours, theirs, rtol=rtol, floor=0.1)


# --- convolutions -------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    """Shapes of both operands and the arguments of lax.conv_general_dilated."""
    rank = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    inner, outer = draw(st.sampled_from((1, 1, 3, 11))), draw(st.sampled_from((1, 2, 5)))
    size, kernel = each(1, 7), each(1, 4)
    dilated = draw(st.integers(0, 3)) == 0
    layout = {}
    spatial = "HWD"[:rank]
    for which, letters in (("lhs", "NC"), ("rhs", "OI"), ("out", "NC")):
        layout[which] = "".join(draw(st.permutations(letters + spatial)))
    records = draw(st.sampled_from((1, 3)))
    sizes = dict(zip(spatial, size, strict=True)) | {"N": records, "C": groups * inner}
    lhs = tuple(sizes[letter] for letter in layout["lhs"])
    sizes = dict(zip(spatial, kernel, strict=True)) | {"I": inner, "O": groups * outer}
    rhs = tuple(sizes[letter] for letter in layout["rhs"])
    padding = [(draw(st.integers(-1, 3)), draw(st.integers(-1, 3))) for _ in range(rank)]
    kwargs = {
        "window_strides": each(1, 3) if not dilated else each(1, 1 + draw(st.integers(0, 1))),
        "padding": draw(st.sampled_from(("SAME", "VALID", padding))) if not dilated else padding,
        "lhs_dilation": each(1, 3) if dilated else (1,) * rank,
        "rhs_dilation": each(1, 2),
        "dimension_numbers": tuple(layout.values()),
        "feature_group_count": groups,
    }
    batch = layout["lhs"].index("N")
    return lhs, rhs, batch, kwargs


@settings(max_examples=10, deadline=None)
@given(convolutions(), st.booleans(), st.integers(0, 99))
def test_any_convolution_keeps_its_value_and_derivatives(convolution, looped, seed):
    lhs, rhs, batch, kwargs = convolution

    def fun(x, w):
        return lax.conv_general_dilated(jnp.moveaxis(x, 0, batch), w, **kwargs)

    x, w = normal(*lhs, seed=seed), normal(*rhs, seed=seed + 1)
    x = jnp.moveaxis(x, batch, 0)
    try:
        size = jax.eval_shape(fun, x, w).size
    except ValueError:  # padding that is more negative than the image is large
        size = 0
    assume(size > 0)
    # Up to 700 products of numbers around 1 cancel in a sum, added up in another order.
    assert_equal_in_every_mode(fun, x, w, looped=looped, rtol=4e-5)


CASES = {  # name -> size, channels, features, kernel, stride, padding, groups: one a form
    "pointwise": (5, 6, 7, 1, 2, 0, 1, "patches"),
    "few rows": (9, 1, 4, 3, 1, 0, 1, "patches"),
    "image smaller than its kernel": (3, 8, 9, 5, 1, 2, 1, "patches"),
    "many offsets": (8, 3, 4, 7, 1, 3, 1, "canonical"),
    "tall": (9, 16, 8, 3, 1, 1, 1, "canonical"),
    "wide": (4, 16, 40, 3, 1, 1, 1, "canonical"),
    "large patches": (34, 32, 4, 3, 1, 1, 1, "canonical"),
    "very tall": (20, 16, 2, 3, 1, 1, 1, "canonical"),
    "depthwise": (6, 8, 8, 3, 2, 1, 8, "products"),
    "depthwise, two features a channel": (6, 4, 8, 3, 1, 1, 4, "products"),
    "grouped": (6, 8, 4, 3, 1, 1, 2, "mixed"),
    "grouped, image smaller than its kernel": (2, 8, 4, 3, 1, 1, 2, "patches"),
}


def square(size, channels, features, kernel, stride, padding, groups, form):
    def fun(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=NHWC,
            feature_group_count=groups,
        )

    x = normal(3, size, size, channels)
    return fun, x, normal(kernel, kernel, channels // groups, features, seed=1)


@pytest.mark.parametrize("case", CASES, ids=CASES.keys())
def test_every_form_is_exact(case):
    fun, x, w = square(*CASES[case])
    size, channels, features, kernel, stride, _, groups, form = CASES[case]
    shape = jax.eval_shape(fun, x[:1], w).shape
    facts = Case(
        records=1,
        size=(size, size),
        positions=shape[1:3],
        kernel=(kernel, kernel),
        strides=(stride, stride),
        lhs_dilation=(1, 1),
        channels=channels,
        features=features,
        groups=groups,
    )
    assert form_of(facts, looped=False) == form
    assert_equal_in_every_mode(fun, x[:1], w)
    assert_equal_in_every_mode(fun, x, w, looped=True)


def padded(widths, value=0.0, size=12, kernel=3, **kwargs):
    """jnp.pad ahead of a convolution."""

    def fun(x, w):
        x = jnp.pad(x, ((0, 0), *widths, (0, 0)), constant_values=value)
        return lax.conv_general_dilated(
            x, w, (2, 2), [(1, 0)] * 2, dimension_numbers=NHWC, **kwargs
        )

    return fun, normal(2, size, size, 8), normal(kernel, kernel, 8, 4, seed=1)


@pytest.mark.parametrize("widths", [((1, 2), (0, 3)), ((2, 2), (2, 2))])
def test_zeros_ahead_of_a_convolution_are_its_own_padding(widths):
    fun, x, w = padded(widths)
    assert "pad" in names(fun, x, w) and "pad" not in names(lowered(fun), x, w)
    assert_equal_in_every_mode(fun, x, w)
    primitive = lambda x, w: fun(lax.pad(x, 0.0, [(0, 0, 0), (1, 1, 0), (1, 0, 0), (0, 0, 0)]), w)  # noqa: E731
    assert "pad" not in names(lowered(primitive), x, w)
    assert_equal_in_every_mode(primitive, x, w)


@pytest.mark.parametrize(
    "case",
    [
        padded(((1, 1), (1, 1)), value=1.0),  # no zeros
        padded(((1, 1), (1, 1)), lhs_dilation=(2, 2)),  # zeros between the pixels come later
        padded(((2, 2), (2, 2)), size=2),  # the form would change
    ],
    ids=["ones", "dilated", "small"],
)
def test_other_padding_stays(case):
    fun, x, w = case
    assert "pad" in names(lowered(fun), x, w)
    assert_equal_in_every_mode(fun, x, w)


def test_a_padded_image_that_others_read_is_kept():
    def fun(x, w):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NHWC), x

    def total(x, w):
        out, image = fun(x, w)
        return jnp.sin(out).sum() + (image**2).sum()

    x, w = normal(2, 9, 9, 8), normal(3, 3, 8, 4)
    for ours, theirs in zip(lowered(fun)(x, w), fun(x, w), strict=True):
        assert_close(ours, theirs, rtol=1e-5)
    ours, theirs = (jax.grad(f, (0, 1))(x, w) for f in (lowered(total), total))
    jax.tree.map(lambda a, b: assert_close(a, b, rtol=1e-5), ours, theirs)


@pytest.mark.parametrize(
    "case", ["pointwise", "few rows", "image smaller than its kernel", "depthwise"]
)
def test_no_convolution_is_left_where_the_rule_says_so(case):
    fun, x, w = square(*CASES[case])
    grad = jax.grad(loss(lowered(fun)), (0, 1))
    assert "conv_general_dilated" in names(fun, x, w)
    assert "conv_general_dilated" not in names(grad, x, w)


def test_a_per_example_gradient_is_a_batched_matrix_product_while_the_forward_pass_is_native():
    fun, x, w = square(*CASES["wide"])
    grad = jax.grad(lambda w, x: loss(lowered(fun))(x[None], w))
    per_example = jax.vmap(grad, (None, 0))
    found = names(per_example, w, x)
    assert found.count("conv_general_dilated") == 1
    assert found.count("dot_general") == 1
    # and nothing is computed for the tangent of x, which is zero
    assert names(jax.grad(lambda x: loss(lowered(fun))(x[None], w)), x[0]).count("dot_general") == 0


def test_transposed_convolutions_multiply_no_zeros():
    x, w = normal(2, 4, 4, 3), normal(3, 3, 3, 5)
    fun = lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME")  # noqa: E731
    (dot,) = (eqn for eqn in equations(lowered(fun), x, w) if eqn.primitive.name == "dot_general")
    assert dot.outvars[0].aval.size == 2 * 4 * 4 * 9 * 5
    assert_equal_in_every_mode(fun, x, w)


@pytest.mark.parametrize(
    ("dtype", "preferred", "rtol"),
    [("bfloat16", None, 2e-2), ("bfloat16", "float32", 1e-5), ("float16", None, 2e-3)],
)
@pytest.mark.parametrize("case", ["pointwise", "image smaller than its kernel", "depthwise"])
def test_low_precision_and_preferred_types(case, dtype, preferred, rtol):
    skip_where_xla_lacks(dtype)
    _, x, w = square(*CASES[case])
    x, w = x.astype(dtype), w.astype(dtype)
    _, _, _, _, stride, padding, groups, _ = CASES[case]

    def fun(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=NHWC,
            feature_group_count=groups,
            preferred_element_type=preferred,
        )

    found, expected = lowered(fun)(x, w), fun(x, w)
    assert found.dtype == expected.dtype
    assert_close(found.astype("float32"), expected.astype("float32"), rtol=rtol)


def test_float64():
    with jax.enable_x64(True):
        for case in CASES.values():
            fun, x, w = square(*case)
            x, w = x.astype("float64"), w.astype("float64")
            assert_close(lowered(fun)(x, w), fun(x, w), rtol=1e-13)


def test_what_it_does_not_know_stays_native():
    x, w = normal(4, 5, 5, 2), normal(3, 3, 2, 4)
    for fun in (
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=NHWC, batch_group_count=2
        ),
        lambda x, w: lax.conv_general_dilated(
            x.astype(int), w.astype(int), (1, 1), "SAME", dimension_numbers=NHWC
        ),
        lambda x, w: lax.conv_general_dilated(x[:0], w, (1, 1), "SAME", dimension_numbers=NHWC),
    ):
        assert names(lowered(fun), x, w) == names(fun, x, w)
        assert_close(lowered(fun)(x, w), fun(x, w))


# --- programs -----------------------------------------------------------------------------------


def test_a_program_without_convolutions_is_unchanged():
    def fun(x, w):
        step = lambda c, row: (jnp.tanh(c + row), c)  # noqa: E731
        c, rows = lax.scan(step, x[0], x)
        return {"a": jax.nn.relu(x @ w), "b": (jax.jit(jnp.sin)(c), rows), "c": None}

    x, w = normal(4, 3), normal(3, 2)
    assert str(jax.make_jaxpr(lowered(fun))(x, w)) == str(jax.make_jaxpr(fun)(x, w))
    assert jax.tree.structure(lowered(fun)(x, w)) == jax.tree.structure(fun(x, w))


def test_other_platforms_keep_their_convolutions(monkeypatch):
    fun, x, w = square(*CASES["depthwise"])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert str(jax.make_jaxpr(lowered(fun))(x, w)) == str(jax.make_jaxpr(fun)(x, w))


def test_lowering_twice_changes_nothing_more():
    for case in CASES.values():
        fun, x, w = square(*case)
        once, twice = lowered(fun), lowered(lowered(fun))
        assert names(once, x[:1], w) == names(twice, x[:1], w)


@jax.custom_jvp
def with_a_jvp(x, w):
    return depthwise(x, w)


@with_a_jvp.defjvp
def _(primals, tangents):
    return jax.jvp(depthwise, primals, tangents)


@jax.custom_vjp
def with_a_vjp(x, w):
    return depthwise(x, w)


with_a_vjp.defvjp(lambda x, w: jax.vjp(depthwise, x, w), lambda back, g: back(g))


def depthwise(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=x.shape[-1]
    )


INSIDE = {
    "jit": jax.jit(depthwise),
    "remat": jax.checkpoint(depthwise),
    "custom_jvp": with_a_jvp,
    "custom_vjp": with_a_vjp,
    "scan": lambda x, w: lax.scan(lambda x, _: (depthwise(x, w), x.sum()), x, None, 2)[0],
    "while": lambda x, w: lax.fori_loop(0, x.shape[0], lambda i, x: depthwise(x, w), x),
    "a while of unknown length": lambda x, w: lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, depthwise(c[1], w)), (0, x)
    )[1],
    "cond": lambda x, w: lax.cond(x.sum() > 0, depthwise, lambda x, w: x * w.sum(), x, w),
    "switch": lambda x, w: lax.switch(1, [lambda x, w: x, depthwise], x, w),
    "vmap": lambda x, w: jax.vmap(depthwise, (None, 0))(x, jnp.stack([w, 2 * w])),
}


@pytest.mark.parametrize("where", INSIDE, ids=INSIDE.keys())
def test_convolutions_inside_other_programs(where):
    fun = INSIDE[where]
    x, w = normal(2, 5, 5, 3), normal(3, 3, 1, 3)
    assert "conv_general_dilated" in names(fun, x, w)
    assert "conv_general_dilated" not in names(lowered(fun), x, w)
    if where not in {"custom_jvp", "custom_vjp", "a while of unknown length"}:
        assert "conv_general_dilated" not in names(jax.grad(loss(lowered(fun)), 1), x, w)
    assert_close(lowered(fun)(x, w), fun(x, w))
    if where != "a while of unknown length":
        found, expected = (jax.grad(loss(f), (0, 1))(x, w) for f in (lowered(fun), fun))
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, rtol=2e-5)


def test_in_loops_every_convolution_has_the_layout_that_xla_is_fast_in():
    def channels_first(x, w):
        numbers = ("NCHW", "OIHW", "NCHW")
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    images = (normal(3, 9, 9, 16), normal(3, 3, 16, 8))
    first = (images[0].transpose(0, 3, 1, 2), images[1].transpose(3, 2, 0, 1))
    channels_last, _, _ = square(*CASES["tall"])
    for fun, (x, w) in ((channels_last, images), (channels_first, first)):

        def scanned(x, w, fun=fun):
            return lax.scan(lambda c, _: (c, fun(x, c)), w, None, 2)[1]

        assert_equal_in_every_mode(scanned, x, w)
        gradient = jax.grad(loss(lowered(scanned)), (0, 1))
        found = [eqn for eqn in equations(gradient, x, w) if "conv" in eqn.primitive.name]
        layouts = {convolution_of(eqn)[:3] for eqn in found}
        last = (0, 3, 1, 2)
        assert len(found) == 2 and layouts == {(last, (3, 2, 0, 1), last)}
        direct = [e for e in equations(lowered(fun), x, w) if "conv" in e.primitive.name]
        assert [convolution_of(e)[:3] for e in direct] == [
            convolution_of(e)[:3] for e in equations(fun, x, w)
        ]


def test_second_call_does_not_retrace():
    traces = 0

    def fun(x, w):
        nonlocal traces
        traces += 1
        return depthwise(x, w)

    run = jax.jit(lowered(fun))
    x, w = normal(2, 5, 5, 3), normal(3, 3, 1, 3)
    run(x, w)
    run(2 * x, w)
    assert traces == 1


# --- max-pooling --------------------------------------------------------------------------------


def pool(window, strides, padding, **kwargs):
    return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding, **kwargs)


@settings(max_examples=10, deadline=None)
@given(
    window=st.tuples(*[st.integers(1, 3)] * 3),
    strides=st.tuples(*[st.integers(1, 3)] * 3),
    padding=st.sampled_from(("SAME", "VALID", ((1, 0), (0, 1), (1, 1)))),
    dilation=st.sampled_from(((1, 1, 1), (1, 1, 1), (2, 1, 1), (1, 2, 2))),
    seed=st.integers(0, 99),
)
def test_max_pooling_gives_a_tied_maximum_s_gradient_to_the_same_element(
    window, strides, padding, dilation, seed
):
    x = jax.nn.relu(jnp.round(normal(6, 7, 5, seed=seed)))  # of 0, 1 and 2: ties everywhere
    if dilation != (1, 1, 1):
        strides = (1, 1, 1)  # what XLA's own gradient can do
    fun = pool(window, strides, padding, window_dilation=dilation)
    assert "reduce_window_max" not in names(lowered(fun), x)
    np.testing.assert_array_equal(lowered(fun)(x), fun(x))
    if dilation != (1, 1, 1):
        return
    weight = jnp.arange(1.0, 1 + fun(x).size).reshape(fun(x).shape)
    found, expected = (
        jax.grad(lambda x, f=f: (weight * f(x)).sum())(x) for f in (lowered(fun), fun)
    )  # noqa: B023
    assert_close(found, expected, rtol=1e-6)


def test_max_pooling_of_every_tie_in_a_window():
    """All 3^4 windows of 2 x 2 with entries 0, 1 and 2."""
    x = jnp.array(list(itertools.product((0.0, 1.0, 2.0), repeat=4))).reshape(-1, 2, 2, 1)
    fun = pool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for f in (fun, jax.vmap(fun, in_axes=1, out_axes=1)):
        found, expected = (jax.grad(lambda x, f=f: f(x).sum())(x) for f in (lowered(fun), fun))
        np.testing.assert_array_equal(found, expected)
    assert "select_and_scatter_add" not in names(jax.grad(lambda x: lowered(fun)(x).sum()), x)


def test_a_nan_is_a_maximum_and_stays_in_its_window():
    x = normal(1, 4, 4, 1).at[0, 0, 0, 0].set(jnp.nan).at[0, 3, 3, 0].set(jnp.nan)
    fun = pool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(lowered(fun)(x), fun(x))


def test_other_pooling_stays_as_it_is():
    x = normal(1, 200, 2)
    for fun in (
        pool((1, 100, 1), (1, 1, 1), "VALID"),
        lambda x: pool((1, 2, 1), (1, 1, 1), "VALID", base_dilation=(1, 2, 1))(x),
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 1), (1, 2, 1), "VALID"),
    ):
        assert names(lowered(fun), x) == names(fun, x)


# --- gradients ----------------------------------------------------------------------------------


class Separable(nn.Module):
    """A layer of every form."""

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv
        x = nn.relu(conv(8, (3, 3))(x))
        x = nn.relu(conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(conv(12, (1, 1))(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        x = nn.relu(conv(40, (3, 3), feature_group_count=2)(x))
        x = nn.relu(conv(6, (3, 3))(x))
        x = nn.ConvTranspose(4, (2, 2), (2, 2))(nn.max_pool(x, (2, 2), (2, 2)))
        x = nn.relu(conv(4, (5, 5))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_per_example_gradients_of_every_form():
    net = Separable()
    with jax.numpy_rank_promotion("allow"):
        variables = net.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
        target = jm.from_flax(net, variables, input_shape=(8, 8, 3))
        x, y = normal(5, 8, 8, 3), np.arange(5) % 3
        expected = reference_gradients(target, x, y)
        found = jm.per_example_gradients(target, x, y)
        norms = jm.gradient_norms(target, x, y)
    for name in expected:
        assert_close(found[name], expected[name])
        assert_close(norms[name], np.linalg.norm(expected[name].reshape(5, -1), axis=1))


def test_a_record_that_gives_nan_stays_in_its_own_row():
    net = Separable()
    with jax.numpy_rank_promotion("allow"):
        variables = net.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
        target = jm.from_flax(net, variables, input_shape=(8, 8, 3))
        x = normal(3, 8, 8, 3).at[1].set(jnp.nan)
        found = jm.per_example_gradients(target, x, np.zeros(3, int))
    for gradient in found.values():
        assert np.isfinite(gradient[0]).all() and np.isfinite(gradient[2]).all()
    assert np.isnan(found["Conv_0/kernel"][1]).any()
