"""The compiled program that fits a learned attack: all epochs in one `lax.scan`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxmeter.signals.spec import Signals


class FitTrace(NamedTuple):
    """What the program returns."""

    first: Any  # params as initialised
    best: Any  # of the epoch with the best AUC on the choosing records
    last: Any
    first_scores: Array  # of the choosing records
    best_scores: Array
    trace: tuple[Array, ...]  # training loss; choosing loss, AUC, accuracy; [epochs + 1] each


@partial(jax.jit, static_argnames=("attack", "optimizer", "epochs", "steps", "half", "folds"))
def run(
    key: Array,
    signals: Signals,
    members: Array,
    others: Array,
    fold: Array | None,
    select: tuple[Signals, Array] | None,
    *,
    attack: Any,
    optimizer: optax.GradientTransformation,
    epochs: int,
    steps: int,
    half: int,
    folds: int,
) -> FitTrace:
    """Fits `attack`, an `attack.Attack`; arguments as prepared by `attack.fit`.

    `members` and `others` are row numbers; `fold` a fold a record if `folds`; every epoch has
    `steps` steps on `half` members and `half` others.
    """
    logits = attack.logits or (lambda params, signals, key: attack.score(params, signals)[None])
    prepare = attack.prepare or (lambda params, signals: signals)
    loss_of = attack.loss or optax.sigmoid_binary_cross_entropy
    init_key, key = jax.random.split(key)
    init = attack.init(init_key, signals)
    # Dropout in the inner loop: this generator compiles and runs in a fraction of the time.
    key = jax.random.wrap_key_data(jax.random.bits(key, (4,), "uint32"), impl="rbg")
    flax_like = isinstance(init, dict) and "params" in init
    trained, fixed = (
        (init["params"], {k: v for k, v in init.items() if k != "params"})
        if flax_like
        else (init, {})
    )

    def whole(trained: Any) -> Any:
        return {"params": trained, **fixed} if flax_like else trained

    # Preparing, choosing and judging stand in the program once: to compile them takes far longer
    # than to run them.
    n = members.size + others.size
    every = signals if select is None else jax.tree.map(_joined, signals, select[0])
    features = prepare(init, every)
    truth = jnp.zeros(n).at[members].set(1.0)[: n if folds else 0]
    if select is not None:
        truth = _joined(truth, select[1].astype(jnp.float32))
    batch_truth = jnp.repeat(jnp.array([1.0, 0.0]), half)
    m = jax.eval_shape(lambda: logits(init, features, None)).shape[0]
    if folds > m:
        raise ValueError(
            f"{folds} folds, but the attack is an ensemble of {m}: some records would be left "
            f"without a model that has not seen them. Use at least {folds} members or fewer folds."
        )

    def unseen(rows: Array) -> Array:
        """Which model has not been trained on which record, [m, n]."""
        return jnp.arange(m)[:, None] % folds == jnp.asarray(fold)[rows][None]

    def loss_on(trained: Any, rows: Array, key: Array) -> Array:
        batch = jax.tree.map(lambda leaf: leaf[rows], features)
        losses = loss_of(
            logits(whole(trained), batch, key), jnp.broadcast_to(batch_truth[None], (m, rows.size))
        )
        if not folds:
            return losses.mean(axis=1).sum()
        seen = ~unseen(rows)
        return (jnp.where(seen, losses, 0).sum(axis=1) / jnp.maximum(seen.sum(axis=1), 1)).sum()

    def step(carry: Any, xs: Any) -> Any:
        trained, state = carry
        rows, key = xs
        loss, gradient = jax.value_and_grad(loss_on)(trained, rows, key)
        updates, state = optimizer.update(gradient, state, trained)
        return (optax.apply_updates(trained, updates), state), loss / m

    def batches(key: Array) -> Array:
        """Rows of one epoch `[steps, 2 half]`: each side shuffled, again and again as needed."""

        def side(key: Array, rows: Array) -> Array:
            rounds = -(-steps * half // rows.size)
            keys = jax.random.split(key, rounds)
            shuffled = jax.vmap(lambda key: jax.random.permutation(key, rows))(keys)
            return shuffled.reshape(-1)[: steps * half].reshape(steps, half)

        keys = jax.random.split(key)
        return jnp.concatenate([side(keys[0], members), side(keys[1], others)], axis=1)

    def choosing(trained: Any) -> Array:
        """Scores of the records that choose the epoch, each by models that never saw it."""
        if not truth.size:
            return jnp.zeros(0)
        of = features if folds else jax.tree.map(lambda leaf: leaf[n:], features)
        found = logits(whole(trained), of, None)
        if not folds:
            return found.mean(axis=0)
        out = unseen(jnp.arange(n))
        own = jnp.where(out, found[:, :n], 0).sum(axis=0) / out.sum(axis=0)
        return own if select is None else _joined(own, found[:, n:].mean(axis=0))

    def judged(scores: Array) -> tuple[Array, Array, Array]:
        mean = loss_of(scores, truth).sum() / max(truth.size, 1)
        return mean, _auc(scores, truth), _accuracy(scores, truth)

    def epoch(carry: Any, i: Array) -> Any:
        """Judges what was trained so far, then trains on, if not after the last epoch."""
        now, first_scores, best, best_scores, best_auc = carry
        scores = choosing(now[0])
        loss, auc, accuracy = judged(scores)
        better = (auc > best_auc) & (i > 0)
        first_scores = jnp.where(i == 0, scores, first_scores)
        best, best_scores, best_auc = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (now[0], scores, auc),
            (best, best_scores, best_auc),
        )
        batch_key, drop_key = jax.random.split(keys[jnp.minimum(i, epochs - 1)])

        def train(now: Any) -> Any:
            now, losses = jax.lax.scan(
                step, now, (batches(batch_key), jax.random.split(drop_key, steps))
            )
            return now, losses.mean()

        now, trained_loss = jax.lax.cond(i < epochs, train, lambda now: (now, jnp.zeros(())), now)
        return (now, first_scores, best, best_scores, best_auc), (trained_loss, loss, auc, accuracy)

    keys = jax.random.split(key, max(epochs, 1))
    no_scores = jnp.zeros(truth.size)
    carry = ((trained, optimizer.init(trained)), no_scores, trained, no_scores, -jnp.inf)
    (now, first_scores, best, best_scores, _), (losses, *judgements) = jax.lax.scan(
        epoch, carry, jnp.arange(epochs + 1)
    )
    return FitTrace(
        first=whole(trained),
        best=whole(best),
        last=whole(now[0]),
        first_scores=first_scores,
        best_scores=best_scores,
        trace=(jnp.roll(losses, 1), *judgements),  # an epoch's loss beside what came of it
    )


def _joined(a: Array, b: Array) -> Array:
    return jnp.concatenate([a, b])


def _accuracy(scores: Array, truth: Array) -> Array:
    """Balanced, of calling positive scores members; 0 of no records."""
    members = (truth * (scores > 0)).sum() / jnp.maximum(truth.sum(), 1)
    others = ((1 - truth) * (scores <= 0)).sum() / jnp.maximum((1 - truth).sum(), 1)
    return (members + others) / 2


def _auc(scores: Array, truth: Array) -> Array:
    """Mann-Whitney with midranks; 0 of no records."""
    if not truth.size:
        return jnp.zeros(())
    order = jnp.sort(scores)
    below = jnp.searchsorted(order, scores, side="left")
    not_above = jnp.searchsorted(order, scores, side="right")
    members = truth.sum()
    ranks = jnp.sum(truth * (below + not_above + 1) / 2)
    return (ranks - members * (members + 1) / 2) / (members * (truth.size - members))
