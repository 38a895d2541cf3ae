"""Records in damaged and hostile files: an error that names the file, or the numbers in it."""

import contextlib
import io
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from damage import damaged

from jaxmeter import cli, experiment
from jaxmeter.data import npz, text_rows
from jaxmeter.data.npz import read_npz
from jaxmeter.data.privacy_meter import read_rows
from jaxmeter.experiment.store.fingerprint import content_of

X = np.random.default_rng(0).integers(0, 9, (40, 5)).astype(np.float32)
Y = np.arange(40) % 3


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def headed(header: str | bytes, content: bytes = b"", version: int = 1) -> bytes:
    """A .npy with any header."""
    text = header if isinstance(header, bytes) else header.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + content


def shaped(shape: str, dtype: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def archive(
    path: Path, x: bytes, y: bytes | None = None, method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("x.npy", x)
        file.writestr("y.npy", saved(Y) if y is None else y)
    return path


# --- Damage at random ----------------------------------------------------------------------------


def samples(folder: Path) -> dict[str, Path]:
    """A file of each format, by what reads it."""
    np.savez(folder / "stored.npz", x=X, y=Y)
    np.savez_compressed(folder / "packed.npz", x=X, y=Y)
    lines = [",".join(f"{v:g}" for v in row) + f";{y}" for row, y in zip(X, Y, strict=True)]
    (folder / "bytes.txt").write_text("\n".join(lines) + "\n")
    (folder / "floats.txt").write_text("\n".join(lines).replace("3,", "3.5e-3,") + "\n")
    np.save(folder / "rows.npy", np.array([line.split(";") for line in lines]))
    np.save(folder / "ascii.npy", np.array([line.split(";") for line in lines], "S"))
    return {path.name: path for path in sorted(folder.iterdir())}


def fuzzed(folder: Path, cases: int) -> Counter:
    """What comes of damaged files: nothing but records, or a ValueError that names the file."""
    outcomes: Counter = Counter()
    for name, path in samples(folder).items():
        for i in range(cases):
            content, what = damaged(path.read_bytes(), np.random.default_rng(i))
            case = folder / f"case-{name}"
            case.write_bytes(content)
            read = read_npz if path.suffix == ".npz" else read_rows
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    x, y = read(case)
            except ValueError as error:
                assert case.name in str(error), f"{name} {i}, {what}: {error}"
                assert all(line.isprintable() for line in str(error).split("\n"))
                outcomes[name, "refused"] += 1
            else:
                assert len(x) == len(y) > 0 and np.isfinite(x).all() and (y >= 0).all()
                outcomes[name, "read"] += 1
    return outcomes


def test_damaged_files_are_refused_or_read(tmp_path):
    outcomes = fuzzed(tmp_path, 60)
    for name in ("stored.npz", "packed.npz", "bytes.txt", "floats.txt", "rows.npy", "ascii.npy"):
        assert outcomes[name, "refused"] > 10, name
    assert outcomes["bytes.txt", "read"] > 3, "a digit for a digit is no damage that shows"


@pytest.mark.study
def test_many_damaged_files_are_refused_or_read(tmp_path):
    assert sum(fuzzed(tmp_path, 3000).values()) == 18_000


# --- Archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (shaped("(40, 10**9)"), "header is damaged"),
        (shaped("(40, 1000000000)"), "claims 160,000,000,000 bytes"),
        (shaped("(1000000000000, 5)"), "claims"),
        (shaped("(-1, 5)"), "no array has its shape"),
        (shaped("(0, 99999999999999999999)"), "no array has its shape"),
        (shaped(f"({'1, ' * 100})"), "no array has its shape"),
        (shaped(f"({'9' * 5000}, 1)"), "header is damaged"),
        (shaped("(40, 5)", "'|O'"), "unpickling runs code"),
        (shaped("(40, 5)", "[('a', '|O')]"), "unpickling runs code"),
        (shaped("(40,)", "[('a', '<f4'), ('b', '<i4')]"), "has dtype"),
        (shaped("(40, 5)", "'<U1'"), "has dtype"),
        (shaped("(10, 1)", "'<U0'"), "have no width"),
        (shaped("(40, 5)", "'<M8[s]'"), "claims|has dtype"),
        (shaped("(40, 5)", "'no such type'"), "header is damaged"),
        (shaped("(40, 5)", "'<f4'", "2"), "header is damaged"),
        ("{'shape': (40, 5)", "header is damaged"),
        ("(" * 9000, "header is damaged"),
        ("-" * 9000 + "1", "header is damaged"),
        ("{" * 50 + "'" + "\\q" * 20, "header is damaged"),
        ("__import__('os').getcwd()", "header is damaged"),
        ("\0" * 100, "header is damaged"),
        (b"\xff\xfe" * 40, "header is damaged"),
        (shaped("(40, 5)") + " " * 20_000, "header is damaged"),
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_that_lie(header, reason, version, tmp_path):
    path = archive(tmp_path / "x.npz", headed(header, X.tobytes(), version))
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason) as error:
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000, "nothing was made of the claim"
    tracemalloc.stop()
    assert "x.npz" in str(error.value)
    (tmp_path / "x.npy").write_bytes(headed(header, X.tobytes(), version))
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_rows(tmp_path / "x.npy")


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_whose_length_is_a_lie(version, tmp_path):
    start = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<I", 2**32 - 1)
    path = archive(tmp_path / "x.npz", start + shaped("(40, 5)").encode() + bytes(2**24))
    with pytest.raises(ValueError, match="it claims 4,294,967,295 bytes"):
        read_npz(path)


def test_every_header_that_numpy_writes_is_read(tmp_path):
    for version in ((1, 0), (2, 0), (3, 0), None):
        for x in (X, np.asfortranarray(X), X.astype(">f8"), X.astype(np.uint8), X > 3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # NumPy's, of a newer version
                path = archive(tmp_path / "x.npz", saved(x, version), saved(Y, version))
            found = read_npz(path)
            np.testing.assert_array_equal(found[0], x)
            np.testing.assert_array_equal(found[1], Y)
            assert found[0].dtype == x.dtype
    old = headed(shaped("(40L, 5L)"), X.tobytes())  # Python 2's
    np.testing.assert_array_equal(read_npz(archive(tmp_path / "x.npz", old))[0], X)


def test_a_small_file_cannot_take_all_memory(tmp_path):
    header = headed(shaped("(1000, 500000)", "'|u1'"))
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("x.npy", "w") as member:
            member.write(header)
            for _ in range(500):
                member.write(bytes(1_000_000))
        file.writestr("y.npy", saved(np.zeros(1000, int)))
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"unpacks to 500,.* bytes, .*max_bytes=") as error:
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert str(path) in str(error.value)
    small = archive(tmp_path / "small.npz", saved(np.zeros((40, 10_000))))
    assert read_npz(small)[0].shape == (40, 10_000), "what is small is read, however well it packs"
    with pytest.raises(ValueError, match="1,000 are allowed"):
        read_npz(small, max_bytes=1000)


def test_a_bomb_whose_directory_lies_is_cut_where_it_says(tmp_path):
    path = archive(tmp_path / "x.npz", saved(np.zeros((40, 1_000_000), np.uint8)))
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02") + 24  # the size unpacked
    path.write_bytes(content[:at] + struct.pack("<I", 1000) + content[at + 4 :])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"Bad CRC|claims 40,000,000 bytes, and it has 1,000"):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def flagged(path: Path, bit: int) -> None:
    """Sets a flag of the first member, in both of its heads."""
    content = bytearray(path.read_bytes())
    for head, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(head) + place] |= bit
    path.write_bytes(content)


