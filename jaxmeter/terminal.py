"""Text from outside on its way to a terminal: names and messages made safe to print, one console.

A file chooses the names of its layers, and whoever sends it the file's own name. Printed as they
are, they could move the cursor, hide or forge lines, or be taken for markup.
"""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

_NAME = 200  # characters of a name that are shown
_MESSAGE = 10_000  # characters of a message, which may list a model's layers
# What Unicode calls ignorable, or draws as nothing, among what `str.isprintable` lets pass.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)


def printable(text: object, longest: int = _NAME) -> str:
    r"""Text in one line that does nothing to a terminal and hides nothing from its reader.

    What has no shape (control characters and with them escape sequences, marks that turn the
    direction of writing, characters of no width, line separators, lone surrogates) is shown as
    Python's `repr` shows it. Printable text is left as it is, so once more changes nothing.

    Args:
      text: a name, a path or anything else with a text.
      longest: characters that are shown; of more the middle is left out, since names often differ
        at their ends.

    >>> printable("dense\x1b[2J\u202e")
    'dense\\x1b[2J\\u202e'
    """
    shown = _shortened(str(text), longest)
    if shown.isprintable() and not _INVISIBLE.search(shown):
        return shown
    return _shortened("".join(map(_shown, shown)), longest)


def one_line(text: object, longest: int = _MESSAGE) -> str:
    """A message or a label in one printable line: line breaks become spaces."""
    return printable(" ".join(filter(None, map(str.strip, str(text).splitlines()))), longest)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 2
    return f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"


def _shown(character: str) -> str:
    if character.isprintable() and not _INVISIBLE.match(character):
        return character
    return character.encode("unicode_escape").decode()


# --- Exceptions and warnings ---------------------------------------------------------------------


@contextlib.contextmanager
def printable_messages() -> Iterator[None]:
    """Makes printable what is raised and warned of inside, which may quote a stranger's file.

    A traceback prints the causes of an exception too. They are made printable as well, or left
    out where their class does not let its text be changed.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:  # under the filters as they are
            yield
    except Exception as error:
        if not _made_printable(error, set()):
            raise ValueError(one_line(error)) from None
        raise
    finally:
        for warning in caught:
            _made_printable(warning.message, set())
            # Not `warn`: the filters have let it pass, where it was raised.
            warnings.showwarning(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _made_printable(error: Any, seen: set[int]) -> bool:
    """Changes the texts of an exception and of its causes; False if its own cannot be changed."""
    seen.add(id(error))
    error.args = tuple(one_line(a) if isinstance(a, str) else a for a in error.args)
    if hasattr(error, "__notes__"):
        error.__notes__ = [one_line(note) for note in error.__notes__]
    for link in ("__cause__", "__context__"):
        behind = getattr(error, link)
        if behind is not None and id(behind) not in seen and not _made_printable(behind, seen):
            is_suppressed = error.__suppress_context__
            setattr(error, link, None)
            error.__suppress_context__ = is_suppressed
    # Of these Python prints more than their text: a line of source, and a list of others.
    prints_more = isinstance(error, SyntaxError | BaseExceptionGroup)
    return not prints_more and _is_printable(str(error))


def _is_printable(text: str) -> bool:
    return len(text) <= _MESSAGE and text.isprintable() and not _INVISIBLE.search(text)


# --- The console ---------------------------------------------------------------------------------


class _Printable(Console):
    """A console on which no text acts, however it came into what is printed."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_lines(segment.text))

    def render_str(self, text: str, **given: Any) -> Text:
        return super().render_str(_lines(text), **given)  # before lines are measured and wrapped


def _lines(text: str) -> str:
    """Printable text of several lines, none of them shortened: the layout is made."""
    return "\n".join(printable(line, max(1, len(line) * 10)) for line in text.split("\n"))


def bars(on: Console) -> "Progress":
    """Bars of work that is done piece by piece, gone when it is done."""
    from rich import progress  # imported where a command shows how far it is

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    return progress.Progress(*columns, console=on, transient=True)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console for the package's own output: what is printed is never read as markup or emoji.

    Style comes from `style=` and from `rich.text.Text`.
    """
    return _Printable(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
