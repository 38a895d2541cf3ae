"""What results follow from, as hashes: files by content, code by what it does, versions."""

import ast
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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

    Where jaxmeter's files lie does not count: an import among them is the local name, and the hash
    of what it names. A study's modules count with their names and with what they say they import.
    """
    found, roots = _modules_behind(modules)
    hashes = {key: module.sha for key, module in found.items()}
    # Modules import each other in circles, so there is no order in which each could be hashed after
    # those that it imports. A round brings in one more step of the way; no way is longer than this.
    for _ in found:
        hashes = {
            key: _sha(module.sha, *(hashes.get(k, b"") + names for k, names in module.imports))
            for key, module in found.items()
        }
    return digest(sorted(hashes[key].hex() for key in roots))


def sources(*modules: str) -> dict[str, Path]:
    """The files that `code_version` reads outside jaxmeter, by the module's name."""
    found, _ = _modules_behind(modules)
    return {key: m.path for key, m in found.items() if isinstance(key, str) and m.path}


class _Module(NamedTuple):
    """A module by itself, and what it imports: keys of modules, with the names on both sides."""

    path: Path | None
    sha: bytes
    imports: tuple[tuple[Path | str, bytes], ...]


class _Import(NamedTuple):
    """What an import binds to a local name: a module, or what has the name in it."""

    local: str
    module: str
    name: str | None


