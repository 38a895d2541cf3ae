"""Reports: every figure shown against the results, and folders that are whole or untouched."""

import base64
import json
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from sklearn.datasets import load_digits

from jaxmeter.attacks.interface import Epoch
from jaxmeter.data.records import Records
from jaxmeter.meter.figures import ComparedRun, comparison_figure
from jaxmeter.metrics import MetricWarning, evaluate
from jaxmeter.report import findings, folder, measures, page, verdict
from jaxmeter.report.figures import gradient_norms, listing
from jaxmeter.report.figures import roc as figures_roc
from jaxmeter.report.figures.classes import class_figure, class_scores_figure
from jaxmeter.report.figures.exposed import exposed_figure, is_images
from jaxmeter.report.figures.history import history_figure
from jaxmeter.report.figures.listing import LABELS, ReportFigure, drawn
from jaxmeter.report.figures.roc import roc_figure
from jaxmeter.report.figures.scores import histogram_figure
from jaxmeter.report.report import Report, check_folder
from jaxmeter.report.result import Budget, Row
from jaxmeter.report.wording import percent, percents
from jaxmeter.target import Source, TargetSpec

pytestmark = pytest.mark.figures

NASTY = 'learned: <b>dense_3</b> & "grad" of $k$ [bold]x[/bold]'


def make_report(kind="digits", n=449, strengths=None, seed=0, **changes):
    """A report of Gaussian scores: members N(strength, 1), non-members N(0, 1)."""
    random = np.random.default_rng(seed)
    is_member = np.repeat([True, False], n)
    if kind == "digits":
        digits = load_digits()
        chosen = random.permutation(len(digits.target))[: 2 * n]
        x, y = digits.images[chosen].astype(np.float32), digits.target[chosen].astype(np.int32)
    else:
        classes = {"tabular": 2, "classes": 100}[kind]
        x = random.normal(size=(2 * n, 14)).astype(np.float32)
        y = random.integers(0, classes, 2 * n).astype(np.int32)
    if strengths is None:
        strengths = {"negative loss": 0.4, NASTY: 0.9, "correctness": 0.3, "blind baseline": 0.0}
    rows = []
    for name, strength in strengths.items():
        scores = random.normal(size=2 * n) + strength * is_member
        if name == "correctness":  # ties, and no threshold
            scores = np.sign(scores)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MetricWarning)
            threshold = None if name == "correctness" else strength / 2
            result = evaluate(scores, is_member, threshold=threshold)
        learned, blind = name.startswith("learned"), name.startswith("blind")
        budget = Budget(
            known_members=180 if learned else 0,
            known_nonmembers=181 if learned else 0,
            queries=0 if blind else 1,
            reads=("logits", "loss"),
            parameters=("dense_3/kernel",) if learned else (),
        )
        history = tuple(Epoch(e, 1 / e, 0.7 - 0.1 / e, 0.6) for e in range(1, 6)) if learned else ()
        best_epoch = 3 if learned else None
        rows.append(
            Row(
                name=name,
                result=result,
                budget=budget,
                seconds=1.5,
                history=history,
                best_epoch=best_epoch,
            )
        )
    fields = dict(
        rows=tuple(rows),
        held=Records(x, y, is_member),
        held_index=np.sort(random.permutation(4 * n)[: 2 * n]),
        parts=((180, 181), (45, 45), (n, n)),
        target=TargetSpec(
            input_shape=x.shape[1:],
            n_classes=int(y.max()) + 1,
            layers=("<script>alert(1)</script>",),
            variables=("dense_3/kernel",),
            source=Source(route="function", origin="/tmp/<img src=x>&.keras", difference=3e-7),
        ),
        accuracy=(1.0, 0.9),
        seed="0",
        signal_seconds=2.0,
        signal_bytes=71_000_000,
        notes=("2 near-copies <i>here</i>",),
        versions=(("jaxmeter", "0.0.1"), ("jax", "0.10.2")),
        device="cpu",
        settings={"fractions": (0.4, 0.1, 0.5), "rate": np.float32(0.5), "top": float("inf")},
    )
    return Report(**(fields | changes))


# No attack of this report reads gradient norms, or anything of a layer.
DRAWN = [name for name in LABELS if name not in ("gradient_norms", "layers")]


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture(scope="module")
def saved(report, tmp_path_factory):
    return report.save(tmp_path_factory.mktemp("saved") / "new" / "report")


