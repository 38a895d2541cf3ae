"""Oracles for `jaxmeter.metrics`: closed forms, brute force, invariances, simulated coverage."""

import dataclasses
import math
import warnings
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from jax_privacy import auditing
from scipy import optimize, stats

from jaxmeter import metrics

# A null attack is "wholly below 0.5" once in forty times, which is right and not of interest here.
ignore_sign_warning = pytest.mark.filterwarnings("ignore:The AUC is:jaxmeter.metrics.MetricWarning")
several = hypothesis.settings(deadline=None, max_examples=150)


def normal_scores(mu, n):
    """Members N(mu, 1), non-members N(0, 1), as quantiles: no randomness."""
    quantiles = stats.norm.ppf((np.arange(n) + 0.5) / n)
    return np.concatenate([quantiles + mu, quantiles]), np.arange(2 * n) < n


def random_scores(rng, mu, n):
    is_member = np.arange(2 * n) < n
    return rng.normal(size=2 * n) + mu * is_member, is_member


def separated(true_positives, n_members, false_positives, n_nonmembers):
    """Scores in {0, 1} with these counts at threshold 1."""
    scores = np.zeros(n_members + n_nonmembers)
    scores[:true_positives] = 1
    scores[n_members : n_members + false_positives] = 1
    return scores, np.arange(n_members + n_nonmembers) < n_members


few_values = st.sampled_from([-math.inf, -2.0, 0.0, 0.5, 3.0, math.inf])


@st.composite
def tied_records(draw, values=few_values):
    members = draw(st.lists(values, min_size=2, max_size=9))
    nonmembers = draw(st.lists(values, min_size=2, max_size=9))
    records = draw(st.permutations([(s, True) for s in members] + [(s, False) for s in nonmembers]))
    scores, is_member = zip(*records, strict=True)
    return np.array(scores), np.array(is_member)


def kernel(scores, is_member):
    """psi[i, j]: member i against non-member j, as DeLong et al. define it."""
    members, nonmembers = scores[is_member, None], scores[None, ~is_member]
    return (members > nonmembers) + 0.5 * (members == nonmembers)


def covariance_by_components(first, second, is_member):
    """DeLong's covariance of two AUCs from the n_members x n_nonmembers kernels."""
    total = 0.0
    for axis in (1, 0):
        one, two = (kernel(s, is_member).mean(axis=axis) for s in (first, second))
        total += np.cov(one, two, ddof=1)[0, 1] / one.size
    return total


# --- AUC and ROC.


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.5, 3.0])
def test_auc_of_two_normals(mu):
    assert metrics.evaluate(*normal_scores(mu, 3000)).auc == pytest.approx(
        stats.norm.cdf(mu / math.sqrt(2)), abs=3e-4
    )


@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("mu", [0.0, 0.5, 1.5])
def test_tpr_of_two_normals(mu, fpr):
    result = metrics.evaluate(*normal_scores(mu, 100_000))
    expected = stats.norm.cdf(stats.norm.ppf(fpr) + mu)
    assert result.tpr_at(fpr) == pytest.approx(expected, rel=0.01)


@ignore_sign_warning
@several
@hypothesis.given(tied_records())
def test_auc_is_the_mean_of_the_kernel(records):
    assert metrics.evaluate(*records).auc == pytest.approx(kernel(*records).mean(), rel=1e-14)


@ignore_sign_warning
@several
@hypothesis.given(tied_records())
def test_roc_by_trying_every_threshold(records):
    scores, is_member = records
    roc = metrics.evaluate(scores, is_member).roc()
    distinct = sorted(set(scores.tolist()), reverse=True)
    assert roc.thresholds.tolist() == [math.inf, *distinct]
    assert (roc.fpr[0], roc.tpr[0], roc.fpr[-1], roc.tpr[-1]) == (0, 0, 1, 1)
    for i, threshold in enumerate(distinct, start=1):
        assert roc.tpr[i] == np.mean(scores[is_member] >= threshold)
        assert roc.fpr[i] == np.mean(scores[~is_member] >= threshold)


@ignore_sign_warning
@several
@hypothesis.given(tied_records())
def test_area_under_the_joined_points_is_the_auc(records):
    result = metrics.evaluate(*records)
    roc = result.roc()
    assert np.trapezoid(roc.tpr, roc.fpr) == pytest.approx(result.auc, abs=1e-14)


@ignore_sign_warning
@several
@hypothesis.given(tied_records(st.integers(-1000, 1000).map(float)))
def test_only_the_order_of_scores_matters(records):
    scores, is_member = records
    result = metrics.evaluate(scores, is_member)
    mapped = metrics.evaluate(np.exp(scores / 100) - 7, is_member)
    assert mapped.auc == result.auc
    assert mapped.auc_interval() == result.auc_interval()
    assert mapped.tpr_at(0.5) == result.tpr_at(0.5)
    assert mapped.best_accuracy == result.best_accuracy
    assert mapped.epsilon() == result.epsilon()
    np.testing.assert_array_equal(mapped.roc().tpr, result.roc().tpr)


