"""ML Privacy Meter's text format: exact, written so that it reads back, wrong lines named."""

from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxmeter as jm
from jaxmeter import cli
from jaxmeter.data import text_rows
from jaxmeter.data.privacy_meter import known_among, read_rows

QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def as_that_tool_reads(text: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The format by its definition, one number after another."""
    x, y = [], []
    for line in text.splitlines():
        *fields, label = line.split(";")
        channels = [[float(number) for number in field.split(",")] for field in fields]
        planes = np.array(channels, np.float64).astype(np.float32)
        if len(shape) == 3:
            planes = planes.reshape(shape[2], *shape[:2]).transpose(1, 2, 0)
        x.append(planes.reshape(shape))
        y.append(int(float(label)))
    return np.array(x), np.array(y)


def write(folder: Path, text: str, members: list[int] | None = None) -> tuple[Path, Path]:
    (folder / "d.txt").write_text(text)
    lines = [text.splitlines()[i].split(";") for i in members or [0]]
    np.save(folder / "d.npy", np.array(lines))
    return folder / "d.txt", folder / "d.npy"


NUMBERS = st.one_of(
    st.integers(0, 255).map(str),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["1e3", "-0.0", "007", "1E-3", " 3", "1e-40"]),
)


@QUICK
@given(st.data(), st.sampled_from([(5,), (2, 3, 1), (2, 2, 3)]), st.integers(1, 6))
def test_numbers_are_those_of_the_definition(tmp_path, data, shape, n):
    channels = shape[2] if len(shape) == 3 else 1
    size = int(np.prod(shape)) // channels
    fields = st.lists(NUMBERS, min_size=size, max_size=size).map(",".join)
    rows = st.lists(fields, min_size=channels, max_size=channels).map(";".join)
    lines = [f"{data.draw(rows)};{data.draw(st.integers(0, 99))}" for _ in range(n)]
    ending = data.draw(st.sampled_from(["\n", "\r\n", ""]))
    path = tmp_path / "d.txt"
    path.write_bytes(("\n".join(lines) + ending).encode())
    x, y = read_rows(path, shape)
    expected = as_that_tool_reads("\n".join(lines), shape)
    np.testing.assert_array_equal(x.astype(np.float32), expected[0])
    np.testing.assert_array_equal(y, expected[1])


@QUICK
@given(st.data())
def test_what_is_written_reads_back(tmp_path_factory, data):
    shape = data.draw(st.sampled_from([(3,), (2, 3, 2), (4, 4, 1)]))
    n = data.draw(st.integers(2, 5))
    dtype = data.draw(st.sampled_from([np.uint8, np.float32, bool, np.int16]))
    elements = st.floats(width=32, allow_nan=False, allow_infinity=False)
    options = {"elements": elements} if dtype is np.float32 else {}
    x = data.draw(hnp.arrays(dtype, (n, *shape), **options))
    y = data.draw(hnp.arrays(np.int32, n, elements=st.integers(0, 300)))
    folder = tmp_path_factory.mktemp("written")
    records = jm.Records(x, y, np.arange(n) == 1)
    jm.write_privacy_meter(folder / "d.txt", records, folder / "d.npy")
    found = read_rows(folder / "d.txt", shape)
    np.testing.assert_array_equal(found[0].astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(found[1], y)
    member = read_rows(folder / "d.npy", shape)
    np.testing.assert_array_equal(member[0].astype(np.float32), x[1:2].astype(np.float32))
    assert list(folder.glob(".*")) == []


def test_bytes_stay_bytes_and_many_blocks_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(text_rows, "BLOCK", 1000)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    records = jm.Records(x, np.arange(300) % 7, np.arange(300) % 3 == 0)
    jm.write_privacy_meter(tmp_path / "d.txt", records, tmp_path / "d.npy")
    found = jm.read_privacy_meter(tmp_path / "d.txt", tmp_path / "d.npy")
    assert found.x.dtype == np.uint8 and found.x.shape == x.shape  # a square needs no shape
    order = np.concatenate([np.flatnonzero(records.is_member), np.flatnonzero(~records.is_member)])
    for mine, theirs in zip(found, records.rows(order), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("spelt", ["1,2;0", "1.0,2.0;0", "01,2e0;0.0", "1,2.00;0"])
@pytest.mark.parametrize("width", [8, 300])
def test_members_are_known_by_their_numbers(tmp_path, spelt, width):
    text, _ = write(tmp_path, "1,2;0\n1,2;1\n3,4;0\n1,2;0\n")
    np.save(tmp_path / "m.npy", np.array([spelt.split(";")], f"U{width}"))
    found = jm.read_privacy_meter(text, tmp_path / "m.npy")
    assert found.is_member.tolist() == [True, False, False]
    assert found.x.tolist() == [[1, 2], [1, 2], [3, 4]] and found.y.tolist() == [0, 1, 0]
    np.save(tmp_path / "m.npy", np.array([spelt.split(";")], f"S{width}"))
    assert jm.read_privacy_meter(text, tmp_path / "m.npy").is_member.sum() == 1


def test_known_among_compares_numbers_and_label():
    rows = np.array([[1, 2], [3, 4], [1, 2]], np.uint8), np.array([0, 0, 1])
    known = np.array([[1.0, 2.0]], np.float32), np.array([1])
    assert known_among(rows, known).tolist() == [False, False, True]


@pytest.mark.parametrize("block", [40, 10**6])
@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("1,2", "does not have that form"),
        ("1,2,3;0", "has 1 of 3"),
        ("1;2;0", "has 2 of 1"),
        ("1,2;0;", "does not have that form"),
        ("", "is blank"),
        ("1,x;0", "no finite number"),
        ("1,;0", "no finite number"),
        ("1,nan;0", "no finite number"),
        ("1,1e39;0", "no finite number"),
        ("1,2;0.5", "whole number"),
        ("1,2;-1", "whole number"),
        ("1,2;cat", "whole number"),
        ('"1",2;0', "no finite number"),
    ],
)
def test_a_bad_line_is_named_by_number(tmp_path, monkeypatch, bad, complaint, block):
    monkeypatch.setattr(text_rows, "BLOCK", block)
    lines = [f"{i},{i + 1};{i % 3}" for i in range(30)]
    lines[17] = bad
    (tmp_path / "d.txt").write_text("\n".join(lines) + "\n\n")
    with pytest.raises(ValueError, match=rf"d\.txt, line 18 is not.*{complaint}"):
        read_rows(tmp_path / "d.txt")


def test_wrong_files_are_refused_and_nothing_is_unpickled(tmp_path):
    text, members = write(tmp_path, "1,2,3,4;0\n5,6,7,8;1\n")
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.txt"):
        read_rows(tmp_path / "gone.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_rows(tmp_path / "empty.txt")
    (tmp_path / "csv.txt").write_text("1,2,3\n")
    with pytest.raises(ValueError, match="line 1 is not a record"):
        read_rows(tmp_path / "csv.txt")
    np.save(tmp_path / "objects.npy", np.array([["1,2", "0"]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Pickled arrays are refused"):
        jm.read_privacy_meter(text, tmp_path / "objects.npy")
    np.save(tmp_path / "floats.npy", np.ones((2, 2)))
    with pytest.raises(ValueError, match="array of strings"):
        jm.read_privacy_meter(text, tmp_path / "floats.npy")
    np.save(tmp_path / "other.npy", np.array([["1,2", "0"]]))
    with pytest.raises(ValueError, match="different data sets"):
        jm.read_privacy_meter(text, tmp_path / "other.npy")
    with pytest.raises(ValueError, match="no records of shape"):
        jm.read_privacy_meter(text, members, input_shape=(3,))
    assert jm.read_privacy_meter(text, members, input_shape=(2, 2, 1)).x.shape == (2, 2, 2, 1)
    (tmp_path / "wide.txt").write_text("1,2,3;4,5,6;0\n")
    with pytest.raises(ValueError, match="no square"):
        read_rows(tmp_path / "wide.txt")


def test_writing_overwrites_nothing_and_leaves_nothing_half_written(tmp_path):
    records = jm.Records(np.ones((2, 3)), np.array([0, 1]), np.array([True, False]))
    (tmp_path / "m.npy").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"m\.npy is there already"):
        jm.write_privacy_meter(tmp_path / "d.txt", records, tmp_path / "m.npy")
    with pytest.raises(ValueError, match="vectors"):
        jm.write_privacy_meter(tmp_path / "d.txt", records._replace(x=np.ones((2, 3, 3))))
    assert [path.name for path in tmp_path.iterdir()] == ["m.npy"]


def test_convert_goes_both_ways(tmp_path, capsys):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8), np.arange(20, dtype=np.int32) % 3
    is_member = np.arange(20) < 8
    np.savez(tmp_path / "a.npz", x=x, y=y, is_member=is_member)
    cli.main(["convert", str(tmp_path / "a.npz"), str(tmp_path / "a.txt")])
    assert (tmp_path / "a.txt.npy").exists()
    cli.main(["convert", str(tmp_path / "a.txt"), str(tmp_path / "b.npz")])
    assert "8 of them members" in capsys.readouterr().err
    with np.load(tmp_path / "b.npz") as back:
        np.testing.assert_array_equal(back["x"], x)
        np.testing.assert_array_equal(back["y"], y)
        np.testing.assert_array_equal(back["is_member"], is_member)
    np.savez(tmp_path / "plain.npz", x=x, y=y)
    cli.main(["convert", str(tmp_path / "plain.npz"), str(tmp_path / "plain.txt")])
    assert not (tmp_path / "plain.txt.npy").exists()
    for wrong in (["a.txt", "b.npz"], ["a.npz", "a.txt"], ["a.npz", "c.npz"], ["a.txt", "c.txt"]):
        with pytest.raises(SystemExit):
            cli.main(["convert", *(str(tmp_path / name) for name in wrong)])
    assert "must be .npz" in capsys.readouterr().err
