"""Rooms: a folder imports only folders below it, and a file never what leads back to it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPOSITORY

import jaxmeter as jm

PACKAGE = REPOSITORY / "jaxmeter"
ROOMS = (  # from the lowest floor to the highest; files of a floor import none of its other rooms
    ("terminal", "disk", "logits", "metrics", "prng", "progress", "devices"),
    ("target", "jaxpr"),
    ("gradients", "reference", "intake"),
    ("data",),  # above intake, which alone knows frameworks: Keras has data sets, too
    ("signals",),
    ("scores", "shadow", "inference"),
    ("attacks",),
    ("report",),
    ("auditing",),
    ("experiment", "meter"),
    ("__init__",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
# Exceptions, each with its reason; this table may only become shorter.
THROUGH_INIT = {
    "jaxmeter.cli.commands": "the command line stands above the flat exports, and uses them",
}
FRAMEWORKS = {"keras", "tensorflow", "tf_keras", "tf2onnx", "onnx", "onnxruntime"}


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name) of all that a file imports: in functions and for annotations too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((arg.value, None) for arg in node.args if isinstance(arg, ast.Constant))


class Layout:
    """Which module of a package imports which."""

    def __init__(self, package: Path):
        self.name, root = package.name, package.parent
        self.files = {module_of(path, root): path for path in sorted(package.rglob("*.py"))}
        self.imports: dict[str, set[str]] = {}
        self.through: dict[str, set[str]] = {}  # packages, not files, that a file imports from
        for name, path in self.files.items():
            pairs = [pair for pair in imported(path) if pair[0].split(".")[0] == self.name]
            targets = {
                f"{module}.{what}" if f"{module}.{what}" in self.files else module
                for module, what in pairs
            }
            self.imports[name] = targets - {name}
            self.through[name] = {t for t in targets if self.is_package(t)} - {name}

    def is_package(self, name: str) -> bool:
        return name not in self.files or self.files[name].name == "__init__.py"

    def room(self, name: str) -> str:
        return (name.split(".") + ["__init__"])[1]

    def upward(self, floor: dict[str, int]) -> list[str]:
        return [
            f"{name} imports {other}"
            for name, others in self.imports.items()
            for other in sorted(others)
            if self.room(name) != self.room(other)
            and floor[self.room(name)] <= floor[self.room(other)]
        ]


@pytest.fixture(scope="module", name="layout")
def layout_fixture() -> Layout:
    return Layout(PACKAGE)


def test_folders_import_only_what_is_below_them(layout: Layout):
    assert not layout.upward(FLOOR)


def test_no_file_leads_back_to_itself(layout: Layout):
    TopologicalSorter(layout.imports).prepare()  # raises, and names the circle


def test_nobody_imports_through_an_init(layout: Layout):
    faces = {name for name in layout.files if layout.is_package(name)}
    odd = {name for name, through in layout.through.items() if through} - faces
    assert odd == THROUGH_INIT.keys()


def test_inits_only_export(layout: Layout):
    for name, path in layout.files.items():
        if path.name == "__init__.py":
            first, *rest = ast.parse(path.read_text("utf-8")).body
            assert isinstance(first, ast.Expr), f"{name} has no docstring"
            other = [node for node in rest if not isinstance(node, ast.ImportFrom)]
            assert all(ast.unparse(node).startswith("__all__ =") for node in other), name


def test_the_root_has_few_files():
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_only_intake_knows_frameworks_and_metrics_know_no_jax(layout: Layout):
    for name, path in layout.files.items():
        roots = {module.partition(".")[0] for module, _ in imported(path)}
        assert layout.room(name) == "intake" or not roots & FRAMEWORKS, name
        assert name != "jaxmeter.metrics" or not roots & {"jax", "jaxlib", "flax"}


def hanging_on_names(source: str) -> list[str]:
    """Comparisons of a `name` with a text, and questions for the type of an attack."""
    types = {name for name in jm.__all__ if hasattr(getattr(jm, name), "reads")}
    types |= {"References", "Shadows"}
    odd = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute):
            texts = [c for c in node.comparators if isinstance(c, ast.Constant | ast.Name)]
            if node.left.attr == "name" and any(
                isinstance(getattr(c, "value", None), str) or getattr(c, "id", "").isupper()
                for c in texts
            ):
                odd.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            odd += [ast.unparse(node)] if asked & types else []
    return odd


def test_no_behaviour_hangs_on_a_name_or_on_what_somebody_else_may_write_too(layout: Layout):
    rooms = ("attacks", "auditing", "report", "meter", "signals", "inference", "reference")
    for name, path in layout.files.items():
        if layout.room(name) in rooms:
            assert not hanging_on_names(path.read_text("utf-8")), name
    assert hanging_on_names("row.name == 'blind baseline'")
    assert hanging_on_names("row.name == BLIND")
    assert hanging_on_names("isinstance(attack, (int, Learned))")
    assert not hanging_on_names("row.name == other.name or isinstance(target, Target)")


def test_importing_the_package_brings_in_no_framework():
    late = ("keras", "matplotlib", "tensorflow", "onnx", "sklearn", "scipy.stats", "pyarrow")
    late += ("jinja2", "tabulate")
    code = f"import sys, jaxmeter; print(*(name for name in {late} if name in sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "source",
    [
        "from small.high.one import f",
        "import small.high.one",
        "from small.high import one",
        "def g():\n    from small.high.one import f",
        "import importlib\nimportlib.import_module('small.high.one')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from small.high import one",
        "import smaller.high.one",
    ],
)
def test_a_trespass_is_noticed(source: str, tmp_path: Path):
    for name, text in {"low": source, "high": "from small.low import one"}.items():
        (tmp_path / "small" / name).mkdir(parents=True)
        (tmp_path / "small" / name / "__init__.py").write_text("")
        (tmp_path / "small" / name / "one.py").write_text(text)
    (tmp_path / "small" / "__init__.py").write_text("")
    small = Layout(tmp_path / "small")
    wrong = [] if "smaller" in source else ["small.low.one imports small.high.one"]
    assert small.upward({"__init__": 2, "high": 1, "low": 0}) == wrong
    if wrong:
        with pytest.raises(ValueError, match="cycle"):
            TopologicalSorter(small.imports).prepare()
