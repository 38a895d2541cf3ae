"""Which signals there are, and how those of one record are computed."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmeter.gradients.factors import gradient_norm, settled
from jaxmeter.gradients.per_example import layer_norms, of_loss
from jaxmeter.signals.scalars.kinds import of_record
from jaxmeter.signals.scalars.names import names_of
from jaxmeter.signals.scalars.values import NOTHING, Context, OneRecord
from jaxmeter.signals.spec import AnySpec, Signals
from jaxmeter.target import LOGITS, Target, resolve_variables


def of_example(
    target: Target, x: ArrayLike, y: ArrayLike, spec: AnySpec, context: Context = NOTHING
) -> Signals:
    """Signals of one record, without a record axis; compose it with `jax.vmap` and `jax.jit`.

    Args:
      target: the classifier.
      x: one record, `[...]`.
      y: its label, an int scalar.
      spec: what to compute. Nothing that is not asked for is computed, and the backward pass goes
        no deeper than the first layer whose gradient is asked for.
      context: what scalars compare the record with, from `signals.context_of`.

    >>> from jaxmeter import SignalSpec, from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))}, input_shape=(3,))
    >>> of_example(net, jnp.ones(3), 0, SignalSpec(gradients=("w",))).gradients["w"].a.shape
    (3,)
    """
    x = jnp.asarray(x, target.spec.input_dtype)
    y = jnp.asarray(y)
    spec = spec.resolved(target.for_inputs(x.shape))
    normed = resolve_variables(target.spec, spec.norms)
    needed = names_of(target, spec.scalars)
    names = tuple(dict.fromkeys((*spec.gradients, *normed, *needed)))
    out, loss, gradients = of_loss(target, x, y, names)
    norms = layer_norms({name: gradient_norm(gradients[name]) for name in normed})
    return Signals(
        outputs={n: out.logits if n == LOGITS else out.layers[n] for n in spec.outputs},
        gradients={name: settled(gradients[name]) for name in spec.gradients},
        gradient_norms=norms,
        loss=loss if spec.loss else None,
        label=jax.nn.one_hot(y, out.logits.shape[-1], dtype=bool) if spec.label else None,
        scalars=of_record(
            OneRecord(target, x, y, out, {name: gradients[name] for name in needed}, context),
            spec.scalars,
        ),
    )
