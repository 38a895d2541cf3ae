"""The table of columns: every place that shows attacks reads it, and a row more is in all."""

import io
import json
from pathlib import Path

import columns_page
import numpy as np
import pyarrow as pa
import pytest
from conftest import REPOSITORY
from rich.console import Console
from stores import finished_run, rows
from test_documentation import blocks
from test_report import make_report

from jaxmeter.experiment import results
from jaxmeter.experiment.results.tables import heading
from jaxmeter.report import columns, folder
from jaxmeter.report.columns import COLUMNS, INTERVAL, Column


def test_the_list_in_the_docs_is_today_s():
    text = columns_page.PAGE.read_text()
    assert text == columns_page.updated(text), "write it anew: python tests/columns_page.py"
    assert all(f"`{column.name}`" in text for column in COLUMNS if column.tidy)


def test_names_are_unique_in_each_place():
    for names in (
        [column.key for column in COLUMNS if column.value],
        [name for column in COLUMNS if column.tidy for name in column.names],
    ):
        assert len(names) == len(set(names))


@pytest.fixture
def column(monkeypatch: pytest.MonkeyPatch) -> Column:
    """The how-to's column, as a row more."""
    how_to = (REPOSITORY / "docs" / "contributing.md").read_text().partition("## Add a column\n")[2]
    globs: dict = {}
    exec(next(blocks(how_to))[1], globs)
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, globs["advantage"]))
    return globs["advantage"]


def test_a_row_more_is_in_every_place(column: Column, tmp_path: Path):
    report = make_report(n=40)
    expected = [
        max(0.0, *(np.mean(r.result.scores[m] >= t) - np.mean(r.result.scores[~m] >= t)
                   for t in r.result.scores))
        for r in report.rows for m in [r.result.is_member]
    ]  # fmt: skip
    facts = report.facts()
    assert [attack["advantage"] for attack in facts["attacks"]] == pytest.approx(expected)
    shown = [f"{100 * value:.1f}%" for value in expected]
    out = io.StringIO()
    Console(file=out, width=120).print(report.table())
    html = folder.html(report, facts).decode()
    for text in ("Advantage", *shown):
        assert text in out.getvalue() and text in html

    for seed in (0, 1):
        finished_run(tmp_path, "s", {"seed": seed}, rows({"loss": 1.0, "learned": 1.5}, seed))
    table = results.tidy(tmp_path, "s")
    assert table["advantage"].type == pa.float64() and table["advantage"].null_count == 0
    comparison = results.table(tmp_path, "s")
    assert comparison.metrics == ("auc", "tpr_at_0.01", "accuracy", "advantage")
    mean = f"{100 * np.mean(table['advantage'].to_pylist()[::2]):.1f}"
    markdown, latex = (" ".join(f().split()) for f in (comparison.markdown, comparison.latex))
    assert r"advantage (%) |" in markdown and f"| {mean} ±" in markdown
    assert r"advantage (\%)" in latex and rf"${mean} \pm" in latex


def test_runs_from_before_a_column_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    finished_run(tmp_path, "s", {"seed": 0, "later": 3, "history": 4}, rows({"loss": 1.0}))
    more = Column("later", "later", "a figure", lambda row, first: 0.0, interval=True)
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, more))
    table = results.tidy(tmp_path, "s")
    assert [table[f"later{end}"].to_pylist() for end, _ in INTERVAL] == [[None]] * 3
    assert table["config.later"].to_pylist() == [3], "a field of that name keeps its place"
    assert table["history"].to_pylist() == [4], "results.json has one, the table none"
    assert "later" not in results.table(tmp_path, "s").metrics


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", "balanced accuracy (%)"),
        ("tpr_at_0.001", "TPR at 0.1% FPR (%)"),
        ("tpr_at_0.01_over_targets_mean", "TPR at 1% FPR (%), mean over reference models"),
        ("auc_low", "auc_low"),
        ("tpr_at_0.01_high", "tpr_at_0.01_high (%)"),
        ("data.accuracy", "data.accuracy"),
        ("seconds.target", "seconds.target"),
    ],
)
def test_a_metric_s_heading_has_its_unit(name: str, expected: str):
    assert heading(name) == expected


def test_an_entry_has_every_key_once_and_is_json(tmp_path: Path):
    (attack, *_) = make_report("tabular", n=30, strengths={"negative loss": 0.5}).facts()["attacks"]
    assert list(attack) == ["key", *(column.key for column in COLUMNS if column.value)]
    assert json.loads(json.dumps(attack, allow_nan=False)) == attack
