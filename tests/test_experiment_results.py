"""What reads finished runs: the tidy table, comparisons, figures, pages, event files."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import statistics
import warnings
from html.parser import HTMLParser
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from markdown_it import MarkdownIt
from stores import ATTACKS, finished_run, rows, run_name, small_study

from jaxmeter import experiment
from jaxmeter.disk import locked
from jaxmeter.experiment import results
from jaxmeter.experiment.cli import results as showing
from jaxmeter.experiment.results import finished, pages
from jaxmeter.experiment.results import reports as run_reports
from jaxmeter.experiment.results.tables import compared
from jaxmeter.experiment.results.tensorboard import TAGS
from jaxmeter.experiment.results.tidy_table import varying
from jaxmeter.experiment.store import fingerprint
from jaxmeter.experiment.store.files import FORMAT
from jaxmeter.experiment.store.remote import Mirror
from jaxmeter.experiment.store.store import StoreWarning
from jaxmeter.metrics import evaluate

pytestmark = pytest.mark.figures


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one study of 18 runs; do not change it."""
    return small_study(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(study: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(study, tmp_path / "store"))


def a_run(store: Path) -> Path:
    return sorted((store / "runs").iterdir())[3]


# --- The tidy table ------------------------------------------------------------------------------


def test_one_row_a_run_and_attack_with_the_figures_of_its_scores(study: Path):
    table = results.tidy(study, "sizes").to_pylist()
    assert len(table) == 18 * len(ATTACKS)
    for row in table[::7]:
        with np.load(study / "runs" / row["run"] / "scores.npz") as file:
            key = file["keys"][list(file["attacks"]).index(row["attack"])]
            scores, is_member = file[key], file["is_member"]
        members, others = scores[is_member], scores[~is_member]
        wins = (members[:, None] > others).mean() + (members[:, None] == others).mean() / 2
        assert row["auc"] == pytest.approx(wins, abs=1e-12)
        assert row["auc_low"] < row["auc"] < row["auc_high"]
        assert row["tpr_at_0.01"] == (members > np.sort(others)[-2]).mean()
        assert row["tpr_at_0.001"] is None, "120 non-members cannot resolve it"
        assert row["held_members"] == row["held_nonmembers"] == 120
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert row["epsilon"] == evaluate(scores, is_member).epsilon()


def test_rows_come_in_the_order_of_what_was_swept(study: Path):
    table = results.tidy(study)
    keys = ("data.known", "target.layer", "seed", "attack")
    found = list(zip(*(table[key].to_pylist() for key in keys), strict=True))
    assert found == [
        (known, layer, seed, attack)
        for known in (10, 100, 1000)
        for layer in "ab"
        for seed in range(3)
        for attack in ATTACKS
    ]
    assert varying(table) == ["data.known", "seed", "target.layer"]
    assert table["seconds"].to_pylist()[0] == 3.5 and table["seconds.target"][0].as_py() == 2.0
    assert table["seconds.this_attack"][0].as_py() == 0.25


@pytest.mark.parametrize(
    ("values", "kind", "read"),
    [
        ((1, 2), "int64", [1, 2]),
        ((1, 0.5), "double", [1.0, 0.5]),
        ((1, None), "int64", [1, None]),
        ((True, False), "bool", [True, False]),
        ((1, True), "string", ["1", "true"]),
        ((1, "a"), "string", ["1", "a"]),
        ((0.5, "inf"), "double", [0.5, float("inf")]),
        ((2**53 + 1, 0.5), "string", ["9007199254740993", "0.5"]),
        ((2**70, 1), "string", [str(2**70), "1"]),
    ],
)
def test_a_column_is_typed_where_all_runs_agree(tmp_path: Path, values, kind, read):
    for i, value in enumerate(values):
        finished_run(tmp_path, "types", {"seed": i, "field": value}, rows({"loss": 1.0}))
    table = results.tidy(tmp_path, "types").sort_by("seed")
    assert str(table.schema.field("field").type) == kind
    assert table["field"].to_pylist() == read


def test_a_field_that_only_some_variants_have_is_null_elsewhere(tmp_path: Path):
    found = rows({"loss": 1.0})
    finished_run(tmp_path, "s", {"seed": 0, "target": "Mlp", "target.width": 3}, found)
    finished_run(tmp_path, "s", {"seed": 0, "target": "Cnn", "auc": 7}, found)
    table = results.tidy(tmp_path, "s")
    assert table["target"].to_pylist() == ["Cnn", "Mlp"]
    assert table["target.width"].to_pylist() == [None, 3]
    assert table["config.auc"].to_pylist() == [7, None], "not mistaken for a figure"
    assert varying(table) == ["target"], "fields that vary as one are one axis"


def test_a_seed_that_a_part_has_too_is_the_seed(tmp_path: Path):
    for seed in (0, 1):
        found = rows({"a": 1.0}, seed)
        finished_run(tmp_path, "one", {"seed": seed, "data.seed": seed}, found)
        finished_run(tmp_path, "two", {"seed": seed, "data.seed": 1 - seed, "fold": seed}, found)
    assert varying(results.tidy(tmp_path, "one")) == ["seed"]
    assert varying(results.tidy(tmp_path, "two")) == ["data.seed", "seed"], "another seed is not"
    assert results.table(tmp_path, "one").by == ("attack",)


def test_the_parquet_file_holds_the_same_table(store: Path):
    (path,) = results.write(store)
    assert path == store / "studies" / "sizes" / "results.parquet"
    assert pq.read_table(path).equals(results.tidy(store))
    assert not list(store.rglob("*.tmp"))


def test_studies_keep_apart(tmp_path: Path):
    for name in ("a", "a-b"):
        finished_run(tmp_path, name, {"seed": 0}, rows({"loss": 1.0}))
    assert results.tidy(tmp_path, "a")["study"].to_pylist() == ["a"]
    assert results.tidy(tmp_path)["study"].to_pylist() == ["a", "a-b"]
    assert len(results.write(tmp_path)) == 2
    with pytest.raises(ValueError, match="one file was named for 2 studies"):
        results.write(tmp_path, out=tmp_path / "x.parquet")


# --- Reading is never stale ----------------------------------------------------------------------


def aucs(store: Path) -> dict[str, float]:
    table = results.tidy(store, "sizes")
    return dict(zip(table["run"].to_pylist()[::3], table["auc"].to_pylist()[::3], strict=True))


def test_a_table_reads_the_small_files_alone(store: Path):
    expected = results.tidy(store)
    for run in (store / "runs").iterdir():
        for name in ("results.json", "config.json", "scores.npz"):
            (run / name).unlink()
    assert results.tidy(store).equals(expected)


def test_a_change_in_place_with_the_old_times_and_size_is_noticed(store: Path):
    run = a_run(store)
    path = run / "summary.json"
    stat, content = path.stat(), path.read_bytes()
    with path.open("r+b") as opened:
        opened.write(content.replace(b'"negative loss"', b'"negative lass"'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    with pytest.warns(StoreWarning, match=f"{run.name}: summary.json was changed"):
        assert len(aucs(store)) == 17


def test_swapped_folders_are_noticed(store: Path):
    one, other = sorted((store / "runs").iterdir())[:2]
    one.rename(store / "aside")
    other.rename(one)
    (store / "aside").rename(other)
    with pytest.warns(StoreWarning, match="2 damaged.*was renamed"):
        assert len(aucs(store)) == 16


def test_removed_and_new_runs_are_seen(store: Path):
    before = aucs(store)
    run = a_run(store)
    shutil.rmtree(run)
    finished_run(store, "sizes", {"seed": 77}, rows(ATTACKS))
    after = aucs(store)
    assert set(before) - set(after) == {run.name}
    assert set(after) - set(before) == {run_name("sizes", {"seed": 77})}


def test_a_run_that_is_written_meanwhile_is_read_again(store: Path, monkeypatch):
    """Its status was read before, its summary after."""
    run, genuine = a_run(store), finished._content

    def content(folder: Path, name: str) -> bytes:
        found = genuine(folder, name)
        if folder.name == run.name and name == "status.json":
            monkeypatch.undo()
            changed(run, "summary.json", device="another")
        return found

    monkeypatch.setattr(finished, "_content", content)
    assert "another" in results.tidy(store)["device"].to_pylist()


def test_a_store_that_cannot_be_written_is_read(store: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(finished, "replace", refuse)
    assert len(results.tidy(store)) == 54


# --- Damage, and what is missing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("summary.json", None, "summary.json cannot be read"),
        ("summary.json", b"{}", "summary.json was changed since it was written"),
        ("status.json", b"{", "status.json is no JSON"),
        ("cost.json", b"[]", "cost.json holds no JSON object"),
        ("cost.json", b"{}", "an entry is missing"),
    ],
)
def test_a_damaged_run_is_named_and_the_others_go_on(store: Path, file: str, content, said: str):
    run = a_run(store)
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content)
    with pytest.warns(StoreWarning, match=f"1 damaged.*{run.name}: .*{said}"):
        table = results.tidy(store)
    assert len(table) == 17 * 3 and run.name not in table["run"].to_pylist()


def test_results_that_were_changed_make_no_report_and_no_events(store: Path, tmp_path: Path):
    run = a_run(store)
    (run / "results.json").write_bytes(b"{}")
    assert len(results.tidy(store)) == 54, "the table has its own file"
    (damaged,) = [r for r in finished.runs(store).finished if r.name == run.name]
    with pytest.raises(finished.DamagedRun, match="results.json was changed"):
        run_reports.report(damaged)
    with pytest.warns(StoreWarning, match=f"{run.name} has no event files: results.json"):
        assert len(results.write_events(store, "sizes", tmp_path)) == 17


def test_a_newer_format_says_so(store: Path):
    run = a_run(store)
    changed(run, "summary.json", format=FORMAT + 1)
    said = f"format {FORMAT + 1}, and this jaxmeter reads {FORMAT}"
    with pytest.warns(StoreWarning, match=said):
        results.tidy(store)


def changed(run: Path, name: str, **values) -> None:
    """Changes a file as if the run had written it so."""
    content = json.dumps({**json.loads((run / name).read_bytes()), **values}).encode()
    (run / name).write_bytes(content)
    status = json.loads((run / "status.json").read_bytes())
    status["files"][name] = hashlib.sha256(content).hexdigest()
    (run / "status.json").write_text(json.dumps(status))


def test_no_store_no_runs_no_study_nothing_finished(store: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no runs.*sweep one first"):
        results.tidy(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no study 'size'; it has 'sizes'"):
        results.tidy(store, "size")
    finished_run(tmp_path, "bad", {"seed": 1}, rows({"loss": 1.0}), state="failed")
    with pytest.raises(ValueError, match="no run of bad .* has finished: bad-.*failed"):
        results.tidy(tmp_path, "bad")


def test_unknown_columns_name_the_nearest(study: Path):
    with pytest.raises(ValueError, match=r"no column 'known'. Nearest: data.known"):
        results.table(study, by=["known"])
    with pytest.raises(ValueError, match=r"no column 'tpr_at_0.1'. Nearest: tpr_at_0.01"):
        results.table(study, metrics=["tpr_at_0.1"])
    with pytest.raises(ValueError, match="column 'device' holds string, of which there is no mean"):
        results.table(study, metrics=["device"])
    with pytest.raises(ValueError, match="no run has an attack 'lerned'. Nearest: learned"):
        results.plot(study, "sizes", attacks=["lerned"], out=study / "unused")


# --- Configurations side by side -----------------------------------------------------------------


def test_mean_and_spread_over_seeds(study: Path):
    table = results.tidy(study).to_pylist()
    comparison = results.table(study)
    assert comparison.by == ("data.known", "target.layer", "attack")
    assert comparison.metrics == ("auc", "tpr_at_0.01", "accuracy"), "nothing at 0.1% to show"
    assert len(comparison.lines) == 18
    line = comparison.lines[4]
    aucs = [r["auc"] for r in table if tuple(r[name] for name in comparison.by) == line.values]
    assert len(aucs) == line.runs == 3
    assert line.cells[0].mean == pytest.approx(np.mean(aucs))
    assert line.cells[0].std == pytest.approx(np.std(aucs, ddof=1))
    read = list(csv.DictReader(io.StringIO(comparison.csv())))
    assert float(read[4]["auc_mean"]) == line.cells[0].mean and read[4]["runs"] == "3"
    shown = f"{statistics.fmean(aucs):.3f} ± {statistics.stdev(aucs):.3f}"
    assert shown in comparison.markdown()
    assert f"${shown.replace('±', chr(92) + 'pm')}$" in comparison.latex()


def test_one_seed_has_its_interval(study: Path):
    table = results.tidy(study)
    comparison = compared(table, by=("data.known", "target.layer", "seed", "attack"))
    (cell, *_), row = comparison.lines[0].cells, table.to_pylist()[0]
    assert (cell.n, cell.std) == (1, None)
    assert (cell.low, cell.high) == (row["auc_low"], row["auc_high"])
    text = f"{row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}]"
    assert text in comparison.markdown()


def test_all_metrics_and_everything_in_one_group(study: Path):
    comparison = results.table(study, by=[], metrics=["tpr_at_0.001", "seconds", "known_members"])
    (line,) = comparison.lines
    assert line.runs == 54 and line.cells[0].mean is None and line.cells[1].mean == 3.5
    assert line.cells[2].mean == pytest.approx((10 + 40 + 10) / 3)
    assert "–" in comparison.markdown() and "cannot be resolved" in comparison.caption


def test_names_from_outside_are_escaped(tmp_path: Path):
    nasty = r"50%_of $x$ & {b} #1 ~^\ |<i>*`"
    for seed in (0, 1):
        finished_run(tmp_path, "s", {"seed": seed, "field": seed}, rows({nasty: 1.0}))
    comparison = results.table(tmp_path, by=["attack"])
    tex = comparison.latex()
    assert (
        r"50\%\_of \$x\$ \& \{b\} \#1 \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textbar{}\textless{}i\textgreater{}{*}`" in tex
    )
    (row,) = [line for line in comparison.markdown().splitlines() if "50%" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6 and r"\|\<i\>\*\`" in row
    assert next(csv.DictReader(io.StringIO(comparison.csv())))["attack"] == nasty
    html = results.index(tmp_path, "s", reports=False).read_text()
    assert "<i>*" not in html and "&lt;i&gt;*" in html


FORMULAS = (
    "=1+2",
    "=cmd|' /C calc'!A0",
    "@SUM(A1)",
    "+x",
    "-x",
    "-2+3",
    "\t=1",
    "\n=1",
    " =1",
    "＝1",
)
NUMBERS = ("-0.5", "+1e-3", "-inf", "1", "x-1", "1=2")


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers(tmp_path: Path):
    for seed, text in enumerate((*FORMULAS, *NUMBERS)):
        values = {"seed": 0, "field": text, "=named": seed, "shift": -seed - 0.5}
        finished_run(tmp_path, "s", values, rows({"=attack": 1.0}))
    comparison = results.table(tmp_path, by=["attack", "field", "=named", "shift"])
    found = list(csv.DictReader(io.StringIO(comparison.csv())))
    assert all(row["attack"] == "'=attack" and float(row["shift"]) < 0 for row in found)
    assert "'=named" in found[0] and "=named" not in found[0]
    cells = {row["field"] for row in found}
    assert cells >= set(NUMBERS)
    assert all(cell.startswith("'") for cell in cells - set(NUMBERS))
    assert {cell.removeprefix("'") for cell in cells} == {
        *(text.strip() for text in FORMULAS),
        *NUMBERS,
    }


LINKS = (
    "[x](http://evil.example)",
    "![x](http://evil.example/a.png)",
    "http://evil.example",
    "www.evil.example",
    "<https://evil.example>",
    "[x]: http://evil.example",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &#124;",
    "a|b `c` *d* _e_ ~~f~~ $g$ :bomb: \\|",
    "mailto:a@evil.example",
)


@pytest.mark.parametrize("name", LINKS)
def test_names_are_text_in_markdown(name: str, tmp_path: Path):
    finished_run(tmp_path, "s", {"seed": 0, name: name}, rows({name: 1.0}))
    markdown = results.table(tmp_path, by=["attack", name]).markdown()
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    inline = [token for token in tokens if token.type == "inline"]
    assert {child.type for token in inline for child in token.children} <= {"text", "text_special"}
    texts = ["".join(child.content for child in token.children) for token in inline]
    assert texts.count(name) == 3, "as the heading, as the attack and as the value"
    assert not re.search(r"[^\\]://|www\.e|mailto:|[^\\]:bomb:|[^\\][$~]", markdown), "GitHub's own"


@pytest.mark.parametrize("name", ["[2cm]x", "*", "a]b", "\x1b[2J\u202e", "x \\\\ y"])
def test_names_are_no_arguments_in_latex(name: str, tmp_path: Path):
    finished_run(tmp_path, "s", {"seed": 0}, rows({name: 1.0}))
    comparison = results.table(tmp_path, by=["attack"], metrics=[])
    tex = comparison.latex()
    (row,) = [line for line in tex.splitlines() if re.search(r"& +1 \\\\$", line)]
    assert not row.startswith(("[", "*")) and row.count(r"\\") == 1
    assert all(line.isprintable() for line in tex.splitlines())
    assert all(line.isprintable() for line in comparison.csv().splitlines())


def test_comparisons_are_written_as_markdown_csv_and_latex(study: Path, tmp_path: Path):
    comparison = results.table(study)
    paths = results.write_table(comparison, tmp_path / "new")
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex"]
    assert paths[1].read_text() == comparison.csv()
    assert paths[2].read_text().count(r"\\") == 19


# --- Figures -------------------------------------------------------------------------------------


def test_figures_are_the_same_bytes_every_time(study: Path, tmp_path: Path):
    first, second = (
        results.plot(study, "sizes", out=tmp_path / name, metrics=["auc"]) for name in "ab"
    )
    assert {path.name for path in first} == {
        f"{name}.{suffix}"
        for name in ("roc", "auc-by-data-known", "auc-by-target-layer")
        for suffix in ("png", "svg")
    }
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 5000


def test_roc_curves_are_means_and_bands_of_the_seeds(study: Path):
    from jaxmeter.experiment.results.figures import Family, roc_figure

    runs = [run for run in finished.runs(study).finished if run.fields["data.known"] == 1000]
    runs = [run for run in runs if run.fields["target.layer"] == "b"]
    found = [run_reports.attack_result(run, "learned") for run in runs]
    figure = roc_figure({"learned": [Family("one", found)]})
    (ax,) = figure.axes
    fpr, tpr = ax.lines[0].get_data()
    for i in (0, 5, 40):
        each = [
            (r.scores[r.is_member] > np.sort(r.scores[~r.is_member])[::-1][i + 1]).mean()
            for r in found
        ]
        assert fpr[i] == pytest.approx((i + 1) / 120)
        assert tpr[i] == pytest.approx(np.mean(each))
    band = ax.collections[0].get_datalim(ax.transData)
    assert band.y1 == 1.0


def test_a_metric_stands_over_the_values_that_were_swept(study: Path):
    from jaxmeter.experiment.results.figures import metric_figure

    table = results.tidy(study)
    by = ("data.known", "target.layer", "attack")
    figure = metric_figure(table, "data.known", "auc", by)
    left, right = figure.axes
    assert left.get_xscale() == "log" and left.get_title(loc="left") == "target.layer a"
    assert left.get_ylim() == right.get_ylim()
    comparison = compared(table, by=by, metrics=("auc",))
    wanted = [
        line.cells[0].mean for line in comparison.lines if line.values[1:] == ("b", "learned")
    ]
    drawn = [list(line.get_ydata()) for line in right.lines]
    assert wanted in drawn
    names = metric_figure(table, "target.layer", "auc", by).axes[0].get_xticklabels()
    assert [text.get_text() for text in names] == ["a", "b"]


def test_a_run_without_its_scores_is_left_out_of_figures(store: Path, tmp_path: Path):
    (a_run(store) / "scores.npz").write_bytes(b"")
    with pytest.warns(StoreWarning, match="1 damaged.*scores.npz was changed"):
        assert results.plot(store, "sizes", out=tmp_path, metrics=["auc"], attacks=["learned"])


# --- Reports and pages ---------------------------------------------------------------------------


def test_a_run_reopened_is_the_report_it_was(study: Path):
    run = finished.runs(study).finished[0]
    report = run_reports.report(run)
    stored = json.loads((run.folder / "results.json").read_text())
    facts = report.facts()
    for name in ("parts", "notes"):
        assert facts[name] == stored[name]
    assert facts["target"].pop("accuracy") == {"members": 1.0, "nonmembers": 0.9}
    assert facts["target"] == stored["target"]
    for row in facts["attacks"]:
        assert row.pop("seconds") == 0.25
    assert facts["attacks"] == stored["attacks"], "every figure, from the scores alone"
    with np.load(run.folder / "scores.npz") as file:
        assert (report.held_index == file["held_index"]).all() and len(report.held.y) == 240


class Page(HTMLParser):
    """Tags, links and whatever a page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "a":
            self.links.append(given["href"])
        elif tag in ("img", "script", "link", "iframe", "object", "image"):
            self.fetched += [given[k] for k in ("src", "href", "data", "xlink:href") if k in given]


def test_the_index_links_every_report_and_needs_nothing_else(tmp_path: Path):
    for seed in (0, 1):
        fields = {"seed": seed, "data.known": 10 * (1 + seed)}
        finished_run(tmp_path, "s", fields, rows({"loss": 1.0, "learned": 1.5}, seed))
    finished_run(tmp_path, "s", {"seed": 5}, rows({"loss": 1.0}), state="failed")
    broken = finished_run(tmp_path, "s", {"seed": 6}, rows({"loss": 1.0}))
    (broken / "scores.npz").unlink()
    path = results.index(tmp_path, "s")
    text = path.read_text()
    page = Page(text)
    assert len(page.links) == 2 and page.fetched == [] and page.tags.count("svg") >= 3
    for link in page.links:
        report = Page((path.parent / link).read_text())
        assert "svg" in report.tags and "script" not in report.tags
    assert "2 finished runs, 2 attacks, 1 failed, 1 damaged" in text
    assert "ValueError: NaN" in text and broken.name in text
    allowed = re.search(r"script-src '(sha256-[^']+)'", text)
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    import base64

    digest = hashlib.sha256(script[1].encode()).digest()
    assert allowed[1] == f"sha256-{base64.b64encode(digest).decode()}"


def test_reports_are_written_again_only_if_their_run_changed(tmp_path: Path):
    folder = finished_run(tmp_path, "s", {"seed": 0}, rows({"loss": 1.0}))
    index = results.index(tmp_path, "s")
    page = index.parent / "reports" / f"{folder.name}.html"
    first = page.stat().st_ino
    results.index(tmp_path, "s")
    assert page.stat().st_ino == first
    changed(folder, "results.json", notes=["another note"])
    assert "another note" in page.read_text() if results.index(tmp_path, "s") else False
    assert page.stat().st_ino != first


def test_a_report_follows_from_its_code_and_its_templates(tmp_path: Path, monkeypatch):
    behind, _ = fingerprint._modules_behind(pages._DRAWN_BY)
    files = {Path(path).relative_to(REPOSITORY / "jaxmeter").as_posix() for path in behind}
    assert {"report/columns.py", "report/markup.py", "metrics.py", "auditing/assembly.py"} <= files
    today = pages._package()
    for name in ("base.html", "report.html", "page.css"):
        changed_templates = shutil.copytree(pages.TEMPLATES, tmp_path / name)
        with (changed_templates / name).open("a") as file:
            file.write(" ")
        monkeypatch.setattr(pages, "TEMPLATES", changed_templates)
        assert pages._package() != today


# --- Event files ---------------------------------------------------------------------------------


def test_event_files_hold_every_epoch_once(store: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second time replaces them
        folders = results.write_events(store, "sizes")
    assert len(folders) == 18 and not list(store.rglob(".*.tmp"))
    read = EventAccumulator(str(folders[0])).Reload()
    assert set(read.Tags()["scalars"]) == set(TAGS.values())
    run = store / "runs" / folders[0].parent.name
    (row,) = [r for r in json.loads((run / "results.json").read_text())["attacks"] if r["history"]]
    for name, tag in TAGS.items():
        scalars = read.Scalars(tag)
        assert [s.step for s in scalars] == [epoch["epoch"] for epoch in row["history"]]
        wanted = [epoch[name] for epoch in row["history"]]
        np.testing.assert_allclose([s.value for s in scalars], wanted, rtol=1e-6)
    assert {p.name for p in (store / "studies" / "sizes" / "events").iterdir()} == {
        path.parent.name for path in folders
    }


# --- Commands ------------------------------------------------------------------------------------


def test_commands_show_what_is_there_and_say_what_is_damaged(store: Path, capsys, monkeypatch):
    commands = showing.commands("sizes", store)
    assert commands["table"]() == 0
    out = capsys.readouterr().out
    assert "data.known" in out and out.count("±") == 3 * 18 + 1
    monkeypatch.setattr(showing, "_MOST_LINES", 5)
    assert commands["table"]() == 0
    out, err = capsys.readouterr()
    assert out.count("±") == 3 * 5 + 1 and "13 more configurations are in table.*" in err
    assert (store / "studies" / "sizes" / "table.md").read_text().count("±") == 3 * 18 + 1
    assert (store / "studies" / "sizes" / "table.tex").exists()
    (a_run(store) / "cost.json").unlink()
    assert commands["table"](metrics=("auc",)) == 1
    assert "1 damaged run(s)" in capsys.readouterr().err
    assert commands["events"]() == 1


# --- A store at a URL ----------------------------------------------------------------------------


def test_a_store_at_a_url_is_shown_as_it_is_there(study: Path, tmp_path: Path, monkeypatch, capsys):
    mirror = Mirror(f"memory://{tmp_path.name}/a store")
    for run in list((study / "runs").iterdir())[:6]:
        mirror.replace(run, f"runs/{run.name}", "status.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    table = results.tidy(mirror.url)
    assert len(table) == 18 and experiment.opened(mirror.url).path.is_relative_to(tmp_path)
    commands = showing.commands("sizes", Path(mirror.url))  # as the command line hands it over
    assert commands["table"]() == 0 and commands["events"]() == 0
    assert commands["plot"](metrics=("auc",), attacks=("learned",)) == 0
    assert commands["index"](reports=False) == 0
    place = Path("jaxmeter-studies", "sizes")
    assert str(place / "index.html") in capsys.readouterr().out
    assert {path.name for path in place.iterdir()} == {
        *("results.parquet", "table.md", "table.csv", "table.tex"),
        *("figures", "events", "index.html"),
    }
    there = fsspec.filesystem("memory")
    assert not any("studies" in path for path in there.find(f"/{tmp_path.name}"))

    # Another machine writes a run again: what is here is not older than what is there.
    again = Path(shutil.copytree(a_run(study), tmp_path / a_run(study).name))
    changed(again, "summary.json", device="another")
    mirror.replace(again, f"runs/{again.name}", "status.json")
    assert "another" in results.tidy(mirror.url)["device"].to_pylist()
    with locked(experiment.opened(mirror.url).lock("runs", again.name)):  # a run at work
        assert len(results.tidy(mirror.url)) >= 18


# --- A real sweep --------------------------------------------------------------------------------


def test_a_sweep_is_shown_by_its_study_s_commands(tmp_path: Path, capsys):
    """Two runs on digits, from the command line to the page."""
    import jaxmeter as jm

    base = experiment.Config(
        study="tiny",
        seed=0,
        data=experiment.Digits(members=120, nonmembers=120),
        target=experiment.Mlp(widths=(8,), training=experiment.Training(epochs=1)),
        attacks=(
            jm.NegativeLoss(),
            jm.Learned(spec=jm.SignalSpec(), config=jm.FitConfig(epochs=2, members=2, folds=2)),
        ),
    )
    axes = {"known": (20, 40)}

    def command(*arguments: str) -> str:
        experiment.main(base, axes, [*arguments, "--store", str(tmp_path)])
        return capsys.readouterr().out

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # chance is sometimes below chance
        command("sweep")
    out = command("table", "--metrics", "auc", "test_accuracy")
    assert re.search(r"known +attack +runs +AUC", out) and len(re.findall(r"\[0\.\d", out)) == 4
    table = results.tidy(tmp_path, "tiny")
    assert table["known"].to_pylist() == [20, 20, 40, 40]
    assert table["known_members"].to_pylist() == [4, 20, 8, 40]
    for run in finished.runs(tmp_path, "tiny").finished:
        report = run_reports.report(run)
        stored = json.loads((run.folder / "results.json").read_text())
        facts = report.facts()
        for row in facts["attacks"]:
            del row["seconds"]
        assert facts["attacks"] == stored["attacks"] and report.rows[1].history
    drawn = command("plot", "--metrics", "auc").split()
    assert len(drawn) == 4 and all(Path(line).stat().st_size for line in drawn)
    index = Path(command("index").strip())
    assert len(Page(index.read_text()).links) == 2
    assert any(Path(command("events").strip()).rglob("*tfevents*"))
    assert experiment.verify(tmp_path) == (), "what was written is no damage to the store"
    assert experiment.gc(tmp_path) == (), "nor useless"
    with pytest.raises(SystemExit) as stopped:
        command("table", "--by", "seeds")
    assert stopped.value.code == 2 and "Nearest: seed" in capsys.readouterr().err
