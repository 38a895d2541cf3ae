"""tf_keras models, Keras 2 files, SavedModels, JSON with weights: through ONNX, by their names."""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
import zipfile
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY

import jaxmeter as jm
from jaxmeter.intake import load_target

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")
pytest.importorskip("tf2onnx")
L = tf_keras.layers


def sequential(shape, *layers):
    return tf_keras.Sequential([tf_keras.Input(shape), *layers])


def graph():
    x = tf_keras.Input((8, 8, 3))
    a = L.Conv2D(4, 3, padding="same", activation="relu", name="left")(x)
    b = L.SeparableConv2D(4, 3, padding="same", name="right")(x)
    # tf_keras numbers layers of operators by what the process made before: start anew.
    tf_keras.backend.reset_uids()
    h = L.Concatenate(name="both")([L.Add(name="sum")([a, b]), tf.nn.relu(a - b) * 2.0])
    h = L.GlobalAveragePooling2D(name="mean")(h)
    return tf_keras.Model(x, L.Dense(4, activation="softmax", name="out")(h))


def nested():
    inner = sequential((5,), L.Dense(4, activation="tanh", name="a"), L.Dense(4, name="b"))
    inner._name = "inner"
    return sequential((5,), inner, L.Dense(3, name="out"), L.Softmax(name="softmax"))


class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.first = L.Dense(4, activation="relu", name="first")
        self.blocks = [L.Dense(4, name=f"block_{i}") for i in range(2)]
        self.norm = L.BatchNormalization(name="norm")
        self.out = L.Dense(3, activation="softmax", name="out")

    def call(self, x, training=None):
        x = self.first(x)
        for block in self.blocks:
            x = x + self.norm(block(x), training=training)
        return self.out(x)


def subclassed():
    model = Subclassed()
    model(np.zeros((2, 5), np.float32))
    return model


MODELS = {
    "mlp": lambda: sequential(
        (5,),
        L.Dense(6, activation="relu", name="hidden"),
        L.BatchNormalization(name="norm"),
        L.Dropout(0.5, name="dropout"),
        L.Dense(3, activation="softmax", name="out"),
    ),
    "lstm": lambda: sequential(
        (7, 4), L.LSTM(5, name="lstm"), L.Dense(1, activation="sigmoid", name="out")
    ),
    "tokens": lambda: sequential(
        (None,),
        L.Embedding(10, 4, mask_zero=True, name="embedding"),
        L.Bidirectional(L.GRU(3), name="both"),
        L.Dense(3, activation="softmax", name="out"),
    ),
    "grouped": lambda: sequential(
        (8, 8, 4),
        L.Conv2D(4, 3, groups=2, activation="gelu", name="conv"),
        L.Flatten(name="flat"),
        L.Dense(3, activation="softmax", name="out"),
    ),
    "graph": graph,
    "nested": nested,
    "subclassed": subclassed,
}


@cache
def made(kind):
    """A model with weights and moments away from their initial values."""
    tf_keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    model = MODELS[kind]()
    for variable in model.weights:
        noise = 0.1 * random.normal(size=variable.shape)
        variable.assign(variable + (abs(noise) if "variance" in variable.name else noise))
    return model


def records(target, n=4):
    random = np.random.default_rng(1)
    shape = (n, *(d or 6 for d in target.spec.input_shape))
    if "int" in target.spec.input_dtype:
        return random.integers(0, 10, shape).astype(np.int32)
    return random.normal(size=shape).astype(np.float32)


def probabilities(target, x):
    p = jax.nn.softmax(target(x).logits)
    return p[:, 1:] if "sigmoid" in target.spec.source.logits else p


