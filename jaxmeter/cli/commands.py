"""The command line: `jaxmeter demo`, `audit`, `inspect`, `convert` and `sweep`."""

import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.progress import TaskID

import jaxmeter as jm
from jaxmeter.cli.inspect import facts_table, layers_table, sizes_text, totals
from jaxmeter.data.npz import read_arrays, read_npz, write_arrays, write_npz
from jaxmeter.data.readers import FOLDER, READERS, formats, options_of, read_pair
from jaxmeter.data.records import DataWarning
from jaxmeter.disk import is_litter, make_folder
from jaxmeter.metrics import MetricWarning
from jaxmeter.report.report import Report, check_folder
from jaxmeter.terminal import bars, console, one_line

_LOG = console(stderr=True)
_RECIPE = jm.shadow.RecipeConfig()
_TEXT = "privacy_meter"

# How records are read, as options of a command: what the table of readers says, and no more.
_reading: Any = make_dataclass(
    "Reading",
    [
        (name, Annotated[kind | None, tyro.conf.arg(help=text)], None)
        for name, kind, text in (
            (
                "format",
                Literal[tuple(reader.name for reader in READERS)],
                f"Format of the records. Default: by the ending. {formats()}.",
            ),
            ("scale", float, "What x is divided by, e.g. 255 for images of bytes."),
            # --max-bytes of an audit is what opening the model may take.
            *(option for option in options_of(READERS) if option.name != "max_bytes"),
        )
    ],
    frozen=True,
)
_READING = _reading()
if TYPE_CHECKING:  # a type that no checker knows: the table of readers makes it
    Reading = Any
