"""What an architecture as Keras wrote it may hold, and what of it would run code or reach out."""

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

# What runs code of the file's own when it is opened or called.
_FOREIGN = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"}
# What calls methods by names that the file gives.
_REFLECTING = {"ClassMethod", "InstanceMethod", "InstanceProperty", "__typespec__"}
_BRINGING = _FOREIGN | _REFLECTING
_READING = ("vocabulary", "vocabulary_file", "idf_weights", "filepath")
# Where Keras keeps what models are made of, and of that what holds functions. Kerases import any
# module that a config names, and Keras has functions that write, download and reconfigure.
_PARTS = (
    "layers|models|engine|activations|initializers|regularizers|constraints|optimizers|losses|"
    "metrics|dtype_policies|mixed_precision|random|ops|quantizers|legacy|premade_models"
)
_KERAS = r"(tensorflow\.(python\.)?)?(tf_)?keras(\.(_tf_keras|api|_v[12]|src|python|keras))*"
_MODULES = re.compile(rf"builtins|{_KERAS}(\.({_PARTS})(\.\w+)*)?")
_OF_FUNCTIONS = re.compile(
    rf"builtins|{_KERAS}\.(activations|initializers|regularizers|constraints|losses|metrics|ops)"
    r"(\.\w+)*"
)
# TensorFlow functions that a Keras 2 config may name: arrays in, arrays out.
_FUNCTIONS = re.compile(
    r"(compat\.v1\.)?((math|nn|linalg|image|signal|__operators__|keras\.backend)\.)?[a-z_0-9]+"
)
_EFFECTS = re.compile(
    r"(.*\.)?(print\w*|py_func\w*|numpy_function|function|\w*load\w*|init_scope|device|group|gradients"
    r"|(set|clear|reset|enable|disable|manual)_\w+|\w*session\w*|run_\w+|\w*graph\w*|wrap_\w+)"
)


def check_config(config: Any, what: str, trust: bool, custom: Container[str] = ()) -> None:
    """Refuses architectures whose layers bring code with them, or reach outside of Keras."""
    if trust:
        return
    check_layers(config, what)
    if strange := strange_parts(config, custom):
        raise ValueError(f"{what} {unknown_advice(strange)}")


def check_layers(config: Any, what: str) -> None:
    """Refuses layers that bring code with them, read files or call what has effects."""
    foreign = dict(_foreign(config))
    if foreign:
        listing = ", ".join(f"{name!r} ({kind})" for name, kind in foreign.items())
        raise ValueError(
            f"{what} has layers that run Python code from the file: {listing}. Opening it could do "
            "anything on this machine, so it is refused. If you trust who wrote it, pass "
            "trust=True."
        )
    for part in _dicts(config):
        kind, inner = part.get("class_name"), part.get("config")
        inner = inner if isinstance(inner, dict) else {}
        name = inner.get("name", part.get("name", "?"))
        for key in _READING:
            if isinstance(inner.get(key), str):
                raise ValueError(
                    f"{what}: its layer {name!r} ({kind}) reads the file {inner[key]!r}. A model "
                    "that reaches for other files is refused; save it without its text layers."
                )
        called = str(inner.get("function"))
        if kind == "TFOpLambda" and (
            not _FUNCTIONS.fullmatch(called) or _EFFECTS.fullmatch(called)
        ):
            raise ValueError(
                f"{what}: its layer {name!r} calls tf.{called}, which does more than compute: "
                "refused. If you trust who wrote it, pass trust=True."
            )


def strange_parts(config: Any, custom: Container[str]) -> dict[str, str]:
    """Layers and functions that come from elsewhere than Keras, by name -> "module.class"."""
    strange: dict[str, str] = {}
    for part in _dicts(config):
        kind, inner = part.get("class_name"), part.get("config")
        function = str(inner) if kind == "function" else ""
        if isinstance(kind, str) and not _is_of_keras(part, function or kind, custom):
            named = inner if isinstance(inner, dict) else part
            name = function or str(named.get("name", part.get("name", "?")))
            strange[name] = f"{part.get('module')}.{function or kind}"
    return strange


def unknown_advice(unknown: Mapping[str, str]) -> str:
    """What to do about layers (or functions) whose classes no Keras has: name -> class."""
    listing = ", ".join(f"{name!r} ({kind})" for name, kind in unknown.items())
    kinds = {kind.rpartition(".")[2].rpartition(">")[2] for kind in unknown.values()}
    given = ", ".join(f'"{kind}": ...' for kind in sorted(kinds))
    return (
        f"has layers or functions that no Keras has: {listing}. Nothing is imported because a file "
        f"says so. If they are the author's own, pass what they are by name, custom_objects="
        f"{{{given}}}: classes that take the arguments in the file."
    )


def op_layers(config: Any) -> list[Any]:
    """What TensorFlow's operations in a config are: their node definitions as Keras wrote them."""
    nodes = (part.get("config") for part in _dicts(config) if _bare(part) == "TensorFlowOpLayer")
    return [node.get("node_def") for node in nodes if isinstance(node, dict)]


def _bare(part: dict[str, Any]) -> str:
    """A class's own name: of "layers.Lambda" and "Package>Lambda" it is "Lambda"."""
    return re.split(r"[.>]", str(part.get("class_name")))[-1]


def _is_of_keras(part: dict[str, Any], name: str, custom: Container[str]) -> bool:
    """Whether a part of a config is in Keras, or at hand; one without a module is looked up."""
    names = (name, part.get("registered_name"))
    if any(isinstance(n, str) and (n in custom or n.split(">")[-1] in custom) for n in names):
        return True
    module = part.get("module")
    if module is None or "config" not in part:
        return True
    if not isinstance(module, str) or "." in name:
        return False
    is_function = part.get("class_name") == "function" or name[:1].islower()
    return bool((_OF_FUNCTIONS if is_function else _MODULES).fullmatch(module))


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


def _foreign(config: Any, owner: str = "?") -> Iterator[tuple[str, str]]:
    """Names and kinds of the layers in a config that bring code with them."""
    if isinstance(config, dict):
        inner = config.get("config")
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            owner = inner["name"]
        names = (_bare(config), config.get("registered_name"))
        if kind := next((n for n in names if isinstance(n, str) and n in _BRINGING), None):
            yield owner, str(kind)
            return
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _foreign(item, owner)
