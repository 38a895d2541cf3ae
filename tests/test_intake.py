import os
import subprocess
import sys
import warnings
import zipfile

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers as L

import jaxmeter as jm
from helpers import assert_close
from jaxmeter.gradients import factors, per_example
from jaxmeter.intake import load_target

# --- parity, kind by kind -----------------------------------------------------------------------


def sequential(shape, *layers, dtype=None):
    flat = [] if isinstance(layers[-1], L.GlobalAveragePooling1D | L.LSTM) else [L.Flatten()]
    with jax.numpy_rank_promotion("allow"):  # Keras needs it for orthogonal initial weights
        return keras.Sequential(
            [keras.Input(shape, dtype=dtype), *layers, *flat, L.Dense(3, activation="softmax")]
        )


def transformer():
    x = keras.Input((6, 4))
    h = L.LayerNormalization()(x)
    h = L.Add()([x, L.MultiHeadAttention(2, 3)(h, h)])
    return keras.Model(x, L.Dense(3)(L.GlobalAveragePooling1D()(h)))


def branches():
    x = keras.Input((8, 8, 2))
    a = L.Conv2D(3, 3, padding="same", activation="relu")(x)
    b = L.Conv2D(3, 1)(x)
    h = L.Concatenate()([L.Add()([a, b]), L.Multiply()([a, b]), L.Maximum()([a, b])])
    return keras.Model(x, L.Dense(4, activation="softmax")(L.GlobalMaxPooling2D()(h)))


def squeeze():
    x = keras.Input((6, 6, 4))
    gate = L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D()(x))
    h = L.Flatten()(L.Multiply()([x, L.Reshape((1, 1, 4))(gate)]))
    return keras.Model(x, L.Softmax()(L.Dense(3)(h)))


def operators():
    x = keras.Input((5,))
    h = keras.ops.tanh(L.Dense(6)(x)) * 2.0 + 1.0
    return keras.Model(x, keras.ops.softmax(L.Dense(3)(h)))


def shared():
    x = keras.Input((5,))
    dense = L.Dense(5, activation="tanh", name="twice")
    return keras.Model(x, L.Dense(3, activation="softmax")(dense(dense(x))))


def nested():
    inner = keras.Sequential([keras.Input((6,)), L.Dense(5, activation="elu"), L.Dropout(0.5)])
    a = keras.Input((4,))
    block = keras.Model(a, inner(L.Dense(6, name="first")(a)), name="block")
    return keras.Sequential([keras.Input((4,)), block, L.Dense(3, activation="softmax")])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = L.BatchNormalization(name="norm")
        self.blocks = [L.Dense(6, activation="relu", name=f"block_{i}") for i in range(2)]
        self.out = L.Dense(3, activation="softmax", name="out")

    def call(self, x, training=None):
        for block in self.blocks:
            x = x + block(self.norm(x, training=training))
        return self.out(x)


def subclassed():
    model = Subclassed()
    keras_output(model, np.zeros((2, 6), np.float32))
    return model


def grown(model):
    """The model with weights and moments away from their trivial initial values."""
    random = np.random.default_rng(1)
    for variable in model.weights:
        value = np.asarray(variable.value)
        if "variance" in variable.name:
            variable.assign(random.uniform(0.5, 2.0, value.shape).astype(value.dtype))
        elif np.issubdtype(value.dtype, np.floating):
            variable.assign(value + 0.1 * random.normal(size=value.shape).astype(value.dtype))
    return model


def normalization():
    layer = L.Normalization(axis=-1)
    layer.adapt(np.random.default_rng(0).normal(2, 3, (50, 5)).astype(np.float32))
    return sequential((5,), L.Rescaling(0.5, offset=0.1), layer, L.Dense(4))


