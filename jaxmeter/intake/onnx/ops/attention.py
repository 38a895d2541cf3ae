"""Attention and what goes with it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table, affordable, jax_dtype, numpy_dtype


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    past_key: Any = None,
    past_value: Any = None,
    lengths: Any = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Any, Any, Any, Any]:
    """Attention; also keys and values with the past ones before them, and the scores.

    A query that may see nothing gets zeros.
    """
    dtype, flat = q.dtype, q.ndim == 3
    if flat:
        q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None:
        k, v = jnp.concatenate([past_key, k], axis=2), jnp.concatenate([past_value, v], axis=2)
    keys, values = k, v
    if q.shape[1] != k.shape[1]:
        each = q.shape[1] // k.shape[1]
        k, v = jnp.repeat(k, each, axis=1), jnp.repeat(v, each, axis=1)
    root = np.asarray(np.sqrt(scale or 1 / np.sqrt(q.shape[3])), dtype)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * root, k * root)
    shown = {0: scores}
    if softcap > 0:
        scores = jnp.tanh(scores / softcap) * softcap
    bias = _bias(
        scores.shape, dtype, mask, past, lengths, is_causal, left_window_size, right_window_size
    )
    shown |= {1: scores, 2: scores + bias}
    blind = jnp.max(bias, axis=-1, keepdims=True) == -jnp.inf
    logits = jnp.where(blind, 0, scores + bias)  # no softmax of a row of -inf
    if softmax_precision is not None:
        logits = logits.astype(jax_dtype(numpy_dtype(softmax_precision)))
    weights = jnp.where(blind, 0, jax.nn.softmax(logits, axis=-1)).astype(dtype)
    shown[3] = weights
    y = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
    if flat:
        y = jnp.reshape(jnp.moveaxis(y, 1, 2), (y.shape[0], y.shape[2], -1))
    return y, keys, values, shown[qk_matmul_output_mode]


def _bias(
    shape: tuple[int, ...],
    dtype: Any,
    mask: Any,
    past: int,
    lengths: Any,
    is_causal: int,
    left: int,
    right: int,
) -> Any:
    """What is added to the scores: the mask's own numbers, -inf where a key may not be seen."""
    queries, keys = affordable(shape[2:], copies=2)
    bias = jnp.zeros((queries, keys), dtype)
    allowed = jnp.ones((1, 1, queries, keys), bool)
    ahead = past + np.arange(queries)[:, None] - np.arange(keys)  # how far a key lies behind
    if lengths is not None:
        lengths = jnp.reshape(lengths, (-1, 1, 1, 1))
        allowed = allowed & (np.arange(keys) < lengths)
        if not past:
            ahead = ahead + lengths - queries
    if is_causal:
        allowed = allowed & (ahead >= 0)
    if left >= 0:
        allowed = allowed & (ahead <= left)
    if right >= 0:
        allowed = allowed & (-ahead <= right)
    if mask is not None:
        mask = jnp.asarray(mask)
        missing = [(0, 0)] * (mask.ndim - 1) + [(0, keys - mask.shape[-1])]
        if mask.dtype == bool:
            allowed = allowed & jnp.pad(mask, missing)
        else:
            bias = bias + jnp.pad(mask, missing, constant_values=-np.inf)
    return jnp.where(allowed, bias, -jnp.inf).astype(dtype)


def _heads(x: Any, heads: int | None) -> Any:
    """`[n, t, heads * d]` as `[n, heads, t, d]`."""
    if heads is None:
        raise ValueError("three-dimensional inputs need the number of heads.")
    return jnp.moveaxis(jnp.reshape(x, (*x.shape[:2], heads, -1)), 2, 1)


def rotary_embedding(
    x: Any,
    cos: Any,
    sin: Any,
    positions: Any = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Any:
    """RotaryEmbedding: pairs of features, turned by an angle that grows with the position."""
    shape = x.shape
    x = jnp.reshape(x, (*shape[:2], num_heads, -1)) if len(shape) == 3 else jnp.moveaxis(x, 1, 2)
    size = rotary_embedding_dim or x.shape[-1]
    turned, kept = x[..., :size], x[..., size:]
    if positions is not None:
        cos, sin = (jnp.take(jnp.asarray(table), positions, axis=0) for table in (cos, sin))
    cos, sin = cos[:, :, None], sin[:, :, None]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
    else:
        a, b = turned[..., : size // 2], turned[..., size // 2 :]
    pair = (cos * a - sin * b, sin * a + cos * b)
    if interleaved:
        turned = jnp.reshape(jnp.stack(pair, axis=-1), turned.shape)
    else:
        turned = jnp.concatenate(pair, axis=-1)
    y = jnp.concatenate([turned, kept], axis=-1)
    return jnp.reshape(y, shape) if len(shape) == 3 else jnp.moveaxis(y, 2, 1)


def linear_attention(
    q: Any,
    k: Any,
    v: Any,
    past: Any = None,
    decay: Any = None,
    beta: Any = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Any, Any]:
    """LinearAttention: a state of keys times values, read by the queries step by step."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    queries, keys, values = (
        _heads(x, heads).astype(wide)
        for x, heads in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads))
    )
    n, heads, _, size = keys.shape
    state = jnp.zeros((n, heads, size, values.shape[3]), wide) if past is None else past
    steps = {"q": queries, "k": keys, "v": values}
    if decay is not None:
        steps["decay"] = _heads(decay, heads).astype(wide)
    if beta is not None:
        steps["beta"] = jnp.moveaxis(jnp.asarray(beta), 2, 1)[..., None].astype(wide)
    each = q_num_heads // kv_num_heads

    def step(state: Any, at: dict[str, Any]) -> tuple[Any, Any]:
        value = at["v"]
        if "decay" in at:
            state = state * jnp.exp(at["decay"])[..., None]
        if "beta" in at:
            value = at["beta"] * (value - jnp.einsum("bhdm,bhd->bhm", state, at["k"]))
        state = state + at["k"][..., None] * value[..., None, :]
        return state, jnp.einsum("bhd,bhdm->bhm", at["q"], jnp.repeat(state, each, axis=1))

    along = {name: jnp.moveaxis(x, 2, 0) for name, x in steps.items()}
    end, read = lax.scan(step, jnp.asarray(state).astype(wide), along)
    y = jnp.moveaxis(read, 0, 1) * (scale or 1 / np.sqrt(size))
    return (
        jnp.reshape(y, (*q.shape[:2], -1)).astype(q.dtype),
        end.astype(q.dtype if past is None else past.dtype),
    )


TABLE: Table = {
    "Attention": attention,
    "LinearAttention": linear_attention,
    "RotaryEmbedding": rotary_embedding,
}
