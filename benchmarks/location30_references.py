"""Reference models of Location-30, the recipe of ML Privacy Meter's kind of target.

    python benchmarks/location30_references.py --data location30.npz [--k 32] [--logits logits.npz]

446-512-256-128-30 tanh, initial weights N(0, 0.01), Adam 1e-3, batches of 64, 60 epochs, each model
on 1600 of the 5010 records, drawn at random, or (`--balanced`) on half of them. Prints seconds and
mean accuracies on members and on others. `--data` is an npz file with x [5010, 446] of 0 and 1 and
y [5010]. `--logits` keeps what `location30_attacks.py` reads: z [k, n, classes], norms [k, n]
of the first layer's gradients, y, x, was_member.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxmeter import Records, SignalSpec, shadow

SIZES = (446, 512, 256, 128, 30)
RECIPE = shadow.RecipeConfig(optimizer="adam", learning_rate=1e-3, epochs=60, batch_size=64)
NORM = SignalSpec(outputs=(), loss=False, label=False, gradient_norm=("dense_1",))


def architecture(sizes: tuple[int, ...] = SIZES) -> shadow.Architecture:
    """The network."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params: dict[str, jax.Array] = {}
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
            kernel = 0.01 * jax.random.normal(jax.random.fold_in(key, i), (a, b))
            params |= {f"dense_{i}/kernel": kernel, f"dense_{i}/bias": jnp.zeros(b)}
        return params

    def apply(params: dict[str, jax.Array], state: dict, x: jax.Array) -> jax.Array:
        last = len(sizes) - 1
        for i in range(1, last + 1):
            x = x @ params[f"dense_{i}/kernel"] + params[f"dense_{i}/bias"][None]
            x = jnp.tanh(x) if i < last else x
        return x

    return shadow.of_functions(init, apply, input_shape=sizes[:1])


def trained(
    x: NDArray,
    y: NDArray,
    k: int = 32,
    seed: int = 0,
    folder: str | Path | None = None,
    balanced: bool = False,
    members: int = 1600,
) -> tuple[shadow.Trained, NDArray[np.bool_]]:
    """k models and which of them was trained on which record, bool `[k, n]`.

    Records that no model has seen are added to one each.
    """
    key = jax.random.key(seed)
    draw_key, train_key = jax.random.split(key)
    if balanced:
        was_member = shadow.balanced_membership(draw_key, k, len(y))
    else:
        random = np.random.default_rng(seed)
        ranks = random.permuted(np.tile(np.arange(len(y)), (k, 1)), axis=1)
        was_member = ranks < members
        unseen = np.flatnonzero(~was_member.any(axis=0))
        was_member[random.integers(0, k, unseen.size), unseen] = True
    found = shadow.train_all(
        train_key, architecture(), x, y, was_member, RECIPE.recipe(), checkpoint=folder
    )
    return found, was_member


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description="Reference models of Location-30.")
    parser.add_argument("--data", required=True, help="location30.npz with x and y")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="for checkpoints")
    parser.add_argument("--balanced", action="store_true")
    parser.add_argument("--logits", help="npz file to write, for location30_attacks.py")
    arguments = parser.parse_args()
    with np.load(arguments.data) as archive:
        x, y = archive["x"], archive["y"].astype(np.int32)
    start = time.perf_counter()
    found, was_member = trained(
        x, y, arguments.k, arguments.seed, arguments.folder, arguments.balanced
    )
    seconds = time.perf_counter() - start
    logits = jax.vmap(lambda target: target(x).logits)(found.references)
    if arguments.logits:
        norms = shadow.extract(found.references, Records(x, y, was_member[0]), NORM).gradient_norms
        np.savez(
            arguments.logits,
            z=np.asarray(logits),
            norms=norms["dense_1"],
            y=y,
            x=x,
            was_member=was_member,
        )
    correct = np.asarray(logits.argmax(-1)) == y
    inside, outside = (correct[mask].mean() for mask in (was_member, ~was_member))
    print(
        f"{arguments.k} models in {seconds:.1f} s; last loss {found.losses[:, -1].mean():.4f}, "
        f"accuracy {inside:.3f} on members, {outside:.3f} on others"
    )


if __name__ == "__main__":
    main()
