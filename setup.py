"""Compiles the CPU kernels while the package is built; everything else is in pyproject.toml.

Without a working C++ compiler the package is built all the same: models then run through the reference path in plain
PyTorch, and `isobit doctor` says so, why, and how to mend it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path(__file__).parent / "src" / "isobit" / "kernels" / "cpu" / "cpp"


def load(name):
    """A module beside the kernels' sources, by its path: the package itself cannot be imported yet."""
    spec = importlib.util.spec_from_file_location(f"isobit_cpu_{name}", SOURCES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """Builds `_cpu.so` with the package's own build module, which notes beside it how that went."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # files are copied whatever their times say: an older library may be the right one

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"  # no Python version in it: it has nothing to do with Python

    def build_extension(self, ext: Extension) -> None:
        builder, library = load("build"), Path(self.get_ext_fullpath(ext.name))
        try:
            if builder.stands():  # as with `pip install --editable` a second time, for another extra: minutes
                library.parent.mkdir(parents=True, exist_ok=True)
                for suffix in (".so", ".json"):
                    self.copy_file(str(builder.LIBRARY.with_suffix(suffix)), str(library.with_suffix(suffix)))
                return
            builder.build(library)
        except builder.BuildError as error:
            library.unlink(missing_ok=True)
            builder.write_note(library, problem=str(error))
            print(f"WARNING: the CPU kernels are not built; models will run slowly. {error}", file=sys.stderr)

    def copy_extensions_to_source(self) -> None:
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            inplace, built = (Path(path) for path in self._get_inplace_equivalent(build_py, ext))
            if not built.exists():
                inplace.unlink(missing_ok=True)  # one of an earlier build would be of other sources
            self.copy_file(str(built.with_suffix(".json")), str(inplace.with_suffix(".json")))
        super().copy_extensions_to_source()

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), *(str(Path(self.build_lib, "isobit/kernels/cpu/_cpu.json")),)]


class Wheel(bdist_wheel):
    """A wheel for every Python version, since the library is called through ctypes; its tag says what is in it.

    With the kernels it is for the systems on which they run, without them for any: pip must never take one without
    kernels for one with them.
    """

    def run(self) -> None:
        self.run_command("build_ext")  # before it is decided where files go
        if self._library() is None:
            self.root_is_pure, self.distribution.ext_modules = True, []  # Python files and no more
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        local, library = super().get_tag()[2], self._library()
        if library is None:
            return "py3", "none", "any" if self.root_is_pure else local
        return "py3", "none", load("tags").platform_tag(library.read_bytes(), local)

    def _library(self) -> Path | None:
        """The library that was built; None if there is none."""
        path = Path(self.get_finalized_command("build_ext").get_ext_fullpath("isobit.kernels.cpu._cpu"))
        return path if path.exists() else None


setup(
    ext_modules=[
        Extension(
            "isobit.kernels.cpu._cpu",
            sources=sorted(str(path.relative_to(Path(__file__).parent)) for path in SOURCES.glob("*.cpp")),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
