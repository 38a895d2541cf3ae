"""What per-example gradients cost beside the batch gradient, and beside a loop over records.

    python benchmarks/gradients.py [--records 128] [--repeats 7]

Everything is jitted and warm; every repeat times all variants once, one after another, so that a
noisy machine disturbs them alike. Prints medians and ratios to the batch gradient of the same
target. The loop calls a jitted single-record gradient of all layers, record by record.
"""

import argparse
import os
import statistics
import time

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


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.devices()[0]}, {arguments.records} records a batch")
    for make in (mlp, cnn):
        target = jm.load_target(make())
        random = np.random.default_rng(0)
        shape = (arguments.records, *(target.spec.input_shape or ()))
        x = jnp.asarray(random.normal(size=shape), jnp.float32)
        y = jnp.asarray(random.integers(0, target.spec.n_classes or 2, arguments.records))
        runs = variants(target, x, y)
        for run in runs.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.repeats):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(times) for name, times in seconds.items()}
        print(f"\n{make.__doc__}\n{'':34}{'ms':>9}{'x batch':>9}")
        for name, time_ in median.items():
            print(f"{name:34}{1e3 * time_:9.1f}{time_ / median['batch gradient']:9.2f}")


if __name__ == "__main__":
    main()
