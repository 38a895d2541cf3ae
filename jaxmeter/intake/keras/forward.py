"""One forward pass of a Keras 3 model, operation by operation.

The model's graph is walked, so that one pass yields each layer's output and the logits before a
final softmax: in inference mode, or in training mode where a model like it is to be trained.
Nothing is set on the model: where an operation must differ from the caller's (no activation, no
cuDNN), a twin of it that shares its variables runs instead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import keras
from jax import Array

from jaxmeter.intake.heads import FinalLayer
from jaxmeter.intake.keras import internals

_L = keras.layers
_Functional: Any = internals.functional()
_ENDINGS = {
    keras.activations.softmax: "softmax",
    keras.ops.softmax: "softmax",
    jax.nn.softmax: "softmax",
    keras.activations.sigmoid: "sigmoid",
    keras.ops.sigmoid: "sigmoid",
    jax.nn.sigmoid: "sigmoid",
    keras.activations.linear: "linear",
    keras.activations.log_softmax: "linear",  # log p are logits: their softmax is p again
    keras.ops.log_softmax: "linear",
}
# What hands its input on unchanged in inference, and with it what the input ended in.
_NOISY = (_L.Dropout, _L.AlphaDropout, _L.GaussianDropout, _L.GaussianNoise)
_IDENTITIES = (_L.Identity, _L.ActivityRegularization, *_NOISY)
_ACTIVATED = (_L.Dense, _L.EinsumDense, _L.Conv1D, _L.Conv2D, _L.Conv3D)
_OPERATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "linear"}


class ForwardPass:
    """One forward pass, and what was seen on the way."""

    def __init__(self, names: dict[int, str], x: Array, training: bool = False):
        """A pass over `x` that keeps the outputs of the layers named, by id."""
        self.training = training
        self.layers: dict[str, Array] = {}
        self.output: Any = None
        self.takes_tokens = False  # an Embedding reads the input itself
        self._names, self._x = names, x
        self._endings: dict[
            int, tuple[str | None, Array, Array]
        ] = {}  # by id of the value they gave

    def final(self, value: Array) -> FinalLayer:
        """A value that this pass computed, with what it went through last if we know that."""
        ending, before, _ = self._endings.get(id(value), (None, value, value))
        return FinalLayer(value, before, ending)

    def walk(self, graph: Any, inputs: Any) -> Any:
        """Runs a graph of operations; its output, or list of outputs."""
        out = internals.run_graph(graph, inputs, lambda op: partial(self.call, op))
        return out[0] if isinstance(out, list | tuple) and len(out) == 1 else out

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs one operation in this pass's mode."""
        if internals.takes_training(op):
            kwargs["training"] = self.training
        inner = graph_of(op)
        given = {name for name, value in kwargs.items() if value is not None} - {"training"}
        if inner is not None and len(args) == 1 and not given:
            out = self.walk(inner, internals.standardized(inner, args[0]))
        else:
            out = self._call(op, *args, **kwargs)
        if (name := self._names.get(id(op))) is not None:
            self.layers[name] = jax.tree.leaves(out)[0]
        return out

    def _call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        op = _without_cudnn(op)
        x: Any = args[0] if args else None
        self.takes_tokens |= isinstance(op, _L.Embedding) and x is self._x
        ending = _ending(op, getattr(x, "ndim", 0))
        if kwargs.get("mask") is not None and isinstance(op, _L.Softmax):
            ending = None  # over what the mask leaves, so not the softmax of its input
        if self.training and (
            isinstance(op, _NOISY) or getattr(op, "activity_regularizer", None) is not None
        ):
            ending = None  # noise, or a loss of the output that a twin would take of its own
        if isinstance(op, (*_ACTIVATED, _L.TimeDistributed)) and ending in {"softmax", "sigmoid"}:
            bare, activation = _unactivated(op)
            x = bare(*args, **kwargs)
            out = activation(x)
        else:
            out = op(*args, **kwargs)
        if ending == "linear":
            x = out
        elif ending == "identity":
            ending, x, _ = self._endings.get(id(x), (None, x, out))
        if ending is not None:
            self._endings[id(out)] = (ending, x, out)  # holding `out` keeps its id from reuse
        return out


