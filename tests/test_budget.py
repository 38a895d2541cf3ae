"""What opening a file may take is counted before it is taken, and grows no faster than the file."""

import itertools
import json
import os
import pickle
import re
import sys
import zipfile

import damage
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxmeter as jm
from jaxmeter.cli import main
from jaxmeter.intake.naming import Names
from jaxmeter.intake.safety import budget, programs, work
from jaxmeter.intake.safety.building import building
from jaxmeter.jaxpr.shapes import TooExpensive

for package in ("tensorflow", "tf_keras", "onnx", "onnxruntime"):
    pytest.importorskip(package)
import onnx  # noqa: E402
from onnx import TensorProto, external_data_helper, numpy_helper  # noqa: E402
from onnx import helper as h  # noqa: E402

from jaxmeter.intake.onnx.file import _ANONYMOUS  # noqa: E402
from jaxmeter.intake.onnx.graph import parse, pruned, run  # noqa: E402
from jaxmeter.intake.onnx.target import _Endings, endings_of, plain_name, tables_of  # noqa: E402

GIBIBYTE = 2**30
SECONDS = 10  # that a refusal may take


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("loader") / "scratch"
    scratch.mkdir()
    with damage.Loader(scratch) as found:
        yield found


def value(name, shape, kind=TensorProto.FLOAT):
    return h.make_tensor_value_info(name, kind, shape)


def constant(name, content, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(content, dtype), name)


def integers(name, *content):
    return constant(name, content, np.int64)


def onnx_model(nodes, constants=(), sparse=(), functions=()):
    """`y` of shape [n, 4] from `x` of shape [n, 4]."""
    graph = h.make_graph(
        nodes, "g", [value("x", ["n", 4])], [value("y", ["n", 4])], list(constants)
    )
    graph.sparse_initializer.extend(sparse)
    opsets = [h.make_opsetid("", 17), *([h.make_opsetid("local", 1)] if functions else [])]
    model = h.make_model(graph, opset_imports=opsets, ir_version=8)
    model.functions.extend(functions)
    return model


def added(nodes, constants=(), result="big", **more):
    """What nodes compute, summed up and added to x."""
    end = [
        h.make_node("Cast", [result], ["float"], to=TensorProto.FLOAT),
        h.make_node("ReduceSum", ["float"], ["sum"], keepdims=0),
        h.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return onnx_model([*nodes, *end], constants, **more)


def chain(op, count, first="c0"):
    """`op` of itself again and again, and the sum of all."""
    names = [first, *(f"c{i}" for i in range(1, count + 1))]
    nodes = [h.make_node(op, [a], [b]) for a, b in itertools.pairwise(names)]
    return [*nodes, h.make_node("Sum", names, ["big"])]


def filled(name="c0", shape="shape"):
    return h.make_node("ConstantOfShape", [shape], [name])


def expanded(*nodes):
    """Of one number made many, without any that are written out."""
    return [h.make_node("Expand", ["one", "shape"], ["c0"]), *nodes]


def graph_of(nodes, result):
    return h.make_graph(nodes, "g", [], [value(result, None)])


def body(nodes, constants=()):
    going = h.make_node("Identity", ["going_in"], ["going"])
    return h.make_graph(
        [going, *nodes],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("going_in", [], TensorProto.BOOL),
            value("s", None),
        ],
        [value("going", [], TensorProto.BOOL), value("s_out", None)],
        list(constants),
    )


def loop(inside, first, result, count="count"):
    return h.make_node("Loop", [count, "", first], [result], body=inside)


def branches(depth):
    """Conditions that the data decide, each with two in it: as many as 2 to the depth."""
    inner = graph_of([h.make_node("Relu", ["x"], ["r"])], "r")
    for _ in range(depth):
        both = {"then_branch": inner, "else_branch": inner}
        inner = graph_of([h.make_node("If", ["is_positive"], ["r"], **both)], "r")
    nodes = [
        h.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        h.make_node("Greater", ["total", "zero"], ["is_positive"]),
        h.make_node("If", ["is_positive"], ["y"], then_branch=inner, else_branch=inner),
    ]
    return onnx_model(nodes, [constant("zero", 0.0)])


def functions(calls, depth):
    """Functions each of which calls the one before several times."""
    opset = [h.make_opsetid("", 17), h.make_opsetid("local", 1)]
    made = [
        h.make_function("local", "f0", ["a"], ["b"], [h.make_node("Relu", ["a"], ["b"])], opset)
    ]
    for i in range(1, depth):
        names = ["a", *(f"t{j}" for j in range(calls - 1)), "b"]
        nodes = [
            h.make_node(f"f{i - 1}", [a], [b], domain="local") for a, b in itertools.pairwise(names)
        ]
        made.append(h.make_function("local", f"f{i}", ["a"], ["b"], nodes, opset))
    call = h.make_node(f"f{depth - 1}", ["x"], ["y"], domain="local")
    return onnx_model([call], functions=made)


