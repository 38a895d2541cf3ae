"""Every reference attack against its formula written out in loops, and against what must hold."""

import warnings
from functools import partial

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import digamma, expit, polygamma

import jaxmeter as jm
from jaxmeter import logits as statistics
from jaxmeter import reference
from jaxmeter.metrics import AttackResult
from jaxmeter.reference import NetworkConfig, Population, ReferenceWarning, leave_out
from jaxmeter.reference.bavaria import log_upper_tail

K, N, Z, Q = 12, 40, 30, 3
QUICK = NetworkConfig(widths=(16,), steps=192)
TINY = NetworkConfig(widths=(4,), steps=8)


def log_probabilities(random, *shape):
    return np.log(expit(random.normal(size=shape)))


def made(seed=0, queries=()):
    """Observed, references, membership, population; every record has at least two of each side."""
    random = np.random.default_rng(seed)
    was_member = np.argsort(random.random((K, N)), axis=0) < 5
    references = log_probabilities(random, K, *queries, N)
    z = log_probabilities(random, K, *queries, Z)
    z_member = random.random((K, Z)) < 0.3
    population = Population(log_probabilities(random, *queries, Z), z, z_member)
    return log_probabilities(random, *queries, N), references, was_member, population


def per_record(formula, queries=False):
    """`formula(s, inside [i], outside [j]) -> float` for each record, averaged over queries."""
    observed, references, was_member, _ = made(queries=(Q,) if queries else ())
    observed, references = (
        (observed, references) if queries else (observed[None], references[:, None])
    )
    found = []
    for i in range(N):
        values = []
        for q in range(len(observed)):
            inside = [references[k, q, i] for k in range(K) if was_member[k, i]]
            outside = [references[k, q, i] for k in range(K) if not was_member[k, i]]
            values.append(formula(observed[q, i], np.array(inside), np.array(outside), q))
        found.append(np.mean(values))
    return np.array(found)


def pooled_sd(side, q, queries):
    """The shared standard deviation of a side, residual by residual."""
    _, references, was_member, _ = made(queries=(Q,) if queries else ())
    references = references if queries else references[:, None]
    squares, freedom = 0.0, 0
    for i in range(N):
        values = [references[k, q, i] for k in range(K) if was_member[k, i] == side]
        squares += sum((v - sum(values) / len(values)) ** 2 for v in values)
        freedom += len(values) - 1
    return np.sqrt(squares / freedom)


def normal(x, mean, sd):
    return stats.norm.logpdf(x, mean, sd)


def log_mean(values):
    return np.log(np.mean([np.exp(v) for v in values]))


def t_predictive(values, side, q, queries):
    """Degrees of freedom, centre, scale, from Smyth's moments solved by bisection."""
    _, references, was_member, _ = made(queries=(Q,) if queries else ())
    references = references if queries else references[:, None]
    groups = [[references[k, q, i] for k in range(K) if was_member[k, i] == side] for i in range(N)]
    d = np.array([len(g) - 1.0 for g in groups])
    own = np.array([np.var(g, ddof=1) for g in groups])
    logs = np.log(own) - digamma(d / 2) + np.log(d / 2)
    excess = np.var(logs, ddof=1) - np.mean(polygamma(1, d / 2))
    low, high = 1e-3, 5e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if polygamma(1, middle) > excess else (low, middle)
    d0 = min(2 * low, 1e4)
    a0, b0 = d0 / 2, d0 / 2 * np.exp(np.mean(logs) + digamma(d0 / 2) - np.log(d0 / 2))
    means = np.array([np.mean(g) for g in groups])
    pooled = (own * d).sum() / d.sum()
    spread = np.var(means, ddof=1) / pooled - np.mean([1 / len(g) for g in groups])
    m0, k0 = means.mean(), 1 / max(spread, 1e-4)
    n, mean = len(values), np.mean(values)
    kn, an = k0 + n, a0 + n / 2
    squares = sum((v - mean) ** 2 for v in values)
    bn = b0 + squares / 2 + k0 * n * (mean - m0) ** 2 / (2 * kn)
    return 2 * an, (k0 * m0 + n * mean) / kn, np.sqrt(bn * (kn + 1) / (an * kn))


