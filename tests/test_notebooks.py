"""The notebooks run from top to bottom with small settings, and are kept without outputs."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from stores import small_study

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SMOKE = {"EPOCHS": "20", "ATTACK_EPOCHS": "2", "ENSEMBLE": "5", "SEED": "0"}
KERNEL = "jaxmeter-tests"

# What the test wants to know of the notebook's variables, run as its last cell.
PROBE = """
import json
print(json.dumps({
    "attacks": report.facts()["attacks"],
    "difference": results["gradient norm"].auc_difference(results["negative loss"]),
    "held": report.held.is_member.size,
    "mine": mine.auc,
    "learned": learned.auc_interval(),
    "norms": {name: norm.shape for name, norm in norms.items()},
    "target": target.spec.source.difference,
}))
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel on this very interpreter and this package, whatever the machine has."""
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS[0].parents[1]))
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": KERNEL, "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return KERNEL


def test_quickstart_runs_and_its_results_are_sane(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)  # the notebook sets it
    for name, value in SMOKE.items():
        monkeypatch.setenv(f"JAXMETER_{name}", value)
    monkeypatch.setenv("JAXMETER_OUT", str(tmp_path / "report"))
    notebook, found = executed("quickstart", kernel, tmp_path, PROBE)

    aucs = {attack["name"]: attack["auc"] for attack in found["attacks"]}
    assert list(aucs) == [
        *("negative loss", "confidence", "modified entropy", "gradient norm"),
        *("black box", "white box", "blind baseline"),
    ]
    for name, auc in aucs.items():
        assert 0 <= auc["low"] <= auc["value"] <= auc["high"] <= 1, name
    assert aucs["gradient norm"]["value"] > 0.5 > aucs["blind baseline"]["low"]
    value, low, high, _ = found["difference"]
    assert value == pytest.approx(aucs["gradient norm"]["value"] - aucs["negative loss"]["value"])
    assert low <= value <= high
    assert found["held"] == pytest.approx(1797 / 2, abs=1)
    assert found["target"] < 1e-5
    assert 0 < found["mine"] < 1
    assert all(math.isfinite(bound) for bound in found["learned"])
    assert set(found["norms"]) == {
        *(f"{layer}/{kind}" for layer in ("conv", "hidden", "out") for kind in ("kernel", "bias"))
    }

    kinds = kinds_in(notebook)
    assert kinds.count("image/png") == 2
    assert "stderr" not in kinds, "a cell warned"
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


# Of notebooks/sweep.ipynb: rows a run and attack, and how often something was drawn or computed.
PROBE_OF_SWEEP = """
import json
print(json.dumps({
    "rows": tidy.select([*comparison.by, "seed", "auc_low", "auc", "auc_high"]).to_pylist(),
    "lines": [[*line.values, line.runs] for line in comparison.lines],
    "drawn": sorted(path.name for path in drawn),
    "damaged": len(experiment.verify(STORE)),
    "computed": None if "summary" not in globals() else summary.computed,
}))
"""


@pytest.mark.study
def test_sweep_makes_a_store_and_compares_its_runs(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    for name, value in {"SEEDS": "2", "EPOCHS": "2", "ATTACK_EPOCHS": "1"}.items():
        monkeypatch.setenv(f"JAXMETER_{name}", value)
    monkeypatch.setenv("JAXMETER_STORE", "")
    notebook, found = executed("sweep", kernel, tmp_path, PROBE_OF_SWEEP)

    attacks = ("negative loss", "gradient norm", "white box", "blind baseline")
    assert found["lines"] == [[epochs, attack, 2] for epochs in (1, 2) for attack in attacks]
    assert len(found["rows"]) == 16 and found["damaged"] == 0
    for row in found["rows"]:
        assert 0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1, row
    # Of 4 runs; those of one seed have the same records and the same blind baseline.
    assert found["computed"] == 4 * (len(attacks) + 5) - 2 * 2
    drawn = ("auc-by-target-training-epochs", "roc", "tpr-at-0-01-by-target-training-epochs")
    assert found["drawn"] == sorted(f"{name}.{kind}" for name in drawn for kind in ("png", "svg"))
    kinds = kinds_in(notebook)
    assert kinds.count("image/png") == 3
    assert "stderr" not in kinds, "a cell warned"
    assert (tmp_path / "sweep-figures" / "index.html").stat().st_size > 10_000


def test_sweep_reads_the_store_that_it_is_given(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small_study(tmp_path / "mine", seeds=2)
    monkeypatch.setenv("JAXMETER_STORE", "mine")
    notebook, found = executed("sweep", kernel, tmp_path, PROBE_OF_SWEEP)
    assert found["computed"] is None and not (tmp_path / "sweep-store").exists()
    assert len(found["lines"]) == 3 * 2 * 3 and {line[-1] for line in found["lines"]} == {2}
    aucs = {(row["data.known"], row["attack"]): row["auc"] for row in found["rows"]}
    assert aucs[1000, "learned"] > aucs[10, "blind baseline"]
    assert "roc.png" in found["drawn"]
    assert "stderr" not in kinds_in(notebook)


PROBE_OF_ALEXNET = """
import json
print(json.dumps({
    "white": report.rows[0].result.auc,
    "held": [report.rows[0].result.n_members, report.rows[0].result.n_nonmembers],
    "layers": len(model.layers),
    "audit": [row.name for row in audit.rows],
    "figures": sorted(path.name for path in plots.iterdir() if "label" not in path.name),
}))
"""


@pytest.mark.study
def test_alexnet_runs_the_tutorial(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (400, 32, 32, 3), np.uint8), random.integers(0, 5, (400, 1))
    np.savez(tmp_path / "c.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    small = {"MEMBERS": "200", "OTHERS": "200", "EPOCHS": "12", "WIDTH": "0.1", "KNOWN": "40"}
    for name, value in {**small, "ATTACK_EPOCHS": "2", "CIFAR": "c.npz"}.items():
        monkeypatch.setenv(f"JAXMETER_{name}", value)
    notebook, found = executed("alexnet_cifar100", kernel, tmp_path, PROBE_OF_ALEXNET)
    assert found["layers"] == 11 and found["held"] == [120, 120]
    assert 0 < found["white"] <= 1
    assert found["audit"][-3:] == ["black box", "white box", "blind baseline"]
    assert found["figures"] == ["gradient_norm.png", "privacy_risk.png", "roc.png"]
    kinds = kinds_in(notebook)
    assert kinds.count("image/png") == 4
    assert "stderr" not in kinds, "a cell warned"
    assert (tmp_path / "logs" / "results" / "whitebox" / "report" / "report.html").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_clean(path: Path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell.get("id") for cell in notebook.cells]
    assert all(ids), "cells without an id"
    assert len(set(ids)) == len(ids), "ids that occur twice"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], f"cell {cell.id} has outputs; clear them"
            assert cell.execution_count is None, f"cell {cell.id} was run; clear its outputs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_backend_is_set_before_keras_is_imported(path: Path):
    sources = [cell.source for cell in read(path.stem).cells if cell.cell_type == "code"]
    assert 'os.environ["KERAS_BACKEND"] = "jax"' in sources[0]
    assert not any(
        line.startswith(("import keras", "import jax")) for line in sources[0].split("\n")
    )


def read(name: str) -> nbformat.NotebookNode:
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    return nbformat.read(path, as_version=4)


def executed(
    name: str, kernel: str, folder: Path, probe: str
) -> tuple[nbformat.NotebookNode, dict[str, Any]]:
    """A notebook, run in a folder, and what the probe printed after it."""
    notebook = read(name)
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name=kernel, timeout=300, resources=resources).execute()
    return notebook, json.loads(notebook.cells[-1].outputs[0].text)


def kinds_in(notebook: nbformat.NotebookNode) -> list[str]:
    """What all outputs hold, see `kinds_of`."""
    outputs = (out for cell in notebook.cells for out in cell.get("outputs", []))
    return [kind for out in outputs for kind in kinds_of(out)]


def kinds_of(output: nbformat.NotebookNode) -> list[str]:
    """What an output holds: MIME types, or the name of a stream."""
    return [output.name] if output.output_type == "stream" else list(output.get("data", {}))
