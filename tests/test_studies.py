"""The studies: what is in them, and that they run as their pages say."""

import hashlib
import http.server
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
import pytest
from conftest import REPOSITORY

import jaxmeter as jm
from jaxmeter import cli, experiment
from jaxmeter.attacks.suite import spec_of
from jaxmeter.attacks.white_box import stacked
from jaxmeter.cli import demo as digits
from jaxmeter.cli.commands import demo
from jaxmeter.experiment import download, results
from jaxmeter.experiment.runs import sweep
from jaxmeter.experiment.stages import examination, references
from jaxmeter.reference import NetworkConfig
from jaxmeter.shadow import RecipeConfig

RUNS = {
    "alexnet_cifar100": 5,
    "alexnet_cifar100_known": 25,
    "alexnet_cifar100_layers": 5,
    "calibrated_whitebox": 120,
    "calibrated_whitebox_signals": 24,
    "calibrated_whitebox_unlike": 5,
    "demo": 3,
    "digits_training_size": 25,
    "fcn_location30": 5,
    "fcn_purchase100": 5,
    "location30_layers": 3,
    "references_cifar100": 3,
    "references_location30": 9,
}
UNMEASURED = ("fcn_purchase100",)
STUDIES = sorted((REPOSITORY / "experiments").glob("*.py"))
PAGES = ("docs/sweeps.md", "docs/studies.md")
COMMAND = re.compile(
    r"^\$? *(?:JAXMETER_DATA=\S+ )?(python|jaxmeter sweep) (experiments/.*)$", re.M
)
FASTEST = "--xla_backend_optimization_level=0"  # to compile
TINY = ("--data.members", "60", "--data.nonmembers", "60", "--target.training.epochs", "1")


