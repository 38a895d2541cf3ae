import json
import sys

import jax
import numpy as np
import pytest

from jaxmeter import demo
from jaxmeter.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small target.keras, members.npz and nonmembers.npz."""
    folder = tmp_path_factory.mktemp("model")
    demo.train(folder, seed=1, epochs=30)
    return folder


def run(capsys, *arguments: object) -> tuple[str, str]:
    """What the command prints on stdout and stderr."""
    main([str(a) for a in arguments])
    return capsys.readouterr()


def fails(capsys, *arguments: object) -> str:
    """What the command complains of; it must exit with 2 and no traceback."""
    with pytest.raises(SystemExit) as exited:
        main([str(a) for a in arguments])
    assert exited.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


def files(model, **changed) -> list[object]:
    paths = {name: model / f"{name}.npz" for name in ("members", "nonmembers")}
    paths = {"target": model / "target.keras", **paths, **changed}
    return [piece for name, path in paths.items() for piece in (f"--{name}", path)]


def saved(path, x, y):
    np.savez(path, x=x, y=y)
    return path


def test_audit_writes_table_and_report(model, tmp_path, capsys):
    out, err = run(
        capsys,
        "audit",
        *files(model),
        *("--out", tmp_path / "report", "--epochs", 3, "--seed", 7),
        *("--gradients", "hidden", "out/kernel", "--outputs", "logits", "hidden"),
        "--gradient-norms",
    )
    for name in ("negative loss", "confidence", "gradient norm", "black box", "white box"):
        assert name in out
    assert "needs 1,000" in out
    assert "differ from the original's by at most 0" in " ".join(err.split())
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    white = next(a for a in results["attacks"] if a["name"] == "white box")
    assert white["budget"]["reads"] == [
        "logits",
        "hidden",
        "gradients of hidden and out",
        "gradient norms of 3 layers",
        "loss",
        "label",
    ]
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == [
        "figures",
        "report.html",
        "results.json",
        "scores.npz",
    ]


def test_the_same_seed_gives_the_same_scores(model, tmp_path, capsys):
    def scores(name, seed):
        run(capsys, "audit", *files(model), "--out", tmp_path / name, "--epochs", 1, "--seed", seed)
        with np.load(tmp_path / name / "scores.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    first, again = scores("a", 1), scores("b", 1)
    assert all((first[key] == again[key]).all() for key in first)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["audit", "--help"])
    assert exited.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "target",
        "members",
        "nonmembers",
        "out",
        "gradients",
        "outputs",
        "epochs",
        "seed",
    ):
        assert f"--{option}" in text


X = np.random.default_rng(0).random((40, 8, 8, 1)).astype("f")
Y = np.arange(40) % 10


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, :5], Y, "records have shape|shape"),
        (X, Y + 1, "labels go up to 10, but the target has 10 classes"),
        (X, Y - 1, "labels are negative"),
        (X, Y + 0.5, "labels are float64"),
        (X, np.eye(11)[Y], "one-hot labels are 11 wide, but the target has 10 classes"),
        (np.where(X > 0.999, np.nan, X), Y, "contain NaN or infinity"),
        (X[:0], Y[:0], "are empty"),
        (X[:5], Y[:5], "at least 2 of each are needed"),
    ],
    ids=["shape", "range", "negative", "float", "one-hot", "nan", "empty", "few"],
)
def test_bad_records_end_in_one_clear_sentence(model, tmp_path, capsys, x, y, message):
    bad = saved(tmp_path / "bad.npz", x, y)
    err = fails(capsys, "audit", *files(model, members=bad), "--out", tmp_path / "r")
    assert any(part in err for part in message.split("|")), err
    assert not (tmp_path / "r").exists()


def test_missing_and_corrupt_files(model, tmp_path, capsys):
    out = ("--out", tmp_path / "r")
    broken = tmp_path / "broken.keras"
    broken.write_bytes((model / "target.keras").read_bytes()[:1000])
    assert "no file" in fails(capsys, "audit", *files(model, target=tmp_path / "x.keras"), *out)
    assert "broken.keras" in fails(capsys, "audit", *files(model, target=broken), *out)
    assert "no file" in fails(capsys, "audit", *files(model, members=tmp_path / "x.npz"), *out)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes((model / "members.npz").read_bytes()[:500])
    assert "cannot be read" in fails(capsys, "audit", *files(model, members=damaged), *out)


def test_overlap_is_refused_or_dropped(model, tmp_path, capsys):
    with np.load(model / "members.npz") as archive:
        x, y = archive["x"], archive["y"]
    mixed = saved(tmp_path / "mixed.npz", np.concatenate([X, x[:3]]), np.concatenate([Y, y[:3]]))
    arguments = ("audit", *files(model, nonmembers=mixed), "--out", tmp_path / "r", "--epochs", 1)
    assert "3 members and 3 non-members are the same records" in fails(capsys, *arguments)
    out, _ = run(capsys, *arguments, "--overlap", "drop")
    assert "negative loss" in out


def test_unknown_layers_list_the_nearest(model, tmp_path, capsys):
    arguments = ("audit", *files(model), "--out", tmp_path / "r")
    assert "Did you mean 'hidden'" in fails(capsys, *arguments, "--gradients", "hiden")
    assert "no layer 'outt'" in fails(capsys, *arguments, "--outputs", "outt")


def test_a_strangers_folder_is_left_alone_and_refused_before_any_work(model, tmp_path, capsys):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("...")
    err = fails(capsys, "audit", *files(model), "--out", folder)
    assert "thesis.tex" in err and "Loaded" not in err
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_budgets_too_small(model, tmp_path, capsys):
    arguments = ("audit", *files(model), "--out", tmp_path / "r")
    assert "device budget of 0 bytes" in fails(capsys, *arguments, "--device-mib", 0)
    assert "more than the host budget" in fails(capsys, *arguments, "--host-mib", 0)


def test_not_a_classifier(tmp_path, capsys, model):
    import keras

    with jax.numpy_rank_promotion("allow"):
        net = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.Flatten()])
        net.add(keras.layers.Dense(1))
        net.save(tmp_path / "regression.keras")
    arguments = files(model, target=tmp_path / "regression.keras")
    err = fails(capsys, "audit", *arguments, "--out", tmp_path / "r")
    assert "regression" in err


def test_demo_from_one_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.train, "__kwdefaults__", {"epochs": 5})
    out, err = run(capsys, "demo", "--out", tmp_path / "demo")
    assert "white box" in out and (tmp_path / "demo" / "report" / "report.html").is_file()
    assert "jaxmeter audit --target" in err
    results = json.loads((tmp_path / "demo" / "report" / "results.json").read_text())
    assert results["seed"] == "0"
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    assert "notes.txt" in fails(capsys, "demo", "--out", tmp_path / "demo")
    assert sys.modules["keras"].backend.backend() == "jax"
