"""How well scores tell members from non-members, with an interval for every figure.

NumPy float64 and SciPy only. Everywhere a higher score means "more likely a member", a record is
called a member when `score >= threshold`, and tied scores are handled exactly: no result depends
on the order of the records within a tie.
"""

import dataclasses
import functools
import math
import operator
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy

__all__ = [
    "AttackResult",
    "Difference",
    "Interval",
    "MetricWarning",
    "Roc",
    "best_threshold",
    "clopper_pearson",
    "evaluate",
]


class MetricWarning(UserWarning):
    """A figure was computed, but the data cannot support what it seems to say."""


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


class Roc(NamedTuple):
    """The empirical ROC curve: one point for every distinct score, and (0, 0) in front.

    Point i flags the records with `score >= thresholds[i]`; `fpr` and `tpr` are the fractions of
    non-members and members among them. Runs from (0, 0), threshold +inf, to (1, 1). If some scores
    are +inf then two points have the threshold +inf: the first flags nothing, the second those.
    """

    fpr: np.ndarray  # float64 [t], non-decreasing
    tpr: np.ndarray  # float64 [t], non-decreasing
    thresholds: np.ndarray  # float64 [t], decreasing


class Difference(NamedTuple):
    """A paired difference, its interval, and the two-sided p-value of "no difference"."""

    value: float
    low: float
    high: float
    p_value: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttackResult:
    """What one attack achieved on one set of records; made by `evaluate`, which checks the input.

    Nothing is chosen on these records to flatter the attack, except in `best_accuracy`. Intervals
    describe the sampling of records for this one trained target, not of targets.

    Everywhere, `confidence` is the coverage of an interval and `fpr` the largest false positive
    rate allowed. They raise ValueError unless strictly between 0 and 1, and in [0, 1]. An `fpr`
    below `resolvable_fpr` gives a MetricWarning with the number of non-members it needs, and is
    answered at zero false positives, where the true FPR may be far larger (see `fpr_interval`).

    Attributes:
      scores: float64 [n], in input order, read-only; higher means "more likely a member".
      is_member: bool [n], the truth, read-only.
      threshold: calls a record a member if `score >= threshold`; from *other* records, or None.
    """

    scores: np.ndarray
    is_member: np.ndarray
    threshold: float | None = None

    def __repr__(self) -> str:
        """The AUC with its 95% interval and the numbers of records; not the arrays."""
        low, high = self.auc_interval()
        return (
            f"AttackResult(auc={self.auc:.4f} [{low:.4f}, {high:.4f}], "
            f"n_members={self.n_members}, n_nonmembers={self.n_nonmembers})"
        )

    @functools.cached_property
    def n_members(self) -> int:
        """Number of members."""
        return int(np.count_nonzero(self.is_member))

    @functools.cached_property
    def n_nonmembers(self) -> int:
        """Number of non-members."""
        return self.is_member.size - self.n_members

    @property
    def resolvable_fpr(self) -> float:
        """The smallest false positive rate other than 0 that can be observed: 1/n_nonmembers."""
        return 1 / self.n_nonmembers

    # --- The curve and the area under it.

    def roc(self) -> Roc:
        """Every trade-off between false and true positives that a threshold can reach.

        Returns:
          A `Roc` of one point more than there are distinct scores. Joining its points by straight
          lines encloses exactly `auc`.

        >>> evaluate([3.0, 2.0, 2.0, 1.0], [1, 1, 0, 0]).roc().tpr.tolist()
        [0.0, 0.5, 1.0, 1.0]
        """
        curve = self._curve
        return Roc(
            fpr=curve.false_positives / self.n_nonmembers,
            tpr=curve.true_positives / self.n_members,
            thresholds=curve.thresholds.copy(),
        )

    @property
    def auc(self) -> float:
        """Probability that a random member outscores a random non-member; a tie counts one half.

        The Mann-Whitney U statistic over n_members * n_nonmembers, exact up to the division.
        """
        return float(self._wins.members.sum() / (self.n_members * self.n_nonmembers))

    def auc_interval(self, confidence: float = 0.95) -> Interval:
        """DeLong's interval for the AUC.

        The normal approximation on the AUC's own scale, cut off at 0 and 1, as pROC does it. It
        covers less than it says where few pairs are misordered: in simulation at 95%, with normal
        scores of AUC 0.98, it covers 84% with 50 records a side, 91% with 150, 94% with 500; up
        to AUC 0.85, 93% to 96% with any of these numbers.

        When the variance estimate is 0 (perfect separation, or all scores tied) that would be a
        single point. Then the m = min(n_members, n_nonmembers) disjoint pairs of a member and a
        non-member are independent and all came out alike, so Clopper and Pearson bound the
        probability of that outcome below by q = ((1 - confidence)/2)^(1/m). The interval is every
        AUC possible with such a q: [q, 1] for perfect separation. It is conservative.

        DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837, computed from midranks as in Sun
        and Xu 2014, IEEE Signal Processing Letters 21:1389, in O(n log n).

        >>> low, high = evaluate([4.0, 3.0, 2.0, 1.0], [1, 0, 1, 0]).auc_interval()
        >>> (round(low, 4), high)
        (0.057, 1.0)
        >>> [round(bound, 4) for bound in evaluate([3, 2, 1, 0], [1, 1, 0, 0]).auc_interval()]
        [0.1581, 1.0]
        """
        z = _normal_quantile(confidence)
        error = _standard_error(self._wins)
        if error == 0:
            same = self._all_alike_probability(confidence)
            return Interval(self.auc * same, self.auc * same + (1 - same))
        return Interval(max(0.0, self.auc - z * error), min(1.0, self.auc + z * error))

    def auc_difference(self, other: "AttackResult", confidence: float = 0.95) -> Difference:
        """This AUC minus another attack's on the same records, by DeLong's paired test.

        The records are shared, so the two AUCs are correlated and the interval is usually far
        narrower than a comparison of the two separate intervals suggests. Scores that rank the
        records identically differ by exactly 0. When the variance estimate is 0 for another reason
        (both separate perfectly, say), the bound of `auc_interval` is used in place of a point.

        Args:
          other: the result of another attack on the same records in the same order.
          confidence: as everywhere.

        Returns:
          A `Difference`; positive where this attack is the better one.

        Raises:
          ValueError: if the two results differ in their `is_member`.

        DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837.

        >>> one = evaluate([4.0, 3.0, 2.0, 1.0], [1, 1, 0, 0])
        >>> two = evaluate([4.0, 1.0, 3.0, 2.0], [1, 1, 0, 0])
        >>> one.auc_difference(two).value
        0.5
        """
        if not np.array_equal(self.is_member, other.is_member):
            raise ValueError(
                f"The two results have different is_member ({self.is_member.size} and "
                f"{other.is_member.size} records): a paired difference needs both attacks on the "
                "same records in the same order. Evaluate both on one set of records."
            )
        z = _normal_quantile(confidence)
        value = self.auc - other.auc
        if np.array_equal(self._wins.ranks, other._wins.ranks):
            return Difference(0.0, 0.0, 0.0, 1.0)
        error = _standard_error(self._wins, other._wins)
        if error == 0:
            same = self._all_alike_probability(confidence)
            low, high = value * same - (1 - same), value * same + (1 - same)
            # The level at which this interval begins to exclude 0.
            p_value = min(1.0, 2 * (1 + abs(value)) ** -min(self.n_members, self.n_nonmembers))
        else:
            low, high = value - z * error, value + z * error
            p_value = float(2 * scipy.special.ndtr(-abs(value) / error))
        return Difference(value, max(-1.0, low), min(1.0, high), p_value)

    # --- One point of the curve.

    def tpr_at(self, fpr: float) -> float:
        """Largest true positive rate at a false positive rate of at most `fpr`.

        No interpolation: the best threshold whose *empirical* FPR does not exceed `fpr`, a tied
        block being flagged as a whole or not at all. Equivalently, the fraction of members above
        an order statistic of the non-members, so members play no part in choosing the threshold.

        The figure to report, by Carlini et al. 2022, arXiv:2112.03570, section III.

        >>> evaluate([5, 4, 3, 2, 1, 0], [1, 1, 0, 1, 0, 0]).tpr_at(0.4)  # one of three allowed
        1.0
        """
        return self._counts_at(fpr)[0] / self.n_members

    def tpr_interval(self, fpr: float, confidence: float = 0.95) -> Interval:
        """Clopper-Pearson interval for the TPR at the threshold that `tpr_at` uses.

        Exact given the non-members, which alone determine that threshold. It is about the TPR at
        this threshold; how far the threshold's FPR may be from `fpr` is told by `fpr_interval`.

        >>> result = evaluate([5, 4, 3, 2, 1, 0], [1, 1, 0, 1, 0, 0])
        >>> [round(bound, 4) for bound in result.tpr_interval(0.4)]
        [0.2924, 1.0]
        """
        return clopper_pearson(self._counts_at(fpr)[0], self.n_members, confidence)

    def fpr_interval(self, fpr: float, confidence: float = 0.95) -> Interval:
        """Clopper-Pearson interval for the true FPR of the threshold that `tpr_at(fpr)` uses.

        Built on the false positives counted there, which may be fewer than `fpr` allows. Of untied
        scores, k of n, the threshold lies between the k-th and (k+1)-th largest non-member, whose
        true FPRs are Beta(k, n-k+1) and Beta(k+1, n-k): the very laws behind the two bounds. So
        the coverage holds although the non-members chose the threshold.

        >>> result = evaluate([5, 4, 3, 2, 1, 0], [1, 1, 0, 1, 0, 0])
        >>> [round(bound, 4) for bound in result.fpr_interval(0.4)]
        [0.0084, 0.9057]
        """
        return clopper_pearson(self._counts_at(fpr)[1], self.n_nonmembers, confidence)

    def ppv(self, fpr: float, prior: float) -> float:
        """Positive predictive value: how probably a record flagged by `tpr_at(fpr)` is a member.

        `prior TPR / (prior TPR + (1 - prior) FPR)` with the *realised* FPR of that threshold. With
        no false positive observed this is 1 whatever the prior: read `ppv_interval` beside it.

        Args:
          fpr: as everywhere.
          prior: fraction of members among the records an attacker would meet, strictly between 0
            and 1 (else ValueError); not that of these records, usually one half by design.

        Returns:
          A probability, or NaN when the threshold flags no record at all.

        >>> result = evaluate([5, 4, 3, 2, 1, 0], [1, 1, 0, 1, 0, 0])
        >>> round(result.ppv(0.4, prior=0.1), 4)  # 0.1 * 1 / (0.1 * 1 + 0.9 / 3)
        0.25
        """
        _check_open_unit(prior, "prior", "it is the fraction of members an attacker would meet")
        true_positives, false_positives = self._counts_at(fpr)
        if true_positives + false_positives == 0:
            return math.nan
        return _posterior(
            true_positives / self.n_members, false_positives / self.n_nonmembers, prior
        )

    def ppv_interval(self, fpr: float, prior: float, confidence: float = 0.95) -> Interval:
        """Interval for `ppv`: the extremes over TPR and FPR within their Clopper-Pearson intervals.

        Each rate gets half of the allowed error (Bonferroni), which makes it conservative.

        >>> result = evaluate(np.arange(200), np.arange(200) >= 100)
        >>> [round(bound, 3) for bound in result.ppv_interval(0.01, prior=0.01)]
        [0.135, 0.988]
        """
        _check_open_unit(prior, "prior", "it is the fraction of members an attacker would meet")
        _check_confidence(confidence)
        each = (1 + confidence) / 2
        true_positives, false_positives = self._counts_at(fpr)
        tpr = clopper_pearson(true_positives, self.n_members, each)
        realised = clopper_pearson(false_positives, self.n_nonmembers, each)
        return Interval(
            _posterior(tpr.low, realised.high, prior), _posterior(tpr.high, realised.low, prior)
        )

    # --- One decision for every record.

    @property
    def accuracy(self) -> float:
        """Balanced accuracy (TPR + TNR)/2, without choosing a threshold on the records it judges.

        With a `threshold`, at that threshold. Without one, by two folds: every second member and
        every second non-member in input order; each fold is judged at the `best_threshold` of the
        other, and the rates count every record once. Deterministic.
        """
        true_positives, true_negatives = self._correct
        return (true_positives / self.n_members + true_negatives / self.n_nonmembers) / 2

    def accuracy_interval(self, confidence: float = 0.95) -> Interval:
        """Interval for `accuracy`, from the Clopper-Pearson intervals of TPR and TNR by MOVER.

        Each side adds in quadrature the distances from the two rates to their bounds on that side,
        so it is never a point. Without a `threshold` the two folds are pooled as if one threshold
        had judged them; the interval is then about these thresholds, not the best possible one.

        Zou and Donner 2008, Statistics in Medicine 27:1693.

        >>> result = evaluate([3, 2, 1, 0], [1, 1, 0, 0], threshold=1.5)
        >>> [round(bound, 4) for bound in result.accuracy_interval()]
        [0.4047, 1.0]
        """
        true_positives, true_negatives = self._correct
        tpr = clopper_pearson(true_positives, self.n_members, confidence)
        tnr = clopper_pearson(true_negatives, self.n_nonmembers, confidence)
        tpr_hat, tnr_hat = true_positives / self.n_members, true_negatives / self.n_nonmembers
        centre = (tpr_hat + tnr_hat) / 2
        return Interval(
            centre - math.hypot(tpr_hat - tpr.low, tnr_hat - tnr.low) / 2,
            centre + math.hypot(tpr.high - tpr_hat, tnr.high - tnr_hat) / 2,
        )

    @property
    def best_accuracy(self) -> float:
        """Largest balanced accuracy over all thresholds. Optimistic: never below 0.5.

        Its threshold is chosen on the records it is measured on. Here to compare with papers that
        report it; `accuracy` is the honest figure.
        """
        tpr = self._curve.true_positives / self.n_members
        tnr = 1 - self._curve.false_positives / self.n_nonmembers
        return float(np.max(tpr + tnr) / 2)

    # --- Differential privacy.

    def epsilon(
        self,
        *,
        delta: float = 0.0,
        confidence: float = 0.95,
        method: Literal["bonferroni", "split"] = "bonferroni",
        seed: int = 0,
    ) -> float:
        """Lower confidence bound on epsilon: `log((TPR_low - delta) / FPR_high)`, or 0 if negative.

        TPR_low and FPR_high are one-sided Clopper-Pearson bounds sharing the error 1 - confidence.
        A maximum over thresholds would need a correction, and gets one: "bonferroni" divides the
        error among the thresholds on the convex hull of the ROC curve; "split" chooses the
        threshold on a random half of the records and computes the bound on the other half.
        (The hull depends on the data, so "bonferroni" has no proof; in our simulations at the
        worst case, a likelihood ratio equal to e^epsilon at every threshold, it fails in well
        under 1% of runs at 95% confidence. "split" is valid as it stands.)

        What it says. If many runs of the training algorithm stand behind the records (each record
        from a run of its own, in or out at random), it is a lower bound on the epsilon of that
        algorithm. From members and non-members of *one* trained target it is a statistic of
        leakage in the units of epsilon; it bounds the algorithm only if inclusion was randomised
        record by record and one-run mathematics (Steinke et al. 2023, arXiv:2305.08846) is used,
        which this is not.

        The number of records sets a ceiling, whatever the true epsilon: a perfect attack on 1,000
        members and 1,000 non-members reaches 5.34 by "bonferroni" and 4.90 by "split".

        Args:
          delta: the delta of (epsilon, delta)-differential privacy, in [0, 1).
          confidence: probability that the bound holds, strictly between 0.5 and 1.
          method: how to pay for the choice of the threshold.
          seed: of the random halves; used by "split" only.

        Returns:
          Epsilon in nats, at least 0. It depends on the scores through their ranks only.

        Raises:
          ValueError: if an argument is out of range.

        Jagielski, Ullman and Oprea 2020, arXiv:2006.07709; the computation is that of
        `jax_privacy.auditing.CanaryScoreAuditor.epsilon_clopper_pearson`.

        >>> round(evaluate(np.arange(200), np.arange(200) >= 100).epsilon(), 2)
        3.02
        """
        if not 0 <= delta < 1:
            raise ValueError(f"delta must be in [0, 1), got {delta}: it is a probability.")
        if not 0.5 < confidence < 1:
            raise ValueError(
                f"confidence must be strictly between 0.5 and 1, got {confidence}: it is the "
                "probability that the bound holds. Use 0.95 for 95%."
            )
        if method not in ("bonferroni", "split"):
            raise ValueError(f'method must be "bonferroni" or "split", got {method!r}.')
        from jax_privacy import auditing  # Takes a second to import; only this method needs it.

        choice = auditing.Split(seed=seed) if method == "split" else auditing.Bonferroni()
        # Ranks in place of scores: the auditor appends a threshold of +inf, and would miscount the
        # records if a score were +inf too.
        ranks = self._wins.ranks
        auditor = auditing.CanaryScoreAuditor(ranks[self.is_member], ranks[~self.is_member])
        return float(
            auditor.epsilon_clopper_pearson(1 - confidence, delta, threshold_strategy=choice)
        )

    # --- Private: counts, each computed once.

    @functools.cached_property
    def _curve(self) -> "_Curve":
        return _curve(self.scores, self.is_member)

    @functools.cached_property
    def _wins(self) -> "_Wins":
        return _wins(self.scores, self.is_member)

    @functools.cached_property
    def _correct(self) -> tuple[int, int]:
        """True positives and true negatives behind `accuracy`."""
        threshold: float | np.ndarray
        if self.threshold is not None:
            threshold = self.threshold
        else:
            odd = np.empty(self.scores.shape, bool)
            odd[self.is_member] = np.arange(self.n_members) % 2
            odd[~self.is_member] = np.arange(self.n_nonmembers) % 2
            of_odd, of_even = (
                best_threshold(self.scores[fold], self.is_member[fold]) for fold in (odd, ~odd)
            )
            threshold = np.where(odd, of_even, of_odd)
        flagged = self.scores >= threshold
        true_positives = int(np.count_nonzero(flagged & self.is_member))
        false_positives = int(np.count_nonzero(flagged)) - true_positives
        return true_positives, self.n_nonmembers - false_positives

    def _all_alike_probability(self, confidence: float) -> float:
        """Lower bound on an outcome's probability after m of m independent pairs showed it."""
        pairs = min(self.n_members, self.n_nonmembers)
        return clopper_pearson(pairs, pairs, confidence).low

    def _counts_at(self, fpr: float) -> tuple[int, int]:
        """True and false positives at the last point of the curve that `fpr` allows."""
        if not 0 <= fpr <= 1:
            raise ValueError(f"fpr must be in [0, 1], got {fpr}: it is a rate. Use 0.01 for 1%.")
        # 0.29 * 100 is 28.999999999999996 in floating point, and 29 false positives are allowed.
        # The slack is far above rounding and far below one record in any data set.
        allowed = math.floor(fpr * self.n_nonmembers * (1 + 1e-12))
        if allowed == 0:
            self._warn_unresolvable(fpr)
        last = np.searchsorted(self._curve.false_positives, allowed, side="right") - 1
        return int(self._curve.true_positives[last]), int(self._curve.false_positives[last])

    def _warn_unresolvable(self, fpr: float) -> None:
        if fpr > 0:
            advice = f"At least {math.ceil(1 / fpr * (1 - 1e-12))} non-members are needed for it."
        else:
            advice = "No number of non-members resolves a rate of 0."
        bound = clopper_pearson(0, self.n_nonmembers).high
        warnings.warn(
            f"An FPR of {fpr:g} cannot be resolved with {self.n_nonmembers} non-members: the "
            f"smallest is {self.resolvable_fpr:.3g}. {advice} Using the threshold with zero false "
            f"positives, whose true FPR may be as large as {bound:.2g} (95% interval).",
            MetricWarning,
            stacklevel=4,  # The caller of the public method.
        )