IMAGE = (8, 8, 4)
MODELS = {
    "dense": lambda: sequential((5,), L.Dense(6, activation="tanh"), L.Dense(4, use_bias=False)),
    "conv1d": lambda: sequential((9, 2), L.Conv1D(3, 3), L.MaxPooling1D()),
    "conv2d": lambda: sequential(IMAGE, L.Conv2D(3, 3, strides=2, activation="relu")),
    "conv2d-grouped": lambda: sequential(IMAGE, L.Conv2D(4, 2, groups=2, dilation_rate=2)),
    "conv3d": lambda: sequential((4, 4, 4, 1), L.Conv3D(2, 2), L.MaxPooling3D()),
    "depthwise": lambda: sequential(IMAGE, L.DepthwiseConv2D(3, depth_multiplier=2)),
    "separable": lambda: sequential(IMAGE, L.SeparableConv2D(3, 3)),
    "transposed": lambda: sequential((4, 4, 2), L.Conv2DTranspose(3, 3, strides=2)),
    "batchnorm": lambda: sequential(IMAGE, L.Conv2D(3, 3), L.BatchNormalization(), L.ReLU()),
    "norms": lambda: sequential(
        IMAGE, L.GroupNormalization(2), L.LayerNormalization(), L.Activation("gelu")
    ),
    "pooling": lambda: sequential(
        IMAGE, L.AveragePooling2D(2), L.ZeroPadding2D(), L.UpSampling2D(), L.Cropping2D()
    ),
    "noise": lambda: sequential((5,), L.GaussianNoise(1.0), L.Dense(6), L.PReLU(), L.Dropout(0.5)),
    "embedding-mask-lstm": lambda: sequential(
        (7,), L.Embedding(11, 4, mask_zero=True), L.LSTM(3), dtype="int32"
    ),
    "gru": lambda: sequential(
        (6, 3), L.GRU(4, return_sequences=True), L.TimeDistributed(L.Dense(2))
    ),
    "bidirectional": lambda: sequential((6, 3), L.Bidirectional(L.LSTM(3))),
    "attention": transformer,
    "branches": branches,
    "squeeze": squeeze,
    "operators": operators,
    "shared": shared,
    "nested": nested,
    "normalization": normalization,
    "subclassed": subclassed,
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    keras.utils.set_random_seed(3)
    model = grown(MODELS[request.param]())
    return model, load_target(model)


def records(target, n=5):
    random = np.random.default_rng(5)
    shape = (n, *target.spec.input_shape)
    if "int" in target.spec.input_dtype:
        return jnp.asarray(random.integers(0, 11, shape))
    return jnp.asarray(random.normal(size=shape), jnp.float32)


def keras_output(model, x):
    with jax.numpy_rank_promotion("allow"):
        return model(x, training=False)


def test_output_is_keras_own(pair):
    model, target = pair
    x = records(target)
    expected = keras_output(model, x)
    out = target(x)
    is_logits = "as they are" in target.spec.source.logits
    ours = out.logits if is_logits else jax.nn.softmax(out.logits)
    assert_close(ours, expected)
    assert is_logits or target.spec.source.logits == "final softmax taken off"
    assert target.spec.source.difference < 1e-5 * max(1, float(jnp.abs(expected).max()))
    assert tuple(out.layers) == target.spec.layers
    assert out.logits.shape == (5, target.spec.n_classes)


def test_layers_are_keras_own(pair):
    model, target = pair
    if isinstance(model, Subclassed):
        pytest.skip("a subclassed model has no graph to take outputs from")
    x = records(target)
    out = target(x)
    layers = [layer for layer in model.layers if not isinstance(layer, L.InputLayer)]
    tensors = [layer._inbound_nodes[-1].output_tensors[0] for layer in layers]
    every = keras_output(keras.Model(model.inputs, tensors), x)
    for layer, expected in zip(layers, every, strict=True):
        assert_close(out.layers[layer.name], expected, err_msg=layer.name)


def test_gradients_are_those_of_stateless_call(pair):
    model, target = pair
    x, y = records(target), jnp.array([0, 1, 2, 0, 1])

    def loss(trainable, x, y):
        fixed = [v.value for v in model.non_trainable_variables]
        output, _ = model.stateless_call(trainable, fixed, x[None], training=False)
        is_logits = "as they are" in target.spec.source.logits
        log_p = jax.nn.log_softmax(output[0]) if is_logits else jnp.log(output[0])
        return -log_p[y]

    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(
            [v.value for v in model.trainable_variables], x, y
        )
    ours = jm.per_example_gradients(target, x, y)
    assert len(ours) == len(expected)
    # Of attention's key biases the gradient is 0: what is found is the rounding of the terms that
    # cancel, which are as large as other gradients.
    largest = max(float(jnp.abs(reference).max()) for reference in expected)
    for (name, gradient), reference in zip(ours.items(), expected, strict=True):
        assert_close(gradient, reference, floor=0.1 * largest, err_msg=name)


def test_a_record_does_not_depend_on_its_batch(pair):
    _, target = pair
    x = records(target)
    alone = jax.jit(jax.vmap(lambda x: target.apply(target.params, target.state, x[None])))(x)
    assert_close(target(x).logits, alone.logits[:, 0])


# --- names and arrays ---------------------------------------------------------------------------


def test_names_carry_no_model_name_and_keep_order():
    model = keras.Sequential(
        [keras.Input((4,)), *(L.Dense(3, name=f"dense_{i}") for i in range(1, 12))], name="dense_2"
    )
    target = load_target(model)
    assert target.spec.layers == tuple(f"dense_{i}" for i in range(1, 12))
    assert target.spec.variables[:3] == ("dense_1/kernel", "dense_1/bias", "dense_2/kernel")
    for name, layer in zip(target.spec.layers, model.layers, strict=True):
        np.testing.assert_array_equal(target.params[f"{name}/kernel"], layer.kernel.value)


def test_names_of_nested_and_composite_layers():
    names = load_target(nested()).spec
    (sequential_name,) = {v.split("/")[1] for v in names.variables if "sequential" in v}
    assert names.layers[0] == "block/first"
    assert names.layers[-2] == "block"
    assert "block/first/kernel" in names.variables
    assert f"block/{sequential_name}" in names.layers
    spec = load_target(sequential((6, 3), L.Bidirectional(L.GRU(2, name="g"), name="b"))).spec
    assert "b/forward_g/gru_cell/recurrent_kernel" in spec.variables


def test_frozen_kernels_are_params_and_moments_state():
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(3, name="a"), L.BatchNormalization(name="n"), L.Dropout(0.5)]
    )
    model.trainable = False
    target = load_target(model)
    assert target.spec.variables == ("a/kernel", "a/bias", "n/gamma", "n/beta")
    assert {"n/moving_mean", "n/moving_variance"} <= set(target.state)
    assert not any(v.trainable for v in model.weights)


