"""Extraction over eight devices, over two processes, and its peak memory, each in a new process."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import jaxmeter as jm
from helpers import mlp_target, some_records

TESTS = Path(__file__).parent
PRELUDE = """
import sys
import jax
import numpy as np
import jaxmeter as jm
from helpers import mlp_target, some_records
SPEC = jm.SignalSpec(outputs=("logits", "a"), gradients=("c", "a/kernel"), gradient_norm=True,
                     scalars=("alignment", "mean cosine", "class distance", "input norm"))

def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
"""


def started(code: str, *args: object, **environment: str) -> subprocess.Popen:
    """A Python process with the tests' helpers on its path."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen) -> str:
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err
    return out


def test_eight_devices_give_the_numbers_of_one(tmp_path):
    code = """
    assert len(jax.devices()) == 8
    target, records = mlp_target(), some_records(300, (6,), 4)
    one = jax.devices()[:1]
    eight = jm.signals.plan(target, records.x, SPEC)
    assert (eight.devices, eight.batch, eight.batches) == (8, 64, 1)
    few = jm.signals.plan(target, records.x[:8].repeat(16, axis=0), SPEC)
    assert few.batch == 16
    budget = few.device_bytes
    for n in (300, 128, 129):  # three batches of 128, the last ragged; whole; one record over
        part = records.rows(np.arange(n))
        calls = []
        found = jm.extract(target, part, SPEC, device_budget=budget,
                           progress=lambda *call: calls.append(call))
        assert calls == [(min(k, n), n) for k in range(0, n + 128, 128)], calls
        # Equal batches a device, equal programs: equal bits.
        same(found, jm.extract(target, part, SPEC, device_budget=budget, devices=one))
    three = records.rows(np.arange(3))  # fewer records than devices
    assert jm.signals.plan(target, three.x, SPEC).devices == 3
    found = jm.extract(target, three, SPEC)
    for a, b in zip(jax.tree.leaves(found),
                    jax.tree.leaves(jm.extract(target, three, SPEC, devices=one)), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=1e-5, atol=1e-6)
    same(jm.extract(target, records, SPEC, out=sys.argv[1]), jm.extract(target, records, SPEC))
    some = jm.extract(target, records, SPEC, devices=jax.devices()[3:6])  # any of them
    assert len(some.loss) == 300
    """
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
    output(started(code, tmp_path / "signals", XLA_FLAGS=flags))


def test_two_processes_share_the_records(tmp_path):
    code = """
    rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
    target, records = mlp_target(), some_records(70, (6,), 4)
    budget = jm.signals.plan(target, records.x[:8].repeat(4, axis=0), SPEC).device_bytes
    alone = jm.extract(target, records, SPEC, device_budget=budget)  # by default on its own
    for dtype in ("float32", "bfloat16"):
        everywhere = dict(device_budget=budget, devices=jax.devices(), dtype=dtype)
        together = jm.extract(target, records, SPEC, **everywhere)
        if dtype == "float32":
            same(together, alone)
        same(jm.extract(target, records, SPEC, out=f"{folder}/{dtype}", **everywhere), together)
    try:
        jm.extract(target, records.rows(np.arange(60 + rank)), SPEC, devices=jax.devices())
    except ValueError as error:
        assert "do not pass the same records ([60, 61]" in str(error), error
    else:
        raise AssertionError("different records were not noticed")
    try:
        jm.extract(target, records, SPEC, devices=jax.devices()[:1 + 2 * rank])
    except ValueError as error:
        assert "as many devices" in str(error) or rank == 0 or "belongs" in str(error), error
    try:
        jm.extract(target, records, SPEC, devices=jax.devices(), out=f"{folder}/float32")
    except (FileExistsError, RuntimeError) as error:
        assert isinstance(error, FileExistsError if rank == 0 else RuntimeError)
    else:
        raise AssertionError("an existing folder was not noticed")
    print("done")
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=1"
    both = [started(code, rank, port, tmp_path, XLA_FLAGS=flags) for rank in (0, 1)]
    try:
        assert all(output(process).endswith("done\n") for process in both)
    finally:
        for process in both:
            process.kill()


def test_devices_of_nobody_here_are_refused():
    with pytest.raises(ValueError, match="none of the 0 devices belongs to this process"):
        jm.extract(mlp_target(), some_records(8, (6,), 4), devices=[])


MEMORY = """
import ctypes, gc
import jax.numpy as jnp

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

random = np.random.default_rng(0)
params = {}
def apply(params, state, x):
    if "c1" in params:
        for name in ("c1", "c2", "c3"):
            x = jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME",
                                             dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x)
        x = x.mean((1, 2))
    for name in ("d1", "d2"):
        x = jnp.tanh(x @ params[name]) if name in params else x
    return x @ params["out"]

def normal(*shape):
    return random.normal(size=shape).astype("f") / np.sqrt(np.prod(shape[:-1]))

if sys.argv[1] == "dense":
    params = {"d1": normal(4096, 4096), "d2": normal(4096, 4096), "out": normal(4096, 10)}
    shape, spec = (4096,), jm.SignalSpec(gradients=("d1", "d2", "out"))
elif sys.argv[1] == "forward":
    params = {"c1": normal(3, 3, 3, 32), "c2": normal(3, 3, 32, 64), "c3": normal(3, 3, 64, 64)}
    params["out"] = normal(64, 10)
    shape, spec = (48, 48, 3), jm.SignalSpec()
else:
    params = {"c1": normal(3, 3, 3, 32), "c2": normal(3, 3, 32, 32), "c3": normal(3, 3, 32, 32)}
    params["out"] = normal(32, 10)
    shape, spec = (64, 64, 3), jm.SignalSpec(gradient_norm=True)
target = jm.from_function(apply, params, input_shape=shape)
records = some_records(1000, shape, 10)
budget = 2**28
plan = jm.signals.plan(target, records.x, spec, device_budget=budget)
records = records.rows(np.arange(min(1000, 2 * plan.batch + 3)))
plan = jm.signals.plan(target, records.x, spec, device_budget=budget)
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = status("VmRSS")
jm.extract(target, records, spec, device_budget=budget)
print(plan.batch_bytes + plan.result_bytes, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the pages")
@pytest.mark.parametrize("net", ["dense", "forward", "gradients"])
def test_peak_memory_is_as_planned(net):
    # Freed arrays go back to the system at once.
    planned, peak = map(int, output(started(MEMORY, net, MALLOC_MMAP_THRESHOLD_="65536")).split())
    print(f"{net}: planned {planned / 2**20:.0f} MiB, peak {peak / planned:.2f} of it")
    assert planned > 64 * 2**20
    assert 0.2 * planned < peak < 1.3 * planned
