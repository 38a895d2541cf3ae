"""What a model file is, found out before any framework sees it, and refused if it is not safe.

Opening a model must run no code of the file's, read no other file and write none. Keras' own safe
mode covers part of that for its newest format; this covers the rest for all.
"""

import contextlib
import difflib
import glob
import importlib
import json
import mmap
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxmeter.intake.heads import WrongChoice
from jaxmeter.intake.safety.keras_config import UnknownParts, check_config
from jaxmeter.intake.safety.operations import refused

ACCEPTED = (
    "a path to a .keras, .h5, .hdf5, .json or .onnx file or a SavedModel folder, or a live Keras 3 "
    "or tf_keras model"
)
_HDF5_DEPTH = 64
_LARGEST_CLAIM = 2**28  # bytes a file may claim to hold beyond 100 times what it has stored
_LARGEST_TEXT = 2**26  # bytes of JSON in an archive


class File(NamedTuple):
    """A model file that has been looked at.

    Attributes:
      kind: "keras", "hdf5", "json", "onnx" or "saved-model".
      version: the Keras version that wrote it, "?" if it does not say.
      config: the architecture, as Keras wrote it; None where the format has none.
    """

    kind: str
    version: str
    config: Any


def examined(path: Path, trust: bool, custom: Mapping[str, Any] = MappingProxyType({})) -> File:
    """What a path holds; nothing of it is executed.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is damaged, of an unknown format, or not safe to open. `trust` lets code in
        a file pass, not damage. `custom` are classes and functions that are at hand, by name.
    """
    kind = kind_of(path)
    if kind in ("onnx", "saved-model"):
        return File(kind, "?", None)
    readers = {"keras": _read_keras, "hdf5": _read_hdf5, "json": _read_json}
    try:
        config, version = readers[kind](path, trust)
        check_config(config, str(path), trust, custom)
    except UnknownParts as error:
        raise ValueError(str(error)) from None
    except RecursionError as error:
        raise _damaged(path, ValueError("its config is nested without end")) from error
    except Exception as error:
        if _is_own(error, path):
            raise
        raise _damaged(path, error) from error
    return File(kind, version, config)


def kind_of(path: Path) -> str:
    """The kind of a model file by its name, or of a folder by what is in it; nothing is read.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is no model file, or empty.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}. {_neighbours(path)}")
    if path.is_dir():
        if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise ValueError(
                f"{path} is a folder, and not a SavedModel: it has no saved_model.pb. load_target "
                f"takes {ACCEPTED}."
            )
        return "saved-model"
    kind = {
        ".keras": "keras",
        ".h5": "hdf5",
        ".hdf5": "hdf5",
        ".json": "json",
        ".onnx": "onnx",
    }.get(path.suffix.lower())
    if kind is None:
        hint = ""
        if path.name == "saved_model.pb":
            hint = f" For a SavedModel give its folder, {path.parent}."
        raise ValueError(
            f"{path} ends in {path.suffix or 'no suffix'}, so its format is not known; load_target "
            f"takes {ACCEPTED}.{hint}"
        )
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is no regular file; give the path of the model file itself.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; copy or save it again.")
    return kind


def check_weights(path: Path) -> None:
    """Checks a file of weights alone, HDF5 or a TensorFlow checkpoint's prefix."""
    if is_checkpoint(path):
        check_links(path.parent, path.parent.glob(f"{glob.escape(path.name)}.*"))
        return
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}. {_neighbours(path)}")
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(
            f"{path} ends in {path.suffix or 'no suffix'}; weights are an .h5 or .hdf5 file, or "
            "the prefix of a TensorFlow checkpoint (the name before .index)."
        )
    try:
        with _hdf5(path) as file:
            _check_hdf5(file, path)
    except Exception as error:
        if _is_own(error, path):
            raise
        raise _damaged(path, error) from error


def check_links(folder: Path, files: Iterable[Path]) -> None:
    """Refuses files of a model's folder that are links to places outside of it."""
    home = folder.resolve()
    for file in files:
        if not file.resolve().is_relative_to(home):
            raise ValueError(
                f"{file} is a link to {file.resolve()}, outside its folder: a model that reaches "
                f"for other files is refused. If that is how it was downloaded, copy it with its "
                f"contents: cp -rL {folder} COPY."
            )


