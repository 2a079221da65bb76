"""What must be set before jax starts: eight CPU devices, programs that compile fast, and strict dtypes and ranks."""

import gc
import importlib.metadata
import os
from pathlib import Path

# Programs here are small and run a few times: compiling them is most of what the suite does. The emitters that
# fuse through MLIR take three times as long as those before them, and cutting a program into parts that are compiled
# side by side is wasted where every core has a worker. XLA ends a process over a flag that it does not know, so these
# are given to versions that are known to have them.
FUSES = "xla_cpu_use_fusion_emitters"
PARTS = "xla_cpu_parallel_codegen_split_count"
HAS_THEM = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)

FLAGS = ["--xla_force_host_platform_device_count=8", *([f"--{FUSES}=false", f"--{PARTS}=1"] if HAS_THEM else [])]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
from lowering import share_contexts  # noqa: E402
from meshes import on_one_device  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# The suite compiles hundreds of small programs once each: compiling fast matters, running fast does not.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads where operations of these programs come from
share_contexts()

# Every annotation of the package is checked at run time by every test, shapes included.
install_import_hook("lowbit", "typecheck.once_a_signature")


def pytest_collection_finish():
    """Lets the garbage collector come seldom: what was imported, traced and compiled stays, and is most of the heap."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="session")
def fused():
    """Gives the `compiler_options` that fuse as users' programs do: for gradients that are compared to the last bit."""
    return {FUSES: True} if HAS_THEM else {}


@pytest.fixture(scope="module")
def optimized(fused):
    """Compiles as users do, for one module: laws that an optimizing compiler could break.

    Gives the options that `jax.jit` and `compile` need for it besides.
    """
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield fused
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def one_device():
    """Puts the runs of a test on one device."""
    with on_one_device():
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Keeps compiled programs for all tests, workers and processes of this run of the suite: many train one model."""
    base = tmp_path_factory.getbasetemp()
    settings = {
        # A worker's own folder lies in that of the run.
        "jax_compilation_cache_dir": str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"),
        # Smaller programs are compiled again in the time that it takes to read one, and most are asked for once.
        "jax_persistent_cache_min_compile_time_secs": 0.04,
        "jax_disable_most_optimizations": True,
    }
    Path(settings["jax_compilation_cache_dir"]).mkdir(exist_ok=True)
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for other processes
