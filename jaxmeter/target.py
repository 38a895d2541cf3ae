"""The classifier under audit, as a pure function and its arrays."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.typing import ArrayLike

from jaxmeter.terminal import one_line, printable

LOGITS = "logits"
HERE = "in this process"


class Outputs(NamedTuple):
    """What one forward pass gives.

    Attributes:
      logits: `[n, classes]`, before any softmax.
      layers: each layer's output `[n, ...]` as the model's own framework computes it (a final
        softmax is *not* taken off here), by layer name, in model order.
    """

    logits: Array
    layers: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a target came from and how closely it reproduces the original.

    Attributes:
      route: the way in: "keras-jax", "flax" or "function".
      origin: the file, or what kind of live object it was.
      versions: `(package, version)` pairs that mattered.
      logits: how the logits were had from the model's output, in words.
      difference: largest absolute difference between the original framework's output and the
        target's on a probe batch; None where there is no original to compare with.
      process: where the file was opened: "in this process", or in one of its own and what the
        system kept that from doing.
    """

    route: str
    origin: str
    versions: tuple[tuple[str, str], ...] = ()
    logits: str = "returned by the model"
    difference: float | None = None
    process: str = HERE


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """The static facts about a target; hashable, so a change of them is a new compilation.

    Attributes:
      input_shape: shape of one record; None if not known before the first record is seen. A
        dimension is None where any length will do.
      n_classes: number of logits; None likewise.
      layers: names of the layers with an output, in model order.
      variables: names of the trainable variables, "layer/variable", in model order.
      input_dtype: what `x` is cast to before `apply`.
      source: where the target came from.
    """

    input_shape: tuple[int | None, ...] | None
    n_classes: int | None
    layers: tuple[str, ...]
    variables: tuple[str, ...]
    input_dtype: str = "float32"
    source: Source = field(default_factory=lambda: Source(route="function", origin="a function"))

    @property
    def trainable_layers(self) -> tuple[str, ...]:
        """Names of the layers that own trainable variables, in model order."""
        return tuple(dict.fromkeys(layer_of(name) for name in self.variables))


@flax.struct.dataclass(kw_only=True)
class Target:
    """A trained classifier: a pure function and the arrays it reads.

    A pytree: `jax.jit` sees `params` and `state` as arrays and hashes `apply` and `spec`. Arrays
    with an extra leading axis of length k make k stacked models of one architecture, to be mapped
    over with `jax.vmap`.

    Attributes:
      params: trainable arrays by "layer/variable", e.g. "dense_2/kernel".
      state: what else the forward pass reads (BatchNorm moments, seeds, ...).
      apply: `(params, state, x[n, ...]) -> Outputs`, in inference mode.
      spec: static facts, see `TargetSpec`.

    >>> import jax.numpy as jnp
    >>> target = from_function(lambda params, state, x: x @ params["w"], {"w": jnp.eye(2)})
    >>> target(jnp.ones((3, 2))).logits.shape
    (3, 2)
    """

    params: dict[str, Any]
    state: dict[str, Any]
    apply: Callable[[Any, Any, Array], Outputs] = flax.struct.field(pytree_node=False)
    spec: TargetSpec = flax.struct.field(pytree_node=False)

    def __call__(self, x: ArrayLike) -> Outputs:
        """Runs the target on a batch `x` `[n, ...]`."""
        return self.apply(self.params, self.state, jnp.asarray(x, self.spec.input_dtype))

    def for_inputs(self, shape: Sequence[int]) -> "Target":
        """This target with `spec` completed for records of `shape`.

        Raises:
          ValueError: if the target does not take records of this shape, or does not give one row
            of at least two logits for each record.
        """
        shape = tuple(shape)
        expected = self.spec.input_shape
        if shape == expected and self.spec.n_classes is not None:
            return self
        if expected is not None and not _fits(shape, expected):
            raise ValueError(
                f"records have shape {shape}, but the target takes {expected}: it would fail or, "
                "worse, broadcast. Reshape x, or check that this is the model's own data."
            )
        x = jax.ShapeDtypeStruct((2, *shape), self.spec.input_dtype)
        layers: list[str] = []

        def traced(params: Any, state: Any, x: Array) -> Outputs:
            out = self.apply(params, state, x)
            layers[:] = out.layers  # in model order here; a pytree comes back with sorted keys
            return out

        try:
            out = jax.eval_shape(traced, self.params, self.state, x)
        except Exception as error:
            raise ValueError(
                f"the target cannot be applied to records of shape {shape}: {one_line(error)}"
            ) from error
        logits = out.logits.shape
        if len(logits) != 2 or logits[0] != 2 or logits[1] < 2:
            raise ValueError(
                f"the target gives logits of shape {logits} for 2 records; a classifier gives "
                "(2, classes) with at least two classes. Audits need class scores: a regression, "
                "sequence or embedding model cannot be audited as it is."
            )
        spec = replace(
            self.spec,
            input_shape=shape,
            n_classes=logits[1],
            layers=self.spec.layers or tuple(layers),
        )
        return self.replace(spec=spec)  # type: ignore[attr-defined]