def printed(table, width=100):
    out = StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


# --- The table.


@pytest.mark.parametrize("width", [80, 100, 120])
def test_table_shows_every_figure_and_says_what_cannot_be_resolved(report, width):
    text = printed(report.table(), width)
    assert max(map(len, text.splitlines())) <= width
    for row in report.rows:
        low, high = row.result.auc_interval()
        assert f"{row.result.auc:.3f}" in text and f"{low:.3f}–{high:.3f}" in text
        assert percent(row.result.accuracy) in text
        assert percent(row.result.tpr_at(0.01)) in text
        assert percents(row.result.tpr_interval(0.01)) in text
    assert text.count("needs 1,000") == len(report.rows)
    assert "449 held-out members and 449 non-members" in " ".join(text.split())
    assert "[bold]x[/bold]" in "".join(text.split())  # names are not markup
    cells = report.table().columns[4]._cells
    assert {str(cell) for cell in cells} == {"needs 1,000\nnon-members"}


def test_enough_nonmembers_give_the_number():
    report = make_report("tabular", n=1000, strengths={"negative loss": 2.0})
    assert "needs" not in printed(report.table())
    at = report.facts()["attacks"][0]["tpr_at_fpr"][1]
    assert at["value"] == report.rows[0].result.tpr_at(0.001) and at["reason"] is None


def test_an_unknown_accuracy_is_said_to_be_unknown(tmp_path):
    report = make_report("tabular", n=20, accuracy=(float("nan"), 0.5))
    assert "accuracy is unknown on members" in " ".join(printed(report.table()).split())
    out = report.save(tmp_path / "out")
    read = json.loads((out / "results.json").read_text("utf-8"), parse_constant=refuse)
    assert read["target"]["accuracy"] == {"members": None, "nonmembers": 0.5}


def test_only_a_best_attack_above_chance_is_bold(report):
    def bold(one):
        return [str(cell.spans[0].style) == "bold" for cell in one.table().columns[1]._cells]

    assert bold(report) == [False, True, False, False]
    assert not any(bold(make_report(strengths={"negative loss": 0.0, "entropy": 0.01})))
    assert not any(bold(make_report(strengths={"negative loss": 2.0})))


def test_a_blind_baseline_above_chance_is_said_in_table_and_page(tmp_path):
    shifted = make_report(strengths={"negative loss": 0.5, "blind baseline": 0.5})
    assert "drawn differently" in " ".join(printed(shifted.table()).split())
    html = (shifted.save(tmp_path / "out") / "report.html").read_text("utf-8")
    assert 'class="alarm"' in html
    assert "nothing shows" in shifted.facts()["verdict"]["headline"]
    stronger = make_report(strengths={"negative loss": 1.5, "blind baseline": 0.5})
    assert "not only by membership" in stronger.facts()["verdict"]["headline"]
    assert shifted.facts()["verdict"]["drawn_differently"] is True


def test_without_alarm_where_the_blind_baseline_is_at_chance(report, saved):
    assert verdict.alarm(report) is None and "drawn differently" not in printed(report.table())
    assert 'class="alarm"' not in (saved / "report.html").read_text("utf-8")
    alone = make_report(strengths={"negative loss": 0.0})
    assert alone.facts()["verdict"]["drawn_differently"] is None


def test_the_blind_baseline_is_never_the_best():
    report = make_report(strengths={"negative loss": 0.2, "blind baseline": 2.0})
    assert report.best.name == "negative loss"


def test_chance_is_judged_after_correction_for_the_choice():
    """An uncorrected interval above 0.5 that the Bonferroni one contains is no discovery."""
    names = [f"attack {i}" for i in range(50)]
    report = make_report(n=449, strengths=dict.fromkeys(names, 0.0), seed=1)
    assert report.best.result.auc_interval().low > 0.5  # the best of 50 nulls
    assert not report.facts()["verdict"]["above_chance"]
    assert "No attack" in report.facts()["verdict"]["headline"]