def test_survives_predict_and_fit():
    model = keras.Sequential(
        [keras.Input((4,)), L.BatchNormalization(), L.Dense(3, activation="softmax")]
    )
    target = load_target(model)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    before = np.asarray(target(x).logits)
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.predict(x, verbose=0)
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(x, np.zeros(8, int), verbose=0)
    np.testing.assert_array_equal(target(x).logits, before)


def test_nothing_is_left_on_the_model():
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(5, activity_regularizer="l2"), L.Dense(3, activation="softmax")]
    )
    nodes = [len(layer._inbound_nodes + layer._outbound_nodes) for layer in model.layers]
    activation, losses = model.layers[-1].activation, len(model.losses)
    target = load_target(model)
    jax.jit(target.apply)(target.params, target.state, jnp.ones((2, 4)))
    assert [len(lr._inbound_nodes + lr._outbound_nodes) for lr in model.layers] == nodes
    assert model.layers[-1].activation is activation
    assert len(model.losses) == losses


def test_dense_gradients_stay_factored():
    target = load_target(MODELS["dense"]())
    _, _, found = per_example.of_loss(target, jnp.ones(5), jnp.array(1), target.spec.variables)
    kernels = [g for name, g in found.items() if name.endswith("kernel")]
    assert len(kernels) == 3
    assert all(isinstance(g, factors.Outer) for g in kernels)


def test_stacked_targets_and_one_trace():
    target = load_target(sequential((5,), L.Dense(4), L.BatchNormalization()))
    arrays = target.params, target.state
    stacked = jax.tree.map(lambda a: jnp.stack([a, a + 1]), arrays)
    x, traces = records(target), []

    @jax.jit
    def logits(params, state, x):
        traces.append(1)
        return jax.vmap(lambda p, s: target.apply(p, s, x).logits)(params, state)

    out = logits(*stacked, x)
    logits(*stacked, x + 1)
    assert len(traces) == 1
    for i in range(2):
        expected = target.apply(*jax.tree.map(lambda a, i=i: a[i], stacked), x).logits
        assert_close(out[i], expected)


