"""The networks that are measured, in Keras; `torch_nets` has each again in PyTorch.

They end in a softmax, as trained classifiers do. Images are channels-last here and channels-first
in PyTorch, each library's own way. Padding is written out where Keras's "same" would be lopsided,
which PyTorch cannot say; else the numbers could not be compared.
"""

from collections.abc import Callable

import keras
from keras import layers


def mlp() -> keras.Model:
    """MLP 600-1024-512-256-100, the Purchase-100 network."""
    hidden = [layers.Dense(size, activation="tanh") for size in (1024, 512, 256)]
    return keras.Sequential([layers.Input((600,)), *hidden, layers.Dense(100, "softmax")])


def alexnet() -> keras.Model:
    """AlexNet for 32x32 images, the layers of ML Privacy Meter's tutorial."""

    def conv(features: int, size: int, padding: int, stride: int = 1) -> list[keras.Layer]:
        convolution = layers.Conv2D(features, size, strides=stride, activation="relu")
        return [layers.ZeroPadding2D(padding), convolution]

    return keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            *conv(64, 11, padding=5, stride=4),
            layers.MaxPooling2D(),
            *conv(192, 5, padding=2),
            layers.MaxPooling2D(),
            *conv(384, 3, padding=1),
            *conv(256, 3, padding=1),
            *conv(256, 3, padding=1),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(100, "softmax"),
        ]
    )


def resnet() -> keras.Model:
    """ResNet-8 of MLPerf Tiny: 16, 32 and 64 channels with BatchNorm."""

    def conv(x: keras.KerasTensor, features: int, size: int, stride: int = 1) -> keras.KerasTensor:
        x = layers.ZeroPadding2D(size // 2)(x) if stride > 1 and size > 1 else x
        padding = "valid" if stride > 1 else "same"
        return layers.Conv2D(features, size, strides=stride, padding=padding)(x)

    def block(x: keras.KerasTensor, features: int, stride: int) -> keras.KerasTensor:
        y = layers.ReLU()(layers.BatchNormalization()(conv(x, features, 3, stride)))
        y = layers.BatchNormalization()(conv(y, features, 3))
        x = conv(x, features, 1, stride) if stride > 1 else x
        return layers.ReLU()(layers.Add()([x, y]))

    start = layers.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(conv(start, 16, 3)))
    for features, stride in ((16, 1), (32, 2), (64, 2)):
        x = block(x, features, stride)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(start, layers.Dense(10, "softmax")(x))


def separable() -> keras.Model:
    """DS-CNN of MLPerf Tiny: four depthwise-separable convolutions, 49x10 inputs."""
    stack: list[keras.Layer] = [
        layers.ZeroPadding2D(((4, 5), (1, 1))),
        layers.Conv2D(64, (10, 4), strides=2),
        layers.BatchNormalization(),
        layers.ReLU(),
    ]
    for _ in range(4):
        for convolution in (layers.DepthwiseConv2D(3, padding="same"), layers.Conv2D(64, 1)):
            stack += [convolution, layers.BatchNormalization(), layers.ReLU()]
    ending = [layers.GlobalAveragePooling2D(), layers.Dense(12, "softmax")]
    return keras.Sequential([layers.Input((49, 10, 1)), *stack, *ending])


def lstm() -> keras.Model:
    """LSTM of 64 units, 50 steps of 32 features."""
    ending = layers.Dense(10, "softmax")
    return keras.Sequential([layers.Input((50, 32)), layers.LSTM(64), ending])


def transformer() -> keras.Model:
    """Transformer of two blocks: 32 tokens of 1000, 64 wide, 2 heads, MLP of 256."""
    start = layers.Input((32,), dtype="int32")
    x = layers.Embedding(1000, 64)(start)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 32)(y, y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(64)(layers.Dense(256, "gelu")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(start, layers.Dense(10, "softmax")(x))


NETS: dict[str, Callable[[], keras.Model]] = {
    make.__name__: make for make in (alexnet, resnet, separable, mlp, lstm, transformer)
}