# --- results.json and scores.npz.


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_results_are_strict_json_and_equal_the_results(report, saved):
    read = json.loads((saved / "results.json").read_text("utf-8"), parse_constant=refuse)
    assert read == report.facts() and read["tool"] == "jaxmeter" and read["schema"] == 1
    for attack, row in zip(read["attacks"], report.rows, strict=True):
        result, first = row.result, report.rows[0].result
        assert attack["name"] == row.name
        assert attack["auc"] == {"value": result.auc, **result.auc_interval()._asdict()}
        minus = result.auc_difference(first)._asdict()
        assert attack["auc_minus_reference"] == {"reference": "negative loss", **minus}
        accuracy = attack["balanced_accuracy"]
        assert accuracy["value"] == result.accuracy and accuracy["threshold"] == result.threshold
        if result.threshold is not None:
            specificity = 1 - accuracy["false_positives"] / 449
            mean = (accuracy["true_positives"] / 449 + specificity) / 2
            assert mean == pytest.approx(result.accuracy, abs=1e-12)
        at, unresolved = attack["tpr_at_fpr"]
        assert at["value"] == result.tpr_at(0.01) == at["true_positives"] / 449
        assert [at["low"], at["high"]] == list(result.tpr_interval(0.01))
        assert at["false_positives"] <= 4 and at["reason"] is None
        assert unresolved["value"] is None and unresolved["reason"] == "needs 1,000 non-members"
    assert read["settings"] == {"fractions": [0.4, 0.1, 0.5], "rate": 0.5, "top": "inf"}
    assert read["attacks"][1]["history"][0]["loss"] == 1.0 and read["attacks"][1]["best_epoch"] == 3


def test_saving_twice_gives_the_same_bytes(report, saved, tmp_path):
    again = report.save(tmp_path / "again")
    files = [path.relative_to(saved) for path in sorted(saved.rglob("*")) if path.is_file()]
    assert len(files) == 3 + 2 * len(DRAWN)
    for name in files:
        assert (saved / name).read_bytes() == (again / name).read_bytes(), name


def test_scores_come_back_in_order_without_pickle(report, saved):
    with np.load(saved / "scores.npz", allow_pickle=False) as arrays:
        assert arrays["attacks"].tolist() == [row.name for row in report.rows]
        for key, row in zip(arrays["keys"], report.rows, strict=True):
            np.testing.assert_array_equal(arrays[str(key)], row.result.scores)
            assert re.fullmatch(r"[a-z0-9_]+", str(key))
        np.testing.assert_array_equal(arrays["is_member"], report.held.is_member)
        np.testing.assert_array_equal(arrays["y"], report.held.y)
        np.testing.assert_array_equal(arrays["held_index"], report.held_index)


@pytest.mark.parametrize("decimals", [None, 1])
def test_thinned_roc_is_exact_where_it_says_so(decimals):
    random = np.random.default_rng(3)
    scores, is_member = random.normal(size=40_000), np.arange(40_000) % 2 == 0
    scores = scores + 0.8 * is_member if decimals is None else scores.round(decimals)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        result = evaluate(scores, is_member)
    thin, roc = measures.thinned_roc(result), result.roc()
    assert len(thin["fpr"]) <= 1600 and thin["fpr"][-1] == thin["tpr"][-1] == 1
    upto = roc.fpr <= thin["exact_to_fpr"]
    for fpr, tpr in list(zip(roc.fpr[upto], roc.tpr[upto], strict=True))[::7]:
        left = thin["tpr"][thin["fpr"] <= fpr].max()
        assert left >= tpr and left == roc.tpr[roc.fpr <= fpr].max()
    assert np.trapezoid(thin["tpr"], thin["fpr"]) == pytest.approx(result.auc, abs=2e-4)


def test_infinite_thresholds_and_scores_and_unfinished_losses_stay_json(tmp_path):
    report = make_report("tabular", n=30, strengths={"negative loss": 0.5, "learned": 0.1})
    scores = report.rows[0].result.scores.copy()
    scores[[0, 40]] = np.inf, -np.inf
    first = evaluate(scores, report.held.is_member, threshold=np.inf)
    history = (Epoch(0, float("nan"), float("inf"), 0.5),)
    rows = (
        Row(name="negative loss", result=first, budget=Budget(known_members=0, known_nonmembers=0),
            seconds=0.0),
        Row(name="learned", result=report.rows[1].result, budget=report.rows[1].budget,
            seconds=1.0, history=history, best_epoch=0),
    )  # fmt: skip
    out = make_report("tabular", n=30, rows=rows).save(tmp_path / "out")
    read = json.loads((out / "results.json").read_text("utf-8"), parse_constant=refuse)
    assert read["attacks"][0]["balanced_accuracy"]["threshold"] == "inf"
    assert read["attacks"][1]["history"][0] | {"select_auc": 0} == {
        "epoch": 0, "loss": None, "select_loss": "inf", "select_auc": 0}  # fmt: skip


