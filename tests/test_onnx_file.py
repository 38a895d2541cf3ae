"""`.onnx` files: what of them are variables, what those are called, and what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeter as jm
from jaxmeter.intake import load_target

pytest.importorskip("onnx")
import onnx  # noqa: E402
import onnx.reference  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def saved(
    path, nodes, initialisers, shape, output, *, batch="n", dtype=TensorProto.FLOAT, opset=17
):
    """Writes a graph with the input "x" [batch, *shape] to `path`."""
    outputs = output if isinstance(output, list) else [output]
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "net",
        [helper.make_tensor_value_info("x", dtype, [batch, *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in initialisers.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="a test", ir_version=8
    )
    onnx.save(model, path)
    return path


def torch_like(path, batch="n"):
    """A convolutional net as PyTorch exports one."""
    weights = {
        "conv1.weight": normal(4, 3, 3, 3),
        "bn1.weight": normal(4),
        "bn1.bias": normal(4),
        "bn1.running_mean": normal(4),
        "bn1.running_var": np.abs(normal(4)) + 0.5,
        "layer1.0.conv.weight": normal(4, 2, 3, 3),
        "layer1.0.conv.bias": normal(4),
        "fc.weight": normal(5, 4),
        "fc.bias": normal(5),
        "six": np.float32(6.0),
        "zero": np.float32(0.0),
        "shape": np.array([0, -1] if batch == "n" else [batch, -1]),
    }
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        ("Conv", ["x", "conv1.weight"], ["/conv1/Conv_output_0"], pads | {"name": "/conv1/Conv"}),
        (
            "BatchNormalization",
            [
                "/conv1/Conv_output_0",
                "bn1.weight",
                "bn1.bias",
                "bn1.running_mean",
                "bn1.running_var",
            ],
            ["b"],
            {"name": "/bn1/BatchNormalization"},
        ),
        ("Clip", ["b", "zero", "six"], ["c"], {"name": "/act/Clip"}),
        (
            "Conv",
            ["c", "layer1.0.conv.weight", "layer1.0.conv.bias"],
            ["d"],
            pads | {"group": 2, "name": "/layer1/layer1.0/conv/Conv"},
        ),
        ("Relu", ["d"], ["e"], {"name": "/layer1/layer1.0/relu/Relu"}),
        ("Add", ["c", "e"], ["f"], {"name": "/Add"}),
        ("GlobalAveragePool", ["f"], ["g"], {"name": "/pool/GlobalAveragePool"}),
        ("Reshape", ["g", "shape"], ["h"], {"name": "/Reshape"}),
        ("Gemm", ["h", "fc.weight", "fc.bias"], ["logits"], {"transB": 1, "name": "/fc/Gemm"}),
    ]
    return saved(path, nodes, weights, (3, 6, 6), "logits", batch=batch), weights


def reference(path, x):
    session = onnx.reference.ReferenceEvaluator(onnx.load(path))
    return session.run(None, {"x": x})


def test_names_of_pytorch(tmp_path):
    path, weights = torch_like(tmp_path / "m.onnx")
    target = load_target(path)
    assert target.spec.source.route == "onnx"
    assert target.spec.source.difference < 1e-5
    assert target.spec.variables == (
        *("conv1/weight", "bn1/weight", "bn1/bias"),
        *("layer1.0.conv/weight", "layer1.0.conv/bias", "fc/weight", "fc/bias"),
    )
    assert tuple(target.state) == ("bn1/running_mean", "bn1/running_var")
    assert target.spec.layers == (
        *("conv1", "bn1", "act", "layer1.0.conv", "layer1.0.relu", "Add", "pool", "fc"),
    )
    np.testing.assert_array_equal(target.params["fc/weight"], weights["fc.weight"])
    x = normal(4, 3, 6, 6)
    np.testing.assert_allclose(target(x).logits, reference(path, x)[0], atol=1e-5)
    assert target(x).layers["bn1"].shape == (4, 4, 6, 6)


def test_gradients_are_by_the_initialisers(tmp_path):
    path, weights = torch_like(tmp_path / "m.onnx")
    target = load_target(path)
    x, y = normal(3, 3, 6, 6), np.array([0, 4, 2])
    ours = jm.per_example_gradients(target, x, y)
    p = np.asarray(jax.nn.softmax(target(x).logits) - jax.nn.one_hot(y, 5))
    features = np.asarray(target(x).layers["pool"])  # the Reshape after it is counted in
    np.testing.assert_allclose(ours["fc/bias"], p, atol=1e-5)
    expected = p[:, :, None] * features[:, None, :]
    np.testing.assert_allclose(ours["fc/weight"], expected, atol=1e-5)
    step = 1e-2
    for name in ("conv1/weight", "layer1.0.conv/bias"):
        direction = normal(*target.params[name].shape)

        def loss(a, name=name, direction=direction):
            params = {**target.params, name: target.params[name] + a * direction}
            logits = target.apply(params, target.state, jnp.asarray(x)).logits
            return -np.asarray(jax.nn.log_softmax(logits))[np.arange(3), y]

        slope = (loss(step) - loss(-step)) / (2 * step)
        found = (np.asarray(ours[name]) * direction).reshape(3, -1).sum(1)
        np.testing.assert_allclose(found, slope, rtol=2e-2, atol=2e-2)


def test_a_graph_for_one_record_is_mapped(tmp_path):
    """Exported with a batch of one that is written into its Reshape."""
    path, _ = torch_like(tmp_path / "one.onnx", batch=1)
    target = load_target(path)
    x = normal(3, 3, 6, 6)
    each = np.concatenate([reference(path, row[None])[0] for row in x])
    np.testing.assert_allclose(target(x).logits, each, atol=1e-5)
    assert target.spec.input_shape == (3, 6, 6)
    assert target(x).layers["conv1"].shape == (3, 4, 6, 6)
    gradients = jm.per_example_gradients(target, x, np.zeros(3, int))
    assert gradients["fc/weight"].shape == (3, 5, 4)


def test_a_batch_that_is_only_written_down_is_opened(tmp_path):
    weights = {"w": normal(4, 3)}
    path = saved(tmp_path / "m.onnx", [("MatMul", ["x", "w"], ["y"])], weights, (4,), "y", batch=7)
    x = normal(3, 4)
    np.testing.assert_allclose(load_target(path)(x).logits, x @ weights["w"], atol=1e-6)


def test_anonymous_initialisers_are_named_by_their_readers(tmp_path):
    nodes = [
        ("Gemm", ["x", "1", "2"], ["3"], {"transB": 1}),
        ("Tanh", ["3"], ["4"]),
        ("Gemm", ["4", "onnx::Gemm_5", "6"], ["7"], {"transB": 1}),
        ("Softmax", ["7"], ["8"]),
    ]
    weights = {"1": normal(4, 3), "2": normal(4), "onnx::Gemm_5": normal(2, 4), "6": normal(2)}
    target = load_target(saved(tmp_path / "m.onnx", nodes, weights, (3,), "8"))
    assert target.spec.variables == (
        *("Gemm_1/weight", "Gemm_1/bias", "Gemm_2/weight", "Gemm_2/bias"),
    )
    assert target.spec.layers == ("Gemm_1", "Tanh_1", "Gemm_2", "Softmax_1")
    assert target.spec.source.logits == "final softmax taken off"


def test_settings_and_integers_are_no_params(tmp_path):
    weights = {
        "w": normal(4, 3),
        "two": np.float32(2.0),
        "exponent": np.array([2.0], np.float32),
        "index": np.array([0, 2, 1]),
        "steps": np.arange(3),
    }
    nodes = [
        ("MatMul", ["x", "w"], ["a"]),
        ("Pow", ["a", "exponent"], ["b"]),
        ("Mul", ["b", "two"], ["c"]),
        ("Gather", ["c", "index"], ["y"], {"axis": 1}),
    ]
    target = load_target(saved(tmp_path / "m.onnx", nodes, weights, (4,), "y"))
    assert target.spec.variables == ("w/w",)
    assert not target.state


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("Softmax", "final softmax taken off"),
        ("LogSoftmax", "the model's outputs as they are"),
        (None, "the model's outputs as they are"),
    ],
)
def test_what_is_taken_off_the_end(tmp_path, last, words):
    weights = {"fc.weight": 30 * normal(4, 3)}
    nodes = [("MatMul", ["x", "fc.weight"], ["z"])]
    nodes += [(last, ["z"], ["y"])] if last else []
    path = saved(tmp_path / "m.onnx", nodes, weights, (4,), "y" if last else "z")
    target = load_target(path)
    assert target.spec.source.logits == words
    x = normal(5, 4)
    z = x @ weights["fc.weight"]
    np.testing.assert_allclose(
        jax.nn.log_softmax(target(x).logits), jax.nn.log_softmax(z), rtol=1e-5, atol=1e-4
    )


def test_softmax_before_opset_13_is_over_the_flattened_rest(tmp_path):
    """On [n, classes] the old default axis 1 is the last one."""
    weights = {"w": normal(4, 3)}
    nodes = [("MatMul", ["x", "w"], ["z"]), ("Softmax", ["z"], ["y"])]
    target = load_target(saved(tmp_path / "m.onnx", nodes, weights, (4,), "y", opset=9))
    assert target.spec.source.logits == "final softmax taken off"


def test_one_of_several_outputs(tmp_path):
    weights = {"a.weight": normal(4, 3), "b.weight": normal(4, 2)}
    nodes = [
        ("MatMul", ["x", "a.weight"], ["left"]),
        ("MatMul", ["x", "b.weight"], ["z"]),
        ("Sigmoid", ["z"], ["tags"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, weights, (4,), ["left", "tags"])
    with pytest.raises(ValueError, match="2 outputs .*left, tags"):
        load_target(path)
    x = normal(5, 4)
    np.testing.assert_allclose(
        load_target(path, output="left")(x).logits, x @ weights["a.weight"], atol=1e-6
    )
    tag = load_target(path, output=(2, 1))
    np.testing.assert_allclose(tag(x).logits[:, 1], (x @ weights["b.weight"])[:, 1], atol=1e-6)
    assert tag.spec.variables == ("b/weight",)


def test_tokens_are_integers(tmp_path):
    weights = {"emb.weight": normal(11, 4), "fc.weight": normal(4, 3)}
    nodes = [
        ("Gather", ["emb.weight", "x"], ["e"]),
        ("ReduceMean", ["e"], ["m"], {"axes": [1], "keepdims": 0}),
        ("MatMul", ["m", "fc.weight"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, weights, ("length",), "y", dtype=TensorProto.INT64)
    target = load_target(path)
    assert target.spec.input_dtype == "int32"
    assert target.spec.input_shape == (None,)
    x = np.array([[1, 10, 3], [2, 2, 2]])
    expected = weights["emb.weight"][x].mean(1) @ weights["fc.weight"]
    np.testing.assert_allclose(target(x).logits, expected, atol=1e-6)
    gradient = jm.per_example_gradients(target, x, [0, 1])["emb/weight"]
    assert set(np.flatnonzero(np.abs(gradient[0]).sum(1))) == {1, 3, 10}


def test_arrays_beside_the_file(tmp_path):
    path, weights = torch_like(tmp_path / "inside.onnx")
    (tmp_path / "outside").mkdir()
    outside = tmp_path / "outside" / "m.onnx"
    onnx.save(
        onnx.load(path), outside, save_as_external_data=True, location="m.data", size_threshold=0
    )
    assert (outside.parent / "m.data").exists()
    x = normal(2, 3, 6, 6)
    np.testing.assert_array_equal(load_target(outside)(x).logits, load_target(path)(x).logits)
    (outside.parent / "m.data").unlink()
    with pytest.raises(ValueError, match="arrays in other files"):
        load_target(outside)


def test_jit_vmap_grad_and_stacks_without_a_second_trace(tmp_path):
    target = load_target(torch_like(tmp_path / "m.onnx")[0])
    stacked = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a]), (target.params, target.state))
    x, traces = jnp.asarray(normal(2, 3, 6, 6)), []

    @jax.jit
    def run(stacked, x):
        traces.append(1)
        loss = lambda p, s: target.apply(p, s, x).logits[:, 0].sum()  # noqa: E731
        return jax.vmap(jax.value_and_grad(loss))(*stacked)

    values, gradients = run(stacked, x)
    run(stacked, x + 1)
    assert len(traces) == 1
    params, state = jax.tree.map(lambda a: a[1], stacked)
    value, gradient = jax.value_and_grad(lambda p: target.apply(p, state, x).logits[:, 0].sum())(
        params
    )
    np.testing.assert_allclose(values[1], value, rtol=1e-5)
    for name, expected in gradient.items():
        np.testing.assert_allclose(gradients[name][1], expected, rtol=1e-4, atol=1e-5)


def test_unknown_operators_are_named(tmp_path):
    nodes = [("Bernoulli", ["x"], ["a"]), ("TfIdfVectorizer", ["a"], ["y"])]
    with pytest.raises(ValueError, match=r"does not know: Bernoulli, TfIdfVectorizer"):
        load_target(saved(tmp_path / "m.onnx", nodes, {}, (4,), "y"))


def test_several_inputs_and_text_are_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, ir_version=8), tmp_path / "two.onnx")
    with pytest.raises(ValueError, match=r"2 inputs \(a, b\)"):
        load_target(tmp_path / "two.onnx")
    nodes = [("Identity", ["x"], ["y"])]
    path = saved(tmp_path / "text.onnx", nodes, {}, (4,), "y", dtype=TensorProto.STRING)
    with pytest.raises(ValueError, match="array of numbers"):
        load_target(path)
