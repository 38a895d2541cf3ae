"""What is the same for Keras 3 models on every backend: names, input, outputs.

This module imports Keras; reach it through `jaxmeter.intake`, which sees to the backend first.
"""

from collections.abc import Iterator
from typing import Any

import jax
import keras

from jaxmeter.intake.keras import internals
from jaxmeter.intake.keras.forward import graph_of
from jaxmeter.intake.naming import Names, unique

_L = keras.layers


def layers_of(model: Any) -> dict[str, Any]:
    """The model's layers by name, in order; a nested model's stand before it, as "inner/dense"."""
    return unique(_layers(model))


def variables_of(model: Any, layers: dict[str, Any]) -> dict[str, Any]:
    """The model's variables as "layer/variable".

    Paths would not do: Keras' own lack their layers' names once a model comes from a file.
    """
    return unique(_variables(model, layers))


def trained_of(model: Any) -> set[int]:
    """Ids of the variables that were made to be trained, frozen later or not."""
    return {id(v) for p in internals.all_layers(model) for v in internals.trained_variables(p)}


def smallest_table(model: Any) -> int | None:
    """The size of the smallest embedding table, if there are any."""
    tables = [p.input_dim for p in internals.all_layers(model) if isinstance(p, _L.Embedding)]
    return min(tables, default=None)


def checked_input(model: Any) -> tuple[tuple[int | None, ...], str]:
    """Shape and dtype of a record, of a model with one input."""
    if not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built: it has no variables yet. Call it once on a "
            "batch of its data, or give it an Input, then load its weights."
        )
    inputs = getattr(model, "inputs", None)
    if inputs:
        if len(inputs) > 1:
            raise ValueError(
                f"the model {model.name!r} has {len(inputs)} inputs "
                f"({', '.join(x.name for x in inputs)}); a record here is one array. Wrap it in a "
                "function that takes one array apart and use jaxmeter.from_function."
            )
        shape, dtype = tuple(inputs[0].shape[1:]), str(inputs[0].dtype)
    else:
        built = internals.built_shapes(model)
        shapes = list(built.values())
        if len(shapes) != 1 or not all(d is None or isinstance(d, int) for d in shapes[0]):
            raise ValueError(
                f"the shape of a record is not known for {model.name!r}, a subclassed model built "
                f"with {built or None}. Call it once on one array, a batch of its data."
            )
        shape, dtype = tuple(shapes[0][1:]), "float32"
    if dtype == "string":
        raise ValueError(
            f"the model {model.name!r} takes text, and JAX has no strings. Save it without its "
            "TextVectorization or StringLookup layers and audit it on the token numbers."
        )
    return shape, str(jax.dtypes.canonicalize_dtype(dtype))


def outputs_of(model: Any, out: Any) -> dict[str, Any]:
    """What a model gave by output name: the keys of a dict, else Keras' names, else numbers."""
    found = [(path, leaf) for path, leaf in keras.tree.flatten_with_path(out) if leaf is not None]
    names = getattr(model, "output_names", None) or []
    if isinstance(out, dict) or len(names) != len(found):
        paths = [
            [p if isinstance(p, str) else f"output_{p + 1}" for p in path] for path, _ in found
        ]
        names = ["/".join(path) or "output" for path in paths]
    taken = Names()
    return {taken.free(name): leaf for name, (_, leaf) in zip(names, found, strict=True)}


def _layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        if isinstance(layer, _L.InputLayer):
            continue
        if graph_of(layer) is not None:
            yield from _layers(layer, f"{prefix}{layer.name}/")
        yield prefix + layer.name, layer


def _variables(model: Any, layers: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, layer in layers.items():
        if graph_of(layer) is None:
            yield from _owned(layer, name)
    yield from _owned(model, "")


def _owned(layer: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    seeds = [generator.state for generator in internals.seed_generators(layer)]
    own = (*internals.trained_variables(layer), *internals.other_variables(layer))
    for variable in (*own, *seeds):
        yield f"{prefix}/{variable.name}".lstrip("/"), variable
    for inner in internals.inner_layers(layer):
        yield from _owned(inner, f"{prefix}/{inner.name}")
