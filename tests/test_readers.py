"""Readers of records: what is written is read, what is no record is refused with its place."""

import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import keras
import numpy as np
import pyarrow as pa
import pytest
from conftest import REPOSITORY
from PIL import Image
from pyarrow import csv, parquet
from test_documentation import blocks, run_blocks

import jaxmeter as jm
from jaxmeter import cli, experiment
from jaxmeter.data.readers import READERS, formats, parsed, read_pair, reader_of
from jaxmeter.experiment.serialization import from_json, to_json

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(12, 3)).astype(np.float32)
Y = np.arange(12, dtype=np.int32) % 3
PIXELS = RANDOM.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def table(x=X, y=Y, label="label") -> pa.Table:
    """Columns c, b, a, with the label second: the order is the file's and not the alphabet's."""
    c, b, a = x.T
    return pa.table({"c": c, label: y, "b": b, "a": a})


def written_csv(path: Path, **how) -> Path:
    csv.write_csv(table(**how), path)
    return path


def written_parquet(path: Path, **how) -> Path:
    parquet.write_table(table(**how), path)
    return path


def written_npz(path: Path) -> Path:
    np.savez(path, x=X, y=Y)
    return path


def written_npy(path: Path) -> Path:
    np.save(path.with_name("x_some.npy"), X)
    np.save(path.with_name("y_some.npy"), Y)
    return path.with_name("x_some.npy")


def written_text(path: Path) -> Path:
    jm.write_privacy_meter(path, jm.Records(X, Y, np.zeros(12, bool)))
    return path


def written_images(folder: Path, pixels=PIXELS, labels=(0, 0, 1, 1, 1, 2), ending="png") -> Path:
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / ("ant", "bee", "cat")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(place / f"{i}.{ending}")
    return folder


WRITTEN = {
    "npz": (written_npz, ".npz"),
    "npy": (written_npy, ".npy"),
    "csv": (written_csv, ".csv"),
    "parquet": (written_parquet, ".parquet"),
    "privacy_meter": (written_text, ".txt"),
}


# --- What is written is read ----------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_is_read_by_its_ending_and_by_name(name, tmp_path):
    write, ending = WRITTEN[name]
    path = write(tmp_path / f"some{ending}")
    assert reader_of(path).name == name
    others = [path.with_suffix(path.suffix.upper())]
    if name != "npy":  # whose ending is part of the pair's name
        others.append(path.with_name("of_no_known.ending"))
    for other in others:
        if name != "npy":
            shutil.copy(path, other)
    for x, y in (jm.read_records(path), *(jm.read_records(p, format=name) for p in others[1:])):
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(y, Y)
        assert x.dtype == np.float32 and y.dtype == np.int32
    if name != "npy":
        assert reader_of(others[0]).name == name


@pytest.mark.parametrize("written", [written_csv, written_parquet])
def test_the_label_is_a_column_by_name(written, tmp_path):
    path = written(tmp_path / "t", label="kind of thing", y=Y.astype(np.float64))
    form = written.__name__.removeprefix("written_")
    x, y = jm.read_records(path, format=form, label="kind of thing")
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize("written", [written_csv, written_parquet])
def test_labels_that_are_names_go_by_the_order_of_the_classes(written, tmp_path):
    path = written(tmp_path / "t", y=np.array(["dog", "ant", "cat"])[Y])
    form = written.__name__.removeprefix("written_")
    _, y = jm.read_records(path, format=form, classes=("dog", "ant", "cat", "emu"))
    np.testing.assert_array_equal(y, Y)
    with pytest.raises(ValueError, match=r"row 3 of column 'label' is 'cat'.*none of the classes"):
        jm.read_records(path, format=form, classes=("dog", "ant"))


def test_numbers_of_a_csv_file_are_those_of_python(tmp_path):
    texts = ["1", "-2.5", "1e-3", "+7", "0.1", "123456789"]
    (tmp_path / "a.csv").write_text("x,label\r\n" + "".join(f'"{t}",1\r\n' for t in texts))
    x, _ = jm.read_records(tmp_path / "a.csv")
    np.testing.assert_array_equal(x[:, 0], np.array(list(map(float, texts)), np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16, bool])
