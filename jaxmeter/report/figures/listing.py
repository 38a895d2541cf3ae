"""The figures of a report: each listed once, with what draws it and what the page says of it."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from jaxmeter.report import findings
from jaxmeter.report.figures.classes import class_figure, class_scores_figure
from jaxmeter.report.figures.exposed import exposed_figure, is_images
from jaxmeter.report.figures.gradient_norms import gradient_norm_figure
from jaxmeter.report.figures.history import history_figure
from jaxmeter.report.figures.layers import layer_figure
from jaxmeter.report.figures.roc import roc_figure
from jaxmeter.report.figures.scores import histogram_figure
from jaxmeter.report.result import AuditResult


class ReportFigure(NamedTuple):
    """A figure of a report.

    Attributes:
      name: of its files and its place in the page: letters, digits, underscores.
      draw: the figure of a result; None where the result has nothing of the kind.
      label: what it shows, for those who do not see it.
      heading: of the section that the page gives it; "" for a figure that stands in a section
        which the page writes itself, beside a table of its numbers.
      caption: under it, in that section.
    """

    name: str
    draw: Callable[[AuditResult], Figure | None]
    label: str
    heading: str = ""
    caption: str = ""


def _layers(result: AuditResult) -> Figure | None:
    return None if result.layers is None else layer_figure(result.layers)


def _class_scores(result: AuditResult) -> Figure:
    held = result.held
    return class_scores_figure(findings.best(result).result.scores, held.y, held.is_member)


def _gradient_norms(result: AuditResult) -> Figure | None:
    norms, held = findings.gradient_norms(result), result.held
    return None if norms is None else gradient_norm_figure(norms, held.y, held.is_member)


def _exposed(result: AuditResult) -> Figure | None:
    return exposed_figure(result) if is_images(result.held.x) else None


def _history(result: AuditResult) -> Figure | None:
    return history_figure(result) if any(row.history for row in result.rows) else None


# Those with a heading follow the page's own sections, in this order.
FIGURES = (
    ReportFigure("roc", roc_figure, "ROC curves of all attacks on log-log axes"),
    ReportFigure("histograms", histogram_figure, "Histograms of scores by attack"),
    ReportFigure("layers", _layers, "AUC of each signal of each layer"),
    ReportFigure("classes", class_figure, "AUC within each class"),
    ReportFigure("class_scores", _class_scores, "Histograms of scores by class"),
    ReportFigure("exposed", _exposed, "The records the attack is most sure of"),
    ReportFigure(
        "gradient_norms",
        _gradient_norms,
        "Gradient norms of members and non-members by label",
        "Gradient norms by label",
        "The norm of the loss's gradient by all of the target's variables: its geometric mean over "
        "the held-out members and non-members of each label, with 95% intervals (normal, in logs). "
        "Members' gradients are smaller where the target has memorised.",
    ),
    ReportFigure(
        "history",
        _history,
        "Loss and AUC by epoch",
        "Fitting of the learned attacks",
        "The epoch kept was chosen on the select part. The AUC drawn here is the select part's "
        "and, having been chosen, a little too high; the table's is not.",
    ),
)
LABELS = {figure.name: figure.label for figure in FIGURES}


def drawn(result: AuditResult) -> dict[str, Figure]:
    """The figures that make sense for a result, by name.

    Each is laid out here, once: as PNG, as SVG and in the page it has the same places, and to find
    them takes longer than to write them.
    """
    found = {}
    for one in FIGURES:
        figure = one.draw(result)
        if figure is not None:
            with warnings.catch_warnings():  # of a script that the font does not have
                warnings.filterwarnings("ignore", "Glyph .* missing")
                figure.draw_without_rendering()
            figure.set_layout_engine("none")
            found[one.name] = figure
    return found
