"""Small Keras 3 models of many kinds, the same on every backend, and records for them.

Run as a program (`python architectures.py FOLDER`, Keras on TensorFlow), it loads FOLDER/NAME.keras
for each of them, and writes what the target computes to FOLDER/NAME.npz.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers as L

VECTOR, SERIES, IMAGE, VOLUME = (5,), (9, 4), (8, 8, 4), (5, 5, 5, 2)
TOKENS = (7,)
VOCABULARY = 11


def sequential(shape, *layers, dtype=None):
    flat = [] if getattr(layers[-1], "flat", False) else [L.Flatten()]
    return keras.Sequential(
        [keras.Input(shape, dtype=dtype), *layers, *flat, L.Dense(3, activation="softmax")]
    )


def flat(layer):
    """Marks a layer whose output is one row a record."""
    layer.flat = True
    return layer


def graph(shape, make, dtype=None):
    x = keras.Input(shape, dtype=dtype)
    h = make(x)
    h = L.Flatten()(h) if len(h.shape) > 2 else h
    return keras.Model(x, L.Dense(3, activation="softmax")(h))


def residual(x):
    h = L.Conv2D(4, 3, padding="same", activation="relu")(x)
    h = L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(h))
    return L.GlobalAveragePooling2D()(L.ReLU()(L.Add()([x, h])))


def transformer(x):
    h = L.Dense(6)(x)
    h = L.LayerNormalization()(L.Add()([h, L.MultiHeadAttention(2, 3)(h, h)]))
    f = L.Dense(6)(L.Dense(8, activation="gelu")(h))
    return L.GlobalAveragePooling1D()(L.LayerNormalization()(L.Add()([h, f])))


def causal(x):
    h = L.Dense(4)(x)
    return L.MultiHeadAttention(2, 2)(h, h, use_causal_mask=True)


def token_transformer(x):
    h = L.Embedding(VOCABULARY, 6)(x)
    positions = L.Embedding(TOKENS[0], 6)(keras.ops.arange(TOKENS[0]))
    h = h + positions
    return L.GlobalMaxPooling1D()(L.Add()([h, L.MultiHeadAttention(2, 3)(h, h)]))


def squeeze(x):
    gate = L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D()(x))
    return L.Multiply()([x, L.Reshape((1, 1, 4))(gate)])


def inception(x):
    a = L.Conv2D(3, 1)(x)
    b = L.Conv2D(3, 3, padding="same", activation="elu")(x)
    c = L.Conv2D(3, 1)(L.MaxPooling2D(3, strides=1, padding="same")(x))
    h = L.Concatenate()([a, b, c, L.Maximum()([a, b]), L.Minimum()([a, c])])
    return L.AveragePooling2D(3, strides=2, padding="same")(h)


def dense_net(x):
    h = L.Conv2D(4, 3, padding="same")(x)
    for _ in range(2):
        new = L.Conv2D(2, 3, padding="same")(L.ReLU()(L.BatchNormalization()(h)))
        h = L.Concatenate()([h, new])
    return L.GlobalMaxPooling2D()(h)


def inverted_residual(x):
    h = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(8, 1, use_bias=False)(x)))
    h = L.DepthwiseConv2D(3, padding="same", use_bias=False)(h)
    h = L.BatchNormalization()(L.Conv2D(4, 1, use_bias=False)(L.ReLU(6.0)(h)))
    return L.Add()([x, h])


def shared(x):
    dense = L.Dense(5, activation="tanh", name="twice")
    return dense(dense(x))


def nested(x):
    inner = keras.Sequential([keras.Input((6,)), L.Dense(5, activation="elu"), L.Dropout(0.5)])
    a = keras.Input(VECTOR)
    block = keras.Model(a, inner(L.Dense(6, name="first")(a)), name="block")
    return block(x)


def siamese(x):
    inner = keras.Sequential([keras.Input((2,)), L.Dense(4, activation="tanh")], name="tower")
    return L.Subtract()([inner(x[:, :2]), inner(x[:, 2:4])])


def operators(x):
    h = L.Dense(6)(x)
    return keras.ops.tanh(h) * 2.0 + keras.ops.exp(-keras.ops.square(h)) - 0.1 * h


def einsum(x):
    return L.EinsumDense("abc,cd->abd", output_shape=(SERIES[0], 3), bias_axes="d")(x)


def dots(x):
    return keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1)))


def attended(x):
    return L.Attention(use_scale=True)([x, x])


def additive(x):
    return L.AdditiveAttention()([x, x])


def highway(x):
    gate = L.Dense(5, activation="sigmoid")(x)
    return gate * L.Dense(5, activation="relu")(x) + (1 - gate) * x


def stacked_lstm(x):
    return L.LSTM(3)(L.LSTM(4, return_sequences=True)(x))


def convlstm(x):
    return L.ConvLSTM1D(2, 3)(L.Reshape((3, 3, 4))(x))


def activations(x):
    h = L.Dense(4)(x)
    kinds = ("relu", "relu6", "elu", "selu", "softplus", "softsign", "silu", "mish", "gelu")
    found = [L.Activation(kind)(h) for kind in kinds]
    others = ("tanh", "sigmoid", "hard_sigmoid", "hard_silu", "exponential", "leaky_relu")
    return L.Concatenate()([*found, *(L.Activation(kind)(h) for kind in others)])


def more_activations(x):
    h = L.Dense(4)(x)
    kinds = ("celu", "log_sigmoid", "hard_tanh", "hard_shrink", "soft_shrink", "squareplus")
    more = ("tanh_shrink", "sparse_plus", "softmax", "log_softmax")
    return L.Concatenate()([L.Activation(kind)(h) for kind in (*kinds, *more)])


def normalization():
    layer = L.Normalization(axis=-1)
    layer.adapt(np.random.default_rng(0).normal(2, 3, (50, *VECTOR)).astype(np.float32))
    return sequential(VECTOR, L.Rescaling(0.5, offset=0.1), layer, L.Dense(4))


def masked_lstm(mask=True):
    return sequential(
        TOKENS, L.Embedding(VOCABULARY, 4, mask_zero=mask), flat(L.LSTM(3)), dtype="int32"
    )


ARCHITECTURES: dict[str, Callable[[], keras.Model]] = {
    "mlp": lambda: sequential(VECTOR, L.Dense(6, activation="tanh"), flat(L.Dense(4, "relu"))),
    "biasless": lambda: sequential(VECTOR, L.Dense(6, use_bias=False), flat(L.Dense(4, "gelu"))),
    "batchnorm-mlp": lambda: sequential(VECTOR, L.Dense(6), L.BatchNormalization(), flat(L.ReLU())),
    "cnn": lambda: sequential(
        IMAGE, L.Conv2D(3, 3, activation="relu"), L.MaxPooling2D(), L.Conv2D(4, 2, padding="same")
    ),
    "strided": lambda: sequential(
        IMAGE, L.Conv2D(3, 3, strides=2, padding="same"), L.AveragePooling2D(2)
    ),
    "dilated": lambda: sequential(IMAGE, L.Conv2D(3, 3, dilation_rate=2, activation="selu")),
    "grouped": lambda: sequential(IMAGE, L.Conv2D(4, 2, groups=2)),
    "depthwise": lambda: sequential(IMAGE, L.DepthwiseConv2D(3, depth_multiplier=2, strides=2)),
    "separable": lambda: sequential(IMAGE, L.SeparableConv2D(3, 3, depth_multiplier=2)),
    "transposed": lambda: sequential(IMAGE, L.Conv2DTranspose(3, 3, strides=2, padding="same")),
    "transposed-valid": lambda: sequential(IMAGE, L.Conv2DTranspose(2, 3, strides=2)),
    "conv1d": lambda: sequential(SERIES, L.Conv1D(3, 3, activation="relu"), L.MaxPooling1D()),
    "causal-conv1d": lambda: sequential(
        SERIES, L.Conv1D(3, 3, padding="causal", dilation_rate=2), L.AveragePooling1D(2)
    ),
    "separable1d": lambda: sequential(SERIES, L.SeparableConv1D(3, 3), L.DepthwiseConv1D(2)),
    "transposed1d": lambda: sequential(SERIES, L.Conv1DTranspose(3, 3, strides=2)),
    "conv3d": lambda: sequential(VOLUME, L.Conv3D(2, 2), L.MaxPooling3D(2)),
    "transposed3d": lambda: sequential(VOLUME, L.Conv3DTranspose(2, 2), L.GlobalMaxPooling3D()),
    "batchnorm": lambda: sequential(IMAGE, L.Conv2D(3, 3), L.BatchNormalization(), L.ReLU()),
    "layernorm": lambda: sequential(IMAGE, L.LayerNormalization(), L.Dense(2)),
    "groupnorm": lambda: sequential(IMAGE, L.GroupNormalization(2), L.Conv2D(2, 3)),
    "unitnorm": lambda: sequential(VECTOR, L.Dense(6), flat(L.UnitNormalization())),
    "spectral": lambda: sequential(VECTOR, flat(L.SpectralNormalization(L.Dense(4)))),
    "residual": lambda: graph(IMAGE, residual),
    "inception": lambda: graph(IMAGE, inception),
    "densenet": lambda: graph(IMAGE, dense_net),
    "inverted-residual": lambda: graph(IMAGE, inverted_residual),
    "squeeze-excite": lambda: graph(IMAGE, squeeze),
    "padding": lambda: sequential(
        IMAGE, L.ZeroPadding2D(((1, 0), (0, 2))), L.UpSampling2D(), L.Cropping2D(2), L.Conv2D(2, 3)
    ),
    "bilinear": lambda: sequential(IMAGE, L.UpSampling2D(interpolation="bilinear"), L.Conv2D(2, 3)),
    "resizing": lambda: sequential(IMAGE, L.Resizing(5, 6), L.Conv2D(2, 3)),
    "lstm": lambda: sequential(SERIES, flat(L.LSTM(3))),
    "stacked-lstm": lambda: graph(SERIES, stacked_lstm),
    "lstm-sequences": lambda: sequential(SERIES, L.LSTM(3, return_sequences=True)),
    "lstm-backwards": lambda: sequential(SERIES, flat(L.LSTM(3, go_backwards=True))),
    "gru": lambda: sequential(SERIES, flat(L.GRU(4))),
    "gru-before": lambda: sequential(SERIES, flat(L.GRU(4, reset_after=False))),
    "simple-rnn": lambda: sequential(SERIES, flat(L.SimpleRNN(4))),
    "bidirectional": lambda: sequential(SERIES, flat(L.Bidirectional(L.LSTM(3)))),
    "bidirectional-gru": lambda: sequential(
        SERIES, L.Bidirectional(L.GRU(2, return_sequences=True)), L.TimeDistributed(L.Dense(2))
    ),
    "unrolled": lambda: sequential(SERIES, flat(L.LSTM(3, unroll=True))),
    "convlstm": lambda: graph(SERIES, convlstm),
    "embedding": lambda: sequential(
        TOKENS, L.Embedding(VOCABULARY, 4), flat(L.GlobalAveragePooling1D()), dtype="int32"
    ),
    "embedding-lstm": lambda: masked_lstm(mask=False),
    "masked-lstm": masked_lstm,
    "masked-gru": lambda: sequential(
        TOKENS,
        L.Embedding(VOCABULARY, 4, mask_zero=True),
        flat(L.Bidirectional(L.GRU(3))),
        dtype="int32",
    ),
    "masked-average": lambda: sequential(
        TOKENS,
        L.Embedding(VOCABULARY, 4, mask_zero=True),
        flat(L.GlobalAveragePooling1D()),
        dtype="int32",
    ),
    "masking": lambda: sequential(SERIES, L.Masking(), flat(L.GRU(3))),
    "transformer": lambda: graph(SERIES, transformer),
    "causal-attention": lambda: graph(SERIES, causal),
    "token-transformer": lambda: graph(TOKENS, token_transformer, dtype="int32"),
    "attention": lambda: graph(SERIES, attended),
    "additive-attention": lambda: graph(SERIES, additive),
    "prelu": lambda: sequential(IMAGE, L.PReLU(shared_axes=[1, 2]), L.Conv2D(2, 3), L.LeakyReLU()),
    "activations": lambda: graph(VECTOR, activations),
    "more-activations": lambda: graph(VECTOR, more_activations),
    "normalization": normalization,
    "discretization": lambda: graph(
        VECTOR,
        lambda x: L.Concatenate()(
            [x, keras.ops.cast(L.Discretization(bin_boundaries=[-0.5, 0.5])(x), "float32")]
        ),
    ),
    "encoding": lambda: sequential(
        (1,), flat(L.CategoryEncoding(VOCABULARY, output_mode="one_hot")), dtype="int32"
    ),
    "noise": lambda: sequential(
        VECTOR,
        L.GaussianNoise(1.0),
        L.Dense(6),
        L.Dropout(0.5),
        flat(L.ActivityRegularization(0.1)),
    ),
    "spatial-dropout": lambda: sequential(IMAGE, L.SpatialDropout2D(0.5), L.Conv2D(2, 3)),
    "repeat-permute": lambda: sequential(
        VECTOR, L.RepeatVector(3), L.Permute((2, 1)), L.Dense(2), L.Reshape((2, 5))
    ),
    "shared": lambda: graph(VECTOR, shared),
    "nested": lambda: graph(VECTOR, nested),
    "siamese": lambda: graph(VECTOR, siamese),
    "operators": lambda: graph(VECTOR, operators),
    "einsum": lambda: graph(SERIES, einsum),
    "gram": lambda: graph(SERIES, dots),
    "highway": lambda: graph(VECTOR, highway),
    "logits": lambda: keras.Sequential([keras.Input(VECTOR), L.Dense(6, "relu"), L.Dense(3)]),
    "sigmoid": lambda: keras.Sequential([keras.Input(VECTOR), L.Dense(1, "sigmoid")]),
}


def grown(model: keras.Model) -> keras.Model:
    """The model with weights and moments away from their trivial initial values."""
    random = np.random.default_rng(1)
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        if "variance" in variable.name:
            variable.assign(random.uniform(0.5, 2.0, value.shape).astype(value.dtype))
        elif np.issubdtype(value.dtype, np.floating):
            variable.assign(value + 0.1 * random.normal(size=value.shape).astype(value.dtype))
    return model


def records(model: keras.Model, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Records and labels that a model can take."""
    random = np.random.default_rng(5)
    (x,) = model.inputs
    shape = (n, *x.shape[1:])
    y = np.arange(n) % 2
    if "int" in str(x.dtype):
        found = random.integers(0, VOCABULARY, shape).astype(np.int32)
        found[:, -2:] = 0  # padding, where the model has a mask
        return found, y
    found = random.normal(size=shape).astype(np.float32)
    if len(shape) == 3:
        found[0, -3:] = 0  # masked steps
    return found, y


def answers(target, x, y) -> dict[str, np.ndarray]:
    """What a target computes, by "logits", "layer:NAME" and "gradient:NAME"."""
    import jaxmeter as jm

    out = target(x)
    return {
        "logits": np.asarray(out.logits),
        **{f"layer:{name}": np.asarray(value) for name, value in out.layers.items()},
        **{
            f"gradient:{name}": np.asarray(value)
            for name, value in jm.per_example_gradients(target, x, y).items()
        },
    }


def main(folder: Path) -> None:
    import jaxmeter as jm

    assert keras.backend.backend() == "tensorflow"
    for path in sorted(folder.glob("*.keras")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target = jm.load_target(path)
                x, y = records(keras.models.load_model(path, compile=False))
                found = answers(target, x, y)
            route, difference = target.spec.source.route, target.spec.source.difference
            found["order"] = np.array([*target.spec.layers, "|", *target.spec.variables])
        except Exception as error:
            found, route, difference = {"error": np.array(repr(error))}, "", -1.0
        np.savez(path.with_suffix(".npz"), route=route, difference=difference, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