@contextlib.contextmanager
def boundary(path: Path) -> Iterator[None]:
    """Makes a ValueError that names the file of whatever a framework raises because of it.

    What is not because of the file passes: a missing package, a wrong argument, a warning that the
    caller turned into an error.
    """
    try:
        yield
    except (ImportError, WrongChoice, Warning):
        raise
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {str(error) or type(error).__name__}") from error
    except (Exception, SystemExit) as error:  # no file may end the process
        raise ValueError(
            f"{path} cannot be opened, {type(error).__name__}: {line(error).rstrip('.')}. It may "
            "be damaged: copy it again and compare its size; or open it with what wrote it and "
            "save it again."
        ) from error


def is_checkpoint(weights: Path) -> bool:
    """Whether a path is a TensorFlow checkpoint's prefix: the name before `.index`."""
    return weights.with_name(f"{weights.name}.index").exists()


def check_built(model: Any) -> None:
    """Refuses a Keras model without variables, which weights could not be loaded into."""
    if not model.built:
        raise ValueError(
            "the architecture does not say the shape of its input, so it has no variables to load"
        )


def is_legacy_weights(path: Path) -> bool:
    """Whether HDF5 weights are in the format of Keras 2, which lists its layers' names."""
    with _hdf5(path) as file:
        return "layer_names" in file.attrs or "model_weights" in file


def check_graph(names: Iterable[str], what: str) -> None:
    """Refuses TensorFlow graphs with operations that are not known to do nothing but compute.

    Args:
      names: the operations.
      what: the model, for the message.
    """
    if unsafe := refused(names):
        raise ValueError(
            f"{what} has operations that run code, touch files or are not known to do nothing but "
            f"compute: {', '.join(unsafe)}. Running it could do anything on this machine, so it is "
            "refused. Save the model without them, as a function of arrays of numbers; or, if you "
            "trust who wrote it, pass trust=True (--trust)."
        )


# --- formats ------------------------------------------------------------------------------------


def _read_keras(path: Path, trust: bool) -> tuple[Any, str]:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a Keras 3 file: those are zip archives, and this is cut short or "
            "something else. If it is HDF5, name it .h5; otherwise copy it again."
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for info in archive.infolist():
            name = info.filename
            parts = PurePosixPath(name.replace("\\", "/"))
            link = stat.S_ISLNK(info.external_attr >> 16)
            if parts.is_absolute() or ".." in parts.parts or ":" in name or link:
                raise ValueError(
                    f"{path} holds {'a link' if link else 'a file that would be written outside'}, "
                    f"{name!r}: an archive that reaches for other places is refused."
                )
            if info.flag_bits & 1:
                raise ValueError(
                    f"{path} is encrypted ({name!r} in it). Unpack it with its password and save "
                    "it again without one."
                )
        if len(set(names)) < len(names):
            raise ValueError(
                f"{path} holds a file twice under one name: it is damaged. Save it again."
            )
        missing = {"config.json", "metadata.json", "model.weights.h5"} - set(names)
        if missing:
            raise ValueError(
                f"{path} is a zip archive but no Keras model: it lacks {', '.join(sorted(missing))}"
                '. Save the model with model.save("model.keras").'
            )
        size = sum(info.file_size for info in archive.infolist())
        if size > _LARGEST_CLAIM + 100 * path.stat().st_size:
            raise ValueError(
                f"{path} unpacks to {size:,} bytes, over 100 times its size: refused as a zip bomb."
            )
        for name in ("config.json", "metadata.json"):
            if archive.getinfo(name).file_size > _LARGEST_TEXT:
                raise ValueError(f"{path} is damaged: {name} in it is larger than any could be.")
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"{path} is damaged: {bad} in it fails its checksum. Copy it again.")
        assets = sorted(name for name in names if name.startswith("assets/") and name != "assets/")
        if assets and not trust:
            raise ValueError(
                f"{path} brings vocabulary files with it ({', '.join(assets[:3])}): its text "
                "layers turn words into numbers, which JAX cannot. Save the model without them and "
                "audit it on the token numbers."
            )
        version = json.loads(archive.read("metadata.json")).get("keras_version", "?")
        config = json.loads(archive.read("config.json"))
        if archive.getinfo("model.weights.h5").compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as whole, _mapped(whole) as data:
                _check_heaps(data, path)
        else:
            _check_heaps(archive.read("model.weights.h5"), path)
        with archive.open("model.weights.h5") as weights, _hdf5(weights) as file:
            _check_hdf5(file, path)
        return config, str(version)


