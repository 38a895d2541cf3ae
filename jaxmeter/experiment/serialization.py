"""Configs as values: checked against their types, written down exactly, changed field by field."""

import dataclasses
import difflib
import functools
import importlib
import json
import math
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")
_TYPE, _PATH, _FLOAT = "is", "path", "float"
_PACKAGE = "jaxmeter"


class ConfigError(ValueError):
    """A config that cannot be used: a wrong type, an unknown name, or another version's."""


# --- Types ---------------------------------------------------------------------------------------


def checked(config: _T, name: str = "") -> _T:
    """The config with every field of its declared type, integers where floats belong as floats.

    Raises:
      ConfigError: for a field of another type, naming the field and the type.
    """
    changes = {}
    kind: Any = type(config)
    for field, hint in declared(kind).items():
        value = getattr(config, field)
        where = f"{name}.{field}" if name else field
        same = fitted(value, hint, where)
        if same is not value:
            changes[field] = same
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]


def declared(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields."""
    return _declared(kind)


@functools.cache
def _declared(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def fitted(value: Any, hint: Any, name: str) -> Any:
    """The value of a field as its declared type.

    Raises:
      ConfigError: if it is of another one.
    """
    fits, same = _fit(value, hint, name)
    if not fits:
        raise ConfigError(
            f"{name} is {value!r}, {_article(type(value).__name__)}; it takes {in_words(hint)}."
        )
    return same


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _fit(value: Any, hint: Any, name: str) -> tuple[bool, Any]:
    """Whether the value is of the type, and the value as that type."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True, value
    if origin in (typing.Union, types.UnionType):
        exact = [one for one in inside if isinstance(one, type) and type(value) is one]
        for one in (*exact, *inside):
            fits, same = _fit(value, one, name)
            if fits:
                return True, same
        return False, value
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inside), value
    if origin is tuple:
        return _fit_tuple(value, inside, name)
    if hint in (None, type(None)):
        return value is None, value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number, float(value) if number and type(value) is not float else value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is Path:
        return isinstance(value, str | PurePath), Path(value) if isinstance(value, str) else value
    if isinstance(hint, type) and isinstance(value, hint):
        known = dataclasses.is_dataclass(value) and not isinstance(value, type)
        return True, checked(value, name) if known else value
    return False, value


def _fit_tuple(value: Any, inside: tuple[Any, ...], name: str) -> tuple[bool, Any]:
    if not isinstance(value, tuple):
        return False, value
    hints = inside[:1] * len(value) if inside[1:] == (Ellipsis,) else inside
    if len(hints) != len(value):
        return False, value
    each = [
        _fit(item, hint, f"{name}.{i}")
        for i, (item, hint) in enumerate(zip(value, hints))  # noqa: B905
    ]
    if not all(fits for fits, _ in each):
        return False, value
    items = tuple(item for _, item in each)
    return True, value if all(a is b for a, b in zip(items, value, strict=True)) else items