else:
    Reading = Annotated[_reading, tyro.conf.OmitArgPrefixes]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a model's file is opened.

    Attributes:
      head: What to audit of a model with several outputs, labels or time steps: an output's name or
        1-based number or a layer's name, then 0-based indices: "--head tags 3".
      weights: For a .json architecture, its weights: .h5 or a TensorFlow checkpoint's prefix.
      trust: Open models with any layer or operation, which may run code of their own. Only files
        you made.
      max_bytes: Memory that opening a model may take. Default: a limit that grows with its file.
      max_seconds: Time that opening a model may take. Default: likewise.
    """

    head: tuple[str, ...] = ()
    weights: Path | None = None
    trust: bool = False
    max_bytes: int | None = None
    max_seconds: float | None = None

    def load(self, file: Path) -> jm.Target:
        """The target in a file."""
        return jm.load_target(
            file,
            output=_choice(self.head),
            weights=self.weights,
            trust=self.trust,
            max_bytes=self.max_bytes,
            max_seconds=self.max_seconds,
        )


_OPENING = Opening()


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Audit your own model: who could tell its training records from others, and how well?

    Runs training-free attacks, a learned black-box attack (logits, loss, label) and a learned
    white-box attack (gradients and outputs of the layers you name, loss, label) on the same
    held-out records. Prints a table; writes report.html, results.json, scores.npz and figures.

    Attributes:
      target: The trained classifier: .keras, .h5, .onnx, .json or a SavedModel folder.
      members: Records the target was trained on: .npz with x [n, ...] and y [n], or a file or
        folder of another format.
      nonmembers: Records it was not trained on, drawn as the members were; likewise.
      out: Folder for the report; an earlier report there is replaced.
      gradients: Layers or variables whose gradients the white box reads. Default: last layer.
      outputs: Layers whose outputs the white box reads; "logits" is always one.
      gradient_norms: Let the white box read every layer's gradient norm too.
      references: How many models like the target to train, an even number, for the attacks that
        compare it with such (LiRA, RMIA, ...); 0 for none, 16 to 64 for good.
      architecture: .keras or .h5 of the reference models' architecture, whose weights do not count.
        Default: the target's own file.
      recipe: How reference models are trained. The more like the target, the stronger the attacks.
      augment: Mirror and shift the images in training reference models, as usual for photographs.
      checkpoint: Folder for finished reference models; after a kill the same command goes on there.
      epochs: Passes over the fit part in training the learned attacks.
      seed: The split, initial weights, batches and dropout follow from it.
      fractions: Shares to fit on, to select epochs and thresholds on, to hold out.
      overlap: What to do with a record given both as member and as non-member.
      device_mib: Memory the target and one batch may take on the device, in MiB.
      host_mib: Memory all signals may take, of the target and of reference models, in MiB.
      opening: How the model's file is opened.
      reading: How the records are read.
    """

    target: Path
    members: Path
    nonmembers: Path
    out: Path = Path("jaxmeter-report")
    gradients: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("logits",)
    gradient_norms: bool = False
    references: int = 0
    architecture: Path | None = None
    recipe: tyro.conf.AvoidSubcommands[jm.shadow.RecipeConfig] = _RECIPE
    augment: bool = False
    checkpoint: Path | None = None
    epochs: int = jm.FitConfig().epochs
    seed: int = 0
    fractions: tuple[float, float, float] = (0.4, 0.1, 0.5)
    overlap: Literal["error", "drop"] = "error"
    device_mib: int = 1024
    host_mib: int = 8192
    opening: tyro.conf.OmitArgPrefixes[Opening] = _OPENING
    reading: Reading = _READING

    @property
    def shadows(self) -> jm.Shadows | None:
        """The reference models to be trained, if any."""
        if not self.references:
            return None
        opening, augment = self.opening, jm.shadow.MirrorAndShift() if self.augment else None
        return jm.Shadows(
            architecture=jm.shadow.of_file(
                self.architecture or self.target,
                trust=opening.trust,
                max_bytes=opening.max_bytes,
                max_seconds=opening.max_seconds,
            ),
            recipe=replace(self.recipe, augment=augment),
            k=self.references,
            checkpoint=self.checkpoint,
        )

    def attacks(self, model: jm.Target) -> tuple[jm.AttackConfig, ...]:
        """What is run on the model."""
        white = jm.SignalSpec(
            outputs=self.outputs,
            gradients=self.gradients or jm.signals.white_box(model).gradients,
            gradient_norm=self.gradient_norms,
        )
        config = jm.FitConfig(epochs=self.epochs)
        return (
            *jm.TRAINING_FREE,
            jm.Learned(spec=jm.SignalSpec(), name="black box", config=config),
            jm.Learned(spec=white, name="white box", config=config),
            *(jm.WITH_REFERENCES if self.references else ()),
            jm.Blind(),
        )


def demo(out: Path = Path("jaxmeter-demo"), seed: int = 0) -> None:
    """Train a small CNN until it overfits, and audit it; takes about a minute.

    The data are scikit-learn's handwritten digits; half of them are the target's training set. The
    target is saved as a .keras file and loaded back, as you would do with your own.

    Args:
      out: Folder for the target and the report; an earlier demo's is replaced.
      seed: Everything random follows from it.
    """
    from jaxmeter.cli import demo as digits

    report_folder = out / "report"
    check_folder(report_folder)
    names = (path.name for path in out.iterdir()) if out.is_dir() else ()
    found = {name for name in names if not is_litter(name)}
    if found - set(digits.FILES) - {"report"} or (found and "report" not in found):
        raise FileExistsError(
            f"{out} holds {', '.join(sorted(found))}, which an earlier demo did not write alone; "
            "nothing was changed. Choose another folder with --out."
        )
    make_folder(out)
    _LOG.print("Training a CNN on half of scikit-learn's digits ...")
    members, nonmembers = digits.train(out, seed=seed)
    _LOG.print(
        f"Saved {out / 'target.keras'}, {out / 'members.npz'}, {out / 'nonmembers.npz'}.",
        soft_wrap=True,
    )
    _LOG.print("The audit below is the same as")
    _LOG.print(
        f"  jaxmeter audit --target {out}/target.keras --members {out}/members.npz "
        f"--nonmembers {out}/nonmembers.npz --out {report_folder} --seed {seed}",
        style="bold",
        soft_wrap=True,
    )
    target = out / "target.keras"
    audit(
        Audit(target=target, members=members, nonmembers=nonmembers, out=report_folder, seed=seed)
    )