def place(s, outside):
    """Attack R by sorting and np.interp; no ties here."""
    grid = sorted([-1000.0, *outside, 0.0])
    return np.interp(s, grid, np.linspace(0, 1, len(grid)))


def oracle(name, queries):
    """What each score should be, by its formula."""
    t, sd = partial(t_predictive, queries=queries), partial(pooled_sd, queries=queries)
    return {
        "lira shared": lambda s, i, o, q: (
            normal(s, i.mean(), sd(True, q)) - normal(s, o.mean(), sd(False, q))
        ),
        "lira own": lambda s, i, o, q: (
            normal(s, i.mean(), i.std(ddof=1)) - normal(s, o.mean(), o.std(ddof=1))
        ),
        "lira_offline shared": lambda s, i, o, q: -stats.norm.logsf(s, o.mean(), sd(False, q)),
        "lira_offline own": lambda s, i, o, q: -stats.norm.logsf(s, o.mean(), o.std(ddof=1)),
        "two_sided": lambda s, i, o, q: -normal(s, o.mean(), o.std(ddof=1)),
        "bavaria": lambda s, i, o, q: (
            stats.t.logpdf(s, *t(i, True, q)) - stats.t.logpdf(s, *t(o, False, q))
        ),
        "bavaria_offline": lambda s, i, o, q: -stats.t.logsf(s, *t(o, False, q)),
        "log_ratio": lambda s, i, o, q: s - np.log((np.exp(log_mean(i)) + np.exp(log_mean(o))) / 2),
        "log_ratio_offline": lambda s, i, o, q: s - np.log((1.3 * np.exp(log_mean(o)) + 0.7) / 2),
        "base_offline": lambda s, i, o, q: s - 0.33 * log_mean(o),
        "difficulty": lambda s, i, o, q: s - o.mean(),
        "attack_r": lambda s, i, o, q: place(s, o),
    }[name]


SCORES = {
    "lira shared": reference.lira,
    "lira own": partial(reference.lira, variance="own"),
    "lira_offline shared": reference.lira_offline,
    "lira_offline own": partial(reference.lira_offline, variance="own"),
    "two_sided": partial(reference.lira_offline_two_sided, variance="own"),
    "bavaria": reference.bavaria,
    "bavaria_offline": reference.bavaria_offline,
    "log_ratio": reference.log_ratio,
    "log_ratio_offline": partial(reference.log_ratio_offline, a=0.3),
    "base_offline": reference.base_offline,
    "difficulty": reference.difficulty_calibration,
    "attack_r": reference.attack_r,
}
every_score = pytest.mark.parametrize("name", SCORES)


@pytest.mark.parametrize("queries", [False, True], ids=["one", "queries"])
@every_score
def test_equals_its_formula(name, queries):
    observed, references, was_member, _ = made(queries=(Q,) if queries else ())
    found = SCORES[name](observed, references, was_member)
    assert found.dtype == np.float64 and found.shape == (N,)
    np.testing.assert_allclose(
        found, per_record(oracle(name, queries), queries), rtol=1e-9, atol=1e-9
    )


@every_score
def test_order_of_models_and_records_and_blocks_change_nothing(name, monkeypatch):
    observed, references, was_member, _ = made()
    plain = SCORES[name](observed, references, was_member)
    random = np.random.default_rng(1)
    k, n = random.permutation(K), random.permutation(N)
    moved = SCORES[name](observed[n], references[k][:, n], was_member[k][:, n])
    np.testing.assert_allclose(moved, plain[n], rtol=1e-9, atol=1e-12)
    monkeypatch.setattr("jaxmeter.reference.inputs._BLOCK", 1)
    blocked = SCORES[name](observed, references, was_member)
    np.testing.assert_allclose(blocked, plain, rtol=1e-12, atol=1e-14)


@every_score
def test_chosen_models_are_all_there_is(name):
    observed, references, was_member, _ = made()
    before = references.copy()
    models = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReferenceWarning)
        some = SCORES[name](observed, references, was_member, models=models)
        alone = SCORES[name](observed, references[models], was_member[models])
    np.testing.assert_array_equal(some, alone)
    np.testing.assert_array_equal(references, before)


