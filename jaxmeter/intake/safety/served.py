"""The parts of a SavedModel that opening it needs; nothing else is handed to TensorFlow.

A SavedModel may have functions for many purposes: training, saving, other signatures. TensorFlow
builds them all when it loads a folder, runs some (what creates, fills, saves and restores an
object, found by the names of attributes that the file gives), and computes what it takes for
constant inside the others, reading files if their operations do. So a graph is made of what is
needed alone, and all that it holds can be looked at.
"""

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError
from tensorflow.core.framework import node_def_pb2, variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_object_graph_pb2

from jaxmeter.intake.keras import internals

# What TensorFlow calls of an object that holds something outside the graph, a table for example.
_OF_RESOURCES = {"_create_resource", "_initialize", "_destroy_resource"}
_DEFAULT_SIGNATURES = ("serving_default", "serve")
# What a graph of TensorFlow 1 is made ready with: its variables, and what is run before its use.
_VARIABLES = (
    *("variables", "local_variables", "metric_variables", "model_variables"),
    *("trainable_variables", "moving_average_variables", "concatenated_variables"),
    "trainable_resource_variables",
)
_READYING = ("saved_model_main_op", "legacy_init_op", "table_initializer")
_READYING_SIGNATURE = "__saved_model_init_op"


def served(meta: meta_graph_pb2.MetaGraphDef) -> meta_graph_pb2.MetaGraphDef:
    """What it takes to call the function that serves a model; all signatures if none is it."""
    if not meta.HasField("object_graph_def"):
        return _of_graph(meta)
    nodes = meta.object_graph_def.nodes
    held = {ref.node_id for ref in nodes[0].children if ref.local_name == "signatures"}
    keys = _chosen(ref.local_name for number in held for ref in nodes[number].children)
    starts = [r.node_id for number in held for r in nodes[number].children if r.local_name in keys]
    kept, names = _reached(meta, starts)
    found = _with(meta, {*kept, *held}, names)
    objects = found.object_graph_def.nodes
    ways = _ways(meta, {number for number in kept if not _is_function(nodes[number])})
    for number, node in enumerate(nodes):
        for ref in node.children:
            if (
                (number == 0 and ref.local_name == "signatures")
                or (number in held and ref.local_name in keys)
                or (_holds_resource(node) and number in kept and ref.local_name in _OF_RESOURCES)
                or (ref.node_id in ways and number in ways and not _is_function(node))
            ):
                objects[number].children.append(ref)
    return found


def of_layers(meta: meta_graph_pb2.MetaGraphDef) -> meta_graph_pb2.MetaGraphDef:
    """What tf_keras may call when it revives a model: all but its signatures."""
    nodes = meta.object_graph_def.nodes
    edges = {
        number: [
            ref
            for ref in node.children
            if not (number == 0 and ref.local_name == "signatures") and not _is_function(node)
        ]
        for number, node in enumerate(nodes)
    }
    kept: set[int] = set()
    waiting = [0]
    while waiting:
        number = waiting.pop()
        if number not in kept:
            kept.add(number)
            waiting += [ref.node_id for ref in edges[number]]
            waiting += [slot.slot_variable_node_id for slot in nodes[number].slot_variables]
    kept, names = _reached(meta, kept)
    found = _with(meta, kept, names)
    for number in kept:
        copy = found.object_graph_def.nodes[number]
        copy.children.extend(ref for ref in edges[number] if ref.node_id in kept)
        copy.slot_variables.extend(nodes[number].slot_variables)
    return found


