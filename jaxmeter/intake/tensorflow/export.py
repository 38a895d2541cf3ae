"""A model of TensorFlow's as plain values, which can go from one process to another."""

from typing import Any, NamedTuple

import numpy as np


class Export(NamedTuple):
    """A model as an ONNX graph and arrays.

    Attributes:
      model: the graph as an ONNX file's bytes; the data and the variables are its inputs.
      x: the graph's input that takes the records.
      params: trainable arrays by "layer/variable", in model order.
      state: the other variables likewise.
      constants: values of further inputs of the graph.
      feeds: name of a variable -> the graph's input that it is; not all need be in the graph.
      outputs: name of an output -> the graph's value, in the model's order.
      layers: the same of layers; None for a graph without layers.
      shape: of a record, None for an open dimension.
      dtype: of records, by NumPy's name.
      route: the way in, as in `Source`.
      versions: `(package, version)` pairs that mattered.
    """

    model: bytes
    x: str
    params: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    feeds: dict[str, str]
    outputs: dict[str, str]
    layers: dict[str, str] | None
    shape: tuple[int | None, ...]
    dtype: str
    route: str
    versions: tuple[tuple[str, str], ...]


class OutputFile(NamedTuple):
    """A folder that has all of a SavedModel's but its graph.

    Attributes:
      folder: the folder.
      graph: the descriptor of its `saved_model.pb`, empty and open for writing.
    """

    folder: str
    graph: int


_ARRAYS = ("params", "state", "constants")


def packed(export: Export) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """JSON and arrays."""
    head = export._asdict()
    arrays = {"model": np.frombuffer(head.pop("model"), np.uint8)}
    for part in _ARRAYS:
        arrays |= {f"{part}:{name}": np.asarray(v) for name, v in head.pop(part).items()}
    return {**head, "shape": [None if d is None else int(d) for d in export.shape]}, arrays


def unpacked(head: dict[str, Any], arrays: dict[str, np.ndarray]) -> Export:
    """The export that was packed. It may come from a stranger: its form is checked.

    Raises:
      ValueError: if it is not of the form that `packed` gives.
    """
    try:
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in _ARRAYS}
        for key, value in arrays.items():
            part, colon, name = key.partition(":")
            if colon:
                parts[part][name] = value
        found = Export(
            model=arrays["model"].tobytes(),
            **parts,
            x=head["x"],
            feeds=head["feeds"],
            outputs=head["outputs"],
            layers=head["layers"],
            shape=tuple(head["shape"]),
            dtype=head["dtype"],
            route=head["route"],
            versions=tuple((str(name), str(version)) for name, version in head["versions"]),
        )
        texts = [found.x, found.dtype, found.route]
        for names in (found.feeds, found.outputs, found.layers or {}):
            texts += [*names, *names.values()]
        sound = all(isinstance(text, str) for text in texts) and all(
            d is None or (isinstance(d, int) and d >= 0) for d in found.shape
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise ValueError("the process that opened the file gave something that is no model.")
    return found