def joint_oracle(variance, shrinkage=0.1):
    observed, references, was_member, _ = made(queries=(2,))
    shared = {}
    for side in (True, False):
        total, freedom = np.zeros((2, 2)), 0
        for i in range(N):
            values = references[was_member[:, i] == side, :, i]
            total += (len(values) - 1) * np.cov(values.T)
            freedom += len(values) - 1
        covariance = total / freedom
        shared[side] = covariance * [[1, 1 - shrinkage], [1 - shrinkage, 1]]
    found = []
    for i in range(N):
        density = {}
        for side in (True, False):
            values = references[was_member[:, i] == side, :, i]
            covariance = shared[side]
            if variance == "own":
                m = len(values)
                covariance = ((m - 1) * np.cov(values.T) + 3 * covariance) / (m + 2)
            density[side] = stats.multivariate_normal.logpdf(
                observed[:, i], values.mean(axis=0), covariance
            )
        found.append(density[True] - density[False])
    return np.array(found)


@pytest.mark.parametrize("variance", ["shared", "own"])
def test_joint_lira_equals_its_formula(variance):
    observed, references, was_member, _ = made(queries=(2,))
    found = reference.lira_joint(observed, references, was_member, variance=variance)
    np.testing.assert_allclose(found, joint_oracle(variance), rtol=1e-9, atol=1e-9)


def test_joint_lira_does_not_change_with_the_signals_units():
    observed, references, was_member, _ = made(queries=(2,))
    units = np.array([[1e3], [1e-3]])
    found = reference.lira_joint(observed * units, references * units, was_member)
    plain = reference.lira_joint(observed, references, was_member)
    np.testing.assert_allclose(found, plain, rtol=1e-9)


def test_collinear_signals_are_said():
    observed, references, was_member, _ = made()
    twice = np.stack([observed, observed]), np.stack([references, references], axis=1)
    with pytest.raises(ValueError, match="collinear"):
        reference.lira_joint(*twice, was_member, shrinkage=0.0)
    assert np.isfinite(reference.lira_joint(*twice, was_member)).all()


# --- RMIA ---------------------------------------------------------------------------------------


def rmia_oracle(ratio, gamma):
    """The share of z with a ratio of ratios of at least gamma, pair by pair."""
    observed, references, was_member, population = made()

    def ratios(s, r, m):
        return [ratio(s[i], r[m[:, i], i], r[~m[:, i], i]) for i in range(len(s))]

    x = ratios(observed, references, was_member)
    z = ratios(*population)
    return np.array([np.mean([b <= a - np.log(gamma) for b in z]) for a in x])


def online(s, i, o):
    sides = [np.exp(log_mean(part)) for part in (i, o) if len(part)]
    return s - np.log(np.mean(sides))


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_rmia_equals_its_formula(gamma):
    *given, population = made()
    found = reference.rmia(*given, population=population, gamma=gamma)
    np.testing.assert_allclose(found, rmia_oracle(online, gamma), atol=1e-12)
    found = reference.rmia_offline(*given, population=population, gamma=gamma, a=0.3)
    expected = rmia_oracle(lambda s, i, o: s - np.log((1.3 * np.exp(log_mean(o)) + 0.7) / 2), gamma)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert 0.05 < found.std()


def test_rmia_counts_ties_as_at_least():
    # r is 1/2, 1/4, 1/4 for z and 1/2 for x, exactly: powers of two.
    log = np.log2([0.5, 0.25, 0.25]) * np.log(2)
    flat, none = np.zeros((2, 3)), np.zeros((2, 3), bool)
    for gamma, share in [(1.0, 1.0), (2.0, 2 / 3), (4.0, 0.0)]:
        found = reference.rmia_offline(
            log[:1], flat[:, :1], none[:, :1], population=Population(log, flat, none), gamma=gamma
        )
        np.testing.assert_allclose(found, share)


def test_rmia_ranks_as_the_log_ratio_but_for_ties():
    *given, population = made()
    ranked = reference.rmia(*given, population=population)[np.argsort(reference.log_ratio(*given))]
    assert (np.diff(ranked) >= 0).all() and (np.diff(ranked) > 0).sum() > 10


