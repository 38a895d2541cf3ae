"""How long ML Privacy Meter's text format takes to read and write, and the memory it needs.

    python benchmarks/text.py [--records 60000] [--data cifar100.npz]

As many images of CIFAR's size as asked for (random ones, or those of `--data`, an npz with x_train,
y_train, x_test, y_test) are written as text, with five sixths of the rows, the members', as a
string array beside it; then each is read in a process of its own, which reports its own largest
resident memory (VmHWM). 60,000 records are about 650 MB of text.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = (32, 32, 3)


def images(records: int, data: str | None) -> tuple[np.ndarray, np.ndarray]:
    """`x [n, 32, 32, 3]` and `y [n]`."""
    if data is None:
        random = np.random.default_rng(0)
        x = random.integers(0, 256, (records, *SHAPE), dtype=np.uint8)
        return x, (np.arange(records) % 100).astype(np.int32)
    with np.load(data) as archive:
        x, y = (np.concatenate([archive[f"{a}_train"], archive[f"{a}_test"]]) for a in "xy")
    return x[:records], y[:records].reshape(-1).astype(np.int32)


def highest_mib() -> float:
    """The largest resident memory of this process so far; NaN where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def timed(what: str, folder: Path) -> None:
    """Reads in this process, and prints seconds and memory."""
    import jaxmeter as jm
    from jaxmeter.data.privacy_meter import read_rows

    before = highest_mib()
    start = time.perf_counter()
    if what == "text":
        n = len(read_rows(folder / "d.txt", SHAPE)[1])
    else:
        n = len(jm.read_privacy_meter(folder / "d.txt", folder / "d.npy", SHAPE).y)
    seconds = time.perf_counter() - start
    print(
        f"  {n:,} records: {seconds:.1f} s, at most {highest_mib():,.0f} MiB ({before:,.0f} before)"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="ML Privacy Meter's text format.")
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--data", help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--read", choices=["text", "both"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        timed(arguments.read, arguments.folder)
        return
    import jaxmeter as jm

    x, y = images(arguments.records, arguments.data)
    records = jm.Records(x, y, np.arange(len(y)) < len(y) * 5 // 6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        jm.write_privacy_meter(folder / "d.txt", records, folder / "d.npy")
        seconds = time.perf_counter() - start
        sizes = [(folder / file).stat().st_size / 1e6 for file in ("d.txt", "d.npy")]
        print(f"{sizes[0]:,.0f} MB of text, {sizes[1]:,.0f} MB of members' rows")
        print(f"written in {seconds:.1f} s", flush=True)
        for what in ("text", "both"):
            print("the text alone:" if what == "text" else "both files, members found:", flush=True)
            command = [sys.executable, __file__, "--read", what, "--folder", name]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
