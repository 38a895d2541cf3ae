"""Keras models built from configs of strangers: what building takes is counted before it is taken.

A config of a few lines can ask for variables, layers' outputs and repetitions without end. Keras
makes variables, and draws their initial values, before it reads what the file has for them; so here
large ones are drawn afterwards, and only if the file had nothing.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import jax
import numpy as np

from jaxmeter.intake.keras import internals
from jaxmeter.intake.safety import budget, programs
from jaxmeter.jaxpr.shapes import PROBES

_QR = 8.0  # operations of an orthogonal matrix [m, n], by m n min(m, n)
_LATE = (
    2**14
)  # elements of a variable that is drawn once it is known that the file does not have it
_UNROLLED = 20 * budget.STEP  # each step of a recurrent layer that is written out
# Settings of layers that lengthen what NumPy computes, or Python repeats, at each call.
_LENGTHS = ("fft_length", "sequence_length", "frame_length", "num_mel_bins", "bins")


def foresee(config: Any) -> None:
    """Refuses a config whose layers would take too long to build, before Keras sees it.

    Raises:
      TooExpensive: naming what takes too long.
    """
    if isinstance(config, dict):
        inner = config.get("config")
        layers = inner.get("layers") if isinstance(inner, dict) else inner
        if config.get("class_name") == "Sequential" and isinstance(layers, list):
            # Keras builds a Sequential model anew for each layer that it adds.
            n = len(layers)
            budget.foresee(n * n / 4 * budget.STEP, f"building {n:,} layers one after the other")
        elif isinstance(layers, list):
            n = len(layers)
            budget.foresee(n * 2 * budget.STEP, f"building {n:,} layers")
        for name in _LENGTHS:
            value = config.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                budget.room(64 * value, f"a layer with {name} {value:,}")
                if name == "bins":
                    budget.foresee(value * budget.STEP, f"a layer with {value:,} bins")
        for value in config.values():
            foresee(value)
    elif isinstance(config, list):
        for value in config:
            foresee(value)


@contextmanager
def building(keras: Any) -> Iterator[Callable[[], None]]:
    """Counts what Keras makes while it builds a model and reads its weights.

    It gives a function, to be called once the weights are read: what the file had no value for has
    its initial one then.

    Raises:
      TooExpensive: inside, for what takes too much; it names the layer or the variable.
    """
    late: list[tuple[Any, Any, Any]] = []
    made: list[int] = []
    draw = getattr(keras.Variable, internals.DRAW)
    in_jax = keras.backend.backend() == "jax"

    def initialize(self: Any, initializer: Any) -> None:
        shape, dtype = internals.declared(self)
        made.append(math.prod(map(int, shape)) * (8 if "64" in dtype else 4))
        found = budget.current()
        if found is not None and 2 * sum(made) > found.max_bytes:  # the target has copies
            raise budget.refuse(
                f"its config asks for variables of {sum(made):,} bytes, far more than the file "
                f"could hold; {budget.advice('max_bytes')}"
            )
        large = math.prod(map(int, shape)) > _LATE
        if in_jax and large and not internals.is_distributed(self):
            blank = jax.numpy.broadcast_to(keras.ops.zeros((), dtype), shape)
            internals.set_first_value(self, blank)
            late.append((self, initializer, blank))
        else:
            _charge(keras, self, initializer)
            draw(self, initializer)

    def settle() -> None:
        for self, initializer, blank in late:
            if internals.value_held(self) is blank:
                _charge(keras, self, initializer)
                draw(self, initializer)

    def charged(plain: Callable[..., Any], operations: float, check: bool) -> Callable[..., Any]:
        @wraps(plain)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            budget.work(operations, "building its layers")
            if not check:
                return plain(self, *args, **kwargs)
            _check_call(keras, self, args, kwargs)
            out = plain(self, *args, **kwargs)
            _check_arrays(keras, self, "gives", out)
            return out

        call.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined] # Keras asks
        return call

    graphs, node = internals.node_maker()
    step = budget.STEP / 8  # twice in a call, as layer and as operation
    with ExitStack() as stack:
        for owner, name, new in (
            (keras.Variable, internals.DRAW, initialize),
            (keras.Layer, "__init__", charged(keras.Layer.__init__, step, False)),
            (keras.Layer, "__call__", charged(keras.Layer.__call__, step, True)),
            (keras.Operation, "__call__", charged(keras.Operation.__call__, step, True)),
            (graphs, node, charged(getattr(graphs, node), 2 * step, False)),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)
        yield settle


def _charge(keras: Any, variable: Any, initializer: Any) -> None:
    """Charges drawing a variable: some initialisers decompose matrices."""
    what = f"drawing the variable {variable.path!r}"
    shape, dtype = internals.declared(variable)
    if keras.backend.backend() != "jax":  # where to trace an initialiser would be to run it
        size, columns = math.prod(shape), [1, *shape][-1]
        decomposes = isinstance(initializer, keras.initializers.Orthogonal)
        budget.work(
            100 * size + decomposes * _QR * size * min(columns, size // max(columns, 1)), what
        )
        return
    try:
        with keras.StatelessScope():
            jaxpr = jax.make_jaxpr(lambda: initializer(shape, dtype=dtype))()
    except Exception:  # of a class of one's own, which does what it does
        budget.work(100 * math.prod(shape), what)
    else:
        programs.charge(what, jaxpr.jaxpr)


def _check_call(keras: Any, op: Any, args: Any, kwargs: Any) -> None:
    """Refuses a call on what is too large, or that repeats itself too often, before it is made."""
    _check_arrays(keras, op, "takes", (args, kwargs))
    if getattr(op, "unroll", False) and args and len(getattr(args[0], "shape", ())) > 2:
        steps = args[0].shape[1]
        if isinstance(steps, int):
            budget.work(steps * _UNROLLED, f"the layer {op.name!r}, {steps:,} steps unrolled,")
    if type(op).__name__.startswith("Adaptive"):
        places = math.prod(n for n in np.ravel(getattr(op, "output_size", 1)).tolist() if n)
        budget.room(64 * PROBES * places, f"the layer {op.name!r}")


def _check_arrays(keras: Any, op: Any, verb: str, values: Any) -> None:
    """Refuses arrays of a probe batch that are larger than all that the file may take."""
    for value in keras.tree.flatten(values):
        if isinstance(value, keras.KerasTensor):
            sizes = [int(d) for d in value.shape[1:] if isinstance(d, int)]
            width = 8 if "64" in str(value.dtype) else 4
            budget.room(
                width * math.prod(sizes) * PROBES,
                f"the layer {op.name!r} ({type(op).__name__}) {verb} {PROBES} records of shape "
                f"{tuple(value.shape[1:])}, which",
            )
