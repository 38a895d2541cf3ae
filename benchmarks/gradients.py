"""What per-example gradients cost beside the batch gradient, and beside other libraries.

    python benchmarks/gradients.py [--nets alexnet,mlp] [--records 128] [--repeats 7] [--no-torch]

For each net one interleaved run of everything in its table, medians; XLA and PyTorch on the same
number of threads, in float32. The forward pass and the last layer's signals, which are small, have
an interleaved run of their own, of a second each and at least five times as often: after a run that
gave gigabytes back to the system, the next one's milliseconds are spent on getting memory, whatever
it computes. Columns: milliseconds, the ratio to jaxmeter's batch gradient, and jaxmeter's time over
the best competitor's (below 1: jaxmeter is faster). Before anything is timed, the per-example
gradients of all ways are compared by their norms.

The competitors compute the gradients of all variables of the same network with the same weights:
`jax.vmap(jax.grad)` of the Keras model's own `stateless_call`, `torch.func`, and Opacus' hooks. The
two "write as many bytes" rows say what writing such an amount takes without computing it: in a
jitted program, whose result lies in memory newly mapped as every result's does, and by NumPy into
memory that is mapped already.
"""

import argparse
import importlib.util
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import nets
import numpy as np
import timing

import jaxmeter as jm
from jaxmeter.signals.program import of_batch

BATCH, FORWARD, ALL = "batch gradient", "forward pass", "per example, all layers"
NORMS, LAST = "norms, all layers", "last-layer signals, factored"
PLAIN, FUNC, OPACUS = "jax.vmap(jax.grad) of Keras", "torch.func vmap(grad)", "Opacus hooks"
TORCH_BATCH, FILL, REFILL = "torch batch gradient", "write as many bytes", "  into mapped memory"
NO_TORCH = "torch not installed: pip install .[bench]"
TOO_BIG = 12 * 2**30  # bytes of intermediate arrays, beyond which a competitor is not run
TOO_LONG = 20.0  # seconds, beyond which it is not repeated

Runs = dict[str, Callable[[], Any]]


def ours(target: jm.Target, x: jax.Array, y: jax.Array) -> dict[str, tuple[Any, tuple]]:
    """jaxmeter's programs, jitted, and their arguments."""

    def forward(params, x):
        return target.apply(params, target.state, x).logits

    spec = jm.signals.white_box(target).resolved(target)

    found: dict[str, tuple[Any, tuple]] = {
        FORWARD: (forward, (target.params, x)),
        BATCH: (jm.directions.mean_gradient, (target, x, y)),
        ALL: (jm.per_example_gradients, (target, x, y)),
        NORMS: (jm.gradient_norms, (target, x, y)),
        LAST: (partial(of_batch, spec=spec), (target, x, y)),  # what `extract` runs
    }
    return {name: (jax.jit(fun), args) for name, (fun, args) in found.items()}


def loaded(name: str, records: int) -> tuple[keras.Model, jm.Target, jax.Array, jax.Array]:
    """A network with random weights, the target, random records and labels."""
    keras.utils.set_random_seed(0)
    model = nets.NETS[name]()
    random = np.random.default_rng(0)
    shape = (records, *model.input_shape[1:])
    if name == "transformer":
        x = jnp.asarray(random.integers(0, 1000, shape), jnp.int32)
    else:
        x = jnp.asarray(random.normal(size=shape), jnp.float32)
    y = jnp.asarray(random.integers(0, model.output_shape[-1], records))
    return model, jm.load_target(model), x, y


def floors(params: dict[str, jax.Array], records: int) -> Runs:
    """Writing as many bytes as all gradients take."""
    shapes = {name: (records, *value.shape) for name, value in params.items()}
    fill = jax.jit(lambda v: {name: jnp.full(shape, v) for name, shape in shapes.items()})
    buffer = np.ones(records * sum(value.size for value in params.values()), np.float32)
    return {FILL: lambda: fill(0.5), REFILL: lambda: buffer.fill(0.5)}


def of_keras(model: keras.Model, x: jax.Array, y: jax.Array) -> Runs | str:
    """`jax.vmap(jax.grad)` as one would write it, or why it is not run."""

    def loss(trainable, state, x, y):
        probabilities, _ = model.stateless_call(trainable, state, x[None], training=False)
        return keras.losses.sparse_categorical_crossentropy(y[None], probabilities)[0]

    trainable = [jnp.array(v.value) for v in model.trainable_variables]
    state = [jnp.array(v.value) for v in model.non_trainable_variables]
    every = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, None, 0, 0)))
    compiled = every.lower(trainable, state, x, y).compile()
    analysis = compiled.memory_analysis()
    if analysis is not None and analysis.temp_size_in_bytes > TOO_BIG:
        return f"not run: needs {analysis.temp_size_in_bytes / 2**30:.0f} GiB"
    return {PLAIN: lambda: compiled(trainable, state, x, y)}


