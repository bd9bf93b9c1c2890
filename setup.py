"""The compiled kernels, where there is a compiler; everything else is in pyproject.toml.

They are a plain shared library that any Python of this system loads, so a wheel with it is of a platform but of no
Python. Without a compiler, or with SAM_EDGE_NO_EXT=1, the wheel is a pure one: sam-edge then runs without kernels.
"""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path("kernels", "csrc")
HEADERS = ("attention.h", "attention_level.h", "export.h", "gelu.h", "gelu_level.h", "level.h", "vectors.h")
LIBRARY = Extension(
    "sam_edge.kernels.libsam_edge",
    sources=[str(CSRC / name) for name in ("attention.cpp", "gelu.cpp", "level.cpp", "library.cpp", "onnxruntime.cpp")],
    depends=[str(CSRC / name) for name in HEADERS],
    language="c++",
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread"],
    # a compiler that fails is one that is not there
    optional=True,
)


class BuildLibrary(build_ext):
    """Under the name by which `sam_edge.kernels.library` knows it."""

    def get_ext_filename(self, fullname):
        return f"{Path(*fullname.split('.'))}.so"

    def get_export_symbols(self, ext):
        # it is no module: there is no PyInit_
        return ext.export_symbols


class Wheel(bdist_wheel):
    """Pure where nothing was compiled; else of this platform, for any Python 3."""

    def run(self):
        self.run_command("build_ext")
        built = any(Path(file).is_file() for file in self.get_finalized_command("build_ext").get_outputs())
        if not built:
            self.distribution.ext_modules = None
        self.root_is_pure = not built
        super().run()

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


setup(
    ext_modules=[] if os.environ.get("SAM_EDGE_NO_EXT") == "1" else [LIBRARY],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
