"""HTML pages from templates: what templates know, and the pieces that they show."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from jaxmeter.jaxpr.memory import human
from jaxmeter.report.columns import ReportCell
from jaxmeter.report.wording import clean, percent

TEMPLATES = Path(__file__).parent / "templates"
CSS = (TEMPLATES / "page.css").read_text("utf-8")
# The figures' colours, which the page's style sheet sets for light and dark.
_COLOURS = {
    "#1f2328": "ink",
    "#656d76": "muted",
    "#d0d7de": "rule",
    "#d55e00": "member",
    "#0072b2": "nonmember",
    "#009e73": "c2",
    "#cc79a7": "c3",
    "#56b4e9": "c4",
    "#e69f00": "c5",
}


class Mark(NamedTuple):
    """An interval drawn on an axis from 0 to 100, with a line at chance."""

    low: float
    value: float
    high: float
    chance: float


class SheetRow(NamedTuple):
    """A row of a table: what it is of, what stands below, and its cells."""

    name: str
    below: str
    cells: Sequence[ReportCell | Mark]
    style: str = ""  # its class in the style sheet


class Sheet(NamedTuple):
    """A table: the columns' headings, that of the rows' names first, and the rows."""

    heads: Sequence[str]
    rows: Sequence[SheetRow]


def rendered(template: str, folder: Path = TEMPLATES, **context: Any) -> str:
    """A page of a template. Texts are shown on one line, and escaped where they are no `Markup`.

    Args:
      template: its name in the folder, or in the reports'.
      folder: where it lies.
      context: the names that it knows, beside `css`.
    """
    return _environment(folder).get_template(template).render({"css": Markup(CSS), **context})


@functools.cache
def _environment(folder: Path) -> Environment:
    made = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else clean(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "commas": "{:,}".format,
        "tenths": "{:.1f}".format,
        "percent": percent,
        "number": number,
        "whole": whole,
    }
    return made


def figure(name: str, figures: Mapping[str, str], label: str) -> Markup:
    """The SVG without its file header, in the page's colours, its ids apart from other figures'."""
    svg = figures[name][figures[name].index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    for colour, variable in _COLOURS.items():
        svg = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var(--{variable})", svg)
    start = Markup('<figure class="{}" role="img" aria-label="{}">').format(name, clean(label))
    return start + Markup(svg) + Markup("</figure>")


def whole(words: str) -> Markup:
    """Text whose hyphened words stay on one line."""
    escaped = str(escape(clean(words)))  # `Markup` would escape the tags that are put in
    return Markup(re.sub(r"(\w+-\w+)", r'<span class="whole">\1</span>', escaped))


def shape(sizes: list[int]) -> str:
    """A record's shape, "28×28×1"."""
    return "×".join(map(str, sizes))


def percent_or_unknown(rate: float | str | None) -> str:
    """A rate, or "unknown"."""
    return percent(rate) if isinstance(rate, float | int) else "unknown"


def number(value: float | str | None) -> str:
    """A number with four digits; other things as text."""
    return f"{value:.4g}" if isinstance(value, float | int) else str(value)


def size(count: int) -> str:
    """A size in the unit that suits it."""
    return human(count)
