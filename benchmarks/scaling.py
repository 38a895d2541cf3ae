"""What extracting signals costs against the number of records, and compiling against the batch.

    python benchmarks/scaling.py [--repeats 7] [--largest 64000]

First `jm.extract` of the signals of ML Privacy Meter's tutorial (last layer's gradients, logits,
loss, label) of a small network and of its AlexNet, from 1,000 records to 64,000: in each repeat all
numbers once, in alternating order. `seconds ~ records ** slope` is fitted to the medians by least
squares in logs; a straight line through them gives the constant part and the rate. The first
thousand's padding to a whole batch is part of what it costs.

Then the seconds that XLA compiles, batch by batch, for a network with max-pooling and one without.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import nets
import numpy as np
import timing
from keras import layers

import jaxmeter as jm
from jaxmeter.signals.program import of_batch

BATCHES = (8, 64, 512, 4096)


def dense() -> keras.Model:
    """MLP 600-256-100."""
    hidden = layers.Dense(256, "tanh")
    return keras.Sequential([layers.Input((600,)), hidden, layers.Dense(100, "softmax")])


def pooled() -> keras.Model:
    """Two convolutions of 16 and 32 channels, max-pooling of 2x2 and of overlapping 3x3."""
    return keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(3, strides=2),
            layers.Flatten(),
            layers.Dense(10, "softmax"),
        ]
    )


def records_of(target: jm.Target, n: int) -> jm.Records:
    """Random ones."""
    random = np.random.default_rng(0)
    shape: tuple = (n, *(target.spec.input_shape or ()))
    x = random.normal(size=shape).astype(np.float32)
    y = random.integers(0, target.spec.n_classes or 2, n)
    return jm.Records(x, y, np.arange(n) < n // 2)


def extraction(make: Callable[[], keras.Model], largest: int, repeats: int) -> None:
    """Prints seconds against records, and the fits."""
    target = jm.load_target(make())
    spec = jm.signals.white_box(target)
    records = records_of(target, largest)
    sizes = [n for n in (1000 * 2**k for k in range(20)) if n <= largest]
    parts = {n: jm.Records(*(part[:n] for part in records)) for n in sizes}
    runs = {str(n): partial(jm.extract, target, part, spec) for n, part in parts.items()}
    seconds = list(timing.medians(runs, repeats).values())
    todo = jm.signals.plan(target, records.x, spec)
    print(f"\n{make.__doc__} {todo.batch} records at once, {todo.record_bytes} bytes a record")
    print(f"{'records':>10}{'ms':>10}{'us a record':>14}")
    for n, found in zip(sizes, seconds, strict=True):
        print(f"{n:10}{1e3 * found:10.1f}{1e6 * found / n:14.2f}")
    slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    rate, constant = np.polyfit(sizes, seconds, 1, w=1 / np.array(seconds))
    off = max(abs(np.polyval((rate, constant), sizes) / seconds - 1))
    print(f"seconds ~ records ** {slope:.3f} (1 is linear)")
    print(
        f"{1e6 * rate:.2f} us a record and {1e3 * constant:.1f} ms; at most {off:.0%} off the line",
        flush=True,
    )


def compilation(repeats: int) -> None:
    """Prints seconds of compilation by batch."""
    print(
        "\nseconds to compile, tracing left out; medians, and the largest batch over the smallest "
        "and over 64, which chunks have a loop for"
    )
    titles = "".join(f"{f'/{batch}':>8}" for batch in BATCHES[:2])
    print(f"{'batch':34}" + "".join(f"{batch:9}" for batch in BATCHES) + titles)
    for make in (dense, pooled):
        print(make.__doc__)
        target = jm.load_target(make())
        spec = jm.signals.white_box(target).resolved(target)

        def signals(target, x, y, spec=spec):
            return of_batch(target, x, y, spec=spec)

        def gradients(target, x, y):
            return jm.per_example_gradients(target, x, y)

        def batch_gradient(target, x, y):
            return jm.directions.mean_gradient(target, x, y)

        for fun in (signals, gradients, batch_gradient):
            seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
            for turn in range(repeats):
                for batch in BATCHES[:: -1 if turn % 2 else 1]:
                    part = records_of(target, batch)
                    program = jax.jit(fun).lower(target, jnp.asarray(part.x), jnp.asarray(part.y))
                    start = time.perf_counter()
                    program.compile()
                    seconds[batch].append(time.perf_counter() - start)
                    jax.clear_caches()  # else the second compilation is a look-up
            found = [statistics.median(times) for times in seconds.values()]
            cells = "".join(f"{value:9.2f}" for value in found)
            ratios = "".join(f"{found[-1] / base:8.2f}" for base in found[:2])
            print(f"  {fun.__name__:32}{cells}{ratios}", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--largest", type=int, default=64_000, help="records")
    arguments = parser.parse_args()
    print(timing.machine(), timing.load(), sep="\n")
    for make in (dense, nets.alexnet):
        extraction(make, arguments.largest, arguments.repeats)
    compilation(arguments.repeats)
    print(timing.load())


if __name__ == "__main__":
    main()
