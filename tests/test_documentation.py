"""The documentation's code runs, its names exist, and the modules import as it says they do."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from conftest import REPOSITORY

import jaxmeter as jm
from jaxmeter import cli

PAGES = ("README.md", "docs/sharp_edges.md")
DOCUMENTS = (
    *PAGES,
    "docs/design.md",
    "docs/stores.md",
    "docs/launchers.md",
    "docs/studies.md",
    "docs/reference_attacks.md",
    "docs/migrating.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
DOCTESTS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

OPERATORS = "intake.onnx_ops"

# Module -> what it may import of ours. Every arrow points to a module further up in this list, so
# nothing is imported upward or in a circle.
ARROWS = {
    "terminal": set(),
    "npz": {"terminal"},
    "target": {"terminal"},
    "data": {"npz", "terminal"},
    "text_lines": {"npz"},
    "disk": set(),
    "privacy_meter_text": {"data", "disk", "terminal", "text_lines"},
    "metrics": set(),
    "jaxpr": set(),
    "jaxpr.equations": set(),
    "convolutions": {"jaxpr.equations"},
    "lowering": {"convolutions", "jaxpr.equations"},
    "memory": {"jaxpr.equations"},
    "chunks": {"jaxpr.equations", "memory"},
    "factors": set(),
    "uses": {"convolutions", "factors", "jaxpr.equations"},
    "taps": {"jaxpr.equations", "lowering", "target", "uses"},
    "gradients": {"chunks", "factors", "taps", "target", "uses"},
    "directions": {"chunks", "factors", "gradients", "lowering", "target", "terminal"},
    "signals.scalars": {"directions", "factors", "gradients", "lowering", "memory", "target"},
    "shapes": set(),
    "inspection": {"shapes", "target"},
    "inspection_tables": {"inspection", "target", "terminal"},
    "intake.heads": {"shapes"},
    "intake.safety": set(),
    "intake.safety.budget": {"memory", "shapes"},
    "intake.safety.work": {"jaxpr.equations"},
    "intake.safety.programs": {
        "intake.safety.budget",
        "intake.safety.work",
        "jaxpr.equations",
        "memory",
    },
    "intake.safety.building": {"intake.safety.budget", "intake.safety.programs", "shapes"},
    "intake.safety.external": {"intake.safety.budget"},
    "intake.reading": {
        "intake.heads",
        "intake.safety.budget",
        "intake.safety.programs",
        "lowering",
        "shapes",
        "target",
    },
    "intake.naming": set(),
    "intake.surroundings": set(),
    "intake.safety.operations": set(),
    "intake.safety.served": set(),
    "intake.safety.allowlist": set(),
    "intake.configs": {"intake.safety.allowlist"},
    "intake.files": {"intake.configs", "intake.heads", "intake.safety.operations"},
    "intake.keras_pass": {"intake.heads"},
    "intake.keras_model": {"intake.keras_pass", "intake.naming"},
    "intake.tf_graph": set(),
    "intake.saved_model": {"intake.files"},
    "intake.keras_jax": {
        "intake.heads",
        "intake.keras_model",
        "intake.keras_pass",
        "intake.reading",
        "intake.safety.programs",
        "target",
    },
    "intake.keras_training": {
        "intake.heads",
        "intake.keras_jax",
        "intake.keras_model",
        "intake.keras_pass",
        "intake.surroundings",
        "target",
    },
    "intake.onnx_ops": {"intake.safety.budget", "shapes"},
    "intake.onnx_graph": {
        "intake.onnx_ops",
        "intake.safety.budget",
        "intake.safety.programs",
        "shapes",
    },
    "intake.onnx_target": {"intake.heads", "intake.onnx_graph", "intake.reading", "target"},
    "intake.onnx_file": {
        "intake.naming",
        "intake.onnx_graph",
        "intake.onnx_target",
        "intake.safety.external",
        "intake.safety.programs",
        "shapes",
        "target",
    },
    "signals.example": {"gradients", "signals.scalars", "target"},
    "signals.devices": set(),
    "signals.program": {
        "chunks",
        "signals.devices",
        "signals.example",
        "signals.scalars",
        "target",
    },
    "signals.planning": {
        "jaxpr.equations",
        "memory",
        "signals.devices",
        "signals.example",
        "signals.program",
        "signals.scalars",
        "target",
    },
    "signals.storage": {"disk", "gradients", "signals.example"},
    "signals.extraction": {
        "data",
        "memory",
        "signals.devices",
        "signals.example",
        "signals.planning",
        "signals.program",
        "signals.scalars",
        "signals.storage",
        "target",
    },
    "signals": {
        "signals.example",
        "signals.extraction",
        "signals.planning",
        "signals.scalars",
        "signals.storage",
    },
    "shadow.queries": set(),
    "shadow.recipe": {"shadow.queries"},
    "shadow.membership": set(),
    "shadow.devices": set(),
    "shadow.references": {"target"},
    "shadow.progress": set(),
    "shadow.checkpoint": {"disk", "jaxpr.equations"},
    "shadow.extraction": {
        "data",
        "memory",
        "shadow.queries",
        "shadow.references",
        "signals",
        "signals.program",
        "signals.storage",
        "target",
    },
    "logits": set(),
    "reference.cells": set(),
    "reference.gaussian": {"reference.cells"},
    "reference.bavaria": {"reference.cells", "reference.gaussian"},
    "reference.ratios": {"reference.cells"},
    "reference.ranks": {"reference.cells", "reference.gaussian"},
    "reference.pairing": {"reference.cells"},
    "reference.leaving": {"metrics", "reference.cells", "reference.pairing", "reference.ratios"},
    "reference.calibration": {"metrics", "reference.cells", "reference.pairing"},
    "reference.networks": set(),
    "reference.learned": {"reference.cells", "reference.networks"},
    "reference.inferring": {
        "metrics",
        "reference.calibration",
        "reference.cells",
        "reference.learned",
        "reference.networks",
    },
    "reference": {
        "reference.bavaria",
        "reference.calibration",
        "reference.cells",
        "reference.gaussian",
        "reference.inferring",
        "reference.learned",
        "reference.leaving",
        "reference.networks",
        "reference.pairing",
        "reference.ranks",
        "reference.ratios",
    },
    "scores": {"logits", "signals"},
    "inference": {"gradients", "lowering", "signals", "target"},
    "fitting": {"signals"},
    "attack": {"fitting", "inference", "metrics", "signals"},
    "spread": set(),
    "findings": {"metrics", "terminal"},
    "facts": {"findings", "metrics", "spread"},
    "verdict": {"facts", "findings", "spread"},
    "figures": {"findings"},
    "layer_figures": {"figures", "findings"},
    "layer_results": {"facts", "findings", "layer_figures", "metrics"},
    "markup": {"findings"},
    "targets_section": {"findings", "markup"},
    "layers_section": {"findings", "markup"},
    "page": {"findings", "layers_section", "markup", "targets_section"},
    "streams": set(),
    "parts": {"data", "signals", "spread"},
    "calibrated": {"logits", "metrics", "parts", "reference", "signals", "spread", "target"},
    "calibrated_inference": {"calibrated", "logits", "parts", "reference", "signals", "target"},
    "catalogue": {
        "attack",
        "calibrated",
        "calibrated_inference",
        "parts",
        "scores",
        "signals",
        "streams",
        "target",
    },
    "released": {"attack", "gradients", "signals"},
    "risk_figures": {"figures", "metrics"},
    "folder": {"disk", "facts", "figures", "findings", "page", "risk_figures"},
    "report": {"data", "facts", "findings", "folder", "metrics", "spread", "target", "verdict"},
    "measuring": {"metrics", "report", "target"},
    "meter.optimizers": set(),
    "meter.handlers": {"data", "privacy_meter_text"},
    "meter.logs": {"attack", "disk", "facts", "folder", "metrics", "terminal"},
    "experiment.notes": set(),
    "experiment.locks": {"disk"},
    "experiment.mirror": {"disk"},
    "experiment.canonical": set(),
    "experiment.fingerprint": {"disk"},
    "experiment.published": {"disk"},
    "experiment.datasets": {"data", "experiment.published", "intake.surroundings"},
    "experiment.recipes": {"intake.surroundings", "lowering"},
    "experiment.configs": {
        "catalogue",
        "disk",
        "experiment.canonical",
        "experiment.datasets",
        "experiment.recipes",
        "intake.files",
        "shadow.recipe",
        "signals",
    },
    "experiment.writing": {"disk", "experiment.fingerprint"},
    "experiment.store": {
        "disk",
        "experiment.fingerprint",
        "experiment.locks",
        "experiment.mirror",
        "experiment.writing",
    },
    "experiment.drawing": {"data", "disk", "experiment.notes", "streams"},
    "experiment.training": {"data", "disk", "intake.surroundings", "streams"},
    "experiment.extracting": {"data", "signals", "target"},
    "experiment.attacking": {
        "catalogue",
        "data",
        "disk",
        "experiment.notes",
        "parts",
        "signals",
        "spread",
    },
    "experiment.scoring": {"disk", "experiment.notes", "facts", "measuring", "target"},
    "experiment.states": {"disk", "experiment.scoring", "experiment.writing"},
    "experiment.dispatch": {
        "calibrated",
        "catalogue",
        "experiment.canonical",
        "experiment.configs",
        "experiment.fingerprint",
    },
    "experiment.choosing": {"experiment.canonical", "experiment.configs", "findings"},
    "demo": {"disk", "intake.surroundings"},
    "intake.tf_export": set(),
    "intake.tf_models": {
        "intake.keras_model",
        "intake.keras_pass",
        "intake.naming",
        "intake.tf_export",
        "intake.tf_graph",
    },
    "intake.tf_files": {
        "intake.configs",
        "intake.files",
        "intake.safety.served",
        "intake.saved_model",
        "intake.surroundings",
        "intake.tf_export",
        "intake.tf_models",
    },
    "intake.safety.messages": set(),
    "intake.safety.confinement": set(),
    "intake.safety.worker": {
        "intake.safety.confinement",
        "intake.safety.messages",
        "intake.tf_files",
    },
    "intake.safety.process": {"intake.safety.messages", "intake.safety.worker"},
    "intake.tf_target": {
        "intake.heads",
        "intake.onnx_graph",
        "intake.onnx_ops",
        "intake.onnx_target",
        "intake.tf_export",
        "target",
    },
    "intake.opening": {
        "intake.configs",
        "intake.files",
        "intake.heads",
        "intake.keras_jax",
        "intake.safety.allowlist",
        "intake.safety.budget",
        "intake.safety.building",
        "intake.safety.process",
        "intake.surroundings",
        "intake.tf_export",
        "intake.tf_files",
        "intake.tf_models",
        "intake.tf_target",
        "target",
    },
    "intake": {
        "intake.files",
        "intake.heads",
        "intake.onnx_file",
        "intake.opening",
        "intake.safety.budget",
        "intake.surroundings",
        "target",
        "terminal",
    },
    "experiment.examining": {"disk", "experiment.notes", "intake", "target"},
    "meter.layers": {"intake", "signals", "target", "terminal"},
    "shadow.architecture": {"intake", "intake.keras_training", "target"},
    "shadow.program": {
        "jaxpr.equations",
        "lowering",
        "shadow.architecture",
        "shadow.devices",
        "shadow.recipe",
    },
    "shadow.training": {
        "memory",
        "shadow.architecture",
        "shadow.checkpoint",
        "shadow.devices",
        "shadow.membership",
        "shadow.program",
        "shadow.progress",
        "shadow.recipe",
        "shadow.references",
        "target",
    },
    "shadow": {
        "shadow.architecture",
        "shadow.extraction",
        "shadow.membership",
        "shadow.progress",
        "shadow.queries",
        "shadow.recipe",
        "shadow.references",
        "shadow.training",
    },
    "referenced": {"data", "parts", "reference", "shadow", "signals", "streams", "target"},
    "experiment.shadowing": {
        "calibrated",
        "calibrated_inference",
        "data",
        "disk",
        "experiment.extracting",
        "experiment.notes",
        "intake.surroundings",
        "parts",
        "referenced",
        "shadow",
        "signals",
        "streams",
        "target",
    },
    "experiment.stages": {
        "calibrated",
        "catalogue",
        "experiment.attacking",
        "experiment.canonical",
        "experiment.configs",
        "experiment.drawing",
        "experiment.examining",
        "experiment.extracting",
        "experiment.fingerprint",
        "experiment.scoring",
        "experiment.shadowing",
        "experiment.store",
        "experiment.training",
        "scores",
        "shadow",
    },
    "experiment.shipping": {
        "disk",
        "experiment.canonical",
        "experiment.configs",
        "experiment.fingerprint",
        "experiment.stages",
    },
    "layer_ranking": {
        "calibrated",
        "calibrated_inference",
        "data",
        "layer_results",
        "metrics",
        "parts",
        "reference",
        "referenced",
        "signals",
        "target",
        "terminal",
    },
    "auditing": {
        "calibrated",
        "catalogue",
        "data",
        "layer_ranking",
        "measuring",
        "memory",
        "parts",
        "referenced",
        "report",
        "scores",
        "shadow",
        "shadow.extraction",
        "signals",
        "streams",
        "target",
    },
    "meter.reporting": {
        "attack",
        "auditing",
        "catalogue",
        "data",
        "figures",
        "findings",
        "measuring",
        "memory",
        "meter.logs",
        "report",
        "risk_figures",
        "scores",
        "signals",
        "target",
    },
    "meter.attacking": {
        "attack",
        "data",
        "measuring",
        "meter.handlers",
        "meter.layers",
        "meter.logs",
        "meter.optimizers",
        "meter.reporting",
        "released",
        "report",
        "risk_figures",
        "signals",
        "streams",
        "target",
    },
    "meter": {"meter.attacking", "meter.handlers", "meter.optimizers"},
    "experiment.runs": {
        "auditing",
        "disk",
        "experiment.canonical",
        "experiment.configs",
        "experiment.fingerprint",
        "experiment.locks",
        "experiment.scoring",
        "experiment.stages",
        "experiment.states",
        "experiment.store",
        "experiment.writing",
    },
    "experiment.launch": {
        "experiment.configs",
        "experiment.locks",
        "experiment.runs",
        "experiment.stages",
        "experiment.store",
    },
    "experiment.finished": {
        "disk",
        "experiment.runs",
        "experiment.states",
        "experiment.store",
        "experiment.writing",
        "terminal",
    },
    "experiment.sweeping": {
        "experiment.configs",
        "experiment.launch",
        "experiment.runs",
        "experiment.store",
    },
    "experiment.remote": {
        "experiment.canonical",
        "experiment.locks",
        "experiment.runs",
        "experiment.shipping",
        "experiment.stages",
        "experiment.store",
    },
    "experiment.on_ray": {
        "disk",
        "experiment.canonical",
        "experiment.configs",
        "experiment.dispatch",
        "experiment.remote",
        "experiment.runs",
        "experiment.shipping",
        "experiment.stages",
        "experiment.store",
    },
    "experiment.upkeep": {
        "disk",
        "experiment.locks",
        "experiment.states",
        "experiment.store",
        "experiment.writing",
    },
    "experiment.columns": {"experiment.finished"},
    "experiment.tables": {"experiment.columns", "experiment.finished", "findings"},
    "experiment.events": {
        "disk",
        "experiment.columns",
        "experiment.finished",
        "experiment.writing",
    },
    "experiment.reopening": {
        "catalogue",
        "data",
        "experiment.columns",
        "experiment.finished",
        "experiment.writing",
        "metrics",
        "report",
        "spread",
        "target",
    },
    "experiment.pages": {
        "experiment.columns",
        "experiment.finished",
        "experiment.reopening",
        "experiment.tables",
        "experiment.writing",
        "findings",
        "folder",
        "markup",
    },
    "experiment.curves": {"experiment.tables", "figures", "findings", "metrics"},
    "experiment.results": {
        "experiment.columns",
        "experiment.curves",
        "experiment.events",
        "experiment.finished",
        "experiment.pages",
        "experiment.reopening",
        "experiment.tables",
        "experiment.writing",
        "folder",
    },
    "experiment.showing": {
        "experiment.finished",
        "experiment.results",
        "experiment.store",
        "experiment.tables",
        "terminal",
    },
    "experiment.commandline": {
        "experiment.canonical",
        "experiment.choosing",
        "experiment.configs",
        "experiment.launch",
        "experiment.on_ray",
        "experiment.runs",
        "experiment.showing",
        "experiment.states",
        "experiment.store",
        "experiment.sweeping",
        "experiment.upkeep",
        "terminal",
    },
    "experiment": {
        "experiment.canonical",
        "experiment.commandline",
        "experiment.configs",
        "experiment.datasets",
        "experiment.launch",
        "experiment.on_ray",
        "experiment.recipes",
        "experiment.runs",
        "experiment.store",
        "experiment.sweeping",
        "experiment.upkeep",
    },
    "": {
        "attack",
        "auditing",
        "calibrated",
        "calibrated_inference",
        "catalogue",
        "data",
        "directions",
        "gradients",
        "intake",
        "layer_ranking",
        "layer_results",
        "logits",
        "meter",
        "metrics",
        "privacy_meter_text",
        "reference",
        "referenced",
        "released",
        "scores",
        "shadow",
        "signals",
        "target",
    },
    "cli": {
        "",
        "data",
        "demo",
        "disk",
        "inspection",
        "inspection_tables",
        "metrics",
        "npz",
        "privacy_meter_text",
        "report",
        "terminal",
    },
}


# --- The code in the pages ----------------------------------------------------------------------


def blocks(text: str) -> Iterator[tuple[str, str, int]]:
    """Kind, code and first line of every fenced block of Python, plain or with a prompt."""
    fence = re.compile(r"^```(python|pycon)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for found in fence.finditer(text):
        yield found[1], found[2], text.count("\n", 0, found.start()) + 1


def run_blocks(text: str, name: str) -> None:
    """Runs a page's blocks one after another in one namespace."""
    globs: dict = {"__name__": "__main__"}
    for kind, code, line in blocks(text):
        if kind == "python":
            exec(compile("\n" * line + code, name, "exec"), globs)
            continue
        test = doctest.DocTestParser().get_doctest(code, globs, name, name, line)
        complaints: list[str] = []
        runner = doctest.DocTestRunner(verbose=False, optionflags=DOCTESTS)
        runner.run(test, out=complaints.append, clear_globs=False)
        assert not runner.failures, "".join(complaints)
        globs.update(test.globs)