def layer_of(variable: str) -> str:
    """The layer that owns a variable: all of its name before the last slash."""
    return variable.rpartition("/")[0] or variable


def resolve_layers(spec: TargetSpec, names: Sequence[str | int]) -> tuple[str, ...]:
    """Layer names from names or 1-based positions; `"logits"` is always valid."""
    return tuple(_pick(name, spec.layers, "layer", extra=(LOGITS,)) for name in names)


def resolve_variables(spec: TargetSpec, names: Sequence[str | int] | None) -> tuple[str, ...]:
    """Variable names from variable names, layer names or 1-based positions of trainable layers.

    A layer stands for all its variables, those of its inner layers too; None for every variable of
    the model.
    """
    if names is None:
        return spec.variables
    chosen: dict[str, None] = {}
    for name in names:
        if name in spec.variables:
            chosen[str(name)] = None
            continue
        inside = [v for v in spec.variables if v.startswith(f"{name}/")]
        if not inside:
            layer = _pick(name, spec.trainable_layers, "trainable layer", extra=spec.variables)
            inside = [v for v in spec.variables if layer_of(v) == layer]
        chosen.update(dict.fromkeys(inside))
    return tuple(chosen)


def from_function(
    apply: Callable[..., Any],
    params: Mapping[str, Any],
    state: Mapping[str, Any] = {},  # noqa: B006 (never written to; the signature is the contract)
    *,
    input_shape: Sequence[int] | None = None,
    input_dtype: str = "float32",
    source: Source | None = None,
) -> Target:
    """A target from any JAX function.

    Args:
      apply: `(params, state, x[n, ...]) -> Outputs`, or just the logits `[n, classes]`. Pure, and
        in inference mode: a record's row must not depend on the rest of the batch.
      params: trainable arrays; nested dicts are flattened to "layer/variable" names and handed
        back to `apply` nested as they were.
      state: other arrays, passed to `apply` as they are.
      input_shape: shape of one record, checked early if given.
      input_dtype: what `x` is cast to.
      source: what to record as the origin.

    Raises:
      TypeError: if `params` is not a dict of arrays.

    >>> import jax.numpy as jnp
    >>> net = from_function(lambda p, s, x: x @ p["out"]["kernel"],
    ...                     {"out": {"kernel": jnp.ones((4, 3))}}, input_shape=(4,))
    >>> net.spec.variables, net.spec.n_classes
    (('out/kernel',), 3)
    """
    if not isinstance(params, Mapping):
        raise TypeError(
            f"params is a {type(params).__name__}; gradients are addressed by name, so it must be "
            'a (nested) dict of arrays, e.g. {"dense": {"kernel": ...}}.'
        )
    nested = any(isinstance(value, Mapping) for value in params.values())
    paths = flatten_dict(dict(params)) if nested else {(name,): v for name, v in params.items()}
    if not all(isinstance(k, str) and not (nested and "/" in k) for path in paths for k in path):
        raise TypeError(
            "the keys of params are joined to names like 'layer/variable': they must be strings, "
            "and in a nested dict without a slash."
        )
    flat = {"/".join(path): value for path, value in paths.items()}
    for name, value in flat.items():
        if not hasattr(value, "shape"):
            raise TypeError(f"params[{name!r}] is a {type(value).__name__}, not an array.")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"params[{name!r}] is {value.dtype}; params are what gradients are taken of, real "
                "floating-point arrays. Pass integers, keys and the like in state."
            )

    def applied(params: Any, state: Any, x: Array) -> Outputs:
        out = apply(unflatten_dict(params, sep="/") if nested else params, state, x)
        return out if isinstance(out, Outputs) else Outputs(jnp.asarray(out), {})

    target = Target(
        params={name: jnp.array(value) for name, value in flat.items()},
        state=jax.tree.map(_copied, dict(state)),
        apply=applied,
        spec=TargetSpec(
            input_shape=None,
            n_classes=None,
            layers=(),
            variables=tuple(flat),
            input_dtype=input_dtype,
            source=source or Source(route="function", origin=getattr(apply, "__name__", "apply")),
        ),
    )
    return target if input_shape is None else target.for_inputs(input_shape)