@ignore_sign_warning
@several
@hypothesis.given(tied_records())
def test_negated_scores_mirror_the_auc(records):
    scores, is_member = records
    result, mirrored = (metrics.evaluate(s, is_member) for s in (scores, -scores))
    assert mirrored.auc == pytest.approx(1 - result.auc, abs=1e-15)
    low, high = mirrored.auc_interval()
    assert (1 - high, 1 - low) == pytest.approx(result.auc_interval(), abs=1e-12)


def test_order_of_records_does_not_matter_and_is_kept():
    rng = np.random.default_rng(0)
    scores, is_member = random_scores(rng, 0.7, 300)
    scores = np.round(scores, 1)
    order = rng.permutation(scores.size)
    result = metrics.evaluate(scores, is_member)
    permuted = metrics.evaluate(scores[order], is_member[order])
    np.testing.assert_array_equal(permuted.scores, scores[order])
    assert permuted.auc == result.auc
    assert permuted.auc_interval() == pytest.approx(result.auc_interval(), abs=1e-13)
    assert permuted.tpr_interval(0.05) == result.tpr_interval(0.05)
    assert permuted.best_accuracy == result.best_accuracy
    assert permuted.epsilon(delta=0.01) == result.epsilon(delta=0.01)


# --- DeLong.


@pytest.mark.parametrize("decimals", [0, 1, 8], ids=["coarse", "tied", "untied"])
@pytest.mark.parametrize("sizes", [(7, 40), (40, 7), (60, 60)], ids=str)
def test_interval_width_is_delongs_by_brute_force(sizes, decimals):
    rng = np.random.default_rng(3)
    is_member = rng.permutation(np.arange(sum(sizes)) < sizes[0])
    scores = np.round(rng.normal(size=is_member.size) + 0.4 * is_member, decimals)
    result = metrics.evaluate(scores, is_member)
    error = math.sqrt(covariance_by_components(scores, scores, is_member))
    low, high = result.auc_interval(0.9)
    assert high - result.auc == pytest.approx(stats.norm.ppf(0.95) * error, rel=1e-12)
    assert result.auc - low == pytest.approx(stats.norm.ppf(0.95) * error, rel=1e-12)


def test_interval_is_cut_off_at_one():
    low, high = metrics.evaluate([5, 4, 3, 2, 1, 0], [1, 1, 0, 1, 0, 0]).auc_interval()
    assert 0 < low < 8 / 9 and high == 1


def test_interval_shrinks_with_the_root_of_n_and_grows_with_confidence():
    small, large = (metrics.evaluate(*normal_scores(1.0, n)) for n in (400, 1600))
    width = np.ptp(small.auc_interval())
    assert width / np.ptp(large.auc_interval()) == pytest.approx(2, rel=0.01)
    assert np.ptp(small.auc_interval(0.99)) / width == pytest.approx(2.5758 / 1.96, rel=1e-3)


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_perfect_separation_is_bounded_by_independent_pairs(n):
    scores = np.arange(3 * n)
    low, high = metrics.evaluate(scores, scores >= 2 * n).auc_interval()
    # With an AUC of `low`, n independent pairs are all concordant with probability 2.5%.
    assert high == 1 and low**n == pytest.approx(0.025)
    with pytest.warns(metrics.MetricWarning, match="sign") if n > 2 else warnings.catch_warnings():
        assert metrics.evaluate(-scores, scores >= 2 * n).auc_interval() == pytest.approx(
            (0, 1 - low)
        )


def test_constant_scores_have_an_interval_around_one_half():
    low, high = metrics.evaluate(np.ones(200), np.arange(200) < 100).auc_interval()
    assert low + high == pytest.approx(1)
    assert 2 * low == pytest.approx(0.025 ** (1 / 100))


@several
@hypothesis.given(tied_records())
@ignore_sign_warning
def test_no_auc_interval_is_a_point(records):
    result = metrics.evaluate(*records)
    low, high = result.auc_interval()
    assert 0 <= low <= result.auc <= high <= 1 and low < high


@ignore_sign_warning
@pytest.mark.parametrize("decimals", [0, None], ids=["tied", "untied"])
@pytest.mark.parametrize("mu", [0.0, 0.5, 1.5])
def test_auc_interval_covers(mu, decimals):
    grid = np.arange(-12, 13) + 0.5
    if decimals is None:
        truth = stats.norm.cdf(mu / math.sqrt(2))
    else:
        of_members, of_nonmembers = (np.diff(stats.norm.cdf(grid - m)) for m in (mu, 0))
        below = np.cumsum(of_nonmembers) - of_nonmembers / 2
        truth = float(of_members @ below)
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(1500):
        scores, is_member = random_scores(rng, mu, 150)
        if decimals is not None:
            scores = np.round(scores, decimals)
        low, high = metrics.evaluate(scores, is_member).auc_interval()
        hits += low <= truth <= high
    assert 0.925 <= hits / 1500 <= 0.98