def test_a_population_that_holds_evaluated_records_is_refused():
    observed, references, was_member, population = made()
    joined = Population(
        np.concatenate([population.observed, observed[:2]]),
        np.concatenate([population.references, references[:, :2]], axis=1),
        np.concatenate([population.was_member, was_member[:, :2]], axis=1),
    )
    for score in (reference.rmia, reference.rmia_offline):
        with pytest.raises(ValueError, match="2 of the population's 32 records"):
            score(observed, references, was_member, population=joined)


# --- Logits -------------------------------------------------------------------------------------


def softmax_oracle(z, y):
    e = [np.exp(v) for v in z]
    p = [v / sum(e) for v in e]
    rest = [v for c, v in enumerate(z) if c != y]
    return {
        "log_odds": np.log(p[y] / (1 - p[y])),
        "margin": z[y] - max(rest),
        "log_probability": np.log(p[y]),
        "log_taylor_probability": taylor_oracle(z, y),
    }


def taylor_oracle(z, y):
    c = [(v - sum(z) / len(z)) / 2.0 for v in z]
    c[y] -= 0.6

    def t(u):
        cubic = 1 + u + u**2 / 2 + u**3 / 6
        return cubic if u >= -1 else (1 / 3) * np.exp(1.5 * (u + 1))

    return np.log(t(c[y]) / sum(t(v) for v in c))