def sparse(name, dims):
    return h.make_sparse_tensor(constant(name, np.ones(4)), integers("at", 0, 1, 2, 3), dims)


def growing(op="Relu"):
    """A loop whose value grows, so that its steps are written out."""
    nodes = [h.make_node("Concat", ["s", "x"], ["t"], axis=1), h.make_node(op, ["t"], ["u"])]
    names = ["u", *(f"u{i}" for i in range(20)), "s_out"]
    nodes += [h.make_node(op, [a], [b]) for a, b in itertools.pairwise(names)]
    whole = [
        loop(body(nodes), "x", "big"),
        h.make_node("ReduceSum", ["big", "axis"], ["row"], keepdims=1),
        h.make_node("Add", ["x", "row"], ["y"]),
    ]
    return onnx_model(whole, [integers("axis", 1), constant("count", 1000, np.int64)])


def image(op, **attributes):
    nodes = [
        h.make_node("Reshape", ["x", "to"], ["image"]),
        h.make_node(op, ["image"], ["pooled"], **attributes),
        h.make_node("GlobalMaxPool", ["pooled"], ["one"]),
        h.make_node("Reshape", ["one", "back"], ["column"]),
        h.make_node("Add", ["x", "column"], ["y"]),
    ]
    return onnx_model(nodes, [integers("to", -1, 1, 2, 2), integers("back", -1, 1)])


def of_words(*, times):
    """Text times a number, which Python takes for a longer text."""
    words = h.make_tensor("w", TensorProto.STRING, [1], [b"a" * 8])
    nodes = [h.make_node("Mul", ["w", "n"], ["t"]), h.make_node("Size", ["t"], ["big"])]
    return added(nodes, [words, integers("n", times)])


def claiming(dims):
    tensor = constant("w", np.ones(4))
    tensor.dims[:] = dims
    return onnx_model([h.make_node("Add", ["x", "w"], ["y"])], [tensor])