def evaluate(scores: Any, is_member: Any, *, threshold: float | None = None) -> AttackResult:
    """Measures how well scores tell members from non-members.

    Args:
      scores: [n] numbers, higher for records more likely to be members. Infinities are fine, since
        their ranks are well defined; NaN is an error. Copied as float64.
      is_member: bool or 0/1 [n], the truth. At least two records of each kind.
      threshold: calls a record a member if `score >= threshold`. It must come from other records
        (see `best_threshold`). None: `accuracy` chooses by two folds.

    Returns:
      An `AttackResult`, whose scores stay in input order.

    Warns:
      MetricWarning: if the 95% interval of the AUC lies wholly below 0.5. That happens by chance
        in one of forty attacks that learn nothing.

    Raises:
      ValueError: if shapes, scores, membership or threshold are not as described.

    >>> result = evaluate([0.9, 0.8, 0.3, 0.1], [True, False, True, False])
    >>> result.auc, result.n_members, result.resolvable_fpr
    (0.75, 2, 0.5)
    """
    checked_scores, checked_members = _checked(scores, is_member, at_least=2)
    if threshold is not None:
        threshold = float(threshold)
        if math.isnan(threshold):
            raise ValueError("threshold is NaN, which no score reaches; give a number or None.")
    result = AttackResult(scores=checked_scores, is_member=checked_members, threshold=threshold)
    low, high = result.auc_interval()
    if high < 0.5:
        warnings.warn(
            f"The AUC is {result.auc:.4f}, and its 95% interval [{low:.4f}, {high:.4f}] lies below "
            "0.5: a sign is wrong somewhere. Higher scores must mean members; a loss, for one, "
            "has to be negated. Check is_member as well.",
            MetricWarning,
            stacklevel=2,
        )
    return result


