"""Signals in a folder and in bfloat16, and everything downstream of them."""

import errno
import json
import os

import jax
import numpy as np
import pytest

import jaxmeter as jm
from helpers import mlp_target, some_records
from jaxmeter.signals import load, plan

SPEC = jm.SignalSpec(outputs=("logits", "b", "a"), gradients=("c", "a"), gradient_norm=True)


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for field in ("outputs", "gradients", "gradient_norms"):
        assert list(getattr(found, field)) == list(getattr(expected, field)), "the spec's order"
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_holds_the_same_signals(tmp_path, dtype):
    target, records = mlp_target(), some_records(70, (6,), 4)
    folder = tmp_path / "new" / "signals"
    mapped = jm.extract(target, records, SPEC, out=folder, dtype=dtype)
    assert_same(mapped, jm.extract(target, records, SPEC, dtype=dtype))
    assert_same(load(folder), mapped)
    assert [path.name for path in folder.parent.iterdir()] == ["signals"], "nothing temporary"
    assert not mapped.loss.flags.writeable
    names = {path.suffix for path in folder.iterdir()}
    assert names == {".npy", ".json"}, "no pickles"
    bytes_ = sum(leaf.nbytes for leaf in jax.tree.leaves(mapped))
    assert bytes_ == plan(target, records.x, SPEC, dtype=dtype).result_bytes


def test_rows_of_a_folder_read_only_those_rows(tmp_path):
    target, records = mlp_target(), some_records(70, (6,), 4)
    mapped = jm.extract(target, records, SPEC, out=tmp_path / "s")
    whole = jm.extract(target, records, SPEC)
    for leaf in jax.tree.leaves(mapped.rows(slice(3, 9))):
        assert not leaf.flags.owndata, "a slice is a view of the map"
    index = np.array([5, 3, 60])
    some = mapped.rows(index)
    for leaf in jax.tree.leaves(some):
        assert type(leaf) is np.ndarray and len(leaf) == 3
        assert leaf.flags.owndata or leaf.base.nbytes == leaf.nbytes, "of the map nothing is held"
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(whole.rows(index)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_extraction_leaves_nothing(tmp_path, error):
    target, records = mlp_target(), some_records(70, (6,), 4)

    def stop(done, n):
        if done:
            raise error

    with pytest.raises(error):
        jm.extract(target, records, SPEC, out=tmp_path / "signals", progress=stop)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"holds no signals"):
        load(tmp_path / "signals")


