"""What an architecture as Keras wrote it may hold: only what is on the list of what computes."""

import builtins
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxmeter.intake.safety import allowlist

_KERAS = r"(tf_)?keras(\.(_tf_keras|api|_v[12]|src|python|keras))*"


def _of(*rooms: str, top: bool = False) -> re.Pattern[str]:
    """Keras' modules of some kind, by their paths in any Keras; `top` is the package itself.

    Not their tests, which are modules too and do what tests do when they are imported.
    """
    below = rf"\.({'|'.join(rooms)})(\.(?!\w*_test\b)\w+)*"
    return re.compile(rf"{_KERAS}({below}){'?' if top else ''}")


# TensorFlow's own initialisers, which tf_keras' EfficientNetV2 has.
_TF_INITIALIZERS = re.compile(r"tensorflow\.python\.ops\.init_ops(_v2)?")

# Where Keras has what is on the list. It imports any module that a config names, so a name counts
# only together with a module that is its own.
_CLASSES = (
    (
        allowlist.LAYERS | allowlist.OP_LAYERS,
        _of(
            *("layers", "models", "engine", "legacy", "premade_models", "feature_column"),
            *("experimental", "applications"),
            top=True,
        ),
    ),
    (allowlist.OPERATIONS, _of("ops", "activations")),
    (allowlist.COLUMNS, _of("feature_column")),
    (allowlist.INITIALIZERS, _of("initializers")),
    (allowlist.INITIALIZERS, _TF_INITIALIZERS),
    (allowlist.REGULARIZERS, _of("regularizers")),
    (allowlist.CONSTRAINTS, _of("constraints")),
    (allowlist.POLICIES, _of("dtype_policies", "mixed_precision", "quantizers", top=True)),
    (allowlist.GENERATORS, _of("random")),
    (allowlist.OPTIMIZERS, _of("optimizers", "mixed_precision")),
    (allowlist.LOSSES, _of("losses")),
    (allowlist.METRICS, _of("metrics")),
)
_FUNCTIONS = (
    (allowlist.ACTIVATIONS, _of("activations", "layers")),
    (allowlist.OPERATION_FUNCTIONS, _of("ops")),
    (allowlist.INITIALIZERS, _of("initializers")),
    (allowlist.REGULARIZERS, _of("regularizers")),
    (allowlist.CONSTRAINTS, _of("constraints")),
    (allowlist.LOSSES, _of("losses")),
    (allowlist.METRICS, _of("metrics")),
)
# Fields whose text Keras looks up as a function or class, by how they end.
_WORDS = {
    "activation": allowlist.ACTIVATIONS,
    "initializer": allowlist.INITIALIZERS,
    "regularizer": allowlist.REGULARIZERS,
    "constraint": allowlist.CONSTRAINTS,
}
_FUNCTION_FIELD = re.compile(r"\w*_(fn|function|lambda|callable)(_type|_module)?")
# Losses and metrics made of a function say which; nothing calls it while a file is opened.
_WRAPPERS = allowlist.LOSSES | allowlist.METRICS
# What brings code, or calls methods by names that the file gives: custom objects cannot replace it.
_FOREIGN = frozenset(
    "Lambda __lambda__ TorchModuleWrapper TFSMLayer JaxLayer FlaxLayer ReloadedLayer ModuleWrapper "
    "ClassMethod InstanceMethod InstanceProperty __typespec__".split()
)
_DTYPE = re.compile(r"u?int\d{1,2}|b?float\d{1,2}\w*|complex\d{2,3}|bool|string|str")
_CONSTANT = "_CONSTANT_VALUE"  # how tf_keras marks an input of a layer that is no layer's output


class UnknownParts(ValueError):
    """A config's only fault: layers or functions that are neither Keras' nor at hand."""


class _Found(NamedTuple):
    """What a config holds that is not on the list: layer's name -> what of it.

    Attributes:
      code: classes and fields that bring code.
      reads: the class, and the file that it reads.
      calls: symbols of TensorFlow.
      constants: classes of layers that are called on nothing but constants.
      unknown: classes and functions.
    """

    code: dict[str, str]
    reads: dict[str, tuple[str, str]]
    calls: dict[str, str]
    constants: dict[str, str]
    unknown: dict[str, str]


