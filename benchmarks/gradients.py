"""What per-example gradients cost beside the batch gradient, and beside a loop over records.

    python benchmarks/gradients.py [--records 128] [--repeats 7] [--only WORD]

Everything is jitted and warm; every repeat times all variants once, one after another, so that a
noisy machine disturbs them alike. Prints medians and ratios to the batch gradient of the same
target. The loop calls a jitted single-record gradient of all layers, record by record.

Where a net has convolutions, two more columns say what the same program takes with XLA's own
convolutions and max-poolings (`jaxmeter.lowering` off) and how many times longer that is. A dash
stands where that was not run: XLA's per-record gradients of depthwise layers want 50 GB.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np

import jaxmeter as jm
from jaxmeter.gradients import cross_entropy


def mlp() -> keras.Model:
    """The Purchase-100 network, 600-1024-512-256-100."""
    sizes = (1024, 512, 256)
    layers = [keras.layers.Dense(size, activation="tanh") for size in sizes]
    return keras.Sequential([keras.layers.Input((600,)), *layers, keras.layers.Dense(100)])


def cnn() -> keras.Model:
    """Three convolutions of 32, 64 and 64 channels."""
    return keras.Sequential(
        [
            keras.layers.Input((32, 32, 3)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def alexnet() -> keras.Model:
    """AlexNet for 32x32 images, the layers of ML Privacy Meter's tutorial."""

    def conv(features: int, size: int, stride: int = 1, padding: int = 1) -> list[keras.Layer]:
        return [
            keras.layers.ZeroPadding2D(padding),
            keras.layers.Conv2D(features, size, strides=stride, activation="relu"),
        ]

    return keras.Sequential(
        [
            keras.layers.Input((32, 32, 3)),
            *conv(64, 11, stride=4, padding=5),
            keras.layers.MaxPooling2D(),
            *conv(192, 5, padding=2),
            keras.layers.MaxPooling2D(),
            *conv(384, 3),
            *conv(256, 3),
            *conv(256, 3),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(100),
        ]
    )


def resnet() -> keras.Model:
    """ResNet-8 of 16, 32 and 64 channels."""
    layers = keras.layers

    def block(x: keras.KerasTensor, features: int, stride: int) -> keras.KerasTensor:
        y = layers.Conv2D(features, 3, strides=stride, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(features, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization()(y)
        if stride > 1:
            x = layers.Conv2D(features, 1, strides=stride, use_bias=False)(x)
        return layers.ReLU()(layers.Add()([x, y]))

    x = start = layers.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for features, stride in ((16, 1), (32, 2), (64, 2)):
        x = block(x, features, stride)
    return keras.Model(start, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def separable() -> keras.Model:
    """Depthwise-separable convolutions of 32, 64 and 128 channels."""
    layers = [keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")]
    for features, stride in ((64, 1), (128, 2), (128, 1)):
        depthwise = keras.layers.DepthwiseConv2D(3, strides=stride, padding="same")
        pointwise = keras.layers.Conv2D(features, 1, activation="relu")
        layers += [depthwise, pointwise]
    ending = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential([keras.layers.Input((32, 32, 3)), *layers, *ending])


def as_it_is(fun: Callable) -> Callable:
    """In place of `lowered`."""
    return fun


@contextlib.contextmanager
def native() -> Iterator[None]:
    """Programs traced inside keep XLA's own convolutions."""
    gradients: Any = sys.modules["jaxmeter.gradients"]
    intake: Any = sys.modules["jaxmeter.intake.keras_jax"]
    kept = gradients.lowered, intake.lowered
    gradients.lowered = intake.lowered = as_it_is
    try:
        yield
    finally:
        gradients.lowered, intake.lowered = kept


def variants(target: jm.Target, x: jax.Array, y: jax.Array) -> dict:
    """Name -> a function of no arguments that waits for its result."""
    last = target.spec.trainable_layers[-1:]

    @jax.jit
    def batch_gradient(params, x, y):
        def loss(params):
            return cross_entropy(target.apply(params, target.state, x).logits, y).mean()

        return jax.grad(loss)(params)

    @jax.jit
    def forward(params, x):
        return target.apply(params, target.state, x).logits

    single = jax.jit(lambda target, x, y: jm.per_example_gradients(target, x, y))
    spec = jm.SignalSpec(gradients=last).resolved(target)
    signals = jax.jit(
        lambda target, x, y: jax.vmap(lambda x, y: jm.of_example(target, x, y, spec))(x, y)
    )
    plain = jax.jit(
        jax.vmap(
            jax.grad(
                lambda params, x, y: cross_entropy(
                    target.apply(params, target.state, x[None]).logits[0], y
                )
            ),
            in_axes=(None, 0, 0),
        )
    )

    def loop():
        return [single(target, x[i : i + 1], y[i : i + 1]) for i in range(len(y))]

    runs = {
        "batch gradient": lambda: batch_gradient(target.params, x, y),
        "forward pass": lambda: forward(target.params, x),
        "per example, all layers": lambda: jm.per_example_gradients(target, x, y),
        "jax.vmap(jax.grad), all layers": lambda: plain(target.params, x, y),
        "norms, all layers": lambda: jm.gradient_norms(target, x, y),
        "per example, last layer": lambda: jm.per_example_gradients(target, x, y, params=last),
        "last-layer signals, factored": lambda: signals(target, x, y),
        "loop, all layers": loop,
    }
    return {name: lambda run=run: jax.block_until_ready(run()) for name, run in runs.items()}


def traced(target: jm.Target, x: jax.Array, y: jax.Array, skip: tuple[str, ...]) -> dict:
    """The variants, compiled."""
    runs = {name: run for name, run in variants(target, x, y).items() if name not in skip}
    for run in runs.values():
        run()
    return runs


def measured(runs: dict, repeats: int) -> dict:
    """Median seconds of each, taken in turns."""
    seconds: dict = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(times) for key, times in seconds.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="nets whose description contains this")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.devices()[0]}, {arguments.records} records a batch")
    for make in (mlp, cnn, alexnet, resnet, separable):
        if arguments.only not in (make.__doc__ or ""):
            continue
        model = make()
        target = jm.load_target(model)
        random = np.random.default_rng(0)
        shape = (arguments.records, *(target.spec.input_shape or ()))
        x = jnp.asarray(random.normal(size=shape), jnp.float32)
        y = jnp.asarray(random.integers(0, target.spec.n_classes or 2, arguments.records))
        runs = {("ours", name): run for name, run in traced(target, x, y, ()).items()}
        if make is not mlp:
            skip = ["loop, all layers"]
            if make is separable:
                skip += ["per example, all layers", "norms, all layers"]
                skip += ["jax.vmap(jax.grad), all layers"]
            with native():
                plain = jm.load_target(model)
                runs |= {("XLA", n): run for n, run in traced(plain, x, y, tuple(skip)).items()}
        median = measured(runs, arguments.repeats)
        title = f"{'':34}{'ms':>9}{'x batch':>9}{'XLA, ms':>9}{'ratio':>7}"
        print(f"\n{make.__doc__}\n{title if make is not mlp else title[:52]}")
        for who, name in runs:
            if who == "ours":
                ours, theirs = median[who, name], median.get(("XLA", name))
                line = f"{name:34}{1e3 * ours:9.1f}{ours / median['ours', 'batch gradient']:9.2f}"
                both = f"{1e3 * theirs:9.1f}{theirs / ours:7.1f}" if theirs else f"{'-':>9}{'-':>7}"
                print(line + (both if make is not mlp else ""), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
