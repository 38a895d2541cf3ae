"""Fitting the inference model on AlexNet's signals, end to end, beside ML Privacy Meter (2020).

    python benchmarks/fitting.py [--records 5000] [--epochs 10] [--repeats 7]

The setting of ML Privacy Meter's tutorial: AlexNet for 32x32 images, the last layer's gradients,
output, loss and label, 10 epochs in batches of 100 (50 members, 50 non-members), one network, its
encoder 256-128-64, 100 functions of a gradient's row, dropout 0.2. What jaxmeter's model leaves out
is ML Privacy Meter's Dense 2024-512-256 behind the row functions, in place of which it has one of
16 units; see `docs/design.md`. A second row has jaxmeter's own defaults, an ensemble of 10.

"Examples a second" counts a record once an epoch. ML Privacy Meter computes a batch's signals anew
in every epoch, in a loop of gradient tapes; jaxmeter computes them once, so its end-to-end rate is
examples of all epochs over the seconds of extraction and fit together. Everything warm; the first
fit's time, which includes compilation, is printed too. The target's weights are random, which
changes nothing about the time.
"""

import argparse
import os
import time
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import nets
import numpy as np
import optax
import timing

import jaxmeter as jm

ORIGINAL = 39  # examples a second of ML Privacy Meter on two CPU cores, 25.7 ms each
TAPE = 15  # ms a record, its signals alone


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    n, epochs = arguments.records, arguments.epochs
    print(timing.machine(), timing.load(), sep="\n")
    keras.utils.set_random_seed(0)
    target = jm.load_target(nets.alexnet())
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 32, 32, 3)).astype(np.float32)
    records = jm.Records(x, random.integers(0, 100, n), np.arange(n) % 2 == 0)
    extract = partial(jm.extract, target, records, jm.signals.white_box(target))
    signals = extract()

    fits = {}
    for name, attack, optimizer, batch in (
        (
            "ML Privacy Meter's sizes",
            jm.inference_model(members=1, widths=(256, 128, 64), dropout=0.2, kernels=100),
            optax.adam(1e-4),
            100,
        ),
        ("jaxmeter's defaults", jm.inference_model(), None, 128),
    ):
        fit = partial(
            jm.fit,
            jax.random.key(0),
            attack,
            signals,
            records.is_member,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch,
        )
        fits[name] = lambda fit=fit: fit().params
    first = {}
    for name, run in fits.items():
        start = time.perf_counter()
        jax.block_until_ready(run())
        first[name] = time.perf_counter() - start
    seconds = timing.medians({"extract": extract, **fits}, arguments.repeats, warm=1)

    print(f"\n{n} records, {epochs} epochs; medians of {arguments.repeats}")
    each = 1e3 * seconds["extract"] / n
    print(f"signals: {seconds['extract']:.2f} s, {each:.2f} ms a record (a loop of tapes: {TAPE})")
    print(f"{'':28}{'first s':>9}{'fit s':>9}{'end to end, examples a second':>31}{'x 39':>9}")
    for name in fits:
        rate = n * epochs / (seconds["extract"] + seconds[name])
        cells = f"{first[name]:9.2f}{seconds[name]:9.2f}{rate:31.0f}{rate / ORIGINAL:9.0f}"
        print(f"{name:28}{cells}")
    print(timing.load())


if __name__ == "__main__":
    main()