def test_recurrent_layers_avoid_cudnn(monkeypatch):
    """On a GPU Keras would call a JAX primitive that cannot be vmapped."""

    def refused(*args, **kwargs):
        raise AssertionError("cuDNN was asked for")

    targets = [load_target(MODELS[kind]()) for kind in ("gru", "bidirectional")]
    rnn = sys.modules["keras.src.backend.jax.rnn"]
    monkeypatch.setattr(rnn, "_is_gpu_available", lambda: True)
    monkeypatch.setattr("jax.experimental.rnn.lstm", refused)
    monkeypatch.setattr("jax.experimental.rnn.gru", refused, raising=False)
    for target in targets:
        assert target(records(target)).logits.shape == (5, 3)
    with pytest.raises(AssertionError, match="cuDNN"):  # or this test shows nothing
        keras_output(sequential((6, 3), L.LSTM(4)), jnp.ones((1, 6, 3)))


# --- what is taken off the end ------------------------------------------------------------------


def ending(*layers):
    return keras.Sequential([keras.Input((5,)), L.Dense(6, activation="tanh"), *layers])


ENDINGS = {
    "dense": lambda: ending(L.Dense(3, activation="softmax")),
    "layer": lambda: ending(L.Dense(3), L.Softmax()),
    "activation": lambda: ending(L.Dense(3), L.Activation("softmax")),
    "jax": lambda: ending(L.Dense(3, activation=jax.nn.softmax)),
    "einsum": lambda: ending(L.EinsumDense("ab,bc->ac", 3, activation="softmax")),
    "then-dropout": lambda: ending(L.Dense(3, activation="softmax"), L.Dropout(0.5)),
    "then-linear": lambda: ending(L.Dense(3, activation="softmax"), L.Activation("linear")),
    "nested": lambda: keras.Sequential([keras.Input((5,)), ENDINGS["dense"]()]),
    "operation": operators,
    "subclassed": subclassed,
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_softmax_is_taken_off_exactly(kind):
    model = ENDINGS[kind]()
    target = load_target(model)
    assert target.spec.source.logits == "final softmax taken off"
    x = 300 * records(target)  # saturated, so that log p would be -inf
    out = target(x)
    expected = keras_output(model, x)
    assert_close(jax.nn.softmax(out.logits), expected)
    assert bool(jnp.all(jnp.isfinite(out.logits)))
    if kind not in {"operation", "nested"}:
        assert_close(out.layers[target.spec.layers[-1]], expected)


@pytest.mark.parametrize("kind", ["log_softmax", "linear"])
def test_logits_are_taken_as_they_are(kind):
    model = ending(L.Dense(3, activation=kind))
    x = jnp.ones((2, 5))
    assert_close(load_target(model)(x).logits, keras_output(model, x))


@pytest.mark.parametrize("last", [[L.Dense(1, activation="sigmoid")], "activation", "operation"])
def test_one_sigmoid_becomes_two_logits(last):
    if last == "activation":
        model = ending(L.Dense(1), L.Activation("sigmoid"))
    elif last == "operation":
        x = keras.Input((5,))
        model = keras.Model(x, keras.ops.sigmoid(L.Dense(1)(x)))
    else:
        model = ending(*last)
    target = load_target(model)
    x = records(target)
    p = keras_output(model, x)[:, 0]
    probabilities = jax.nn.softmax(target(x).logits)
    assert_close(probabilities, jnp.stack([1 - p, p], axis=1))
    assert target.spec.n_classes == 2
    np.testing.assert_array_equal(target(x).logits[:, 0], 0)


def test_probabilities_of_another_kind_are_logged_with_a_warning():
    model = ending(L.Dense(3, activation="softmax"), L.Rescaling(1.0))
    with pytest.warns(UserWarning, match="probabilities.*logits are log p"):
        target = load_target(model)
    x = records(target)
    assert_close(jnp.exp(target(x).logits), keras_output(model, x))
    assert bool(jnp.all(jnp.isfinite(target(1e4 * x).logits)))


def test_positive_outputs_that_are_no_probabilities_are_logits():
    assert "as they are" in load_target(ending(L.Dense(3, activation="relu"))).spec.source.logits


def test_mixed_precision_gives_float32_logits():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            L.Dense(6, dtype="mixed_bfloat16"),
            L.Dense(3, activation="softmax", dtype="mixed_bfloat16"),
        ]
    )
    target = load_target(model)
    out = target(records(target))
    assert out.logits.dtype == jnp.float32
    assert target.params[target.spec.variables[0]].dtype == jnp.float32


def test_uint8_records_are_cast():
    target = load_target(ENDINGS["dense"]())
    x = np.arange(10, dtype=np.uint8).reshape(2, 5)
    expected = target(x.astype(np.float32)).logits
    np.testing.assert_array_equal(target.apply(target.params, target.state, x).logits, expected)