def from_flax(
    module: Any,
    variables: Mapping[str, Any],
    *args: Any,
    input_shape: Sequence[int] | None = None,
    input_dtype: str = "float32",
    **kwargs: Any,
) -> Target:
    """A target from a `flax.linen` module and its variables.

    Args:
      module: the module; called as `module.apply(variables, x, *args, **kwargs)` and returning
        logits `[n, classes]`.
      variables: its collections; "params" is trainable, the rest (e.g. "batch_stats") is state.
      *args: further positional arguments of the call.
      input_shape: shape of one record, checked early if given.
      input_dtype: what `x` is cast to.
      **kwargs: further keywords of the call. Ask for inference mode here (`train=False`,
        `deterministic=True`): the audit measures the model as it is deployed.

    Every submodule's output is available as a layer, named by its path.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    >>> target = from_flax(net, net.init(jax.random.key(0), jnp.ones((1, 4))), input_shape=(4,))
    >>> target.spec.layers
    ('layers_0', 'layers_2')
    """
    if "params" not in variables:
        raise ValueError(
            f"variables has the collections {sorted(variables)} but no 'params': pass what "
            "module.init returned, {'params': ...}, not the parameters alone."
        )
    state = {name: value for name, value in variables.items() if name != "params"}

    def apply(params: Any, state: Any, x: Array) -> Outputs:
        logits, seen = module.apply(
            {"params": params, **state},
            x,
            *args,
            **kwargs,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        calls = flatten_dict(seen["intermediates"], sep="/")
        layers = {
            path.removesuffix("/__call__"): values[-1]  # the last call of a shared module
            for path, values in calls.items()
            if path.endswith("/__call__") and hasattr(values[-1], "shape")
        }
        return Outputs(logits, layers)

    return from_function(
        apply,
        {"": variables["params"]} if not variables["params"] else dict(variables["params"]),
        state,
        input_shape=input_shape,
        input_dtype=input_dtype,
        source=Source(
            route="flax",
            origin=type(module).__name__,
            versions=(("flax", flax.__version__), ("jax", jax.__version__)),
        ),
    )


def _copied(value: Any) -> Any:
    """Copies arrays, so that nothing the caller does later reaches the target."""
    return jnp.array(value) if isinstance(value, np.ndarray | jax.Array) else value


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        e is None or s == e for s, e in zip(shape, expected, strict=True)
    )


def _pick(name: str | int, valid: Sequence[str], kind: str, extra: Sequence[str] = ()) -> str:
    """`name` if valid, the name at its 1-based position if an integer, else a helpful error."""
    listing = ", ".join(f"{i}: {printable(v)}" for i, v in enumerate(valid, start=1)) or "none"
    if isinstance(name, int) and not isinstance(name, bool):
        if not 1 <= name <= len(valid):
            raise ValueError(f"there is no {kind} number {name}; there are {listing}.")
        return valid[name - 1]
    if name in valid or name in extra:
        return str(name)
    near = difflib.get_close_matches(str(name), [*valid, *extra], n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"the target has no {kind} {name!r}.{hint} There are {listing}.")
