"""The list of columns in docs/stores.md: `python tests/columns_page.py` writes it anew."""

import sys
from pathlib import Path

from jaxmeter.report.columns import COLUMNS, Column

PAGE = Path(__file__).parents[1] / "docs" / "stores.md"
START, END = (
    "<!-- Written by `python tests/columns_page.py`. -->\n",
    "<!-- End of the columns. -->\n",
)


def listing() -> str:
    """All columns, in the order of the tidy table."""
    rows = [
        f"| {_tidy(column)} | {_key(column)} | {column.says} |"
        for column in sorted(COLUMNS, key=lambda column: column.group)
    ]
    heads = "| tidy table | an attack in `results.json` | what it says |"
    return "\n".join([heads, "|---|---|---|", *rows, ""])


def _tidy(column: Column) -> str:
    if not column.tidy:
        return ""
    return f"`{column.name}`, `_low`, `_high`" if column.interval else f"`{column.name}`"


def _key(column: Column) -> str:
    return f"`{column.key}`" if column.value else ""


def updated(text: str) -> str:
    """The page with the list as it is today."""
    head, start, rest = text.partition(START)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no lines {START!r} and {END!r} around the list")
    return head + start + listing() + end + tail


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}: {len(COLUMNS)} columns\n")
