import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeter as jm
from helpers import assert_close, linear_target, mlp_target, reference_gradients, some_records
from jaxmeter.signals import plan, white_box
from jaxmeter.signals.program import _program

EVERYTHING = jm.SignalSpec(
    outputs=("logits", "a", "b"), gradients=("c", "a/kernel"), gradient_norm=True
)


def test_extract_is_what_the_target_gives():
    target, records = mlp_target(), some_records(30, (6,), 4)
    signals = jm.extract(target, records, EVERYTHING)
    out = target(records.x)
    assert list(signals.outputs) == ["logits", "a", "b"]
    assert_close(signals.logits, out.logits)
    assert_close(signals.outputs["a"], out.layers["a"])
    log_p = jax.nn.log_softmax(out.logits)
    assert_close(signals.loss, -log_p[np.arange(30), records.y])
    assert (signals.y == records.y).all() and signals.label.shape == (30, 4)
    expected = reference_gradients(target, records.x, records.y)
    assert list(signals.gradients) == ["c/kernel", "c/bias", "a/kernel"]
    assert_close(signals.gradients["c/kernel"].materialise(), expected["c/kernel"])
    assert_close(signals.gradients["a/kernel"].materialise(), expected["a/kernel"])
    assert_close(signals.gradients["c/bias"], expected["c/bias"])
    assert list(signals.gradient_norms) == ["a", "b", "c"]
    for layer, norm in signals.gradient_norms.items():
        parts = [np.asarray(expected[f"{layer}/{v}"]).reshape(30, -1) for v in ("kernel", "bias")]
        assert_close(norm, np.linalg.norm(np.concatenate(parts, axis=1), axis=1))


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65])
def test_signals_do_not_depend_on_batch_size_or_company(n):
    target, records = mlp_target(), some_records(130, (6,), 4)
    whole = jm.extract(target, records, EVERYTHING)
    small = jm.extract(target, records.rows(np.arange(n)), EVERYTHING)
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(whole.rows(slice(n))), strict=True):
        assert_close(a, b, rtol=2e-6)


def test_extract_equals_of_example_one_by_one():
    target, records = mlp_target(), some_records(4, (6,), 4)
    one = jax.jit(lambda x, y: jm.of_example(target, x, y, EVERYTHING))
    rows = [one(x, y) for x, y in zip(records.x, records.y, strict=True)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    signals = jm.extract(target, records, EVERYTHING)
    assert jax.tree.structure(stacked) == jax.tree.structure(signals)
    for a, b in zip(jax.tree.leaves(signals), jax.tree.leaves(stacked), strict=True):
        assert_close(a, b)


def test_stacked_targets_are_an_axis():
    targets = [mlp_target(seed=s) for s in range(3)]
    stacked = targets[0].replace(
        params=jax.tree.map(lambda *p: jnp.stack(p), *(t.params for t in targets))
    )
    records = some_records(4, (6,), 4)
    spec = white_box(targets[0])

    def signals(target):
        return jax.vmap(lambda x, y: jm.of_example(target, x, y, spec))(records.x, records.y)

    together = jax.jit(jax.vmap(signals))(stacked)
    for k, target in enumerate(targets):
        alone = jm.extract(target, records, spec)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert_close(a[k], b)


def budget_for(target, records, spec, batch: int) -> int:
    """The smallest device budget with which a device computes so many records at once."""
    exact = plan(target, records.x[:1].repeat(batch, axis=0), spec)
    assert exact.batch == batch
    return exact.device_bytes


def test_ragged_batches_and_other_sizes_do_not_retrace():
    traces = 0

    def apply(params, state, x):
        nonlocal traces
        traces += 1
        return x @ params["w"]

    target = jm.from_function(apply, {"w": np.ones((3, 2), "f")}, input_shape=(3,))
    spec = jm.SignalSpec(gradients=("w",))
    budget = budget_for(target, some_records(4, (3,), 2), spec, 16)
    jm.extract(target, some_records(70, (3,), 2), spec, device_budget=budget)
    seen, compiled = traces, _program._cache_size()
    for n in (70, 40):
        jm.extract(target, some_records(n, (3,), 2, seed=n), spec, device_budget=budget)
        assert plan(target, np.zeros((n, 3)), spec, device_budget=budget).batch == 16
    assert (traces, _program._cache_size()) == (seen, compiled)


def test_one_trace_of_the_model_serves_all_sizes_of_batch():
    traces = 0

    def apply(params, state, x):
        nonlocal traces
        traces += 1
        return x @ params["w"]

    target = jm.from_function(apply, {"w": np.ones((3, 2), "f")}, input_shape=(3,))
    jm.extract(target, some_records(64, (3,), 2))
    seen = traces
    for n in (1, 5, 17, 500):
        jm.extract(target, some_records(500, (3,), 2).rows(np.arange(n)))
    assert traces == seen


@pytest.mark.parametrize("n", [1, 16, 17, 33])
def test_ragged_batches_are_whole(n):
    target, records = mlp_target(), some_records(40, (6,), 4).rows(np.arange(n))
    budget = budget_for(target, some_records(16, (6,), 4), EVERYTHING, 16)
    assert plan(target, records.x, EVERYTHING, device_budget=budget).batches == -(-n // 16)
    found = jm.extract(target, records, EVERYTHING, device_budget=budget)
    assert_equal_signals(found, jm.extract(target, records, EVERYTHING), rtol=2e-6)


def assert_equal_signals(found, expected, rtol: float = 0.0) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, rtol=rtol) if rtol else np.testing.assert_array_equal(a, b)


def test_progress_is_reported():
    calls = []
    target, records = linear_target(), some_records(40, (5,), 3)
    budget = budget_for(target, records, jm.SignalSpec(), 16)
    jm.extract(
        target, records, device_budget=budget, progress=lambda done, n: calls.append((done, n))
    )
    assert calls == [(0, 40), (16, 40), (32, 40), (40, 40)]


def test_the_plan_counts_bytes():
    target = jm.from_function(
        lambda p, s, x: jnp.tanh(x @ p["a"]) @ p["b"],
        {"a": np.zeros((10, 256), "f"), "b": np.zeros((256, 100), "f")},
    )
    spec = jm.SignalSpec(gradients=("b",), outputs=(), loss=False, label=False)
    cost = plan(target, np.zeros((50_000, 10), "f"), spec)
    assert cost.record_bytes == 4 * (256 + 100)
    assert cost.result_bytes < 100e6
    assert cost.model_bytes == 4 * (10 * 256 + 256 * 100)
    assert cost.device_bytes <= 2**30
    found = jm.extract(target, some_records(50_000, (10,), 100), spec)  # a quarter of a second
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(found)) == cost.result_bytes
    half = plan(target, np.zeros((50_000, 10), "f"), spec, dtype="bfloat16")
    assert 2 * half.result_bytes == cost.result_bytes