@pytest.fixture
def a_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names, of a small model that has memorised."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 6)).astype(np.float32)
    y = random.integers(0, 3, 300)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(32, activation="tanh"), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(x[:150], y[:150], epochs=60, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "members.npz", x=x[:150], y=y[:150])
    np.savez(tmp_path / "nonmembers.npz", x=x[150:], y=y[150:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rank_promotion() -> Iterator[None]:
    """As a user has it: Keras' training and code of one's own may rely on it."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("rank_promotion")
@pytest.mark.parametrize("page", PAGES)
def test_code_in_the_pages_runs(page: str, request: pytest.FixtureRequest, capsys):
    folder = request.getfixturevalue("a_users_files")
    text = (REPOSITORY / page).read_text()
    assert len(list(blocks(text))) >= 2, "the fences were not recognised"
    run_blocks(text, page)
    if page == "README.md":
        assert "white box" in capsys.readouterr().out
        assert (folder / "report" / "report.html").exists()


@pytest.mark.parametrize(
    "code",
    ["```python\nassert 1 == 2\n```\n", "```pycon\n>>> 1 + 1\n3\n```\n"],
    ids=["statement", "doctest"],
)
def test_code_that_is_wrong_is_noticed(code: str):
    with pytest.raises(AssertionError):
        run_blocks(code, "page")


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", jm.__all__)
def test_public_names_are_documented(name: str):
    thing = getattr(jm, name)
    if not isinstance(thing, type | types.FunctionType | types.ModuleType):
        assert isinstance(thing, tuple), f"{name} is a constant; its docstring is its type's"
        return
    text = thing.__doc__ or ""
    assert re.match(r'[A-Z"`].*[.:?]', text.split("\n\n")[0], re.DOTALL), f"{name}: {text!r}"
    generated = f"{name}("  # what NamedTuple and dataclass write if nobody else does
    assert not text.startswith(generated), f"{name} has no docstring of its own"
    if isinstance(thing, type):
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and inspect.isfunction(value):
                assert value.__doc__, f"{name}.{attribute} has no docstring"


def test_command_line_flags_in_the_readme_exist(capsys):
    with pytest.raises(SystemExit):
        cli.main(["audit", "--help"])
    known = flags(capsys.readouterr().out)
    assert {"--target", "--members", "--nonmembers", "--out"} <= known
    named = flags_of_audit((REPOSITORY / "README.md").read_text())
    assert {"--target", "--members", "--gradients"} <= named
    assert named <= known, f"the README names {named - known}, which do not exist"
    assert flags_of_audit("`--no-such-flag`") - known == {"--no-such-flag"}


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def flags_of_audit(text: str) -> set[str]:
    """Flags in commands of `jaxmeter audit`, and those that stand alone as `--flag`."""
    commands = re.findall(r"jaxmeter audit((?:[^\n`]|\\\n)*)", text)
    return flags(" ".join([*commands, *re.findall(r"`(--[a-z-]+)[^`]*`", text)]))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str):
    path = REPOSITORY / document
    text = path.read_text()
    links = [*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r'src="([^"]+)"', text)]
    broken = [
        link
        for link in links
        if not link.startswith(("http:", "https:")) and not (path.parent / link).exists()
    ]
    assert not broken


# --- Architecture -------------------------------------------------------------------------------


def module_name(path: Path, package: Path) -> str:
    """ "signals", "intake", "intake.keras_jax"; "" for the package itself."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(name: str) -> str:
    """The module a name stands for in ARROWS: the operators of ONNX are one, in many files."""
    return OPERATORS if name.startswith(f"{OPERATORS}.") else name


def imported(node: ast.AST, inside: str) -> Iterator[str]:
    """Absolute names of all that is imported below a node, but for type checking only."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        nodes = node.orelse
    else:
        nodes = ast.iter_child_nodes(node)
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
        start = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{start}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))
    for child in nodes:
        yield from imported(child, inside)


def arrows(package: Path) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports, anywhere in its code."""
    sources = {module_name(path, package): path for path in package.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in sources.items():
        inside = package.name if path.name == "__init__.py" and not name else package.name
        if name:
            is_package = path.name == "__init__.py"
            inside = ".".join([package.name, *name.split(".")[: None if is_package else -1]])
        found.setdefault(place(name), set())
        for full in imported(ast.parse(path.read_text()), inside):
            first, _, rest = full.partition(".")
            if first != package.name:
                continue
            while rest and rest not in sources:  # a name in a module, not a module
                rest = rest.rpartition(".")[0]
            if place(rest) != place(name):
                found[place(name)].add(place(rest))
    return found


def trespasses(found: dict[str, set[str]], allowed: dict[str, set[str]]) -> list[str]:
    """Arrows that are not allowed, and modules that nobody has placed."""
    return [
        *(f"{name} has no place in ARROWS" for name in found.keys() - allowed.keys()),
        *(
            f"{name} imports {other or 'the package itself'}"
            for name, others in found.items()
            for other in sorted(others - allowed.get(name, set()))
        ),
    ]


PACKAGE = REPOSITORY / "jaxmeter"


def test_modules_import_only_what_they_may():
    found = arrows(PACKAGE)
    assert not trespasses(found, ARROWS)
    assert found["signals.example"] >= {"gradients", "target"}, "imports were not recognised"
    assert "folder" in found["report"], "imports inside functions were not recognised"


def test_nothing_is_imported_upward():
    order = list(ARROWS)
    for name, others in ARROWS.items():
        assert all(order.index(other) < order.index(name) for other in others), name


@pytest.mark.parametrize("name", ["target", "data", "metrics"])
def test_foundations_import_nothing_of_ours(name: str):
    assert arrows(PACKAGE)[name] <= {"npz", "terminal"}, "what files may do, and no more"


def test_only_intake_knows_frameworks_and_metrics_know_no_jax():
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path, PACKAGE)
        roots = {full.partition(".")[0] for full in imported(ast.parse(path.read_text()), "")}
        frameworks = roots & {"keras", "tensorflow", "tf_keras", "tf2onnx", "onnx", "onnxruntime"}
        assert name.startswith("intake") or not frameworks, f"{name} imports {frameworks}"
        assert name != "metrics" or not roots & {"jax", "jaxlib", "flax"}


def test_no_module_is_a_drawer_for_odds_and_ends():
    parts = {part for name in arrows(PACKAGE) for part in name.split(".")}
    assert not parts & {"utils", "util", "common", "base", "core", "helpers", "misc"}
    assert "signals" in parts


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("from small.high import f", ["low imports high"]),
        ("import small.high", ["low imports high"]),
        ("from small import high", ["low imports high"]),
        ("from . import high", ["low imports high"]),
        ("from .high import f", ["low imports high"]),
        ("def g():\n    from small.high import f", ["low imports high"]),
        ("import importlib\nimportlib.import_module('small.high')", ["low imports high"]),
        ("import small", ["low imports the package itself"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from small import high", []),
        ("import smaller.high", []),
    ],
)
def test_a_trespass_is_noticed(source: str, complaint: list[str], tmp_path: Path):
    package = tmp_path / "small"
    package.mkdir()
    for name, text in {"__init__": "", "high": "def f(): ...", "low": source}.items():
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    allowed = {"": set(), "low": set(), "high": {"low"}}
    assert trespasses(arrows(package), allowed) == complaint
    assert trespasses({"new": set()}, allowed) == ["new has no place in ARROWS"]


def test_the_design_page_shows_the_same_arrows():
    text = (REPOSITORY / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    shown = {name: set(re.findall(r"`([\w.]+)`", cell)) for name, cell in rows}
    assert shown == {name: others - {""} for name, others in ARROWS.items() if name}


def test_importing_the_package_brings_in_no_framework():
    late = ("keras", "matplotlib", "tensorflow", "onnx")
    code = f"import sys, jaxmeter; print(*(name for name in {late} if name in sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