STATISTICS = ["log_odds", "margin", "log_probability", "log_taylor_probability"]


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_logits_equal_their_formulas(name, monkeypatch):
    z = np.random.default_rng(0).normal(scale=3, size=(4, 30, 5))
    y = np.arange(30) % 5
    expected = [[softmax_oracle(z[k, i], y[i])[name] for i in range(30)] for k in range(4)]
    found = getattr(statistics, name)(z, y)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    shifted = getattr(statistics, name)(z + 64, y)
    np.testing.assert_allclose(shifted, found, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("jaxmeter.logits._BLOCK", 1)
    np.testing.assert_allclose(getattr(statistics, name)(z, y), found, rtol=1e-14)


def test_saturated_logits_keep_every_score_finite():
    random = np.random.default_rng(0)
    z = random.choice([-800.0, 0.0, 800.0], size=(K + 1, N, 4))
    y, was_member = np.arange(N) % 4, made()[2]
    for name in STATISTICS:
        signal = getattr(statistics, name)(z, y)
        assert np.isfinite(signal).all()
    odds, logs = statistics.log_odds(z, y), statistics.log_probability(z, y)
    for name, score in SCORES.items():
        wants_logs = "ratio" in name or name in ("base_offline", "attack_r")
        signal = logs if wants_logs else odds
        assert np.isfinite(score(signal[0], signal[1:], was_member)).all(), name


def test_confident_records_keep_their_order_offline():
    """Phi(9) and Phi(12) both round to 1; their tails do not."""
    references, none = np.array([[-1.0, -1.0], [1.0, 1.0]]), np.zeros((2, 2), bool)
    for score in (reference.lira_offline, reference.bavaria_offline):
        low, high = score([20.0, 30.0], references, none)
        assert low < high < np.inf


def test_tails_of_students_t_that_underflow():
    t, freedom = np.array([-3.0, 3.0, 1e3]), np.array([5.0, 5.0, 20.0])
    expected = [stats.t.logsf(a, b) for a, b in zip(t, freedom, strict=True)]
    np.testing.assert_allclose(log_upper_tail(t, freedom), expected, rtol=1e-10)
    # Where scipy underflows: the slope of log sf in log t is minus the degrees of freedom.
    far = log_upper_tail(np.array([1e30, 1e31]), np.array([20.0, 20.0]))
    np.testing.assert_allclose(np.diff(far), -20 * np.log(10), rtol=1e-12)
    both_sides_of_the_switch = log_upper_tail(np.array([1e13, 1.1e13]), np.array([22.0, 22.0]))
    np.testing.assert_allclose(np.diff(both_sides_of_the_switch), -22 * np.log(1.1), rtol=1e-9)


def test_attack_r_with_ties():
    references, none = np.array([[-2.0], [-1.0], [-1.0], [-0.5]]), np.zeros((4, 1), bool)
    found = reference.attack_r([-1.0], references, none)
    np.testing.assert_allclose(found, 2.5 / 5)
    np.testing.assert_allclose(reference.attack_r([-1500.0], references, none), 0.0)
    np.testing.assert_allclose(reference.attack_r([0.0], references, none), 1.0)


# --- Missing cells ------------------------------------------------------------------------------


def lacking():
    """Record 0 was seen by no model, record 1 by all, record 2 by one, record 3 by all but one."""
    observed, references, was_member, _ = made()
    was_member = was_member.copy()
    was_member[:, 0], was_member[:, 1] = False, True
    was_member[:, 2], was_member[:, 3] = np.arange(K) == 0, np.arange(K) > 0
    return observed, references, was_member


@every_score
def test_missing_cells_are_said_once_and_scored(name):
    given = lacking()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = SCORES[name](*given)
    assert np.isfinite(found).all()
    assert [w.category for w in caught] == [ReferenceWarning]
    message = str(caught[0].message)
    assert "1 seen by every model" in message
    online = name.split()[0] in ("lira", "bavaria", "log_ratio")
    assert ("1 seen by no model" in message) == online
    if name == "lira own":
        assert "2 with fewer than two differing IN" in message


def test_the_missing_side_is_as_far_away_as_on_average():
    observed, references, was_member = lacking()
    shift = np.mean(
        [
            references[was_member[:, i], i].mean() - references[~was_member[:, i], i].mean()
            for i in range(N)
            if 0 < was_member[:, i].sum() < K
        ]
    )
    squares = {True: [], False: []}
    for i in range(N):
        for side, found in squares.items():
            values = references[was_member[:, i] == side, i]
            if values.size:
                found.append([((values - values.mean()) ** 2).sum(), values.size - 1])
    sd = {side: np.sqrt(np.divide(*np.sum(found, axis=0))) for side, found in squares.items()}
    unseen = references[:, 0].mean()
    expected = normal(observed[0], unseen + shift, sd[True]) - normal(
        observed[0], unseen, sd[False]
    )
    with pytest.warns(ReferenceWarning):
        found = reference.lira(observed, references, was_member)
    np.testing.assert_allclose(found[0], expected, rtol=1e-9)


def test_models_that_agree_take_the_shared_variance():
    observed, references, was_member, _ = made()
    references[was_member[:, 0], 0] = 0.1
    with pytest.warns(ReferenceWarning, match="1 with fewer than two differing IN models"):
        found = reference.lira(observed, references, was_member, variance="own")
    assert np.isfinite(found).all()


# --- Bad input ----------------------------------------------------------------------------------


def broken(what):
    observed, references, was_member, _ = made()
    references = references.copy()
    if what == "nan":
        references[3, 7] = np.nan
    return {
        "nan": (observed, references, was_member),
        "shape": (observed[1:], references, was_member),
        "models": (observed, references[1:], was_member),
        "not bool": (observed, references, was_member.astype(int)),
        "observed": (np.where(np.arange(N) == 5, np.inf, observed), references, was_member),
        "flat": (observed, references, was_member[0]),
    }[what]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("nan", "reference model 3 for record 7"),
        ("shape", "same order"),
        ("models", "one row a model"),
        ("not bool", "must be bool"),
        ("observed", r"1 records is not finite \(first: 5\)"),
        ("flat", "must be bool"),
    ],
)
@every_score
def test_bad_input_is_refused(name, what, says):
    with pytest.raises(ValueError, match=says):
        SCORES[name](*broken(what))


@every_score
def test_models_that_saw_everything_are_refused(name):
    observed, references, was_member, _ = made()
    with pytest.raises(ValueError, match="has seen every record|has not seen|seen by some"):
        SCORES[name](observed, references, np.ones_like(was_member))


