"""Convolutions and max-pooling in jaxmeter's forms beside XLA's own, shape by shape.

    python benchmarks/lowering.py [--records 64] [--repeats 7] [--only WORD] [--looped]

Every row is one layer; every ratio is XLA's own time over ours, in one interleaved run, medians
(above 1: ours is faster). Columns: forward pass, gradient in the input, gradient in the kernel,
both in one program, and each record's own kernel gradient. The layer is lowered as it is met: for
a batch in the first four columns, for one record under `vmap` in the last; a form of "native"
there compares XLA with itself and shows the noise. With `--looped`, each runs twice in a
`lax.scan`. XLA's per-record gradient of grouped convolutions is left out where it would take
minutes or tens of gigabytes.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
from jax import lax

from jaxmeter.jaxpr.convolutions import Case, form_of
from jaxmeter.jaxpr.lowering import lowered

# name: size, channels, features, kernel, stride, padding, groups
LAYERS = {
    "alexnet 1": (32, 3, 64, 11, 4, 5, 1),
    "alexnet 2": (4, 64, 192, 5, 1, 2, 1),
    "alexnet 3": (2, 192, 384, 3, 1, 1, 1),
    "alexnet 4": (2, 384, 256, 3, 1, 1, 1),
    "alexnet 5": (2, 256, 256, 3, 1, 1, 1),
    "cnn 1": (32, 3, 32, 3, 1, 0, 1),
    "cnn 2": (15, 32, 64, 3, 1, 0, 1),
    "cnn 3": (6, 64, 64, 3, 1, 0, 1),
    "resnet 16": (32, 16, 16, 3, 1, 1, 1),
    "resnet 32": (16, 32, 32, 3, 1, 1, 1),
    "resnet 64": (8, 64, 64, 3, 1, 1, 1),
    "resnet down": (32, 16, 32, 3, 2, 1, 1),
    "kernel = image": (7, 64, 64, 7, 1, 3, 1),
    "kernel > image": (6, 64, 64, 7, 1, 3, 1),
    "pointwise": (16, 64, 128, 1, 1, 0, 1),
    "depthwise 32": (16, 32, 32, 3, 1, 1, 32),
    "depthwise 128": (8, 128, 128, 3, 2, 1, 128),
    "groups of 16": (8, 64, 64, 3, 1, 1, 4),
}
POOLS = {
    "pool 2/2": (32, 64, 2, 2, 0),
    "pool 3/2": (32, 32, 3, 2, 1),
    "pool small": (8, 64, 2, 2, 0),
}
_TOO_LONG = ("depthwise", "groups")  # XLA's gradient for each record

Function = Callable[[Any, Any], Any]


def convolution(
    layer: tuple[int, ...], records: int, looped: bool
) -> tuple[Function, Any, Any, str]:
    """The layer, its input and kernel, and the forms the rule gives it."""
    size, channels, features, kernel, stride, padding, groups = layer
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(records, size, size, channels)), jnp.float32)
    w = jnp.asarray(random.normal(size=(kernel, kernel, channels // groups, features)), jnp.float32)

    def fun(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    positions = jax.eval_shape(fun, x, w).shape[1:3]
    case = Case(
        records=records,
        size=(size, size),
        positions=positions,
        kernel=(kernel, kernel),
        strides=(stride, stride),
        lhs_dilation=(1, 1),
        channels=channels,
        features=features,
        groups=groups,
    )
    forms = (form_of(case, looped), form_of(case._replace(records=1), looped))
    return fun, x, w, "/".join(dict.fromkeys(forms))


def pooling(layer: tuple[int, ...], records: int, looped: bool) -> tuple[Function, Any, Any, str]:
    """Likewise; its second operand is not used."""
    size, channels, width, stride, padding = layer
    x = jnp.asarray(np.random.default_rng(0).normal(size=(records, size, size, channels)))
    pad = [(0, 0), (padding, padding), (padding, padding), (0, 0)]

    def fun(x: Any, w: Any) -> Any:
        window, strides = (1, width, width, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pad)

    return fun, x.astype(jnp.float32), jnp.zeros(()), "slices"


def uses(fun: Function, cotangent: Any) -> dict[str, Function]:
    """Column -> what is timed."""

    def pulled(argnums: tuple[int, ...], x: Any, w: Any, cotangent: Any = cotangent) -> Any:
        # The output's gradient depends on the output, as a loss's does.
        return jax.grad(lambda x, w: jnp.sum(cotangent * fun(x, w) ** 2), argnums)(x, w)

    def each(x: Any, w: Any) -> Any:
        one = lambda x, c: pulled((1,), x[None], w, c[None])  # noqa: E731
        return jax.vmap(one)(x, cotangent)

    return {
        "forward": fun,
        "d input": partial(pulled, (0,)),
        "d kernel": partial(pulled, (1,)),
        "both": partial(pulled, (0, 1)),
        "per record": each,
    }


def repeated(fun: Function) -> Function:
    """Twice in a scan, on different inputs."""
    return lambda x, w: lax.scan(lambda c, x: (c, fun(x, w)), 0, jnp.stack([x, 2 * x]))[1]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--looped", action="store_true")
    arguments = parser.parse_args()
    columns = ("forward", "d input", "d kernel", "both", "per record")
    print(f"{timing.machine()}; {arguments.records} records", timing.load(), sep="\n")
    print("ours in ms, and in brackets XLA's time over ours\n")
    print(f"{'':16}{'form (batch/record)':20}" + "".join(f"{c:>18}" for c in columns))
    chosen = {
        **{name: partial(convolution, layer) for name, layer in LAYERS.items()},
        **{name: partial(pooling, layer) for name, layer in POOLS.items()},
    }
    for name, make in chosen.items():
        if arguments.only not in name:
            continue
        fun, x, w, form = make(arguments.records, arguments.looped)
        cotangent = jnp.cos(jnp.arange(math.prod(shape := jax.eval_shape(fun, x, w).shape)))
        cotangent = cotangent.reshape(shape)
        ours, theirs = uses(lowered(fun, looped=arguments.looped), cotangent), uses(fun, cotangent)
        cells = []
        for column in columns:
            if form == "slices" and column in {"d kernel", "both", "per record"}:
                continue
            skip = column == "per record" and name.startswith(_TOO_LONG)
            pair = {"ours": ours[column]} if skip else {"ours": ours[column], "XLA": theirs[column]}
            runs = {
                who: partial(jax.jit(repeated(f) if arguments.looped else f), x, w)
                for who, f in pair.items()
            }
            found = timing.medians(runs, arguments.repeats, warm=1)
            ratio = "-" if skip else f"{found['XLA'] / found['ours']:.1f}x"
            cells.append(f"{1e3 * found['ours']:9.2f} {f'({ratio})':>8}")
        print(f"{name:16}{form:20}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
