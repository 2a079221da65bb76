"""Finds the compiled kernels: where they are, what they can do on this processor, and their C signatures.

Installing the package compiles them where there is a compiler. A source tree that has changed since (an editable
install) is compiled anew at first use, into a cache folder, once for all processes.
"""

import ctypes
import functools
import os
import warnings
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path

from lowbit.errors import ConfigError, KernelError, nearest
from lowbit.kernels import build
from lowbit.locks import one_at_a_time

CHOICE_VARIABLE = "LOWBIT_KERNELS"
"""Environment variable that says what "auto" means: numpy, or the name of an instruction set."""

CACHE_VARIABLE = "LOWBIT_CACHE"
"""Environment variable that names the folder for what is compiled at first use."""

KERNELS = ("auto", "numpy", "avx512", "avx2", "neon", "c")

PACKED, FLOAT32, FLOAT16, BFLOAT16 = range(4)
INT8, FLOAT = range(2)
OK, NOT_FINITE, BAD_CODE, NO_THREADS = range(4)


class Matrix(ctypes.Structure):
    """`lb_matrix` of native/lowbit.h."""

    _fields_ = (
        ("kind", c_int32),
        ("bits", c_int32),
        ("k", c_int64),
        ("n", c_int64),
        ("groups", c_int64),
        ("whole_levels", c_int32),
        ("first", c_int32),
        ("step", c_int32),
        ("unit", c_float),
        ("half_scales", c_int32),
        ("num_levels", c_int32),
        ("data", c_void_p),
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("levels", c_void_p),
    )


class Layer(ctypes.Structure):
    """`lb_layer` of native/lowbit.h."""

    _fields_ = (
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, c_void_p) for name in ("attn_norm", "mlp_norm", "q_bias", "k_bias", "v_bias")),
    )


class Model(ctypes.Structure):
    """`lb_model` of native/lowbit.h."""

    _fields_ = (
        *((name, c_int64) for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim")),
        ("eps", c_float),
        ("activations", c_int32),
        ("layer", POINTER(Layer)),
        ("norm", c_void_p),
    )


class Cache(ctypes.Structure):
    """`lb_cache` of native/lowbit.h."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("batch", c_int64),
        ("capacity", c_int64),
        ("past", c_int64),
    )


_SIGNATURES = {
    "lb_isa_names": (POINTER(c_char_p), ()),
    "lb_isa_supported": (c_int, (c_char_p,)),
    "lb_source_digest": (c_char_p, ()),
    "lb_prepack": (
        c_int,
        (c_void_p, c_int64, c_int64, c_int64, c_int64, c_int, c_int, c_int, c_int, c_int, c_void_p, c_int),
    ),
    "lb_workspace": (c_size_t, (POINTER(Matrix), c_int64)),
    "lb_matmul": (
        c_int,
        (c_char_p, POINTER(Matrix), c_void_p, c_int64, c_void_p, c_int64, c_int, c_void_p, c_int),
    ),
    "lb_forward_workspace": (c_size_t, (POINTER(Model), c_int64, c_int64, c_int64, c_int)),
    "lb_forward": (
        c_int,
        (c_char_p, POINTER(Model), POINTER(Cache), c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int),
    ),
    "lb_read": (c_uint64, (c_char_p, c_void_p, c_int64, c_int)),
}


def installed_library() -> Path:
    """Returns where installing the package puts the library."""
    return build.SOURCES / build.LIBRARY


def library_path() -> Path:
    """Returns a library made of the sources as they are, compiling it if there is none.

    Raises:
      KernelError: it has to be compiled and cannot be.
    """
    if _digest_of(installed_library()) == build.source_digest():
        return installed_library()
    path = cache_folder() / f"kernels-{build.source_digest()}" / build.LIBRARY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.parent / "lock"):
            if not path.exists():
                build.build(path)
    except (build.BuildError, OSError) as error:
        raise KernelError(
            f"the compiled kernels are not there and cannot be made: {error}",
            'install a C compiler (gcc or clang), or run with kernels="numpy"',
        ) from error
    return path


@functools.cache
def library() -> ctypes.CDLL:
    """Returns the library with its signatures declared.

    Raises:
      KernelError: see `library_path`; or it cannot be loaded.
    """
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded: {error}", "delete it; it is then compiled again") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, list(arguments)
    return loaded


def supported() -> tuple[str, ...]:
    """Returns the instruction sets that are compiled and that this processor has, fastest first; "c" is the last.

    Raises:
      KernelError: as `library`.
    """
    lib = library()
    names = []
    for name in lib.lb_isa_names():
        if name is None:
            break
        if lib.lb_isa_supported(name):
            names.append(name.decode())
    return tuple(names)


def choose(kernels: str) -> str:
    """Returns "numpy" or an instruction set for one of `KERNELS`.

    "auto" is what `LOWBIT_KERNELS` says, or else the fastest; where there is neither a library nor a compiler it is
    "numpy", with a warning.

    Raises:
      ConfigError: an unknown name, or an instruction set that this processor lacks.
      KernelError: as `library`, for any but "auto".
    """
    source = ""
    if kernels == "auto" and CHOICE_VARIABLE in os.environ:
        kernels, source = os.environ[CHOICE_VARIABLE], f" in {CHOICE_VARIABLE}"
    if kernels not in KERNELS:
        raise ConfigError(f"unknown kernels {kernels!r}{source}", nearest(kernels, KERNELS))
    if kernels == "numpy":
        return kernels
    try:
        names = supported()
    except KernelError as error:
        if kernels != "auto":
            raise
        warnings.warn(f"{error.cause}; numpy computes in their place, slower", RuntimeWarning, stacklevel=2)
        return "numpy"
    if kernels == "auto":
        return names[0]
    if kernels not in names:
        raise ConfigError(
            f"this processor has no {kernels} kernels{source}", f"choose from auto, numpy, {', '.join(names)}"
        )
    return kernels


def default_threads() -> int:
    """Returns the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _digest_of(path: Path) -> str | None:
    """The sources that a library was made of; None where it cannot be loaded."""
    if not path.exists():
        return None
    try:
        function = ctypes.CDLL(str(path)).lb_source_digest
    except (OSError, AttributeError):
        return None
    function.restype = c_char_p
    return bytes(function()).decode()


def cache_folder() -> Path:
    """Returns where kernels are put that were compiled at first use."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowbit"