# --- The page.


class Page(HTMLParser):
    """Collects tags, attributes, and text; checks that elements nest."""

    VOID = {"meta", "br", "img", "link", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_nests_loads_nothing_and_escapes_all_names(report, saved):
    html = (saved / "report.html").read_text("utf-8")
    seen = Page()
    seen.feed(html)
    assert not seen.open
    assert not {"script", "link", "img", "b", "iframe", "object"} & set(seen.tags)
    for name, value in seen.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert value.startswith(("#", "data:")), (name, value)
    assert "url(http" not in html and "@import" not in html
    text = "".join(seen.text)
    assert NASTY in text and "<img src=x>&.keras" in text and "<script>alert(1)</script>" in text
    assert "2 near-copies <i>here</i>" in text
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {"attacks", "roc", "scores", "classes", "exposed", "history", "reading"} <= set(ids)


def test_page_shows_the_numbers_of_the_results(report, saved):
    seen = Page()
    seen.feed((saved / "report.html").read_text("utf-8"))
    text = " ".join("".join(seen.text).split())
    top = report.best.result
    low, high = top.auc_interval()
    assert f"probability {top.auc:.3f} (the AUC; 95% interval {low:.3f} to {high:.3f}" in text
    found = round(top.tpr_at(0.01) * 449)
    assert f"identifies {percent(top.tpr_at(0.01))} of the members ({found} of 449" in text
    assert text.count("needs 1,000 non-members") == len(report.rows)


@pytest.mark.parametrize(
    "kind, n, strengths",
    [
        ("tabular", 60, {"negative loss": 0.0}),
        ("tabular", 4, {"negative loss": 0.5, "blind baseline": 0.0}),
        ("classes", 449, None),
        ("classes", 1500, {f"attack {i}": 0.1 * i for i in range(9)}),
        ("tabular", 50, {"blind baseline": 0.0}),
        ("digits", 100, {"negative loss": 50.0, "découvert 漢字 \ud800 \x00": 0.0}),
    ],
)
def test_odd_reports_are_written_too(kind, n, strengths, tmp_path):
    report = make_report(kind, n=n, strengths=strengths)
    out = report.save(tmp_path / "out")
    json.loads((out / "results.json").read_text("utf-8"), parse_constant=refuse)
    seen = Page()
    seen.feed((out / "report.html").read_text("utf-8"))
    assert not seen.open
    assert printed(report.table(), 80)
    assert (out / "figures" / "exposed.png").exists() == (kind == "digits")


# --- Figures.


def test_roc_lines_are_the_results_curves(report):
    (ax,) = roc_figure(report).axes
    for line, row in zip(ax.lines, report.rows, strict=False):
        roc = row.result.roc()
        np.testing.assert_array_equal(line.get_xdata(), roc.fpr)
        np.testing.assert_array_equal(line.get_ydata(), roc.tpr)
        assert line.get_drawstyle() == "steps-post"  # at f: the last point with FPR <= f
    assert len(ax.lines) == len(report.rows) + 1
    styles = figures_roc._styles(report)
    assert len({str(style) for style in styles.values()}) == len(report.rows)


def test_histograms_hold_every_record(report):
    axes = [ax for ax in histogram_figure(report).axes if ax.get_visible()]
    assert len(axes) == len(report.rows)
    for ax in axes:
        filled = [p for p in ax.patches if p.get_fill()]
        assert len(filled) == 2
        for patch in filled:
            assert patch.get_data().values.sum() == pytest.approx(1)


def test_classes_against_brute_force(report):
    risks = findings.class_risk(report, report.best)
    assert [risk.label for risk in risks] == list(range(10))
    scores, held = report.best.result.scores, report.held
    for risk in risks:
        inside = scores[held.is_member & (held.y == risk.label)]
        outside = scores[~held.is_member & (held.y == risk.label)]
        assert risk.auc == pytest.approx(np.mean(inside[:, None] > outside), abs=1e-12)
        assert (risk.n_members, risk.n_nonmembers) == (len(inside), len(outside))
    (ax,) = class_figure(report).axes
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), sorted(risk.auc for risk in risks))


def test_classes_with_few_records_get_no_figure():
    report = make_report("classes", n=600)
    risks = findings.class_risk(report, report.best)
    few = [risk for risk in risks if min(risk.n_members, risk.n_nonmembers) < 10]
    assert few and all(risk.auc is None for risk in few)
    assert all(risk.auc is not None for risk in risks if risk not in few)


