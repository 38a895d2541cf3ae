"""Loops and branches, by closed forms: what the official node tests lack."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx.parser
import pytest

from helpers import assert_close, equations
from jaxmeter.intake.onnx.graph import UnsupportedOperator, parse, run
from jaxmeter.jaxpr.equations import scan_of


def graph_of(text: str, opset: int = 18):
    head = f'<ir_version: 8, opset_import: ["": {opset}]>\n'
    return parse(onnx.parser.parse_model(head + text))


def outputs(graph, **feeds):
    """All outputs; feeds that are NumPy arrays are known before the data."""
    return run(graph, feeds, graph.outputs)


def floats(*values: float):
    return jnp.asarray(values, jnp.float32)


# As tf2onnx writes a recurrent layer: no trip count worth the name, a condition computed from two
# counters, the weight carried round unchanged, the sequence read by Gather, the outputs stacked.
RECURRENT = """
agraph (float[t, n, 3] x, float[3, 3] w, float[n, 3] h) => (float[t, n, 3] all, float[n, 3] last) {
    huge = Constant<value: tensor = int64 {9223372036854775807}>()
    zero = Constant<value: tensor = int64 {0}>()
    shape = Shape(x)
    steps = Gather(shape, zero)
    yes = Constant<value: tensor = bool {1}>()
    time, weight, last, all = Loop(huge, yes, zero, w, h) <body = step (
        int64 i, bool go, int64 at, float[3, 3] u, float[n, 3] s
    ) => (bool going, int64 next, float[3, 3] same, float[n, 3] after, float[n, 3] out) {
        one = Constant<value: tensor = int64 {1}>()
        now = Gather(x, at)
        product = MatMul(s, u)
        sum = Add(now, product)
        after = Tanh(sum)
        out = Identity(after)
        next = Add(at, one)
        first = Less(next, steps)
        second = Less(i, steps)
        going = And(first, second)
        same = Identity(u)
    }>
}
"""


def recurrent(x, w, h):
    states = []
    for row in x:
        h = jnp.tanh(row + h @ w)
        states.append(h)
    return jnp.stack(states), h


def recurrent_data(t: int = 6, n: int = 2):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=s), jnp.float32) for s in ((t, n, 3), (3, 3), (n, 3))]


def test_recurrent_layer_as_tf2onnx_writes_it():
    graph = graph_of(RECURRENT)
    x, w, h = recurrent_data()
    for got, expected in zip(outputs(graph, x=x, w=w, h=h), recurrent(x, w, h), strict=True):
        assert_close(got, expected)


def test_its_gradients_are_those_of_the_written_out_loop():
    graph = graph_of(RECURRENT)
    x, w, h = recurrent_data()

    def per_example(f):
        def loss(x, w, h):
            everything, last = f(x[:, None], w, h[None])
            return jnp.sum(everything**2) + jnp.sum(jnp.sin(last))

        return jax.vmap(jax.grad(loss, (0, 1, 2)), (1, None, 0))(x, w, h)

    mine = per_example(lambda x, w, h: outputs(graph, x=x, w=w, h=h))
    for one, other in zip(mine, per_example(recurrent), strict=True):
        assert_close(one, other)


def test_its_size_does_not_grow_with_the_number_of_steps():
    graph = graph_of(RECURRENT)

    def traced(t):
        named = lambda *v: outputs(graph, **dict(zip("xwh", v, strict=True)))  # noqa: E731
        return equations(named, *recurrent_data(t))

    short, long = traced(6), traced(600)
    assert len(short) == len(long)
    names = [eqn.primitive.name for eqn in long]
    assert names.count("scan") == 1
    assert "gather" not in names  # the sequence is what the scan goes over
    (scan,) = [eqn for eqn in long if eqn.primitive.name == "scan"]
    assert scan_of(scan).carry == 1  # neither the counter nor the weight goes round


COUNTED = """
agraph (int64 m, bool c, float[2] x) => (float[2] y, float[k, 2] all) {
    y, all = Loop(m, c, x) <body = b (int64 i, bool go, float[2] v)
        => (bool going, float[2] w, float[2] s) {
        two = Constant<value: tensor = float {2.0}>()
        w = Mul(v, two)
        s = Identity(v)
        going = Identity(go)
    }>
}
"""


@pytest.mark.parametrize("count", [0, 1, 3, 2000])
def test_trip_count(count: int):
    graph = graph_of(COUNTED)
    x = floats(1, -1)
    y, rows = outputs(graph, m=np.int64(count), c=np.True_, x=x)
    assert rows.shape == (count, 2)
    if count < 100:
        np.testing.assert_allclose(y, x * 2.0**count)
        np.testing.assert_allclose(rows, [x * 2.0**i for i in range(count)] or np.zeros((0, 2)))


def test_no_step_where_the_condition_is_false():
    y, rows = outputs(graph_of(COUNTED), m=np.int64(5), c=np.False_, x=floats(1, 2))
    assert y.tolist() == [1, 2] and rows.shape == (0, 2)


def test_what_is_known_stays_known():
    y, rows = outputs(graph_of(COUNTED), m=np.int64(3), c=np.True_, x=np.ones(2, np.float32))
    assert isinstance(y, np.ndarray) and isinstance(rows, np.ndarray)
    assert y.tolist() == [8, 8]


# Doubles until the largest is at least 10, at most six times.
EARLY = """
agraph (int64 m, float[2] x) => (float[2] y) {
    yes = Constant<value: tensor = bool {1}>()
    y = Loop(m, yes, x) <body = b (int64 i, bool go, float[2] v) => (bool going, float[2] w) {
        two = Constant<value: tensor = float {2.0}>()
        ten = Constant<value: tensor = float {10.0}>()
        w = Mul(v, two)
        top = ReduceMax<keepdims = 0>(w)
        going = Less(top, ten)
    }>
}
"""


def test_a_loop_that_the_data_leave_early():
    graph = graph_of(EARLY)
    x = jnp.asarray([[3.0, 1.0], [0.5, 0.25], [20.0, 1.0], [0.01, 0.0]])
    factors = np.array([4.0, 32.0, 2.0, 64.0])

    def f(x):
        return outputs(graph, m=np.int64(6), x=x)[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(f))(x), x * factors[:, None])
    slopes = jax.vmap(jax.jacrev(f))(x)
    np.testing.assert_allclose(slopes, factors[:, None, None] * np.eye(2)[None])


def test_early_exit_has_no_nan_gradient_from_steps_not_taken():
    """The square root of what is left: one step more would be that of a negative number."""
    graph = graph_of(
        """
        agraph (float x) => (float y) {
            yes = Constant<value: tensor = bool {1}>()
            m = Constant<value: tensor = int64 {5}>()
            y = Loop(m, yes, x) <body = b (int64 i, bool go, float v) => (bool going, float w) {
                one = Constant<value: tensor = float {1.0}>()
                root = Sqrt(v)
                w = Sub(root, one)
                zero = Constant<value: tensor = float {0.0}>()
                going = Greater(w, zero)
            }>
        }
        """
    )
    f = lambda x: outputs(graph, x=x)[0]  # noqa: E731
    value, slope = jax.value_and_grad(f)(jnp.float32(2.25))
    assert_close(value, np.sqrt(0.5) - 1)
    assert_close(slope, 0.5 / 1.5 * 0.5 / np.sqrt(0.5))


def test_a_trip_count_from_the_data_needs_a_bound():
    with pytest.raises(UnsupportedOperator, match="trip count depends on the data"):
        jax.eval_shape(
            lambda m: outputs(graph_of(COUNTED), m=m, c=np.True_, x=floats(1, 2))[0],
            jnp.int32(3),
        )
    with pytest.raises(UnsupportedOperator, match="condition depends on the data.*Export it"):
        outputs(graph_of(EARLY), m=np.int64(2**62), x=floats(1, 2))


def test_rows_stacked_by_an_early_exit_are_refused():
    with pytest.raises(UnsupportedOperator, match="length of what it stacks"):
        jax.jit(lambda c: outputs(graph_of(COUNTED), m=np.int64(3), c=c, x=floats(1, 2)))(True)


def test_a_condition_that_never_becomes_false():
    text = EARLY.replace("going = Less(top, ten)", "going = Identity(go)")
    with pytest.raises(UnsupportedOperator, match="more than 1000000 steps"):
        outputs(graph_of(text), m=np.int64(2**62), x=floats(1, 2))


# The inner loop adds i to what it has, j times; its trip count is the outer one's number.
NESTED = """
agraph (int64 m, float x) => (float y) {
    yes = Constant<value: tensor = bool {1}>()
    y = Loop(m, yes, x) <body = outer (int64 i, bool go, float v) => (bool on, float w) {
        w = Loop(COUNT, go, v) <body = inner (int64 j, bool going, float a)
            => (bool more, float b) {
            add = Cast<to = 1>(i)
            both = Mul(a, x)
            b = Add(both, add)
            more = Identity(going)
        }>
        on = Identity(go)
    }>
}
"""


@pytest.mark.parametrize("count", ["m", "i"])
def test_a_loop_in_a_loop(count: str):
    graph = graph_of(NESTED.replace("COUNT", count))

    def expected(x):
        v = x
        for i in range(4):
            for _ in range(4 if count == "m" else i):
                v = v * x + i
        return v

    def f(x):
        return outputs(graph, m=np.int64(4), x=x)[0]

    x = jnp.float32(0.7)
    assert_close(jax.jit(f)(x), expected(x))
    assert_close(jax.grad(f)(x), jax.grad(expected)(x))


def test_a_shape_that_grows_is_written_out():
    graph = graph_of(
        """
        agraph (float[1] x) => (float[n] y) {
            yes = Constant<value: tensor = bool {1}>()
            m = Constant<value: tensor = int64 {3}>()
            y = Loop(m, yes, x) <body = b (int64 i, bool go, float[k] v) => (bool on, float[l] w) {
                w = Concat<axis = 0>(v, v)
                on = Identity(go)
            }>
        }
        """
    )
    assert outputs(graph, x=floats(2))[0].tolist() == [2.0] * 8


def test_a_sequence_grows_until_it_is_long_enough():
    graph = graph_of(
        """
        agraph (float[2] x) => (float[n] y) {
            yes = Constant<value: tensor = bool {1}>()
            none = SequenceEmpty()
            all = Loop( , yes, none) <body = b (int64 i, bool go, seq(float[2]) s)
                => (bool on, seq(float[2]) t) {
                number = Cast<to = 1>(i)
                row = Mul(x, number)
                t = SequenceInsert(s, row)
                length = SequenceLength(t)
                four = Constant<value: tensor = int64 {4}>()
                on = Less(length, four)
            }>
            y = ConcatFromSequence<axis = 0>(all)
        }
        """
    )
    assert outputs(graph, x=floats(1, 2))[0].tolist() == [0, 0, 1, 2, 2, 4, 3, 6]


BRANCHES = """
agraph (bool c, float[2] x) => (float[k] y) {
    y = If(c) <
        then_branch = yes () => (float[2] a) { a = Sin(x) },
        else_branch = no () => (float[k] b) { ELSE }
    >
}
"""


def test_a_branch_that_the_data_choose():
    graph = graph_of(BRANCHES.replace("ELSE", "b = Cos(x)"))
    x = floats(0.3, 2)

    def f(x):
        return outputs(graph, c=x[0] > 1, x=x)[0]

    assert_close(f(x), np.cos(x))
    both = jnp.stack([x, x + 1])
    assert_close(jax.vmap(f)(both), [np.cos(x), np.sin(x + 1)])
    slopes = jax.vmap(jax.grad(lambda x: jnp.sum(f(x))))(both)
    assert_close(slopes, [-np.sin(x), np.cos(x + 1)])


def test_branches_of_different_shapes():
    graph = graph_of(BRANCHES.replace("ELSE", "b = Concat<axis = 0>(x, x)"))
    assert outputs(graph, c=np.False_, x=floats(1, 2))[0].shape == (4,)
    with pytest.raises(UnsupportedOperator, match=r"float32\[2\].*float32\[4\]"):
        jax.eval_shape(lambda c: outputs(graph, c=c, x=floats(1, 2)), jnp.asarray(True))


def test_scan_backwards_over_another_axis():
    graph = graph_of(
        """
        agraph (float[2, t] x, float[2] h) => (float[2] last, float[2, t] all) {
            last, all = Scan<num_scan_inputs = 1, scan_input_axes = [1],
                scan_input_directions = [1], scan_output_axes = [1],
                scan_output_directions = [1],
                body = b (float[2] s, float[2] v) => (float[2] after, float[2] out) {
                    twice = Add(s, s)
                    after = Add(twice, v)
                    out = Identity(after)
                }>(h, x)
        }
        """
    )
    x = jnp.arange(6.0).reshape(2, 3)
    last, rows = outputs(graph, x=x, h=floats(1, 0))
    expected, state = [], np.array([1.0, 0.0])
    for column in np.asarray(x).T[::-1]:
        state = 2 * state + column
        expected.insert(0, state)
    np.testing.assert_allclose(last, state)
    np.testing.assert_allclose(rows, np.transpose(expected))
    slope = jax.grad(lambda x: jnp.sum(outputs(graph, x=x, h=floats(1, 0))[0]))(x)
    np.testing.assert_allclose(slope, [[1, 2, 4]] * 2)
