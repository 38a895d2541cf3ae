"""What the attacker computes from a target and its records, once, for all attacks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmeter.data import Records
from jaxmeter.gradients import Gradient, gradient_norm, layer_norms, of_loss
from jaxmeter.target import LOGITS, Target, layer_of, resolve_layers, resolve_variables

DEVICE_BUDGET = 2**30  # bytes a batch may occupy while it is computed
_LARGEST_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """Which signals an attack reads. The default is a black box that sees logits, loss and label.

    Attributes:
      outputs: layers whose output is read, by name or 1-based position; "logits" is the output
        before the softmax. (A final softmax layer's own name gives probabilities, which saturate.)
      gradients: layers or variables whose per-example gradients are read; a layer stands for its
        variables. A Dense layer costs `d_in + d_out` numbers a record, not `d_in * d_out`.
      loss: whether the cross-entropy loss is read.
      label: whether the record's label is read.
      gradient_norm: the gradient's norm for every layer with trainable variables (True), for the
        named layers, or for none (False).

    >>> SignalSpec(outputs=("dense_2",), gradients=("dense_3",)).loss
    True
    """

    outputs: tuple[str | int, ...] = (LOGITS,)
    gradients: tuple[str | int, ...] = ()
    loss: bool = True
    label: bool = True
    gradient_norm: bool | tuple[str | int, ...] = False

    def resolved(self, target: Target) -> "ResolvedSpec":
        """The same in the target's own names, in the order given.

        Raises:
          ValueError: for a name or number the target does not have, listing those it has; or if no
            signal at all is asked for.
        """
        norms = self.gradient_norm
        normed: tuple[str, ...] = ()
        if norms is not False:
            normed = resolve_variables(target.spec, None if norms is True else norms)
        spec = ResolvedSpec(
            outputs=tuple(dict.fromkeys(resolve_layers(target.spec, self.outputs))),
            gradients=resolve_variables(target.spec, self.gradients),
            norms=tuple(dict.fromkeys(layer_of(name) for name in normed)),
            loss=self.loss,
            label=self.label,
        )
        if not any((spec.outputs, spec.gradients, spec.norms, spec.loss, spec.label)):
            raise ValueError(
                "the SignalSpec asks for no signal at all; an attack needs at least one."
            )
        return spec


@dataclass(frozen=True, kw_only=True)
class ResolvedSpec:
    """A `SignalSpec` in a target's own names: layers, variables, layers."""

    outputs: tuple[str, ...]
    gradients: tuple[str, ...]
    norms: tuple[str, ...]
    loss: bool
    label: bool

    def resolved(self, target: Target) -> "ResolvedSpec":
        """Itself."""
        return self

    def union(self, other: "ResolvedSpec") -> "ResolvedSpec":
        """What either reads."""
        return ResolvedSpec(
            outputs=tuple(dict.fromkeys((*self.outputs, *other.outputs))),
            gradients=tuple(dict.fromkeys((*self.gradients, *other.gradients))),
            norms=tuple(dict.fromkeys((*self.norms, *other.norms))),
            loss=self.loss or other.loss,
            label=self.label or other.label,
        )


AnySpec = SignalSpec | ResolvedSpec


def white_box(target: Target) -> SignalSpec:
    """The standard white-box signals: last layer's gradients, logits, loss, label.

    The configuration of ML Privacy Meter's tutorial (Nasr, Shokri, Houmansadr 2019).
    """
    layers = target.spec.trainable_layers
    if not layers:
        raise ValueError(
            "the target has no trainable variables, so there are no gradients to read."
        )
    return SignalSpec(gradients=(layers[-1],))


class Signals(NamedTuple):
    """Signals of n records, a pytree of arrays with leading axis n; what was not asked is None.

    Attributes:
      outputs: `{layer name or "logits": [n, ...]}`.
      gradients: `{variable name: [n, *variable shape]}`, Dense kernels as `Outer([n, d_in],
        [n, d_out])`.
      gradient_norms: `{layer name: [n]}`.
      loss: cross-entropy `[n]`, or None.
      label: one-hot bool `[n, classes]`, or None.
    """

    outputs: dict[str, Array]
    gradients: dict[str, Gradient]
    gradient_norms: dict[str, Array]
    loss: Array | None
    label: Array | None

    @property
    def y(self) -> Array:
        """The labels as integers `[n]`."""
        if self.label is None:
            raise ValueError(
                "these signals hold no label; extract them with SignalSpec(label=True)."
            )
        return self.label.argmax(-1)

    @property
    def logits(self) -> Array:
        """The logits `[n, classes]`."""
        if LOGITS not in self.outputs:
            raise ValueError(
                "these signals hold no logits; extract them with 'logits' among SignalSpec.outputs."
            )
        return self.outputs[LOGITS]

    def rows(self, index: Any) -> Self:
        """The signals of some records, in the order of `index` (integers, mask or slice)."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def only(self, spec: ResolvedSpec) -> "Signals":
        """The part of these signals that a spec reads, dicts in the spec's order."""
        return Signals(
            outputs={name: self.outputs[name] for name in spec.outputs},
            gradients={name: self.gradients[name] for name in spec.gradients},
            gradient_norms={name: self.gradient_norms[name] for name in spec.norms},
            loss=self.loss if spec.loss else None,
            label=self.label if spec.label else None,
        )


class Plan(NamedTuple):
    """How `extract` would work, known before any work.

    Attributes:
      n: records.
      batch: records computed at once.
      record_bytes: host memory one record's signals take.
      work_bytes: upper estimate of device memory one record takes while it is computed.
      model_bytes: the target's arrays on the device.
    """

    n: int
    batch: int
    record_bytes: int
    work_bytes: int
    model_bytes: int

    @property
    def result_bytes(self) -> int:
        """Host memory the whole result takes."""
        return self.n * self.record_bytes

    @property
    def device_bytes(self) -> int:
        """Estimated device memory at work."""
        return self.model_bytes + self.batch * self.work_bytes


def of_example(target: Target, x: ArrayLike, y: ArrayLike, spec: AnySpec) -> Signals:
    """Signals of one record, without a record axis; compose it with `jax.vmap` and `jax.jit`.

    Args:
      target: the classifier.
      x: one record, `[...]`.
      y: its label, an int scalar.
      spec: what to compute. Nothing that is not asked for is computed, and the backward pass goes
        no deeper than the first layer whose gradient is asked for.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))}, input_shape=(3,))
    >>> of_example(net, jnp.ones(3), 0, SignalSpec(gradients=("w",))).gradients["w"].a.shape
    (3,)
    """
    x = jnp.asarray(x, target.spec.input_dtype)
    y = jnp.asarray(y)
    spec = spec.resolved(target.for_inputs(x.shape))
    normed = resolve_variables(target.spec, spec.norms)
    names = tuple(dict.fromkeys((*spec.gradients, *normed)))
    out, loss, gradients = of_loss(target, x, y, names)
    norms = layer_norms({name: gradient_norm(gradients[name]) for name in normed})
    return Signals(
        outputs={n: out.logits if n == LOGITS else out.layers[n] for n in spec.outputs},
        gradients={name: gradients[name] for name in spec.gradients},
        gradient_norms=norms,
        loss=loss if spec.loss else None,
        label=jax.nn.one_hot(y, out.logits.shape[-1], dtype=bool) if spec.label else None,
    )


def plan(
    target: Target,
    x: ArrayLike,
    spec: AnySpec,
    *,
    device_budget: int = DEVICE_BUDGET,
    host_budget: int | None = None,
) -> Plan:
    """How `extract` would go about records `x` `[n, ...]`; computes shapes only.

    The work of one record is estimated from above, as all intermediate arrays of its traced
    program; the batch is the largest power of two that fits `device_budget` bytes beside the
    target's arrays (at most 1024).

    Raises:
      ValueError: if not even one record fits `device_budget`, or the result exceeds `host_budget`
        (bytes; None: no limit). The message has the numbers.
    """
    n, shape = np.shape(x)[0], np.shape(x)[1:]
    target = target.for_inputs(shape)
    spec = spec.resolved(target)
    record = (
        jax.ShapeDtypeStruct(shape, target.spec.input_dtype),
        jax.ShapeDtypeStruct((), "int32"),
    )
    jaxpr, result = jax.make_jaxpr(
        lambda target, x, y: of_example(target, x, y, spec), return_shape=True
    )(target, *record)
    record_bytes = sum(_nbytes(leaf) for leaf in jax.tree.leaves(result))
    work_bytes = _work(jaxpr.jaxpr) + sum(map(_nbytes, record))
    model_bytes = sum(_nbytes(leaf) for leaf in jax.tree.leaves(target))
    fits = (device_budget - model_bytes) // work_bytes
    if fits < 1:
        raise ValueError(
            f"one record's signals need up to {_human(work_bytes)} beside the target's "
            f"{_human(model_bytes)}, more than the device budget of {_human(device_budget)}. Ask "
            "for fewer gradients (their norms, or the last layer's, are cheap) or raise the budget."
        )
    if host_budget is not None and n * record_bytes > host_budget:
        raise ValueError(
            f"the signals of {n} records take {_human(n * record_bytes)}, more than the host "
            f"budget of {_human(host_budget)}: {_human(record_bytes)} a record. Ask for fewer or "
            "smaller signals, audit fewer records, or raise the budget."
        )
    batch = 2 ** int(np.log2(min(fits, _LARGEST_BATCH)))
    while batch // 2 >= max(n, 1):
        batch //= 2
    return Plan(n, batch, record_bytes, work_bytes, model_bytes)


def extract(
    target: Target,
    records: Records,
    spec: AnySpec = SignalSpec(),  # noqa: B008 (frozen)
    *,
    device_budget: int = DEVICE_BUDGET,
    host_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Signals:
    """Signals of many records, streamed through the device in batches.

    Equal to `jax.vmap(of_example)`, so a record's signals do not depend on its batch.

    Args:
      target: the classifier.
      records: n records; `is_member` is not looked at.
      spec: what to compute.
      device_budget: bytes that the target, a batch and its intermediate arrays may take.
      host_budget: bytes that the result may take; None for no limit.
      progress: called as `progress(records done, n)` before the first and after every batch.

    Returns:
      Signals as NumPy arrays in host memory, in the order of the records.

    Raises:
      ValueError: for records the target cannot take (shape, labels outside its classes, values
        that are not finite), names it does not have, or a budget that is too small.

    >>> from jaxmeter import Records, from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))})
    >>> records = Records.of(members=(np.ones((4, 3)), [0, 1, 1, 0]),
    ...                      nonmembers=(np.zeros((4, 3)), [0, 1, 1, 0]))
    >>> extract(net, records).loss.shape
    (8,)
    """
    target = target.for_inputs(np.shape(records.x)[1:])
    check_records(target, records)
    spec = spec.resolved(target)
    todo = plan(target, records.x, spec, device_budget=device_budget, host_budget=host_budget)
    if progress is not None:
        progress(0, todo.n)
    result: Any = None
    for start in range(0, todo.n, todo.batch):
        rows = np.minimum(np.arange(start, start + todo.batch), todo.n - 1)  # pad: one compilation
        found = _extract_batch(target, records.x[rows], records.y[rows], spec=spec)
        stop = min(start + todo.batch, todo.n)
        if result is None:
            result = jax.tree.map(lambda a: np.empty((todo.n, *a.shape[1:]), a.dtype), found)
        jax.tree.map(
            lambda out, a: out.__setitem__(slice(start, stop), np.asarray(a)[: stop - start]),  # noqa: B023
            result,
            found,
        )
        if progress is not None:
            progress(stop, todo.n)
    return result.only(spec)  # jit sorted the dicts by name


def check_records(target: Target, records: Records) -> None:
    """Refuses records that the target cannot have been trained or tested on."""
    n_classes = target.spec.n_classes
    assert n_classes is not None, "for_inputs fills it in"
    if not len(records.y):
        raise ValueError("there are no records to extract signals of.")
    y = np.asarray(records.y)
    wrong = np.flatnonzero((y < 0) | (y >= n_classes))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} labels lie outside 0..{n_classes - 1}, the target's {n_classes} classes "
            f"(first: record {wrong[0]} has label {y[wrong[0]]}). A wrong label gives a "
            "wrong loss; check that labels are counted from 0 and belong to this model."
        )


@partial(jax.jit, static_argnames=("spec",))
def _extract_batch(target: Target, x: Array, y: Array, *, spec: ResolvedSpec) -> Signals:
    return jax.vmap(lambda x, y: of_example(target, x, y, spec))(x, y)


def _work(jaxpr: Any) -> int:
    """Bytes of all arrays that a traced program makes, inner programs included."""
    total = 0
    for eqn in jaxpr.eqns:
        total += sum(_nbytes(v.aval) for v in eqn.outvars)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                total += _work(inner) if hasattr(inner, "eqns") else 0
    return total


def _nbytes(leaf: Any) -> int:
    shape, dtype = getattr(leaf, "shape", ()), getattr(leaf, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 8)  # PRNG keys and tokens: a word
    return int(np.prod(shape, dtype=np.int64)) * itemsize


def _human(n: int) -> str:
    size = float(n)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