def test_exposed_records_are_the_highest_with_the_truth(report):
    records = findings.exposed(report, report.best)
    scores, is_member = report.best.result.scores, report.held.is_member
    assert [record.score for record in records] == sorted(scores, reverse=True)[:16]
    for record in records:
        assert record.is_member == is_member[record.row]
        assert record.record == report.held_index[record.row]
        assert record.label == report.held.y[record.row]
    titles = [ax.get_title() for ax in exposed_figure(report).axes]
    assert [("false alarm" in t) for t in titles] == [not r.is_member for r in records]
    shown = exposed_figure(report).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, report.held.x[records[0].row] / 16, atol=1e-6)


@pytest.mark.parametrize(
    "shape, dtype, ok",
    [((5, 6, 3), np.uint8, True), ((5, 6, 1), np.float32, True), ((14,), np.float32, False),
     ((5, 6, 2), np.float32, False), ((2, 30), np.float32, False)],
)  # fmt: skip
def test_which_records_are_pictures(shape, dtype, ok):
    x = np.random.default_rng(0).integers(0, 2, (898, *shape)).astype(dtype)
    base = make_report("tabular")
    report = make_report("tabular", held=Records(x, base.held.y, base.held.is_member))
    assert is_images(x) == ok
    if ok:
        assert isinstance(exposed_figure(report), Figure)
    else:
        with pytest.raises(ValueError, match="no picture"):
            exposed_figure(report)


def test_history_is_the_rows_history(report):
    losses, aucs = history_figure(report).axes
    history = report.rows[1].history
    assert losses.lines[0].get_ydata().tolist() == [epoch.loss for epoch in history]
    assert losses.lines[1].get_ydata().tolist() == [epoch.select_loss for epoch in history]
    assert aucs.lines[0].get_ydata().tolist() == [epoch.select_auc for epoch in history]


def test_class_panels_count_every_record_of_the_best_attack(report):
    top = findings.best(report).result
    drawn = class_scores_figure(top.scores, report.held.y, report.held.is_member)
    panels = [ax for ax in drawn.axes if ax.get_visible()]
    assert len(panels) == 10
    for label, ax in enumerate(panels):
        mine = report.held.y == label
        inside = report.held.is_member & mine
        assert ax.get_title("left") == f"class {label} ({inside.sum()}+{(mine & ~inside).sum()})"
        shares = [patch.get_data().values for patch in ax.patches]
        assert [values.sum() for values in shares] == pytest.approx([1.0] * 4)
        edges = ax.patches[0].get_data().edges
        clipped = np.clip(top.scores[inside], edges[0], edges[-1])
        np.testing.assert_allclose(shares[0], np.histogram(clipped, edges)[0] / inside.sum())


def test_gradient_norms_by_label_are_geometric_means_with_intervals(tmp_path):
    base = make_report(n=60)
    is_member, y = base.held.is_member, base.held.y % 3
    norms = np.exp(np.random.default_rng(0).normal(size=120) + 2.0 * y)
    norms[0] = 0.0  # a record whose gradient vanished is counted, but has no logarithm
    for of in (is_member, ~is_member):
        for found in gradient_norms.norms_by_label(norms, y, of):
            mine = norms[(y == found.label) & of]
            logs = np.log(mine[mine > 0])
            error = 1.959964 * logs.std(ddof=1) / np.sqrt(logs.size)
            assert found.n == mine.size
            expected = np.exp([logs.mean(), logs.mean() - error, logs.mean() + error])
            np.testing.assert_allclose(found[2:], expected)
    result = evaluate(-norms, is_member)
    row = Row(
        name="of any name",
        minus="gradient norm",
        result=result,
        budget=Budget(known_members=0, known_nonmembers=0, parameters=("w",)),
        seconds=0.1,
    )
    held = Records(base.held.x, y, is_member)
    saved = make_report(n=60, rows=(*base.rows, row), held=held).save(tmp_path / "r")
    assert (saved / "figures" / "gradient_norms.png").exists()
    assert "Gradient norms by label" in (saved / "report.html").read_text("utf-8")
    named = replace(row, name="gradient norm", minus=None)
    assert findings.gradient_norms(make_report(n=60, rows=(*base.rows, named), held=held)) is None
    lonely = gradient_norms.norms_by_label(norms[:1], y[:1], np.ones(1, bool))[0]
    assert lonely.n == 1 and np.isnan(lonely.mean)