def best_threshold(scores: Any, is_member: Any) -> float:
    """The threshold with the largest balanced accuracy on these records, for use on others.

    It lies midway between neighbouring distinct scores, not on one, so that it generalises to
    records near them. Among equally good thresholds it is the one whose flagged fraction, averaged
    over members and non-members, is nearest one half; of two such, the larger. Where flagging
    everything or nothing is best it is infinite. Infinite scores count as one range of the finite
    scores beyond the outermost of those.

    Args:
      scores: [n] numbers, higher for members; of the *select* part, never of the held-out part.
      is_member: bool or 0/1 [n]. At least one record of each kind.

    Returns:
      A threshold to give to `evaluate`.

    Raises:
      ValueError: if shapes, scores or membership are not as described.

    >>> best_threshold([4.0, 3.0, 1.0, 0.0], [1, 1, 0, 0])
    2.0
    """
    checked_scores, checked_members = _checked(scores, is_member, at_least=1)
    curve = _curve(checked_scores, checked_members)
    n_members = int(curve.true_positives[-1])
    n_nonmembers = int(curve.false_positives[-1])
    # Integers, so that equally good thresholds compare equal.
    flagged_members = curve.true_positives * n_nonmembers
    flagged_nonmembers = curve.false_positives * n_members
    gain = flagged_members - flagged_nonmembers
    if np.isposinf(curve.thresholds[1]):
        gain[0] -= 1  # No float is above +inf. Flagging everything is as good as flagging nothing.
    best = np.flatnonzero(gain == gain.max())
    unevenness = np.abs(flagged_members + flagged_nonmembers - n_members * n_nonmembers)[best]
    point = int(best[np.argmin(unevenness)])
    if point == 0:
        return math.inf
    if point == curve.thresholds.size - 1:
        return -math.inf
    finite = checked_scores[np.isfinite(checked_scores)]
    return _midway(curve.thresholds[point + 1], curve.thresholds[point], finite)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Exact interval for a probability: each bound errs with at most half of 1 - confidence.

    Args:
      successes: number of successes, between 0 and `trials`.
      trials: number of independent trials, at least 1.
      confidence: coverage guaranteed at least, between 0 and 1.

    Raises:
      ValueError: if an argument is out of range.

    Clopper and Pearson 1934, Biometrika 26:404.

    >>> [round(bound, 4) for bound in clopper_pearson(0, 10)]
    [0.0, 0.3085]
    """
    successes, trials = operator.index(successes), operator.index(trials)
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"Got {successes} successes in {trials} trials: a rate needs at least one trial, and "
            "between none and all of them successes."
        )
    _check_confidence(confidence)
    tail, failures = (1 - confidence) / 2, trials - successes
    # Quantiles of Beta(k, n-k+1) and Beta(k+1, n-k).
    low = scipy.special.betaincinv(successes, failures + 1, tail) if successes else 0.0
    high = scipy.special.betainccinv(successes + 1, failures, tail) if failures else 1.0
    return Interval(float(low), float(high))


class _Curve(NamedTuple):
    """Counts at every point of the ROC curve, from flagging nothing to flagging everything."""

    true_positives: np.ndarray  # int64 [t]
    false_positives: np.ndarray  # int64 [t]
    thresholds: np.ndarray  # float64 [t], +inf first


class _Wins(NamedTuple):
    """Pairs each record wins against the other kind, a tie counting one half; and pooled midranks.

    Multiples of one half below 2^52, so sums, differences and equality are exact.
    """

    members: np.ndarray  # float64 [n_members]: non-members below this member
    nonmembers: np.ndarray  # float64 [n_nonmembers]: members below this non-member
    ranks: np.ndarray  # float64 [n]


def _curve(scores: np.ndarray, is_member: np.ndarray) -> _Curve:
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    last_of_tie = np.append(ordered[1:] != ordered[:-1], True)
    true_positives = np.cumsum(is_member[order], dtype=np.int64)[last_of_tie]
    flagged = np.flatnonzero(last_of_tie) + 1
    return _Curve(
        true_positives=np.append(0, true_positives),
        false_positives=np.append(0, flagged - true_positives),
        thresholds=np.append(np.inf, ordered[last_of_tie]),
    )


def _wins(scores: np.ndarray, is_member: np.ndarray) -> _Wins:
    """Sun and Xu's identity: a record's rank among all, less its rank among its own kind."""
    ranks = scipy.stats.rankdata(scores)
    members = ranks[is_member] - scipy.stats.rankdata(scores[is_member])
    nonmembers = ranks[~is_member] - scipy.stats.rankdata(scores[~is_member])
    return _Wins(members=members, nonmembers=nonmembers, ranks=ranks)


def _standard_error(wins: _Wins, other: _Wins | None = None) -> float:
    """DeLong's standard error of an AUC, or of the difference of two; exactly 0 if degenerate."""
    members, nonmembers = wins.members, wins.nonmembers
    if other is not None:
        # The variance of the differences is the quadratic form (1, -1) S (1, -1)^T of the paper.
        members, nonmembers = members - other.members, nonmembers - other.nonmembers
    variance = 0.0
    for counts, n_other in ((members, nonmembers.size), (nonmembers, members.size)):
        if np.ptp(counts) > 0:  # Else rounding of the mean could leave a speck above 0.
            variance += float(np.var(counts / n_other, ddof=1)) / counts.size
    return math.sqrt(variance)


