"""What is audited of a model that gives more than one row of class scores."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers as L

import jaxmeter as jm
from jaxmeter.intake import load_target


def several():
    """Outputs of every kind on one trunk."""
    x = keras.Input((6, 4), name="words")
    states = L.GRU(5, return_sequences=True, name="states")(x)
    mean = L.GlobalAveragePooling1D(name="mean")(states)
    trunk = L.Dense(7, activation="tanh", name="trunk")(mean)
    return keras.Model(
        x,
        [
            L.Dense(3, activation="softmax", name="topic")(trunk),
            L.Dense(4, activation="sigmoid", name="tags")(trunk),
            L.Dense(1, name="price")(trunk),
            L.Dense(5, activation="softmax", name="word")(states),
            L.TimeDistributed(L.Dense(2, activation="softmax"), name="timed")(states),
            L.Dense(1, activation="sigmoid", name="stop")(states),
            L.Softmax(name="best")(L.Dense(3, name="scores")(trunk)),
        ],
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    with jax.numpy_rank_promotion("allow"):  # orthogonal initial weights need it
        return several()


X = np.random.default_rng(0).normal(size=(5, 6, 4)).astype("f")
Y = jnp.array([0, 1, 1, 0, 1])


def keras_output(model, x):
    with jax.numpy_rank_promotion("allow"):
        return model(x, training=False)


def two(p):
    """A probability as those of two classes."""
    return jnp.stack([1 - p, p], axis=1)


# What is asked for; the same from the model's list of outputs; how its logits are had.
CHOICES = [
    ("topic", lambda out: out[0], "final softmax taken off"),
    (1, lambda out: out[0], "final softmax taken off"),
    (("tags", 3), lambda out: two(out[1][:, 3]), "one sigmoid unit"),
    ((2, -1), lambda out: two(out[1][:, -1]), "one sigmoid unit"),
    (("word", -1), lambda out: out[3][:, -1], "final softmax taken off"),
    (("word", 2, 4), lambda out: two(out[3][:, 2, 4]), "one class against the rest"),
    (("timed", 1), lambda out: out[4][:, 1], "final softmax taken off"),
    (("stop", 1), lambda out: two(out[5][:, 1, 0]), "one sigmoid unit"),
    (("stop", 1, 0), lambda out: two(out[5][:, 1, 0]), "one sigmoid unit"),
    (("topic", 2), lambda out: two(out[0][:, 2]), "one class against the rest"),
    (7, lambda out: out[6], "final softmax taken off"),
    ("scores", lambda out: out[6], "the model's outputs as they are"),
]
IDS = [str(choice) for choice, *_ in CHOICES]


@pytest.mark.parametrize(("choice", "expected", "words"), CHOICES, ids=IDS)
def test_the_chosen_part_is_keras_own(model, choice, expected, words):
    target = load_target(model, output=choice)
    probabilities = expected(keras_output(model, X))
    np.testing.assert_allclose(jax.nn.softmax(target(X).logits), probabilities, atol=1e-6)
    assert target.spec.source.logits.startswith(words + ("; of" if "taken" in words else ""))
    assert target.spec.source.difference < 1e-6
    assert target.spec.n_classes == probabilities.shape[1]
    assert target.spec.layers == tuple(layer.name for layer in model.layers[1:])


@pytest.mark.parametrize(("choice", "expected", "words"), CHOICES, ids=IDS)
def test_gradients_are_those_of_the_chosen_part(model, choice, expected, words):
    target = load_target(model, output=choice)

    def loss(trainable, x, y):
        fixed = [v.value for v in model.non_trainable_variables]
        out, _ = model.stateless_call(trainable, fixed, x[None], training=False)
        return -jnp.log(expected(out)[0, y])

    with jax.numpy_rank_promotion("allow"):
        found = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(
            [v.value for v in model.trainable_variables], X, Y
        )
    full = {v.path: g for v, g in zip(model.trainable_variables, found, strict=True)}
    read = {path: g for path, g in full.items() if jnp.any(g != 0)}
    ours = jm.per_example_gradients(target, X, Y)
    assert len(ours) == len(read) < len(full)
    for gradient, (path, reference) in zip(ours.values(), read.items(), strict=True):
        np.testing.assert_allclose(gradient, reference, atol=1e-5, err_msg=path)


def test_logits_of_a_saturated_softmax_keep_their_digits():
    model = keras.Sequential([keras.Input((3,)), L.Dense(3, activation="softmax", name="out")])
    model.layers[0].set_weights([100 * np.eye(3, dtype="f"), np.zeros(3, "f")])
    x = np.array([[2.0, 1.0, 0.5]], "f")
    logits = load_target(model, output=("out", 0))(x).logits
    np.testing.assert_allclose(logits, [[0, 100]], rtol=1e-6)  # 200 - log(e^100 + e^50)


def test_a_layer_of_an_inner_model_is_a_head():
    a = keras.Input((4,))
    inner = keras.Model(a, L.Dense(3, activation="softmax", name="head")(a), name="inner")
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(1, name="price")(inner(x)))
    target = load_target(model, output="inner/head")
    x = X[:, 0]
    np.testing.assert_allclose(jax.nn.softmax(target(x).logits), keras_output(inner, x), atol=1e-6)
    np.testing.assert_allclose(target(x).layers["inner/head"], keras_output(inner, x), atol=1e-6)
    assert target.spec.variables == ("inner/head/kernel", "inner/head/bias")
    assert set(target.state) == {"price/kernel", "price/bias"}
    assert target.spec.source.logits == "final softmax taken off; of layer 'inner/head'"


def test_outputs_are_named_by_the_keys_of_a_dict():
    x = keras.Input((4,))
    dense = L.Dense(3, activation="softmax")
    model = keras.Model(x, {"b": dense(x), "a": L.Dense(2)(dense(x))})
    np.testing.assert_allclose(
        jax.nn.softmax(load_target(model, output="b")(X[:, 0]).logits),
        keras_output(model, X[:, 0])["b"],
        1e-5,
    )
    with pytest.raises(ValueError, match=r"2 outputs \(a, b\)"):
        load_target(model)


class Pair(keras.Model):
    def __init__(self):
        super().__init__()
        self.left, self.right = L.Dense(3, activation="softmax", name="l"), L.Dense(2, name="r")

    def call(self, x):
        return self.left(x), self.right(x)


def test_outputs_of_a_subclassed_model_have_numbers():
    model = Pair()
    expected = keras_output(model, X[:, 0])[0]
    for choice in ("output_1", 1, "l"):
        logits = load_target(model, output=choice)(X[:, 0]).logits
        np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-6)


def test_a_random_output_that_is_not_audited_does_no_harm():
    class Noise(L.Layer):
        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=np.random.randint(99999))

    x = keras.Input((4,))
    model = keras.Model(x, [L.Dense(3, activation="softmax", name="out")(x), Noise()(x)])
    assert load_target(model, output="out").spec.source.difference < 1e-6


def test_a_chosen_time_step_of_records_of_any_length():
    x = keras.Input((None, 4))
    model = keras.Model(x, L.Dense(3, activation="softmax", name="out")(x))
    target = load_target(model, output=("out", 2))
    assert target.spec.input_shape == (None, 4)
    np.testing.assert_allclose(
        jax.nn.softmax(target(X).logits), keras_output(model, X)[:, 2], atol=1e-6
    )
    assert target.for_inputs((3, 4)).spec.n_classes == 3
    with pytest.raises(ValueError, match="index 2 is outside the 2"):
        target.for_inputs((2, 4))
    with pytest.raises(ValueError, match=r"gives \(5, \?, 3\).*output=\('out', -1\) the last"):
        load_target(model)


def test_a_pixel_of_a_segmentation():
    x = keras.Input((4, 4, 2))
    model = keras.Model(x, L.Conv2D(3, 1, activation="softmax", name="mask")(x))
    image = np.random.default_rng(1).normal(size=(2, 4, 4, 2)).astype("f")
    target = load_target(model, output=("mask", 1, -1))
    expected = keras_output(model, image)[:, 1, -1]
    np.testing.assert_allclose(jax.nn.softmax(target(image).logits), expected, atol=1e-6)
    assert "taken off" in target.spec.source.logits


# --- refusals -----------------------------------------------------------------------------------


REFUSED = [
    (
        None,
        r"7 outputs \(topic, tags.*output='topic', or output=1.*"
        r"1: topic \(3,\), after a softmax: 3 classes; "
        r"2: tags \(4,\), after a sigmoid: 4 labels, output=\('tags', 0\) the first; "
        r"3: price \(1,\), linear: no class scores; "
        r"4: word \(6, 5\), after a softmax: a classifier at each position, output=\('word', 0\)",
    ),
    ("tpoic", "neither an output nor a layer 'tpoic'. Did you mean 'topic'.*Its layers: states"),
    (0, "no output number 0.*1: topic"),
    (8, "no output number 8"),
    ("tags", r"output 'tags' ends in 4 sigmoid units.*output=\('tags', 0\) is the first"),
    ("price", "output 'price' gives one number that is no probability.*regression"),
    ("word", r"output 'word' gives \(5, 6, 5\).*output=\('word', 0\) is the first"),
    ("stop", r"output 'stop' gives \(5, 6, 1\)"),
    (("topic", 3), r"output=\('topic', 3\): index 3 is outside the 3 along axis 0"),
    (("topic", 0, 0), r"2 indices, but.* only 1 axes: \(3,\)"),
    ("states", r"layer 'states' gives \(5, 6, 5\)"),
]


@pytest.mark.parametrize(("choice", "message"), REFUSED, ids=[str(c) for c, _ in REFUSED])
def test_a_part_that_is_no_classifier_says_why(model, choice, message):
    with pytest.raises(ValueError, match=message):
        load_target(model, output=choice)


@pytest.mark.parametrize("choice", [1.5, True, ("topic", "x"), ("topic", None), (), ["topic"]])
def test_choices_of_another_kind(model, choice):
    with pytest.raises(TypeError, match="a name, a 1-based position.*1: topic"):
        load_target(model, output=choice)


def test_two_sigmoids_are_not_two_classes():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, activation="sigmoid", name="pair")])
    with pytest.raises(ValueError, match="2 sigmoid units.*one label's two classes; either"):
        load_target(model)
    assert load_target(model, output=("pair", 1)).spec.n_classes == 2


@pytest.mark.filterwarnings("ignore:You are using a softmax")  # Keras on the same
def test_one_unit_of_softmax():
    model = keras.Sequential([keras.Input((3,)), L.Dense(1, activation="softmax")])
    with pytest.raises(ValueError, match="softmax over one unit, which is 1"):
        load_target(model)


def test_nothing_to_choose_is_said():
    x = keras.Input((3,))
    model = keras.Model(x, [L.Dense(1, name="a")(x), L.Dense(1, name="b")(x)])
    with pytest.raises(ValueError, match="None of them can be audited as a classifier"):
        load_target(model)


class Best(L.Layer):
    def call(self, x):
        return keras.ops.argmax(x, axis=-1)


def test_class_numbers_are_no_scores():
    model = keras.Sequential([keras.Input((3,)), L.Dense(4, name="scores"), Best()])
    with pytest.raises(ValueError, match="the model gives int32 numbers.*output= a layer's name"):
        load_target(model)
    assert load_target(model, output="scores").spec.n_classes == 4


AUTOENCODERS = {
    "image": ((4, 4, 1), [L.Conv2D(1, 3, padding="same")]),
    "sigmoids": ((6,), [L.Dense(2), L.Dense(6, activation="sigmoid")]),
}


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_autoencoders_are_recognised(kind):
    shape, layers = AUTOENCODERS[kind]
    with pytest.raises(ValueError, match="shape of a record, so the model may be an autoencoder"):
        load_target(keras.Sequential([keras.Input(shape), *layers]))


def test_as_many_linear_units_as_inputs_is_a_warning_that_can_be_answered():
    model = keras.Sequential([keras.Input((6,)), L.Dense(2), L.Dense(6)])
    with pytest.warns(UserWarning, match="as many numbers, 6.*autoencoder.*output=1"):
        assert load_target(model).spec.n_classes == 6
    assert load_target(model, output=1).spec.n_classes == 6
    softmax = keras.Sequential([keras.Input((6,)), L.Dense(6, activation="softmax")])
    assert load_target(softmax).spec.n_classes == 6
