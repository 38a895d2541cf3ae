"""What each layer gives away: signals paired by layer, ranks with their intervals, the report."""

import json
import warnings
from functools import partial
from io import StringIO

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxmeter as jm
from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.attacks.white_box import by_place, stacked
from jaxmeter.auditing.layers import READS, measured_layers
from jaxmeter.auditing.references import seen_by
from jaxmeter.metrics import MetricWarning
from jaxmeter.reference import ReferenceWarning
from jaxmeter.report import markup, page
from jaxmeter.report.figures.layers import MARKERS
from jaxmeter.report.layer_map import LayerMap
from jaxmeter.report.result import LayerSignal
from jaxmeter.shadow import RecipeConfig, of_functions

pytestmark = pytest.mark.figures

D, HIDDEN, CLASSES, N, K = 30, 16, 3, 150, 8
RECIPE = RecipeConfig(learning_rate=0.03, epochs=20, batch_size=20)


def network(layers, sizes, seed=0):
    """A tanh network with random weights whose layers have these names, in this order."""
    random = np.random.default_rng(seed)
    params = {
        f"{name}/kernel": random.normal(size=shape).astype("f")
        for name, shape in zip(layers, zip(sizes[:-1], sizes[1:], strict=True), strict=True)
    }

    def apply(params, state, x):
        outputs = {}
        for name in layers:
            x = outputs[name] = jnp.tanh(x) @ params[f"{name}/kernel"]
        return jm.Outputs(x, outputs)

    return jm.from_function(apply, params, input_shape=sizes[:1])


def random_records(n, d, classes, seed=0):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(2 * n, d)).astype("f"), random.integers(0, classes, 2 * n)
    return jm.Records.of(members=(x[:n], y[:n]), nonmembers=(x[n:], y[n:]))


# --- Pairing ------------------------------------------------------------------------------------


def test_signals_of_target_and_references_are_paired_whatever_layers_are_called():
    """Each is a reference model of the other, under other names: their signals are the same."""
    target, data = network(("z", "dense_10", "a"), (5, 4, 6, 3)), random_records(20, 5, 3)
    names = ("log odds", "gradient norms", "alignment", "class distance")
    spec = jm.CalibratedInference(signals=names).reads(target).resolved(target)
    mine = jm.extract(target, data, spec).rows(slice(5, 30)).only(spec)
    models = jm.shadow.extract(jm.shadow.stack([target, target]), data, spec)
    theirs = ReferenceSignals(models, np.ones((2, 40), bool)).rows(slice(5, 30)).signals
    observed, y = stacked(names, mine, data.y[5:30]), data.y[5:30]
    np.testing.assert_allclose(stacked(names, theirs, y), np.stack([observed] * 2), rtol=1e-6)
    distinct = {row.tobytes() for row in observed}
    assert len(distinct) == len(observed) - 1  # the last layer's outputs are the logits


def test_counted_names_keep_their_order():
    """A second model of a kind has its layers counted on: dense_9 and dense_10 for dense_1, _2."""
    first, second = network(("dense_1", "dense_2"), (5, 4, 3)), network(("dense_9", "dense_10"),
                                                                        (5, 4, 3))  # fmt: skip
    data, spec = random_records(10, 5, 3), jm.SignalSpec(gradient_norm=True)
    found = [by_place("gradient norms", jax.tree.map(lambda v: v, jm.extract(net, data, spec)),
                      data.y) for net in (first, second)]  # fmt: skip
    assert list(found[1]) == ["dense_9", "dense_10"]
    np.testing.assert_allclose(*[np.stack([*one.values()]) for one in found], rtol=1e-6)


# --- The map ------------------------------------------------------------------------------------


def architecture(layers=("inner", "answer"), sizes=(D, HIDDEN, CLASSES)):
    """Such a network, to be trained; more weights than records, so that it overfits."""
    shapes = [*zip(sizes[:-1], sizes[1:], strict=True)]

    def init(key):
        return {
            f"{name}/kernel": jax.random.normal(jax.random.fold_in(key, i), shape)
            / np.sqrt(shape[0])
            for i, (name, shape) in enumerate(zip(layers, shapes, strict=True))
        }

    return of_functions(init, network(layers, sizes).apply, input_shape=sizes[:1])


