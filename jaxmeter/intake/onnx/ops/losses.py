"""Losses of labels."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeter.intake.onnx.ops.values import Table


def negative_log_likelihood(
    log_p: Any,
    labels: Any,
    weight: Any = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:
    """NegativeLogLikelihoodLoss over axis 1."""
    log_p, labels = jnp.asarray(log_p), jnp.asarray(labels)
    safe = jnp.clip(labels, 0, log_p.shape[1] - 1)
    loss = -jnp.take_along_axis(log_p, safe[:, None], axis=1)[:, 0]
    weights = jnp.ones_like(loss) if weight is None else jnp.asarray(weight)[safe]
    if ignore_index is not None:
        weights = jnp.where(labels == ignore_index, 0, weights)
        loss = jnp.where(labels == ignore_index, 0, loss)
    loss = loss * weights
    if reduction == "none":
        return loss
    return jnp.sum(loss) if reduction == "sum" else jnp.sum(loss) / jnp.sum(weights)


def softmax_cross_entropy(
    scores: Any,
    labels: Any,
    weight: Any = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Any, Any]:
    """SoftmaxCrossEntropyLoss over axis 1; also the log-probabilities."""
    log_p = jax.nn.log_softmax(scores, axis=1)
    loss = negative_log_likelihood(
        log_p, labels, weight, ignore_index=ignore_index, reduction=reduction
    )
    return loss, log_p


TABLE: Table = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}
