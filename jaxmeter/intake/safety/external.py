"""Which files beside an `.onnx` file its arrays may be read from."""

import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from jaxmeter.intake.safety import budget

_SHORT = 16  # bytes of which numbers could by chance be text
_TEXT = re.compile(rb"[\t\n\f\r\x20-\x7e\x80-\xff]*")
# What files of other kinds begin with: archives, HDF5, NumPy, databases, images, documents.
_KINDS = (
    *(b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd"),
    *(b"\x89HDF\r\n", b"\x93NUMPY", b"SQLite format 3", b"\x89PNG\r\n", b"\xff\xd8\xff"),
    *(b"%PDF-", b"\x7fELF", b"PAR1", b"ARROW1", b"age-encryption"),
    *(b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf"),  # marks of text in UTF-16, UTF-32, UTF-8
    *(bytes([0x80, protocol]) for protocol in range(1, 6)),  # pickles
)


def check_external(tensors: Iterable[Any], path: Path) -> None:
    """Refuses arrays in files that are not the model's, and lets the budget grow by those that are.

    The model's are regular files of numbers at plain relative places below its folder. What is
    hidden is not, what a link leads out to is not, nor is text or a file of another known kind:
    whoever shares a report on the model would give away what is in it. Numbers have no mark of
    their own, so a file of a kind that is not known here passes for numbers.

    Raises:
      TooExpensive: if the arrays are larger than the file may be: many may be the same bytes.
      ValueError: naming the array and the file, and saying what is wrong with it.
    """
    folder = path.parent.resolve()
    files: set[Path] = set()
    total = 0
    for tensor in tensors:
        given = {entry.key: entry.value for entry in tensor.external_data}
        location = given.get("location", "")
        found = _file(location, folder, f"{path} keeps the array {tensor.name!r} in {location!r}")
        if found is not None:
            files.add(found)
            size = found.stat().st_size
            length = given.get("length", "")
            total += min(int(length), size) if length.isdecimal() and int(length) else size
    budget.include(files)
    budget.room(total, f"what {path} keeps in other files")


def _file(location: str, folder: Path, what: str) -> Path | None:
    """The file at a location; None if there is none."""
    inside = PurePath(location)
    found = (folder / location).resolve()
    if inside.is_absolute() or ".." in inside.parts or not found.is_relative_to(folder):
        raise ValueError(
            f"{what}, outside its own folder: a file that reaches for others is refused. If it is "
            "a link from a download, copy the folder with its contents: cp -rL."
        )
    parts = {*inside.parts, *found.relative_to(folder).parts}
    if not parts or any(part.startswith(".") for part in parts):
        raise ValueError(
            f"{what}, which is {'hidden' if parts else 'no file'}: exporters write no such files, "
            "so it is someone else's. Export the model again."
        )
    if not found.exists():
        return None
    if not stat.S_ISREG(found.stat().st_mode):
        raise ValueError(f"{what}, which is no regular file. Export the model again.")
    with found.open("rb") as file:
        start = file.read(4096)
    is_text = len(start) >= _SHORT and _TEXT.fullmatch(start) is not None and _is_utf8(start)
    if is_text or start.startswith(_KINDS):
        raise ValueError(
            f"{what}, which is {'text' if is_text else 'a file of another kind'} and no array: a "
            "file that reaches for others is refused. Export the model again."
        )
    return found


def _is_utf8(start: bytes) -> bool:
    try:
        start[:-3].decode()  # a character may be cut at the end
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 6
    return True
