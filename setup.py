"""Compiles the C kernels when the package is installed; everything else stands in pyproject.toml.

The library is loaded by ctypes and knows nothing of Python's ABI. Where there is no compiler the package is installed
without it, and numpy computes.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "lowbit" / "kernels"))
import build as kernels  # lowbit.kernels needs numpy, which is not there yet


class BuildKernels(build_ext):
    """Runs the build of the kernels in place of one by setuptools."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's name, without a tag of a Python version."""
        return str(Path(*fullname.split(".")[:-1], kernels.LIBRARY))

    def build_extension(self, ext: Extension) -> None:
        """Compiles, or says why not."""
        try:
            kernels.build(Path(self.get_ext_fullpath(ext.name)))
        except kernels.BuildError as error:
            print(f"lowbit: no compiled kernels, numpy will compute: {error}", file=sys.stderr)


class AnyPython(bdist_wheel):
    """A wheel of one platform for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("lowbit.kernels.native.liblowbit", [], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
)
