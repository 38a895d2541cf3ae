"""What it gains to compute records in chunks that stay in the caches, network by network.

    python benchmarks/chunks.py [--nets resnet,separable] [--records 128] [--repeats 9]

jaxmeter's programs of `benchmarks/gradients.py`, each compiled twice, with chunks and without, and
the two run in turns; medians.
"""

import argparse
from functools import partial

import gradients
import jax
import nets
import timing

from jaxmeter.jaxpr import chunks


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default=",".join(nets.NETS), help="names, with commas between")
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(timing.machine(), timing.load(), sep="\n")
    cache = chunks.CACHE
    for name in arguments.nets.split(","):
        _, target, x, y = gradients.loaded(name, arguments.records)
        runs = {}
        for size in (cache, 2**62):
            chunks.CACHE = size
            jax.clear_caches()
            for program, (fun, args) in gradients.ours(target, x, y).items():
                if program != gradients.FORWARD:
                    runs[program, size] = partial(fun.lower(*args).compile(), *args)
        chunks.CACHE = cache
        print(f"\n{nets.NETS[name].__doc__}\n{'':34}{'chunks':>9}{'whole':>9}{'ratio':>7}")
        for program in dict.fromkeys(program for program, _ in runs):
            pair = {str(size): runs[program, size] for size in (cache, 2**62)}
            often = max(arguments.repeats, round(0.5 / max(timing.medians(pair, 3).values())))
            with_, without = (1e3 * value for value in timing.medians(pair, often).values())
            print(f"{program:34}{with_:9.2f}{without:9.2f}{with_ / without:7.2f}", flush=True)
    print(timing.load())


if __name__ == "__main__":
    main()