MUCH, LONG = r"max_bytes=.*--max-bytes", r"max_seconds=.*--max-seconds"
MILLION = constant("count", 10**6, np.int64)
ONNX = {
    "constants": (
        lambda: added(
            [
                *(filled(f"c{i}") for i in range(12)),
                h.make_node("Sum", [f"c{i}" for i in range(12)], ["big"]),
            ],
            [integers("shape", 2**26)],
        ),
        "ConstantOfShape.*" + MUCH,
    ),
    "sines": (
        lambda: added([filled(), *chain("Sin", 40)], [integers("shape", 2**25)]),
        "Sin.*" + MUCH,
    ),
    "sines of one": (
        lambda: added(
            expanded(*chain("Sin", 40)), [integers("shape", 2**25), constant("one", [1.0])]
        ),
        "array is .*" + MUCH,
    ),
    "sines of data": (
        lambda: onnx_model(
            [
                h.make_node("Expand", ["x", "shape"], ["c0"]),
                *chain("Sin", 12),
                h.make_node("ReduceSum", ["big", "axis"], ["y"], keepdims=0),
            ],
            [integers("shape", 2**20, 1, 1), integers("axis", 0)],
        ),
        "pass over 5 records.*" + MUCH,
    ),
    "products": (
        lambda: added(
            [
                filled(),
                *(h.make_node("MatMul", [f"c{i}", f"c{i}"], [f"c{i + 1}"]) for i in range(3)),
            ],
            [integers("shape", 16384, 16384)],
            "c3",
        ),
        MUCH,
    ),
    "smaller products": (
        lambda: added(
            [
                filled(),
                *(h.make_node("MatMul", [f"c{i}", f"c{i}"], [f"c{i + 1}"]) for i in range(3)),
            ],
            [integers("shape", 6000, 6000)],
            "c3",
        ),
        "dot_general.*" + LONG,
    ),
    "whole products": (
        lambda: added(
            [
                filled(),
                h.make_node("Cast", ["c0"], ["c1"], to=TensorProto.INT32),
                h.make_node("MatMul", ["c1", "c1"], ["big"]),
            ],
            [integers("shape", 3000, 3000)],
        ),
        "dot_general.*" + LONG,
    ),
    "a loop of products": (
        lambda: added(
            [filled(), loop(body([h.make_node("MatMul", ["s", "s"], ["s_out"])]), "c0", "big")],
            [integers("shape", 64, 64), MILLION],
        ),
        LONG,
    ),
    "a loop of the data's products": (
        lambda: onnx_model(
            [
                filled("w"),
                h.make_node("Pad", ["x", "pads"], ["wide"]),
                loop(body([h.make_node("MatMul", ["s", "w"], ["s_out"])]), "wide", "big"),
                h.make_node("ReduceSum", ["big", "axis"], ["sum"]),
                h.make_node("Add", ["x", "sum"], ["y"]),
            ],
            [
                integers("shape", 256, 256),
                integers("pads", 0, 0, 0, 252),
                integers("axis", 1),
                MILLION,
            ],
        ),
        "scan.*" + LONG,
    ),
    "loops in loops": (
        lambda: added(
            [
                filled(),
                loop(
                    body([loop(body([h.make_node("Sin", ["s"], ["s_out"])]), "s", "s_out")]),
                    "c0",
                    "big",
                ),
            ],
            [integers("shape", 4), constant("count", 2000, np.int64)],
        ),
        "operations.*" + LONG,
    ),
    "a loop that grows": (growing, LONG),
    "branches": (lambda: branches(8), LONG),
    "many branches": (lambda: branches(12), "in branches and loops.*" + LONG),
    "functions": (lambda: functions(3, 9), "functions out.*" + LONG),
    "largest of one": (
        lambda: added(
            expanded(h.make_node("TopK", ["c0", "k"], ["big", "at"])),
            [integers("shape", 2**26), constant("one", [1.0]), integers("k", 1)],
        ),
        MUCH,
    ),
    "places of one": (
        lambda: added(
            [filled(), h.make_node("NonZero", ["c0"], ["big"])],
            [integers("shape", 2**25)],
        ),
        MUCH,
    ),
    "sorted": (
        lambda: added(
            [
                h.make_node("Range", ["zero", "many", "step"], ["c0"]),
                h.make_node("Unique", ["c0"], ["big"]),
            ],
            [
                constant("zero", 0, np.int64),
                constant("many", 2**25, np.int64),
                constant("step", 1, np.int64),
            ],
        ),
        "Unique.*max_",
    ),
    "outer product": (
        lambda: added(
            [
                h.make_node(
                    "Einsum",
                    ["one"] * 10,
                    ["big"],
                    equation=",".join("abcdefghij") + "->abcdefghij",
                )
            ],
            [constant("one", np.ones(8))],
        ),
        "Einsum.*" + MUCH,
    ),
    "many axes": (
        lambda: added(
            [h.make_node("Sum", [f"c{i}" for i in range(21)], ["big"])],
            [
                constant(f"c{i}", np.ones([3 if j == i else 1 for j in range(21)]))
                for i in range(21)
            ],
        ),
        "Sum.*" + MUCH,
    ),
    "joined": (
        lambda: added(
            [
                filled(),
                h.make_node("SequenceConstruct", ["c0"] * 200, ["all"]),
                h.make_node("ConcatFromSequence", ["all"], ["big"], axis=0),
            ],
            [integers("shape", 2**22)],
        ),
        "ConcatFromSequence.*" + MUCH,
    ),
    "parts": (
        lambda: added(
            expanded(
                h.make_node("SplitToSequence", ["c0"], ["all"]),
                h.make_node("SequenceLength", ["all"], ["big"]),
            ),
            [integers("shape", 2**25), constant("one", [1.0])],
        ),
        "SplitToSequence.*" + MUCH,
    ),
    "a window": (
        lambda: added(
            [h.make_node("HannWindow", ["n"], ["big"])], [constant("n", 2**28, np.int64)]
        ),
        "HannWindow.*" + MUCH,
    ),
    "eye": (
        lambda: added(
            [
                h.make_node("Expand", ["one", "shape"], ["c0"]),
                h.make_node("EyeLike", ["c0"], ["big"]),
            ],
            [integers("shape", 2**14, 2**14), constant("one", [[1.0]])],
        ),
        MUCH,
    ),
    "resized": (
        lambda: image("Upsample", scales=[1.0, 1.0, 2.0**14, 2.0**14]),
        "does not know|cannot be computed|max_bytes",
    ),
    "max-pooled": (
        lambda: image("MaxPool", kernel_shape=[2, 2], dilations=[2, 2], pads=[10**6] * 4),
        "MaxPool.*" + MUCH,
    ),
    "average-pooled": (
        lambda: image("AveragePool", kernel_shape=[1, 1], pads=[10**6] * 4),
        "AveragePool.*" + MUCH,
    ),
    "sparse": (
        lambda: added(
            [h.make_node("Sum", [f"w{i}" for i in range(8)], ["big"])],
            sparse=[sparse(f"w{i}", [2**26]) for i in range(8)],
        ),
        MUCH,
    ),
    "text": (lambda: of_words(times=2**33), "text"),
    "claims": (lambda: claiming([2**40]), "claims to have"),
    "claims no more than it is": (lambda: claiming([-1, -4]), "claims to have|negative|reshape"),
}