def operations(meta: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    """All operations in a graph and its functions.

    Not those with which a graph of TensorFlow 1 reads its variables: what is run for that alone,
    and takes the name of the file from the loader.
    """
    functions = {function.signature.name for function in meta.graph_def.library.function}
    nodes = {node.name: node for node in meta.graph_def.node}
    run = set(_ancestors(nodes, _starts(meta)))
    fed = _output(meta.saver_def.filename_tensor_name)
    outer = [
        node
        for node in meta.graph_def.node
        if node.name in run or node.op != "RestoreV2" or _output(node.input[0]) != fed
    ]
    inner = [node for function in meta.graph_def.library.function for node in function.node_def]
    for node in (*outer, *inner):
        # A function that has an operation's name might be taken for it.
        if node.op not in functions or internals.is_operation(node.op):
            yield node.op


# --- graphs of objects --------------------------------------------------------------------------


def _chosen(keys: Iterable[str]) -> set[str]:
    """The signature that is served; all where that is not said."""
    found = set(keys)
    return next(({key} for key in _DEFAULT_SIGNATURES if key in found), found)


def _is_function(node: saved_object_graph_pb2.SavedObject) -> bool:
    return node.WhichOneof("kind") in ("function", "bare_concrete_function")


def _holds_resource(node: saved_object_graph_pb2.SavedObject) -> bool:
    return node.WhichOneof("kind") == "resource"


def _reached(meta: meta_graph_pb2.MetaGraphDef, starts: Iterable[int]) -> tuple[set[int], set[str]]:
    """The objects that some need, themselves among them, and the functions that these may call."""
    graph = meta.object_graph_def
    functions = {f.signature.name: f.node_def for f in meta.graph_def.library.function}
    kept: set[int] = set()
    names: set[str] = set()
    waiting = list(starts)
    while waiting:
        number = waiting.pop()
        if number in kept:
            continue
        kept.add(number)
        node = graph.nodes[number]
        waiting += [ref.node_id for ref in node.dependencies]
        for pair in node.saveable_objects.values():
            waiting += [pair.save_function, pair.restore_function]
        if _holds_resource(node):
            waiting += [r.node_id for r in node.children if r.local_name in _OF_RESOURCES]
        calls = [
            *node.function.concrete_functions,
            node.bare_concrete_function.concrete_function_name,
            node.captured_tensor.concrete_function,
        ]
        while calls:
            name = calls.pop()
            if name in functions and name not in names:
                names.add(name)
                calls += [called for inner in functions[name] for called in _calls(inner)]
                if name in graph.concrete_functions:
                    waiting += graph.concrete_functions[name].bound_inputs
    return kept, names


def _ways(meta: meta_graph_pb2.MetaGraphDef, ends: set[int]) -> set[int]:
    """The objects over which these are found: checkpoints know a variable by its place."""
    above: dict[int, list[int]] = {}
    for number, node in enumerate(meta.object_graph_def.nodes):
        if not _is_function(node):
            for ref in node.children:
                above.setdefault(ref.node_id, []).append(number)
    found: set[int] = set()
    waiting = list(ends)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += above.get(number, [])
    return found


def _with(
    meta: meta_graph_pb2.MetaGraphDef, kept: set[int], names: set[str]
) -> meta_graph_pb2.MetaGraphDef:
    """A graph of these objects and functions, without what leads from one object to another.

    Objects have the numbers they had, because they know each other by them; in the place of those
    that are left out is an object that has nothing.
    """
    found = meta_graph_pb2.MetaGraphDef(asset_file_def=meta.asset_file_def)
    found.meta_info_def.CopyFrom(meta.meta_info_def)
    found.meta_info_def.ClearField("function_aliases")
    found.graph_def.versions.CopyFrom(meta.graph_def.versions)
    # Gradients that the functions register stay away: nothing is differentiated by TensorFlow.
    library = meta.graph_def.library.function
    found.graph_def.library.function.extend(f for f in library if f.signature.name in names)
    objects = found.object_graph_def
    constants = set()
    for number, node in enumerate(meta.object_graph_def.nodes):
        copy = objects.nodes.add()
        if number in kept:
            copy.CopyFrom(node)
            copy.ClearField("children")
            copy.ClearField("slot_variables")
            constants.add(node.constant.operation)
        else:
            copy.user_object.identifier = "_generic_user_object"
            copy.user_object.version.producer = copy.user_object.version.min_consumer = 1
    for name in names & set(meta.object_graph_def.concrete_functions):
        objects.concrete_functions[name].CopyFrom(meta.object_graph_def.concrete_functions[name])
    nodes = meta.graph_def.node
    found.graph_def.node.extend(n for n in nodes if n.op == "Const" and n.name in constants)
    return found


def _calls(node: node_def_pb2.NodeDef) -> Iterator[str]:
    """The functions that a node may call, its own operation among them."""
    yield node.op
    waiting = list(node.attr.values())
    while waiting:
        value = waiting.pop()
        for called in (value.func, *value.list.func):
            yield called.name
            waiting += called.attr.values()  # functions have functions as attributes


# --- graphs of TensorFlow 1 ---------------------------------------------------------------------


def _of_graph(meta: meta_graph_pb2.MetaGraphDef) -> meta_graph_pb2.MetaGraphDef:
    """What a graph of TensorFlow 1 needs to be loaded and to be run by its signature."""
    found = meta_graph_pb2.MetaGraphDef(asset_file_def=meta.asset_file_def)
    found.meta_info_def.CopyFrom(meta.meta_info_def)
    if meta.HasField("saver_def"):
        found.saver_def.CopyFrom(meta.saver_def)
    for key in _chosen(set(meta.signature_def) - {_READYING_SIGNATURE}) | {_READYING_SIGNATURE}:
        if key in meta.signature_def:
            found.signature_def[key].CopyFrom(meta.signature_def[key])
    for key in (*_VARIABLES, *_READYING, "saved_model_assets"):
        if key in meta.collection_def:
            found.collection_def[key].CopyFrom(meta.collection_def[key])
    nodes = {node.name: node for node in meta.graph_def.node}
    restoring = (meta.saver_def.restore_op_name, meta.saver_def.filename_tensor_name)
    kept = set(_ancestors(nodes, (*_starts(found), *restoring)))
    functions = {f.signature.name: f for f in meta.graph_def.library.function}
    names: set[str] = set()
    calls = [name for node in kept for name in _calls(nodes[node])]
    while calls:
        name = calls.pop()
        if name in functions and name not in names:
            names.add(name)
            calls += [called for node in functions[name].node_def for called in _calls(node)]
    found.graph_def.versions.CopyFrom(meta.graph_def.versions)
    found.graph_def.library.function.extend(functions[name] for name in sorted(names))
    found.graph_def.node.extend(node for node in meta.graph_def.node if node.name in kept)
    for node in found.graph_def.node:
        node.attr.pop("_class", None)  # it may ask to be beside a node that is left out
    return found


def _starts(meta: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    """The nodes of a graph that are run, or looked for, but for its saver's."""
    for signature in meta.signature_def.values():
        for info in (*signature.inputs.values(), *signature.outputs.values()):
            yield from _names(info)
    for key in (*_READYING, *_VARIABLES):
        yield from meta.collection_def[key].node_list.value if key in meta.collection_def else ()
    for key in set(_VARIABLES) & set(meta.collection_def):
        for packed in meta.collection_def[key].bytes_list.value:
            try:
                variable = variable_pb2.VariableDef.FromString(packed)
            except DecodeError:
                continue
            yield from (variable.variable_name, variable.initializer_name)
            yield from (variable.initial_value_name, variable.snapshot_name)
    for asset in meta.asset_file_def:
        yield from _names(asset.tensor_info)
    if "saved_model_assets" in meta.collection_def:
        for packed in meta.collection_def["saved_model_assets"].any_list.value:
            asset = meta_graph_pb2.AssetFileDef()
            if packed.Unpack(asset):
                yield from _names(asset.tensor_info)


def _names(info: meta_graph_pb2.TensorInfo) -> Iterator[str]:
    yield info.name
    sparse = info.coo_sparse
    yield from (sparse.values_tensor_name, sparse.indices_tensor_name)
    yield sparse.dense_shape_tensor_name
    for part in info.composite_tensor.components:
        yield from _names(part)


def _ancestors(nodes: dict[str, node_def_pb2.NodeDef], names: Iterable[str]) -> Iterator[str]:
    waiting, seen = list(names), set()
    while waiting:
        name = _node_name(waiting.pop())
        if name in nodes and name not in seen:
            seen.add(name)
            yield name
            waiting += nodes[name].input


def _node_name(value: str) -> str:
    return value.lstrip("^").partition(":")[0]


def _output(value: str) -> tuple[str, str]:
    """A value as its node and which of its outputs it is."""
    name, _, number = value.lstrip("^").partition(":")
    return name, number or "0"