def test_several_runs_are_compared_by_their_own_figures(report):
    runs = [ComparedRun(f"run {i}", row.result, (1.0, 0.8)) for i, row in enumerate(report.rows)]
    (ax,) = comparison_figure(runs).axes
    aucs, accuracies, inside, _ = (line.get_xdata() for line in ax.lines[:4])
    assert aucs.tolist() == [run.result.auc for run in runs]
    assert accuracies.tolist() == [run.result.accuracy for run in runs]
    assert inside.tolist() == [1.0] * len(runs)


def test_pictures_are_written_and_not_blank(saved):
    from matplotlib.image import imread

    for name in DRAWN:
        pixels = imread(saved / "figures" / f"{name}.png")
        assert pixels.shape[1] > 800 and pixels[..., :3].std() > 0.05
    html = (saved / "report.html").read_text("utf-8")
    for data in re.findall(r'href="data:image/png;base64,\s*([^"]+)"', html):
        assert base64.b64decode(data).startswith(b"\x89PNG")


def test_a_figure_that_is_listed_is_in_the_folder_and_the_page(tmp_path, monkeypatch):
    own = ReportFigure(
        "own", lambda result: Figure(), "A figure <of> one's own", "A heading & more", "A caption."
    )
    for module in (listing, folder, page):
        monkeypatch.setattr(module, "FIGURES", (*listing.FIGURES, own))
    make_report(n=40).save(tmp_path / "out")
    assert {"own.png", "own.svg"} < {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    for said in ("A figure &lt;of&gt; one&#39;s own", "A heading &amp; more", "A caption."):
        assert said in html
    folder.check(tmp_path / "out")  # a report's own figures are no stranger's files


def test_figures_are_laid_out_once():
    for name, figure in drawn(make_report(n=40)).items():
        places = [ax.get_position().bounds for ax in figure.axes]
        for kind, fonttype in (("png", "path"), ("svg", "path"), ("svg", "none")):
            folder.rendered(figure, kind, fonttype)
            assert [ax.get_position().bounds for ax in figure.axes] == places, name


# --- The folder.


def leftovers(parent):
    return [path.name for path in parent.iterdir() if path.name.endswith((".tmp", ".old"))]


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def small(seed=0):
    return make_report("tabular", n=20, strengths={"negative loss": 0.5}, seed=seed)


def test_replaces_its_own_folder_and_fills_an_empty_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert small().save(out) == out
    before = contents(out)
    assert small(seed=1).save(out) == out
    assert contents(out).keys() == before.keys() and contents(out) != before
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("step", ["page", "swap"])
def test_a_failure_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch, step):
    out = small().save(tmp_path / "out")
    before = contents(tmp_path)

    def fail(*_):
        raise RuntimeError("disk on fire")

    if step == "page":
        monkeypatch.setattr(page, "page", fail)
    else:
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda a, b: fail() if a.name.endswith(".tmp") else rename(a, b)
        )
    with pytest.raises(RuntimeError, match="fire"):
        small(seed=1).save(out)
    assert contents(tmp_path) == before and not leftovers(tmp_path)
    with pytest.raises(RuntimeError, match="fire"):
        small().save(tmp_path / "new" / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_strangers_are_refused_and_kept(tmp_path):
    out = small().save(tmp_path / "out")
    (out / "figures" / "mine.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"figures/mine\.png.*new or empty folder"):
        small().save(out)
    (out / "figures" / "mine.png").unlink()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        check_folder(out)
    assert (out / "thesis.tex").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text('{"tool": "another"}')
    with pytest.raises(FileExistsError, match=r"results\.json"):
        check_folder(other)
    assert contents(other)


def test_links_in_its_own_folder_are_strangers(tmp_path):
    out = small().save(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "roc.png").write_bytes(b"mine")
    for path in (out / "figures").iterdir():
        path.unlink()
    (out / "figures").rmdir()
    (out / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="figures"):
        small().save(out)
    assert (tmp_path / "elsewhere" / "roc.png").read_bytes() == b"mine"


def test_files_and_unwritable_places_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="is a file"):
            check_folder(out)
    assert check_folder(tmp_path / "a" / "b") == (tmp_path / "a" / "b").resolve()
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="may not be written"):
        check_folder(tmp_path / "a" / "b")