def check_config(config: Any, what: str, trust: bool, custom: Mapping[str, Any]) -> None:
    """Refuses architectures with anything but what is known to compute, and `custom` objects.

    Args:
      config: as Keras wrote it, or several. How the outermost model was compiled may be anything,
        because nobody loads that.
      what: the file, for the message.
      trust: whether everything may pass.
      custom: classes and functions at hand, by name; None stands for a class that nobody has, and
        whose layer is made of something else.

    Raises:
      UnknownParts: if all that is wrong are classes and functions that Keras would not find.
      ValueError: if there is more.
    """
    if trust:
        return
    found = _Found({}, {}, {}, {}, {})
    for part in config if isinstance(config, list) else [config]:
        kept, compiled = _without_compilation(part)
        _walk(kept, "?", custom, found)
        # Values are decoded wherever they are.
        for value in _dicts(compiled):
            if value.get("class_name") in allowlist.VALUES:
                _check_part(value, "compilation", custom, found)
    if found.code:
        raise ValueError(
            f"{what} has layers that run Python code from the file: {_listing(found.code)}. "
            "Opening it could do anything on this machine, so it is refused. If you trust who "
            "wrote it, pass trust=True."
        )
    for name, (kind, file) in found.reads.items():
        raise ValueError(
            f"{what}: its layer {name!r} ({kind}) reads the file {file!r}. A model that reaches "
            "for other files is refused; save it without its text layers."
        )
    for name, symbol in found.calls.items():
        raise ValueError(
            f"{what}: its layer {name!r} calls {'tf.' + symbol!r}, which is not on the list of "
            "functions that only compute: refused. If you trust who wrote it, pass trust=True."
        )
    if found.constants:
        raise ValueError(
            f"{what} has layers that are called on constants alone, so that opening the file would "
            f"already run them: {_listing(found.constants)}. No model needs that, so it is "
            "refused. If you trust who wrote it, pass trust=True."
        )
    if found.unknown:
        raise UnknownParts(f"{what} {unknown_advice(found.unknown)}")


def unknown_advice(unknown: Mapping[str, str]) -> str:
    """What to do about layers (or functions) whose classes no Keras has: name -> class."""
    kinds = {kind.rpartition(".")[2].rpartition(">")[2] for kind in unknown.values()}
    given = ", ".join(f'"{kind}": ...' for kind in sorted(kinds))
    return (
        f"has layers or functions that no Keras has, or that are not known to be harmless: "
        f"{_listing(unknown)}. Nothing is imported because a file says so. If they are the "
        f"author's own, pass what they are by name, custom_objects={{{given}}}: classes that take "
        "the arguments in the file. If they are Keras' and you trust who wrote the file, pass "
        "trust=True."
    )


def without_compilation(config: Any) -> Any:
    """A config without how the outermost model was compiled, which an audit does not need."""
    return _without_compilation(config)[0]


def _without_compilation(config: Any) -> tuple[Any, list[Any]]:
    """The same, and what was left out."""
    keys = ("compile_config", "training_config")
    if not isinstance(config, dict):
        return config, []
    kept = {key: value for key, value in config.items() if key not in keys}
    return kept, [config[key] for key in keys if key in config]


def _listing(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name!r} ({kind})" for name, kind in found.items())


# --- the walk -----------------------------------------------------------------------------------


def _walk(
    config: Any, owner: str, custom: Mapping[str, Any], found: _Found, in_call: bool = False
) -> None:
    """Looks at every part of a config, whatever holds it; `in_call` among a call's arguments."""
    if isinstance(config, list):
        for item in config:
            _walk(item, owner, custom, found, in_call)
    if not isinstance(config, dict):
        return
    inner = config.get("config")
    name = inner.get("name") if isinstance(inner, dict) else config.get("name")
    owner = name if isinstance(name, str) else owner
    if isinstance(config.get("class_name"), str):
        _check_part(config, owner, custom, found)
    for key, value in inner.items() if isinstance(inner, dict) else ():
        if key in allowlist.FILES and isinstance(value, str):
            found.reads[owner] = (str(config.get("class_name")), value)
    nodes = config.get("inbound_nodes")
    # Calls within calls are none, and to look for tensors in each would take the square of time.
    if isinstance(nodes, list) and not in_call and not all(map(_has_tensor, nodes)):
        found.constants[owner] = str(config.get("class_name"))
    for key, value in config.items():
        _walk(value, owner, custom, found, in_call or key == "inbound_nodes")