@pytest.fixture(scope="module")
def data():
    """Labels are random: what a model knows of a record it has from having seen it."""
    return random_records(N, D, CLASSES)


@pytest.fixture(scope="module")
def models(data):
    """The target, trained on the members, and eight more, each record in half of them."""
    halves = np.asarray(jm.shadow.balanced_membership(jax.random.key(2), K, 2 * N))
    was_member = np.concatenate([data.is_member[None], halves])
    train = partial(jm.shadow.train, jax.random.key(1), architecture())
    return train(data.x, data.y, was_member, RECIPE.recipe()), was_member


@pytest.fixture(scope="module")
def target(models):
    return jm.shadow.model(models[0], 0)


@pytest.fixture(scope="module")
def references(models, data):
    stack, was_member = models
    others = jm.shadow.model(stack, np.arange(1, K + 1))
    return jm.References(models=others, x=data.x, was_member=was_member[1:])


@pytest.fixture(scope="module")
def seen(references, data):
    return seen_by(references, data, READS)


@pytest.fixture(scope="module")
def signals(target, data):
    return jm.extract(target, data, READS)


@pytest.fixture(scope="module")
def calibrated(target, data, references):
    return jm.layer_map(target, data, references)


def quietly(scores, is_member):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        return jm.evaluate(scores, is_member)


def raw(signals):
    """Scores by (layer, kind), straight from the signals."""
    found = {}
    for layer in ("inner", "answer"):
        norm = signals.gradient_norms[layer].astype(np.float64)
        found[layer, "gradient norm"] = -np.log(norm)
        found[layer, "gradient"] = signals.scalars[f"alignment {layer}/kernel"]
        found[layer, "activation"] = signals.scalars[f"class distance {layer}"]
    return found


def test_without_references_the_signals_are_the_scores(target, data, signals):
    found, expected = jm.layer_map(target, data), raw(signals)
    assert found.models == 0 and found.layers == ("inner", "answer")
    assert {(row.layer, row.signal) for row in found.rows} == set(expected)
    aucs = [row.result.auc for row in found.rows]
    assert aucs == sorted(aucs, reverse=True)
    for row in found.rows:
        truth = quietly(expected[row.layer, row.signal], data.is_member)
        assert row.result.auc == truth.auc and row.variable is None and row.place == row.layer
        assert row.result.auc_interval() == truth.auc_interval()
    black_box = quietly(-loss(target, data), data.is_member)
    assert found.output.auc == pytest.approx(black_box.auc, abs=1e-3)  # ties in float32


def loss(target, data):
    """The loss ranks records as the log-odds do."""
    log_p = jax.nn.log_softmax(target(data.x).logits)
    return -np.asarray(log_p)[np.arange(len(data.y)), data.y]