@pytest.fixture(name="study")
def load_fixture(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a study as a module, by name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "experiments"))
    loaded = []

    def load(name: str) -> ModuleType:
        loaded.append(name)
        return importlib.import_module(name)

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Studies and arguments of the commands in a text, without what a shell does about them."""
    found = []
    for way, line in COMMAND.findall(text):
        file, *rest = shlex.split(line, comments=True)
        named = bool(rest) and not rest[0].startswith("-")
        found.append((Path(file).stem, rest if named or way == "python" else ["sweep", *rest]))
    return found


# --- What is in the files ------------------------------------------------------------------------


def test_every_study_is_here():
    assert [path.stem for path in STUDIES] == sorted(RUNS)
    number = {11: "eleven", 12: "twelve", 13: "thirteen", 14: "fourteen"}[len(STUDIES)]
    assert f"`experiments/` has {number};" in (REPOSITORY / "docs/sweeps.md").read_text()
    page = (REPOSITORY / "docs/studies.md").read_text()
    assert all(f"experiments/{name}.py" in page for name in RUNS)


@pytest.mark.parametrize(("name", "runs"), RUNS.items())
def test_a_study_says_what_it_is_and_expands(name: str, runs: int, study: Any):
    module = study(name)
    configs = experiment.expand(module.BASE, module.AXES)
    assert module.BASE.study == name
    assert len(set(map(experiment.to_json, configs))) == runs
    assert all(experiment.from_json(experiment.to_json(config)) == config for config in configs)
    said = commands(module.__doc__)
    assert said[0] == (name, ["sweep"]) and said[1][1][0] == "table"
    assert all(of == name for of, _ in said)
    if name in UNMEASURED:
        assert "not measured" in module.__doc__ and "± " not in module.__doc__
        return
    assert re.search(r"\d+ (seconds|minutes)", module.__doc__), "no cost"
    measured = set(re.findall(r"^\| ([^|]*?) \|", module.__doc__, re.MULTILINE))
    assert {attack.name for attack in module.BASE.attacks} <= measured, "no figures"


@pytest.mark.parametrize("source", [*(path.relative_to(REPOSITORY) for path in STUDIES), *PAGES],
                         ids=str)  # fmt: skip
def test_the_commands_in_the_pages_are_valid(
    source: Path | str, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    computed: list[Any] = []

    def noted(config: Any, store: Any, **options: Any) -> experiment.Outcome:
        computed.append(config)
        return experiment.Outcome(run=config.study, state="done")

    monkeypatch.setattr(sweep, "attempt", noted)
    monkeypatch.chdir(tmp_path)
    found = commands((REPOSITORY / source).read_text())
    assert found, "no commands were recognised"
    for name, arguments in found:
        module = study(name)
        assert arguments, "the command does nothing"
        try:
            experiment.main(module.BASE, module.AXES, arguments)
        except SystemExit as ended:  # nothing was computed, so that there is nothing to show
            assert ended.code == 2 and "holds no runs" in capsys.readouterr().err, arguments
    assert bool(computed) == any(rest[0] == "sweep" for _, rest in found)


def test_a_wrong_command_in_a_page_would_be_noticed(study: Any, capsys):
    ((name, arguments),) = commands(
        "$ python experiments/demo.py sweep --target.epoch 3  # quick\n"
    )
    module = study(name)
    with pytest.raises(SystemExit) as ended:
        experiment.main(module.BASE, module.AXES, arguments)
    assert ended.value.code == 2 and "epoch" in capsys.readouterr().err
    assert commands("jaxmeter sweep experiments/demo.py --shard 1/2") == [
        ("demo", ["sweep", "--shard", "1/2"])
    ]


# --- The studies run -----------------------------------------------------------------------------


@pytest.mark.study
def test_sizes_of_the_training_set_from_a_shell(tmp_path: Path):
    path, store = REPOSITORY / "experiments/digits_training_size.py", tmp_path / "a store"
    fits = [f"--attacks.{i}.config.{field}" for i in (3, 4, 5) for field in ("epochs", "members")]
    tiny = [*TINY, *(part for flag in fits for part in (flag, "1" if "epochs" in flag else "5"))]
    axes = ["--axes.known", "15", "--axes.seed", "0"]
    command = [sys.executable, str(path), "sweep", "--store", str(store), *tiny, *axes]
    here = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": FASTEST}
    done = subprocess.run(command, capture_output=True, text=True, env=here, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = results.tidy(store, "digits_training_size")
    rows = {row["attack"]: row for row in table.to_pylist()}
    assert len(rows) == len(table) == 7
    assert {row["held_members"] for row in rows.values()} == {30}
    assert rows["white box"]["known_members"] == 15 > rows["negative loss"]["known_members"]
    cli.main(["sweep", str(path), "status", "--store", str(store)])
    cli.main(["sweep", str(path), "table", "--store", str(store), "--metrics", "auc"])
    assert (store / "studies/digits_training_size/table.md").read_text().count(
        "\n| "
    ) == 8  # a rule, and the attacks


def test_layers_of_location30(tmp_path: Path, study: Any, capsys):
    module = study("location30_layers")
    random = np.random.default_rng(0)
    x, y = random.integers(0, 2, (150, 20)).astype(np.uint8), np.arange(150) % 3
    np.savez(tmp_path / "location30.npz", x=x, y=y)

    # Every attack finds what it reads in the layers that the target has.
    target = jm.load_target(
        replace(module.BASE.target, training=experiment.Training(epochs=1)).trained(
            x[:60].astype(np.float32), y[:60], n_classes=3, seed=0
        )
    )
    reads = {attack.name: spec_of(attack, target) for attack in module.BASE.attacks}
    assert reads["output hidden_2"].outputs == ("hidden_2",)
    assert reads["gradient out"].gradients == ("out/kernel", "out/bias")
    assert reads["norm hidden_1"].norms == ("hidden_1",)
    assert reads["all norms"].norms == module.LAYERS == reads["everything"].norms
    assert reads["white box"] == jm.signals.white_box(target).resolved(target)
    alone = [spec for name, spec in reads.items() if name.endswith((*module.LAYERS, "logits"))]
    assert len(alone) == 12
    assert not any(spec.loss or len(spec.outputs) > 1 or len(spec.norms) > 1 for spec in alone)

    chosen = [a for a in module.BASE.attacks if a.name in ("negative loss", "gradient norm")]
    base = replace(module.BASE, attacks=tuple(chosen))
    store = ["--store", str(tmp_path / "store")]
    small = [*TINY, "--axes.seed", "0", "1", "--data.path", str(tmp_path / "location30.npz")]
    experiment.main(base, module.AXES, ["sweep", *store, *small])
    assert "2/2 location30_layers-" in capsys.readouterr().err
    assert set(results.tidy(tmp_path / "store")["test_accuracy"].to_pylist()) <= {
        i / 60 for i in range(61)
    }
    with pytest.raises(SystemExit) as ended:
        experiment.main(base, module.AXES, ["run", *store, "--data.path", "nowhere.npz"])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "nowhere.npz" in said and "Location-30" in said and "--data.path" in said


QUICKEST = jm.FitConfig(epochs=1, members=2, folds=2)


def quicker(base: Any, *names: str) -> Any:
    """A study's base with some of its attacks, which are hardly fitted."""
    chosen = [attack for attack in base.attacks if attack.name in names]
    assert len(chosen) == len(names)
    return replace(
        base, attacks=tuple(replace(a, config=QUICKEST) if a.fits else a for a in chosen)
    )