@pytest.mark.parametrize("name", ["log_ratio", "log_ratio_offline", "base_offline"])
def test_log_odds_in_place_of_log_probabilities_are_refused(name):
    observed, references, was_member, _ = made()
    with pytest.raises(ValueError, match="log_probability"):
        SCORES[name](observed + 9, references, was_member)
    with pytest.raises(ValueError, match="log_probability"):
        SCORES[name](observed, references + 9, was_member)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda o, r, m, z: reference.lira(o, r, m, variance="fixed"), '"own" or "shared"'),
        (lambda o, r, m, z: reference.lira(o, r, m, models=[0, 0]), "distinct"),
        (lambda o, r, m, z: reference.lira(o, np.ones_like(r), m), "do not vary"),
        (lambda o, r, m, z: reference.lira_joint(o, r, m, shrinkage=2.0), "shrinkage"),
        (lambda o, r, m, z: reference.log_ratio_offline(o, r, m, a=2.0), "a is 2.0"),
        (lambda o, r, m, z: reference.rmia(o, r, m, population=z, gamma=0.0), "positive"),
        (
            lambda o, r, m, z: reference.rmia(
                o, r, m, population=Population(z[0][:0], z[1][:, :0], z[2][:, :0])
            ),
            "empty",
        ),
        (lambda o, r, m, z: reference.attack_r(o, r, m, ends=(0.0, 0.0)), "below the second"),
        (lambda o, r, m, z: reference.complementary_pairs(m[:3]), "must be even"),
        (lambda o, r, m, z: reference.complementary_pairs(m), "no complement"),
        (lambda o, r, m, z: leave_out(reference.lira, r[:1], m[:1]), "nothing|no reference model"),
        (lambda o, r, m, z: leave_out(reference.lira, r, m, out=np.empty(3)), "out has the shape"),
        (lambda o, r, m, z: NetworkConfig(steps=0), "too small"),
    ],
)
def test_bad_options_are_refused(call, says):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReferenceWarning)
        with pytest.raises(ValueError, match=says):
            call(*made())


# --- Pairs and leaving out ----------------------------------------------------------------------