def _midway(low: float, high: float, finite: np.ndarray) -> float:
    """A threshold that flags `high` and not `low`, half-way if floating point has such a number."""
    if not finite.size:
        return 0.0
    with np.errstate(over="ignore"):
        extent = finite.max() - finite.min()
        extent = extent if extent > 0 else 1.0
        lower = finite.min() - extent if np.isneginf(low) else low
        upper = finite.max() + extent if np.isposinf(high) else high
    middle = float(lower / 2 + upper / 2)
    return middle if low < middle <= high else float(high)


def _posterior(tpr: float, fpr: float, prior: float) -> float:
    return prior * tpr / (prior * tpr + (1 - prior) * fpr)


def _normal_quantile(confidence: float) -> float:
    _check_confidence(confidence)
    return float(scipy.special.ndtri((1 + confidence) / 2))


def _check_confidence(confidence: float) -> None:
    _check_open_unit(confidence, "confidence", "it is a coverage; use 0.95 for 95%")


def _check_open_unit(value: float, name: str, meaning: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be strictly between 0 and 1, got {value}: {meaning}.")


def _checked(scores: Any, is_member: Any, *, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Read-only float64 and bool copies, or an error that says what to do."""
    given = np.asarray(scores)
    if np.iscomplexobj(given):
        raise ValueError("scores are complex and have no order; give real numbers.")
    checked_scores = np.array(given, dtype=np.float64)
    membership = np.asarray(is_member)
    for name, array in (("scores", checked_scores), ("is_member", membership)):
        if array.ndim != 1:
            raise ValueError(
                f"{name} has shape {array.shape}; it must have one axis, one entry a record. "
                "Flatten it, or evaluate one column at a time."
            )
    if checked_scores.size != membership.size:
        raise ValueError(
            f"There are {checked_scores.size} scores but {membership.size} entries of is_member; "
            "each record needs one of both, in the same order."
        )
    bad = np.flatnonzero(np.isnan(checked_scores))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {checked_scores.size} scores are NaN (positions {_listed(bad)}): they "
            "have no rank. Find the 0/0 or inf - inf in the attack; dropping these records would "
            "change the population that is measured."
        )
    checked_members = np.array(membership == 1)
    bad = np.flatnonzero(~checked_members & ~np.array(membership == 0))
    if bad.size:
        raise ValueError(
            f"{bad.size} entries of is_member are neither 0/1 nor bool (values "
            f"{_listed(np.unique(membership[bad]))}); 1 or True means a member."
        )
    n_members = int(np.count_nonzero(checked_members))
    if min(n_members, membership.size - n_members) < at_least:
        raise ValueError(
            f"Got {n_members} members and {membership.size - n_members} non-members, but at least "
            f"{at_least} of each are needed: both kinds are compared, and a spread cannot be "
            "estimated from fewer. Add records of the missing kind."
        )
    checked_scores.setflags(write=False)
    checked_members.setflags(write=False)
    return checked_scores, checked_members


def _listed(values: np.ndarray) -> str:
    listed = ", ".join(str(value) for value in values[:5])
    return f"{listed}, ..." if values.size > 5 else listed