@ignore_sign_warning
def test_intervals_of_shuffled_membership_contain_one_half():
    hits = below = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        is_member = rng.permutation(np.arange(250) < 100)
        low, high = metrics.evaluate(rng.standard_cauchy(250), is_member).auc_interval()
        hits += low <= 0.5 <= high
        below += high < 0.5
    assert 0.92 <= hits / 400 <= 0.98
    assert below / 400 < 0.05


# --- The paired difference.


@pytest.mark.parametrize("decimals", [0, 8], ids=["tied", "untied"])
def test_difference_is_delongs_by_brute_force(decimals):
    rng = np.random.default_rng(5)
    first, is_member = random_scores(rng, 1.0, 60)
    second = np.round(first + rng.normal(size=first.size), decimals)
    one, two = metrics.evaluate(first, is_member), metrics.evaluate(second, is_member)
    variance = (
        covariance_by_components(first, first, is_member)
        + covariance_by_components(second, second, is_member)
        - 2 * covariance_by_components(first, second, is_member)
    )
    value = kernel(first, is_member).mean() - kernel(second, is_member).mean()
    difference = one.auc_difference(two, confidence=0.9)
    assert difference.value == pytest.approx(value, abs=1e-14)
    half_width = stats.norm.ppf(0.95) * math.sqrt(variance)
    assert difference[1:3] == pytest.approx((value - half_width, value + half_width), abs=1e-12)
    z = abs(value) / math.sqrt(variance)
    assert difference.p_value == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)


def test_difference_is_antisymmetric():
    rng = np.random.default_rng(6)
    first, is_member = random_scores(rng, 1.0, 80)
    one = metrics.evaluate(first, is_member)
    two = metrics.evaluate(first + rng.normal(size=160), is_member)
    forth, back = one.auc_difference(two), two.auc_difference(one)
    assert forth.value > 0
    assert back == pytest.approx((-forth.value, -forth.high, -forth.low, forth.p_value))


def test_equally_ranked_scores_do_not_differ():
    scores, is_member = normal_scores(0.8, 50)
    one, two = metrics.evaluate(scores, is_member), metrics.evaluate(np.exp(scores), is_member)
    assert one.auc_difference(two) == (0, 0, 0, 1)


def test_two_perfect_attacks_are_not_proved_equal():
    is_member = np.arange(40) >= 20
    one = metrics.evaluate(np.arange(40), is_member)
    two = metrics.evaluate(np.where(is_member, 1, 0), is_member)
    q = 0.025 ** (1 / 20)
    assert one.auc_difference(two) == pytest.approx((0, q - 1, 1 - q, 1))


@pytest.mark.parametrize("n", [3, 8, 30])
def test_perfect_against_constant_agrees_with_its_own_p_value(n):
    is_member = np.arange(2 * n) >= n
    one = metrics.evaluate(np.arange(2 * n), is_member)
    two = metrics.evaluate(np.zeros(2 * n), is_member)
    difference = one.auc_difference(two)
    assert difference.value == 0.5 and difference.low < 0.5 <= difference.high
    assert (difference.low > 0) == (difference.p_value < 0.05)
    if difference.p_value < 1:
        at_the_edge = one.auc_difference(two, confidence=1 - difference.p_value)
        assert at_the_edge.low == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [10, 7])
def test_a_constant_difference_is_not_a_point(n):
    # Each of n members gains exactly one win, each non-member loses one: M N M N ... and N M N M.
    is_member = np.arange(2 * n) % 2 == 0
    one = metrics.evaluate(-np.arange(2 * n), is_member)
    two = metrics.evaluate(-(np.arange(2 * n) ^ 1), is_member)
    q = 0.025 ** (1 / n)
    expected = (1 / n, q / n - (1 - q), q / n + (1 - q))
    assert one.auc_difference(two)[:3] == pytest.approx(expected)


def test_difference_refuses_other_records():
    one = metrics.evaluate([3, 2, 1, 0], [1, 1, 0, 0])
    two = metrics.evaluate([3, 2, 1, 0], [1, 0, 1, 0])
    with pytest.raises(ValueError, match="different is_member.*same records"):
        one.auc_difference(two)


