"""Calibrated features against their definition in loops; what they and networks on them must not
know; what networks must find, by closed form; and the audit's attacks made of them."""

import warnings
from functools import partial

import jax
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

import jaxmeter as jm
from jaxmeter import reference
from jaxmeter.attacks.interface import Evidence, ReferenceSignals
from jaxmeter.attacks.white_box import stacked
from jaxmeter.auditing.references import seen_by, trained
from jaxmeter.metrics import AttackResult
from jaxmeter.reference import OFFLINE, ONLINE, NetworkConfig, ReferenceWarning
from jaxmeter.reference.calibration import disjoint_groups
from jaxmeter.shadow import RecipeConfig, balanced_membership, of_functions

QUICK = NetworkConfig(widths=(16,), steps=384, batch_size=256, learning_rate=1e-2)
UNTAUGHT = NetworkConfig(widths=(4,), steps=1, learning_rate=1e-9)
ONLINE_AND_OFFLINE = pytest.mark.parametrize("online", [True, False])
calibrate = reference.calibrate


def drawn(design, k, n, seed=0):
    """What k models were trained on, `[k, n]`, each on about half of the records."""
    random = np.random.default_rng(seed)
    if design == "pairs":
        return np.asarray(balanced_membership(jax.random.key(seed), k, n))
    if design == "independent":
        return random.random((k, n)) < 0.5
    return np.argsort(random.random((k, n)), axis=0) < k // 2  # balanced, and no pairs


def noise(k, n, s=3, seed=0):
    """Signals of which every record has its own level and spread, and every model its own level."""
    random = np.random.default_rng(seed + 100)
    levels = 3 * random.normal(size=(s, n)) + random.normal(size=(k, 1, 1))
    return levels + np.exp(0.3 * random.normal(size=(s, n))) * random.normal(size=(k, s, n))


def frozen(*arrays):
    """Arrays that cannot be written to."""
    for array in arrays:
        array.setflags(write=False)
    return arrays


def interval(scores, is_member):
    return AttackResult(scores=np.ravel(scores), is_member=np.ravel(is_member)).auc_interval()


def holds_half(scores, is_member):
    low, high = interval(scores, is_member)
    return low <= 0.5 <= high


# --- features -------------------------------------------------------------------------------------


def ratio(value, centres, sds):
    inside, outside = (norm.logpdf(value, *one) for one in zip(centres, sds, strict=True))
    return inside - outside


def by_definition(observed, references, seen, online):
    """Features of one target, number by number."""
    k, s, n = references.shape
    found = np.empty((n, s, len(ONLINE if online else OFFLINE)))
    for q in range(s):
        values = [
            [[references[m, q, i] for m in range(k) if seen[m, i] == side] for i in range(n)]
            for side in (True, False)
        ]
        means = [[np.mean(v) if v else None for v in side] for side in values]
        both = [i for i in range(n) if values[0][i] and values[1][i]]
        shift = np.mean([means[0][i] - means[1][i] for i in both]) if both else 0
        for i in range(n):
            means[0][i] = means[1][i] + shift if means[0][i] is None else means[0][i]
            means[1][i] = means[0][i] - shift if means[1][i] is None else means[1][i]
        squares = [[sum((x - np.mean(v)) ** 2 for x in v) for v in side] for side in values]
        freedom = [[max(len(v) - 1, 0) for v in side] for side in values]
        shared = [
            sum(a) / sum(f) if sum(f) else np.var(np.subtract(*means)) / 2
            for a, f in zip(squares, freedom, strict=True)
        ]
        middle = [(a + b) / 2 if online else b for a, b in zip(*means, strict=True)]
        level = np.mean([observed[q, i] - middle[i] for i in range(n)])
        for i in range(n):
            value = observed[q, i] - level
            more = [1 + 1 / max(len(values[side][i]), 1) for side in range(2)]
            common = [np.sqrt(shared[side] * more[side]) for side in range(2)]
            own = [
                np.sqrt((4 * shared[j] + squares[j][i]) / (4 + freedom[j][i]) * more[j])
                for j in range(2)
            ]
            apart = [value - means[side][i] for side in range(2)]

            centres = [means[0][i], means[1][i]]

            if online:
                found[i, q] = [
                    value,
                    apart[0] / common[0],
                    apart[1] / common[1],
                    (means[0][i] - means[1][i]) / np.sqrt((common[0] ** 2 + common[1] ** 2) / 2),
                    ratio(value, centres, common),
                    ratio(value, centres, own),
                    *np.log(own),
                ]
            else:
                found[i, q] = [value, apart[1] / common[1], apart[1] / own[1], np.log(own[1])]
    return found