def _check_part(part: dict[str, Any], owner: str, custom: Mapping[str, Any], found: _Found) -> None:
    """Looks at what a part of a config names: a class, a function, or a value."""
    kind, registered, module = part["class_name"], part.get("registered_name"), part.get("module")
    names = (kind, registered, part.get("config") if kind == "function" else None)
    if foreign := next((n for n in map(_bare, names) if n in _FOREIGN), None):
        found.code.setdefault(owner, foreign)  # not what is in it
    elif kind in allowlist.VALUES:
        if not _is_plain_value(part):
            found.unknown[owner] = kind
    elif kind == "function":
        name = part.get("config")
        if not (_is_custom_function(part, custom) or _is_function(name, registered, module)):
            found.unknown[str(name)] = _qualified(module, name)
    elif (own := _is_custom_class(part, custom)) or _is_class(kind, registered, module):
        # A custom class reads its own fields. But older Kerases go by class_name alone, and take
        # their Dense for "package>Dense".
        if not (own and kind in custom) and any(kind in names for names, _ in _CLASSES):
            _check_fields(part, owner, custom, found)
    else:
        found.unknown[owner] = _qualified(module, kind)


def _check_fields(
    part: dict[str, Any], owner: str, custom: Mapping[str, Any], found: _Found
) -> None:
    """Looks at a known class's fields that name, or hold, a function."""
    kind, fields = part["class_name"], part.get("config")
    for key, value in fields.items() if isinstance(fields, dict) else ():
        if value is None:
            continue
        words = _WORDS.get(key.rpartition("_")[2])
        if kind in allowlist.OP_LAYERS and key == "function":
            if not _is_symbol(value):
                found.calls[owner] = str(value)
        elif key in allowlist.FUNCTION_FIELDS or _FUNCTION_FIELD.fullmatch(key):
            if not (key == "fn" and kind in _WRAPPERS):
                found.code.setdefault(owner, f"{kind}, {key}")
        elif words is not None and isinstance(value, str):
            if value not in words and _own(value, custom) is None:
                found.unknown[value] = value


def _has_tensor(node: Any) -> bool:
    """Whether an argument of a call comes from a layer, so that the call waits for data.

    A list [layer, call, output] stands for a layer's output, and [_CONSTANT, -1, value] for a
    constant; but a tuple never does. Keras 3 has parts for outputs.
    """
    in_tuple = isinstance(node, dict) and node.get("class_name") == "__tuple__"
    if isinstance(node, dict):
        if node.get("class_name") == "__keras_tensor__":
            return True
        node = node.get("items") if in_tuple else list(node.values())
    if not isinstance(node, list):
        return False
    if not in_tuple and len(node) in (3, 4) and isinstance(node[0], str):
        return node[0] != _CONSTANT or _has_tensor(node[3:])
    return any(_has_tensor(item) for item in node)


# --- names --------------------------------------------------------------------------------------


def _is_class(kind: str, registered: Any, module: Any) -> bool:
    """Whether a class is Keras', on the list, and looked for where Keras has it.

    A few of Keras' own are registered as if they were custom, and are on the list as such.
    """
    if registered == f"Custom>{kind}":
        return _has_place(registered, module, _CLASSES)
    return registered in (None, kind) and _has_place(kind, module, _CLASSES)


def _is_function(name: Any, registered: Any, module: Any) -> bool:
    """The same for a function; of older Kerases, module and registered name say nothing of it."""
    if not isinstance(name, str) or registered not in (None, "function", name):
        return False
    if module == "builtins":  # where a function's own class is
        return not hasattr(builtins, name) and any(name in names for names, _ in _FUNCTIONS)
    return _has_place(name, module, _FUNCTIONS)


def _has_place(name: str, module: Any, kinds: Iterable[tuple[frozenset[str], Any]]) -> bool:
    """Whether a name is on the list, and its module, if it says one, is the name's."""
    places = [modules for names, modules in kinds if name in names]
    if module is None:
        return bool(places)
    return isinstance(module, str) and any(modules.fullmatch(module) for modules in places)


def _qualified(module: Any, name: Any) -> str:
    return str(name) if module is None else f"{module}.{name}"