@pytest.mark.parametrize("fixed", [True, False])
def test_lists_of_parquet_keep_shape_and_type(dtype, fixed, tmp_path):
    x = RANDOM.integers(0, 2, (4, 2, 3)).astype(dtype)
    kind = pa.from_numpy_dtype(dtype)
    inner = pa.list_(kind, 3) if fixed else pa.list_(kind)
    outer = pa.list_(inner, 2) if fixed else pa.list_(inner)
    columns = {"label": Y[:4], "pixels": pa.array(x.tolist(), outer)}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=3)
    found, y = jm.read_records(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found, x)
    assert found.dtype == dtype and y.tolist() == Y[:4].tolist()


@pytest.mark.parametrize(
    "pixels",
    [PIXELS, PIXELS[..., :1], np.concatenate([PIXELS, PIXELS[..., :1]], -1),
     PIXELS[..., :1].astype(np.uint16) * 257],
    ids=["rgb", "grey", "rgba", "grey 16"],
)  # fmt: skip
def test_images_keep_their_pixels(pixels, tmp_path):
    x, y = jm.read_records(written_images(tmp_path / "set", pixels))
    np.testing.assert_array_equal(x, pixels)
    assert x.dtype == pixels.dtype and y.tolist() == [0, 0, 1, 1, 1, 2]


def test_jpeg_images_and_classes_in_another_order(tmp_path):
    even = np.full((6, 8, 8, 3), 200, np.uint8)  # JPEG changes all but even surfaces
    folder = written_images(tmp_path / "set", even, ending="JPG")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "ant" / "Thumbs.db").write_bytes(b"")
    x, y = jm.read_records(folder, classes=("emu", "cat", "bee", "ant"))
    np.testing.assert_array_equal(x, even[[5, 2, 3, 4, 0, 1]])
    assert y.tolist() == [1, 2, 2, 2, 3, 3]


def test_scale_divides(tmp_path):
    x, _ = jm.read_records(written_images(tmp_path / "set"), scale=255)
    np.testing.assert_array_equal(x, PIXELS.astype(np.float32) / np.float32(255))
    with pytest.raises(ValueError, match="positive"):
        jm.read_records(tmp_path / "set", scale=0)


def test_data_sets_of_keras(monkeypatch):
    train, test = (PIXELS, np.arange(6)[:, None]), (PIXELS[:2] + 1, np.arange(2)[:, None])
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: (train, test))
    x, y = jm.read_records("cifar10", format="keras")
    np.testing.assert_array_equal(x, np.concatenate([train[0], test[0]]))
    assert y.tolist() == [*range(6), 0, 1]
    x, y = jm.read_records("cifar10/test", format="keras")
    np.testing.assert_array_equal(x, test[0])
    records = read_pair("cifar10/train", "cifar10/test", format="keras")
    assert records.is_member.sum() == 6
    for name in ("imdb", "cifar10/all", "cifar10/train/more", "", "no\x1b[2Jset"):
        with pytest.raises(ValueError, match="no data set.*cifar10, cifar100") as raised:
            jm.read_records(name, format="keras")
        assert "\x1b" not in str(raised.value)


