import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmeter as jm
from helpers import some_records
from jaxmeter.data.npz import read_npz
from jaxmeter.data.records import DataWarning, content_ids
from jaxmeter.data.splits import conflicting, near_copies, split_indices


def contents(records):
    return {row.tobytes() for row in records.x}


def test_parts_are_stratified_disjoint_and_complete():
    records = some_records(400, (3,), 5)
    parts = jm.split(jax.random.key(1), records, (0.4, 0.1, 0.5))
    assert [int(p.is_member.sum()) for p in parts] == [80, 20, 100]
    assert [int((~p.is_member).sum()) for p in parts] == [80, 20, 100]
    assert sum(map(len, map(contents, parts))) == len(set.union(*map(contents, parts))) == 400


def test_same_key_same_split_and_another_key_another():
    records = some_records(100, (3,), 5)
    first, again, other = (
        split_indices(jax.random.key(seed), records)[2].tolist() for seed in (3, 3, 4)
    )
    assert first == again != other


def test_records_keep_their_own_labels_and_membership():
    records = some_records(60, (2,), 5)
    truth = {x.tobytes(): (y, m) for x, y, m in zip(*records, strict=True)}
    for part in jm.split(jax.random.key(0), records):
        for x, y, m in zip(*part, strict=True):
            assert truth[x.tobytes()] == (y, m)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.integers(0, 30), min_size=60, max_size=90),
    labels=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_copies_never_cross_parts(values, labels, seed):
    """Few distinct contents, so that copies abound, also between members and non-members."""
    x = np.array(values, np.float32)[:, None]
    half = len(x) // 2
    y = np.random.default_rng(seed).integers(0, labels, size=len(x))
    records = jm.Records.of(members=(x[:half], y[:half]), nonmembers=(x[half:], y[half:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        try:
            parts = jm.split(jax.random.key(seed), records, (0.4, 0.2, 0.4), overlap="drop")
        except ValueError as error:
            assert "at least 2 of each" in str(error)
            return
    seen = [contents(part) for part in parts]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    for part in parts:  # and no record is on both sides
        assert not len(conflicting(part))


def test_overlap_is_an_error_that_names_the_records():
    x = np.arange(40, dtype=np.float32)[:, None]
    y = np.zeros(20, int)
    out = x[20:].copy()
    out[3], out[7] = x[5], x[6]
    records = jm.Records.of(members=(x[:20], y), nonmembers=(out, y))
    with pytest.raises(
        ValueError, match=r"2 members and 2 non-members.*members 5, 6; non-members 3, 7"
    ):
        jm.split(jax.random.key(0), records)
    parts = jm.split(jax.random.key(0), records, overlap="drop")
    assert sum(len(p.y) for p in parts) == 36
    assert not set.union(*map(contents, parts)) & {x[5].tobytes(), x[6].tobytes()}


def test_overlap_is_by_number_not_by_memory_layout_or_sign_of_zero():
    x = np.arange(12, dtype=np.float64).reshape(4, 3)
    fortran = np.asfortranarray(x)[::-1]
    ids = content_ids(np.concatenate([x, fortran, -0.0 * x[:1], 0.0 * x[:1]]))
    assert ids[:4].tolist() == ids[4:8][::-1].tolist()
    assert ids[8] == ids[9]
    assert len(set(ids.tolist())) == 5


def test_the_same_x_with_another_label_is_no_overlap():
    x = np.arange(40, dtype=np.float32)[:, None]
    records = jm.Records.of(members=(x, np.zeros(40, int)), nonmembers=(x, np.ones(40, int)))
    parts = split_indices(jax.random.key(0), records)
    assert [p.size for p in parts] == [32, 8, 40]
    for part in parts:
        assert sorted(part[part < 40]) == sorted(part[part >= 40] - 40)


def test_near_copies_are_found_and_warned_of():
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 50))
    out = random.normal(size=(60, 50))
    out[7] = x[4] + 1e-4
    assert near_copies(x, out).tolist() == [[4, 7]]
    brute = [(i, j) for i in range(60) for j in range(60) if np.linalg.norm(x[i] - out[j]) < 0.1]
    assert brute == [(4, 7)]
    y = np.zeros(60, int)
    records = jm.Records.of(members=(x, y), nonmembers=(out, y))
    with pytest.warns(DataWarning, match=r"1 pairs of a member and a non-member.*records 4 and 67"):
        jm.split(jax.random.key(0), records)


def test_one_hot_and_column_labels_are_read():
    x = np.ones((3, 2))
    one_hot = jm.Records.of(members=(x, np.eye(3)), nonmembers=(2 * x, [[0], [2], [1]]))
    assert one_hot.y.tolist() == [0, 1, 2, 0, 2, 1]
    assert one_hot.y.dtype == np.int32


def test_the_callers_arrays_are_copied():
    x, y = np.zeros((4, 2)), np.zeros(4, int)
    records = jm.Records.of(members=(x, y), nonmembers=(x + 1, y))
    x[:], y[:] = 9, 9
    assert records.x[:4].max() == 0 and records.y.max() == 0


X, Y = np.zeros((4, 2)), np.array([0, 1, 2, 0])
BAD = {
    "negative labels": (X, Y - 1, r"members: 2 labels are negative \(lowest -1\)"),
    "labels out of range": (X, Y + 1, r"labels go up to 3, but the target has 3 classes"),
    "float labels": (X, Y + 0.5, r"labels are float64"),
    "one-hot too wide": (X, np.eye(4), r"one-hot labels are 4 wide, but the target has 3 classes"),
    "soft labels": (X, np.full((4, 3), 1 / 3), r"rows are not one-hot"),
    "NaN": (
        np.where(np.arange(8).reshape(4, 2) == 5, np.nan, X),
        Y,
        r"1 records contain NaN.*record 2",
    ),
    "infinity": (np.where(np.arange(8).reshape(4, 2) == 1, np.inf, X), Y, r"1 records.*record 0"),
    "lengths": (X, Y[:3], r"4 records but 3 labels"),
    "empty": (X[:0], Y[:0], r"members are empty"),
    "objects": (X.astype(object), Y, r"x has dtype object"),
    "strings": (X.astype(str), Y, r"x has dtype <U"),
    "one axis": (X[:, 0], Y, r"x has shape \(4,\)"),
    "string labels": (X, Y.astype(str), r"labels are integers"),
}


@pytest.mark.parametrize("case", BAD, ids=BAD.keys())
def test_bad_records_are_refused(case):
    x, y, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        jm.Records.of(members=(x, y), nonmembers=(X + 1, Y), n_classes=3)


def test_members_and_nonmembers_must_be_of_one_kind():
    with pytest.raises(
        ValueError, match=r"members have records of shape \(2,\), non-members \(3,\)"
    ):
        jm.Records.of(members=(X, Y), nonmembers=(np.zeros((4, 3)), Y))
    with pytest.warns(DataWarning, match="members are float64, non-members float32"):
        jm.Records.of(members=(X, Y), nonmembers=(X.astype("f") + 1, Y))


def test_too_small_parts_are_refused():
    records = some_records(8, (2,), 2)
    with pytest.raises(ValueError, match=r"part 2 of the split \(10%\) has 0 members"):
        jm.split(jax.random.key(0), records)
    one_class = jm.Records(records.x, records.y, np.ones(8, bool))
    with pytest.raises(ValueError, match=r"and 0 non-members"):
        jm.split(jax.random.key(0), one_class)
    with pytest.raises(ValueError, match=r"must be positive and sum to at most 1"):
        jm.split(jax.random.key(0), records, (0.9, 0.3))


def test_npz_is_read_and_bad_files_are_refused(tmp_path):
    path = tmp_path / "members.npz"
    np.savez(path, x=X, y=Y)
    x, y = read_npz(path)
    assert (x == X).all() and (y == Y).all()

    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_npz(tmp_path / "nothing.npz")
    (tmp_path / "broken.npz").write_bytes(path.read_bytes()[:150])
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")
    np.save(tmp_path / "single.npy", X)
    np.savez(tmp_path / "renamed.npz", data=X, y=Y)
    np.savez(tmp_path / "pickled.npz", x=np.array([{}, {}], object), y=Y[:2])
    for name, message in {
        "broken.npz": "cannot be read as records",
        "text.npz": "cannot be read as records",
        "single.npy": "it holds a single array",
        "renamed.npz": r"it has the arrays \['data', 'y'\] but no x",
        "pickled.npz": "unpickling runs code",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_npz(tmp_path / name)