def _is_custom_class(part: dict[str, Any], custom: Mapping[str, Any]) -> bool:
    """Whether a class is at hand by every name that a Keras may look it up by.

    Older ones go by class_name. Newer ones go by registered_name if there is one, by class_name if
    the key is missing, and by the module if it is null.
    """
    kind, registered = part["class_name"], part.get("registered_name", part["class_name"])
    if not isinstance(registered, str) or not _is_own(registered, custom):
        return False
    own = _own(registered, custom)
    if own is None and part.get("module") is not None:
        return False
    return _is_own(kind, custom) or kind in (_last(registered), getattr(own, "__name__", None))


def _is_custom_function(part: dict[str, Any], custom: Mapping[str, Any]) -> bool:
    """Whether a function is at hand by its name, which all Kerases look up first."""
    name, registered = part.get("config"), part.get("registered_name")
    if not isinstance(name, str) or registered not in (None, "function", name, _last(name)):
        return False
    if _own(name, custom) is not None:
        return True
    # Keras 3.6 and older left the package out, and newer ones look for the name in any.
    packaged = any(n.endswith(f">{name}") for n in custom)
    return part.get("module") == "builtins" and packaged and not hasattr(builtins, name)


def _is_own(name: str, custom: Mapping[str, Any]) -> bool:
    return name in custom or _last(name) in custom


def _own(name: str, custom: Mapping[str, Any]) -> Any:
    """What a name stands for, with or without its package."""
    return custom.get(name, custom.get(_last(name)))


def _is_symbol(name: Any) -> bool:
    """Whether a function of TensorFlow is on the list."""
    return isinstance(name, str) and (
        name.removeprefix("compat.v1.") in allowlist.SYMBOLS or name in allowlist.OLD_SYMBOLS
    )


def _is_plain_value(part: dict[str, Any]) -> bool:
    """Whether a value is of a type that holds numbers or text."""
    inner = part.get("config")
    dtypes = [inner["dtype"]] if isinstance(inner, dict) and "dtype" in inner else []
    tensors = part.get("tensors")
    dtypes += (
        [t[0] for t in tensors if isinstance(t, list) and t] if isinstance(tensors, list) else []
    )
    spec = part["class_name"] != "TypeSpec" or part.get("type_spec") in allowlist.SPECS
    return spec and all(isinstance(d, str) and _DTYPE.fullmatch(d) for d in dtypes)


def _last(name: str) -> str:
    """A name without its package: of "package>Name" it is "Name"."""
    return name.rpartition(">")[2]


def _bare(name: Any) -> str:
    """A class's own name: of "layers.Lambda" and "Package>Lambda" it is "Lambda"."""
    return re.split(r"[.>]", str(name))[-1]


# --- questions about a config -------------------------------------------------------------------


def op_layers(config: Any) -> list[Any]:
    """What TensorFlow's operations in a config are: their node definitions as Keras wrote them."""
    nodes = (
        part.get("config")
        for part in _dicts(config)
        if _bare(part.get("class_name")) == "TensorFlowOpLayer"
    )
    return [node.get("node_def") for node in nodes if isinstance(node, dict)]


def unknown_classes(config: Any, known: Any) -> dict[str, str]:
    """Layers of classes that are not known: name -> class."""
    found: dict[str, str] = {}
    for part in _layers(config):
        kind, inner = part["class_name"], part["config"]
        if not known(kind, part.get("module"), part.get("registered_name")):
            name = inner.get("name") if isinstance(inner, dict) else None
            found[str(name or part.get("name") or f"layer {len(found) + 1}")] = str(kind)
    return found


def layers_with(config: Any, arguments: set[str]) -> dict[str, str]:
    """Layers that have some of these arguments: name -> class."""
    return {
        str(part["config"].get("name", "?")): part["class_name"]
        for part in _layers(config)
        if isinstance(part["config"], dict) and arguments & part["config"].keys()
    }


def _layers(config: Any) -> Iterator[dict[str, Any]]:
    """The layers of a model's config, nested ones too."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    if isinstance(layers, list):
        for layer in layers:
            if isinstance(layer, dict) and isinstance(layer.get("class_name"), str):
                if "config" in layer:
                    yield layer
                yield from _layers(layer)


def _dicts(config: Any) -> Iterator[dict[str, Any]]:
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _dicts(item)


def strings_in(config: Any) -> set[str]:
    """All texts in a config but its fields' names."""
    if isinstance(config, str):
        return {config}
    items = config.values() if isinstance(config, dict) else config
    found = items if isinstance(config, dict | list) else ()
    return {text for item in found for text in strings_in(item)}
