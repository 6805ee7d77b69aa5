"""The one step of an installation that pyproject.toml cannot say: compile the packed kernels where there is a
C compiler. Without one, or in a checkout (`pip install -e .`), they are compiled when they are first used."""

from pathlib import Path
from runpy import run_path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py


class BuildKernels(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            kernels = Path("quept/kernels")
            code = run_path(str(kernels / "build.py"))
            try:
                code["build"](Path(self.build_lib) / kernels, f"libquept-{code['source_key']()}.so")
            except code["BuildError"] as error:
                print(f"quept: {error}; packed weights are compiled when first used")


class PerMachine(Distribution):
    """A wheel of this package is for the machine that built it."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildKernels}, distclass=PerMachine)
