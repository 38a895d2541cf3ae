import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeter as jm
from helpers import assert_close, equations, mlp_target, some_records
from jaxmeter.inference import fitting
from jaxmeter.inference.features import features, scales
from jaxmeter.inference.network import GradientComponent, InferenceModel
from jaxmeter.jaxpr.equations import convolution_of
from jaxmeter.signals import Signals

SMALL = {"epochs": 4, "batch_size": 32}


def planted(n: int = 200, leak: float = 3.0, seed: int = 0) -> tuple[Signals, np.ndarray]:
    """Signals whose loss knows nothing, and whose Dense gradient knows the membership."""
    random = np.random.default_rng(seed)
    is_member = np.arange(n) % 2 == 0
    a = random.normal(size=(n, 6)).astype("f")
    delta = random.normal(size=(n, 4)).astype("f")
    delta[:, 0] += leak * is_member
    label = np.eye(4, dtype=bool)[random.integers(0, 4, n)]
    logits = random.normal(size=(n, 4)).astype("f")
    loss = random.exponential(size=n).astype("f")
    signals = Signals({"logits": logits}, {"d/kernel": jm.Outer(a, delta)}, {}, loss, label)
    return signals, is_member


def auc(scores, is_member) -> float:
    return jm.metrics.AttackResult(scores=np.asarray(scores), is_member=is_member).auc


def test_a_planted_leak_is_found():
    signals, is_member = planted()
    attack = jm.inference_model(members=2)
    fitted = jm.fit(jax.random.key(0), attack, signals, is_member, epochs=20, batch_size=64)
    other, truth = planted(seed=1)
    assert auc(attack.score(fitted.params, other), truth) > 0.9
    assert fitted.best_epoch == 20  # nothing to select on: the last
    assert fitted.history.loss.shape == (21,)
    assert fitted.history.loss[-1] < fitted.history.loss[1]


@pytest.mark.parametrize("folds", [0, 2], ids=["select", "select and folds"])
def test_the_best_epoch_on_select_is_kept(folds):
    signals, is_member = planted(leak=2.0)
    select, truth = planted(leak=2.0, seed=1)
    attack = jm.inference_model(members=2)
    fitted = jm.fit(
        jax.random.key(0),
        attack,
        signals,
        is_member,
        select=(select, truth),
        folds=folds,
        epochs=6,
        batch_size=64,
    )
    history = fitted.history.select_auc
    assert fitted.best_epoch == np.argmax(history[1:]) + 1
    if not folds:
        found = auc(attack.score(fitted.params, select), truth)
        assert found == pytest.approx(history.max(), abs=1e-5)


def test_unfitted_it_is_the_loss_threshold():
    signals, is_member = planted()
    attack = jm.inference_model(members=3)
    params = attack.init(jax.random.key(5), signals)
    scores = np.asarray(attack.score(params, signals))
    assert (np.argsort(scores) == np.argsort(-signals.loss)).all()


def test_a_signal_that_says_no_more_than_the_loss_is_left_at_the_loss_threshold():
    """All the leak is in the loss; the other signals are noise to overfit."""
    below = []
    for seed in range(5):
        parts = []
        for part in range(3):
            signals, truth = planted(200, leak=0.0, seed=10 * seed + part)
            parts.append((signals._replace(loss=signals.loss * np.where(truth, 0.5, 1)), truth))
        attack = jm.inference_model(members=2)
        fitted = jm.fit(
            jax.random.key(seed), attack, *parts[0], select=parts[1], epochs=10, batch_size=64
        )
        held, truth = parts[2]
        below.append(auc(-held.loss, truth) - auc(attack.score(fitted.params, held), truth))
    assert np.mean(below) < 0.02


def test_same_key_same_bits_another_key_others():
    signals, is_member = planted()
    attack = jm.inference_model(members=2)
    first, again, other = (
        jm.fit(jax.random.key(seed), attack, signals, is_member, **SMALL) for seed in (0, 0, 1)
    )
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(again.params), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    assert not np.array_equal(
        attack.score(first.params, signals), attack.score(other.params, signals)
    )


def test_a_second_fit_compiles_nothing():
    signals, is_member = planted()
    jm.fit(jax.random.key(0), jm.inference_model(members=2), signals, is_member, **SMALL)
    compiled = fitting.run._cache_size()
    signals, is_member = planted(seed=3)
    jm.fit(jax.random.key(1), jm.inference_model(members=2), signals, is_member, **SMALL)
    assert fitting.run._cache_size() == compiled