@pytest.mark.parametrize("kind", ONNX)
def test_onnx_that_takes_too_much_is_refused(loader, tmp_path, kind):
    make, message = ONNX[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    refused(loader, path, message)


def refused(loader, path, message):
    answer = loader.load(6 * SECONDS, source=str(path))  # six times: the machine may be busy
    assert answer.outcome == "ValueError", answer
    assert str(path) in answer.message
    assert re.search(message, answer.message), answer
    assert answer.grown < GIBIBYTE


@pytest.mark.parametrize("kind", ["dead", "few"])
def test_onnx_whose_large_part_is_not_needed_or_short_lived_loads(loader, tmp_path, kind):
    if kind == "dead":  # nothing reads it, here or in ONNX Runtime
        nodes = [filled(), h.make_node("Sin", ["c0"], ["c1"]), h.make_node("Relu", ["x"], ["y"])]
        model = onnx_model(nodes, [integers("shape", 2**33)])
    else:  # 20 times 64 MB, of which two are alive at once
        nodes = [h.make_node("Sin", [f"c{i}"], [f"c{i + 1}"]) for i in range(20)]
        model = added([filled(), *nodes], [integers("shape", 2**24)], "c20")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    answer = loader.load(60, source=str(path))
    assert answer.outcome == "target", answer
    assert answer.grown < GIBIBYTE // 2


L = keras.layers
KERAS = {
    "repeated": ([L.RepeatVector(2**27), L.GlobalAveragePooling1D()], (4,), "RepeatVector"),
    "upsampled": ([L.UpSampling2D(3600), L.GlobalAveragePooling2D()], (4, 4, 1), "UpSampling2D"),
    "padded": ([L.ZeroPadding2D(10**9), L.GlobalAveragePooling2D()], (4, 4, 1), "ZeroPadding2D"),
    "resized": ([L.Resizing(60_000, 60_000), L.GlobalAveragePooling2D()], (4, 4, 1), "Resizing"),
    "spread": (
        [L.Conv2DTranspose(1, 2, strides=(20_000, 20_000)), L.GlobalAveragePooling2D()],
        (4, 4, 1),
        "Conv2DTranspose",
    ),
    "one-hot": ([L.CategoryEncoding(2**30, "multi_hot")], (4,), "CategoryEncoding"),
    "compared": (
        [L.Reshape((2**14, 1)), L.MultiHeadAttention(1, 1), L.GlobalAveragePooling1D()],
        (2**14,),
        "pass over 5 records",
    ),
    "normalised": ([L.Normalization(mean=0.0, variance=1.0)], (2**30,), "takes 5 records"),
}


@pytest.mark.parametrize("kind", KERAS)
def test_keras_files_that_take_too_much_are_refused(loader, tmp_path, kind):
    layers, shape, message = KERAS[kind]
    path = tmp_path / "model.keras"
    if kind in ("one-hot", "normalised"):  # building it here would take what the file may not
        keras.Sequential([keras.Input((4,)), L.Dense(3)]).save(path)
        inserted(path, keras.saving.serialize_keras_object(layers[0]), shape)
    else:
        x = tensor = keras.Input(shape)
        for layer in layers:
            twice = isinstance(layer, L.MultiHeadAttention)
            tensor = layer(tensor, tensor) if twice else layer(tensor)
        keras.Model(x, L.Dense(3)(tensor)).save(path)
    refused(loader, path, message + ".*" + MUCH)


def inserted(path, layer, shape):
    """Puts a layer, which is not built here, before the last of a Sequential file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][0]["config"]["batch_shape"] = [None, *shape]
    layer.pop("build_config", None)
    config["config"]["layers"].insert(1, layer)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_initial_values_that_take_long_are_not_drawn(monkeypatch, tmp_path):
    """The file has them, but Keras draws its own before it looks: minutes, where they are large."""
    path = tmp_path / "model.keras"
    with jax.numpy_rank_promotion("allow"):
        layer = L.Dense(200, kernel_initializer="orthogonal", name="wide")
        keras.Sequential([keras.Input((200,)), layer, L.Dense(2)]).save(path)

    def drawn(self, shape, dtype=None):
        raise AssertionError(f"drew {shape}")

    monkeypatch.setattr(keras.initializers.Orthogonal, "__call__", drawn)
    target = jm.load_target(path)
    np.testing.assert_array_equal(target.params["wide/kernel"], layer.kernel.numpy())


def test_variables_that_a_file_lacks_have_their_initial_values():
    initializer = keras.initializers.Orthogonal(seed=3)
    with jax.numpy_rank_promotion("allow"), building(keras) as settle:
        read, missing = (L.Dense(200, kernel_initializer=initializer) for _ in range(2))
        for layer in (read, missing):
            layer.build((None, 200))
        assert not np.any(missing.kernel.numpy())
        read.kernel.assign(np.full((200, 200), 7.0))
        settle()
    assert np.all(read.kernel.numpy() == 7)
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_array_equal(missing.kernel.numpy(), initializer((200, 200)))
    np.testing.assert_allclose(
        missing.kernel.numpy() @ missing.kernel.numpy().T, np.eye(200), atol=1e-5
    )


def test_drawing_what_a_file_lacks_is_charged(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    allowed = jax.numpy_rank_promotion("allow")
    with allowed, budget.within([tmp_path / "f"], max_seconds=5), building(keras) as settle:
        L.Dense(3000, kernel_initializer="orthogonal").build((None, 3000))
        with pytest.raises(TooExpensive, match="drawing the variable.*max_seconds"):
            settle()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"class_name": "Sequential", "config": {"layers": [{}] * 2000}}, "one after the other"),
        ({"class_name": "Functional", "config": {"layers": [{}] * 100_000}}, "100,000 layers"),
        ({"class_name": "STFTSpectrogram", "config": {"fft_length": 10**9}}, "fft_length"),
    ],
)
def test_configs_whose_layers_cannot_be_built_in_time(tmp_path, config, message):
    from jaxmeter.intake.safety.building import foresee

    with budget.within([tmp_path]), pytest.raises(TooExpensive, match=message):
        foresee({"class_name": "Functional", "config": {"layers": [config]}})


def test_steps_that_are_unrolled_are_counted(tmp_path):
    path = tmp_path / "model.keras"
    layer = L.SimpleRNN(2, unroll=False)
    with jax.numpy_rank_promotion("allow"):
        keras.Sequential([keras.Input((10**5, 1)), layer, L.Dense(2)]).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = members["config.json"].replace(b'"unroll": false', b'"unroll": true')
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="100,000 steps unrolled.*max_seconds"):
        jm.load_target(path)


# --- what is counted ----------------------------------------------------------------------------


def operations(fun, *shapes):
    arrays = [jax.ShapeDtypeStruct(s, "float32") for s in shapes]
    return work.operations(jax.make_jaxpr(fun)(*arrays).jaxpr)


def test_products_and_convolutions_are_counted_exactly():
    inputs = 2 * 3 * 5 + 2 * 5 * 7
    assert operations(jnp.matmul, (2, 3, 5), (2, 5, 7)) == 2 * 2 * 3 * 5 * 7 + inputs

    def convolved(x, w):
        return lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    outputs, taps = 4 * 5 * 5 * 6, 3 * 3 * 2
    counted = operations(convolved, (4, 10, 10, 2), (3, 3, 2, 6))
    assert counted == 2 * outputs * taps + 4 * 10 * 10 * 2 + 3 * 3 * 2 * 6


def test_loops_count_as_often_as_they_go_round():
    def looped(n):
        return lambda x: lax.scan(lambda s, _: (s @ s, None), x, None, length=n)[0]

    once, often = (operations(looped(n), (50, 50)) for n in (1, 1000))
    assert often == 1000 * once > 1000 * 2 * 50**3
    both = lambda x: lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x)  # noqa: E731
    assert operations(both, (50, 50)) < 2 * operations(jnp.matmul, (50, 50), (50, 50))
    assert operations(jnp.sort, (10**6,)) > 20 * operations(jnp.negative, (10**6,))


def test_a_program_is_refused_before_it_runs_and_frees_what_it_has_read(tmp_path):
    traces = []

    def watched(x):
        for _ in range(10):
            x = jnp.sin(x)
        return jnp.sum(x)

    x = jnp.ones(2**20)
    (tmp_path / "f").write_bytes(b"")
    with budget.within([tmp_path / "f"], max_bytes=2**24):
        found = programs.computed("a chain", watched, x)
    np.testing.assert_allclose(found, watched(x), rtol=1e-6)
    with budget.within([tmp_path / "f"], max_bytes=2**22), pytest.raises(TooExpensive) as error:
        programs.computed("a chain", lambda x: traces.append(x) or watched(x), x)
    assert all(isinstance(x, jax.core.Tracer) for x in traces)
    assert "a chain" in str(error.value) and "sin: float32[1048576]" in str(error.value)
    with (
        budget.within([tmp_path / "f"], max_seconds=1e-4),
        pytest.raises(TooExpensive, match="s at"),
    ):
        programs.computed("a chain", watched, x)
    assert programs.computed("no file's", watched, x) == found  # without an account


def test_arrays_are_counted_while_they_live(tmp_path):
    with budget.within([tmp_path], max_bytes=2**20):
        array = budget.hold(np.zeros(2**16, np.uint8))
        view = budget.hold(array[:10])
        for _ in range(100):  # each goes before the next comes
            budget.hold(np.zeros(2**16, np.uint8))
        budget.room(2**20 - 2**16, "the rest")
        with pytest.raises(TooExpensive, match="the rest takes .*beside 64.0 KiB"):
            budget.room(2**20 - 2**16 + 1, "the rest")
        del array, view
        budget.room(2**20, "all")


def test_constants_are_given_up_when_they_are_read_no_more(tmp_path):
    """A chain as long as this would otherwise not fit."""
    nodes = [filled(), *(h.make_node("Sin", [f"c{i}"], [f"c{i + 1}"]) for i in range(30))]
    graph = parse(added(nodes, [integers("shape", 2**18)], "c30"))
    x = np.zeros((2, 4), np.float32)
    with budget.within([tmp_path], max_bytes=4 * 2**20):
        (found,) = run(graph, {"x": x}, ["y"])
    np.testing.assert_array_equal(found, run(graph, {"x": x}, ["y"])[0])
    with budget.within([tmp_path], max_bytes=4 * 2**20), pytest.raises(TooExpensive, match="Sin"):
        run(graph, {"x": x}, ["y", *(f"c{i}" for i in range(31))])


def test_the_clock_is_looked_at_too(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    with budget.within([tmp_path], max_seconds=5):
        budget.work(1, "a layer")
        now[0] = 6.0
        with pytest.raises(TooExpensive, match="time was up at another layer"):
            budget.work(1, "another layer")


def test_the_budget_grows_with_the_files(tmp_path):
    sizes = [0, 10**4, 10**7, 10**9]
    files = [tmp_path / str(size) for size in sizes]
    for file, size in zip(files, sizes, strict=True):
        with file.open("wb") as open_file:
            os.truncate(open_file.fileno(), size)
    found = [budget.budget_of([file]) for file in files]
    for smaller, larger in itertools.pairwise(found):
        assert smaller.max_bytes < larger.max_bytes
        assert smaller.max_seconds < larger.max_seconds
    assert found[0].max_bytes < GIBIBYTE and found[-1].max_bytes > 8 * 10**9
    assert budget.budget_of(files[-2:]) == budget.budget_of([*files[-2:], *files[-2:]])
    assert budget.budget_of(files, 7, 8.5) == budget.OpeningBudget(7, 8.5)
    for wrong in ({"max_bytes": 0}, {"max_seconds": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            budget.budget_of(files, **wrong)
    with budget.within([files[0]]):
        budget.include([files[-1]])
        assert budget.current() == budget.budget_of([files[0], files[-1]])


def test_limits_are_the_callers(tmp_path, capsys):
    path = tmp_path / "model.onnx"
    model = added([filled(), *chain("Sin", 40)], [integers("shape", 2**14)])
    path.write_bytes(model.SerializeToString())
    with pytest.warns(UserWarning, match="autoencoder"):
        assert jm.load_target(path).spec.n_classes == 4
    with pytest.raises(ValueError, match=f"{path}: .*may take 1.0 MiB.*max_bytes="):
        jm.load_target(path, max_bytes=2**20)
    with pytest.raises(ValueError, match="may take 0 s.*max_seconds="):
        jm.load_target(path, max_seconds=0.01)
    for option, value in (("--max-bytes", "1000000"), ("--max-seconds", "0.01")):
        with pytest.raises(SystemExit):
            main(["inspect", str(path), option, value])
        assert option in capsys.readouterr().err
    saved = tmp_path / "model.keras"
    keras.Sequential([keras.Input((8,)), L.Dense(300), L.Dense(3)]).save(saved)
    with pytest.raises(ValueError, match="variables of .*max_bytes="):
        jm.load_target(saved, max_bytes=4000)
    with pytest.raises(ValueError, match="variables of .*max_bytes="):
        jm.shadow.of_file(saved, max_bytes=4000)
    assert jm.shadow.of_file(saved).target.spec.n_classes == 3


def test_onnx_runtime_is_given_what_the_outputs_need():
    both = {"then_branch": graph_of([filled("dead"), h.make_node("Relu", ["x"], ["r"])], "r")}
    both["else_branch"] = graph_of([h.make_node("Neg", ["used"], ["r"])], "r")
    nodes = [
        filled(),
        h.make_node("Sin", ["x"], ["used"]),
        h.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        h.make_node("Cast", ["total"], ["going"], to=TensorProto.BOOL),
        h.make_node("If", ["going"], ["y"], **both),
        h.make_node("Exp", ["y"], ["unused"]),
    ]
    model = onnx_model(nodes, [integers("shape", 3)])
    kept = pruned(model).graph.node
    assert [node.op_type for node in kept] == ["Sin", "ReduceSum", "Cast", "If"]
    inner = [[n.op_type for n in attribute.g.node] for attribute in kept[-1].attribute]
    assert sorted(inner) == [["Neg"], ["Relu"]]
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in nodes]


def test_the_reference_implementation_keeps_every_value(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    nodes = [
        h.make_node("Expand", ["x", "shape"], ["c0"]),
        *(h.make_node("Sin", [f"c{i}"], [f"c{i + 1}"]) for i in range(40)),
        h.make_node("ReduceMean", ["c40"], ["y"], axes=[0], keepdims=0),
    ]
    model = onnx_model(nodes, [integers("shape", 2**12, 1, 1)])
    path.write_bytes(model.SerializeToString())
    with pytest.warns(UserWarning, match="autoencoder"):
        jm.load_target(path, max_bytes=2**22)  # ONNX Runtime gives up what is read no more
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="reference implementation.*max_bytes="):
        jm.load_target(path, max_bytes=2**22)


# --- files beside -------------------------------------------------------------------------------


def outside(tensor, location):
    external_data_helper.set_external_data(tensor, location, offset=0, length=16)
    tensor.ClearField("raw_data")
    return tensor


ARRAY = np.ones(4, np.float32).tobytes()


def beside(folder, location, content=ARRAY):
    """A model that reads 16 bytes of a file."""
    path = folder / "in" / "model.onnx"
    place = path.parent / location
    place.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        place.write_bytes(content)
    tensors = [outside(constant("w", np.ones(4)), location)]
    model = onnx_model([h.make_node("Add", ["x", "w"], ["y"])], tensors)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    [
        *("model.onnx.data", "model.onnx_data", "weights.pb", "weights/conv1.weight", "w"),
        *("onnx__MatMul_123", "a b.bin", "0b6f4f52-8c8e-11ee", "./model.data"),
    ],
)
@pytest.mark.filterwarnings("ignore:the model gives as many numbers")
def test_files_that_exporters_write_are_read(tmp_path, location):
    target = jm.load_target(beside(tmp_path, location))
    np.testing.assert_array_equal(target.params["w/w"], np.ones(4))


TEXT = b"host=example.org\nuser=me\npassword=hunter2hunter2\n"


@pytest.mark.parametrize(
    "location, content, message",
    [
        (".env", None, "hidden"),
        (".git/objects/ab", ARRAY, "hidden"),
        ("weights/.cache", ARRAY, "hidden"),
        ("id_rsa", b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n", "text"),
        ("settings", TEXT, "text"),
        ("words", "größere Wörter und andere, auch lange, außerdem".encode(), "text"),
        ("members.npz", b"PK\x03\x04" + bytes(60), "another kind"),
        ("x.npy", b"\x93NUMPY\x01\x00" + bytes(60), "another kind"),
        ("other.h5", b"\x89HDF\r\n\x1a\n" + bytes(60), "another kind"),
        *(
            (f"p{protocol}.pkl", pickle.dumps(list(range(60)), protocol), "another kind")
            for protocol in (2, 3, 4, 5)
        ),
        ("utf16.bin", ("password " * 8).encode("utf-16"), "another kind"),
        ("a/../../b", ARRAY, "outside"),
    ],
)
def test_files_that_are_not_the_models_are_not_read(tmp_path, location, content, message):
    with pytest.raises(ValueError, match=message) as error:
        jm.load_target(beside(tmp_path, location, content if location != ".env" else TEXT))
    assert str(tmp_path / "in" / "model.onnx") in str(error.value)


def test_places_that_are_no_files_are_not_read(tmp_path):
    path = beside(tmp_path, "pipe", None)
    nowhere = onnx.load(path, load_external_data=False)
    nowhere.graph.initializer[0].external_data[0].value = ""
    (path.parent / "nowhere.onnx").write_bytes(nowhere.SerializeToString())
    with pytest.raises(ValueError, match="no file"):
        jm.load_target(path.parent / "nowhere.onnx")
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        jm.load_target(path)
    (path.parent / "pipe").unlink()
    (path.parent / "pipe").mkdir()
    with pytest.raises(ValueError, match="no regular file"):
        jm.load_target(path)
    (path.parent / "pipe").rmdir()
    (path.parent / ".hidden").write_bytes(ARRAY)
    (path.parent / "pipe").symlink_to(path.parent / ".hidden")
    with pytest.raises(ValueError, match="hidden"):
        jm.load_target(path)


def test_the_same_bytes_many_times_are_counted_each_time(tmp_path):
    with (tmp_path / "data").open("wb") as file:
        os.truncate(file.fileno(), 2**22)
    tensors = []
    for i in range(400):
        tensors.append(outside(constant(f"w{i}", np.ones(4)), "data"))
        tensors[-1].dims[:] = [2**20]
        tensors[-1].external_data[-1].value = str(2**22)
    nodes = [h.make_node("Sum", [f"w{i}" for i in range(400)], ["big"])]
    path = tmp_path / "model.onnx"
    path.write_bytes(added(nodes, tensors).SerializeToString())
    with pytest.raises(ValueError, match="keeps in other files takes .*max_bytes"):
        jm.load_target(path)


# --- names and graphs in linear time ------------------------------------------------------------
#
# Each is compared with what it replaced, which was quadratic; then it is given what would have
# taken that hours.

OLD_ANONYMOUS = re.compile(
    r"^(onnx::\w+|val|tensor|param|input|const\w*?|initializer)?[_.]?\d*$", re.I
)
OLD_TAIL = re.compile(
    r"(/(ReadVariableOp|Cast|resource|Read|Identity|(Stateful)?PartitionedCall)(_\d+)?)+$|:\d+$"
)
pieces = st.sampled_from(
    [
        *("onnx::", "val", "tensor", "param", "input", "const", "Const", "initializer", "_", "."),
        *("1", "23", "!", "a", "/", ":", "/Read", "/Read_1", "/Cast", ":0", "/PartitionedCall"),
        *("/StatefulPartitionedCall_2", "Identity", "ReadVariableOp"),
    ]
)
names = st.lists(pieces, max_size=8).map("".join)
LONG_NAMES = [
    *(
        "const" + "1" * 10**6 + "!",
        "/Read" * 10**6 + "x",
        "x" + "/Read" * 10**6,
        "x" + ":1" * 10**6,
    ),
    *("onnx::" + "_" * 10**6 + "!", "/" * 10**6, ":" * 10**6, "Read_" + "1" * 10**6),
]


def old_plain_name(name):
    before = None
    while before != name:
        before, name = name, OLD_TAIL.sub("", name)
    for prefix in ("StatefulPartitionedCall/", "PartitionedCall/"):
        name = name.removeprefix(prefix)
    return name.strip("/")


@given(names)
@settings(max_examples=500, deadline=None)
def test_names_are_read_as_before(name):
    assert bool(_ANONYMOUS.fullmatch(name)) == bool(OLD_ANONYMOUS.match(name))
    assert plain_name(name) == old_plain_name(name)


@pytest.mark.parametrize("name", LONG_NAMES, ids=range(len(LONG_NAMES)))
def test_long_names_are_read(name):
    _ANONYMOUS.fullmatch(name)
    assert len(plain_name(name)) <= len(name)


@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "a_2_2", "b", "b_2"]), max_size=12))
def test_names_are_handed_out_as_before(asked):
    taken, found = Names(), []
    for name in asked:
        candidate, count = name, 1
        while candidate in found:
            count += 1
            candidate = f"{name}_{count}"
        found.append(candidate)
        assert taken.free(name) == candidate


def test_many_names_are_handed_out():
    taken = Names()
    found = [taken.free("a") for _ in range(300_000)]
    assert len(set(found)) == len(found) and found[-1] == "a_300000"


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), max_size=6))
def test_owners_are_found_as_before(paths):
    for scope in ("a", "a/b", "c/a/b", "b/c/a/b"):
        old = next((path for path in paths if f"/{scope}".endswith(f"/{path}")), None)
        assert _Endings(paths).first(scope) == old


def test_many_owners_are_found():
    paths = [f"block/layer_{i}" for i in range(50_000)]
    at_end = _Endings(paths)
    assert all(at_end.first(f"net/{path}") == path for path in paths)
    assert at_end.first("/".join("a" * 10**6)) is None


def wired(kinds):
    """A chain of operators, each over the value before."""
    nodes = [h.make_node(kind, [f"v{i}"], [f"v{i + 1}"]) for i, kind in enumerate(kinds)]
    end = f"v{len(kinds)}"
    graph = h.make_graph(nodes, "g", [value("v0", ["n", 4])], [value(end, ["n", 4])])
    return parse(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8))


@given(
    st.lists(st.sampled_from(["Identity", "Flatten", "Softmax", "Sigmoid", "LogSoftmax", "Relu"]))
)
@settings(deadline=None)
def test_endings_are_found_as_before(kinds):
    graph = wired(["Relu", *kinds])

    def old(name):
        current = name
        while current in graph.producers:
            node = graph.producers[current]
            if node.op == "LogSoftmax":
                return name, "linear"
            if node.op in ("Softmax", "Sigmoid"):
                return node.inputs[0], node.op.lower()
            if node.op not in ("Identity", "Flatten"):
                break
            current = node.inputs[0]
        return name, None

    values = [f"v{i}" for i in range(len(kinds) + 2)]
    assert endings_of(graph, values) == {name: old(name) for name in values}


def test_long_chains_are_followed():
    """Of 30,000: each step back from each of them would be 450 million."""
    n = 30_000
    graph = wired(["Sigmoid", *["Identity"] * n])
    values = [f"v{i}" for i in range(1, n + 2)]
    assert endings_of(graph, values) == dict.fromkeys(values, ("v0", "sigmoid"))
    assert graph.origins[f"v{n + 1}"] == "v1"
    assert graph.producers["v7"].inputs == ("v6",)
    assert not list(tables_of(graph, "v0"))
    assert len(graph.needed([values[-1]])) == n + 1