def test_a_data_set_that_cannot_be_downloaded(monkeypatch):
    def load_data():
        raise Exception("URL fetch failure on https://somewhere: no route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(OSError, match=r"mnist cannot be had: URL fetch failure.*Without|network"):
        jm.read_records("mnist", format="keras")


@pytest.mark.parametrize(
    ("name", "beside"),
    [("x.npy", "y.npy"), ("a_x.npy", "a_y.npy"), ("X_train.npy", "y_train.npy"), ("X.npy", "Y.npy"),
     ("box-x-1.npy", "box-y-1.npy")],
)  # fmt: skip
def test_the_labels_of_a_pair_are_beside_it(name, beside, tmp_path):
    np.save(tmp_path / name, X)
    with pytest.raises(FileNotFoundError, match="labels"):
        jm.read_records(tmp_path / name)
    np.save(tmp_path / beside, Y)
    np.testing.assert_array_equal(jm.read_records(tmp_path / name)[1], Y)
    assert reader_of(tmp_path / name).files(tmp_path / name) == (tmp_path / name, tmp_path / beside)


# --- What is no record is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b,label\n1,2,0\n1,,1\n", "row 2 of column 'b' has no value"),
        ("a,b,label\n1,2,0\n1,NA,1\n", "row 2 of column 'b' has no value"),
        ("a,b,label\n1,NaN,0\n", "row 1 of column 'b'"),
        ("a,b,label\n1,2,\n", "row 1 of column 'label' has no value"),
        ("a,city,label\n1,2,0\n1,Oslo,1\n", "row 2 of column 'city' is 'Oslo', no number. Encode"),
        ("a,b,label\n1,2,cat\n", "row 1 of column 'label' is 'cat', no number. Name the target's"),
        ("a,b,label\n1,2,0.5\n", "row 1 of column 'label' is 0.5; labels are whole"),
        ("a,b,label\n1,2,1e300\n", "row 1 of column 'label' is 1e\\+300; labels are whole"),
        ("a,b,label\n1,2,-1\n", "labels are negative"),
        ("a,b,label\n1,1e40,0\n", "row 1 of column 'b' is 1e\\+40, no finite"),
        ("a,b,label\n1,inf,0\n", "row 1 of column 'b' is inf, no finite"),
        ("a,b,label\n1,2,0\n1,2\n", "Expected 3 columns, got 2"),
        ("a,b,label\n", "are empty"),
        ("", "first line is blank"),
        ("\n\n", "first line is blank"),
        ("a,b\n1,2\n", "no column 'label' of labels, but a, b"),
        ("1,2\n3,4\n", "no column 'label' of labels, but 1, 2"),
        ("label\n1\n", "the column label alone"),
        ("a,a,label\n1,2,0\n", "two columns are named 'a'"),
        (",a,label\n0,2,0\n", "column 1 has no name.*index=False"),
        ("a\x1b[2J,label\nx\x1b[31m,0\n", r"column 'a\\+x1b\[2J' is 'x\\+x1b\[31m'"),
        ("a;b;label\n1;2;0\n", "no column 'label'"),
        (",".join(f"c{i}" for i in range(30_000)), "30,000 columns"),
    ],
    ids=range(23),
)
def test_tables_that_are_no_records(text, reason, tmp_path):
    path = tmp_path / "strange.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason) as raised:
        jm.read_records(path)
    assert "strange.csv" in str(raised.value) and "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 2000


def test_a_line_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmeter.data.csv._LONGEST", 2**10)
    (tmp_path / "a.csv").write_text(f"a,label\n1,0\n{'1' * 5000},0\n")
    with pytest.raises(ValueError, match=r"a\.csv.*longer than 1,024 bytes"):
        jm.read_records(tmp_path / "a.csv")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,label\xff\n1,0\n")
    with pytest.raises(ValueError, match=r"a\.csv.*no header"):
        jm.read_records(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"a,label\n\xff,0\n")
    with pytest.raises(ValueError, match=r"b\.csv"):
        jm.read_records(tmp_path / "b.csv")


def test_a_table_is_not_unpacked_whatever_its_name(tmp_path):
    import gzip

    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,label\n1,0\n"))
    with pytest.raises(ValueError):
        jm.read_records(tmp_path / "a.csv.gz", format="csv")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"a": ["x", "y"], "label": [0, 1]}, "column 'a' is of type string.*Encode"),
        ({"a": [1.0, 2.0], "label": ["x", "y"]}, "column 'label' is of type string.*classes"),
        ({"a": [1.0, None], "label": [0, 1]}, "row 2 of column 'a' has no value"),
        ({"a": [1.0, 2.0], "label": [0, None]}, "row 2 of column 'label' has no value"),
        ({"a": [[1, 2], [1]], "label": [0, 1]}, "row 2 of column 'a' has a list of 1"),
        ({"a": [[[1], [2]], [[1], [2, 3]]], "label": [0, 1]}, "row 2 of column 'a'"),
        ({"a": [[1, 2], [1, None]], "label": [0, 1]}, "row 2 of column 'a' has no value"),
        ({"a": [[1, 2], None], "label": [0, 1]}, "row 2 of column 'a' has no value"),
        ({"a": [[1], [2]], "b": [1, 2], "label": [0, 1]}, "column 'a' is of type list.*single"),
        ({"a": [1.0, np.inf], "label": [0, 1]}, "row 2 of column 'a' is inf"),
        ({"a": [1.0, 2.0], "label": [0.0, 0.5]}, "row 2 of column 'label' is 0.5"),
        ({"a": [1.0, 2.0], "y": [0, 1]}, "no column 'label'"),
    ],
    ids=range(12),
)
def test_parquet_that_is_no_records(columns, reason, tmp_path):
    parquet.write_table(pa.table(columns), tmp_path / "strange.parquet")
    with pytest.raises(ValueError, match=reason) as raised:
        jm.read_records(tmp_path / "strange.parquet")
    assert "strange.parquet" in str(raised.value)


