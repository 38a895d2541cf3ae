import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeter as jm
from helpers import assert_close, linear_target, mlp_target, reference_gradients, some_records
from jaxmeter.signals import _extract_batch, plan, white_box

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


def test_ragged_batches_and_other_sizes_do_not_retrace():
    traces = 0

    def apply(params, state, x):
        nonlocal traces
        traces += 1
        return x @ params["w"]

    target = jm.from_function(apply, {"w": np.ones((3, 2), "f")}, input_shape=(3,))
    budget = plan(target, np.zeros((1, 3)), jm.SignalSpec()).model_bytes
    budget += 16 * plan(target, np.zeros((1, 3)), jm.SignalSpec()).work_bytes
    jm.extract(target, some_records(70, (3,), 2), device_budget=budget)
    seen, compiled = traces, _extract_batch._cache_size()
    jm.extract(target, some_records(40, (3,), 2), device_budget=budget)
    assert plan(target, np.zeros((70, 3)), jm.SignalSpec(), device_budget=budget).batch == 16
    assert _extract_batch._cache_size() == compiled
    assert traces - seen == 2  # the two plans look at shapes; nothing is compiled


def test_progress_is_reported():
    calls = []
    target, records = linear_target(), some_records(40, (5,), 3)
    cost = plan(target, records.x, jm.SignalSpec())
    budget = cost.model_bytes + 16 * cost.work_bytes
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
    found = jm.extract(target, some_records(20, (10,), 100), spec)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(found)) == 20 * cost.record_bytes


def test_too_small_budgets_are_refused_with_numbers():
    target, records = mlp_target((6, 512, 512, 4)), some_records(20, (6,), 4)
    every = jm.SignalSpec(gradients=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"one record's signals need up to .*KiB.*device budget"):
        jm.extract(target, records, every, device_budget=2**20)
    with pytest.raises(
        ValueError, match=r"20 records take .*KiB, more than the host budget of 1.0 KiB"
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
