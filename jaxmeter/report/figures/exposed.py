"""The members that the best attack is surest of."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jaxmeter.report import findings
from jaxmeter.report.figures.style import MEMBER, MUTED, NONMEMBER, sheet
from jaxmeter.report.result import AuditResult


def exposed_figure(report: AuditResult, n: int = 16) -> Figure:
    """Pictures of the records the best attack is most sure of, with the truth under each.

    Raises:
      ValueError: if the records are not images `[h, w]`, `[h, w, 1]` or `[h, w, 3]`.
    """
    if not is_images(report.held.x):
        raise ValueError(
            f"records have shape {report.held.x.shape[1:]}, which is no picture; see "
            "`findings.exposed` for the same records as numbers."
        )
    records = findings.exposed(report, findings.best(report), n)
    columns = min(4, len(records))
    rows = math.ceil(len(records) / columns)
    figure, axes = sheet(rows, columns, height=1.85 * rows)
    pictures = _displayable(report.held.x, [record.row for record in records])
    for rank, (ax, record, picture) in enumerate(zip(axes, records, pictures, strict=False), 1):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        colour = MEMBER if record.is_member else NONMEMBER
        for spine in ax.spines.values():
            spine.set(visible=True, color=colour, linewidth=2.5)
        ax.set(xticks=[], yticks=[])
        truth = "member" if record.is_member else "false alarm"
        ax.set_title(f"{rank}. {truth}", size=9, color=colour, weight="bold", pad=4)
        ax.set_xlabel(f"class {record.label}, record {record.record}", size=8, color=MUTED)
    for ax in axes[len(records) :]:
        ax.set_visible(False)
    return figure


def is_images(x: NDArray) -> bool:
    """Whether records `[n, ...]` can be shown: `[h, w]`, `[h, w, 1]` or `[h, w, 3]`."""
    shape = x.shape[1:]
    return len(shape) in (2, 3) and min(shape[:2]) >= 4 and (len(shape) == 2 or shape[2] in (1, 3))


def _displayable(x: NDArray, rows: Sequence[int]) -> NDArray:
    """Pictures in [0, 1]: bytes and unit floats as they are, others stretched over all records."""
    if x.dtype == np.uint8 or (x.min() >= 0 and 1 < x.max() <= 255 and x.max() > 128):
        low, high = 0.0, 255.0
    elif x.min() >= 0 and x.max() <= 1:
        low, high = 0.0, 1.0
    else:
        low, high = float(x.min()), float(x.max())
    pictures = (x[list(rows)].astype(np.float64) - low) / ((high - low) or 1.0)
    pictures = pictures.clip(0, 1)
    return pictures[..., 0] if pictures.ndim == 4 and pictures.shape[-1] == 1 else pictures
