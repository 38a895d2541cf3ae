"""Shared by all tests: Keras on JAX, strict rank promotion, and where real data may lie."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
# Compiling is most of the suite's time. Less effort there changes no result beyond rounding, and a
# program is compiled once for all modules, workers, subprocesses and runs.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1"
    # The newer code generator costs half of a compilation; later releases have no other.
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # waiting threads burn the cores of other workers
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _programs_are_optimised_where_tests_compute(request: pytest.FixtureRequest):
    """To optimise a program mostly takes longer than to run it; `computes` marks the others."""
    optimised = request.node.get_closest_marker("computes") is not None
    jax.config.update("jax_disable_most_optimizations", not optimised)


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped():
    """Each holds memory maps; thousands in one process exceed the system's limit and crash XLA."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _figures_are_drawn_where_tests_look(request: pytest.FixtureRequest):
    """Drawing takes most of the time of a small report; `figures` marks who looks at figures."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("figures") is None:
            patch.setattr("matplotlib.figure.Figure.draw_without_rendering", lambda figure: None)
            patch.setattr("jaxmeter.report.folder.rendered", lambda *_, **__: b"<svg></svg>")
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data sets and models; tests that want it skip without it."""
    folder = Path(os.environ.get("JAXMETER_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the shared data folder is not here; set JAXMETER_DATA to use it")
    return folder