def test_damaged_parquet(tmp_path):
    whole = written_parquet(tmp_path / "a.parquet").read_bytes()
    for size in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.parquet").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"b\.parquet.*damaged, or no Parquet"):
            jm.read_records(tmp_path / "b.parquet")


def test_a_small_file_of_one_number_repeated_cannot_take_all_memory(tmp_path):
    n = 40_000_000
    many = pa.table({"a": pa.array(np.zeros(n, np.int8)), "label": pa.array(np.zeros(n, np.int8))})
    parquet.write_table(many, tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 500_000
    with pytest.raises(ValueError, match=r"bomb\.parquet.*unpacks to .* are allowed"):
        jm.read_records(tmp_path / "bomb.parquet")
    with pytest.raises(ValueError, match="and 50 are allowed"):
        jm.read_records(written_parquet(tmp_path / "a.parquet"), max_bytes=50)


def of_images(name):
    """A folder of images with something wrong, and what is said of it."""

    def change(folder: Path) -> str:
        ant, image = folder / "ant", Image.fromarray(PIXELS[0])
        if name == "size":
            image.resize((7, 9)).save(ant / "a.png")
            return "ant/a.png has mode RGB and 7 x 9 pixels, the first image RGB and 4 x 5"
        if name == "mode":
            image.convert("L").save(folder / "cat" / "z.png")
            return "cat/z.png has mode L and 4 x 5 pixels, the first image RGB"
        if name == "palette":
            image.convert("P").save(ant / "0.png")
            return "ant/0.png has mode 'P'"
        if name == "text":
            (ant / "notes.txt").write_text("x")
            return "ant/notes.txt cannot be read as PNG or JPEG"
        if name == "gif":
            image.save(ant / "a.png", format="GIF")
            return "ant/a.png cannot be read as PNG or JPEG"
        if name == "cut":
            (ant / "1.png").write_bytes((ant / "1.png").read_bytes()[:70])
            return "ant/1.png cannot be read as PNG or JPEG"
        if name == "folder":
            (ant / "a").mkdir()
            return "ant/a is no file"
        if name == "loose":
            image.save(folder / "loose.png")
            return "'loose.png' in it is no folder"
        if name == "empty":
            (folder / "bug").mkdir()
            return "folder 'bug' is empty"
        if name == "pipe":
            os.mkfifo(ant / "a.png")
            return "ant/a.png is no file"
        shutil.move(ant, folder / "a\x1b[2Jnt")
        image.convert("L").save(folder / "a\x1b[2Jnt" / "1.png")
        return r"a\\x1b\[2Jnt/1.png has mode L"

    return change


@pytest.mark.parametrize(
    "name",
    ["size", "mode", "palette", "text", "gif", "cut", "folder", "loose", "empty", "pipe", "escape"],
)
def test_images_that_are_no_records(name, tmp_path):
    folder = written_images(tmp_path / "set")
    reason = of_images(name)(folder)
    with pytest.raises(ValueError, match=reason) as raised:
        jm.read_records(folder)
    assert "\x1b" not in str(raised.value)


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match="holds no folders"):
        jm.read_records(tmp_path)
    folder = written_images(tmp_path / "set")
    with pytest.raises(ValueError, match="'ant' is none of the classes"):
        jm.read_records(folder, classes=("bee", "cat"))
    with pytest.raises(ValueError, match="and 100 are allowed"):
        jm.read_records(folder, max_bytes=100)


def test_an_image_cannot_claim_more_than_its_file_accounts_for(tmp_path):
    """A PNG whose header says 60,000 x 60,000 pixels, and one of 12,000 x 12,000."""
    folder = written_images(tmp_path / "set")
    for side in (12_000, 60_000):
        content = bytearray((folder / "ant" / "0.png").read_bytes())
        content[16:24] = side.to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        (folder / "ant" / "0.png").write_bytes(content)
        with pytest.raises(ValueError, match="are allowed|exceeds limit"):
            jm.read_records(folder)


@pytest.mark.parametrize(
    ("name", "x", "reason"),
    [
        ("members.npy", X, "has no x that stands alone"),
        ("max.npy", X, "has no x that stands alone"),
        ("x_x.npy", X, "has no x that stands alone, or several"),
        ("x.npy", np.array([["1,2", "0"]]), "format='privacy_meter'"),
        ("x.npy", np.array([[1, None]]), "pickled"),
    ],
)
def test_pairs_that_are_none(name, x, reason, tmp_path):
    np.save(tmp_path / name, x, allow_pickle=True)
    np.save(tmp_path / "y.npy", Y)
    with pytest.raises(ValueError, match=reason):
        jm.read_records(tmp_path / name)