def test_tokens_are_integers_and_lengths_open():
    model = keras.Sequential(
        [
            keras.Input((None,)),
            L.Embedding(11, 4),
            L.GlobalAveragePooling1D(),
            L.Dense(3, activation="softmax"),
        ]
    )
    target = load_target(model)
    assert target.spec.input_dtype == "int32"
    assert target.spec.input_shape == (None,)
    for length in (5, 9):
        assert target.for_inputs((length,)).spec.input_shape == (length,)
        assert target(np.ones((2, length))).logits.shape == (2, 3)


# --- files --------------------------------------------------------------------------------------


def saved(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras on its own h5 format
        model.save(path)
    return path


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("kind", ["bidirectional", "nested"])
def test_files_give_the_live_model(tmp_path, kind, suffix):
    model = grown(MODELS[kind]())
    live, read = load_target(model), load_target(saved(model, tmp_path / f"m{suffix}"))
    assert read.spec.variables == live.spec.variables
    assert read.spec.layers == live.spec.layers
    x = records(live)
    assert_close(read(x).logits, live(x).logits)
    assert read.spec.source.origin == str(tmp_path / f"m{suffix}")
    assert live.spec.source.origin.startswith("live ")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambda_needs_trust(tmp_path, suffix):
    model = ending(L.Lambda(lambda x: 2 * x, name="doubled"), L.Dense(3, activation="softmax"))
    path = saved(model, tmp_path / f"m{suffix}")
    with pytest.raises(ValueError, match=r"'doubled' \(Lambda\).*trust=True"):
        load_target(str(path))
    target = load_target(path, trust=True)
    x = records(target)
    assert_close(target(x).logits, load_target(model)(x).logits)


class Doubled(L.Layer):
    def call(self, x):
        return 2 * x


def test_custom_objects(tmp_path):
    path = saved(ending(Doubled(), L.Dense(3, activation="softmax")), tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"'doubled' \(test_intake\.Doubled\).*custom_objects"):
        load_target(path)
    assert load_target(path, custom_objects={"Doubled": Doubled}).spec.n_classes == 3


REAL = [
    ("resnet8_cifar10_keras24.h5", "final softmax taken off", 10),
    ("mnist_mlp_keras310.keras", "the model's outputs as they are; its float64", 10),
    ("churn_sigmoid_keras310.keras", "one sigmoid unit", 2),
    ("mini_xception_fer_keras20.hdf5", "final softmax taken off", 7),
    ("mobilenet_vww_keras24.h5", "final softmax taken off", 2),  # Keras 3 cannot open it
    ("dscnn_kws_savedmodel", "final softmax taken off", 12),
    ("three_layer_bn_pytorch.onnx", "final softmax taken off", 5),
]


@pytest.mark.parametrize(("name", "logits", "classes"), REAL, ids=[name for name, *_ in REAL])
def test_real_files(shared_data, name, logits, classes):
    target = load_target(shared_data / "models" / name)
    assert target.spec.source.logits.startswith(logits)
    assert target.spec.n_classes == classes
    assert target.spec.source.difference < 1e-5


# --- refusals -----------------------------------------------------------------------------------


def write(path, content):
    path.write_bytes(content)
    return path


def truncated(path):
    saved(ENDINGS["dense"](), path)
    return write(path, path.read_bytes()[: path.stat().st_size // 2])


def weights_only(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ENDINGS["dense"]().save_weights(path)
    return path


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    return path


def saved_model(path):
    path.mkdir()
    return write(path / "saved_model.pb", b"").parent


FILES = {
    "missing-folder": (lambda d: d / "no" / "m.keras", r"no file .*folder .* does not exist"),
    "missing": (lambda d: write(d / "model.keras", b"").parent / "modle.keras", "Nearest.*model"),
    "empty": (lambda d: write(d / "m.keras", b""), "is empty"),
    "not-zip": (lambda d: write(d / "m.keras", b"hello"), "not a Keras 3 file"),
    "not-hdf5": (lambda d: write(d / "m.h5", b"hello"), "not an HDF5 file"),
    "cut-zip": (lambda d: truncated(d / "m.keras"), "not a Keras 3 file.*cut short"),
    "cut-hdf5": (lambda d: truncated(d / "m.h5"), "damaged.*truncated"),
    "other-zip": (lambda d: other_zip(d / "m.keras"), r"lacks config\.json"),
    "weights": (lambda d: weights_only(d / "m.weights.h5"), "without their architecture"),
    "folder": (lambda d: d, "a folder, and not a SavedModel"),
    "savedmodel": (lambda d: saved_model(d / "m"), r"damaged: saved_model\.pb .*no graph"),
    "saved-model-file": (lambda d: saved_model(d / "m") / "saved_model.pb", "give its folder"),
    "onnx": (lambda d: write(d / "m.onnx", b"x"), "damaged or no ONNX model"),
    "json": (lambda d: write(d / "m.json", b"{"), "damaged: .*Expecting"),
    "other-json": (lambda d: write(d / "m.json", b"[1]"), "no Keras architecture"),
    "suffix": (lambda d: write(d / "m.pkl", b"x"), r"ends in \.pkl"),
}


@pytest.mark.parametrize("kind", FILES)
def test_bad_files(tmp_path, kind):
    make, message = FILES[kind]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_target(make(tmp_path))


def two_inputs():
    a, b = keras.Input((3,)), keras.Input((3,))
    return keras.Model([a, b], L.Dense(3)(L.Add()([a, b])))


def two_outputs():
    x = keras.Input((3,))
    return keras.Model(x, [L.Dense(3, name="left")(x), L.Dense(2, name="right")(x)])


UNFIT = {
    "inputs": (two_inputs, "2 inputs"),
    "outputs": (two_outputs, "2 outputs .*left, right"),
    "multi-label": (lambda: ending(L.Dense(4, activation="sigmoid")), "multi-label"),
    "regression": (lambda: ending(L.Dense(1)), "regression"),
    "unbuilt": (lambda: keras.Sequential([L.Dense(3)]), "not built"),
    "unbuilt-subclass": (Subclassed, "not built"),
    "sequence": (lambda: keras.Sequential([keras.Input((4, 2)), L.Dense(3)]), r"\(5, 4, 3\)"),
    "stateful": (
        lambda: keras.Sequential(
            [
                keras.Input(batch_shape=(8, 4, 2)),
                L.SimpleRNN(3, stateful=True, recurrent_initializer="zeros"),
                L.Dense(3),
            ]
        ),
        "fixed-batch",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_models_that_cannot_be_audited(kind):
    make, message = UNFIT[kind]
    with pytest.raises(ValueError, match=message):
        load_target(make())


class Random(L.Layer):
    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=np.random.randint(99999))


def test_a_model_that_cannot_be_reproduced_is_refused():
    with pytest.raises(ValueError, match="differs from the model's by .*random numbers"):
        load_target(ending(Random(), L.Dense(3, activation="softmax")))


def module_of(name):
    return type("Model", (), {"__module__": name, "__call__": lambda self, x: x})()


OBJECTS = {
    "tensorflow": (module_of("tensorflow.python.module"), "SavedModel folders: save yours"),
    "torch": (module_of("torch.nn"), r"torch.nn.Model.*torch\.onnx\.export"),
    "onnx": (module_of("onnx.onnx_ml_pb2"), r"onnx\.save"),
    "flax": (module_of("flax.linen"), "from_flax"),
    "function": (lambda x: x, "from_function"),
    "sklearn": (type("SVC", (), {"__module__": "sklearn.svm"})(), "sklearn.svm.SVC.*from_flax"),
    "layer": (L.Dense(3), "Wrap the layer"),
    "none": (None, r"\.keras, \.h5, \.hdf5, \.json or \.onnx"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_other_objects(kind):
    source, message = OBJECTS[kind]
    with pytest.raises(TypeError, match=message):
        load_target(source)


def test_another_backend_is_refused_with_advice(monkeypatch, tmp_path):
    path = saved(ENDINGS["dense"](), tmp_path / "m.keras")
    model = ENDINGS["dense"]()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    for source in (path, model):
        with pytest.raises(RuntimeError, match="KERAS_BACKEND=jax before.*fresh process"):
            load_target(source)


def test_keras_is_imported_on_demand_and_the_environment_restored(tmp_path):
    path = saved(ENDINGS["dense"](), tmp_path / "m.keras")
    code = f"""
import os, sys
import jaxmeter
from jaxmeter.intake import load_target
assert "keras" not in sys.modules
target = load_target({str(path)!r})
assert sys.modules["keras"].backend.backend() == "jax"
assert os.environ["KERAS_BACKEND"] == "torch"
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": os.getcwd()},
    )