def paired(random, k, n):
    half = np.stack([np.argsort(random.random(n)) < n // 2 for _ in range(k // 2)])
    order = random.permutation(k)
    return np.concatenate([half, ~half])[order]


def test_pairs_are_found():
    was_member = paired(np.random.default_rng(0), 10, 51)
    pairs = reference.complementary_pairs(was_member)
    assert sorted(pairs.ravel()) == list(range(10))
    assert all((was_member[i] == ~was_member[j]).all() for i, j in pairs)


def counts_only(observed, references, was_member):
    """A cheat: how few of the others saw the record."""
    return -was_member.sum(axis=0).astype(float)


def test_counts_give_nothing_away_with_pairs_left_out():
    was_member = paired(np.random.default_rng(0), 8, 60)
    signals = np.random.default_rng(1).normal(size=(8, 60))
    scores = leave_out(counts_only, signals, was_member)
    assert (np.ptp(scores, axis=1) == 0).all()
    with pytest.warns(ReferenceWarning, match="gives away"):
        alone = leave_out(counts_only, signals, was_member, pairs=np.zeros((0, 2), int))
    # Left out alone, the counts of the others are the membership itself.
    assert all(jm.evaluate(s, m).auc == 1 for s, m in zip(alone, was_member, strict=True))


@every_score
def test_leaving_out_equals_a_loop(name):
    random = np.random.default_rng(0)
    was_member = paired(random, 8, 60)
    signals = log_probabilities(random, 8, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReferenceWarning)
        found = leave_out(SCORES[name], signals, was_member)
        pairs = {i: j for i, j in reference.complementary_pairs(was_member)}
        pairs |= {j: i for i, j in pairs.items()}
        for t in range(8):
            rest = [k for k in range(8) if k not in (t, pairs[t])]
            alone = SCORES[name](signals[t], signals[rest], was_member[rest])
            np.testing.assert_array_equal(found[t], alone)
        some = leave_out(SCORES[name], signals, was_member, targets=[5, 2])
    np.testing.assert_array_equal(some, found[[5, 2]])


def test_leaving_out_gives_each_target_its_own_population():
    random = np.random.default_rng(0)
    was_member, z_member = random.random((6, 50)) < 0.5, random.random((6, 40)) < 0.5
    was_member[:2], was_member[2:4] = True, False
    z_member[0] = ~z_member[1]  # so that each z was unseen by some
    signals, z = log_probabilities(random, 6, 50), log_probabilities(random, 6, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReferenceWarning)
        found = leave_out(reference.rmia, signals, was_member, population=(z, z_member))
        rest, apart = [0, 1, 2, 3, 5], ~z_member[4]
        population = Population(z[4, apart], z[rest][:, apart], z_member[rest][:, apart])
        alone = reference.rmia(signals[4], signals[rest], was_member[rest], population=population)
    np.testing.assert_array_equal(found[4], alone)


def test_one_warning_for_all_targets():
    random = np.random.default_rng(0)
    was_member = random.random((5, 50)) < 0.5
    with pytest.warns(ReferenceWarning, match="for 5 of 5 targets; the first: of 50") as caught:
        leave_out(reference.lira, random.normal(size=(5, 50)), was_member)
    assert len(caught) == 1


def test_a_is_chosen_as_by_a_loop():
    random = np.random.default_rng(0)
    was_member = paired(random, 8, 300)
    p_out = random.random(300)
    guess = 0.3 * p_out + 0.7  # members' probabilities follow the guess with a = 0.3
    p = np.where(was_member, guess, p_out) * np.exp(-0.3 * random.random((8, 300)))
    signals = np.log(p)
    found = reference.choose_a(signals, was_member)
    pairs = {i: j for i, j in reference.complementary_pairs(was_member)}
    pairs |= {j: i for i, j in pairs.items()}
    grid, auc = np.arange(11) / 10, []
    for a in grid:
        per_target = []
        for t in range(8):
            rest = [k for k in range(8) if k not in (t, pairs[t])]
            scores = reference.log_ratio_offline(signals[t], signals[rest], was_member[rest], a=a)
            per_target.append(jm.evaluate(scores, was_member[t]).auc)
        auc.append(np.mean(per_target))
    assert found == grid[int(np.argmax(auc))] and np.ptp(auc) > 0.01
    z = Population(*made()[3])
    z_signals, z_member = z.references[:8], np.zeros((8, Z), bool)
    assert 0 <= reference.choose_a(signals, was_member, population=(z_signals, z_member)) <= 1


# --- Null and power -----------------------------------------------------------------------------


@every_score
def test_random_membership_is_not_found(name):
    """The AUC's 95% interval holds 0.5 in about 19 of 20 targets, pairs left out together."""
    random = np.random.default_rng(3)
    was_member = paired(random, 40, 200)
    signals = log_probabilities(random, 40, 200) + random.normal(size=200).clip(-9, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReferenceWarning)
        scores = leave_out(SCORES[name], signals, was_member)
    covered = 0
    for s, m in zip(scores, was_member, strict=True):
        low, high = AttackResult(scores=s, is_member=m).auc_interval()
        covered += low <= 0.5 <= high
    assert covered >= stats.binom.ppf(1e-3, 40, 0.95)


@pytest.mark.parametrize(
    "name", ["lira shared", "lira own", "lira_offline shared", "bavaria", "bavaria_offline"]
)
def test_a_gaussian_leak_is_found_as_far_as_it_can_be(name):
    """Members' signals are shifted by d sd: the best AUC is Phi(d / sqrt 2)."""
    random = np.random.default_rng(0)
    k, n, d = 64, 4000, 1.5
    was_member = random.random((k + 1, n)) < 0.5
    difficulty, scale = random.normal(scale=5, size=n), random.choice([0.5, 2.0], size=n)
    if name in ("lira shared", "lira_offline shared"):
        scale[:] = 1.0
    signals = difficulty + scale * (d * was_member + random.normal(size=(k + 1, n)))
    scores = SCORES[name](signals[0], signals[1:], was_member[1:])
    result = jm.evaluate(scores, was_member[0])
    best = stats.norm.cdf(d / np.sqrt(2))
    low, high = result.auc_interval(confidence=0.999)
    assert low - 0.01 <= best <= high + 0.03, (result.auc, best)
    assert jm.evaluate(signals[0], was_member[0]).auc < 0.7


def test_one_sided_beats_two_sided_offline():
    random = np.random.default_rng(0)
    was_member = random.random((33, 3000)) < 0.5
    signals = random.normal(scale=3, size=3000) + 1.0 * was_member + random.normal(size=(33, 3000))
    aucs = [
        jm.evaluate(score(signals[0], signals[1:], was_member[1:]), was_member[0]).auc
        for score in (reference.lira_offline, reference.lira_offline_two_sided)
    ]
    assert aucs[0] > aucs[1] + 0.1


# --- Networks -----------------------------------------------------------------------------------


def leaky(random, shift, axis):
    was_member = random.random((9, 400)) < 0.5
    signals = random.normal(size=(9, 400, 2)) + shift * was_member[..., None]
    signals = signals if axis == 2 else np.moveaxis(signals, 2, 1)
    return signals, was_member


@pytest.mark.parametrize(("name", "axis"), [("shokri", 2), ("trajectory", 1)])
def test_networks_find_a_leak_and_nothing_else(name, axis):
    random, score = np.random.default_rng(0), getattr(reference, name)
    key = jax.random.key(0)
    signals, was_member = leaky(random, 1.0, axis)
    scores = score(key, signals[0], signals[1:], was_member[1:], config=QUICK)
    low, _ = jm.evaluate(scores, was_member[0]).auc_interval(confidence=0.999)
    assert low > 0.75  # at best Phi(1) = 0.84
    again = score(key, signals[0], signals, was_member, config=QUICK, models=range(1, 9))
    np.testing.assert_array_equal(again, scores)
    signals, was_member = leaky(random, 0.0, axis)
    scores = score(key, signals[0], signals[1:], was_member[1:], config=QUICK)
    low, high = jm.evaluate(scores, was_member[0]).auc_interval(confidence=0.999)
    assert low <= 0.5 <= high


def test_shokri_may_see_the_class():
    """What tells members differs from class to class, so nothing can be seen without."""
    random = np.random.default_rng(0)
    y = np.arange(400) % 2
    signals, was_member = leaky(random, 0.0, 2)
    signals = signals + 1.5 * np.where(y == 1, 1, -1)[:, None] * (was_member[..., None] - 0.5)
    aucs = []
    for labels in (y, None):
        scores = reference.shokri(
            jax.random.key(0), signals[0], signals[1:], was_member[1:], y=labels, config=QUICK
        )
        aucs.append(jm.evaluate(scores, was_member[0]).auc)
    assert aucs[0] > 0.75 and aucs[1] < 0.6


def test_quantiles_follow_the_record():
    """Signal of a non-member: N(2 x, (1 + |x|)^2); a member's is higher by 2 sd."""
    random = np.random.default_rng(0)
    x, z = random.normal(size=(2, 3000, 1))
    is_member = np.arange(3000) % 2 == 0

    def signal(x, shift):
        return 2 * x[:, 0] + (1 + abs(x[:, 0])) * (shift + random.normal(size=3000))

    given = signal(x, 2.0 * is_member), x, signal(z, 0), z
    config = NetworkConfig(widths=(16,), steps=640)
    scores = reference.quantile_gaussian(jax.random.key(0), *given, config=config)
    assert abs(scores[~is_member].mean()) < 0.15 and abs(scores[~is_member].std() - 1) < 0.15
    assert abs(jm.evaluate(scores, is_member).auc - stats.norm.cdf(2 / np.sqrt(2))) < 0.03
    scores = reference.quantile_pinball(jax.random.key(0), *given, level=0.9, config=config)
    false_positives = np.mean(scores[~is_member] > 0)
    assert 0.06 < false_positives < 0.14
    assert abs(np.mean(scores[is_member] > 0) - stats.norm.sf(stats.norm.ppf(0.9) - 2)) < 0.08


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, m: (s[0][:, 0], s, m), r"must be \[n, d\] and \[k, n, d\]"),
        (lambda s, m: (s[0], s, np.ones_like(m)), "on all records"),
        (lambda s, m: (s[0], s, np.zeros_like(m)), "on none of the records"),
        (lambda s, m: (s[0], np.where(np.arange(9) == 4, np.nan, s.T).T, m), "reference model 4"),
    ],
)
def test_networks_refuse_bad_input(change, says):
    signals, was_member = leaky(np.random.default_rng(0), 0.0, 2)
    with pytest.raises(ValueError, match=says):
        reference.shokri(jax.random.key(0), *change(signals, was_member), config=TINY)


@pytest.mark.parametrize("score", [reference.quantile_gaussian, reference.quantile_pinball])
def test_quantiles_refuse_an_evaluated_population(score):
    x = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(ValueError, match="50 of the population's 50 records"):
        score(jax.random.key(0), x[:, 0], x, x[:, 0], x, config=TINY)