# --- live models --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_live_models_give_tf_keras_own_output_and_gradients(kind):
    model = made(kind)
    target = load_target(model)
    assert target.spec.source.route == "tf-keras"
    assert target.spec.source.difference < 1e-5
    x = records(target)
    np.testing.assert_allclose(probabilities(target, x), model(x, training=False), atol=1e-5)
    y = np.arange(len(x)) % 2
    ours = jm.per_example_gradients(target, x, y)
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            p = model(x[i : i + 1], training=False)[0]
            p = tf.concat([1 - p, p], 0) if len(p) == 1 else p
            loss = -tf.math.log(p[y[i]])
        theirs = tape.gradient(loss, model.trainable_variables)
        values = {
            id(v): tf.convert_to_tensor(g).numpy()
            for v, g in zip(model.trainable_variables, theirs, strict=True)
        }
        assert len(values) == len(ours)
        for name, variable in named(model, target).items():
            expected = values[id(variable)]
            scale = max(1e-2, np.abs(expected).max())
            np.testing.assert_allclose(ours[name][i] / scale, expected / scale, atol=1e-4)


def named(model, target):
    """The model's trainable variables by the target's names, matched by their values."""
    return {
        name: next(v for v in model.trainable_variables if np.array_equal(v, target.params[name]))
        for name in target.spec.variables
    }


@pytest.mark.parametrize(
    ("kind", "layers", "variables"),
    [
        ("mlp", ("hidden", "norm", "dropout", "out"), ("hidden/kernel", "norm/gamma", "out/bias")),
        ("nested", ("inner/a", "inner/b", "inner", "out", "softmax"), ("inner/a/kernel",)),
        ("subclassed", ("first", "block_0", "block_1", "norm", "out"), ("block_1/kernel",)),
        ("tokens", ("embedding", "both", "out"), ("both/forward_gru/gru_cell/kernel",)),
        (
            "graph",
            ("left", "right", "tf.math.subtract", "sum", "both", "mean", "out"),
            ("right/depthwise_kernel", "left/bias"),
        ),
    ],
)
def test_names_are_those_of_layers(kind, layers, variables):
    spec = load_target(made(kind)).spec
    assert [name for name in spec.layers if name in layers] == sorted(layers, key=spec.layers.index)
    assert set(layers) <= set(spec.layers)
    assert set(variables) <= set(spec.variables)


def test_layers_are_tf_keras_own():
    model = made("graph")
    target = load_target(model)
    x = records(target)
    names = ("left", "right", "sum", "both", "mean", "out")
    outputs = [model.get_layer(name).output for name in names]
    expected = tf_keras.Model(model.inputs, outputs)(x)
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(target(x).layers[name], value, atol=1e-5)


def test_moments_are_state():
    target = load_target(made("mlp"))
    assert set(target.state) == {"norm/moving_mean", "norm/moving_variance"}


def test_nothing_is_left_on_the_model():
    model = made("graph")
    call, attributes = tf_keras.layers.Layer.__call__, [set(vars(lr)) for lr in model.layers]
    load_target(model)
    assert tf_keras.layers.Layer.__call__ is call
    assert [set(vars(lr)) for lr in model.layers] == attributes


@pytest.mark.parametrize("kind", ["mlp", "grouped", "lstm"])
def test_jit_vmap_grad_and_stacks_without_a_second_trace(kind):
    target = load_target(made(kind))
    arrays = target.params, target.state
    stacked = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a]), arrays)
    x, traces = jnp.asarray(records(target)), []

    @jax.jit
    def run(stacked, x):
        traces.append(1)

        def loss(params, state):
            return jax.vmap(lambda row: target.apply(params, state, row[None]).logits[0, 0])(
                x
            ).sum()

        return jax.vmap(jax.value_and_grad(loss))(*stacked)

    values, gradients = run(stacked, x)
    run(stacked, x + 1)
    assert len(traces) == 1
    for i in range(2):
        params, state = jax.tree.map(lambda a, i=i: a[i], stacked)
        direct = lambda p, s=state: target.apply(p, s, x).logits[:, 0].sum()  # noqa: E731
        value, gradient = jax.value_and_grad(direct)(params)
        np.testing.assert_allclose(values[i], value, rtol=1e-5, atol=1e-5)
        for name, expected in gradient.items():
            np.testing.assert_allclose(gradients[name][i], expected, rtol=1e-4, atol=1e-5)