@pytest.fixture(name="cifar")
def cifar_fixture(tmp_path: Path) -> Path:
    """A file of CIFAR-100's form: noise, of four classes."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 100), ("test", 40)):
        arrays[f"x_{part}"] = random.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(n) % 4
    np.savez(tmp_path / "cifar100.npz", **arrays)
    return tmp_path / "cifar100.npz"


@pytest.mark.study
@pytest.mark.parametrize("epochs", ["0", "1"])
def test_alexnet_on_records_of_the_form_of_cifar100(
    epochs: str, tmp_path: Path, study: Any, cifar: Path
):
    first, layers = study("alexnet_cifar100"), study("alexnet_cifar100_layers")
    store = ["--store", str(tmp_path / "store")]
    small = [*TINY[:-1], epochs, "--data.path", str(cifar), "--target.training.batch-size", "20"]
    base = quicker(first.BASE, "negative loss", "last two outputs")
    experiment.main(base, first.AXES, ["run", *store, *small])
    rows = results.tidy(tmp_path / "store").to_pylist()
    assert [(row["attack"], row["access"]) for row in rows] == [
        ("negative loss", "black box"),
        ("last two outputs", "white box"),
    ]

    # Every attack finds what it reads in the layers that the target has.
    (folder,) = (tmp_path / "store" / "stages" / "intake").iterdir()
    target = examination.unloaded(examination.examined(folder)[0])
    assert [n for n in target.spec.layers if "conv" in n] == [*layers.CONVOLUTIONS]
    reads = {attack.name: spec_of(attack, target) for attack in first.BASE.attacks}
    assert reads["black box"].outputs == ("logits",) and not reads["black box"].loss
    assert reads["last two outputs"].outputs == ("flatten", "logits")
    assert reads["white box"].gradients == ("out/kernel", "out/bias") and reads["white box"].loss
    assert len(reads["white box + norms"].norms) == 6
    of_layers = {attack.name: spec_of(attack, target) for attack in layers.BASE.attacks}
    assert of_layers["gradient conv_2"].gradients == ("conv_2/bias",)
    assert of_layers["output conv_1"].outputs == ("conv_1",) and not of_layers["norm out"].outputs
    # The study of sizes has the same target and signals.
    known = study("alexnet_cifar100_known")
    assert (*known.BASE.attacks, jm.Blind()) == first.BASE.attacks
    assert (known.BASE.data, known.BASE.target) == (first.BASE.data, first.BASE.target)


def test_cifar100_is_read_as_the_tutorial_does(cifar: Path, monkeypatch: pytest.MonkeyPatch):
    key = jax.random.key(0)
    data = experiment.Cifar100(path=cifar, members=30, nonmembers=20)
    records = data.read(key)
    with np.load(cifar) as file:
        x = np.concatenate([file["x_train"], file["x_test"]]).astype(float)
        y = np.concatenate([file["y_train"], file["y_test"]])
    expected = (x / 255 - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010]
    gaps = np.abs(records.x[:, None] - expected[None]).max(axis=(2, 3, 4))
    found = gaps.argmin(axis=1)
    assert gaps.min(axis=1).max() < 1e-5 and len(set(found)) == 50
    assert (records.y == y[found]).all() and records.is_member.sum() == 30
    plain = replace(data, normalized=False).read(key)
    np.testing.assert_allclose(plain.x, x[found] / 255, atol=1e-6)
    # From a folder, and from Keras, the same.
    monkeypatch.setenv("JAXMETER_DATA", str(cifar.parent))
    for a, b in zip(replace(data, path=None).read(key), records, strict=True):
        assert (a == b).all()
    monkeypatch.delenv("JAXMETER_DATA")
    with np.load(cifar) as file:
        both = [(file[f"x_{part}"], file[f"y_{part}"][:, None]) for part in ("train", "test")]
    monkeypatch.setattr(keras.datasets.cifar100, "load_data", lambda: tuple(both))
    assert replace(data, path=None).files() == ()
    for a, b in zip(replace(data, path=None).read(key), records, strict=True):
        assert (a == b).all()

    def offline() -> None:
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.cifar100, "load_data", offline)
    with pytest.raises(download.DownloadError, match=r"URL fetch failure.*--data\.path"):
        replace(data, path=None).read(key)


@pytest.mark.filterwarnings("ignore:An FPR of")
def test_the_calibrated_white_box_has_the_published_key_and_order(
    tmp_path: Path, study: Any, monkeypatch: pytest.MonkeyPatch
):
    """As if all records were attacked at once, in the order of the file, by the seed's own key."""
    module = study("calibrated_whitebox")
    random = np.random.default_rng(0)
    x, y = random.integers(0, 2, (120, 20)).astype(np.uint8), np.arange(120) % 30
    np.savez(tmp_path / "location30.npz", x=np.concatenate([x, x[:9]]), y=np.r_[y, y[:9]])
    monkeypatch.setenv("JAXMETER_DATA", str(tmp_path))
    records = module.BASE.data.read(jax.random.key(0))
    np.testing.assert_array_equal(records.x, x)  # each once
    signals = ("log odds", "gradient norms")
    network = NetworkConfig(steps=16, widths=(8,))
    attack = replace(module.STANDARD, signals=signals, network=network, online=False)
    assert module.STANDARD.online
    pool = replace(
        module.BASE.target,
        architecture=module.Network(widths=(8,)),
        recipe=RecipeConfig(epochs=1),
        models=6,
        k=4,
        index=5,
        spec=None,
    )
    base = replace(module.BASE, target=pool, attacks=(attack,))
    run = experiment.run(base, tmp_path / "store")

    (entry,) = (tmp_path / "store/stages/pool_signals").iterdir()
    seen = references.seen(entry, (0, 1, 2, 3))
    target = references.seen(entry, (5,))
    values = stacked(signals, seen.signals, y)
    mine = stacked(signals, target.signals, y)[0]
    learned = jm.reference.learn(
        jax.random.key(0), values, seen.was_member, online=False, config=network
    )
    held = np.sort(np.random.default_rng(0).permutation(120)[24:])
    with np.load(run / "scores.npz") as file:
        np.testing.assert_array_equal(file["held_index"], held)
        np.testing.assert_array_equal(file["is_member"], target.was_member[0, held])
        found = file[str(file["keys"][0])]
    np.testing.assert_array_equal(found, learned.scores(mine, values, seen.was_member)[held])