def test_formats_that_are_not_known(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match=re.escape(formats())):
        jm.read_records(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match=re.escape(formats())):
        jm.read_records(tmp_path / "a.xlsx", format="excel")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        jm.read_records(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no file"):
        jm.read_records(tmp_path / "b.csv")
    with pytest.raises(FileNotFoundError, match="no folder"):
        jm.read_records(tmp_path / "a.xlsx", format="images")
    with pytest.raises(FileNotFoundError, match="no file"):
        jm.read_records(tmp_path, format="csv")
    path = written_npz(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="label is for records of the format csv, parquet; npz"):
        jm.read_records(path, label="a")
    with pytest.raises(ValueError, match="lable is for no format"):
        jm.read_records(path, lable="a")
    with pytest.raises(ValueError, match="labels go up to 2, but the target has 2 classes"):
        jm.read_records(path, n_classes=2)


# --- Two files of one audit -----------------------------------------------------------------------


def test_two_files_must_mean_the_same(tmp_path):
    one, same = written_csv(tmp_path / "a.csv"), written_csv(tmp_path / "b.csv")
    records = read_pair(one, same)
    np.testing.assert_array_equal(records.x, np.concatenate([X, X]))
    assert records.is_member.tolist() == [True] * 12 + [False] * 12
    csv.write_csv(table().select(["b", "label", "c", "a"]), tmp_path / "c.csv")
    with pytest.raises(ValueError, match="'c' and 'b' in place 1.*same order"):
        read_pair(one, tmp_path / "c.csv")
    csv.write_csv(table().drop_columns("a"), tmp_path / "d.csv")
    with pytest.raises(ValueError, match="4 and 3 columns"):
        read_pair(one, tmp_path / "d.csv")
    folders = written_images(tmp_path / "in"), written_images(tmp_path / "out")
    shutil.rmtree(folders[1] / "bee")
    with pytest.raises(ValueError, match="'bee' and 'cat' in place 2.*classes="):
        read_pair(*folders)
    records = read_pair(*folders, classes=("ant", "bee", "cat"))
    assert records.y.tolist() == [0, 0, 1, 1, 1, 2, 0, 0, 2]


def test_two_files_may_have_two_formats(tmp_path):
    paths = written_npz(tmp_path / "a.npz"), written_csv(tmp_path / "b.csv", label="kind")
    np.testing.assert_array_equal(read_pair(*paths, label="kind").y, np.concatenate([Y, Y]))
    with pytest.raises(ValueError, match="input_shape is for records of the format privacy_meter"):
        read_pair(*paths, input_shape=(3,))


# --- The command line, studies and pages follow the table -----------------------------------------


def test_an_audit_from_csv(tmp_path, capsys):
    random = np.random.default_rng(1)
    x, y = random.normal(size=(60, 3)).astype(np.float32), random.integers(0, 3, 60)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, "softmax")])
    model.save(tmp_path / "model.keras")
    for name, part in (("in", slice(0, 30)), ("out", slice(30, 60))):
        written_csv(tmp_path / f"{name}.csv", x=x[part], y=y[part], label="kind")
    command = ["audit", "--target", "model.keras", "--epochs", "1", "--out", "report"]
    command += ["--members", "in.csv", "--nonmembers", "out.csv"]
    command = [str(tmp_path / c) if "." in c or c == "report" else c for c in command]
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "Name the column of labels" in " ".join(capsys.readouterr().err.split())
    cli.main([*command, "--label", "kind"])
    assert "white box" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").exists()


def test_convert_reads_every_format(tmp_path, capsys):
    for name, (write, ending) in WRITTEN.items():
        if name in ("npz", "privacy_meter"):
            continue
        path = write(tmp_path / f"some{ending}")
        cli.main(["convert", str(path), str(tmp_path / f"{name}.npz")])
        assert "12 records of shape (3,)" in capsys.readouterr().err
        with np.load(tmp_path / f"{name}.npz") as found:
            assert sorted(found) == ["x", "y"]
            np.testing.assert_array_equal(found["x"], X)
    folder = written_images(tmp_path / "set")
    classes = ("--classes", "cat", "bee", "ant")
    cli.main(["convert", str(folder), str(tmp_path / "set.npz"), "--scale", "255", *classes])
    with np.load(tmp_path / "set.npz") as found:
        assert found["y"].tolist() == [0, 1, 1, 1, 2, 2] and found["x"].max() <= 1
    with pytest.raises(SystemExit):
        cli.main(["convert", str(tmp_path / "set.npz"), str(tmp_path / "a.txt"), "--scale", "2"])
    assert "--scale has no use" in capsys.readouterr().err


