"""The folder a report is kept in: written whole or not at all, and never over a stranger's file."""

import io
import json
import os
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxmeter import disk
from jaxmeter.report import page
from jaxmeter.report.facts import score_arrays
from jaxmeter.report.figures.listing import FIGURES, drawn
from jaxmeter.report.result import AuditResult

FILES = ("report.html", "results.json", "scores.npz")
_SUFFIXES = (".png", ".svg")


def save(report: AuditResult, facts: dict[str, Any], out: str | PathLike[str]) -> Path:
    """See `Report.save`."""
    folder = check(out)
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        with disk.folder(folder) as temporary:
            _write(report, facts, temporary)
            check(folder)  # it may have changed while we wrote
    except BaseException:
        for parent in made:  # the innermost first
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    return folder


def check(out: str | PathLike[str]) -> Path:
    """See `report.check_folder`."""
    folder = Path(out).expanduser().resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            f"the report cannot go to {folder}: {existing} is a file, not a folder. Name another "
            "folder, or move the file away."
        )
    for place in {existing, existing if existing != folder else folder.parent}:
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(
                f"the report cannot go to {folder}: {place} may not be written by you. Name a "
                "folder elsewhere."
            )
    if existing != folder:
        return folder
    if os.path.ismount(folder):
        raise FileExistsError(
            f"{folder} is a mount point, which cannot be replaced in one step. Name a folder in "
            f"it, e.g. {folder / 'report'}."
        )
    strangers = _strangers(folder)
    if strangers:
        listed = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise FileExistsError(
            f"{folder} holds {len(strangers)} thing(s) that are no part of a jaxmeter report "
            f"({listed}), and saving would replace the whole folder. Name a new or empty folder, "
            "or move these away."
        )
    return folder


def _strangers(folder: Path) -> list[str]:
    """Names in the folder that a report would not have written; all of them if it is not ours."""
    names = sorted(name for name in os.listdir(folder) if not disk.is_litter(name))
    try:
        written = json.loads((folder / "results.json").read_text("utf-8"))
        ours = written.get("tool") == "jaxmeter"
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        return names
    inside = {f"{figure.name}{suffix}" for figure in FIGURES for suffix in _SUFFIXES}
    strange = []
    for name in names:
        path = folder / name
        if name == "figures" and path.is_dir() and not path.is_symlink():
            strange += [
                f"figures/{entry.name}"
                for entry in sorted(os.scandir(path), key=lambda entry: entry.name)
                if not disk.is_litter(entry.name)
                and (entry.name not in inside or not entry.is_file(follow_symlinks=False))
            ]
        elif name not in FILES or path.is_symlink() or not path.is_file():
            strange.append(name)
    return strange


def _write(report: AuditResult, facts: dict[str, Any], folder: Path) -> None:
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    disk.write(folder / "results.json", text.encode("utf-8", "backslashreplace"))
    held, index = report.held, np.asarray(report.held_index)
    arrays: dict[str, Any] = score_arrays(report.rows, held.is_member, held.y, index, report.layers)
    with disk.create(folder / "scores.npz") as file:
        np.savez_compressed(file, **arrays)
    disk.make_folder(folder / "figures")
    figures = drawn(report)
    for name, figure in figures.items():
        for suffix in _SUFFIXES:
            written = rendered(figure, suffix.removeprefix("."), fonttype="path")
            disk.write(folder / "figures" / f"{name}{suffix}", written)
    disk.write(folder / "report.html", _html(facts, figures))


def html(report: AuditResult, facts: dict[str, Any]) -> bytes:
    """The page of a report, as `Report.save` writes it."""
    return _html(facts, drawn(report))


def _html(facts: dict[str, Any], figures: dict[str, Figure]) -> bytes:
    inline = {
        name: rendered(figure, "svg", fonttype="none").decode() for name, figure in figures.items()
    }
    return page.page(facts, inline).encode("utf-8", "backslashreplace")


def rendered(figure: Figure, kind: str, fonttype: str) -> bytes:
    """The figure's bytes, the same every time.

    Files have a white ground. In the page (`fonttype="none"`: text stays text) it is transparent.
    """
    buffer = io.BytesIO()
    settings: Any = {"svg.fonttype": fonttype, "svg.hashsalt": "jaxmeter"}
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script the font does not have
        figure.savefig(
            buffer,
            format=kind,
            dpi=200,
            transparent=fonttype == "none",
            facecolor="none" if fonttype == "none" else "white",
            metadata=metadata,
        )
    return buffer.getvalue()
