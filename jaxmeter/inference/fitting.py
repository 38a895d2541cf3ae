"""The compiled program that fits a learned attack: all epochs in one `lax.scan`."""

from collections.abc import Callable
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


class FitPlan(NamedTuple):
    """What is fitted and how; hashable, since the program is compiled for it.

    Attributes:
      attack: an `attack.Attack`.
      optimizer: of its variables.
      epochs: passes over the records.
      steps: of an epoch.
      half: members of a step, and others.
      folds: parts of the records that members of the ensemble leave out in turn; 0 for none.
    """

    attack: Any
    optimizer: optax.GradientTransformation
    epochs: int
    steps: int
    half: int
    folds: int


class _Known(NamedTuple):
    """The records of known membership, as the attack sees them."""

    features: Any  # of the n records to fit on, then of others that choose the epoch
    n: int
    fold: Array | None  # [n]
    truth: Array  # membership of the records that choose: those of the folds, then the others


@partial(jax.jit, static_argnames="plan")
def run(
    key: Array,
    signals: Signals,
    members: Array,
    others: Array,
    fold: Array | None,
    select: tuple[Signals, Array] | None,
    *,
    plan: FitPlan,
) -> FitTrace:
    """Fits an attack.

    Args:
      key: PRNG key, consumed.
      signals: of the n records to fit on.
      members: row numbers.
      others: likewise.
      fold: each record's fold, if there are folds.
      select: signals and membership of more records that choose the epoch.
      plan: what is fitted and how.
    """
    attack, folds = plan.attack, plan.folds
    prepare = attack.prepare or (lambda params, signals: signals)
    init_key, key = jax.random.split(key)
    init = attack.init(init_key, signals)
    # Dropout in the inner loop: this generator compiles and runs in a fraction of the time.
    key = jax.random.wrap_key_data(jax.random.bits(key, (4,), "uint32"), impl="rbg")
    trained, whole = _apart(init)
    n = members.size + others.size
    truth = jnp.zeros(n).at[members].set(1.0)[: n if folds else 0]
    if select is not None:
        truth = _joined(truth, select[1].astype(jnp.float32))
    # Preparing, choosing and judging stand in the program once: they take far longer to compile
    # than to run.
    every = signals if select is None else jax.tree.map(_joined, signals, select[0])
    known = _Known(prepare(init, every), n, fold, truth)
    logits = attack.logits or (lambda params, signals, key: attack.score(params, signals)[None])
    m = jax.eval_shape(lambda: logits(init, known.features, None)).shape[0]
    if folds > m:
        raise ValueError(
            f"{folds} folds, but the attack is an ensemble of {m}: some records would be left "
            f"without a model that has not seen them. Use at least {folds} members or fewer folds."
        )
    step = _step(plan, known, whole, logits, m)
    choosing, judged = _choice(plan, known, whole, logits, m)

    keys = jax.random.split(key, max(plan.epochs, 1))

    def epoch(carry: Any, i: Array) -> Any:
        """Judges what has been trained so far, then trains on, unless it was the last epoch."""
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
        batch_key, drop_key = jax.random.split(keys[jnp.minimum(i, plan.epochs - 1)])

        def train(now: Any) -> Any:
            rows = _batches(batch_key, members, others, plan)
            now, losses = jax.lax.scan(step, now, (rows, jax.random.split(drop_key, plan.steps)))
            return now, losses.mean()

        now, trained_loss = jax.lax.cond(
            i < plan.epochs, train, lambda now: (now, jnp.zeros(())), now
        )
        return (now, first_scores, best, best_scores, best_auc), (trained_loss, loss, auc, accuracy)

    no_scores = jnp.zeros(truth.size)
    state = plan.optimizer.init(trained)
    carry = ((trained, state), no_scores, trained, no_scores, jnp.asarray(-jnp.inf))
    (now, first_scores, best, best_scores, _), (losses, *judgements) = jax.lax.scan(
        epoch, carry, jnp.arange(plan.epochs + 1)
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


def _apart(init: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What of an attack's variables is trained, and how to make them whole again.

    Of Flax's collections only "params" is; of anything else, all.
    """
    if not (isinstance(init, dict) and "params" in init):
        return init, lambda trained: trained
    fixed = {name: value for name, value in init.items() if name != "params"}
    return init["params"], lambda trained: {"params": trained, **fixed}


def _unseen(known: _Known, rows: Array, folds: int, m: int) -> Array:
    """Which of m models has not been trained on which record, `[m, rows]`."""
    return jnp.arange(m)[:, None] % folds == jnp.asarray(known.fold)[rows][None]


def _batches(key: Array, members: Array, others: Array, plan: FitPlan) -> Array:
    """Rows of one epoch `[steps, 2 half]`: each side shuffled, again and again as needed."""
    size = plan.steps * plan.half

    def side(key: Array, rows: Array) -> Array:
        rounds = -(-size // rows.size)
        keys = jax.random.split(key, rounds)
        shuffled = jax.vmap(lambda key: jax.random.permutation(key, rows))(keys)
        return shuffled.reshape(-1)[:size].reshape(plan.steps, plan.half)

    keys = jax.random.split(key)
    return jnp.concatenate([side(keys[0], members), side(keys[1], others)], axis=1)


def _loss_of(plan: FitPlan) -> Any:
    return plan.attack.loss or optax.sigmoid_binary_cross_entropy


def _step(
    plan: FitPlan, known: _Known, whole: Callable[[Any], Any], logits: Any, m: int
) -> Callable[[Any, Any], Any]:
    """One step of the optimiser, for `lax.scan` over (rows, key)."""
    truth = jnp.repeat(jnp.array([1.0, 0.0]), plan.half)

    def loss_on(trained: Any, rows: Array, key: Array) -> Array:
        batch = jax.tree.map(lambda leaf: leaf[rows], known.features)
        losses = _loss_of(plan)(
            logits(whole(trained), batch, key), jnp.broadcast_to(truth[None], (m, rows.size))
        )
        if not plan.folds:
            return losses.mean(axis=1).sum()
        seen = ~_unseen(known, rows, plan.folds, m)
        return (jnp.where(seen, losses, 0).sum(axis=1) / jnp.maximum(seen.sum(axis=1), 1)).sum()

    def step(carry: Any, xs: Any) -> Any:
        trained, state = carry
        rows, key = xs
        loss, gradient = jax.value_and_grad(loss_on)(trained, rows, key)
        updates, state = plan.optimizer.update(gradient, state, trained)
        return (optax.apply_updates(trained, updates), state), loss / m

    return step


def _choice(
    plan: FitPlan, known: _Known, whole: Callable[[Any], Any], logits: Any, m: int
) -> tuple[Callable[[Any], Array], Callable[[Array], tuple[Array, Array, Array]]]:
    """Scores of the records that choose the epoch, and their loss, AUC and accuracy."""

    n, folds = known.n, plan.folds

    def choosing(trained: Any) -> Array:
        if not known.truth.size:
            return jnp.zeros(0)
        of = known.features if folds else jax.tree.map(lambda leaf: leaf[n:], known.features)
        found = logits(whole(trained), of, None)
        if not folds:
            return found.mean(axis=0)
        out = _unseen(known, jnp.arange(n), folds, m)  # models that never saw the record
        own = jnp.where(out, found[:, :n], 0).sum(axis=0) / out.sum(axis=0)
        return own if known.truth.size == n else _joined(own, found[:, n:].mean(axis=0))

    def judged(scores: Array) -> tuple[Array, Array, Array]:
        mean = _loss_of(plan)(scores, known.truth).sum() / max(known.truth.size, 1)
        return mean, _auc(scores, known.truth), _accuracy(scores, known.truth)

    return choosing, judged


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
