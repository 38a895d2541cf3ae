"""Pieces of HTML pages. Every text from outside passes `html.escape`."""

import re
from html import escape
from pathlib import Path
from typing import Any

from jaxmeter.jaxpr.memory import human
from jaxmeter.report.wording import clean, duration, percent

CSS = (Path(__file__).parent / "page.css").read_text("utf-8")
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


def section(name: str, title: str, *content: str) -> str:
    """A part of a page under its heading; `content` is HTML."""
    return f'<section id="{name}">\n<h2>{text(title)}</h2>\n' + "\n".join(content) + "\n</section>"


def caption(said: str) -> str:
    """Small text under a table or figure."""
    return f'<p class="caption">{text(said)}</p>'


def table(kind: str, heads: list[str], rows: list[tuple[str, str, list[str]]]) -> str:
    """A table that scrolls, and folds up on a phone.

    Args:
      kind: its class in the style sheet.
      heads: texts of the columns.
      rows: class of the row or "", HTML of the first cell, which names the row, and of the others.
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    body = "\n".join(
        f'<tr{f" class={style}" if style else ""}><th scope="row">{first}</th>'
        + "".join(
            f'<td data-label="{text(name)}">{cell}</td>'
            for name, cell in zip(heads[1:], cells, strict=True)
        )
        + "</tr>"
        for style, first, cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        f"{body}\n</tbody></table></div>"
    )


def figure(name: str, figures: dict[str, str], label: str) -> str:
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
    return f'<figure class="{name}" role="img" aria-label="{text(label)}">{svg}</figure>'


def text(value: Any) -> str:
    """Anything from outside, escaped and on one line."""
    return escape(clean(value))


def whole(words: str) -> str:
    """Text whose hyphened words stay on one line."""
    return re.sub(r"(\w+-\w+)", r'<span class="whole">\1</span>', text(words))


def shape(sizes: list[int]) -> str:
    """A record's shape, "28×28×1"."""
    return "×".join(map(str, sizes))


def percent_or_unknown(rate: float | str | None) -> str:
    """A rate, or "unknown"."""
    return percent(rate) if isinstance(rate, float | int) else "unknown"


def number(value: float | str | None) -> str:
    """A number with four digits; other things as text."""
    return f"{value:.4g}" if isinstance(value, float | int) else text(value)


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """A p-value with its relation."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def seconds(value: float) -> str:
    """Wall time."""
    return text(duration(value))


def size(count: int) -> str:
    """A size in the unit that suits it."""
    return human(count)