@ONLINE_AND_OFFLINE
@pytest.mark.parametrize(("design", "k"), [("pairs", 8), ("independent", 5), ("pairs", 2)])
def test_features_are_their_definition(design, k, online):
    seen, values = drawn(design, k, 40), noise(k, 40)
    observed = noise(1, 40, seed=7)[0]
    found = calibrate(*frozen(observed, values, seen), online=online)
    expected = by_definition(observed, values, seen, online)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    if k > 2:
        use = [3, 0, 1]
        found = calibrate(observed, values, seen, models=use, online=online)
        expected = by_definition(observed, values[use], seen[use], online)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    single = calibrate(observed[0], values[:, 0], seen, online=online)
    every = calibrate(observed, values, seen, online=online)
    np.testing.assert_allclose(single[:, 0], every[:, 0], rtol=1e-12, atol=1e-12)


def test_the_first_ratio_is_liras_but_for_what_few_models_do_not_know():
    seen, values = drawn("pairs", 16, 300), noise(16, 300, s=1)
    values = values - values.mean(axis=(1, 2), keepdims=True)  # no levels to be taken out
    observed = noise(1, 300, s=1, seed=5)[0, 0]
    mine = calibrate(observed, values[:, 0], seen)[
        :, 0, ONLINE.index("log-ratio, shared variances")
    ]
    level = observed - (observed - values[:, 0].mean(axis=0)).mean()
    lira = reference.lira(level, values[:, 0], seen)
    assert np.corrcoef(mine, lira)[0, 1] > 0.999


@ONLINE_AND_OFFLINE
@pytest.mark.parametrize(
    ("design", "k", "pairs"),
    [
        ("pairs", 8, None),
        ("pairs", 4, None),  # one model a side is left
        ("independent", 6, None),
        ("independent", 6, [[0, 4], [5, 1]]),
        ("pairs", 6, []),
    ],
)
def test_left_out_features_are_those_by_the_others(design, k, pairs, online):
    seen, values = drawn(design, k, 60), noise(k, 60)
    found = reference.calibrate_left_out(*frozen(values, seen), pairs=pairs, online=online)
    if pairs is None:
        pairs = np.arange(k).reshape(-1, 2) if design == "pairs" else []
    for j in range(k):
        group = {j, *(int(i) for pair in pairs if j in pair for i in pair)}
        rest = [i for i in range(k) if i not in group]
        expected = calibrate(values[j], values, seen, models=rest, online=online)
        np.testing.assert_allclose(found[j], expected, rtol=1e-9, atol=1e-9)