@ignore_sign_warning
@pytest.mark.parametrize("gap", [0.0, 0.6])
def test_paired_difference_covers(gap):
    # Correlation 0.8 between the two attacks, given membership.
    rng = np.random.default_rng(7)
    truth = stats.norm.cdf((0.4 + gap) / math.sqrt(2)) - stats.norm.cdf(0.4 / math.sqrt(2))
    hits = rejections = 0
    for _ in range(1200):
        shared, is_member = random_scores(rng, 0.0, 150)
        one, two = (
            math.sqrt(0.8) * shared + math.sqrt(0.2) * rng.normal(size=300) + mu * is_member
            for mu in (0.4 + gap, 0.4)
        )
        difference = metrics.evaluate(one, is_member).auc_difference(
            metrics.evaluate(two, is_member)
        )
        hits += difference.low <= truth <= difference.high
        rejections += difference.p_value < 0.05
    assert 0.925 <= hits / 1200 <= 0.98
    assert rejections / 1200 < 0.075 if gap == 0 else rejections / 1200 > 0.95


# --- Rates at a given FPR.


@pytest.mark.parametrize(
    ("fpr", "n", "allowed"),
    [
        (0.01, 800, 8),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (1 - 0.9, 10, 1),
        (3 * 0.1, 10, 3),
        (0.0099, 800, 7),
        (0.001, 1000, 1),
        (1e-6, 1_000_000, 1),
        (1.0, 50, 50),
    ],
)
def test_exactly_the_allowed_false_positives(fpr, n, allowed):
    # Member i lies just above non-member i, so that the TPR tells the count: one more than allowed.
    scores = np.concatenate([np.arange(n) + 0.5, np.arange(n)])
    result = metrics.evaluate(scores, np.arange(2 * n) < n)
    assert result.tpr_at(fpr) == min(allowed + 1, n) / n
    assert result.fpr_interval(fpr) == metrics.clopper_pearson(allowed, n)


def test_every_fraction_of_every_small_number_is_reached():
    for n in range(2, 120):
        scores = np.concatenate([np.arange(n) + 0.5, np.arange(n)])
        result = metrics.evaluate(scores, np.arange(2 * n) < n)
        for k in range(1, n):
            assert result.tpr_at(k / n) == (k + 1) / n
            assert result.tpr_at(float(f"{k / n:.15g}")) == (k + 1) / n


@ignore_sign_warning
@pytest.mark.filterwarnings("ignore:An FPR of:jaxmeter.metrics.MetricWarning")
@several
@hypothesis.given(tied_records(), st.integers(0, 20))
def test_tpr_by_trying_every_threshold(records, twentieths):
    scores, is_member = records
    fpr = Fraction(twentieths, 20)
    best = 0.0
    for threshold in set(scores.tolist()):
        flagged = scores >= threshold
        if Fraction(int(flagged[~is_member].sum()), int((~is_member).sum())) <= fpr:
            best = max(best, flagged[is_member].mean())
    assert metrics.evaluate(scores, is_member).tpr_at(float(fpr)) == best


def test_a_tied_block_is_flagged_whole_or_not_at_all():
    scores, is_member = separated(30, 100, 10, 100)
    result = metrics.evaluate(scores, is_member)
    assert result.tpr_at(0.09) == 0
    assert result.tpr_at(0.10) == result.tpr_at(0.99) == 0.3
    assert result.fpr_interval(0.5) == metrics.clopper_pearson(10, 100)  # Realised, not allowed.
    assert result.tpr_interval(0.5, 0.9) == metrics.clopper_pearson(30, 100, 0.9)


def test_unresolvable_fpr_warns_with_the_numbers():
    result = metrics.evaluate(*normal_scores(2.0, 800))
    assert result.resolvable_fpr == 1 / 800
    message = r"FPR of 0\.001 .*800 non-members.*0\.00125.*At least 1000 non-members.*0\.0046"
    for method in (result.tpr_at, result.tpr_interval, result.fpr_interval):
        with pytest.warns(metrics.MetricWarning, match=message) as caught:
            method(0.001)
        assert caught[0].filename == __file__
    with pytest.warns(metrics.MetricWarning, match="No number of non-members"):
        at_zero = result.tpr_at(0.0)
    with pytest.warns(metrics.MetricWarning, match="At least 1429 non-members"):
        assert result.tpr_at(0.0007) == at_zero
    with pytest.warns(metrics.MetricWarning, match="At least 927 non-members"):
        result.tpr_at(1 / 927)  # 1 / (1 / 927) rounds to above 927.
    assert at_zero == np.mean(result.scores[:800] > result.scores[800:].max()) > 0
    assert result.tpr_at(1 / 800) > at_zero  # Resolvable: no warning.


