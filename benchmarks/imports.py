"""What it costs to begin: `import jaxmeter` and `jaxmeter --help` over `import jax`.

Each in a fresh process, in turn, several times; processor seconds (user and system), medians. The
first round is not counted: it writes the compiled files that later ones read.

    python benchmarks/imports.py
"""

import os
import statistics
import subprocess
import sys

ROUNDS = 9
PROGRAMS = {
    "import jax": "import jax",
    "import jaxmeter": "import jaxmeter",
    "jaxmeter --help": "import sys; sys.argv = ['jaxmeter', '--help']; "
    "from jaxmeter.cli import main; main()",
}


def seconds(program: str) -> float:
    """Processor time of a fresh process."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = os.times()
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    """Prints seconds and ratios."""
    rounds = [{name: seconds(code) for name, code in PROGRAMS.items()} for _ in range(ROUNDS + 1)]
    base = statistics.median(each["import jax"] for each in rounds[1:])
    for name in PROGRAMS:
        found = statistics.median(each[name] for each in rounds[1:])
        print(f"{name:18} {found:5.2f} s {found / base:6.2f}")


if __name__ == "__main__":
    main()
