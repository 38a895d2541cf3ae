import json
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxmeter as jm
from jaxmeter.cli import demo, inspect, main


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
        "head",
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


# --- inspect and --head -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    """A file with a classifier, a multi-label output and layers of every kind of row."""
    import keras
    from keras import layers as L

    x = keras.Input((None, 4), name="x")
    with jax.numpy_rank_promotion("allow"):
        h = L.Bidirectional(L.LSTM(3, name="cell", return_sequences=True), name="both")(x)
        h = L.BatchNormalization(name="norm")(L.GlobalMaxPooling1D(name="top")(h))
        heads = [L.Dense(3, activation="softmax", name="kind"), L.Dense(2, "sigmoid", name="tags")]
        net = keras.Model(x, [head(h) for head in heads])
    path = tmp_path_factory.mktemp("heads") / "m.keras"
    net.save(path)
    return path


def test_inspect_shows_layers_and_what_attacks_can_use(model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out, _ = run(capsys, "inspect", model / "target.keras")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith("Route keras-jax (keras 3") for line in lines)
    assert "Input (8, 8, 1) float32" in lines and "Classes 10" in lines
    assert any(line.startswith("Difference at most ") for line in lines)
    assert "Logits final softmax taken off" in lines
    assert any(line.endswith("output") and "flat" in line for line in lines)
    assert any("out (10,) kernel (" in line for line in lines) and "gradients 3" in out


def test_inspect_of_a_head(two_heads, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert "the model has 2 outputs (kind, tags)" in fails(capsys, "inspect", two_heads)
    assert "come only 0-based integers" in fails(capsys, "inspect", two_heads, "--head", "a", "b")
    assert "no output number 3" in fails(capsys, "inspect", two_heads, "--head", 3)
    out, _ = run(capsys, "inspect", two_heads, "--head", "tags", -1)
    assert "of output 'tags'[-1]" in out and "(?, 6)" in out and "(?, 4) float32" in out
    assert "gradients 1: both/forward_cell" in out
    kind = next(line for line in out.splitlines() if " kind " in line)
    assert "no gradient" in kind and " 0 " in kind


def test_rows_of_an_inspection(two_heads):
    target = jm.load_target(two_heads, output=1)
    rows = inspect.layer_rows(target)
    assert [row.name for row in rows if row.position] == list(target.spec.layers)
    assert [row.position for row in rows if row.position] == [1, 2, 3, 4, 5]
    by_name = {row.name: row for row in rows}
    assert by_name["both"].output == (None, 6)
    assert [number for number, _ in by_name["both"].gradients] == [1, 2]
    assert by_name["norm"].variables == (
        ("gamma", (6,), True),
        ("beta", (6,), True),
        ("moving_mean", (6,), False),
        ("moving_variance", (6,), False),
    )
    assert (by_name["kind"].output, by_name["kind"].parameters) == ((3,), 21)
    assert by_name["tags"].gradients == () and by_name["tags"].parameters == 0
    numbers = dict(pair for row in rows for pair in row.gradients)
    assert [numbers[i + 1] for i in range(len(numbers))] == list(target.spec.trainable_layers)
    total = inspect.totals(target)
    assert total.parameters == sum(row.parameters for row in rows)
    assert total.parameters + total.state == sum(
        np.size(a) for a in jax.tree.leaves((target.params, target.state))
    )


def test_rows_of_targets_that_are_no_keras_models():
    params = {"a": {"kernel": np.ones((4, 3))}, "scale": {"": np.ones(())}}
    bare = jm.from_function(lambda p, s, x: x @ p["a"]["kernel"] * p["scale"][""], params)
    for target in (bare, bare.for_inputs((4,))):
        assert [(r.position, r.parameters) for r in inspect.layer_rows(target)] == [
            (None, 12),
            (None, 1),
        ]
    net = nn.Sequential([nn.Dense(5), nn.BatchNorm(use_running_average=True), nn.Dense(3)])
    variables = net.init(jax.random.key(0), np.ones((1, 4)))
    with jax.numpy_rank_promotion("allow"):
        rows = inspect.layer_rows(jm.from_flax(net, variables, input_shape=(4,)))
    assert [(r.name, r.output, r.parameters) for r in rows if r.position] == [
        ("layers_0", (5,), 25),
        ("layers_1", (5,), 10),
        ("layers_2", (3,), 18),
    ]


def test_audit_of_a_head(two_heads, tmp_path, capsys):
    random = np.random.default_rng(0)
    groups = {
        name: saved(
            tmp_path / f"{name}.npz",
            random.normal(size=(40, 7, 4)).astype("f"),
            random.integers(0, 2, 40),
        )
        for name in ("members", "nonmembers")
    }
    arguments = ("audit", *files(tmp_path, target=two_heads, **groups), "--out", tmp_path / "r")
    assert "the model has 2 outputs" in fails(capsys, *arguments)
    out, _ = run(capsys, *arguments, "--epochs", 1, "--head", "tags", 1)
    assert "gradients of tags" in " ".join(out.split())