def _modules_behind(
    modules: Sequence[str],
) -> tuple[dict[Path | str, _Module], list[Path | str]]:
    """Modules and what they import, directly or not, by their keys; and the keys of the first."""
    found: dict[Path | str, _Module] = {}
    waiting = [(name, _file(name)) for name in modules]
    roots = [_key(name, path) for name, path in waiting]
    while waiting:
        name, path = waiting.pop()
        key = _key(name, path)
        if key in found:
            continue
        if path is None:
            found[key] = _Module(None, _sha(b"no source", name.encode()), ())
            continue
        ours = _is_ours(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        sha, imports = _read(path.read_bytes(), package, ours)
        behind: list[tuple[Path | str, bytes]] = []
        for each in imports:
            module, place, taken = _named(each, path)
            if place is not None and not _only_names(place):
                waiting.append((module, place))
                behind.append((_key(module, place), _names(each.local, taken)))
            elif ours:
                label = "" if place else module
                behind.append(("", _names(each.local, label, taken)))
        found[key] = _Module(path, sha if ours else _sha(str(key).encode(), sha), tuple(behind))
    return found, roots


def _sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _names(*names: str) -> bytes:
    return _sha(json.dumps(names).encode())


def _key(name: str, path: Path | None) -> Path | str:
    """One of jaxmeter's files by its place, others by the module's name, a script by its file's."""
    if path is None:
        return name
    return path if _is_ours(path) else path.stem if name == "__main__" else name


def _named(each: _Import, importer: Path) -> tuple[str, Path | None, str]:
    """The module that an import names, its file, and the name in it, "" for the module itself.

    What a package only passes on is followed to the module that defines it, so that it makes no
    difference how it is imported. There is no file of modules that are not counted at all.
    """
    module, name, seen = each.module, each.name, set()
    while name is not None:
        path = _source(module, importer)
        if path is not None and path.name == "__init__.py" and (module, name) not in seen:
            seen.add((module, name))
            passed_on = _passed_on(path.read_bytes(), module)
            if name in passed_on:
                module, name = passed_on[name]
                continue
        inner = _source(f"{module}.{name}", importer)
        if inner is not None:
            return f"{module}.{name}", inner, ""
        break
    return module, _source(module, importer), name or ""


def _source(module: str, importer: Path) -> Path | None:
    """The file of one of our modules, or of one beside a study's."""
    found = _file_of_ours(module)
    if found is None and not _is_ours(importer):
        found = _existing(importer.parent / f"{module}.py")
    return found


def _only_names(path: Path) -> bool:
    """Whether nothing of results follows from a module, wherever it lies."""
    # The package itself only names things; how files are written changes nothing of their content.
    writes = sys.modules[is_litter.__module__].__file__
    return path == _folder() / "__init__.py" or path == Path(writes or "")


def _file(module: str) -> Path | None:
    """The source of one of our modules, or of one that is loaded."""
    origin = getattr(sys.modules.get(module), "__file__", None)
    ours = _file_of_ours(module)
    return ours or (Path(origin) if origin and origin.endswith(".py") else None)


@functools.cache
def _file_of_ours(module: str) -> Path | None:
    first, *rest = module.split(".")
    if first != _OURS:
        return None
    place = _folder().joinpath(*rest)
    return _existing(place.with_name(f"{place.name}.py")) or _existing(place / "__init__.py")


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(_folder())


def _folder() -> Path:
    """Where the package lies."""
    return Path(sys.modules[_OURS].__path__[0])


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


# --- Syntax --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _read(source: bytes, package: str, ours: bool) -> tuple[bytes, tuple[_Import, ...]]:
    """The hash of what a module does by itself, and what it imports, in functions too."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not _is_configuration(node)]
    reader = _Reader(package, ours)
    reader.visit(tree)
    return _sha(ast.dump(tree).encode()), tuple(reader.imports)


@functools.lru_cache(maxsize=64)
def _passed_on(source: bytes, package: str) -> dict[str, tuple[str, str | None]]:
    """What a package's `__init__` imports: module and name by local name."""
    body = ast.parse(source).body
    found = [i for node in body if isinstance(node, _IMPORT) for i in _bindings(node, package)]
    return {each.local: (each.module, each.name) for each in found}


_IMPORT = (ast.Import, ast.ImportFrom)


class _Reader:
    """Takes out of a tree what does nothing, and the imports; a local name stays of each.

    In a study's modules, and of packages that are not ours, all that the import says stays.
    """

    def __init__(self, package: str, ours: bool) -> None:
        self.package, self.ours = package, ours
        self.imports: list[_Import] = []

    def visit(self, node: ast.AST) -> None:
        """Changes the tree below a node."""
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                value[:] = self._block(value)
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, ast.AST):
                    self.visit(inner)
        if isinstance(node, ast.Call) and _is_import_module(node.func) and node.args:
            name = getattr(node.args[0], "value", None)
            if isinstance(name, str):
                node.args[0] = _staying([self._counted(_Import("", name, None))])

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Statements, with one for each group of imports, whose order says where files lie."""
        found: list[ast.stmt] = []
        for imports, group in itertools.groupby(
            _running(statements), key=lambda node: isinstance(node, _IMPORT)
        ):
            if not imports:
                found += group
                continue
            bound = [each for node in group for each in _bindings(node, self.package)]
            bound.sort(key=lambda each: each.local)
            found.append(ast.Expr(_staying(map(self._counted, bound))))
        return found

    def _counted(self, each: _Import) -> str:
        """What stays of an import, which is noted if it may be of a module that counts."""
        by_hash = self.ours and each.module.partition(".")[0] == _OURS
        if by_hash or not self.ours:
            self.imports.append(each)
        return each.local if by_hash else json.dumps(each)


def _staying(words: Iterable[str]) -> ast.expr:
    """A tuple as a constant, which no source has."""
    constant: Any = tuple(words)
    return ast.Constant(constant)


def _bindings(node: ast.stmt, package: str) -> Iterator[_Import]:
    """What an import statement binds."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield _Import(alias.asname or alias.name.partition(".")[0], alias.name, None)
    elif isinstance(node, ast.ImportFrom):
        start = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*above, *([start] if start else [])])
        for alias in node.names:
            yield _Import(alias.asname or alias.name, start, alias.name)


def _is_import_module(function: ast.expr) -> bool:
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in ("import_module", "__import__")


def _running(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that do something: no docstrings, nothing under `if TYPE_CHECKING`."""
    for node in statements:
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from _running(node.orelse)
        elif not _is_docstring(node):
            yield node


def _is_type_checking(test: ast.expr) -> bool:
    return getattr(test, "attr", getattr(test, "id", "")) == "TYPE_CHECKING"


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