def of_method(path: Path, method: int) -> None:
    content = bytearray(path.read_bytes())
    for head, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(head) + place
        content[at : at + 2] = struct.pack("<H", method)
    path.write_bytes(content)


def twice(path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("x.npy", saved(X))


def both_names(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x", saved(X))


def flipped(path: Path) -> None:
    """A number of the array is another one: only the checksum tells."""
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes()) + 6] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("method", "change", "reason"),
    [
        (zipfile.ZIP_STORED, lambda path: flagged(path, 1), "encrypted"),
        (zipfile.ZIP_STORED, lambda path: flagged(path, 32), "patched"),
        (zipfile.ZIP_STORED, lambda path: flagged(path, 64), "encryption"),
        (zipfile.ZIP_STORED, lambda path: of_method(path, 99), "NumPy never uses"),
        (zipfile.ZIP_STORED, lambda path: of_method(path, zipfile.ZIP_DEFLATED), "CRC|damaged"),
        (zipfile.ZIP_BZIP2, lambda path: None, "NumPy never uses"),
        (zipfile.ZIP_LZMA, lambda path: None, "NumPy never uses"),
        (zipfile.ZIP_STORED, twice, "'x' twice"),
        (zipfile.ZIP_STORED, both_names, "'x' twice"),
        (zipfile.ZIP_STORED, flipped, "CRC"),
        (zipfile.ZIP_STORED, lambda path: path.write_bytes(b""), "zip"),
        (zipfile.ZIP_STORED, lambda path: path.write_bytes(saved(X)), "single array"),
        (zipfile.ZIP_STORED, lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), "no x"),
    ],
)
def test_archives_that_are_no_archives_of_numpy(method, change, reason, tmp_path):
    path = archive(tmp_path / "x.npz", saved(X), method=method)
    change(path)
    with pytest.raises(ValueError, match=reason) as error:
        read_npz(path)
    assert str(path) in str(error.value) and "np.savez(path, x=x, y=y)" in str(error.value)