def test_a_record_does_not_depend_on_its_batch():
    target = load_target(made("tokens"))
    x = records(target)
    alone = jnp.concatenate([target(row[None]).logits for row in x])
    np.testing.assert_allclose(target(x).logits, alone, atol=1e-6)
    assert target.for_inputs((11,)).spec.input_shape == (11,)


def test_one_of_several_outputs():
    x = tf_keras.Input((5,))
    left = L.Dense(3, activation="softmax", name="left")(x)
    model = tf_keras.Model(x, [left, L.Dense(4, activation="sigmoid", name="tags")(x)])
    with pytest.raises(ValueError, match="2 outputs .*left, tags"):
        load_target(model)
    found = records(load_target(model, output="left"))
    expected = model(found)
    for output, want in (("left", expected[0]), (1, expected[0])):
        np.testing.assert_allclose(
            probabilities(load_target(model, output=output), found), want, atol=1e-6
        )
    tag = load_target(model, output=("tags", 2))
    np.testing.assert_allclose(
        jax.nn.softmax(tag(found).logits)[:, 1], expected[1][:, 2], atol=1e-6
    )


def test_two_inputs_and_text_are_refused():
    a, b = tf_keras.Input((3,)), tf_keras.Input((3,))
    with pytest.raises(ValueError, match="2 inputs"):
        load_target(tf_keras.Model([a, b], L.Dense(2)(L.Add()([a, b]))))
    text = tf_keras.Input((), dtype=tf.string)
    model = tf_keras.Model(text, L.Dense(2)(tf.strings.to_number(text)[:, None]))
    with pytest.raises(ValueError, match=r"takes string, not numbers"):
        load_target(model)
    with pytest.raises(ValueError, match="not built"):
        load_target(tf_keras.Sequential([L.Dense(2)]))


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lstm", "tokens", "graph", "nested"])
def test_keras_2_files(kind, tmp_path):
    model = made(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "m.h5")
    target = load_target(tmp_path / "m.h5")
    x = records(target)
    np.testing.assert_allclose(probabilities(target, x), model(x, training=False), atol=1e-5)


