"""Words of a command line as parts of a config: variants by their names, axes by their types.

tyro types and explains the fields of a config as it stands. This is what comes before and after:
`--target cnn` changes which fields there are, and `--axes.known 10 100` has a value a word.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import tyro

from jaxmeter.experiment.config import Axes
from jaxmeter.experiment.serialization import ConfigError, declared, in_words, replaced, value_of
from jaxmeter.report.wording import plural

_T = TypeVar("_T")
_AXES = "axes."


class Option(NamedTuple):
    """One option of a command line, by the dotted name of a field, with its words."""

    name: str
    words: list[str]
    given: list[str]  # as it stood there


def split(arguments: Sequence[str]) -> tuple[list[str], list[Option]]:
    """What comes before the first option, and the options.

    >>> split(["sweep", "--target.batch-size=3", "--axes.seed", "-1", "2"])[1][1].words
    ['-1', '2']
    """
    before: list[str] = []
    options: list[Option] = []
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            options.append(Option(name.replace("-", "_"), [value] if equals else [], [word]))
        elif options:
            options[-1].words.append(word)
            options[-1].given.append(word)
        else:
            before.append(word)
    return before, options


# --- Variants ------------------------------------------------------------------------------------


def chosen(base: _T, options: Sequence[Option]) -> tuple[_T, list[Option]]:
    """The config with the variants that options name, and the options that are left.

    A variant that the config has there keeps the config's fields; another one has its defaults,
    and `tyro.MISSING` for a field without one.

    Raises:
      ConfigError: for a variant there is not.
    """
    left = list(options)
    while True:
        offered = choices(base)
        found = [option for option in left if option.name in offered]
        if not found:
            return base, left
        option = min(found, key=lambda o: o.name.count("."))  # what is outside decides what is in
        left.remove(option)
        hint, current = offered[option.name], value_of(base, option.name)[0]
        shown = f"--{option.name.replace('_', '-')}"
        if typing.get_origin(hint) is tuple:
            inner, members = typing.get_args(hint)[0], tuple(current)
            value: Any = tuple(_variant(word, inner, members, shown) for word in option.words)
        elif len(option.words) == 1:
            value = _variant(option.words[0], hint, (current,), shown)
        else:
            raise ConfigError(f"{shown} takes one of {_listed(hint)}.")
        base = replaced(base, option.name, value)


def choices(config: Any) -> dict[str, Any]:
    """Types of the fields that are one of several dataclasses, or tuples of such, by dotted name.

    >>> from jaxmeter.experiment import Config, Mlp
    >>> list(choices(Config(study="doc", seed=0, target=Mlp())))[:3]
    ['data', 'target', 'target.initial']
    """
    return dict(_choices(config, ""))


def _choices(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    kind: Any = type(config)
    for field, hint in declared(kind).items():
        value, name = getattr(config, field), f"{prefix}{field}"
        inside = [(name, hint, value)]
        if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (Ellipsis,):
            inner = typing.get_args(hint)[0]
            if _variants(inner):
                yield name, hint
            members = value if isinstance(value, tuple) else ()
            inside = [(f"{name}.{i}", inner, member) for i, member in enumerate(members)]
        for place, kind, one in inside:
            if _variants(kind):
                yield place, kind
            if dataclasses.is_dataclass(one):
                yield from _choices(one, f"{place}.")


def _variants(hint: Any) -> dict[str, Any]:
    """The types of a union with dataclasses by the words for them; empty for other types.

    >>> from jaxmeter.experiment.config import AnyTarget
    >>> list(_variants(AnyTarget))
    ['target-file', 'mlp', 'cnn', 'alex-net']
    """
    members = typing.get_args(hint) if _is_union(hint) else ()
    # A Protocol takes types that others write, for which there is no word.
    members = tuple(m for m in members if not getattr(m, "_is_protocol", False))
    kinds: list[Any] = [m for m in members if dataclasses.is_dataclass(m) or m is type(None)]
    if len(kinds) < len(members) or not any(map(dataclasses.is_dataclass, kinds)):
        return {}
    return {"none" if kind is type(None) else _word(kind.__name__): kind for kind in kinds}


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _word(text: str) -> str:
    """A name as a word of a command line: "ClassWise" and "class wise" as "class-wise"."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", text)
    return re.sub(r"[^a-z0-9]+", "-", apart.lower()).strip("-")


def _listed(hint: Any) -> str:
    return ", ".join(_variants(hint))


def _variant(word: str, hint: Any, current: Sequence[Any], shown: str) -> Any:
    """The variant of that name: one of those there are now, or a new one with its defaults."""
    offered, wanted = _variants(hint), _word(word)
    named = {_word(str(v.name)): v for v in current if hasattr(v, "name")}
    if wanted in named:
        return named[wanted]
    if wanted not in offered:
        words = [*dict.fromkeys([*offered, *named])]
        near = difflib.get_close_matches(wanted, words, n=3, cutoff=0.5)
        hint_text = f" The nearest: {', '.join(near)}." if near else ""
        raise ConfigError(f"{shown} {word}: it takes {', '.join(words)}.{hint_text}")
    kind = offered[wanted]
    same = [value for value in current if type(value) is kind]
    if len(same) > 1:
        raise ConfigError(
            f"{shown} {word}: the study has {len(same)} of them. Name the one that is meant: "
            f"{', '.join(_word(v.name) for v in same)}."
        )
    return same[0] if same else _new(kind)


def _new(kind: Any) -> Any:
    if kind is type(None):
        return None
    needed = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    return kind(**dict.fromkeys(needed, tyro.MISSING))


