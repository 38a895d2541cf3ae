"""Learned attacks against the loss threshold on Location-30, the target of ML Privacy Meter's kind.

    python benchmarks/location30.py --data location30.npz [--seeds 5]

For every seed: draw 1600 of the 5010 records as members, train a 446-512-256-128-30 tanh network
on them (initial weights N(0, 0.01), Adam 1e-3, batches of 64, 60 epochs), give the attacker 800
members and 800 non-members, hold out 800 and 800 others, and measure on those. Prints one line a
seed and the means. `--data` is an npz file with x [5010, 446] of 0 and 1 and y [5010].

For comparison, on one such target ML Privacy Meter 2020 itself reached AUC .885 and TPR@1% .098
white box in 20 minutes, .69 to .79 black box; boosted trees .878 (sorted logits and loss), and .912
and .207 with all layers' log gradient and activation norms.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import numpy as np

import jaxmeter as jm


def train_target(x: np.ndarray, y: np.ndarray, seed: int) -> keras.Model:
    """The target, trained on all of x and y."""
    keras.utils.set_random_seed(seed)
    initial = [keras.initializers.RandomNormal(stddev=0.01, seed=seed + i) for i in range(4)]
    model = keras.Sequential(
        [keras.layers.Input(x.shape[1:])]
        + [
            keras.layers.Dense(width, activation=activation, kernel_initializer=init)
            for width, activation, init in zip(
                (512, 256, 128, 30), ("tanh", "tanh", "tanh", "softmax"), initial, strict=True
            )
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=64, epochs=60, verbose=0)
    return model


def records_of(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[keras.Model, jm.Records]:
    """A target and 1600 members and 1600 non-members of it."""
    order = np.random.default_rng(seed).permutation(len(y))
    members, others = order[:1600], order[1600:3200]
    model = train_target(x[members], y[members], seed)
    return model, jm.Records.of(members=(x[members], y[members]), nonmembers=(x[others], y[others]))


def attacks(target: jm.Target) -> dict[str, jm.SignalSpec]:
    """Name -> what the learned attack reads."""
    white = jm.signals.white_box(target)
    norms = jm.SignalSpec(gradients=white.gradients, gradient_norm=True)
    return {"black box": jm.SignalSpec(), "white box": white, "white box + norms": norms}


def measure(x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, tuple[float, float, float]]:
    """Attack -> (AUC, TPR at 1% FPR, seconds to fit and score) on 800 + 800 held-out records."""
    model, records = records_of(x, y, seed)
    target = jm.load_target(model)
    key = jax.random.key(seed)
    # A few records of Location-30 occur twice; one on both sides has no defined membership.
    fit, held = jm.split(key, records, (0.5, 0.5), overlap="drop")
    found = {}
    specs = {name: spec.resolved(target) for name, spec in attacks(target).items()}
    every = specs["black box"].union(specs["white box + norms"])
    known, unknown = (jm.extract(target, part, every) for part in (fit, held))
    loss = jm.evaluate(jm.scores.negative_loss(unknown), held.is_member)
    found["loss threshold"] = (loss.auc, loss.tpr_at(0.01), 0.0)
    for name, spec in specs.items():
        start = time.perf_counter()
        attack = jm.inference_model()
        fitted = jm.fit(key, attack, known.only(spec), fit.is_member, folds=5)
        scores = attack.score(fitted.params, unknown.only(spec))
        result = jm.evaluate(scores, held.is_member)
        found[name] = (result.auc, result.tpr_at(0.01), time.perf_counter() - start)
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Learned attacks on Location-30.")
    parser.add_argument("--data", required=True, help="location30.npz with x and y")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    with np.load(arguments.data) as archive:
        x, y = archive["x"].astype(np.float32), archive["y"].astype(np.int32)
    rows = []
    for seed in range(arguments.seeds):
        rows.append(measure(x, y, seed))
        cells = [f"{k} {a:.3f}/{t:.3f} ({s:.1f} s)" for k, (a, t, s) in rows[-1].items()]
        print(f"seed {seed}: " + ", ".join(cells), flush=True)
    print(f"\n{'mean of ' + str(len(rows)) + ' seeds':20}{'AUC':>8}{'TPR@1%':>9}{'seconds':>9}")
    for name in rows[0]:
        auc, tpr, seconds = np.mean([row[name] for row in rows], axis=0)
        print(f"{name:20}{auc:8.3f}{tpr:9.3f}{seconds:9.1f}")


if __name__ == "__main__":
    main()