@ONLINE_AND_OFFLINE
def test_a_models_features_know_nothing_of_what_it_or_its_complement_was_trained_on(online):
    seen, values = drawn("pairs", 6, 50), noise(6, 50)
    left_out = partial(reference.calibrate_left_out, online=online)
    before = left_out(values, seen)
    moved, swapped = values.copy(), seen.copy()
    moved[3] += 100 * np.random.default_rng(0).normal(size=(3, 50))  # the complement of model 2
    swapped[[2, 3]] = seen[[3, 2]]
    np.testing.assert_allclose(left_out(moved, seen)[2], before[2], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(left_out(values, swapped)[2:4], before[2:4], rtol=1e-9, atol=1e-9)
    assert np.abs(left_out(moved, seen)[0] - before[0]).max() > 1, "of the others it is a reference"
    names = ONLINE if online else OFFLINE
    of_others = [
        i for i, name in enumerate(names) if name.startswith("log sd") or name == "IN over OUT"
    ]
    after = left_out(moved, seen)[3]
    np.testing.assert_allclose(
        after[..., of_others], before[3][..., of_others], rtol=1e-8, atol=1e-8
    )
    assert np.abs(after - before[3]).max() > 10


def test_a_targets_level_is_taken_out():
    seen, values = drawn("pairs", 6, 50), noise(6, 50)
    observed = noise(1, 50, seed=3)[0]
    for online in (True, False):
        found = [calibrate(o, values, seen, online=online) for o in (observed, observed + 10)]
        np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_refused():
    seen, values = drawn("pairs", 4, 20), noise(4, 20)
    with pytest.raises(ValueError, match=r"observed has the shape \(3, 19\)"):
        calibrate(values[0, :, :19], values, seen)
    with pytest.raises(ValueError, match="must be bool"):
        calibrate(values[0], values, seen.astype(int))
    with pytest.raises(ValueError, match=r"references must be \[k, n\]"):
        calibrate(values[0], values[..., None].swapaxes(2, 3), seen)
    broken, unseen = values.copy(), values[0].copy()
    broken[2, 1, 3], unseen[0, 5] = np.nan, np.inf
    run = [partial(calibrate, values[0]), reference.calibrate_left_out]
    for one in (*run, partial(reference.learn, jax.random.key(0))):
        with pytest.raises(
            ValueError, match="signal 1 of reference model 2 for record 3 is nan; leave the model"
        ):
            one(broken, seen)
    with pytest.raises(ValueError, match="observed of 1 records is not finite"):
        calibrate(unseen, values, seen)
    none, every = np.zeros_like(seen), np.ones_like(seen)
    with pytest.raises(ValueError, match="left saw any.*Offline attacks"):
        calibrate(values[0], values, none)
    with pytest.raises(ValueError, match="left did not see any"):
        calibrate(values[0], values, every, online=False)
    calibrate(values[0], values, none, online=False)
    with pytest.raises(ValueError, match="more than one pair; give disjoint pairs"):
        reference.calibrate_left_out(values, seen, pairs=[[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="2 reference models in 1 groups.*at least two"):
        reference.learn(jax.random.key(0), values[:2], seen[:2])


# --- the back door --------------------------------------------------------------------------------


def test_the_number_of_other_models_gives_nobody_away():
    pairs = drawn("pairs", 8, 500)
    for seen in (pairs, drawn("independent", 9, 500)):
        low, high = reference.count_leak(seen).auc_interval()
        assert low <= 0.5 <= high
    assert reference.count_leak(pairs, pairs=[]).auc == 1
    alone = drawn("balanced", 8, 500)
    assert reference.count_leak(alone).auc == 1
    mixed = np.concatenate([pairs[:2], drawn("balanced", 4, 500)])  # a pair among others
    assert reference.count_leak(mixed).auc > 0.7
    for seen, given in ((alone, None), (mixed, None), (pairs, []), (pairs, [[0, 2], [1, 3]])):
        with pytest.raises(
            ValueError, match="exactly . of . models, and not all are left out with"
        ):
            disjoint_groups(seen, given)
        with pytest.raises(ValueError, match="Draw members in complementary pairs"):
            reference.learn(jax.random.key(0), noise(len(seen), 500), seen, pairs=given)
    assert disjoint_groups(pairs, None) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert disjoint_groups(pairs[:7], None)[3] == [6]  # the others' counts are alike for it too
    assert reference.count_leak(pairs[:7]).auc == 0.5
    assert len(disjoint_groups(drawn("independent", 5, 500), None)) == 5


@pytest.mark.parametrize(("design", "auc"), [("pairs", 0.5), ("independent", 0.5), ("balanced", 1)])
def test_classifiers_on_counts(design, auc):
    k, n = 8, 500
    seen = drawn(design, k, n)
    groups = [[i, i + 1] for i in range(0, k, 2)] if design == "pairs" else [[i] for i in range(k)]
    counts = np.empty((k, n))
    for group in groups:
        counts[group] = np.delete(seen, group, axis=0).sum(axis=0)
    for model in (LogisticRegression(), DecisionTreeClassifier(max_depth=3)):
        scores = np.empty((k, n))
        for group in groups:
            rest = np.setdiff1d(np.arange(k), group)
            model.fit(counts[rest].reshape(-1, 1), seen[rest].ravel())
            for j in group:
                scores[j] = model.predict_proba(counts[j][:, None])[:, 1]
        result = AttackResult(scores=scores.ravel(), is_member=seen.ravel())
        assert abs(result.auc - auc) < 0.03, type(model)


# --- networks: nothing where there is nothing -----------------------------------------------------


def test_noise_teaches_nothing():
    k, n = 10, 400
    seen, values = drawn("pairs", k, n), noise(k, n)
    found = reference.learn(jax.random.key(0), *frozen(values, seen), config=QUICK)
    assert sum(holds_half(*both) for both in zip(found.left_out, seen, strict=True)) >= 8
    pooled = AttackResult(scores=found.left_out.ravel(), is_member=seen.ravel())
    assert abs(pooled.auc - 0.5) < 0.03


def test_noise_teaches_nothing_where_members_are_drawn_independently():
    seen, values = drawn("independent", 10, 400), noise(10, 400)
    config = NetworkConfig(steps=1000, batch_size=256)
    found = reference.learn(jax.random.key(0), values, seen, config=config)
    pooled = AttackResult(scores=found.left_out.ravel(), is_member=seen.ravel())
    assert abs(pooled.auc - 0.5) < 0.03


@pytest.mark.parametrize("design", ["pairs", "independent"])
def test_noise_of_a_target_is_never_found(design):
    """Twenty targets that the networks cannot know, whose members are drawn anew."""
    k, n = 8, 300
    seen, values = drawn(design, k, n), noise(k + 20, n)
    found = reference.learn(jax.random.key(0), values[:k], seen, config=QUICK)
    random = np.random.default_rng(0)
    scores = (found.scores(target, values[:k], seen) for target in values[k:])
    assert sum(holds_half(score, random.random(n) < 0.5) for score in scores) >= 16


def with_effect(k, n, effects=(1.0, 0.5), seed=0, design="pairs"):
    """Signals of the form level + effect * member + noise."""
    seen = drawn(design, k, n, seed)
    return noise(k, n, len(effects), seed) + np.array(effects)[:, None] * seen[:, None], seen


def test_shuffled_membership_of_a_held_out_model_is_not_found():
    values, seen = with_effect(10, 300)
    found = reference.learn(jax.random.key(1), values[2:], seen[2:], config=QUICK)
    scores = found.scores(values[0], values[2:], seen[2:])
    assert interval(scores, seen[0]).low > 0.55
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(20):  # other models, whose members are drawn anew
        one, truth = noise(1, 300, 2, seed)[0], random.random(300) < 0.5
        one += np.array([[1.0], [0.5]]) * truth
        inside += holds_half(found.scores(one, values[2:], seen[2:]), random.permutation(truth))
    assert inside >= 16


# --- networks: what there is ----------------------------------------------------------------------


def test_two_signals_say_together_what_the_first_does_not():
    """The first is member + e + noise, the second e + noise: the best attack is known."""
    k, n = 24, 1500
    random = np.random.default_rng(0)
    seen = drawn("pairs", k, n)
    e = 2 * random.normal(size=(k, n))
    values = np.stack([e + seen, e], axis=1) + 0.5 * random.normal(size=(k, 2, n))
    values += 3 * random.normal(size=(2, n))
    found = reference.learn(jax.random.key(0), values[2:], seen[2:], config=QUICK)
    assert found.uses_networks
    covariance = np.array([[4.25, 4.0], [4.0, 4.25]])
    d = np.sqrt(np.linalg.inv(covariance)[0, 0])
    best, first = norm.cdf(d / np.sqrt(2)), norm.cdf(1 / np.sqrt(2 * 4.25))
    pooled = AttackResult(scores=found.left_out.ravel(), is_member=seen[2:].ravel())
    print(f"best {best:.4f}, first alone {first:.4f}, found {pooled.auc:.4f}")
    assert abs(pooled.auc - best) < 0.02
    mine = AttackResult(scores=found.scores(values[0], values[2:], seen[2:]), is_member=seen[0])
    lira = AttackResult(
        scores=reference.lira(values[0, 0], values[2:, 0], seen[2:]), is_member=seen[0]
    )
    assert abs(lira.auc - first) < 0.05 and abs(mine.auc - best) < 0.05
    assert mine.auc_difference(lira).low > 0.1


def test_independent_signals_add_up():
    k, n, effects = 24, 1500, (0.8, 0.6)
    random = np.random.default_rng(0)
    seen = drawn("pairs", k, n)
    values = random.normal(size=(k, 2, n)) + np.array(effects)[:, None] * seen[:, None]
    found = reference.learn(jax.random.key(0), values, seen, config=QUICK)
    best = norm.cdf(np.hypot(*effects) / np.sqrt(2))
    pooled = AttackResult(scores=found.left_out.ravel(), is_member=seen.ravel())
    print(f"best {best:.4f}, found {pooled.auc:.4f}")
    assert abs(pooled.auc - best) < 0.02


def test_where_the_network_is_no_better_the_first_ratio_is_the_score():
    values, seen = with_effect(10, 200, (1.5, 0.0))
    found = reference.learn(jax.random.key(0), values[2:], seen[2:], config=UNTAUGHT)
    assert not found.uses_networks
    features = calibrate(values[0], values[2:], seen[2:])
    expected = features[:, 0, ONLINE.index("log-ratio, shared variances")]
    np.testing.assert_array_equal(found.scores(values[0], values[2:], seen[2:]), expected)
    left_out = reference.calibrate_left_out(values[2:], seen[2:])
    expected = left_out[:, :, 0, ONLINE.index("log-ratio, shared variances")]
    np.testing.assert_allclose(found.left_out, expected, rtol=1e-9, atol=1e-9)
    offline = reference.learn(jax.random.key(0), values, seen, config=UNTAUGHT, online=False)
    assert not offline.uses_networks
    expected = calibrate(values[0], values, seen, online=False)[:, 0, OFFLINE.index("over OUT")]
    np.testing.assert_array_equal(offline.scores(values[0], values, seen), expected)


@pytest.mark.parametrize("k", [4, 6])
def test_few_models_teach_a_network_and_cannot_check_it(k):
    values, seen = with_effect(k + 2, 400)
    found = reference.learn(jax.random.key(0), values[2:], seen[2:], config=QUICK)
    assert found.left_out is None and len(found.networks) == k // 2
    assert interval(found.scores(values[0], values[2:], seen[2:]), seen[0]).low > 0.55
    with pytest.raises(ValueError, match="at least two complementary"):
        reference.learn(jax.random.key(0), values[:2], seen[:2], config=QUICK)


def test_the_function_is_learning_and_scoring():
    values, seen = with_effect(8, 200)
    key = jax.random.key(3)
    learned = reference.learn(key, values[2:], seen[2:], config=QUICK)
    expected = learned.scores(values[0], values[2:], seen[2:])
    for pairs in (None, [[2, 3], [4, 5], [7, 6]]):
        found = reference.calibrated_inference(
            key, *frozen(values[0], values, seen), models=range(2, 8), pairs=pairs, config=QUICK
        )
        np.testing.assert_array_equal(found, expected)
    assert interval(expected, seen[0]).low > 0.6


def test_offline_networks_apply_to_records_that_no_model_saw():
    k, n, new = 10, 400, 400
    values, seen = with_effect(k, n, (1.5, 1.0))
    found = reference.learn(jax.random.key(0), values, seen, online=False, config=QUICK)
    assert interval(found.left_out, seen).low > 0.6
    others = noise(k + 1, new, 2, seed=5)
    none = np.zeros((k, new), bool)
    is_member = np.arange(new) % 2 == 0
    target = others[k] + np.array([[1.5], [1.0]]) * is_member
    assert interval(found.scores(target, others[:k], none), is_member).low > 0.6
    assert holds_half(found.scores(others[k], others[:k], none), is_member)


# --- known members --------------------------------------------------------------------------------


def test_known_records_are_scored_by_networks_that_did_not_see_them():
    n, large = 200, NetworkConfig(widths=(64, 64), steps=384, batch_size=256)
    values, seen = noise(6, n, s=4), drawn("pairs", 6, n)
    random = np.random.default_rng(0)
    inside, seeds = 0, 5
    for seed in range(seeds):
        truth = random.permutation(np.arange(n) < n // 2)
        target = noise(1, n, s=4, seed=seed)[0]
        scores = reference.supervised(
            jax.random.key(seed), *frozen(target, values, seen, truth), config=large, folds=3
        )
        inside += holds_half(scores, truth)
    assert inside >= 4


def test_knowing_members_helps_where_references_do_not_know():
    """The references' second signal says nothing; the target's does."""
    *values, target = noise(7, 600, s=2)
    seen, truth = drawn("pairs", 6, 600), drawn("pairs", 2, 600, seed=4)[0]
    values = np.array(values) + np.array([[0.5], [0.0]]) * seen[:, None]
    target = target + np.array([[0.5], [3.0]]) * truth
    known = np.arange(600) < 300
    key = jax.random.key(0)
    scores = reference.supervised(key, target, values, seen, truth, known=known, config=QUICK)
    alone = reference.calibrated_inference(key, target, values, seen, config=QUICK)
    for part in (known, ~known):
        mine, theirs = (
            AttackResult(scores=v[part], is_member=truth[part]) for v in (scores, alone)
        )
        assert mine.auc_difference(theirs).low > 0.05
    guessed = np.where(known, truth, ~truth)  # membership of the others is not looked at
    again = reference.supervised(key, target, values, seen, guessed, known=known, config=QUICK)
    np.testing.assert_array_equal(again, scores)
    with pytest.raises(ValueError, match=r"is_member is int64 \(600,\); it must be bool \[600\]"):
        reference.supervised(key, target, values, seen, truth.astype(int))
    with pytest.raises(ValueError, match=r"known is bool \(3,\)"):
        reference.supervised(key, target, values, seen, truth, known=known[:3])
    with pytest.raises(ValueError, match="4 known records are too few for 5 folds"):
        reference.supervised(key, target, values, seen, truth, known=np.arange(600) < 4)
    with pytest.raises(ValueError, match="gives away"):
        reference.supervised(key, target, values, drawn("balanced", 6, 600), truth)


# --- in an audit ----------------------------------------------------------------------------------

N, D, CLASSES = 200, 30, 3
RECIPE = RecipeConfig(learning_rate=0.03, epochs=40, batch_size=20)
ATTACKS = (
    jm.NegativeLoss(),
    jm.CalibratedInference(network=QUICK),
    jm.CalibratedInference(signals=("log odds",), network=QUICK),
    jm.CalibratedInferenceOffline(network=QUICK),
    jm.CalibratedInferenceSupervised(network=QUICK),
)


def network():
    """A linear classifier with more inputs than it can use: it learns its records by heart."""

    def init(key):
        return {"out/kernel": 0.1 * jax.random.normal(key, (D, CLASSES))}

    return of_functions(init, lambda params, state, x: x @ params["out/kernel"], input_shape=(D,))


@pytest.fixture(scope="module", name="made")
def made_fixture():
    """A target, its records with random labels, and ten reference models."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2 * N, D)).astype("f"), random.integers(0, CLASSES, 2 * N)
    data = jm.Records.of(members=(x[:N], y[:N]), nonmembers=(x[N:], y[N:]))
    seen = np.stack([data.is_member, ~data.is_member])
    models = jm.shadow.train(jax.random.key(1), network(), data.x, data.y, seen, RECIPE.recipe())
    shadows = jm.Shadows(architecture=network(), recipe=RECIPE, k=10)
    return jm.shadow.model(models, 0), data, trained(jax.random.key(2), shadows, data)


def audited(made, *attacks):
    target, data, models = made
    with warnings.catch_warnings():
        # A linear net's log-odds may be all there is; which of both is used is not looked at here.
        warnings.filterwarnings("ignore", ".*ranks members no better", ReferenceWarning)
        return jm.audit(target, data, key=jax.random.key(0), attacks=attacks, references=models)


@pytest.fixture(scope="module", name="report")
def report_fixture(made):
    return audited(made, *ATTACKS)


def test_attacks_find_members_and_say_what_they_had(report):
    rows = report.rows[1:]
    assert [row.name for row in rows] == [
        *("calibrated white box", "calibrated black box"),
        *("calibrated offline white box", "calibrated supervised white box"),
    ]
    (_, n_fit), (_, n_select) = report.parts[:2]
    for row, attack in zip(rows, ATTACKS[1:], strict=True):
        assert row.result.auc_interval().low > 0.5, row.name
        assert row.budget.models_trained == 10
        assert row.budget.known_members == n_select + n_fit * attack.fits
        black = row.name == "calibrated black box"
        assert row.budget.parameters == (() if black else ("out/kernel",))
        if attack.fits:
            assert row.spread is None
        else:
            assert row.spread.auc.shape == (10,) and (row.spread.auc > 0.5).mean() > 0.8
            assert abs(row.result.auc - row.spread.auc.mean()) < 0.15


def test_scores_do_not_depend_on_what_else_is_run(made, report):
    again = audited(made, jm.Lira(statistic="gradient norm"), *ATTACKS[3:0:-1])
    for row in again.rows[1:]:
        (first,) = [other for other in report.rows if other.name == row.name]
        np.testing.assert_array_equal(row.result.scores, first.result.scores)
        np.testing.assert_array_equal(row.spread.auc, first.spread.auc)


def parts_of(made, attack):
    target, data, models = made
    spec = attack.reads(target).resolved(target)
    signals, seen = jm.extract(target, data, spec), seen_by(models, data, spec)
    order = np.random.default_rng(0).permutation(2 * N)
    return [
        Evidence(data.rows(rows), signals.rows(rows), seen.rows(rows))
        for rows in np.split(order, [N, N + N // 2])
    ]


def test_nobodys_membership_in_the_target_is_used_but_by_the_supervised(made):
    def scores(attack, parts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReferenceWarning)
            return np.concatenate(attack.run(jax.random.key(0), *parts)[:2])

    def flipped(part):
        return part._replace(records=part.records._replace(is_member=~part.records.is_member))

    parts = parts_of(made, ATTACKS[1])
    for attack in (ATTACKS[1], ATTACKS[3]):
        expected = scores(attack, parts)
        np.testing.assert_array_equal(scores(attack, map(flipped, parts)), expected)
    supervised = scores(ATTACKS[4], parts)
    fit, *others = parts
    np.testing.assert_array_equal(scores(ATTACKS[4], (fit, *map(flipped, others))), supervised)
    assert np.corrcoef(scores(ATTACKS[4], (flipped(fit), *others)), supervised)[0, 1] < 0.9


def test_a_network_that_learned_nothing_is_said(made):
    parts = parts_of(made, ATTACKS[1])
    with pytest.warns(ReferenceWarning, match="calibrated white box: .* ranks members no better"):
        jm.CalibratedInference(network=UNTAUGHT).run(jax.random.key(0), *parts)


def test_two_models_are_compared_with_and_teach_nothing(made):
    parts = parts_of(made, ATTACKS[1])
    two = [
        part._replace(
            references=ReferenceSignals(
                jax.tree.map(lambda leaf: leaf[:2], part.references.signals),
                part.references.was_member[:2],
            )
        )
        for part in parts
    ]
    with pytest.warns(ReferenceWarning, match="2 reference models are too few to learn from"):
        found = ATTACKS[1].run(jax.random.key(0), *two)
    features = calibrate(*ATTACKS[1]._given(*two))
    ratio = features[:, 0, ONLINE.index("log-ratio, shared variances")]
    np.testing.assert_array_equal(found.held, ratio[-len(parts[2].records.y) :])
    assert found.spread is None


def test_what_references_cannot_say_is_said(made):
    fit, select, held = parts_of(made, ATTACKS[1])
    key = jax.random.key(0)
    surer = [
        part._replace(
            signals=part.signals._replace(outputs={"logits": 30 * part.signals.outputs["logits"]})
        )
        for part in (fit, select, held)
    ]
    with pytest.warns(ReferenceWarning, match="unlike its reference models: its log odds is"):
        ATTACKS[2].run(key, *surer)
    unseen = [
        part._replace(
            references=ReferenceSignals(
                part.references.signals, np.zeros_like(part.references.was_member)
            )
        )
        for part in (fit, select, held)
    ]
    for attack in ATTACKS[1:]:
        with pytest.raises(ValueError, match="trained on none of the audited records, or on all"):
            attack.run(key, *unseen)
    alone = [part._replace(references=None) for part in (fit, select, held)]
    with pytest.raises(ValueError, match="there are none: pass"):
        ATTACKS[1].run(key, *alone)


def test_signals_of_target_and_models_are_in_one_order():
    """Pytrees sort the names of layers, and a model that is built again counts them on."""
    random = np.random.default_rng(0)

    def signals(names, *axes):
        values = np.random.default_rng(1).normal(size=(len(names), *axes, 6)) ** 2
        logits = random.normal(size=(*axes, 6, 3))
        norms = dict(zip(names, values, strict=True))
        of_kernels = {f"alignment {name}/kernel": value for name, value in norms.items()}
        return jm.Signals({"logits": logits}, {}, norms, None, None, of_kernels)

    y, names = np.arange(6) % 3, ("gradient norms", "alignment")
    for mine, theirs in (
        (("stem", "block", "head"), ("stem", "block", "head")),
        (("dense_8", "dense_9", "dense_10"), ("dense", "dense_1", "dense_2")),
    ):
        target, models = signals(mine), signals(theirs, 1)
        expected = stacked(names, target, y)
        assert expected.shape == (6, 6)
        np.testing.assert_array_equal(stacked(names, target.rows(slice(None)), y), expected)
        seen = ReferenceSignals(models, np.ones((1, 6), bool)).rows(slice(None))
        np.testing.assert_array_equal(stacked(names, seen.signals, y)[0], expected)