def test_members_that_overlap_are_bounded_like_others(tmp_path):
    path = archive(tmp_path / "x.npz", saved(X), saved(X))
    content = bytearray(path.read_bytes())
    second = content.rindex(b"PK\x01\x02") + 42
    content[second : second + 4] = bytes(4)  # y is where x is
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz"):
        read_npz(path)


def test_labels_that_are_no_classes_are_refused_and_not_wrapped(tmp_path):
    with pytest.raises(ValueError, match="labels go up to 4294967297"):
        read_npz(archive(tmp_path / "x.npz", saved(X), saved(Y + 2**32 - 1)))


def test_convert_reads_membership_as_it_reads_records(tmp_path, capsys):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {"x": saved(X), "y": saved(Y)}.items():
            file.writestr(f"{name}.npy", content)
        file.writestr("is_member.npy", headed(shaped("(40,)", "'|O'"), b"cos\nsystem\n"))
    with pytest.raises(SystemExit):
        cli.main(["convert", str(path), str(tmp_path / "out.txt")])
    assert "unpickling runs code" in capsys.readouterr().err


def test_only_the_arrays_that_are_asked_for_are_read(tmp_path):
    with pytest.raises(ValueError, match=r"'b' in it cannot be read"):
        np.savez(tmp_path / "a.npz", a=X)
        with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
            file.writestr("b.npy", b"\x93NUMPY")
        assert set(npz.read_arrays(tmp_path / "a.npz", ["a"], optional=["c"])) == {"a"}
        npz.read_arrays(tmp_path / "a.npz", ["a", "b"])


# --- Text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.zeros((5, 2), "U1"), "row 1 is not a record"),
        (np.array([["1,2", "0"], ["3,4\n5,6", "1"]]), "line breaks"),
        (np.array([["1,2", "0"], ["3,4\r5,6", "1"]]), "line breaks"),
        (np.array([[b"1,2", b"0"], [b"3,4\n5,6", b"1"]]), "line breaks"),
    ],
)
def test_rows_that_are_no_records(rows, reason, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(ValueError, match=reason) as error:
        read_rows(tmp_path / "rows.npy")
    assert "rows.npy" in str(error.value)


@pytest.mark.parametrize("dtype", ["<U3", ">U3", "S3"])
@pytest.mark.parametrize("order", "CF")
def test_rows_of_every_layout_are_read(dtype, order, tmp_path):
    np.save(tmp_path / "rows.npy", np.array([["1,2", "0"], ["3,4", "1"]], dtype, order=order))
    x, y = read_rows(tmp_path / "rows.npy")
    assert x.tolist() == [[1, 2], [3, 4]] and y.tolist() == [0, 1]


def test_rows_that_end_in_the_line_break_of_their_text_are_read(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([["1,2", "0\n"], ["3,4", "1\r\n"]]))
    x, y = read_rows(tmp_path / "rows.npy")
    assert x.tolist() == [[1, 2], [3, 4]] and y.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["'<U0'", "'|S0'"])