@pytest.mark.parametrize("modules", ["tf_keras", "keras"])
@pytest.mark.parametrize("kind", ["lstm", "graph"])
def test_keras_archives_that_keras_2_wrote(kind, modules, tmp_path):
    """TensorFlow 2.12 to 2.15 wrote them too, naming modules that are tf_keras' today."""
    model = made(kind)
    model.save(tmp_path / "new.keras")
    with (
        zipfile.ZipFile(tmp_path / "new.keras") as source,
        zipfile.ZipFile(tmp_path / "m.keras", "w") as copy,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                content = content.replace(b'"tf_keras.', f'"{modules}.'.encode())
            if name == "metadata.json":
                content = b'{"keras_version": "2.13.1", "date_saved": "2023-07-01@00:00:00"}'
            copy.writestr(name, content)
    target = load_target(tmp_path / "m.keras")
    assert target.spec.source.route == "tf-keras"
    x = records(target)
    np.testing.assert_allclose(probabilities(target, x), model(x, training=False), atol=1e-5)


def test_what_keras_3_computes_differently_goes_through_tf_keras(tmp_path):
    """Keras 3's hard_sigmoid is another function: it would open the file and be wrong."""
    model = sequential(
        (4,), L.Dense(5, activation="hard_sigmoid"), L.Dense(3, activation="softmax")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "m.h5")
    target = load_target(tmp_path / "m.h5")
    assert target.spec.source.route == "tf-keras"
    x = 3 * records(target)
    np.testing.assert_allclose(probabilities(target, x), model(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "lstm", "tokens", "grouped", "subclassed"])
def test_saved_models(kind, tmp_path):
    model = made(kind)
    model.save(tmp_path / "keras", save_format="tf")
    (tmp_path / "signature").mkdir()
    model.export(tmp_path / "signature")
    # A subclassed model's class is not in the folder, so it is known by its signature alone.
    keras_route = "saved-model" if kind == "subclassed" else "tf-keras"
    for folder, route in (("keras", keras_route), ("signature", "saved-model")):
        target = load_target(tmp_path / folder)
        assert target.spec.source.route == route
        assert target.spec.source.difference < 1e-5
        x = records(target)
        expected = model(x, training=False)
        np.testing.assert_allclose(probabilities(target, x), expected, atol=1e-5)
        assert len(target.spec.variables) == len(model.trainable_variables)
        assert len(target.state) == len(model.non_trainable_variables)
        norms = jm.gradient_norms(target, x, np.zeros(len(x), int))
        assert all(bool((norm > 0).any()) for norm in norms.values())


def test_layers_of_a_signature_are_scopes(tmp_path):
    made("mlp").export(tmp_path / "m")
    spec = load_target(tmp_path / "m").spec
    assert spec.layers == ("hidden", "norm", "out")
    assert spec.variables[:2] == ("hidden/kernel", "hidden/bias")


def test_a_module_of_ones_own(tmp_path):
    class Module(tf.Module):
        def __init__(self):
            self.w = tf.Variable(np.ones((4, 3), np.float32), name="dense/w")
            self.frozen = tf.Variable(np.ones(3, np.float32), trainable=False, name="scale")

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def __call__(self, x):
            return tf.nn.softmax(tf.matmul(x, self.w) * self.frozen + tf.range(3, dtype=tf.float32))

    module = Module()
    tf.saved_model.save(module, tmp_path / "m", signatures={"classify": module.__call__})
    target = load_target(tmp_path / "m")
    assert target.spec.variables == ("dense/w",)
    assert tuple(target.state) == ("scale",)
    x = records(target)
    np.testing.assert_allclose(probabilities(target, x), module(x), atol=1e-6)


def test_a_saved_model_of_tensorflow_1(tmp_path):
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 4), name="x")
        w = v1.get_variable("layer/w", (4, 3), use_resource=False)
        scale = v1.get_variable("layer/moving_mean", (3,), trainable=False, use_resource=False)
        y = v1.nn.softmax(v1.matmul(x, w) + scale)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "m"), {"x": x}, {"y": y})
        records_ = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        expected = session.run(y, {x: records_})
    target = load_target(tmp_path / "m")
    assert target.spec.variables == ("layer/w",)
    assert tuple(target.state) == ("layer/moving_mean",)
    np.testing.assert_allclose(probabilities(target, records_), expected, atol=1e-6)


def test_a_saved_model_without_a_way_to_call_it(tmp_path):
    module = tf.Module()
    module.v = tf.Variable(1.0)
    tf.saved_model.save(module, tmp_path / "m")
    with pytest.raises(ValueError, match="no serving signature"):
        load_target(tmp_path / "m")


@pytest.mark.parametrize("kind", ["lstm", "graph"])
def test_architecture_and_weights(kind, tmp_path):
    model = made(kind)
    (tmp_path / "m.json").write_text(model.to_json())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(tmp_path / "old.h5")
        model.save_weights(str(tmp_path / "checkpoint"))
        model.save(tmp_path / "whole.h5")
    with pytest.raises(ValueError, match="architecture without weights; pass weights="):
        load_target(tmp_path / "m.json")
    for weights in ("old.h5", "checkpoint"):
        target = load_target(tmp_path / "m.json", weights=tmp_path / weights)
        x = records(target)
        np.testing.assert_allclose(probabilities(target, x), model(x, training=False), atol=1e-5)
    with pytest.raises(ValueError, match="has its own weights"):
        load_target(tmp_path / "whole.h5", weights=tmp_path / "old.h5")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_target(tmp_path / "m.json", weights=tmp_path / "none.h5")


