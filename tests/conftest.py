"""What must be set before jax starts: eight CPU devices, and strict dtypes, ranks and annotations."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# The suite compiles hundreds of small programs once each: compiling fast matters, running fast does not.
jax.config.update("jax_disable_most_optimizations", True)

# Every annotation of the package is checked at run time by every test, shapes included.
install_import_hook("lowbit", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture(scope="module")
def optimized():
    """Compiles as users do, for one module: laws that an optimizing compiler could break."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


COMPILED_ONCE = {
    # What one test has compiled, the next one reads.
    "jax_compilation_cache_dir": "",
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    # Steps are few and small: compiling them well takes longer than running them.
    "jax_disable_most_optimizations": True,
}


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def compiled_once(cache_folder):
    """Keeps compiled programs between tests and processes, for modules that train one model many times."""
    settings = COMPILED_ONCE | {"jax_compilation_cache_dir": cache_folder}
    before = {name: jax.config.values[name] for name in settings}
    _configure(settings)
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})  # for other processes
    yield
    for name in settings:
        del os.environ[name.upper()]
    _configure(before)


def _configure(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # or the folder that was set when the first test compiled would stay
