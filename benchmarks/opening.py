"""Which model files open, and what they compute: to be run at two commits and compared.

    python benchmarks/opening.py FOLDER ... --out table.json
    python benchmarks/opening.py --compare before.json after.json

Every model file and SavedModel folder below the folders is loaded (a `.json` architecture with the
weights beside it, `NAME.json.weights.h5`). A row holds what happened, the seconds, and the logits
on one seeded batch. The comparison lists the files whose outcome or logits differ.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jaxmeter as jm

SUFFIXES = {".keras", ".h5", ".hdf5", ".onnx", ".json"}


def model_files(folders: list[Path]) -> list[Path]:
    """Model files and SavedModel folders, sorted."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_dir() and (path / "saved_model.pb").exists():
                found.append(path)
            elif path.suffix in SUFFIXES and not path.name.endswith(".weights.h5"):
                found.append(path)
    return found


def opened(path: Path) -> dict:
    """What loading one file came to."""
    weights = None
    if path.suffix == ".json":
        beside = (path.with_name(f"{path.name}.weights.h5"), path.with_suffix(".weights.h5"))
        weights = next((p for p in beside if p.exists()), None)
    began = time.monotonic()
    try:
        target = jm.load_target(path, weights=weights)
    except Exception as error:
        return {"outcome": type(error).__name__, "message": str(error)}
    seconds = time.monotonic() - began
    random = np.random.default_rng(0)
    shape = (4, *(d or 32 for d in target.spec.input_shape or ()))
    high = 2 if "int" in target.spec.input_dtype else None
    x = random.random(shape) if high is None else random.integers(0, high, shape)
    logits = np.asarray(target(jnp.asarray(x, target.spec.input_dtype)).logits, np.float64)
    source = target.spec.source
    return {
        "outcome": "opened",
        "message": f"{source.route}, {getattr(source, 'opened_in', '')}",
        "difference": source.difference,
        "variables": list(target.spec.variables),
        "layers": list(target.spec.layers),
        "seconds": round(seconds, 2),
        "logits": logits.tolist(),
    }


def compared(before: dict, after: dict) -> list[str]:
    """A line for each file that came out otherwise."""
    lines = []
    for name in sorted(before | after):
        a, b = before.get(name), after.get(name)
        if a is None or b is None:
            lines.append(f"{name}: only {'after' if a is None else 'before'}")
        elif a["outcome"] != b["outcome"]:
            lines.append(f"{name}: {a['outcome']} -> {b['outcome']}: {b['message']}")
        elif a["outcome"] == "opened":
            gap = float(np.max(np.abs(np.subtract(a["logits"], b["logits"]))))
            names = [key for key in ("variables", "layers") if a[key] != b[key]]
            if gap > 1e-5 or names:
                lines.append(f"{name}: logits differ by {gap:.1e}; other {', '.join(names)}")
    return lines


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", nargs=2, type=Path)
    given = parser.parse_args()
    if given.compare:
        before, after = (json.loads(path.read_text()) for path in given.compare)
        lines = compared(before, after)
        opened_now = sum(row["outcome"] == "opened" for row in after.values())
        print(f"{len(after)} files, {opened_now} open; {len(lines)} came out otherwise")
        print("\n".join(lines))
        return
    warnings.simplefilter("ignore")
    rows = {}
    for path in model_files(given.folders):
        rows[str(path)] = row = opened(path)
        print(f"{row['outcome']:12} {row.get('seconds', ''):>6} {path} {row['message'][:100]}")
    if given.out:
        given.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