def test_architecture_of_keras_3(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="softmax")])
    (tmp_path / "m.json").write_text(model.to_json())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(tmp_path / "m.weights.h5")
    target = load_target(tmp_path / "m.json", weights=tmp_path / "m.weights.h5")
    assert target.spec.source.route == "keras-jax"
    x = records(target)
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(probabilities(target, x), model(x), atol=1e-6)


def test_weights_of_another_architecture_are_refused(tmp_path):
    (tmp_path / "m.json").write_text(made("mlp").to_json())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made("lstm").save_weights(tmp_path / "other.h5")
    with pytest.raises(ValueError, match="m.json"):
        load_target(tmp_path / "m.json", weights=tmp_path / "other.h5")


def test_list_style_configs_of_the_first_keras_2(tmp_path):
    """Keras 2.0 and 2.1 wrote a Sequential's layers as a bare list."""
    import h5py

    model = made("mlp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layers = config["config"]["layers"]
        first, *rest = [layer for layer in layers if layer["class_name"] != "InputLayer"]
        first["config"]["batch_input_shape"] = [None, 5]
        del file.attrs["model_config"]
        config["config"] = [first, *rest]
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["keras_version"] = b"2.0.8"
    target = load_target(tmp_path / "m.h5")
    x = records(target)
    np.testing.assert_allclose(probabilities(target, x), model(x, training=False), atol=1e-5)


# --- without TensorFlow --------------------------------------------------------------------------


def test_without_tensorflow_the_extra_is_named(tmp_path, monkeypatch):
    model = made("lstm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "old.h5")
    model.save(tmp_path / "folder", save_format="tf")
    found = importlib.util.find_spec
    absent = {"tensorflow", "tf_keras", "tf2onnx"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in absent else found(name, *a)
    )
    for source in (tmp_path / "folder", model):
        with pytest.raises(ImportError, match=r"pip install 'jaxmeter\[tensorflow\]'"):
            load_target(source)
    with pytest.raises((ImportError, ValueError), match=r"jaxmeter\[tensorflow\]"):
        load_target(tmp_path / "old.h5")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else found(name, *a)
    )
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"pip install 'jaxmeter\[onnx\]'"):
        load_target(tmp_path / "m.onnx")


def test_live_models_of_keras_on_tensorflow(tmp_path):
    code = """
import keras, numpy as np, jax
import jaxmeter as jm
assert keras.backend.backend() == "tensorflow"
L = keras.layers
keras.utils.set_random_seed(0)
layers = [
    L.Conv2D(3, 3, activation="relu", name="conv"),
    L.BatchNormalization(name="norm"),
    L.Flatten(name="flat"),
    L.Dense(3, activation="softmax", name="out"),
]
model = keras.Sequential([keras.Input((6, 6, 2)), *layers])
target = jm.load_target(model)
assert target.spec.source.route == "keras-tensorflow" and target.spec.source.difference < 1e-5
assert target.spec.layers == ("conv", "norm", "flat", "out")
assert target.spec.variables[:4] == ("conv/kernel", "conv/bias", "norm/gamma", "norm/beta")
x = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
np.testing.assert_allclose(jax.nn.softmax(target(x).logits), model(x, training=False), atol=1e-6)
before = np.asarray(target(x).logits)
model.compile("sgd", "sparse_categorical_crossentropy")
model.fit(x, np.zeros(4, int), verbose=0)
np.testing.assert_array_equal(target(x).logits, before)
assert jm.gradient_norms(target, x, np.zeros(4, int))["conv/kernel"].shape == (4,)
assert keras.backend.backend() == "tensorflow"
model.export("exported", verbose=False)  # a SavedModel without Keras' metadata
exported = jm.load_target("exported")
assert exported.spec.source.route == "saved-model"
assert {"conv", "norm", "out"} <= set(exported.spec.layers)
assert set(exported.spec.variables) == set(target.spec.variables)
p = model(x, training=False)
np.testing.assert_allclose(jax.nn.softmax(exported(x).logits), p, atol=1e-6)
"""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