def test_rate_intervals_cover_the_rates_of_the_threshold():
    # The non-members choose the threshold; 20 of 500 are allowed above it.
    rng = np.random.default_rng(8)
    tpr_hits = fpr_hits = 0
    for _ in range(1000):
        scores, is_member = random_scores(rng, 1.0, 500)
        result = metrics.evaluate(scores, is_member)
        threshold = np.sort(scores[~is_member])[-21]  # Flagged: strictly above.
        tpr, fpr = result.tpr_interval(0.04), result.fpr_interval(0.04)
        tpr_hits += tpr.low <= stats.norm.sf(threshold - 1) <= tpr.high
        fpr_hits += fpr.low <= stats.norm.sf(threshold) <= fpr.high
    assert 0.94 <= tpr_hits / 1000 <= 0.985
    assert 0.94 <= fpr_hits / 1000 <= 0.985


@pytest.mark.parametrize(
    ("prior", "ppv"), [(0.5, 0.988), (0.1, 0.903), (0.01, 0.459), (0.001, 0.078)]
)
def test_ppv_of_a_published_operating_point(prior, ppv):
    # TPR 8.4% at FPR 0.1%: LiRA on CIFAR-10 (Carlini et al. 2022, table I).
    result = metrics.evaluate(*separated(84, 1000, 1, 1000))
    assert result.ppv(0.001, prior) == pytest.approx(ppv, abs=6e-4)
    low, high = result.ppv_interval(0.001, prior)
    assert 0 < low < result.ppv(0.001, prior) < high < 1
    # Odds of the extremes, each rate at 97.5%.
    tpr, fpr = (metrics.clopper_pearson(k, 1000, 0.975) for k in (84, 1))
    assert low / (1 - low) == pytest.approx(prior / (1 - prior) * tpr.low / fpr.high)
    assert high / (1 - high) == pytest.approx(prior / (1 - prior) * tpr.high / fpr.low)


def test_ppv_uses_the_realised_fpr_and_is_nan_if_nothing_is_flagged():
    result = metrics.evaluate(*separated(30, 100, 10, 100))
    assert result.ppv(0.5, 0.2) == pytest.approx(0.2 * 0.3 / (0.2 * 0.3 + 0.8 * 0.1))
    assert math.isnan(result.ppv(0.05, 0.2))
    assert result.ppv_interval(0.05, 0.2) == (0, 1)


def test_ppv_interval_covers():
    rng = np.random.default_rng(9)
    truth, hits = 0.1 * 0.2 / (0.1 * 0.2 + 0.9 * 0.02), 0
    for _ in range(500):
        true_positives, false_positives = rng.binomial(400, 0.2), rng.binomial(400, 0.02)
        result = metrics.evaluate(*separated(true_positives, 400, false_positives, 400))
        low, high = result.ppv_interval(0.9, 0.1)
        hits += low <= truth <= high
    assert 0.95 <= hits / 500


# --- Accuracy.


def test_accuracy_at_a_given_threshold():
    scores, is_member = normal_scores(1.0, 2000)
    result = metrics.evaluate(scores, is_member, threshold=0.3)
    expected = (stats.norm.sf(0.3 - 1) + stats.norm.cdf(0.3)) / 2
    assert result.accuracy == pytest.approx(expected, abs=5e-4)
    assert metrics.evaluate(scores, is_member, threshold=-math.inf).accuracy == 0.5


def test_balanced_accuracy_weighs_both_kinds_alike():
    result = metrics.evaluate(*separated(3, 4, 40, 400), threshold=1.0)  # The tie is flagged.
    assert result.accuracy == pytest.approx((0.75 + 0.9) / 2)


def test_accuracy_without_a_threshold_by_two_explicit_folds():
    rng = np.random.default_rng(10)
    is_member = rng.permutation(np.arange(151) < 60)
    scores = rng.normal(size=151) + is_member
    members, nonmembers = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    even = np.sort(np.concatenate([members[::2], nonmembers[::2]]))
    odd = np.setdiff1d(np.arange(151), even)
    hits = {True: 0, False: 0}
    for chosen_on, judged in ((even, odd), (odd, even)):
        threshold = metrics.best_threshold(scores[chosen_on], is_member[chosen_on])
        for record in judged:
            hits[bool(is_member[record])] += (scores[record] >= threshold) == is_member[record]
    expected = (hits[True] / 60 + hits[False] / 91) / 2
    assert metrics.evaluate(scores, is_member).accuracy == pytest.approx(expected, rel=1e-14)


@ignore_sign_warning
def test_accuracy_of_noise_is_one_half_but_best_accuracy_is_not():
    rng = np.random.default_rng(11)
    results = [metrics.evaluate(*random_scores(rng, 0.0, 50)) for _ in range(400)]
    honest = np.array([result.accuracy for result in results])
    best = np.array([result.best_accuracy for result in results])
    assert abs(honest.mean() - 0.5) < 4 * honest.std() / 20
    assert best.mean() > 0.55 and np.all(best >= 0.5)