def of_torch(name: str, model: keras.Model, x: jax.Array, y: jax.Array) -> dict[str, Any]:
    """PyTorch's ways on the same network, or why one is not run."""
    import torch
    import torch_nets

    warnings.filterwarnings("ignore", message="Full backward hook")  # Opacus' own hooks

    net = torch_nets.with_weights(name, [np.asarray(v.value) for v in model.trainable_variables])
    images = torch.tensor(np.moveaxis(np.asarray(x), -1, 1) if x.ndim == 4 else np.asarray(x))
    given = (images.contiguous(), torch.tensor(np.asarray(y), dtype=torch.int64))
    runs: dict[str, Any] = {TORCH_BATCH: torch_nets.batch_gradient(net, *given)}
    for label, make in ((FUNC, torch_nets.by_func), (OPACUS, torch_nets.by_opacus)):
        try:
            runs[label] = make(net, *given)
            runs[label]()
        except NotImplementedError:
            runs[label] = "refused: it does not support BatchNorm"
    return runs


def total_norms(gradients: Any) -> np.ndarray:
    """Each record's norm over all variables `[n]`."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradients)]
    flat = (leaf.reshape(len(leaf), -1) for leaf in leaves)
    return np.sqrt(sum(np.einsum("ni,ni->n", leaf, leaf, dtype=np.float64) for leaf in flat))


def table(net: str, runs: dict[str, Any], repeats: int) -> str:
    """Measures, prints, and returns the line for the summary."""
    expected = total_norms(runs[ALL]())
    for name in (PLAIN, FUNC, OPACUS):
        if not isinstance(runs[name], str):
            start = time.perf_counter()
            gradients = jax.block_until_ready(runs[name]())
            once = time.perf_counter() - start
            found = total_norms(gradients)
            np.testing.assert_allclose(found, expected, rtol=2e-3, err_msg=f"{net}: {name}")
            if once > TOO_LONG:
                runs[name] = f"{once:.0f} s, run once"
    timed = {name: run for name, run in runs.items() if not isinstance(run, str)}
    small = {name: timed.pop(name) for name in (FORWARD, LAST)}
    often = max(5 * repeats, round(1 / timing.medians(small, 3)[FORWARD]))
    seconds = timing.medians(small, often) | timing.medians(timed, repeats)
    ms = {name: 1e3 * value for name, value in seconds.items()}
    rivals = [ms[name] for name in (PLAIN, FUNC, OPACUS) if name in ms]
    best = {ALL: min(rivals, default=0.0), BATCH: ms.get(TORCH_BATCH, 0.0)}
    print(f"{'':34}{'ms':>9}{'x batch':>9}{'x best':>8}")
    for name, run in runs.items():
        if isinstance(run, str):
            print(f"{name:34}{run}")
        else:
            beside = f"{ms[name] / best[name]:8.2f}" if best.get(name) else ""
            print(f"{name:34}{ms[name]:9.2f}{ms[name] / ms[BATCH]:9.2f}{beside}", flush=True)
    ratios = (
        ms[ALL] / ms[BATCH],
        ms[ALL] / ms[FILL],
        ms[NORMS] / ms[BATCH],
        ms[LAST] / ms[FORWARD],
        *(ms[name] / best[name] if best[name] else np.nan for name in (ALL, BATCH)),
    )
    return f"{net:12}" + "".join(f"{ratio:14.2f}" for ratio in ratios)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default=",".join(nets.NETS), help="names, with commas between")
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    arguments = parser.parse_args()
    installed = all(importlib.util.find_spec(name) for name in ("torch", "opacus"))
    missing = "left out" if arguments.no_torch else NO_TORCH
    torch = importlib.import_module("torch") if installed and not arguments.no_torch else None
    print(f"{timing.machine(torch=torch)}; batches of {arguments.records} records")
    print(timing.load())
    summary = []
    for name in arguments.nets.split(","):
        model, target, x, y = loaded(name, arguments.records)
        sizes = sum(value.size for value in target.params.values())
        total = arguments.records * sizes * 4 / 1e6
        print(f"\n{nets.NETS[name].__doc__}\n{sizes} weights, all gradients {total:.0f} MB")
        runs: dict[str, Any] = {n: partial(f, *args) for n, (f, args) in ours(target, x, y).items()}
        runs |= floors(target.params, arguments.records)
        plain = of_keras(model, x, y)
        runs |= {PLAIN: plain} if isinstance(plain, str) else plain
        if torch is None:
            runs |= dict.fromkeys((TORCH_BATCH, FUNC, OPACUS), missing)
        else:
            runs |= of_torch(name, model, x, y)
        summary.append(table(name, runs, arguments.repeats))
        jax.clear_caches()
    titles = ("all/batch", "all/written", "norms/batch", "last/forward", "all/best", "batch/torch")
    print(
        "\n" + " " * 12 + "".join(f"{title:>14}" for title in titles),
        *summary,
        timing.load(),
        sep="\n",
    )


if __name__ == "__main__":
    main()
