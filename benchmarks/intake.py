"""What the ONNX route costs beside the native one, on the same models with the same weights.

    python benchmarks/intake.py [--records 128] [--repeats 9]

Each model is built twice, in Keras 3 on JAX (native route) and in tf_keras (through ONNX), with
equal weights, and loaded by both. Everything is jitted and warm; every repeat times both routes,
one after another, in alternating order. Prints medians and their ratios, ONNX over native.
"""

import argparse
import os
import statistics
import time
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np

import jaxmeter as jm
from jaxmeter.gradients.per_example import cross_entropy


def mlp(k):
    """MLP 600-1024-512-256-100."""
    L = k.layers
    hidden = [L.Dense(size, activation="tanh") for size in (1024, 512, 256)]
    return k.Sequential([L.Input((600,)), *hidden, L.Dense(100, activation="softmax")])


def cnn(k):
    """CNN, 32x32x3: three convolutions of 32, 64 and 64 channels with BatchNorm."""
    L = k.layers
    layers = []
    for channels in (32, 64, 64):
        layers += [L.Conv2D(channels, 3, padding="same"), L.BatchNormalization(), L.ReLU()]
        layers += [L.MaxPooling2D()]
    return k.Sequential(
        [L.Input((32, 32, 3)), *layers, L.Flatten(), L.Dense(10, activation="softmax")]
    )


def lstm(k):
    """LSTM, 50 steps of 32 features, 64 units."""
    L = k.layers
    return k.Sequential([L.Input((50, 32)), L.LSTM(64), L.Dense(10, activation="softmax")])


def runs(target: jm.Target, x: jax.Array, y: jax.Array) -> dict:
    """Name -> a function of no arguments that waits for its result."""

    @jax.jit
    def forward(params, x):
        return target.apply(params, target.state, x).logits

    @jax.jit
    def batch_gradient(params, x, y):
        return jax.grad(lambda p: cross_entropy(target.apply(p, target.state, x).logits, y).mean())(
            params
        )

    found = {
        "forward": lambda: forward(target.params, x),
        "batch gradient": lambda: batch_gradient(target.params, x, y),
        "per-example norms": lambda: jm.gradient_norms(target, x, y),
        "per-example gradients": lambda: jm.per_example_gradients(target, x, y),
    }
    return {name: lambda run=run: jax.block_until_ready(run()) for name, run in found.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    try:
        import tf_keras
    except ImportError:
        print("tf_keras is not installed, so there is no second route: pip install .[tensorflow]")
        return
    print(f"jax {jax.__version__} on {jax.devices()[0]}, {arguments.records} records a batch")
    print(f"{'':36}{'native ms':>11}{'ONNX ms':>11}{'ratio':>8}")
    for make in (mlp, cnn, lstm):
        native, old = make(keras), make(tf_keras)
        old.set_weights([np.asarray(w) for w in native.get_weights()])
        targets = [jm.load_target(native), jm.load_target(old)]
        random = np.random.default_rng(0)
        shape = (arguments.records, *(targets[0].spec.input_shape or ()))
        x = jnp.asarray(random.normal(size=shape), jnp.float32)
        y = jnp.asarray(random.integers(0, targets[0].spec.n_classes or 2, arguments.records))
        difference = jnp.max(jnp.abs(targets[0](x).logits - targets[1](x).logits))
        print(f"{make.__doc__} Largest difference of logits {difference:.1e}.")
        both = [runs(target, x, y) for target in targets]
        for name in both[0]:
            times: list[list[float]] = [[], []]
            for repeat in range(arguments.repeats + 1):
                for i in (0, 1) if repeat % 2 else (1, 0):
                    start = time.perf_counter()
                    both[i][name]()
                    if repeat:  # the first compiles
                        times[i].append(time.perf_counter() - start)
            a, b = map(statistics.median, times)
            print(f"  {name:34}{1e3 * a:11.2f}{1e3 * b:11.2f}{b / a:8.2f}")


if __name__ == "__main__":
    main()