# --- Axes ----------------------------------------------------------------------------------------


def apart(options: Sequence[Option]) -> tuple[list[Option], list[Option]]:
    """The options that name axes, by their fields, and the others."""
    axes = [o._replace(name=o.name[len(_AXES) :]) for o in options if o.name.startswith(_AXES)]
    return axes, [option for option in options if not option.name.startswith(_AXES)]


def swept(base: Any, axes: Axes, given: Sequence[Option]) -> Axes:
    """The study's axes with the values that were given, in its order, new ones last.

    Raises:
      ConfigError: for a field there is not, a value of another type, or a study whose axes are a
        list of runs.
    """
    if not given:
        return axes
    if not isinstance(axes, Mapping) and len(axes):
        raise ConfigError(
            f"--axes.{given[0].name}: AXES of this study is a list of runs, not values to combine, "
            "so there is no axis to change. Change the list."
        )
    found: dict[str, Any] = dict(axes) if isinstance(axes, Mapping) else {}
    for option in given:
        current, hint = value_of(base, option.name)
        if not option.words:
            raise ConfigError(f"--axes.{option.name}: it takes a value or more.")
        shown = f"--axes.{option.name}"
        found[option.name] = tuple(_typed(word, hint, current, shown) for word in option.words)
    return found


def unaffected(axes: Axes, options: Sequence[Option]) -> None:
    """Refuses to change a field of BASE that every run of the sweep sets itself.

    Raises:
      ConfigError: naming what to say instead.
    """
    changes = (axes,) if isinstance(axes, Mapping) else axes
    names = {name for change in changes for name in change}
    for option in options:
        for axis in names:
            if option.name == axis or option.name.startswith(f"{axis}."):
                raise ConfigError(
                    f"--{option.name}: {axis} is an axis of this study, so BASE's value is not "
                    f"run. Give the axis other values: --axes.{axis} ..."
                )


def _typed(word: str, hint: Any, current: Any, shown: str) -> Any:
    """A word as a value of a field's type; the parts of a tuple have commas between them."""
    try:
        return _value(word, hint, current, shown)
    except LookupError:
        raise ConfigError(f"{shown} {word}: it takes {in_words(hint)}.") from None


def _value(word: str, hint: Any, current: Any, shown: str) -> Any:
    if dataclasses.is_dataclass(hint) or _variants(hint):
        if not _variants(hint):
            field = dataclasses.fields(hint)[0].name
            raise ConfigError(f"{shown} {word}: sweep one of its fields, e.g. {shown}.{field}.")
        value = _variant(word, hint, (current,), shown)
        fields = () if value is None else dataclasses.fields(value)
        lacking = [f.name for f in fields if getattr(value, f.name) is tyro.MISSING]
        if lacking:
            raise ConfigError(
                f"{shown} {word}: a {word} needs {', '.join(lacking)}, and an axis can only name "
                "variants whose fields are BASE's or defaults. Write the axis in AXES."
            )
        return value
    if _is_union(hint):
        for one in sorted(typing.get_args(hint), key=lambda kind: kind is str):  # str takes all
            try:
                return _value(word, one, current, shown)
            except LookupError:
                continue
        raise LookupError(word)
    if typing.get_origin(hint) is tuple:
        words, inside = word.split(",") if word else [], typing.get_args(hint)
        hints = inside[:1] * len(words) if inside[1:] == (Ellipsis,) else inside
        if len(hints) != len(words) or any(map(_variants, hints)):
            raise LookupError(word)
        return tuple(_value(w, h, None, shown) for w, h in zip(words, hints, strict=True))
    return _simple(word, hint)


def _simple(word: str, hint: Any) -> Any:
    known: dict[str, Any] = {}
    if hint in (None, type(None)):
        known = {"none": None}
    elif hint is bool:
        known = {"true": True, "false": False}
    if known:
        return known[word.lower()]
    if typing.get_origin(hint) is Literal:
        return {str(one): one for one in typing.get_args(hint)}[word]
    if hint in (int, float, str, Path):
        try:
            return hint(word)
        except ValueError:
            pass
    raise LookupError(word)


# --- Help ----------------------------------------------------------------------------------------


def help_of_variants(base: Any) -> str:
    """What can be said of variants, for a command's help."""
    lines = []
    for name, hint in choices(base).items():
        many = typing.get_origin(hint) is tuple
        inner = typing.get_args(hint)[0] if many else hint
        if many or not re.search(r"\.\d+$", name):  # members of a tuple are as the tuple says
            words = "|".join(_variants(inner))
            lines.append(f"--{name.replace('_', '-')} {words}{' ...' if many else ''}")
    if not lines:
        return ""
    return (
        f"Variants are chosen by name: {'; '.join(lines)}. One that BASE has there keeps BASE's "
        "fields, another has its defaults. Its own fields are given beside it, and this help shows "
        "them if it is asked for with the variant, as in --target cnn --help."
    )


def help_of_axes(axes: Axes) -> str:
    """What can be said of axes, for a command's help."""
    if not isinstance(axes, Mapping) and len(axes):
        return f"AXES is a list of {len(axes)} runs."
    named = dict(axes) if isinstance(axes, Mapping) else {}
    names = ", ".join(
        f"{name} ({plural(len(values), 'value')})" if isinstance(values, Sequence) else name
        for name, values in named.items()
    )
    return (
        f"AXES: {names or 'none'}. Any field can be an axis, or have other values: --axes.seed 0 1 "
        "2, --axes.target.widths 32 64,32 (a tuple's parts with commas), --axes.target mlp cnn."
    )
