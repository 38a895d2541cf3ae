"""Every attack with reference models on Location-30, each model attacked with the others.

    python benchmarks/location30_attacks.py --logits logits.npz [--targets 8]

`--logits` is an npz file with z [k, 5010, 30], the logits of k reference models, norms [k, 5010] of
the loss's gradients in their first layer, was_member [k, 5010], y [5010] and x [5010, 446]. Prints
mean and spread over targets of the AUC, and the mean TPR at 0.1% and 1% FPR, on all records. Scores
that take a population are measured on 3,510 records; it is the other 1,500, less those that the
target was trained on.
"""

import argparse
import warnings
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from numpy.typing import NDArray

import jaxmeter as jm
from jaxmeter import logits, reference

KEY = jax.random.key(0)
Score = Callable[..., NDArray]


def row(title: str, scores: NDArray, was_member: NDArray) -> None:
    """Prints a line of the table."""
    results = [jm.evaluate(s, m) for s, m in zip(scores, was_member, strict=True)]
    auc = np.array([result.auc for result in results])
    low, high = (np.mean([result.tpr_at(fpr) for result in results]) for fpr in (0.001, 0.01))
    print(f"{title:42}{auc.mean():7.3f} ({auc.std(ddof=1):.3f}){low:8.3f}{high:8.3f}", flush=True)


def table(
    z: NDArray,
    norms: NDArray,
    y: NDArray,
    x: NDArray,
    was_member: NDArray,
    targets: list[int],
) -> None:
    """Prints every attack on these targets."""
    odds, log_p = logits.log_odds(z, y), logits.log_probability(z, y)
    margin, taylor = logits.margin(z, y), logits.log_taylor_probability(z, y)
    lira, own = reference.lira, partial(reference.lira, variance="own")
    two_sided = reference.lira_offline_two_sided
    chosen = reference.choose_a(log_p, was_member)
    truth = was_member[targets]
    print(f"{'attack':42}{'AUC (spread)':>15}{'TPR@.1%':>8}{'TPR@1%':>8}")
    row("loss, no references", log_p[targets], truth)
    attacks: list[tuple[str, Score, NDArray]] = [
        ("lira", lira, odds),
        ("lira, margin", lira, margin),
        ("lira, own variance", own, odds),
        ("lira, first layer's gradient norm", lira, -np.log(norms)),
        ("lira_joint, log-odds and margin", reference.lira_joint, np.stack([odds, margin], axis=1)),
        ("bavaria", reference.bavaria, odds),
        ("log_ratio", reference.log_ratio, log_p),
        ("log_ratio, Taylor softmax", reference.log_ratio, taylor),
        ("lira_offline", reference.lira_offline, odds),
        ("lira_offline, own variance", partial(reference.lira_offline, variance="own"), odds),
        ("lira_offline_two_sided", two_sided, odds),
        ("lira_offline_two_sided, own variance", partial(two_sided, variance="own"), odds),
        ("bavaria_offline", reference.bavaria_offline, odds),
        ("log_ratio_offline, a = 1", reference.log_ratio_offline, log_p),
        (
            f"log_ratio_offline, a = {chosen} (chosen)",
            partial(reference.log_ratio_offline, a=chosen),
            log_p,
        ),
        ("base_offline", reference.base_offline, log_p),
        ("attack_r", reference.attack_r, log_p),
        ("difficulty_calibration, loss", reference.difficulty_calibration, log_p),
        ("difficulty_calibration, log-odds", reference.difficulty_calibration, odds),
        (
            "shokri, outputs and class",
            partial(reference.shokri, KEY, y=y),
            outputs(z, log_p, odds),
        ),
    ]
    for title, score, signals in attacks:
        row(title, reference.leave_out(score, signals, was_member, targets=targets), truth)
    against_population(log_p, margin, y, x, was_member, targets)


def outputs(z: NDArray, log_p: NDArray, odds: NDArray) -> NDArray:
    """Features for Shokri's classifier: largest log-probabilities, the class's own, log-odds."""
    every = np.asarray(jax.nn.log_softmax(z))
    largest = -np.sort(-every, axis=-1)[..., :5]
    return np.concatenate([largest, log_p[..., None], odds[..., None]], axis=-1).astype(np.float32)


def against_population(
    log_p: NDArray,
    margin: NDArray,
    y: NDArray,
    x: NDArray,
    was_member: NDArray,
    targets: list[int],
) -> None:
    """The attacks that need known non-members."""
    order = np.random.default_rng(0).permutation(len(y))
    apart, held = np.sort(order[:1500]), np.sort(order[1500:])
    population = (log_p[:, apart], was_member[:, apart])
    signals, seen = log_p[:, held], was_member[:, held]
    chosen = reference.choose_a(signals, seen, population=population)
    ranked: list[tuple[str, Score]] = [
        ("rmia, gamma = 1", partial(reference.rmia, gamma=1.0)),
        ("rmia, gamma = 2", reference.rmia),
        (
            f"rmia_offline, a = {chosen} (chosen)",
            partial(reference.rmia_offline, a=chosen),
        ),
    ]
    for title, score in ranked:
        scores = reference.leave_out(score, signals, seen, population=population, targets=targets)
        row(title, scores, seen[targets])
    features = np.concatenate([x, np.eye(y.max() + 1)[y]], axis=1).astype(np.float32)
    learned: list[tuple[str, Score]] = [
        ("quantile_gaussian, margin", reference.quantile_gaussian),
        ("quantile_pinball, margin, level 0.99", reference.quantile_pinball),
    ]
    for title, score in learned:
        found = []
        for t in targets:
            z = apart[~was_member[t, apart]]
            found.append(score(KEY, margin[t, held], features[held], margin[t, z], features[z]))
        row(title, np.array(found), seen[targets])


def main() -> None:
    """Reads, attacks and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logits", required=True)
    parser.add_argument("--targets", type=int, help="how many models to attack; all if not given")
    arguments = parser.parse_args()
    with np.load(arguments.logits) as archive:
        arrays = {name: archive[name] for name in ("z", "norms", "y", "x", "was_member")}
    warnings.simplefilter("once", reference.ReferenceWarning)
    table(**arrays, targets=list(range(arguments.targets or len(arrays["z"]))))


if __name__ == "__main__":
    main()