@ignore_sign_warning
@several
@hypothesis.given(tied_records())
def test_best_accuracy_and_best_threshold_by_trying_every_threshold(records):
    scores, is_member = records

    def accuracy(threshold):
        return metrics.evaluate(scores, is_member, threshold=threshold).accuracy

    best = max(0.5, *(accuracy(threshold) for threshold in scores))
    assert metrics.evaluate(scores, is_member).best_accuracy == pytest.approx(best, abs=1e-15)
    assert accuracy(metrics.best_threshold(scores, is_member)) == pytest.approx(best, abs=1e-15)


@pytest.mark.parametrize(
    ("members", "nonmembers", "expected"),
    [
        ([4, 3], [1, 0], 2.0),
        ([2], [1], 1.5),
        ([10, 8, 6], [9, 7, 5], 7.5),  # 9.5, 7.5, 5.5 are equally good: the middle one.
        ([10, 6], [8, 4], 9.0),  # 9 and 5 are, and equally far from the middle: the larger.
        ([1e308], [-1e308], 0.0),  # No overflow.
        ([1.5e308], [1e308], 1.25e308),
        ([math.inf], [-math.inf], 0.0),
        ([math.inf, 4.0], [-math.inf, 2.0], 3.0),
        ([math.inf], [0.0, 2.0], 3.0),  # +inf counts as 2 + 2.
        ([0.0, 2.0], [-math.inf], -1.0),
        ([0.0], [-math.inf], -0.5),  # No range: 1.
        ([1.0], [1.0], math.inf),
        ([math.inf], [math.inf], -math.inf),  # "Nothing" is out of reach of `>=`.
        ([0.0], [1.0], math.inf),
    ],
)
def test_best_threshold_by_hand(members, nonmembers, expected):
    is_member = np.arange(len(members) + len(nonmembers)) < len(members)
    assert metrics.best_threshold([*members, *nonmembers], is_member) == expected


def test_best_threshold_between_neighbouring_floats_still_separates():
    low = 1.0
    high = np.nextafter(low, 2)
    assert metrics.best_threshold([high, low], [1, 0]) == high


def test_accuracy_interval_is_mover_by_hand():
    result = metrics.evaluate(*separated(80, 100, 30, 200), threshold=0.5)
    (l1, u1), (l2, u2) = (
        stats.binomtest(k, n).proportion_ci(0.9, method="exact") for k, n in ((80, 100), (170, 200))
    )
    low = 0.825 - math.sqrt(((0.8 - l1) / 2) ** 2 + ((0.85 - l2) / 2) ** 2)
    high = 0.825 + math.sqrt(((u1 - 0.8) / 2) ** 2 + ((u2 - 0.85) / 2) ** 2)
    assert result.accuracy_interval(0.9) == pytest.approx((low, high), rel=1e-9)


def test_accuracy_interval_covers_exactly_computed():
    # The sum over all pairs of binomial outcomes, for rates in the middle and near the edge.
    n, counts = 30, np.arange(31)
    for tpr, tnr in ((0.5, 0.5), (0.7, 0.6), (0.95, 0.9), (0.02, 0.99)):
        weights = np.outer(stats.binom.pmf(counts, n, tpr), stats.binom.pmf(counts, n, tnr))
        covered = 0.0
        for positives in counts:
            for negatives in counts:
                if weights[positives, negatives] > 1e-6:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", metrics.MetricWarning)
                        result = metrics.evaluate(
                            *separated(positives, n, n - negatives, n), threshold=0.5
                        )
                    low, high = result.accuracy_interval()
                    covered += weights[positives, negatives] * (low <= (tpr + tnr) / 2 <= high)
        assert 0.945 <= covered <= 1


@ignore_sign_warning
def test_accuracy_interval_of_two_folds_covers():
    rng = np.random.default_rng(12)
    hits = 0
    for _ in range(800):
        scores, is_member = random_scores(rng, 1.0, 100)
        low, high = metrics.evaluate(scores, is_member).accuracy_interval()
        even = np.arange(200) % 2 == 0
        thresholds = np.array(
            [metrics.best_threshold(scores[fold], is_member[fold]) for fold in (even, ~even)]
        )
        truth = np.mean(stats.norm.sf(thresholds - 1) + stats.norm.cdf(thresholds)) / 2
        hits += low <= truth <= high
    assert 0.93 <= hits / 800 <= 0.99


# --- Clopper-Pearson.