def _read_hdf5(path: Path, trust: bool) -> tuple[Any, str]:
    del trust  # nothing in HDF5 itself can be trusted to do more
    with _hdf5(path) as file:
        _check_hdf5(file, path)
        config = file.attrs.get("model_config")
        version = file.attrs.get("keras_version", "?")
    if config is None:
        raise ValueError(
            f"{path} holds weights without their architecture. If you have the architecture as "
            "JSON (model.to_json()), load_target(that file, weights=this one); otherwise build the "
            "model in Keras, model.load_weights(path), and give load_target the live model."
        )
    text = [v.decode() if isinstance(v, bytes) else str(v) for v in (config, version)]
    return json.loads(text[0]), text[1]


def _read_json(path: Path, trust: bool) -> tuple[Any, str]:
    del trust
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError(
            f"{path} is JSON but no Keras architecture, which model.to_json() writes: it names no "
            "class of model."
        )
    return config, str(config.get("keras_version", "3" if "module" in config else "?"))


def _hdf5(source: Any) -> Any:
    h5py = importlib.import_module("h5py")
    if isinstance(source, Path):
        if not h5py.is_hdf5(source):
            raise ValueError(
                f"{source} is not an HDF5 file: it is cut short or something else. If it is a "
                "Keras 3 archive, name it .keras; otherwise copy it again."
            )
        with source.open("rb") as file, _mapped(file) as data:
            _check_heaps(data, source)
    return h5py.File(source, "r")


def _mapped(file: Any) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_heaps(data: bytes | mmap.mmap, path: Path) -> None:
    """Refuses damaged HDF5 heaps of variable-length texts, on which libhdf5 would go on for ever.

    A heap is "GCOL", a version, its size, and objects one after the other, each with its number,
    two fields of no interest here, and its size (without this head, but for number 0, the rest).
    """
    at = -1
    while (at := data.find(b"GCOL\x01\0\0\0", at + 1)) >= 0:
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        place, end = at + 16, at + size
        sound = 16 <= size and end <= len(data)
        while sound and place + 16 <= end:
            number = int.from_bytes(data[place : place + 2], "little")
            length = int.from_bytes(data[place + 8 : place + 16], "little")
            step = 16 + -(-length // 8) * 8 if number else length
            place += step
            sound = step >= 16 and place <= end
        if not sound:
            raise ValueError(
                f"{path} is damaged: a heap of texts in it does not add up. Copy it again."
            )


def _check_hdf5(file: Any, path: Path) -> None:
    """Refuses HDF5 that reaches into other files, or claims arrays that it does not hold."""
    h5py = importlib.import_module("h5py")
    seen: set[Any] = set()
    claimed, stored = [], []

    def walk(group: Any, depth: int) -> None:
        if depth > _HDF5_DEPTH:
            raise ValueError(f"{path} is damaged: its groups are nested without end.")
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise ValueError(
                    f"{path} links to another file, {link.filename!r}: a model file that reaches "
                    "for others is refused."
                )
            item = group[name]
            key = h5py.h5o.get_info(item.id).addr
            if key in seen:
                continue
            seen.add(key)
            if isinstance(item, h5py.Group):
                walk(item, depth + 1)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise ValueError(
                        f"{path} keeps the array {item.name!r} in other files: a model file that "
                        "reaches for others is refused."
                    )
                claimed.append(int(item.nbytes))
                stored.append(int(item.id.get_storage_size()))  # claimed too, unless in chunks
                if sum(claimed) > _LARGEST_CLAIM + 100 * min(sum(stored), path.stat().st_size):
                    raise ValueError(
                        f"{path} is damaged: the array {item.name!r} claims {item.nbytes:,} bytes, "
                        "which are not in the file."
                    )

    walk(file, 0)


# --- words --------------------------------------------------------------------------------------


def line(error: BaseException) -> str:
    """An error's reason in one line; Keras puts it last, after the layer's whole config."""
    text = str(error).rpartition("Exception encountered:")[2].strip() or type(error).__name__
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else flat[:297] + "..."


def _is_own(error: Exception, path: Path) -> bool:
    """Whether an error is this module's; zipfile, json and h5py have many ways to say theirs."""
    return type(error) is ValueError and str(path) in str(error)


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path} is damaged: {line(error)}. Copy or download it again and compare its size."
    )


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"Its folder {folder.absolute()} does not exist either."
    names = sorted(p.name for p in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    if near:
        return f"Nearest in that folder: {', '.join(near)}."
    return f"{folder.absolute()} holds nothing with a name like it."