# --- Downloads -----------------------------------------------------------------------------------


class Server(NamedTuple):
    url: str
    asked: list[str]
    files: dict[str, bytes]


@pytest.fixture(name="server")
def server_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of files on this machine, with a list of what was asked for; an empty cache."""
    found = Server("", [], {})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            content = found.files.get(self.path)
            self.send_response(200 if content is not None else 404)
            short = self.path.startswith("/short")
            self.send_header("Content-Length", str(len(content or b"") + 10 * short))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXMETER_DATA", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as here:
        thread = threading.Thread(target=here.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found._replace(url=f"http://127.0.0.1:{here.server_port}")
        here.shutdown()
        thread.join()


def archive(member: str, text: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        info = tarfile.TarInfo(f"./folder/{member}")
        info.size = len(text)
        file.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def kept(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_a_download_is_checked_and_kept_once(tmp_path: Path, server: Server):
    server.files["/a.tgz"] = b"some bytes"
    url, right = f"{server.url}/a.tgz", hashlib.sha256(b"some bytes").hexdigest()
    with pytest.raises(download.DownloadError, match=f"has the SHA-256 {right}"):
        download.fetched(url, sha256="0" * 64)
    assert kept(tmp_path) == []
    path = download.fetched(url, sha256=right.upper())
    assert path.read_bytes() == b"some bytes" and kept(tmp_path) == [path.name]
    assert download.fetched(url, sha256=right) == path and server.asked == ["/a.tgz"] * 2
    path.write_bytes(b"damaged")  # is downloaded again, not used
    assert download.fetched(url, sha256=right).read_bytes() == b"some bytes"
    with pytest.warns(download.UncheckedWarning, match=right):
        other = download.fetched(url, sha256=None)
    assert other != path and download.fetched(url, sha256=None) == other  # no second warning
    with pytest.raises(ValueError, match="64 hexadecimal"):
        download.fetched(url, sha256="abc")


def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(tmp_path: Path, server: Server):
    server.files["/short.tgz"] = b"cut off"
    for name, reason in (("nothing.tgz", "Not Found"), ("short.tgz", "7 bytes read, 10 more")):
        with pytest.raises(download.DownloadError, match=rf"{reason}.*--data\.path.*JAXMETER_DATA"):
            download.fetched(f"{server.url}/{name}", sha256=None)
    with pytest.raises(download.DownloadError, match=r"cannot be downloaded.*--data\.path"):
        download.fetched("http://127.0.0.1:1/a.tgz", sha256=None)  # nobody listens
    assert kept(tmp_path) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(download.DownloadError, match="cannot be written"):
        download.fetched(f"{server.url}/short.tgz", sha256=None, cache=tmp_path / "file" / "in")


@pytest.mark.parametrize(("name", "member", "quote"), [
    ("fcn_location30", "bangkok", '"'), ("fcn_purchase100", "dataset_purchase", "")
])  # fmt: skip
@pytest.mark.study
def test_networks_on_records_from_an_archive(
    name: str, member: str, quote: str, tmp_path: Path, study: Any, server: Server, capsys
):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 2, (150, 20)), np.arange(150) % 3
    rows = (f"{quote}{c + 1}{quote},{','.join(map(str, r))}" for r, c in zip(x, y, strict=True))
    packed = archive(member, "\n".join(rows) + "\n")
    server.files["/a.tgz"] = packed
    right = hashlib.sha256(packed).hexdigest()
    module = study(name)
    there = ["--data.url", f"{server.url}/a.tgz", "--data.sha256", right]
    records = replace(
        module.BASE.data, url=there[1], sha256=right, members=100, nonmembers=None
    ).read(jax.random.key(0))
    assert records.x.dtype == np.float32 and len(records.y) == 150
    order = np.lexsort(np.c_[records.x, records.y].T)
    expected = np.lexsort(np.c_[x, y].T)
    np.testing.assert_array_equal(records.x[order], x[expected])
    np.testing.assert_array_equal(records.y[order], y[expected])

    store = ["--store", str(tmp_path / "store")]
    base = quicker(module.BASE, "negative loss", "last two outputs")
    axes = ["--axes.seed", "0"]
    with pytest.raises(SystemExit) as ended:
        wrong = ["--data.url", there[1], "--data.sha256", "0" * 64]
        experiment.main(base, module.AXES, ["sweep", *store, *TINY, *axes, *wrong])
    assert ended.value.code == 1 and "SHA-256" in capsys.readouterr().err
    experiment.main(base, module.AXES, ["sweep", *store, *TINY, *axes, *there])
    rows = {row["attack"]: row["access"] for row in results.tidy(tmp_path / "store").to_pylist()}
    assert rows == {"negative loss": "black box", "last two outputs": "white box"}
    # What is wrong with an archive is said.
    (tmp_path / "a.tgz").write_bytes(archive("other", "1,0\n"))
    with pytest.raises(ValueError, match=f"no file '{member}'"):
        replace(module.BASE.data, path=tmp_path / "a.tgz").read(jax.random.key(0))
    (tmp_path / "a.tgz").write_bytes(archive(member, "1,0\n2,300\n"))
    with pytest.raises(ValueError, match="cannot be read as a table"):
        replace(module.BASE.data, path=tmp_path / "a.tgz").read(jax.random.key(0))
    (tmp_path / "a.tgz").write_bytes(packed[:40])
    with pytest.raises(ValueError, match="cannot be read as a table"):
        replace(module.BASE.data, path=tmp_path / "a.tgz").read(jax.random.key(0))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_status_and_help(
    name: str, study: Any, tmp_path: Path, cifar: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    random = np.random.default_rng(0)
    for file in ("location30", "purchase100", "adult"):
        np.savez(tmp_path / f"{file}.npz", x=random.integers(0, 2, (9, 4)), y=np.arange(9))
    monkeypatch.setenv("JAXMETER_DATA", str(tmp_path))
    module = study(name)
    experiment.main(module.BASE, module.AXES, ["status", "--store", str(tmp_path / "store")])
    said = capsys.readouterr().out
    assert re.search(rf"not begun +{RUNS[name]}\b", said), said
    with pytest.raises(SystemExit) as ended:
        experiment.main(module.BASE, module.AXES, ["sweep", "--help"])
    assert ended.value.code == 0 and "--data" in capsys.readouterr().out


# --- Training ------------------------------------------------------------------------------------


def small_network(seed: int = 0) -> Any:
    """One convolution whose kernel is larger than its image, which `lowering` rewrites."""
    keras.utils.set_random_seed(seed)
    convolution = keras.layers.Conv2D(5, 3, padding="same", activation="tanh", name="conv")
    stack = [keras.layers.Input((2, 2, 4)), convolution, keras.layers.Flatten()]
    return keras.Sequential([*stack, keras.layers.Dense(3, "softmax", name="out")])


def some_images() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    return (random.normal(size=(60, 2, 2, 4)) + y[:, None, None, None]).astype(np.float32), y


def test_quick_training_is_equal_but_for_rounding():
    x, y = some_images()
    models = small_network(), small_network()
    before = [np.array(w) for w in models[0].weights]
    for model, quick in zip(models, (False, True), strict=True):
        keras.utils.set_random_seed(1)  # the order of batches
        experiment.Training(epochs=3, batch_size=20).train(model, x, y, quick=quick)
    for start, plain, quick in zip(before, models[0].weights, models[1].weights, strict=True):
        assert np.abs(np.array(plain) - start).max() > 1e-4  # it learned
        np.testing.assert_allclose(np.array(plain), np.array(quick), atol=1e-5)
    assert "compute_loss_and_updates" not in vars(models[1])


def test_learning_rates_drop_and_training_ends_when_it_may():
    x, y = some_images()
    recipe = experiment.Training(epochs=5, batch_size=20, drops=((2, 1e-4), (4, 1e-5)))
    assert [recipe.rate(epoch) for epoch in range(1, 6)] == [1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    model = small_network()
    recipe.train(model, x, y)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-5)
    assert int(model.optimizer.iterations) == 15
    model = small_network()
    replace(recipe, epochs=500, learning_rate=0.05, drops=(), until=0.9).train(model, x, y)
    assert 0 < int(model.optimizer.iterations) < 300
    model = small_network()
    replace(recipe, epochs=2, learning_rate=0.0, drops=(), until=0.99).train(model, x, y)
    assert int(model.optimizer.iterations) == 6  # it was not reached


def test_the_tutorials_recipe():
    recipe = experiment.AlexNet.tutorial()
    rates = [recipe.training.rate(epoch) for epoch in (1, 26, 27, 61, 100)]
    assert rates == [1e-4, 1e-4, 1e-5, 1e-5, 1e-5] and recipe.training.epochs == 100
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3))
    model = replace(recipe, training=replace(recipe.training, epochs=0)).trained(
        x, np.arange(4), n_classes=100, seed=0
    )
    kernels = [np.array(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]
    assert [k.shape for k in kernels] == [
        *((11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256)),
        *((3, 3, 256, 256), (256, 100)),
    ]
    assert all(abs(k.std() - 0.01) < 2e-4 and abs(k.mean()) < 4e-4 for k in kernels)
    squares = sum((k.astype(float) ** 2).sum() for k in kernels)
    assert float(sum(model.losses)) == pytest.approx(5e-4 * squares, rel=1e-4)
    with pytest.raises(ValueError, match="29x29"):
        recipe.trained(x[:, :28, :28], np.arange(4), n_classes=100, seed=0)


class Heard(Exception):
    """Raised in place of an audit, when it is known what it was asked."""


@pytest.mark.study
def test_the_demos_study_has_the_demos_numbers(
    tmp_path: Path, study: Any, monkeypatch: pytest.MonkeyPatch
):
    # What `jaxmeter demo --seed 3` asks for, of a target trained for two epochs.
    asked: dict[str, Any] = {}

    def heard(target: jm.Target, records: jm.Records, **options: Any) -> None:
        asked.update(options, target=target, records=records)
        raise Heard

    with monkeypatch.context() as patch, pytest.raises(Heard):
        patch.setattr(jm, "audit", heard)
        patch.setattr(digits.train, "__kwdefaults__", {"epochs": 2})
        demo(out=tmp_path / "demo", seed=3)
    module = study("demo")
    base = module.BASE
    assert (base.fractions, base.overlap) == (asked["fractions"], asked["overlap"])
    target = asked["target"]
    mine, its = (
        [(type(a), a.name, getattr(a, "config", None), spec_of(a, target)) for a in attacks]
        for attacks in (base.attacks, asked["attacks"])
    )
    assert mine == its

    # The same of the study: its own run of some of them, and the audit.
    quick = (jm.NegativeLoss(), jm.Learned(config=jm.FitConfig(epochs=1, members=5)))
    report = jm.audit(target, asked["records"], key=asked["key"], attacks=quick)
    store = ["--store", str(tmp_path / "store"), "--target.epochs", "2"]
    seeds = [part for of in ("", "data.", "target.") for part in (f"--{of}seed", "3")]
    experiment.main(replace(base, attacks=quick), module.AXES, ["run", *store, *seeds])
    (folder,) = (tmp_path / "store" / "runs").glob("demo-*")
    with np.load(folder / "scores.npz") as file:
        np.testing.assert_array_equal(file["held_index"], report.held_index)
        for key, row in zip(file["keys"], report.rows, strict=True):
            np.testing.assert_array_equal(file[str(key)], row.result.scores, err_msg=row.name)