@pytest.mark.parametrize("trials", [1, 2, 7, 50, 3000])
def test_clopper_pearson_is_scipys(trials):
    for successes in {0, 1, trials // 3, trials - 1, trials}:
        for confidence in (0.8, 0.95, 0.999):
            expected = stats.binomtest(successes, trials).proportion_ci(confidence, "exact")
            interval = metrics.clopper_pearson(successes, trials, confidence)
            assert interval == pytest.approx(tuple(expected), rel=1e-8)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("trials", [1, 5, 40])
def test_clopper_pearson_covers_by_enumeration(trials, confidence):
    intervals = [metrics.clopper_pearson(k, trials, confidence) for k in range(trials + 1)]
    lows, highs = np.array(intervals).T
    for p in np.linspace(0, 1, 501):
        covered = stats.binom.pmf(np.arange(trials + 1), trials, p)[(lows <= p) & (p <= highs)]
        assert covered.sum() >= confidence - 1e-9


def test_clopper_pearson_bounds_solve_their_equations():
    low, high = metrics.clopper_pearson(25, 25_000)
    assert stats.binom.sf(24, 25_000, low) == pytest.approx(0.025, rel=1e-9)
    assert stats.binom.cdf(25, 25_000, high) == pytest.approx(0.025, rel=1e-9)
    assert (low, high) == pytest.approx((0.00065, 0.00148), abs=1e-5)


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5), (0, 0)])
def test_clopper_pearson_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match="successes in"):
        metrics.clopper_pearson(*counts)


# --- Epsilon.


@pytest.mark.parametrize("delta", [0.0, 1e-2])
def test_epsilon_is_that_of_jax_privacy(delta):
    scores, is_member = random_scores(np.random.default_rng(13), 1.0, 700)
    result = metrics.evaluate(scores, is_member)
    auditor = auditing.CanaryScoreAuditor(scores[is_member], scores[~is_member])
    for method, strategy in (
        ("bonferroni", auditing.Bonferroni()),
        ("split", auditing.Split(seed=5)),
    ):
        expected = auditor.epsilon_clopper_pearson(0.1, delta, threshold_strategy=strategy)
        ours = result.epsilon(delta=delta, confidence=0.9, method=method, seed=5)
        assert ours == pytest.approx(expected, rel=1e-12) and ours > 0


def test_epsilon_of_infinite_scores_is_that_of_their_ranks():
    scores, is_member = separated(80, 100, 5, 100)
    with np.errstate(divide="ignore"):
        infinite = np.log(scores) - np.log(1 - scores)
    assert np.all(np.isinf(infinite))
    expected = metrics.evaluate(scores, is_member).epsilon()
    assert metrics.evaluate(infinite, is_member).epsilon() == expected > 1


