"""What a study's file is as a command: run, sweep, status, verify, gc, and what results offers."""

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich import box
from rich.table import Table

from jaxmeter.experiment.cli import results
from jaxmeter.experiment.cli.variants import (
    Option,
    apart,
    chosen,
    help_of_axes,
    help_of_variants,
    split,
    swept,
    unaffected,
)
from jaxmeter.experiment.config import Axes, Config, expand, valid
from jaxmeter.experiment.runs.maintenance import gc, verify
from jaxmeter.experiment.runs.ray import OnRay
from jaxmeter.experiment.runs.run import Outcome, attempt, name_of, status
from jaxmeter.experiment.runs.states import run_folders
from jaxmeter.experiment.runs.sweep import in_process, shard_of
from jaxmeter.experiment.serialization import ConfigError
from jaxmeter.experiment.store.store import Store, opened
from jaxmeter.terminal import bars, console, one_line

STORE = Path("jaxmeter-store")
_ON_RAY = OnRay()
_LOG = console(stderr=True)


def main(base: Config, axes: Axes = (), arguments: Sequence[str] | None = None) -> None:
    """The command line of a study; the last line of its file.

    `python STUDY.py run` computes BASE, with fields changed by `--seed 3`, `--target.widths 32`,
    and variants by name: `--target cnn --target.filters 8`, `--attacks learned negative-loss`.
    `sweep` computes all of AXES, with the same changes to BASE, and `--axes.FIELD` for an axis
    more or for other values of one: `--axes.seed 0 1 2`, `--axes.target mlp cnn`,
    `--axes.target.widths 32 64,32`. `status`, `verify` and `gc` look after the store. Types and
    help come from the config.

    The process ends with 1 if a run failed or the store is damaged, 2 for a wrong command.
    """
    try:
        base = valid(base)
        given = sys.argv[1:] if arguments is None else list(arguments)
        before, options = split(given)
        of_axes: list[Option] = []
        if before[:1] == ["sweep"]:
            of_axes, options = apart(options)
            unaffected(axes, options)
        if before[:1] in (["run"], ["sweep"]):
            base, options = chosen(base, options)
        code = tyro.extras.subcommand_cli_from_dict(
            _commands(base, axes, of_axes),
            prog=f"python {Path(sys.argv[0]).name}",
            description=f"The study {base.study!r}.",
            args=[*before, *(word for option in options for word in option.given)],
        )
    except (ConfigError, OSError, ValueError, ImportError) as error:
        _LOG.print(one_line(error), style="red", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        _LOG.print("Stopped. What was completed is in the store; the same command goes on.")
        sys.exit(130)
    if code:
        sys.exit(code)


def _commands(base: Config, axes: Axes, of_axes: Sequence[Option]) -> dict[str, Callable[..., Any]]:
    kind: Any = type(base)
    fields: Any = Annotated[kind, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]

    def run(config: Any, store: Path = STORE, shared: bool = False) -> int:
        """Compute one run: BASE, with the fields given here.

        Args:
          config: Fields of BASE.
          store: Folder, or URL, that keeps what was computed.
          shared: Let others use new files, as the umask has it; else they are yours alone.
        """

        def work(store: Store, progress: Any) -> Any:
            return [attempt(valid(config), store, progress=progress)]

        with results.said():
            outcomes = list(_watched(1, store, shared, work))
        print(one_line(opened(store).runs / outcomes[0].run))
        return _failures(outcomes)

    def sweep_command(
        config: Any,
        store: Path = STORE,
        shard: str = "1/1",
        launcher: Literal["here", "ray"] = "here",
        ray: OnRay = _ON_RAY,
        shared: bool = False,
    ) -> int:
        """Compute all runs of the study; what is there already is not computed again.

        Args:
          config: Fields of BASE.
          store: Folder, or URL, that keeps what was computed.
          shard: The part to compute, "2/4" for the second of four; for jobs of an array.
          launcher: Where the runs are computed: in this process, or by a Ray cluster.
          ray: With "--launcher ray".
          shared: Let others use new files, as the umask has it; else they are yours alone.
        """
        part = _shard(shard)
        configs = shard_of(expand(config, swept(config, axes, of_axes)), part)
        launchers: dict[str, Callable[..., Any]] = {"here": in_process, "ray": ray}
        launch = launchers[launcher]

        def work(store: Store, progress: Any) -> Any:
            return launch(configs, store, progress=progress)

        with results.said(), redirect_stdout(sys.stderr):  # where Ray says what its machines say
            outcomes = list(_watched(len(configs), store, shared, work))
        return _failures(outcomes)

    def status_command(store: Path = STORE) -> int:
        """Say how far the study is.

        Args:
          store: Folder, or URL, that keeps what was computed.
        """
        with results.said():
            return _show_status(base, axes, store)

    def verify_command(store: Path = STORE) -> int:
        """Read every byte of the store and list what is damaged.

        Args:
          store: Folder, or URL, that keeps what was computed.
        """
        damages = verify(store)
        for damage in damages:
            print(one_line(f"{damage.path}: {damage.reason}"))
        _LOG.print(f"{len(damages)} damaged." if damages else "Nothing is damaged.")
        return int(bool(damages))

    def gc_command(store: Path = STORE, remove: bool = False) -> int:
        """List what no run of this study as it is now, nor of any other study, refers to.

        Args:
          store: Folder, or URL, that keeps what was computed.
          remove: Remove it.
        """
        mine = {name_of(config) for config in expand(base, axes)}
        every = [folder.name for folder in run_folders(opened(store).runs)]
        keep = [n for n in every if n in mine or n.rpartition("-")[0] != base.study]
        with results.said() as damaged:
            found = gc(store, keep=keep, remove=remove)
        for path in found:
            print(one_line(path))
        verb = "removed" if remove else "could be removed with --remove"
        _LOG.print(f"{len(found)} {verb}.")
        return int(bool(damaged))

    variants = help_of_variants(base)
    for command, more in (
        (run, (variants,)),
        (sweep_command, (help_of_axes(axes), variants)),
    ):
        command.__annotations__["config"] = fields
        command.__defaults__ = (base, *(command.__defaults__ or ()))
        said, _, described = inspect.cleandoc(command.__doc__ or "").partition("\n\n")
        command.__doc__ = "\n\n".join([said, *filter(None, more), described])
    return {
        "run": run,
        "sweep": sweep_command,
        "status": status_command,
        "verify": verify_command,
        "gc": gc_command,
        **results.commands(base.study, STORE),
    }


def _shard(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ConfigError(f"--shard {text}: it takes 1/4 to 4/4 for four parts, say.")
    return int(i), int(n)


# --- What is shown -------------------------------------------------------------------------------


def _watched(count: int, path: Path, shared: bool, work: Callable[[Store, Any], Any]) -> Any:
    """Yields outcomes while bars and lines about them go to stderr."""
    with bars(_LOG) as shown:

        def say(text: str) -> None:
            shown.console.print(text, style="yellow", soft_wrap=True)

        runs, stage = shown.add_task("runs", total=count), shown.add_task("", total=1)

        def progress(name: str, done: int, total: int) -> None:
            shown.update(stage, description=name, completed=done, total=total)

        store = opened(path, say, shared=shared).for_a_sweep()
        for i, outcome in enumerate(work(store, progress), start=1):
            shown.update(runs, completed=i)
            line = f"{i}/{count} {outcome.run} {outcome.state}"
            if outcome.state == "done":
                stages = len(outcome.computed) + len(outcome.cached)
                there = f"{len(outcome.computed)} of {stages} stages computed"
                line += f", {outcome.seconds:.1f} s, {there if stages else 'as it was'}"
            shown.console.print(line, soft_wrap=True)
            if outcome.error:
                say(f"  {one_line(outcome.error)}")
            yield outcome


def _failures(outcomes: Sequence[Outcome]) -> int:
    """The exit code, and what to say of failures."""
    failed = [outcome for outcome in outcomes if outcome.state != "done"]
    if failed:
        _LOG.print(
            f"{len(failed)} of {len(outcomes)} runs failed; the next sweep tries them again. Their "
            "status.json has the whole traceback.",
            style="red",
        )
    return int(bool(failed))


def _show_status(base: Config, axes: Axes, store: Path) -> int:
    seen = {outcome.run: outcome for outcome in status(base.study, store)}
    wanted = dict.fromkeys(name_of(config) for config in expand(base, axes))
    rows = [seen.get(name, Outcome(run=name, state="not begun")) for name in wanted]
    others = [outcome for name, outcome in seen.items() if name not in wanted]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("State", "Of the sweep", "Other runs"):
        table.add_column(head, justify="left" if head == "State" else "right")
    for state in ("done", "failed", "running", "interrupted", "damaged", "not begun"):
        counts = [sum(o.state == state for o in of) for of in (rows, others)]
        if any(counts):
            table.add_row(state, *map(str, counts))
    out = console()
    out.print(table)
    for outcome in (*rows, *others):
        if outcome.error:
            text = one_line(f"{outcome.run} {outcome.state}: {outcome.error}")
            out.print(text, soft_wrap=True)
    return int(any(outcome.state in ("failed", "damaged") for outcome in rows))