def test_nothing_is_written_over(tmp_path):
    target, records = mlp_target(), some_records(8, (6,), 4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(FileExistsError, match=r"never written over"):
        jm.extract(target, records, out=tmp_path / "mine", progress=lambda *_: pytest.fail())
    assert_same(jm.extract(target, records, out=tmp_path / "empty"), jm.extract(target, records))


def test_a_folder_needs_no_host_memory_but_disk(tmp_path, monkeypatch):
    target, records = mlp_target(), some_records(8, (6,), 4)
    jm.extract(target, records, out=tmp_path / "a", host_budget=10)
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    with pytest.raises(ValueError, match=r"8 records take .*has 10 bytes free"):
        jm.extract(target, records, out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_space_of_signals_is_their_own_before_they_are_written(tmp_path, monkeypatch):
    target, records = mlp_target(), some_records(7000, (6,), 4)
    real = os.posix_fallocate

    def unsupported(file, start, size):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    for i, reserve in enumerate((real, unsupported)):
        monkeypatch.setattr("os.posix_fallocate", reserve)
        checked = []

        def progress(done, n, checked=checked):
            if not done:  # nothing is written yet
                for path in tmp_path.glob(".*.tmp/*.npy"):
                    size = path.stat().st_size
                    assert 512 * path.stat().st_blocks >= size - size % 4096, "sparse"
                    checked.append(size)

        out = tmp_path / str(i)
        signals = jm.extract(target, records, SPEC, out=out, progress=progress)
        assert len(checked) == len(jax.tree.leaves(signals)) and max(checked) > 100_000


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_an_error_that_says_how_much_is_needed(number, tmp_path, monkeypatch):
    target, records = mlp_target(), some_records(70, (6,), 4)
    calls = []

    def full(file, start, size):
        calls.append(size)
        if len(calls) == 3:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.posix_fallocate", full)
    whole = plan(target, records.x, SPEC).result_bytes
    message = rf"{os.strerror(number)}: the signals take {whole:,} bytes.* free .*out="
    with pytest.raises(OSError, match=message) as error:
        jm.extract(target, records, SPEC, out=tmp_path / "s", progress=lambda *_: pytest.fail())
    assert error.value.errno == number and str(tmp_path) in str(error.value)
    assert not list(tmp_path.iterdir()), "the half file is gone"


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda m: m | {"kind": "x"}, "not a manifest of jaxmeter"),
        (lambda m: m | {"format": 99}, "reads format 1"),
        (lambda m: {k: v for k, v in m.items() if k != "arrays"}, "damaged"),
        (lambda m: m | {"arrays": m["arrays"][1:]}, "damaged"),
        (lambda m: m | {"arrays": [m["arrays"][0] | {"file": "../x.npy"}]}, "outside its folder"),
        (lambda m: m | {"arrays": [m["arrays"][0] | {"file": "no.npy"}]}, "cannot be read"),
        (lambda m: m | {"arrays": [m["arrays"][0] | {"dtype": "int8"}]}, "folder was changed"),
        (lambda m: m | {"arrays": [m["arrays"][0] | {"dtype": "object"}]}, "folder was changed"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, complaint):
    jm.extract(mlp_target(), some_records(8, (6,), 4), out=tmp_path / "s")
    manifest = tmp_path / "s" / "signals.json"
    manifest.write_text(json.dumps(damage(json.loads(manifest.read_text()))))
    with pytest.raises(ValueError, match=complaint):
        load(tmp_path / "s")


def test_bfloat16_is_off_by_its_rounding_only():
    target, records = mlp_target(), some_records(200, (6,), 4)
    exact = jm.extract(target, records, SPEC)
    rounded = jm.extract(target, records, SPEC, dtype="bfloat16")
    for field in ("outputs", "gradients"):
        pairs = zip(
            jax.tree.leaves(getattr(rounded, field)),
            jax.tree.leaves(getattr(exact, field)),
            strict=True,
        )
        for a, b in pairs:
            assert a.dtype == jax.numpy.bfloat16 and 2 * a.nbytes == b.nbytes
            error = np.abs(a.astype(np.float64) - b)
            assert (error <= 2.0**-8 * np.abs(b)).all()
            assert error.max() > 0
    assert_same(
        rounded._replace(outputs={}, gradients={}), exact._replace(outputs={}, gradients={})
    )


def test_attacks_read_signals_wherever_they_lie(tmp_path):
    target, records = mlp_target(), some_records(80, (6,), 4)
    spec = jm.SignalSpec(gradients=("c/kernel",))
    attack = jm.inference_model(members=1)
    key = jax.random.key(0)

    def scores(signals):
        params = attack.init(key, signals.rows(np.arange(40)))
        return attack.score(params, signals), jm.scores.negative_loss(signals)

    exact = scores(jm.extract(target, records, spec))
    mapped = jm.extract(target, records, spec, out=tmp_path / "f")
    for a, b in zip(scores(mapped), exact, strict=True):
        np.testing.assert_array_equal(a, b)
    small = scores(jm.extract(target, records, spec, out=tmp_path / "b", dtype="bfloat16"))
    for a, b in zip(small, exact, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.999
    fitted = jm.cross_fit(key, attack, mapped, records.is_member, folds=2, epochs=1)
    assert np.isfinite(fitted).all()