@pytest.mark.parametrize("shape", ["(3, 2)", "(1000000000000, 3)"])
def test_texts_of_no_characters_are_no_rows(dtype, shape, tmp_path):
    (tmp_path / "rows.npy").write_bytes(headed(shaped(shape, dtype)))
    with pytest.raises(ValueError, match=r"rows\.npy.*have no width"):
        read_rows(tmp_path / "rows.npy")


@pytest.mark.parametrize("order", "<>")
def test_numbers_that_are_no_letters(order, tmp_path):
    content = saved(np.array([["1,2", "0"]], f"{order}U3"))
    (tmp_path / "rows.npy").write_bytes(content[:-4] + struct.pack(f"{order}I", 0x110000))
    with pytest.raises(ValueError, match=r"rows\.npy' is damaged"):
        read_rows(tmp_path / "rows.npy")


_WIDE = """
import resource, sys
from jaxmeter.data.privacy_meter import read_rows
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
for path in sys.argv[2:]:
    try:
        x, y = read_rows(path)
        print(x.shape, float(x.sum()))
    except ValueError as error:
        print(str(error)[-150:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process' size from /proc")
def test_a_line_takes_memory_like_its_length(tmp_path):
    n = 1_000_000
    (tmp_path / "wide.txt").write_text(",".join(["1"] * n) + ";0\n")
    (tmp_path / "floats.txt").write_text(",".join(["0.5"] * n) + ";0\n")
    (tmp_path / "bad.txt").write_text(",".join(["1"] * n) + f",{'7' * n}x;0\n")
    paths = [str(tmp_path / name) for name in ("wide.txt", "floats.txt", "bad.txt")]
    done = subprocess.run(
        [sys.executable, "-c", _WIDE, str(2**30), *paths],
        capture_output=True, text=True, timeout=120, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    first, second, third = done.stdout.splitlines()
    assert first == f"(1, {n}) 1000000.0" and second == f"(1, {n}) 500000.0"
    assert "no finite number" in third
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


# --- Targets of studies --------------------------------------------------------------------------


def test_a_target_is_looked_at_before_it_is_hashed(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        "jaxmeter.experiment.store.fingerprint._content", lambda path, *_: read.append(path) or "0"
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "large").write_bytes(b"1")
    (tmp_path / "disk.img").write_bytes(b"1")
    (tmp_path / "m.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe.keras")
    weights = tmp_path / "home"
    for target, reason in (
        (experiment.TargetFile(path=tmp_path / "home"), "not a SavedModel"),
        (experiment.TargetFile(path=tmp_path / "disk.img"), "format is not known"),
        (experiment.TargetFile(path=tmp_path / "pipe.keras"), "no regular file"),
        (experiment.TargetFile(path=tmp_path / "m.json", weights=weights), "a folder"),
    ):
        with pytest.raises(ValueError, match=reason):
            experiment.run(experiment.Config(study="s", seed=0, target=target), tmp_path / "store")
    with pytest.raises(ValueError, match="no regular file"):
        content_of(Path("/dev/zero"))
    assert not read


def test_of_a_saved_model_its_own_files_are_hashed(tmp_path):
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"1")
    (tmp_path / "variables" / "variables.index").write_bytes(b"2")
    first = content_of(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"3")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "large").write_bytes(b"4")
    assert content_of(tmp_path) == first
    (tmp_path / "variables" / "variables.index").write_bytes(b"5")
    assert content_of(tmp_path) != first
    (tmp_path / "saved_model.pb").unlink()
    whole = content_of(tmp_path)
    (tmp_path / "data" / "large").write_bytes(b"6")
    assert content_of(tmp_path) != whole, "of other folders everything counts"


@pytest.mark.parametrize(
    "block", [b"1;0\n" + b"\r" * 10**6 + b"1;0\n", b"1;" * 10**6 + b"1;0\n"], ids=["blank", "wide"]
)
def test_text_takes_a_few_times_its_size(block):
    """A text of Python's for each line or number would take 40 to 90 times as much."""
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        text_rows.parsed(block, None, "line", 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * len(block)