def graph_of(op: Any) -> Any | None:
    """The graph of a Functional or Sequential model whose `call` does nothing but run it."""
    if isinstance(op, keras.Sequential) and type(op).call is keras.Sequential.call:
        return internals.sequential_graph(op)
    return op if isinstance(op, _Functional) and type(op).call is _Functional.call else None


def runner(model: Any) -> Callable[[ForwardPass, Array], Any]:
    """How to run a model under a `ForwardPass`."""
    graph = graph_of(model)
    if graph is not None:
        return lambda seen, x: seen.walk(graph, x)
    own = vars(keras.Model(name="bare")).keys()
    held = {name: value for name, value in vars(model).items() if name not in own}

    def run(seen: ForwardPass, x: Array) -> Any:
        kwargs = {"training": seen.training} if internals.takes_training(model) else {}
        twin = _revised(model, **{name: _watched(value, seen) for name, value in held.items()})
        return type(model).call(twin, x, **kwargs)

    return run


class _Watched:
    """Stands in for a layer of a subclassed model while a `ForwardPass` looks on."""

    def __init__(self, layer: Any, seen: ForwardPass):
        self._layer, self._seen = layer, seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._seen.call(self._layer, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _watched(value: Any, seen: ForwardPass) -> Any:
    if isinstance(value, keras.Layer):
        return _Watched(value, seen)
    if isinstance(value, dict):
        return {key: _watched(item, seen) for key, item in value.items()}
    if type(value) in (list, tuple) or internals.is_tracked_list(value):
        return [_watched(item, seen) for item in value]
    return value


def _revised(op: Any, **attributes: Any) -> Any:
    """A twin sharing all of an operation's attributes and variables but those given."""
    twin = object.__new__(type(op))
    vars(twin).update(vars(op), **attributes)
    return twin


def _without_cudnn(op: Any) -> Any:
    """On GPUs Keras runs LSTM and GRU by cuDNN, through a JAX primitive that `vmap` refuses."""
    if isinstance(op, _L.LSTM | _L.GRU):
        return _revised(op, use_cudnn=False)
    if type(op) is _L.Bidirectional:
        forward, backward = _without_cudnn(op.forward_layer), _without_cudnn(op.backward_layer)
        return _revised(op, forward_layer=forward, backward_layer=backward)
    return op


def _is_identity(op: Any) -> bool:
    return type(op) is _L.Activation and op.activation is keras.activations.linear


def _unactivated(op: Any) -> tuple[Any, Callable[[Array], Array]]:
    """A layer without its activation, and that activation."""
    if isinstance(op, _L.TimeDistributed):
        bare, activation = _unactivated(op.layer)
        return _revised(op, layer=bare), activation
    return _revised(op, activation=keras.activations.linear), op.activation


def _ending(op: Any, rank: int) -> str | None:
    """What an operation ends in: a softmax, a sigmoid, nothing ("linear"), its own input.

    A softmax counts if it is over the last axis of an array of this rank, batch axis included.
    """
    if rank < 2:
        return None
    if isinstance(op, _IDENTITIES) or _is_identity(op):
        return "identity"
    if type(op) is _L.TimeDistributed:
        known = isinstance(op.layer, _ACTIVATED)
        return _ending(op.layer, rank - 1) if known else None
    kinds = (*_ACTIVATED, _L.Activation)
    if any(isinstance(op, kind) and type(op).call is kind.call for kind in kinds):
        activation = op.activation
        return _ENDINGS.get(activation) if callable(activation) else None
    name = type(op).__name__
    if internals.is_nn_operation(op) or type(op) is _L.Softmax:
        axis = getattr(op, "axis", -1)
        axes = list(axis) if isinstance(axis, list | tuple) else [axis]
        return _OPERATIONS.get(name) if axes in ([-1], [rank - 1]) else None
    return None