def test_epsilon_split_depends_on_its_seed_only():
    result = metrics.evaluate(*normal_scores(1.0, 300))
    bounds = [result.epsilon(method="split", seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert bounds[0] == bounds[1] and len(set(bounds)) > 1


@ignore_sign_warning
@pytest.mark.parametrize("method", ["bonferroni", "split"])
def test_epsilon_of_noise_stays_zero(method):
    rng = np.random.default_rng(14)
    bounds = [
        metrics.evaluate(*random_scores(rng, 0.0, 200)).epsilon(method=method, seed=run)
        for run in range(400)
    ]
    assert np.mean(np.array(bounds) == 0) >= 0.95


@pytest.mark.parametrize("method", ["bonferroni", "split"])
def test_epsilon_is_valid_where_every_threshold_is_worst(method):
    # Laplace scores one scale apart: the likelihood ratio is e^1 at every threshold above 1, so
    # taking the best threshold without a correction overshoots.
    rng = np.random.default_rng(15)
    is_member = np.arange(1000) < 500
    above = 0
    for run in range(300):
        result = metrics.evaluate(rng.laplace(size=1000) + is_member, is_member)
        above += result.epsilon(method=method, seed=run) > 1
    assert above / 300 <= 0.05


@pytest.mark.parametrize("method", ["bonferroni", "split"])
def test_epsilon_of_a_gaussian_pair_is_below_the_truth_and_not_far(method):
    def excess(epsilon):  # delta(epsilon) of a 1-GDP pair: Balle and Wang 2018, theorem 8.
        return stats.norm.cdf(0.5 - epsilon) - math.exp(epsilon) * stats.norm.cdf(-0.5 - epsilon)

    truth = optimize.brentq(lambda epsilon: excess(epsilon) - 0.01, 0, 20)
    result = metrics.evaluate(*normal_scores(1.0, 20_000))
    assert 0.75 * truth < result.epsilon(delta=0.01, method=method) < truth


def test_epsilon_of_randomised_response_is_tight():
    n, truth = 20_000, 2.0
    kept = round(n * math.exp(truth) / (1 + math.exp(truth)))
    result = metrics.evaluate(*separated(kept, n, n - kept, n))
    assert 0.95 * truth < result.epsilon() < truth
    assert result.epsilon(confidence=0.999) < result.epsilon() < result.epsilon(confidence=0.6)


# --- Input.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_callers_arrays_are_copied_and_left_alone(dtype):
    scores, is_member = normal_scores(1.0, 20)
    scores = scores.astype(dtype)
    before = scores.copy(), is_member.copy()
    result = metrics.evaluate(scores, is_member)
    result.roc(), result.accuracy, result.epsilon(method="split")
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(is_member, before[1])
    auc = result.auc
    scores[:], is_member[:] = 0, True
    assert metrics.evaluate(result.scores, result.is_member).auc == auc == result.auc
    assert scores.flags.writeable and result.scores.dtype == np.float64


def test_a_result_cannot_be_changed():
    result = metrics.evaluate([3, 2, 1, 0], [1, 1, 0, 0])
    with pytest.raises(ValueError, match="read-only"):
        result.scores[0] = 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.threshold = 1.0
    result.roc().thresholds[:] = 0
    assert result.roc().thresholds.tolist() == [math.inf, 3, 2, 1, 0]


@pytest.mark.parametrize("is_member", [[True, True, False], [1, 1, 0], [1.0, 1.0, 0.0]], ids=str)
def test_membership_as_bool_int_or_float(is_member):
    result = metrics.evaluate([3, 1, 2, 0], np.array([*is_member, is_member[-1]]))
    assert (result.auc, result.n_members, result.n_nonmembers) == (0.75, 2, 2)
    assert result.is_member.dtype == bool


@pytest.mark.parametrize(
    ("scores", "is_member", "message"),
    [
        ([[1.0], [2.0]], [0, 1], r"scores has shape \(2, 1\).*one axis.*Flatten"),
        ([1.0, 2.0], [[0, 1]], r"is_member has shape \(1, 2\)"),
        ([1, 2, 3, 4], [0, 1, 1], "4 scores but 3 entries"),
        ([1, math.nan, 3, math.nan], [0, 1, 1, 0], r"2 of 4 scores are NaN \(positions 1, 3\)"),
        ([math.nan] * 9, [0, 1, 1] * 3, r"9 of 9 .*0, 1, 2, 3, 4, \.\.\.\)"),
        ([1, 2, 3, 4], [0, 1, 2, -1], r"2 entries of is_member are neither.*-1, 2"),
        ([1, 2, 3, 4], [0, 1, 1, math.nan], "1 entries of is_member are neither"),
        ([1, 2, 3, 4], [1, 1, 1, 1], "4 members and 0 non-members, but at least 2"),
        ([1, 2, 3, 4], [1, 0, 0, 0], "1 members and 3 non-members, but at least 2"),
        ([], [], "0 members and 0 non-members"),
        ([1j, 2, 3, 4], [1, 0, 1, 0], "complex"),
    ],
)
def test_bad_records_are_refused_with_advice(scores, is_member, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(scores, is_member)


def test_best_threshold_refuses_one_kind_alone():
    with pytest.raises(ValueError, match="2 members and 0 non-members, but at least 1"):
        metrics.best_threshold([1, 2], [1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda result: result.auc_interval(95), "confidence must be.*got 95.*0.95 for 95%"),
        (lambda result: result.auc_difference(result, 1.0), "confidence must be"),
        (lambda result: result.accuracy_interval(0), "confidence must be"),
        (lambda result: result.tpr_at(1.5), r"fpr must be in \[0, 1\], got 1.5"),
        (lambda result: result.tpr_at(math.nan), "fpr must be"),
        (lambda result: result.fpr_interval(-0.1), "fpr must be"),
        (lambda result: result.ppv(0.5, 0), "prior must be strictly between 0 and 1, got 0"),
        (lambda result: result.epsilon(delta=1.0), "delta must be"),
        (lambda result: result.epsilon(confidence=0.3), "confidence must be strictly between 0.5"),
        (lambda result: result.epsilon(method="max"), '"bonferroni" or "split", got .max.'),
    ],
)
def test_bad_arguments_are_refused_with_advice(call, message):
    with pytest.raises(ValueError, match=message):
        call(metrics.evaluate([3, 2, 1, 0], [1, 1, 0, 0]))


def test_nan_threshold_is_refused():
    with pytest.raises(ValueError, match="threshold is NaN"):
        metrics.evaluate([3, 2, 1, 0], [1, 1, 0, 0], threshold=math.nan)


def test_a_wrong_sign_warns_and_a_right_one_does_not():
    scores, is_member = normal_scores(1.0, 100)
    metrics.evaluate(scores, is_member)
    with pytest.warns(metrics.MetricWarning, match=r"AUC is 0\.2.*a sign is wrong") as caught:
        metrics.evaluate(-scores, is_member)
    assert caught[0].filename == __file__


def test_repr_tells_the_result_and_not_the_arrays():
    text = repr(metrics.evaluate(*normal_scores(0.0, 500)))
    assert text.startswith("AttackResult(auc=0.5000 [0.46") and "n_members=500" in text
    assert len(text) < 120