def test_a_study_reads_every_format(tmp_path):
    key = jax.random.key(0)
    for name, (write, ending) in WRITTEN.items():
        path = write(tmp_path / f"some{ending}")
        data = experiment.FileRecords(path=path, members=5, nonmembers=4)
        assert len(data.files()) == (2 if name == "npy" else 1)
        records = data.read(key)
        assert records.is_member.sum() == 5 and len(records.y) == 9
        assert {r.tobytes() for r in records.x} <= {r.tobytes() for r in X}
    table = written_csv(tmp_path / "t.csv", label="kind")
    pair = experiment.FilePair(members=table, nonmembers=table, options=(("label", "kind"),))
    assert pair.files() == (table, table)
    np.testing.assert_array_equal(pair.read(key).x, np.concatenate([X, X]))
    assert from_json(to_json(pair)) == pair
    named = experiment.FileRecords(path=Path("mnist"), members=1, format="keras")
    assert named.files() == ()


def test_options_from_texts():
    texts = (("label", "a,b"), ("classes", "a, b"), ("input_shape", "8,8,1"), ("max_bytes", "7"))
    assert parsed(texts) == {
        "label": "a,b", "classes": ("a", "b"), "input_shape": (8, 8, 1), "max_bytes": 7,
    }  # fmt: skip
    for name, text in (("input_shape", "8,x"), ("max_bytes", "1,2"), ("max_bytes", "")):
        with pytest.raises(ValueError, match="whole number"):
            parsed([(name, text)])


def test_one_name_is_one_option():
    options = {option for reader in READERS for option in reader.options}
    assert len({option.name for option in options}) == len(options)
    endings = [ending for reader in READERS for ending in reader.endings]
    assert len(set(endings)) == len(endings)


def test_the_page_has_the_table():
    text = (REPOSITORY / "docs" / "records.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*? \| (.*?)\|$", text, re.MULTILINE)
    assert {name: re.findall(r"`(\w+)`", options) for name, _, options in rows} == {
        reader.name: [option.name for option in reader.options] for reader in READERS
    }
    for (_, endings, _), reader in zip(rows, READERS, strict=True):
        wanted = [e for e in reader.endings if e != "/"]
        assert re.findall(r"`(\.\w+)`", endings) == wanted


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks((REPOSITORY / "docs" / "records.md").read_text(), "records.md", {})


def test_a_reader_more_is_a_file_and_a_row(tmp_path):
    """The how-to, done in a copy of the package: command line, Python and studies follow."""
    page = (REPOSITORY / "docs" / "contributing_readers.md").read_text()
    (_, file, _), (_, row, _) = blocks(page)
    package = tmp_path / "jaxmeter"
    shutil.copytree(REPOSITORY / "jaxmeter", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "data" / "svmlight.py").write_text(file)
    readers = package / "data" / "readers.py"
    text = readers.read_text()
    text = text.replace("parquet, privacy_meter\n", "parquet, privacy_meter, svmlight\n", 1)
    head, mark, tail = text.partition("READERS = (\n")
    readers.write_text(f"{head}{mark}{row.rstrip()},\n{tail}")
    (tmp_path / "a.svm").write_text("1 1:2.5 3:1\n0 2:4\n")
    (tmp_path / "bomb.svm").write_text("1 2000000000:1\n")
    (tmp_path / "use.py").write_text(
        "from pathlib import Path\n"
        "import jax, numpy as np, jaxmeter as jm\n"
        "from jaxmeter import cli, experiment\n"
        "cli.main(['convert', 'a.svm', 'a.npz', '--n-features', '4'])\n"
        "assert np.load('a.npz')['x'].tolist() == [[2.5, 0, 1, 0], [0, 4, 0, 0]]\n"
        "options = (('n_features', '5'),)\n"
        "data = experiment.FileRecords(path=Path('a.svm'), members=1, options=options)\n"
        "assert data.read(jax.random.key(0)).x.shape == (2, 5)\n"
        "try:\n"
        "    jm.read_records('bomb.svm')\n"
        "except ValueError as error:\n"
        "    assert 'bomb.svm' in str(error) and 'are allowed' in str(error)\n"
        "else:\n"
        "    raise SystemExit('the bomb was read')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
