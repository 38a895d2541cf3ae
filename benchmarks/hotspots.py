"""Which operations of a compiled program take the time.

    python benchmarks/hotspots.py resnet [--program "batch gradient"] [--records 128] [--rows 12]

Runs one of jaxmeter's programs of `benchmarks/gradients.py` under JAX's profiler and prints each
operation's least time over the runs, its share of the sum, its type and where it comes from.
Operations that run side by side count in full, so that the sum can exceed the time of the program.
"""

import argparse
import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import gradients
import jax
import timing

RUNS = 9


def operations(program: Any, args: tuple) -> dict[str, float]:
    """Name -> milliseconds."""
    run = program.lower(*args).compile()
    jax.block_until_ready(run(*args))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(RUNS):
                jax.block_until_ready(run(*args))
        (trace,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    found: dict[str, list[float]] = {}
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if event.get("ph") == "X" and name:
            found.setdefault(name, []).append(event["dur"] / 1e3)
    # An operation inside a loop has many events a run.
    return {name: min(times) * max(1, len(times) // RUNS) for name, times in found.items()}


def sources(program: Any, args: tuple) -> dict[str, str]:
    """Name -> the operation's type and origin, from the compiled program's text."""
    text = program.lower(*args).compile().as_text()
    found = {}
    for line in text.splitlines():
        if match := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+?)(?:\{\S*)? ", line):
            origin = re.search(r'op_name="([^"]*)"', line)
            found[match[1]] = f"{match[2]:24} {origin[1][-70:] if origin else ''}"
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=gradients.nets.NETS)
    parser.add_argument("--program", default=gradients.BATCH)
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--rows", type=int, default=12)
    arguments = parser.parse_args()
    _, target, x, y = gradients.loaded(arguments.net, arguments.records)
    program, args = gradients.ours(target, x, y)[arguments.program]
    print(timing.machine(), timing.load(), sep="\n")
    found = operations(program, args)
    origin = sources(program, args)
    total = sum(found.values())
    print(f"\n{gradients.nets.NETS[arguments.net].__doc__} {arguments.program}: {total:.1f} ms")
    for name, ms in sorted(found.items(), key=lambda item: -item[1])[: arguments.rows]:
        print(f"{ms:8.2f}{ms / total:6.0%}  {name:32}{origin.get(name, '')}")


if __name__ == "__main__":
    main()