def test_with_references_the_scores_are_likelihood_ratios(calibrated, data, signals, seen):
    """Brute force: normal densities about means of models that saw a record and of the others."""
    mine, models = raw(signals), raw(seen.signals)
    assert calibrated.models == K and len(calibrated.rows) == 6
    for row in calibrated.rows:
        observed = mine[row.layer, row.signal].astype(np.float64)
        theirs = models[row.layer, row.signal].astype(np.float64)
        sides = []
        for side in (seen.was_member, ~seen.was_member):
            mean = np.array([theirs[side[:, i], i].mean() for i in range(2 * N)])
            squares = sum(((theirs[side[:, i], i] - mean[i]) ** 2).sum() for i in range(2 * N))
            sides.append((mean, squares / (side.sum() - 2 * N) * (1 + 1 / (K // 2))))
        (inside, var_in), (outside, var_out) = sides
        level = (observed - (inside + outside) / 2).mean()
        score = 0.5 * (
            (observed - level - outside) ** 2 / var_out
            + np.log(var_out)
            - (observed - level - inside) ** 2 / var_in
            - np.log(var_in)
        )
        np.testing.assert_allclose(row.result.scores, score, rtol=1e-6, atol=1e-8)
        assert row.result.auc == pytest.approx(quietly(score, data.is_member).auc, abs=1e-4)


def test_an_overfitted_network_gives_itself_away(calibrated, target, data):
    assert calibrated.best_interval.low > 0.8 and calibrated.rows[0] in calibrated.candidates
    assert "gives away most" in calibrated.finding()[0]
    # The first layer's outputs know nothing of labels drawn at random; its gradients do.
    by = {(row.layer, row.signal): row.result for row in jm.layer_map(target, data).rows}
    assert by["inner", "gradient norm"].auc_interval().low > 0.8
    assert by["answer", "gradient"].auc_interval().low > 0.5


def test_weights_that_hold_the_records_are_found_where_they_are():
    """Fixed features, and a layer that is the sum of what members would have it be."""
    data = random_records(400, 20, CLASSES, seed=4)
    fixed = np.random.default_rng(5).normal(size=(20, 60)).astype("f") / np.sqrt(20)
    hidden = np.tanh(data.x @ fixed)
    wanted = np.eye(CLASSES)[data.y] - 1 / CLASSES
    memory = (hidden[data.is_member].T @ wanted[data.is_member] / 400).astype("f")

    def apply(params, state, x):
        features = jnp.tanh(x @ params["features/kernel"])
        answer = features @ params["memory/kernel"]
        return jm.Outputs(answer, {"features": features, "memory": answer})

    params = {"features/kernel": fixed, "memory/kernel": memory}
    found = jm.layer_map(jm.from_function(apply, params, input_shape=(20,)), data)
    by = {(row.layer, row.signal): row.result for row in found.rows}
    assert by["memory", "gradient"].auc_interval().low > 0.6
    low, high = by["features", "activation"].auc_interval()
    assert low < 0.5 < high  # they were there before any record
    assert by["features", "activation"] not in [row.result for row in found.candidates]


@pytest.mark.parametrize("with_references", [False, True])
def test_of_membership_drawn_anew_nothing_is_found(with_references, signals, seen, data, target):
    """Intervals contain 0.5 as often as they promise, and no layer is called the best."""
    missed, called, rows, draws = 0, 0, 0, 40
    for seed in range(draws):
        drawn = np.random.default_rng(seed).permutation(data.is_member)
        records = data._replace(is_member=drawn)
        found = LayerMap.of(
            measured_layers(signals, records, target.spec, seen if with_references else None)
        )
        assert found.models == K * with_references
        intervals = [row.result.auc_interval() for row in found.rows]
        missed += sum(not low <= 0.5 <= high for low, high in intervals)
        rows += len(intervals)
        called += found.best_interval.low > 0.5
        if found.best_interval.low <= 0.5:
            assert found.finding()[0].startswith("No layer's signal")
    assert missed <= 0.12 * rows  # 0.05, and rows of one draw are correlated
    assert called <= 4  # at most 2 in 80 sides, and chance


def some_map(strengths, n, seed, layers=None):
    """Signals of given strengths that share some noise, as those of one record do."""
    random = np.random.default_rng(seed)
    is_member, common = np.arange(2 * n) < n, random.normal(size=2 * n)
    rows = []
    for i, strength in enumerate(strengths):
        scores = random.normal(size=2 * n) + common + strength * is_member
        layer = f"layer_{i}" if layers is None else layers[i]
        result = quietly(scores, is_member)
        rows.append(LayerSignal(layer=layer, signal="gradient", result=result))
    rows.sort(key=lambda row: -row.result.auc)
    return LayerMap(
        rows=tuple(rows), layers=tuple(dict.fromkeys(sorted(row.layer for row in rows)))
    )


def test_what_is_truly_the_best_is_among_those_that_may_be():
    lost, narrowed = 0, 0
    for seed in range(100):
        found = some_map([0.3, 1.0, 0.9, 0.8, 0.0], n=80, seed=seed)
        candidates = {row.layer for row in found.candidates}
        lost += "layer_1" not in candidates
        narrowed += "layer_4" not in candidates
        level = 1 - 0.05 / 4
        for row, behind in zip(found.rows, found.behind, strict=True):
            assert behind == found.rows[0].result.auc_difference(row.result, level)
    assert lost <= 5 and narrowed >= 95


def test_a_layer_of_several_kernels_has_a_gradient_for_each():
    random = np.random.default_rng(0)
    params = {
        "cell/kernel": random.normal(size=(4, 4)).astype("f"),
        "cell/recurrent": random.normal(size=(4, 3)).astype("f"),
        "out/kernel": random.normal(size=(3, 2)).astype("f"),
    }

    def apply(params, state, x):
        inner = jnp.tanh(jnp.tanh(x @ params["cell/kernel"]) @ params["cell/recurrent"])
        return jm.Outputs(inner @ params["out/kernel"], {"cell": inner})

    found = jm.layer_map(jm.from_function(apply, params), random_records(20, 4, 2))
    assert sorted((row.place, row.signal) for row in found.rows) == [
        ("cell", "activation"),
        ("cell", "gradient norm"),
        ("cell/kernel", "gradient"),
        ("cell/recurrent", "gradient"),
        ("out", "gradient"),
        ("out", "gradient norm"),
    ]
    assert {row.layer for row in found.rows} == set(found.layers) == {"cell", "out"}


def test_references_said_to_have_seen_no_record_still_calibrate(target, data, references):
    fresh = random_records(N, D, CLASSES, seed=9)
    mixed = jm.Records.of(
        members=(data.x[data.is_member], data.y[data.is_member]),
        nonmembers=(fresh.x[:N], fresh.y[:N]),
    )
    others = jm.References(
        models=references.models, x=fresh.x[N:], was_member=np.ones((K, N), bool)
    )
    with warnings.catch_warnings(action="ignore", category=ReferenceWarning):
        found = jm.layer_map(target, mixed, others)
    assert found.models == K and found.best_interval.low > 0.6


def test_references_are_trained_on_the_spot(target, data):
    recipe, stages = RecipeConfig(learning_rate=0.03, epochs=1, batch_size=20), set()
    shadows = jm.Shadows(architecture=architecture(), recipe=recipe, k=2)
    with warnings.catch_warnings(action="ignore", category=ReferenceWarning):
        found = jm.layer_map(
            target,
            data,
            shadows,
            key=jax.random.key(0),
            progress=lambda stage, done, total: stages.add(stage),
        )
    assert found.models == 2 and len(found.rows) == 6
    assert stages == {"signals", "epochs of reference models", "reference signals"}


# --- What does not fit --------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_or_said(target, data, references):
    with pytest.raises(ValueError, match="key="):
        jm.layer_map(target, data, jm.Shadows(architecture=architecture()))
    x, y = data.x.copy(), data.y.copy()
    x[-1], y[-1] = x[0], y[0]
    twice = data._replace(x=x, y=y)
    with pytest.raises(ValueError, match="same records"):
        jm.layer_map(target, twice)
    left = jm.layer_map(target, twice, overlap="drop").rows[0].result
    assert (left.n_members, left.n_nonmembers) == (N - 1, N - 1)
    bare = jm.from_function(lambda p, s, x: x, {}, input_shape=(CLASSES,))
    with pytest.raises(ValueError, match="no trainable variables"):
        jm.layer_map(bare, random_records(10, CLASSES, CLASSES))
    deeper = network(("a", "b", "c"), (D, 8, 8, CLASSES))
    with (
        pytest.raises(ValueError, match="other layers"),
        warnings.catch_warnings(action="ignore", category=ReferenceWarning),
    ):
        jm.layer_map(deeper, data, references)


def test_layers_of_other_names_are_said(data, references):
    other = network(("one", "two"), (D, HIDDEN, CLASSES))
    with (
        warnings.catch_warnings(action="ignore", category=ReferenceWarning),
        pytest.warns(ReferenceWarning, match="different names; compared is the activation of one"),
    ):
        jm.layer_map(other, data, references)


# --- What is shown ------------------------------------------------------------------------------


def printed(table, width=100):
    out = StringIO()
    Console(file=out, width=width).print(table)
    return " ".join(out.getvalue().split())


def test_table_and_facts_hold_every_figure(calibrated):
    text = printed(calibrated.table())
    read = calibrated.facts()
    assert json.loads(json.dumps(read, allow_nan=False)) == read
    assert read["models"] == K and read["layers"] == ["inner", "answer"]
    for row, facts, behind in zip(calibrated.rows, read["signals"], calibrated.behind, strict=True):
        low, high = row.result.auc_interval()
        assert f"{row.result.auc:.3f}" in text and f"{low:.3f}–{high:.3f}" in text
        assert facts["auc"] == {"value": row.result.auc, "low": low, "high": high}
        assert facts["tpr_at_fpr"]["value"] == row.result.tpr_at(0.01)
        assert (facts["layer"], facts["signal"]) == (row.layer, row.signal)
        assert facts["best_minus_this"] == behind._asdict()
        assert facts["may_be_best"] == (row in calibrated.candidates)
    assert read["output"]["auc"]["value"] == calibrated.output.auc
    assert "8 reference models" in text and "black box" in text


@pytest.mark.parametrize("count", [2, 60])
def test_the_figure_has_a_mark_for_every_signal(count):
    names = [f"$layer_{i:02}$" for i in range(count)]
    found = some_map(np.linspace(0, 2, count), 30, seed=0, layers=names)
    figure = found.figure()
    (ax,) = figure.axes
    marks = [line for line in ax.lines if line.get_marker() == MARKERS["gradient"]]
    assert len(marks) == count
    filled = sum(line.get_markerfacecolor() != "none" for line in marks)
    assert filled == len(found.candidates)
    figure.canvas.draw()  # names are no formulas
    places = [(line.get_ydata() if count == 2 else line.get_xdata())[0] for line in marks]
    assert sorted(places) == pytest.approx([*range(count)])


@pytest.fixture(scope="module")
def report(target, data, references):
    network = jm.reference.NetworkConfig(steps=20)
    attacks = (jm.NegativeLoss(), jm.CalibratedInference(network=network))
    with warnings.catch_warnings(action="ignore", category=ReferenceWarning):
        return jm.audit(target, data, key=jax.random.key(0), attacks=attacks, references=references)


def test_an_audit_maps_the_layers_on_held_out_records(report, tmp_path):
    found = report.layers
    assert (
        found.models == K and len(found.rows) == 6
    )  # activations too, though no attack reads them
    for row in found.rows:
        np.testing.assert_array_equal(row.result.is_member, report.held.is_member)
    assert found.best_interval.low > 0.7
    out = report.save(tmp_path / "out")
    read = json.loads((out / "results.json").read_text("utf-8"))
    assert read["layers"] == found.facts()
    html = (out / "report.html").read_text("utf-8")
    assert "Which layer gives away how much" in html and '<figure class="layers"' in html
    assert found.rows[0].layer in html and (out / "figures" / "layers.png").exists()
    report.save(out)  # it knows its own figures
    del read["layers"]  # a file of before there were any
    drawn = dict.fromkeys(("roc", "histograms", "classes", "class_scores", "layers"), "<svg></svg>")
    assert "Which layer" not in page.page(read, drawn)


def test_an_audit_maps_what_its_attacks_read(target, data):
    only = partial(jm.audit, target, data, key=jax.random.key(0))
    assert only(attacks=[jm.NegativeLoss()]).layers is None
    norms = only(attacks=[jm.GradientNorm()]).layers
    assert {row.signal for row in norms.rows} == {"gradient norm"} and norms.models == 0
    assert {row.layer for row in norms.rows} == {"inner", "answer"}


def test_what_references_lack_is_mapped_without_them(target, data, references):
    attacks = [jm.GradientNorm(), jm.Lira()]
    with warnings.catch_warnings(action="ignore", category=ReferenceWarning):
        found = jm.audit(
            target, data, key=jax.random.key(0), attacks=attacks, references=references
        ).layers
    assert found.models == 0 and len(found.rows) == 2


@pytest.mark.parametrize("named", ["layer", "variable"])
def test_names_from_a_file_are_no_markup_of_the_page(named):
    name = "<img src=x onerror=alert(1)>&{{ 7 * 7 }}"
    interval = {"value": 0.6, "low": 0.5, "high": 0.7}
    row = {
        "layer": name if named == "layer" else "dense",
        "variable": name if named == "variable" else None,
        "signal": "gradient",
        "auc": interval,
        "tpr_at_fpr": {"fpr": 0.01, "reason": None, **interval},
        "best_minus_this": interval,
        "may_be_best": True,
    }
    facts = {"finding": [name], "scored": name, "signals": [row]}
    drawn = {"layers": markup.figure("layers", {"layers": "<svg></svg>"}, "label")}
    html = markup.rendered("layers.html", layers=page.layers(facts), drawn=drawn)
    assert name not in html and "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;&amp;{{ 7 * 7 }}") == 3
