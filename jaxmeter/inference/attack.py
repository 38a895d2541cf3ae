"""Learned attacks: fitted on records of known membership, then applied to others."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxmeter.inference.fitting import FitPlan, run
from jaxmeter.inference.network import InferenceModel, ensemble
from jaxmeter.metrics import AttackResult
from jaxmeter.signals.spec import Signals

_CONFIDENCE = 0.9  # two-sided, so one-sided 5%
OptimizerOf = Callable[[int], optax.GradientTransformation]  # from the number of steps


class Attack(NamedTuple):
    """A learned attack as pure functions, as an optimiser is in optax.

    Only the first two are needed. The others let `fit` do fixed work once and train ensembles.

    Attributes:
      init: `(key, signals) -> params`, from the signals of the fit part. If params is a dict with
        the key "params", only what is under it is trained (as in Flax); else all of it.
      score: `(params, signals) -> [n]`, higher means member; a membership logit, so that the
        logistic loss applies.
      prepare: `(params, signals) -> features`, a pytree with leading axis n that no trained
        parameter influences; None for the signals themselves.
      logits: `(params, features, key) -> [m, n]` of the m models of an ensemble, with dropout
        if key is not None; None for `score` alone.
      loss: `(logits, truth) -> losses`, elementwise, with truth 1 for members and 0 for others;
        None for the logistic loss.
    """

    init: Callable[..., Any]
    score: Callable[..., Array]
    prepare: Callable[..., Any] | None = None
    logits: Callable[..., Array] | None = None
    loss: Callable[..., Array] | None = None


class History(NamedTuple):
    """What fitting saw; entry 0 is the attack as initialised, entry e after epoch e.

    Attributes:
      loss: mean loss on the fit part's batches `[epochs + 1]`; NaN at 0.
      select_loss: the same on the select part, without dropout `[epochs + 1]`; NaN without one.
      select_auc: AUC on the select part `[epochs + 1]`; NaN without one.
      select_accuracy: balanced accuracy there of calling positive logits members; NaN without one.
    """

    loss: NDArray
    select_loss: NDArray
    select_auc: NDArray
    select_accuracy: NDArray


class Fitted(NamedTuple):
    """A fitted attack.

    Attributes:
      params: for `attack.score(params, signals)`.
      history: what fitting saw.
      best_epoch: the epoch whose params these are; 0 is the attack as initialised.
    """

    params: Any
    history: History
    best_epoch: int


def inference_model(
    *,
    members: int = 10,
    widths: tuple[int, ...] = (128, 64),
    dropout: float = 0.5,
    kernels: int = 2,
) -> Attack:
    """The inference model of Nasr et al. as an `Attack`; see `inference` for what differs and why.

    Shapes are read off the signals: a vector, an image of activations, the gradient of a Dense or
    of a convolution kernel, norms, loss and label each get their component.

    Args:
      members: size of the ensemble, whose logits are averaged.
      widths: hidden layers of the encoder.
      dropout: dropout rate in training.
      kernels: row functions a gradient component learns.

    Calling it twice with the same arguments gives the same object, so nothing is compiled twice.
    """
    return _inference_model(members, tuple(widths), dropout, kernels)


@lru_cache
def _inference_model(members: int, widths: tuple[int, ...], dropout: float, kernels: int) -> Attack:
    model = InferenceModel(widths=widths, dropout=dropout, kernels=kernels)
    init, prepare, logits = ensemble(model, members)

    def score(params: Any, signals: Signals) -> Array:
        return logits(params, prepare(params, signals)).mean(axis=0)

    return Attack(jax.jit(init), jax.jit(score), prepare, logits)


@lru_cache
def decayed_adamw(
    learning_rate: float, weight_decay: float, steps: int
) -> optax.GradientTransformation:
    """AdamW with cosine decay to zero over `steps`; the same object for the same arguments."""
    schedule = optax.cosine_decay_schedule(learning_rate, max(steps, 1))
    return optax.adamw(schedule, weight_decay=weight_decay)


def fit(
    key: Array,
    attack: Attack,
    signals: Signals,
    is_member: ArrayLike,
    *,
    optimizer: optax.GradientTransformation | OptimizerOf | None = None,
    epochs: int = 25,
    batch_size: int = 128,
    select: tuple[Signals, ArrayLike] | None = None,
    folds: int = 0,
) -> Fitted:
    """Fits an attack by its loss on balanced batches, as one compiled program.

    Every step sees as many members as non-members; the smaller side is gone through more often, so
    that none of the larger is lost.

    Args:
      key: PRNG key, consumed: initial weights, batches, dropout, folds.
      attack: what to fit.
      signals: signals of n records.
      is_member: their membership, bool `[n]`.
      optimizer: an optax transformation, or a function from the number of steps to one (for
        schedules); None for AdamW at 3e-3 with cosine decay to zero and weight decay 0.01. The
        program is compiled anew for a new optimizer object: make it once if you fit in a loop.
      epochs: passes over the larger of members and non-members, at least 10 steps each.
      batch_size: records a step, half of them members.
      select: signals and membership of other records, on which the epoch with the best AUC is
        chosen; None, with no folds, keeps the last epoch.
      folds: if not 0, records are dealt into so many folds and model i of the ensemble never sees
        fold `i mod folds`; every record, scored by the models that did not see it, then helps to
        choose the epoch, beside those of `select`. The ensemble needs at least `folds` models.

    The attack as initialised, which for `inference_model` is the loss threshold, stays in place
    unless the best epoch beats it significantly on the choosing records (one-sided paired DeLong
    test at 5%): a few hundred records often cannot tell a better attack from a luckier one.

    Raises:
      ValueError: if there are fewer than two members or non-members, lengths differ, signals
        are not finite, or the fit diverges.
    """
    is_member = _checked(signals, is_member, "fit")
    if select is not None:
        select = (select[0], _checked(select[0], select[1], "select"))
    n_in = int(is_member.sum())
    half = max(1, min(batch_size // 2, n_in, is_member.size - n_in))
    steps = max(10, -(-max(n_in, is_member.size - n_in) // half))
    optimizer = optimizer or partial(decayed_adamw, 3e-3, 1e-2)
    if not isinstance(optimizer, optax.GradientTransformation):
        optimizer = optimizer(epochs * steps)
    fold_key, key = jax.random.split(key)
    outcome = run(
        key,
        signals,
        np.flatnonzero(is_member),
        np.flatnonzero(~is_member),
        _dealt(fold_key, is_member, folds) if folds else None,
        select,
        plan=FitPlan(attack, optimizer, epochs, steps, half, folds),
    )
    history = History(*(np.array(a, np.float64) for a in outcome.trace))
    history.loss[0] = np.nan  # nothing was trained yet
    if select is None and not folds:
        for figures in history[1:]:
            figures[:] = np.nan
    if not np.isfinite(history.loss[1:]).all():
        first = int(np.flatnonzero(~np.isfinite(history.loss[1:]))[0]) + 1
        raise ValueError(
            f"fitting diverged in epoch {first}: the loss is {history.loss[first]}. Lower the "
            "learning rate, or check the signals for extreme values."
        )
    if select is None and not folds:
        return Fitted(outcome.last, history, epochs)
    truth = np.concatenate(
        [is_member if folds else is_member[:0], select[1] if select else is_member[:0]]
    )
    if epochs == 0 or not _beats(outcome.best_scores, outcome.first_scores, truth):
        return Fitted(outcome.first, history, 0)
    return Fitted(outcome.best, history, 1 + int(np.argmax(history.select_auc[1:])))


def cross_fit(
    key: Array,
    attack: Attack,
    signals: Signals,
    is_member: ArrayLike,
    *,
    folds: int = 5,
    optimizer: optax.GradientTransformation | OptimizerOf | None = None,
    epochs: int = 25,
    batch_size: int = 128,
    inner_folds: int = 0,
) -> NDArray:
    """An honest score for every record: from an attack fitted on the other folds only.

    Args:
      key: PRNG key, consumed.
      attack: what to fit, `folds` times.
      signals: signals of n records.
      is_member: their membership, bool `[n]`.
      folds: number of folds, stratified by membership.
      optimizer: as in `fit`.
      epochs: as in `fit`.
      batch_size: as in `fit`.
      inner_folds: as `folds` of `fit`: chooses the epoch within each fit; 0 keeps the last.

    Returns:
      Scores float64 `[n]`, in the order of the records. Folds are scored by different fits, so
      that pooled figures are, if anything, a little low.

    Raises:
      ValueError: as `fit`, or if a class has fewer than two records a fold.
    """
    is_member = _checked(signals, is_member, "records")
    smaller = min(is_member.sum(), (~is_member).sum())
    if folds < 2 or smaller < 2 * folds:
        raise ValueError(
            f"{folds} folds of {smaller} records in the smaller class; use at least 2 folds and "
            "give every fold two members and two non-members."
        )
    fold_key, key = jax.random.split(key)
    fold = np.asarray(_dealt(fold_key, is_member, folds))
    scores = np.empty(is_member.size)
    # Equal sizes, so that all folds share one compilation: at most one record a class is spared.
    keep = [_smallest_rest(fold[is_member == side], folds) for side in (True, False)]
    for f in range(folds):
        rest = np.concatenate(
            [
                np.flatnonzero((fold != f) & (is_member == side))[:size]
                for side, size in zip((True, False), keep, strict=True)
            ]
        )
        fitted = fit(
            jax.random.fold_in(key, f),
            attack,
            signals.rows(rest),
            is_member[rest],
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            folds=inner_folds,
        )
        scores[fold == f] = attack.score(fitted.params, signals.rows(fold == f))
    return scores


def _smallest_rest(fold: NDArray, folds: int) -> int:
    """Records outside a fold, at the fewest."""
    return int(fold.size - np.bincount(fold, minlength=folds).max())


def _beats(best: ArrayLike, first: ArrayLike, truth: NDArray) -> bool:
    """Whether `best` ranks significantly better than `first`; a constant `first` is no rival."""
    best, first = np.asarray(best, np.float64), np.asarray(first, np.float64)
    if np.ptp(first) == 0:
        return True
    results = [AttackResult(scores=scores, is_member=truth) for scores in (best, first)]
    return results[0].auc_difference(results[1], confidence=_CONFIDENCE).low > 0


def _dealt(key: Array, is_member: NDArray, folds: int) -> NDArray:
    """A fold for every record `[n]`, members and non-members each dealt evenly."""
    fold = np.empty(is_member.size, np.int32)
    for side in (False, True):
        rows = np.flatnonzero(is_member == side)
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, side), rows.size))
        fold[rows[order]] = np.arange(rows.size) % folds
    return fold


def _checked(signals: Signals, is_member: ArrayLike, what: str) -> NDArray:
    is_member = np.asarray(is_member)
    leaves = jax.tree.leaves(signals)
    if is_member.ndim != 1 or not np.isin(is_member, (0, 1)).all():
        raise ValueError(f"{what}: is_member must be one 0 or 1 a record, [n].")
    is_member = is_member.astype(bool)
    lengths = {len(leaf) for leaf in leaves}
    if lengths != {is_member.size}:
        raise ValueError(
            f"{what}: signals of {sorted(lengths)} records, but membership of {is_member.size}."
        )
    n_in = int(is_member.sum())
    if min(n_in, is_member.size - n_in) < 2:
        raise ValueError(
            f"{what}: {n_in} members and {is_member.size - n_in} non-members; an attack is fitted "
            "on both, and needs hundreds of each to be worth anything."
        )
    for leaf in leaves:
        bad = ~np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{what}: signals of {int(bad.sum())} records are not finite (first: "
                f"{int(np.flatnonzero(bad)[0])}); the target overflows on them. Leave them out."
            )
    return is_member