def every_kind(n: int) -> dict[str, Signals]:
    """Signals of each shape, alone."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(size=(n, *shape)).astype("f")

    nothing = Signals({}, {}, {}, None, None)
    return {
        "loss": nothing._replace(loss=np.abs(normal())),
        "label": nothing._replace(label=np.eye(3, dtype=bool)[np.arange(n) % 3]),
        "logits": nothing._replace(outputs={"logits": normal(5)}),
        "image activations": nothing._replace(outputs={"conv": normal(5, 6, 3)}),
        "sequence activations": nothing._replace(outputs={"lstm": normal(5, 3)}),
        "dense gradient": nothing._replace(gradients={"d": jm.Outer(normal(5), normal(3))}),
        "matrix gradient": nothing._replace(gradients={"d": normal(5, 3)}),
        "bias gradient": nothing._replace(gradients={"d": normal(3)}),
        "conv gradient": nothing._replace(gradients={"c": normal(3, 3, 2, 4)}),
        "norms": nothing._replace(gradient_norms={"a": np.abs(normal()), "b": np.abs(normal())}),
        "one norm": nothing._replace(gradient_norms={"a": np.abs(normal())}),
    }


@pytest.mark.parametrize("kind", every_kind(2))
def test_any_single_signal_can_be_read(kind):
    signals = every_kind(40)[kind]
    is_member = np.arange(40) < 20
    attack = jm.inference_model(members=2)
    fitted = jm.fit(jax.random.key(0), attack, signals, is_member, epochs=2, batch_size=16)
    scores = np.asarray(attack.score(fitted.params, signals))
    assert scores.shape == (40,) and np.isfinite(scores).all() and np.ptp(scores) > 0


@pytest.mark.parametrize("shape", [(6, 7, 5), (2, 2, 20), (9, 4)], ids=str)
def test_images_are_read_by_convolutions_that_loops_are_fast_in(shape):
    """In a scan XLA's CPU backend is fast on one layout only, gradients' layouts included."""
    random = np.random.default_rng(0)
    image = random.normal(size=(12, *shape)).astype("f")
    signals = Signals({"conv": image}, {}, {}, np.ones(12, "f"), None)
    model, attack = InferenceModel(widths=(6,)), jm.inference_model(members=2, widths=(6,))
    params = attack.init(jax.random.key(0), signals)
    # Away from the start, where the last layer is zero and nothing else has a gradient.
    trained = jax.tree.map(lambda leaf: leaf + 0.05, params["params"])
    params = {**params, "params": trained}
    prepared = attack.prepare(params, signals)

    def by_definition(trained):
        one = lambda p: model.apply({"params": p}, prepared)  # noqa: E731
        return jnp.sin(jax.vmap(one)(trained)).sum()

    def ours(trained):
        return jnp.sin(attack.logits({**params, "params": trained}, prepared, None)).sum()

    expected, found = (jax.jit(jax.value_and_grad(f))(trained) for f in (by_definition, ours))
    assert_close(found[0], expected[0])
    for a, b in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
        assert_close(a, b, rtol=2e-5, floor=1e-6)

    def layouts(fun):
        for eqn in equations(jax.grad(fun), trained):
            if eqn.primitive.name == "conv_general_dilated":
                lhs, rhs, out = convolution_of(eqn)[:3]
                axes = range(1, len(shape))
                last = len(shape)
                yield lhs == out == (0, last, *axes) and rhs[2:] == tuple(range(last - 1))

    assert not all(layouts(by_definition)) and all(layouts(ours))


def test_a_factored_gradient_is_read_as_the_materialised_one():
    random = np.random.default_rng(0)
    outer = jm.Outer(*(jnp.asarray(random.normal(size=(7, d)), jnp.float32) for d in (5, 3)))
    component = GradientComponent(kernels=4, width=6, dropout=0.0)
    params = component.init(jax.random.key(0), outer, train=False)
    params = jax.tree.map(lambda p: p + 0.1, params)  # no zero biases
    factored = component.apply(params, outer, train=False)
    whole = component.apply(params, outer.materialise(), train=False)
    assert_close(factored, whole)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    rows = np.maximum(np.einsum("nij,jk->nik", outer.materialise(), kernel) + bias[None, None], 0)
    dense = params["params"]["_Dense_0"]
    hidden = rows.reshape(7, -1) @ dense["kernel"] + dense["bias"][None]
    assert_close(whole, jax.nn.gelu(hidden), rtol=1e-4)


def test_features_are_standardised_on_the_fit_part_and_do_not_depend_on_company():
    target, records = mlp_target(), some_records(300, (6,), 4)
    signals = jm.extract(target, records, jm.SignalSpec(gradients=("c",), gradient_norm=True))
    fit_part, rest = signals.rows(slice(200)), signals.rows(slice(200, None))
    scale, features_of = jax.jit(scales)(fit_part), jax.jit(features)
    of_fit, of_rest = features_of(scale, fit_part), features_of(scale, rest)
    assert abs(float(of_fit.base.mean())) < 1e-5 and float(of_fit.base.std()) == pytest.approx(1)
    one = features_of(scale, rest.rows(slice(3, 4)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(of_rest), strict=True):
        assert_close(a[0], b[3])


def test_features_do_not_depend_on_units():
    """An affine change of a column is undone, but for the floor under its spread (0.1%)."""
    random = np.random.default_rng(0)
    column = random.lognormal(size=(100, 1)).astype("f")
    first = Signals({"v": column}, {}, {}, None, None)
    second = Signals({"v": 3 * column + 2}, {}, {}, None, None)
    a = features(scales(first), first).vector
    b = features(scales(second), second).vector
    assert_close(a[:, 0], b[:, 0], rtol=2e-3)  # the mean, standardised
    assert_close(a[:, 3], b[:, 3], rtol=2e-3)  # the same as a normal score


def logistic_regression() -> jm.Attack:
    """A user's own attack: two functions."""

    def init(key, signals):
        return {"w": jnp.zeros(signals.outputs["logits"].shape[1]), "b": jnp.zeros(())}

    def score(params, signals):
        return signals.outputs["logits"] @ params["w"] + params["b"]

    return jm.Attack(init, score)