def test_too_small_budgets_are_refused_with_numbers():
    target, records = mlp_target((6, 512, 512, 4)), some_records(20, (6,), 4)
    every = jm.SignalSpec(gradients=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"one record's signals need .*iB.*device budget"):
        jm.extract(target, records, every, device_budget=2**20)
    with pytest.raises(
        ValueError,
        match=r"20 records take .*KiB \([\d,]+ bytes\), more than the host budget of 1.0 KiB.*out=",
    ):
        jm.extract(target, records, every, host_budget=1024)


def test_records_must_fit_the_target():
    target = mlp_target()
    with pytest.raises(ValueError, match=r"records have shape \(5,\), but the target takes \(6,\)"):
        jm.extract(target, some_records(8, (5,), 4))
    with pytest.raises(ValueError, match=r"labels lie outside 0..3, the target's 4 classes"):
        jm.extract(target, some_records(80, (6,), 7))


def test_names_are_checked():
    target, records = mlp_target(), some_records(8, (6,), 4)
    with pytest.raises(ValueError, match=r"no layer 'logit'. Did you mean 'logits'"):
        jm.extract(target, records, jm.SignalSpec(outputs=("logit",)))
    with pytest.raises(ValueError, match=r"no trainable layer 'cc'.*1: a, 2: b, 3: c"):
        jm.extract(target, records, jm.SignalSpec(gradients=("cc",)))
    with pytest.raises(ValueError, match="asks for no signal at all"):
        jm.extract(target, records, jm.SignalSpec(outputs=(), loss=False, label=False))
    by_number = jm.SignalSpec(outputs=(2,), gradients=(3,), gradient_norm=(1,)).resolved(target)
    assert by_number.outputs == ("b",)
    assert by_number.gradients == ("c/kernel", "c/bias")
    assert by_number.norms == ("a",)


def test_only_and_union():
    target, records = mlp_target(), some_records(8, (6,), 4)
    small = jm.SignalSpec(gradients=("c",), loss=False).resolved(target)
    other = jm.SignalSpec(outputs=("a",), gradient_norm=("a",)).resolved(target)
    both = jm.extract(target, records, small.union(other))
    for spec in (small, other):
        alone = jm.extract(target, records, spec)
        part = both.only(spec)
        assert jax.tree.structure(part) == jax.tree.structure(alone)
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(alone), strict=True):
            assert_close(a, b)


def test_integer_images_are_cast():
    target = linear_target()
    random = np.random.default_rng(0)
    x = random.integers(0, 255, size=(6, 5), dtype=np.uint8)
    records = jm.Records.of(members=(x[:3], [0, 1, 2]), nonmembers=(x[3:], [0, 1, 2]))
    as_float = jm.Records(x.astype("f"), records.y, records.is_member)
    assert (jm.extract(target, records).logits == jm.extract(target, as_float).logits).all()
