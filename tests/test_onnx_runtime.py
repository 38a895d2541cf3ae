"""Forms of operators that the official tests lack, against onnxruntime."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import helper

from jaxmeter.intake.onnx.graph import parse, run

runtime = pytest.importorskip("onnxruntime")

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def model(
    op: str, inputs: Sequence[Any], n_outputs: int, opset: int, attributes: dict
) -> onnx.ModelProto:
    """A graph of one operator; integer inputs are constants."""
    names = ["" if v is None else f"x{i}" for i, v in enumerate(inputs)]
    outputs = [f"y{i}" for i in range(n_outputs)]
    given = [(k, np.asarray(v)) for k, v in zip(names, inputs, strict=True) if v is not None]
    node = helper.make_node(op, names, outputs, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(k, 1, v.shape) for k, v in given if v.dtype == np.float32],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(v, k) for k, v in given if v.dtype != np.float32],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def recurrent() -> Iterator[tuple]:
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}
    t, n, d, h = 5, 3, 2, 4
    for (op, g), (direction, k) in itertools.product(gates.items(), directions.items()):
        weights = [normal(k, g * h, d), normal(k, g * h, h), normal(k, 2 * g * h)]
        state = [normal(k, n, h)] * (2 if op == "LSTM" else 1)
        lengths = np.array([5, 2, 3], np.int32)
        base = {"direction": direction, "hidden_size": h}
        yield op, [normal(t, n, d), *weights], base, 14
        yield op, [normal(t, n, d), *weights, lengths, *state], base, 7
        if op == "GRU":
            more = {
                **base,
                "linear_before_reset": 1,
                "activations": ["HardSigmoid", "Softsign"] * k,
            }
            yield op, [normal(t, n, d), *weights, lengths, *state], more, 14
        if op == "LSTM":
            peepholes = normal(k, 3 * h)
            yield op, [normal(t, n, d), *weights, None, *state, peepholes], base, 14
            yield op, [normal(t, n, d), *weights], {**base, "input_forget": 1}, 14
            names = ["HardSigmoid", "Elu", "ScaledTanh"] * k
            numbers = {"activation_alpha": [0.3, 0.9, 0.8] * k, "activation_beta": [0.4, 0.7] * k}
            yield op, [normal(t, n, d), *weights], {**base, "activations": names, **numbers}, 14
        yield op, [normal(t, n, d), *weights], {**base, "clip": 0.3}, 14


def convolutions() -> Iterator[tuple]:
    for pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        for stride in (1, 2, 3):
            yield (
                "Conv",
                [normal(2, 3, 8), normal(4, 3, 4)],
                {"auto_pad": pad, "strides": [stride]},
                11,
            )
    grouped = {"group": 2, "dilations": [2, 1], "pads": [1, 2, 0, 1], "strides": [2, 1]}
    yield "Conv", [normal(2, 4, 9, 8), normal(6, 2, 3, 2), normal(6)], grouped, 11
    yield (
        "Conv",
        [normal(1, 2, 5, 6, 7), normal(3, 2, 2, 3, 2), normal(3)],
        {"strides": [1, 2, 1]},
        11,
    )
    yield "Conv", [normal(2, 4, 7), normal(8, 1, 3)], {"group": 4}, 11
    x, w = normal(2, 4, 5, 4), normal(4, 3, 3, 2)
    for extra in (
        {},
        {"group": 2},
        {"strides": [2, 3], "output_padding": [1, 2]},
        {"strides": [2, 2], "pads": [1, 0, 1, 1], "dilations": [2, 1]},
        {"strides": [2, 2], "output_shape": [10, 8]},
        {"strides": [2, 2], "output_shape": [10, 8], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "output_shape": [12, 8], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
    ):
        yield "ConvTranspose", [x, w, normal(3 * extra.get("group", 1))], extra, 11
    yield "ConvTranspose", [normal(2, 3, 5), normal(3, 2, 4)], {"strides": [3]}, 11
    yield (
        "ConvTranspose",
        [normal(1, 2, 3, 4, 5), normal(2, 2, 2, 2, 2)],
        {"strides": [2, 1, 2]},
        11,
    )


def pools() -> Iterator[tuple]:
    x = normal(2, 3, 9, 8)
    for extra in (
        {"kernel_shape": [3, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 3], "ceil_mode": 1},
        {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [3, 2], "strides": [2, 1], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [2, 2], "strides": [3, 2], "auto_pad": "VALID"},
    ):
        yield "MaxPool", [x], extra, 12, 2
        yield "MaxPool", [x], extra, 12
        yield "AveragePool", [x], extra, 11
        yield "AveragePool", [x], {**extra, "count_include_pad": 1}, 11
        if "ceil_mode" not in extra:
            yield "LpPool", [x], {**extra, "p": 3}, 11
    dilated = {"kernel_shape": [2, 3], "dilations": [2, 2], "strides": [1, 2]}
    yield "MaxPool", [x], dilated, 12
    yield "MaxPool", [x], {**dilated, "storage_order": 1}, 12, 2
    yield "MaxPool", [normal(1, 2, 4, 5, 6)], {"kernel_shape": [2, 2, 2], "storage_order": 0}, 12, 2
    yield "MaxPool", [normal(1, 2, 7)], {"kernel_shape": [3]}, 1
    yield "AveragePool", [normal(1, 2, 7)], {"kernel_shape": [3], "pads": [1, 1]}, 7
    yield "GlobalLpPool", [x], {"p": 1}, 2
    yield "GlobalLpPool", [x], {}, 2
    yield "GlobalAveragePool", [x], {}, 1
    yield "GlobalMaxPool", [x], {}, 1


def norms() -> Iterator[tuple]:
    x, c = normal(2, 4, 3, 5), [normal(4) for _ in range(3)]
    moments = [*c, np.abs(normal(4)) + 0.1]
    yield "BatchNormalization", [x, *moments], {"epsilon": 1e-3}, 7
    yield "BatchNormalization", [x, *moments], {}, 9
    yield "BatchNormalization", [x, *moments], {}, 15
    yield "BatchNormalization", [normal(3, 4), *moments], {}, 15
    yield "InstanceNormalization", [x, *c[:2]], {"epsilon": 1e-2}, 6
    yield "LRN", [normal(2, 7, 3, 1)], {"size": 5, "alpha": 0.3, "bias": 2.0}, 13
    yield "LRN", [normal(2, 7, 3, 2)], {"size": 3, "alpha": 0.3}, 1
    yield "LpNormalization", [x], {"p": 1, "axis": 2}, 1
    yield "MeanVarianceNormalization", [x], {}, 9
    yield "Dropout", [x], {"ratio": 0.3}, 7
    yield "Dropout", [x], {}, 13, 2


@pytest.mark.parametrize(
    "op, inputs, attributes, opset",
    [
        ("LpPool", [np.zeros((1, 1, 4), np.float32)], {"kernel_shape": [2], "p": 3}, 18),
        ("GlobalLpPool", [np.zeros((1, 1, 4), np.float32)], {}, 2),
        ("LpNormalization", [np.zeros((1, 4), np.float32)], {}, 1),
        ("MeanVarianceNormalization", [np.ones((2, 2, 2, 2), np.float32)], {}, 13),
        ("LayerNormalization", [np.ones((2, 4), np.float32), normal(4)], {}, 17),
        # A query that may see nothing.
        ("Attention", [normal(1, 1, 2, 3)] * 3 + [np.array([[True, False], [False] * 2])], {}, 23),
        ("GridSample", [normal(1, 1, 1, 4), np.full((1, 2, 2, 2), 5, np.float32)], {}, 16),
    ],
)
def test_gradients_are_finite_where_a_root_or_a_softmax_is_not(op, inputs, attributes, opset):
    graph = parse(model(op, inputs, 1, opset, attributes))

    def total(x):
        feeds = {k: inputs[int(k[1:])] for k in graph.inputs}
        return jnp.sum(run(graph, {**feeds, "x0": x}, graph.outputs)[0])

    slopes = jax.grad(total)(jnp.asarray(inputs[0]))
    assert np.isfinite(slopes).all()


def images() -> Iterator[tuple]:
    x = normal(1, 2, 5, 4)
    scales = np.array([1, 1, 2, 3], np.float32)
    yield "Upsample", [x], {"scales": [1.0, 1.0, 2.0, 3.0]}, 7
    yield "Upsample", [x], {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}, 7
    modes = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    for sizes in ([1, 2, 8, 3], [1, 2, 1, 8]):
        end = [None, None, np.array(sizes)]
        for kind in modes:
            form = {"coordinate_transformation_mode": kind}
            yield "Resize", [x, *end], {**form, "mode": "linear"}, 13
            yield "Resize", [x, *end], {**form, "mode": "cubic"}, 13
            yield "Resize", [x, *end], {**form, "mode": "cubic", "exclude_outside": 1}, 13
            for nearest in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor"):
                yield "Resize", [x, *end], {**form, "mode": "nearest", "nearest_mode": nearest}, 13
        for mode in ("linear", "cubic"):
            yield "Resize", [x, *end], {"mode": mode, "antialias": 1}, 18
    yield "Resize", [x, scales], {"mode": "linear"}, 10
    yield "Resize", [x, scales], {}, 10
    grid = RANDOM.uniform(-1.4, 1.4, (1, 6, 3, 2)).astype(np.float32)
    for mode, padding, corners in itertools.product(
        ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (0, 1)
    ):
        form = {"mode": mode, "padding_mode": padding, "align_corners": corners}
        yield "GridSample", [x, grid], form, 16
    rois = np.array([[0.3, 0.2, 3.1, 3.9], [1, 1, 2.5, 4]], np.float32)
    for extra in ({"sampling_ratio": 2}, {"sampling_ratio": 2, "mode": "max"}):
        size = {"output_height": 3, "output_width": 2, "spatial_scale": 0.9}
        yield "RoiAlign", [normal(2, 2, 6, 5), rois, np.array([1, 0])], {**extra, **size}, 16
        yield "RoiAlign", [normal(2, 2, 6, 5), rois, np.array([1, 0])], {**extra, **size}, 10


CASES = [*recurrent(), *convolutions(), *pools(), *norms(), *images()]
DEFAULT_OUTPUTS = {"LSTM": 3, "GRU": 2, "RNN": 2}


def case_name(case: tuple) -> str:
    op, _, attributes, opset = case[:4]
    return f"{op}{opset}-" + ",".join(f"{k}={v}" for k, v in attributes.items()).replace(" ", "")


@pytest.mark.parametrize("case", CASES, ids=map(case_name, CASES))
def test_as_onnxruntime(case: tuple):
    op, inputs, attributes, opset, *outputs = case
    n_outputs = outputs[0] if outputs else DEFAULT_OUTPUTS.get(op, 1)
    # Scales are numbers of the graph, although they are floating point.
    proto = model(op, inputs, n_outputs, opset, attributes)
    feeds = {e.name: inputs[int(e.name[1:])] for e in proto.graph.input}
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(proto.SerializeToString(), options)
    expected = session.run(None, feeds)
    graph = parse(proto)
    static = {"x1": feeds["x1"]} if op == "Resize" and opset == 10 else {}
    traced = {k: v for k, v in feeds.items() if k not in static}

    def outputs_of(traced):
        return run(graph, {**traced, **static}, graph.outputs)

    got = jax.jit(outputs_of)(traced)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == jax.dtypes.canonicalize_dtype(other.dtype)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
    if op in DEFAULT_OUTPUTS and opset < 14:  # those with lengths; reverse mode under vmap
        each = jax.vmap(jax.grad(lambda x: jnp.sum(outputs_of({**traced, "x0": x})[0] ** 2)))
        assert np.isfinite(each(jnp.stack([traced["x0"]] * 2))).all()