def audit(options: Audit) -> None:
    """Runs an audit, prints its table and writes its report."""
    check_folder(options.out)
    model = options.opening.load(options.target)
    if model.spec.source.difference is not None:
        _LOG.print(
            f"Loaded {options.target}: on a probe batch its outputs differ from the original's by "
            f"at most {model.spec.source.difference:.1g}.",
            soft_wrap=True,
        )
    reading = _chosen_options(options.reading)
    records = read_pair(
        options.members, options.nonmembers, n_classes=model.spec.n_classes, **reading
    )
    shadows = options.shadows
    with _progress() as progress:
        report = jm.audit(
            model,
            records,
            key=jax.random.key(options.seed),
            attacks=options.attacks(model),
            references=shadows,
            fractions=options.fractions,
            overlap=options.overlap,
            device_budget=options.device_mib * 2**20,
            host_budget=options.host_mib * 2**20,
            progress=progress,
        )
    report = replace(report, seed=str(options.seed))
    _show(report, report.save(options.out))


def inspect(
    target: tyro.conf.Positional[Path],
    opening: tyro.conf.OmitArgPrefixes[Opening] = _OPENING,
) -> None:
    """Show what there is in a model: its layers, their variables, and what attacks can ask for.

    Args:
      target: The trained classifier: .keras, .h5, .onnx, .json or a SavedModel folder.
      opening: How the model's file is opened.
    """
    model = opening.load(target)
    out = console()
    out.print(facts_table(model))
    out.print(layers_table(model))
    total = totals(model)
    out.print(
        f"{total.layers:,} layers, {total.trainable_layers:,} with gradients. "
        f"{total.parameters:,} trainable parameters; {total.state:,} other numbers."
    )


def convert(
    file: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    members: Path | None = None,
    reading: Reading = _READING,
) -> None:
    """Convert records of any format to .npz, or from .npz to ML Privacy Meter's text.

    The .npz holds x and y, and of ML Privacy Meter's text is_member. Nothing is overwritten.

    Args:
      file: Text, one record a line, "f1,f2,...;label" or "channel 1;channel 2;...;label"; a file or
        folder of another format; or .npz with x, y and, where the members are to be written too,
        is_member.
      out: The .npz or the text to write.
      members: The .npy of the members' rows, read beside a text and written beside one. Default:
        the text's name with .npy after it.
      reading: How the records are read. Default: an ending of no other format is text.
    """
    kinds = file.suffix == ".npz", out.suffix == ".npz"
    if kinds[0] == kinds[1]:
        raise ValueError(
            f"{file.name} to {out.name}: one of them must be .npz, the other ML Privacy Meter's "
            "text, or records of another format to read."
        )
    is_text = not kinds[0] and _is_text(file, reading)
    unused = _chosen_options(reading).keys() - {"format", "input_shape"}
    if (kinds[0] or is_text) and unused:
        flag = min(unused).replace("_", "-")
        raise ValueError(f"--{flag} has no use for {file.name}: its records stay as they are.")
    text = out if kinds[0] else file
    beside = members or text.with_name(f"{text.name}.npy")
    if kinds[0]:
        x, y = read_npz(file)
        inside = read_arrays(file, (), optional=("is_member",)).get("is_member")
        if members is not None and inside is None:
            raise ValueError(f"{file} has no is_member, so there are no members' rows to write.")
        known = np.zeros(len(y), bool) if inside is None else np.asarray(inside, bool)
        if known.shape != y.shape:
            raise ValueError(f"{file} has {len(y)} records but is_member of shape {known.shape}.")
        records = jm.Records(x, y, known)
        jm.write_privacy_meter(out, records, None if inside is None else beside)
        written = f"{out}" if inside is None else f"{out}, {beside}"
    elif out.exists():
        raise FileExistsError(f"{out} is there already; nothing was written. Name another.")
    elif not is_text:
        x, y = jm.read_records(file, **_chosen_options(reading))
        write_arrays(out, x=x, y=y)
        shape = sizes_text(x.shape[1:])
        _LOG.print(f"Wrote {out}: {len(y):,} records of shape {shape}.", soft_wrap=True)
        return
    else:
        records = jm.read_privacy_meter(file, beside, reading.input_shape)
        write_npz(out, records)
        written = f"{out}"
    _LOG.print(
        f"Wrote {written}: {len(records.y):,} records of shape {sizes_text(records.x.shape[1:])}, "
        f"{int(records.is_member.sum()):,} of them members.",
        soft_wrap=True,
    )


