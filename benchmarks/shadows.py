"""How fast are reference models trained, beside loops of Keras' fit and of PyTorch?

    python benchmarks/shadows.py [--nets mlp resnet alexnet] [--k 1 4 16 64] [--short]

Every way trains k models for a number of epochs on their own halves of the records, once without
the clock (compilation, and PyTorch's first allocations) and then in turns: medians of models a
minute, as if each were trained for the recipe's epochs. Keras (JAX backend) and PyTorch train one
model after another, as every tool does; Keras' program is compiled once and its variables are
reset. PyTorch is left out where it is not installed. With `--devices 2` jaxmeter also trains on so
many devices that this processor is split into; with `--widths 4 16` also so many models at once, by
`vmap`.

`mlp` is Location-30's 446-512-256-128-30, Adam, batches of 64 of 1600 members; `resnet` and
`alexnet` are `nets`' for 32x32 images, SGD with momentum, batches of 64 of 512 members.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

if "--devices" in sys.argv:
    count = sys.argv[sys.argv.index("--devices") + 1]
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import nets
import numpy as np
import timing
from location30_references import SIZES

from jaxmeter import shadow
from jaxmeter.shadow import program

try:
    import torch
    import torch_nets
except ImportError:
    torch = None

BATCH = 64


def mlp() -> keras.Model:
    """The network of Location-30."""
    initial = [keras.initializers.RandomNormal(stddev=0.01, seed=i) for i in range(4)]
    hidden = [
        keras.layers.Dense(width, "tanh", kernel_initializer=init)
        for width, init in zip(SIZES[1:-1], initial, strict=False)
    ]
    last = keras.layers.Dense(SIZES[-1], "softmax", kernel_initializer=initial[-1])
    return keras.Sequential([keras.Input(SIZES[:1]), *hidden, last])


def torch_mlp() -> Any:
    """The same in PyTorch."""
    parts: list[Any] = []
    for a, b in zip(SIZES, SIZES[1:], strict=False):
        parts += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    return torch.nn.Sequential(*parts[:-1])


# Network -> the model in Keras and PyTorch, shape of a record, classes, records, whether Adam.
NETS: dict[str, tuple[Callable[[], Any], Callable[[], Any], tuple[int, ...], int, int, bool]] = {
    "mlp": (mlp, torch_mlp, SIZES[:1], 30, 3200, True),
    "resnet": (nets.resnet, lambda: torch_nets.resnet(), (32, 32, 3), 10, 1024, False),
    "alexnet": (nets.alexnet, lambda: torch_nets.alexnet(), (32, 32, 3), 100, 1024, False),
}


def ours(
    model: Any, x: Any, y: Any, rows: Any, epochs: int, adam: bool, devices: Any
) -> Callable[[], Any]:
    """All models as one program."""
    architecture = shadow.of_keras(model)
    config = {"optimizer": "adam"} if adam else {"optimizer": "sgd", "learning_rate": 0.01}
    recipe = shadow.RecipeConfig(epochs=epochs, batch_size=BATCH, **config).recipe()
    key = jax.random.key(0)
    return lambda: shadow.train_all(key, architecture, x, y, rows, recipe, devices=devices).losses


def at_once(
    model: Any, x: Any, y: Any, rows: Any, epochs: int, adam: bool, width: int
) -> Callable[[], Any]:
    """So many models at once, which k must be a multiple of; without drawing their weights."""
    config = {"optimizer": "adam"} if adam else {"optimizer": "sgd", "learning_rate": 0.01}
    made: dict[str, Any] = {
        "architecture": shadow.of_keras(model),
        "recipe": shadow.RecipeConfig(epochs=epochs, batch_size=BATCH, **config).recipe(),
    }
    keys = jax.random.split(jax.random.key(0), len(rows))
    each = [program.begin(key, **made) for key in keys]
    first = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *each)
    counts, data = np.array([len(rows)], np.int32), jax.device_put(program.Data(x, y))
    fixed = (keys, rows, counts, data, jax.numpy.int32(epochs))

    def run() -> Any:
        runs = jax.tree.map(jax.numpy.copy, first)  # the program takes what it is given
        found = program.advance_all(runs, *fixed, **made, width=width, mesh=None)
        return jax.block_until_ready(found.losses)

    return run


def by_keras(
    model: Any, x: Any, y: Any, rows: Any, epochs: int, adam: bool, most: int
) -> Callable[[], Any]:
    """At most so many models, one after another."""
    optimizer = keras.optimizers.Adam(1e-3) if adam else keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    initial = model.get_weights()
    parts = [(x[row], y[row]) for row in rows[:most]]

    def run() -> None:
        for inputs, labels in parts:
            model.set_weights(initial)
            for variable in optimizer.variables:
                if variable.path.rpartition("/")[2] != "learning_rate":
                    variable.assign(np.zeros(variable.shape, variable.dtype))
            model.fit(inputs, labels, batch_size=BATCH, epochs=epochs, verbose=0)

    return run


def by_torch(
    make: Callable[[], Any], x: Any, y: Any, rows: Any, epochs: int, adam: bool, most: int
) -> Callable[[], Any]:
    """Likewise."""
    x = torch.as_tensor(x if x.ndim == 2 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    y = torch.as_tensor(y, dtype=torch.int64)
    own = [torch.as_tensor(np.flatnonzero(row)) for row in rows[:most]]

    def run() -> None:
        for mine in own:
            net = make().train()
            params = net.parameters()
            optimizer: Any = torch.optim.SGD(params, 0.01, 0.9)
            if adam:
                optimizer = torch.optim.Adam(net.parameters(), 1e-3)
            for _ in range(epochs):
                order = mine[torch.randperm(len(mine))]
                for batch in order.split(BATCH):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                    optimizer.step()

    return run


def measured(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each way, in turns and in alternating order, after one run of each."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            time.sleep(0.02)
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Reference models beside Python loops.")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--k", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--epochs", type=int, help="of each run; 4 for the MLP, else 1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=int, default=4, help="models of a loop; it is linear in k")
    parser.add_argument("--devices", type=int, help="to split this processor into")
    parser.add_argument("--widths", nargs="+", type=int, default=[], help="models by vmap")
    parser.add_argument("--short", action="store_true", help="k of 1 and 4, three repeats")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.k, arguments.repeats, arguments.most = [1, 4], 3, 1
    print(timing.machine(torch), timing.load(), sep="\n")
    print("steps a second of all models together; in brackets jaxmeter's pace over the other's\n")
    for name in arguments.nets:
        make, make_torch, shape, classes, n, adam = NETS[name]
        epochs = arguments.epochs or (4 if adam else 1)
        random = np.random.default_rng(0)
        x = (
            random.integers(0, 2, (n, *shape)).astype(np.float32)
            if adam
            else random.normal(size=(n, *shape)).astype(np.float32)
        )
        y = random.integers(0, classes, n).astype(np.int32)
        for k in arguments.k:
            rows = shadow.balanced_membership(jax.random.key(0), k + k % 2, n)[:k]
            part = np.flatnonzero(rows.any(axis=0))  # k=1: only its own records
            mine = (x[part], y[part], rows[:, part])
            most = min(k, arguments.most)
            one = jax.devices()[:1]
            runs = {"jaxmeter": ours(make(), *mine, epochs, adam, one)}
            if arguments.devices and k > 1:
                runs[f"on {arguments.devices}"] = ours(make(), *mine, epochs, adam, jax.devices())
            for width in (width for width in arguments.widths if not k % width):
                runs[f"{width} at once"] = at_once(make(), *mine, epochs, adam, width)
            runs["Keras"] = by_keras(make(), *mine, epochs, adam, most)
            if torch is not None:
                runs["PyTorch"] = by_torch(make_torch, *mine, epochs, adam, most)
            found = measured(runs, arguments.repeats)
            steps = epochs * -(-n // 2 // BATCH)
            pace = {
                who: steps * (most if who in {"Keras", "PyTorch"} else k) / seconds
                for who, seconds in found.items()
            }
            cells = [f"{who} {p:8.1f} ({pace['jaxmeter'] / p:.2f})" for who, p in pace.items()]
            print(f"{name:8} k={k:<3} " + "  ".join(cells), flush=True)
    print(timing.load())


if __name__ == "__main__":
    main()
