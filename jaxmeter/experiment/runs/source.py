"""A study's own source on its way to other processes, where its types get their names again."""

import atexit
import functools
import importlib
import importlib.util
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmeter import disk
from jaxmeter.experiment.config import Config
from jaxmeter.experiment.serialization import ConfigError
from jaxmeter.experiment.stages.graph import modules_of
from jaxmeter.experiment.store.fingerprint import sources


@dataclass(frozen=True, kw_only=True)
class SourceBundle:
    """What a process on another machine needs to know a study's types.

    Attributes:
      roots: modules of the configs' types outside jaxmeter; a script's is its file's name, as
        names of runs and versions of code have it.
      files: name of a module, its place here, its bytes: of the roots, and of all beside them
        that they import. Installed packages stay behind.
    """

    roots: tuple[str, ...]
    files: tuple[tuple[str, str, bytes], ...]


def packed(configs: Sequence[Config]) -> SourceBundle:
    """The source behind configs, as it is on disk now.

    Raises:
      ConfigError: for types that were defined in a notebook or at a prompt.
    """
    modules = sorted(m for m in set(modules_of(tuple(configs))) if not m.startswith("jaxmeter."))
    script = getattr(sys.modules["__main__"], "__file__", None)
    if "__main__" in modules and script is None:
        raise ConfigError(
            "the study has types of its own that were defined in a notebook or at a prompt, and "
            "other processes cannot import those. Put them into a file and import them from it."
        )
    roots = tuple(Path(script).stem if m == "__main__" and script else m for m in modules)
    files = tuple(
        (name, str(path.absolute()), path.read_bytes())
        for name, path in sorted(sources(*modules).items())
        if "." not in name and not _is_installed(path)
    )
    return SourceBundle(roots=roots, files=files)


def _is_installed(path: Path) -> bool:
    """Whether a file belongs to Python or an installed package."""
    places = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    return any(path.absolute().is_relative_to(place) for place in places)


@functools.cache
def unpacked(shipment: SourceBundle) -> None:
    """Makes the types known in this process; once.

    Raises:
      ConfigError: if a module cannot be imported here, or runs the study when it is.
    """
    places = {name: Path(path) for name, path, _ in shipment.files}
    if not all(_holds(Path(path), content) for _, path, content in shipment.files):
        folder = Path(tempfile.mkdtemp(prefix="jaxmeter-study-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        places = {name: disk.below(folder, path.name) for name, path in places.items()}
        for name, _, content in shipment.files:
            disk.replace(places[name], content)
    for place in {str(path.parent) for path in places.values()} - set(sys.path):
        sys.path.insert(0, place)
    for name in shipment.roots:
        try:
            _load(name, places.get(name))
        except SystemExit as error:
            raise ConfigError(
                f"the study {name} runs when it is imported, which other processes have to do. "
                'Put experiment.main(BASE, AXES) under `if __name__ == "__main__":`.'
            ) from error
        except ImportError as error:
            raise ConfigError(
                f"{name}, which defines types of the study, cannot be imported here: {error}. "
                "Files beside the study come along; other packages must be installed."
            ) from error


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _load(name: str, path: Path | None) -> None:
    if path is None:
        importlib.import_module(name)
        return
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) != str(path):
            raise ConfigError(f"the study's file has the name of a module, {name}. Rename it.")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