def test_a_custom_attack_of_two_functions_reaches_the_known_optimum():
    random = np.random.default_rng(0)
    is_member = np.arange(2000) % 2 == 0
    x = random.normal(size=(2000, 3)).astype("f") + is_member[:, None] * np.array([1, 0, -0.5], "f")
    signals = Signals({"logits": x}, {}, {}, None, None)
    attack = logistic_regression()
    fitted = jm.fit(
        jax.random.key(0), attack, signals, is_member, optimizer=optax.adam(0.02), epochs=30
    )
    # Equal covariances: the optimal weights are the difference of the means.
    np.testing.assert_allclose(fitted.params["w"], [1, 0, -0.5], atol=0.15)
    np.testing.assert_allclose(fitted.params["b"], -0.625, atol=0.15)


def test_unbalanced_records_are_all_used_in_balance():
    """One member to five others: an intercept fitted on balanced batches is near 0."""
    is_member = np.arange(600) % 6 == 0
    signals = Signals({"logits": np.zeros((600, 1), "f")}, {}, {}, None, None)
    fitted = jm.fit(
        jax.random.key(0), logistic_regression(), signals, is_member, optimizer=optax.sgd(0.5)
    )
    assert abs(float(fitted.params["b"])) < 0.05


def test_cross_fit_scores_every_record_by_a_fit_that_did_not_see_it():
    signals, is_member = planted(200, leak=4.0)
    scores = jm.cross_fit(
        jax.random.key(0),
        jm.inference_model(members=2),
        signals,
        is_member,
        folds=4,
        epochs=20,
        batch_size=64,
    )
    assert scores.shape == (200,) and scores.dtype == np.float64
    assert auc(scores, is_member) > 0.9


def test_cross_fit_of_a_memoriser_finds_nothing():
    """An attack that can only look records up scores 1 where it is fitted, 0.5 honestly."""
    n = 120
    signals = Signals({"logits": np.eye(n, dtype="f")}, {}, {}, None, None)
    is_member = np.random.default_rng(0).permutation(np.arange(n) % 2 == 0)
    attack = logistic_regression()
    options = {"optimizer": optax.adam(0.1), "epochs": 5, "batch_size": 32}
    fitted = jm.fit(jax.random.key(0), attack, signals, is_member, **options)
    assert auc(attack.score(fitted.params, signals), is_member) == 1.0
    scores = jm.cross_fit(jax.random.key(0), attack, signals, is_member, folds=3, **options)
    low, high = jm.metrics.AttackResult(scores=scores, is_member=is_member).auc_interval()
    assert low < 0.5 < high or low == high == 0.5


def test_bad_input_is_refused():
    signals, is_member = planted(20)
    attack = jm.inference_model(members=2)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"fit: signals of \[20\] records, but membership of 19"):
        jm.fit(key, attack, signals, is_member[:19])
    with pytest.raises(ValueError, match="fit: 20 members and 0 non-members"):
        jm.fit(key, attack, signals, np.ones(20))
    with pytest.raises(ValueError, match="must be one 0 or 1 a record"):
        jm.fit(key, attack, signals, np.arange(20))
    broken = signals._replace(loss=np.where(np.arange(20) == 4, np.inf, signals.loss))
    with pytest.raises(ValueError, match=r"signals of 1 records are not finite \(first: 4\)"):
        jm.fit(key, attack, broken, is_member)
    with pytest.raises(ValueError, match="3 folds, but the attack is an ensemble of 2"):
        jm.fit(key, attack, signals, is_member, folds=3)
    with pytest.raises(ValueError, match="5 folds of 8 records"):
        jm.cross_fit(key, attack, signals.rows(slice(16)), is_member[:16])
    with pytest.raises(ValueError, match="fitting diverged in epoch 1"):
        jm.fit(
            key,
            logistic_regression(),
            signals,
            is_member,
            optimizer=optax.sgd(float("inf")),
            **SMALL,
        )