def sweep(study: tyro.conf.Positional[Path]) -> None:
    """Run a study: "jaxmeter sweep STUDY.py" is "python STUDY.py sweep", options included.

    Another of the study's commands follows the file: "jaxmeter sweep STUDY.py status". For all
    options: "jaxmeter sweep STUDY.py --help".

    Args:
      study: The study's file, which ends by calling jaxmeter.experiment.main.
    """
    _study([str(study)])


def _study(arguments: Sequence[str]) -> None:
    """Runs a study's file as Python would, with these arguments."""
    path, *rest = arguments
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no study {path!r}; name a Python file.")
    named = bool(rest) and not rest[0].startswith("-")
    before = sys.argv, sys.path[:]
    sys.argv = [path, *([] if named else ["sweep"]), *rest]
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `jaxmeter` command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    warnings.simplefilter("ignore", MetricWarning)  # the report carries them as notes
    warnings.simplefilter("ignore", DataWarning)
    try:
        if given[:1] == ["sweep"] and len(given) > 1 and not given[1].startswith("-"):
            _study(given[1:])
            return
        options = tyro.extras.subcommand_cli_from_dict(
            {"demo": demo, "audit": Audit, "inspect": inspect, "convert": convert, "sweep": sweep},
            prog="jaxmeter",
            description="Measure how much a trained classifier gives away about its training data.",
            args=given,
        )
        if options is not None:
            audit(options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        _LOG.print(f"jaxmeter: {one_line(error)}", style="red", soft_wrap=True)
        sys.exit(2)


def _chosen_options(reading: Any) -> dict[str, Any]:
    """What was said of the records' format."""
    return {name: value for name, value in vars(reading).items() if value is not None}


def _is_text(file: Path, reading: Any) -> bool:
    """Whether records are ML Privacy Meter's text, whose files had any ending or none."""
    if reading.format is not None:
        return reading.format == _TEXT
    ending = FOLDER if file.is_dir() else file.suffix.lower()
    return not any(ending in reader.endings for reader in READERS if reader.name != _TEXT)


def _choice(pieces: tuple[str, ...]) -> str | int | tuple[str | int, *tuple[int, ...]] | None:
    """What `--head` means to `load_target`."""
    if not pieces:
        return None
    name = int(pieces[0]) if pieces[0].isdecimal() else pieces[0]
    try:
        indices = [int(piece) for piece in pieces[1:]]
    except ValueError:
        raise ValueError(
            f"--head {' '.join(pieces)}: after the name of one output or layer come only 0-based "
            'integers, which choose a part of it, as in "--head tags 3".'
        ) from None
    return (name, *indices) if indices else name


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, on stderr, gone when done."""
    with bars(_LOG) as shown:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)

        yield progress


def _show(report: Report, folder: Path) -> None:
    out = console()
    out.print(report.table())
    out.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
