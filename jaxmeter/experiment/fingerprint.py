"""What results follow from, as hashes: files by content, code by what it does, versions."""

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmeter.disk import is_litter

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "keras", "scikit-learn"),
    "jax-privacy",
)
_OURS = "jaxmeter"
_SAVED_MODEL = (
    *("saved_model.pb", "saved_model.pbtxt", "keras_metadata.pb", "fingerprint.pb"),
    *("variables", "assets", "assets.extra"),
)
# The package itself only names things; how files are written changes nothing of what is in them.
_NOT_COUNTED = (_OURS, f"{_OURS}.disk")
_CONFIGURATION = ("BASE", "AXES")  # of a study: what its configs say, its code need not say again


def digest(value: Any) -> str:
    """SHA-256 of a value of JSON's types, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- Files ---------------------------------------------------------------------------------------


def content_of(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's files by name.

    Bytes are read again in this process only if size, times or place of a file changed since.

    Of a SavedModel only its own files count, whatever else lies in the folder.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is neither a file nor a folder.
    """
    if path.is_dir():
        is_model = any((path / name).is_file() for name in _SAVED_MODEL[:2])
        places = [path / name for name in _SAVED_MODEL] if is_model else [path]
        inside = (p for place in places for p in (place, *place.rglob("*")))
        files = sorted(p for p in inside if p.is_file() and not is_litter(p.name))
        return digest([[p.relative_to(path).as_posix(), content_of(p)] for p in files])
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no file {str(path)!r}, which a config names as its input."
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{str(path)!r} is no regular file, so its content cannot be hashed.")
    where = str(path.absolute())
    return _content(where, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@functools.lru_cache(maxsize=4096)
def _content(path: str, size: int, mtime: int, ctime: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Code ----------------------------------------------------------------------------------------


@functools.cache
def code_version(*modules: str) -> str:
    """A hash of what modules do: their syntax trees, without docstrings and comments.

    Counted are the modules of jaxmeter that they import, directly or not, and for a study's own
    module those beside it in its folder. Imports under `TYPE_CHECKING` do not count, nor do a
    study's BASE, AXES and `if __name__ == "__main__"`. A module is read as it is on disk when it
    is first asked for; nothing is imported.
    """
    return digest(sorted((label, sha) for label, (_, sha) in _modules_behind(modules).items()))


def sources(*modules: str) -> dict[str, Path]:
    """The files that `code_version` reads outside jaxmeter, by the module's name."""
    found = _modules_behind(modules)
    return {n: path for n, (path, _) in found.items() if path and not n.startswith(f"{_OURS}.")}


def _modules_behind(modules: Sequence[str]) -> dict[str, tuple[Path | None, str]]:
    """Source and hash of modules and of what they import, by name; a script's is its file's."""
    seen: dict[str, tuple[Path | None, str]] = {}
    waiting = [(name, _file(name)) for name in modules]
    while waiting:
        name, path = waiting.pop()
        label = path.stem if name == "__main__" and path else name
        if label in seen or name in _NOT_COUNTED:
            continue
        if path is None:
            seen[label] = None, "no source"
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imported, sha = _read(path.read_bytes(), package)
        seen[label] = path, sha
        for other in imported:
            found = _file_of_ours(other)
            if found is None and not name.startswith(f"{_OURS}."):
                found = _existing(path.parent / f"{other}.py")
            if found is not None:
                waiting.append((other, found))
    return seen


@functools.lru_cache(maxsize=1024)
def _read(source: bytes, package: str) -> tuple[tuple[str, ...], str]:
    """What a module imports, and its hash."""
    tree = ast.parse(source)
    imported = tuple(_imported(tree, package))
    return imported, _tree_hash(tree)  # in this order: hashing takes docstrings out of the tree


def _file(module: str) -> Path | None:
    """The source of a module that is loaded, or of one of ours."""
    origin = getattr(sys.modules.get(module), "__file__", None)
    return Path(origin) if origin and origin.endswith(".py") else _file_of_ours(module)


def _file_of_ours(module: str) -> Path | None:
    first, *rest = module.split(".")
    if first != _OURS or not rest:
        return None
    place = Path(__file__).parents[1].joinpath(*rest)
    return _existing(place.with_name(f"{place.name}.py")) or _existing(place / "__init__.py")


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Names that may be modules that a module imports, those in functions too."""
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                start = ".".join([*above, *([start] if start else [])])
            inside = [f"{start}.{alias.name}" for alias in node.names]
            yield from inside
            if not all(map(_file_of_ours, inside)):  # a package that is only passed does nothing
                yield start
        elif isinstance(node, ast.Call) and _is_import_module(node.func):
            yield from (
                arg.value
                for arg in node.args[:1]
                if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            )


def _is_import_module(function: ast.expr) -> bool:
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in ("import_module", "__import__")


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _running(node)


def _tree_hash(tree: ast.Module) -> str:
    body = [node for node in tree.body if not _is_configuration(node)]
    for node in ast.walk(tree):
        inside = getattr(node, "body", None)
        if isinstance(inside, list) and inside and _is_docstring(inside[0]):
            node.body = inside[1:]  # type: ignore[attr-defined]
    body = [node for node in body if not _is_docstring(node)]
    return hashlib.sha256("\n".join(map(ast.dump, body)).encode()).hexdigest()


def _is_docstring(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_configuration(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):
        return "__name__" in ast.dump(node.test)
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(t, ast.Name) and t.id in _CONFIGURATION for t in targets)


# --- Surroundings --------------------------------------------------------------------------------


def surroundings() -> dict[str, str]:
    """What else can change bits: versions of packages, the kind of device, JAX's settings."""
    settings: Any = jax.config
    return {
        **_versions(),
        "device": jax.devices()[0].device_kind,
        "x64": str(settings.jax_enable_x64),
        "matmul": str(settings.jax_default_matmul_precision),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
