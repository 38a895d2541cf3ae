"""The notebooks run from top to bottom with small settings, and are kept without outputs."""

import json
import math
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

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
    """A kernel on this very interpreter, whatever kernels the machine has."""
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
    notebook = read("quickstart")
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    client = NotebookClient(
        notebook, kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()

    found = json.loads(notebook.cells[-1].outputs[0].text)
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

    kinds = [
        kind for cell in notebook.cells for out in cell.get("outputs", []) for kind in kinds_of(out)
    ]
    assert kinds.count("image/png") == 2
    assert "stderr" not in kinds, "a cell warned"
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


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


def test_backend_is_set_before_keras_is_imported():
    sources = [cell.source for cell in read("quickstart").cells if cell.cell_type == "code"]
    assert 'os.environ["KERAS_BACKEND"] = "jax"' in sources[0]
    assert not any(
        line.startswith(("import keras", "import jax")) for line in sources[0].split("\n")
    )


def read(name: str) -> nbformat.NotebookNode:
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    return nbformat.read(path, as_version=4)


def kinds_of(output: nbformat.NotebookNode) -> list[str]:
    """What an output holds: MIME types, or the name of a stream."""
    return [output.name] if output.output_type == "stream" else list(output.get("data", {}))
