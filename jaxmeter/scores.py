"""Attacks that need no training: one float a record from the target's signals alone.

Everywhere higher means "more likely a member". All but `gradient_norm` are statistics of the logits
in NumPy float64, taken in logs: confident records, which is where attacks at low false-positive
rates live, keep distinct scores where `log(p + 1e-30)` would tie them.
"""

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from jaxmeter import logits
from jaxmeter.signals.spec import Signals


def negative_loss(signals: Signals) -> NDArray:
    """Minus the cross-entropy loss `[n]` (Yeom et al. 2018, arXiv:1709.01604).

    From the logits where the signals have them, since float32 losses of confident records can tie;
    else from the loss.
    """
    if "logits" not in signals.outputs or signals.label is None:
        if signals.loss is None:
            raise ValueError("the signals hold neither a loss nor logits with labels.")
        return -np.asarray(signals.loss, np.float64)
    return logits.log_probability(signals.logits, np.asarray(signals.y))


def confidence(signals: Signals) -> NDArray:
    """The probability of the record's own class `[n]`, in (0, 1), as `exp(-loss)`.

    Ranks records as `negative_loss` does, except where probabilities round to 1: that is what a
    thresholded probability can see.
    """
    return np.exp(negative_loss(signals))


def log_odds(signals: Signals) -> NDArray:
    """`log(p_y / (1 - p_y))` `[n]`, exact: `z_y - logsumexp of the other logits`.

    Carlini et al. 2022 (arXiv:2112.03570), the scaled logit of LiRA.
    """
    return logits.log_odds(signals.logits, np.asarray(signals.y))


def logit_margin(signals: Signals) -> NDArray:
    """The own class's logit minus the largest other one `[n]`: the hinge of Carlini et al. 2022."""
    return logits.margin(signals.logits, np.asarray(signals.y))


def entropy(signals: Signals) -> NDArray:
    """Minus the entropy of the predicted distribution `[n]`, in nats; the label is not used."""
    log_p, _ = _log_probabilities(_float64(signals.logits))
    p = np.exp(log_p)
    return np.sum(np.where(p > 0, p * np.where(p > 0, log_p, 0.0), 0.0), axis=-1)


def modified_entropy(signals: Signals) -> NDArray:
    """Minus the modified entropy `[n]` (Song and Mittal 2021, arXiv:2003.10595, equation 8).

    `Mentr = -(1 - p_y) log p_y - sum over the other classes of p_i log(1 - p_i)`: an entropy that
    is lowest for a confident *and correct* prediction.
    """
    z, y = _logits_and_labels(signals)
    log_p, log_not_p = _log_probabilities(z)
    own = np.arange(z.shape[-1]) == y[:, None]
    terms = np.where(own, np.exp(log_not_p) * log_p, np.exp(log_p) * log_not_p)
    return terms.sum(axis=-1)


def correctness(signals: Signals) -> NDArray:
    """1 where the target predicts the record's class, else 0 `[n]`: the gap attack."""
    z, y = _logits_and_labels(signals)
    return (z.argmax(axis=-1) == y).astype(np.float64)


def gradient_norm(signals: Signals) -> NDArray:
    """Minus the norm of the loss's gradient over all layers in `signals.gradient_norms` `[n]`.

    Nasr, Shokri, Houmansadr 2019 (arXiv:1812.00910): members' gradients are smaller.
    """
    if not signals.gradient_norms:
        raise ValueError(
            "the signals hold no gradient norms; extract them with SignalSpec(gradient_norm=True)."
        )
    squares = [np.square(_float64(norm)) for norm in signals.gradient_norms.values()]
    return -np.sqrt(sum(squares))


def population_percentile(scores: ArrayLike, population: ArrayLike) -> NDArray:
    """The share of known non-members that score below each record `[n]`, in [0, 1].

    Attack P of Ye et al. 2022 (arXiv:2111.09679): thresholding it at `1 - f` has false-positive
    rate f by construction. A tied score counts half.

    Args:
      scores: any score of the records, `[n]`.
      population: the same score of non-members that are not evaluated, `[m]`.
    """
    scores, population = _float64(scores), np.sort(_float64(population))
    if not population.size:
        raise ValueError("the population is empty; the attack is calibrated on known non-members.")
    below = np.searchsorted(population, scores, side="left")
    not_above = np.searchsorted(population, scores, side="right")
    return (below + not_above) / (2 * population.size)


def class_wise_thresholds(
    scores: ArrayLike,
    y: ArrayLike,
    fit_scores: ArrayLike,
    fit_y: ArrayLike,
    fit_is_member: ArrayLike,
) -> NDArray:
    """Scores minus a threshold for each class `[n]`: at least 0 means "member".

    Song and Mittal 2021 (arXiv:2003.10595, section 4): for each class, the threshold that best
    separates known members from known non-members (balanced accuracy), placed on a known record's
    score as in the authors' code; of several equally good ones the lowest. A class without both
    kinds in the fit part takes the threshold of all classes together.

    Args:
      scores: any score of the records, `[n]`.
      y: their labels, `[n]`.
      fit_scores: the score of records of known membership, `[m]`; none of them evaluated.
      fit_y: their labels, `[m]`.
      fit_is_member: their membership, bool `[m]`.
    """
    scores, fit_scores = _float64(scores), _float64(fit_scores)
    y, fit_y, known = np.asarray(y), np.asarray(fit_y), np.asarray(fit_is_member, bool)
    thresholds = np.empty(scores.shape)
    overall = _class_threshold(fit_scores[known], fit_scores[~known])
    for label in np.unique(y):
        members, others = (
            fit_scores[(fit_y == label) & known],
            fit_scores[(fit_y == label) & ~known],
        )
        both = members.size and others.size
        thresholds[y == label] = _class_threshold(members, others) if both else overall
    return scores - thresholds


def _class_threshold(members: NDArray, others: NDArray) -> float:
    """The lowest score c for which "score >= c" has the best balanced accuracy."""
    members, others = np.sort(members), np.sort(others)
    candidates = np.unique(np.concatenate([members, others]))
    true_members = members.size - np.searchsorted(members, candidates)
    true_others = np.searchsorted(others, candidates)
    # In whole numbers, so that equally good thresholds are equal.
    return candidates[np.argmax(true_members * others.size + true_others * members.size)]


def _float64(values: ArrayLike) -> NDArray:
    return np.asarray(values, np.float64)


def _logits_and_labels(signals: Signals) -> tuple[NDArray, NDArray]:
    return _float64(signals.logits), np.asarray(signals.y)


def _log_probabilities(z: NDArray) -> tuple[NDArray, NDArray]:
    """`log p` and `log(1 - p)` of every class, the latter without cancellation.

    Only the most probable class can have p > 1/2; its complement is summed over the others.
    """
    log_p = z - scipy.special.logsumexp(z, axis=-1, keepdims=True)
    top = np.arange(z.shape[-1]) == z.argmax(axis=-1)[..., None]
    others = scipy.special.logsumexp(np.where(top, -np.inf, log_p), axis=-1, keepdims=True)
    log_not_p = np.where(top, others, np.log1p(-np.exp(np.where(top, -np.inf, log_p))))
    return log_p, log_not_p
