"""The command line: `jaxmeter demo` and `jaxmeter audit`."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import jax
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

import jaxmeter as jm
from jaxmeter.data import DataWarning, read_npz
from jaxmeter.metrics import MetricWarning
from jaxmeter.report import Report, check_folder

_LOG = Console(stderr=True)


def demo(out: Path = Path("jaxmeter-demo"), seed: int = 0) -> None:
    """Train a small CNN until it overfits, and audit it; takes about a minute.

    The data are scikit-learn's handwritten digits; half of them are the target's training set. The
    target is saved as a .keras file and loaded back, as you would do with your own.

    Args:
      out: folder for the target and the report; an earlier demo's is replaced.
      seed: everything random follows from it.
    """
    from jaxmeter import demo as digits

    report_folder = out / "report"
    check_folder(report_folder)
    out.mkdir(parents=True, exist_ok=True)
    _LOG.print("Training a CNN on half of scikit-learn's digits ...")
    members, nonmembers = digits.train(out, seed=seed)
    _LOG.print(f"Saved {out / 'target.keras'}, {out / 'members.npz'}, {out / 'nonmembers.npz'}.")
    _LOG.print("The audit below is the same as")
    _LOG.print(
        f"  jaxmeter audit --target {out}/target.keras --members {out}/members.npz "
        f"--nonmembers {out}/nonmembers.npz --out {report_folder} --seed {seed}",
        style="bold",
        soft_wrap=True,
    )
    audit(out / "target.keras", members, nonmembers, out=report_folder, seed=seed)


def audit(
    target: Path,
    members: Path,
    nonmembers: Path,
    out: Path = Path("jaxmeter-report"),
    gradients: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("logits",),
    gradient_norms: bool = False,
    epochs: int | None = None,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.4, 0.1, 0.5),
    overlap: Literal["error", "drop"] = "error",
    trust: bool = False,
) -> None:
    """Audit your own model: who could tell its training records from others, and how well?

    Runs the training-free attacks, the learned black-box attack (logits, loss, label) and the
    learned white-box attack (per-example gradients and outputs of the layers you name, loss, label)
    on the same held-out records; prints a table and writes report.html, results.json, scores.npz
    and figures.

    Args:
      target: the trained classifier, a .keras or .h5 file.
      members: .npz with x [n, ...] and y [n]: records the target was trained on.
      nonmembers: .npz with x and y: records of the same kind that it was not trained on. Draw them
        from the same distribution, or every attack will look good for the wrong reason; the row
        "blind baseline" tells.
      out: folder for the report; created, or replaced if an earlier report stands there.
      gradients: layers or variables whose per-example gradients the white-box attack reads, e.g.
        dense_2 or conv2d/kernel; the last layer if none are named.
      outputs: layers whose outputs the white-box attack reads; "logits" can always be asked for.
      gradient_norms: also read the gradient norm of every layer.
      epochs: passes over the fit part when training the learned attacks; default as tuned.
      seed: the split, the attacks' initial weights and batches follow from it.
      fractions: shares of the records to fit learned attacks, to select epochs and thresholds, and
        to hold out for the figures.
      overlap: what to do if a record is given both as member and as non-member.
      trust: load a model that contains Python code (Lambda layers). Only for files you made.
    """
    check_folder(out)
    model = jm.load_target(target, trust=trust)
    source = model.spec.source
    if source.difference is not None:
        _LOG.print(
            f"Loaded {target}: differs from {source.route} by at most {source.difference:.1e}."
        )
    records = jm.Records.of(
        members=read_npz(members, n_classes=model.spec.n_classes),
        nonmembers=read_npz(nonmembers, n_classes=model.spec.n_classes),
        n_classes=model.spec.n_classes,
    )
    white = jm.SignalSpec(
        outputs=outputs,
        gradients=gradients or jm.signals.white_box(model).gradients,
        gradient_norm=gradient_norms,
    )
    config = jm.FitConfig() if epochs is None else jm.FitConfig(epochs=epochs)
    with _progress() as progress:
        report = jm.audit(
            model,
            records,
            key=jax.random.key(seed),
            attacks=(
                *jm.TRAINING_FREE,
                jm.Learned(spec=jm.SignalSpec(), config=config),
                jm.Learned(spec=white, config=config),
            ),
            fractions=fractions,
            overlap=overlap,
            progress=progress,
        )
    _show(report, report.save(out))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `jaxmeter` command."""
    warnings.simplefilter("ignore", MetricWarning)  # the report carries them as notes
    warnings.simplefilter("ignore", DataWarning)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"demo": demo, "audit": audit},
            prog="jaxmeter",
            description="Measure how much a trained classifier gives away about its training data.",
            args=arguments,
        )
    except (ValueError, TypeError, OSError) as error:
        _LOG.print(f"jaxmeter: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, on stderr, gone when done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_LOG, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress


def _show(report: Report, folder: Path) -> None:
    console = Console()
    console.print(report.table())
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