def in_words(hint: Any) -> str:
    """A type in words."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, inside))
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin is tuple:
        return f"a tuple of ({', '.join('...' if i is Ellipsis else in_words(i) for i in inside)})"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


# --- Text ----------------------------------------------------------------------------------------


def to_json(config: Any) -> str:
    """The config as canonical JSON: equal configs, and only they, give equal text.

    Dataclasses carry their type by its public name and the value of every field, so that a default
    that changes gives another text; floats always a point or an exponent (in which Python's own
    repr is exact), tuples are arrays, paths are tagged.

    Raises:
      ConfigError: for a value that is none of these (a list, a dict, an array, NaN), or a type of
        jaxmeter that has no public name.

    >>> from jaxmeter import FitConfig
    >>> to_json(FitConfig())[:66]
    '{"batch_size":128,"epochs":25,"folds":5,"is":"jaxmeter:FitConfig",'
    """
    return json.dumps(plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """What `to_json` writes, as JSON's own types."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if math.isnan(value):
            raise ConfigError("a config holds NaN, which equals nothing, not even itself.")
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return {_PATH: value.as_posix()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {**fields, _TYPE: tag(type(value))}
    advice = " Use a tuple." if isinstance(value, list | set) else ""
    raise ConfigError(
        f"a config holds {value!r}, {_article(type(value).__name__)}, which has no exact text; "
        f"fields are numbers, strings, bools, None, paths, tuples and dataclasses of these.{advice}"
    )


def from_json(text: str) -> Any:
    """The config that `to_json` wrote; `from_json(to_json(c)) == c`.

    Raises:
      ConfigError: if the text is of another version: a type, or a field of it, that is not known
        here or is missing. Nothing is imported but jaxmeter's own modules.
    """
    try:
        return _value(json.loads(text))
    except (json.JSONDecodeError, TypeError) as error:
        raise ConfigError(f"this is not a config of jaxmeter: {error}") from error


def _value(found: Any) -> Any:
    if isinstance(found, list):
        return tuple(_value(item) for item in found)
    if not isinstance(found, dict):
        return found
    if found.keys() == {_PATH}:
        return Path(found[_PATH])
    if found.keys() == {_FLOAT}:
        return float(found[_FLOAT])
    kind = _kind(found.get(_TYPE))
    given = {name: _value(item) for name, item in found.items() if name != _TYPE}
    known = {field.name for field in dataclasses.fields(kind)}
    odd = [f"{n} is not known here" for n in sorted(given.keys() - known)]
    odd += [f"{n} is missing" for n in sorted(known - given.keys())]
    if odd:
        raise ConfigError(
            f"a {kind.__name__} of another version of jaxmeter or of the study: {', '.join(odd)}. "
            "Its results can be read; to compute, run the study as it is now."
        )
    return kind(**given)


def tag(kind: type) -> str:
    """A config's type as text, which moving its file does not change.

    A type of jaxmeter is the shortest public path at which the package exports it; any other is
    its module and name, a script by its file's name.

    Raises:
      ConfigError: for a type of jaxmeter that is not exported.

    >>> from jaxmeter.shadow import RecipeConfig
    >>> tag(RecipeConfig)
    'jaxmeter.shadow:RecipeConfig'
    """
    if _is_ours(kind.__module__):
        return _public_name(kind)
    return f"{_module_name(kind)}:{kind.__qualname__}"


@functools.cache
def _public_name(kind: type) -> str:
    for path, exported in _exported():
        names = [name for name, value in exported.items() if value is kind]
        if names:
            return f"{path}:{min(names)}"
    raise ConfigError(
        f"a config holds a {kind.__qualname__}, which is no public type of jaxmeter: no later "
        "version could tell what it was. Use a type that jaxmeter exports, or one of your own."
    )


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def _exported() -> Iterator[tuple[str, dict[str, Any]]]:
    """The package's public modules and what each exports, from short paths to long ones."""
    package = importlib.import_module(_PACKAGE)
    whole = _public(package)
    yield _PACKAGE, whole
    modules = {
        f"{_PACKAGE}.{name}": module
        for name, module in whole.items()
        if isinstance(module, types.ModuleType)
    }
    for path in sorted(modules):
        yield path, _public(modules[path])
    # These are public too, and take too long to import for `import jaxmeter` to bring them in.
    for path in (f"{_PACKAGE}.experiment", f"{_PACKAGE}.experiment.results"):
        yield path, _public(importlib.import_module(path))


def _public(module: types.ModuleType) -> dict[str, Any]:
    """What a module exports: what its __all__ names, or else what it defines."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return {name: getattr(module, name) for name in names}


def _module_name(kind: type) -> str:
    if kind.__module__ != "__main__":
        return kind.__module__
    return Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem


def _kind(text: Any) -> Any:
    module, _, name = str(text).partition(":")
    for kind in _ours(module, name) if _is_ours(module) else _theirs(module, name):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    raise ConfigError(
        f"a config has the type {text!r}, which is not known here: it belongs to another version "
        "of jaxmeter, or to a study that is not loaded."
    )


def _ours(module: str, name: str) -> Iterator[Any]:
    """What jaxmeter exports under a public path; nothing else of it can be had."""
    for path, exported in _exported():
        if path == module:
            yield exported.get(name)
            return


def _theirs(module: str, name: str) -> Iterator[Any]:
    """What has the name in the script that runs, if it is that, and in a loaded module."""
    main = sys.modules.get("__main__")
    places: list[Any] = [sys.modules.get(module)]
    if main is not None and Path(getattr(main, "__file__", None) or "__main__").stem == module:
        places.insert(0, main)
    for place in places:
        for part in name.split("."):
            place = getattr(place, part, None)
        yield place


# --- Fields by dotted names ----------------------------------------------------------------------


def flat(config: Any) -> dict[str, Any]:
    """Every field by its dotted name, as a number, a bool, None or a short string.

    A dataclass is its type's name, beside its own fields; a tuple of numbers or words is their
    list, any other tuple its members by position.

    >>> from jaxmeter import Learned
    >>> list(flat(Learned()).items())[:4]
    [('spec', None), ('name', 'white box'), ('config', 'FitConfig'), ('config.epochs', 25)]
    """
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if dataclasses.is_dataclass(value):
            found[name] = type(value).__name__
            for field in dataclasses.fields(value):
                add(f"{name}.{field.name}", getattr(value, field.name))
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            found[name] = ", ".join(str(getattr(v, "name", type(v).__name__)) for v in value)
            for i, item in enumerate(value):
                add(f"{name}.{i}", item)
        elif isinstance(value, tuple):
            found[name] = ", ".join(map(str, value))
        else:
            found[name] = value.as_posix() if isinstance(value, PurePath) else value

    for field in dataclasses.fields(config):
        add(field.name, getattr(config, field.name))
    return found


def replaced(config: _T, name: str, value: Any) -> _T:
    """The config with the field of that dotted name changed.

    Raises:
      ConfigError: for a name it does not have, with the nearest ones.
    """
    try:
        return _replaced(config, name.split("."), value)
    except LookupError:
        raise _unknown(config, name) from None


def _unknown(config: Any, name: str) -> ConfigError:
    """What to say of a field that there is not."""
    names = list(flat(config))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    near = near or [known for known in names if known.split(".")[-1] == name.split(".")[-1]][:3]
    hint = f" The nearest: {', '.join(near)}." if near else f" There are {', '.join(names)}."
    return ConfigError(f"there is no field {name!r} in the config.{hint}")


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(config, tuple):
        if not first.isdecimal() or int(first) >= len(config):
            raise LookupError(first)
        i = int(first)
        return (*config[:i], _replaced(config[i], rest, value), *config[i + 1 :])
    if not dataclasses.is_dataclass(config) or first not in declared(type(config)):
        raise LookupError(first)
    inner = _replaced(getattr(config, first), rest, value)
    return dataclasses.replace(config, **{first: inner})  # type: ignore[type-var]


def value_of(config: Any, name: str) -> tuple[Any, Any]:
    """The value and the declared type of the field of that dotted name.

    Raises:
      ConfigError: for a name it does not have, with the nearest ones.
    """
    whole: Any = config
    hint: Any = type(config)
    for part in name.split("."):
        if isinstance(config, tuple) and part.isdecimal() and int(part) < len(config):
            inside = typing.get_args(hint)
            hint = inside[0] if inside[1:] == (Ellipsis,) else inside[int(part)]
            config = config[int(part)]
        elif dataclasses.is_dataclass(config) and part in declared(type(config)):
            hint = declared(type(config))[part]
            config = getattr(config, part)
        else:
            raise _unknown(whole, name)
    return config, hint
