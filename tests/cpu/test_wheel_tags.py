"""What the library of kernels needs of a system, and the tags of the wheels with it and without it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from isobit.kernels.cpu.cpp import build, tags
from isobit.kernels.cpu.library import LIBRARY

ROOT = Path(__file__).parents[2]
X86_64 = "linux_x86_64"

needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="the CPU kernels are not built")

# Threads, strings, exceptions and a mutex that is tried: what brings the newest symbols along.
SOURCE = """
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
extern "C" __attribute__((visibility("default"))) int work(int number) {
    std::mutex mutex;
    std::string text;
    std::thread other([&] {
        std::unique_lock<std::mutex> one(mutex, std::try_to_lock);
        text = std::to_string(number);
    });
    other.join();
    try { if (number < 0) throw std::runtime_error(text); } catch (const std::exception &error) { return -1; }
    return static_cast<int>(text.size());
}
"""


def compiler() -> list[str]:
    try:
        return shlex.split(build.find_compiler())
    except build.BuildError as error:
        pytest.skip(str(error))


def linked(folder: Path, *, plainly: bool = False) -> Path:
    """A small library, linked as the kernels are or plainly."""
    (folder / "work.cpp").write_text(SOURCE)
    shutil.copy(build.SOURCES / build.OLDEST_SOURCE, folder)
    command = [*compiler(), "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-pthread"]
    objects = [folder / "work.o", folder / "oldest.o"]
    for one in objects:
        subprocess.run([*command, "-c", str(one.with_suffix(".cpp")), "-o", str(one)], check=True)
    library = folder / "work.so"
    if plainly:
        subprocess.run([*command, "-shared", str(objects[0]), "-o", str(library)], check=True)
    else:
        build._link([*command, "-shared"], objects, library)
    return library


@pytest.fixture
def static_library(tmp_path: Path) -> None:
    """Skips where there is no static C++ library (some systems ship it apart): kernels are for that system then."""
    (tmp_path / "probe.cpp").write_text("#include <string>\nstd::string word() { return std::string(99, 'x'); }\n")
    probe = ["-shared", "-fPIC", "-static-libstdc++", str(tmp_path / "probe.cpp"), "-o", str(tmp_path / "probe.so")]
    done = subprocess.run([*compiler(), *probe], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no static C++ library: {done.stderr.splitlines()[-1]}")


def by_readelf(library: Path) -> tuple[set[str], set[str]]:
    """What binutils finds: needed libraries, needed symbol versions."""
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf (package binutils)")
    said = subprocess.run(["readelf", "-dVW", str(library)], capture_output=True, text=True, check=True).stdout
    wanted = said.partition(".gnu.version_r")[2]
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", said)), set(re.findall(r"Name: (\S+)", wanted))


@needs_library
@pytest.mark.usefixtures("static_library")
def test_the_library_that_was_built_runs_on_older_systems() -> None:
    data = LIBRARY.read_bytes()
    assert tags.problems(data) == []
    assert tags.needs(data).newest("GLIBC") <= tags.OLDEST_GLIBC
    assert tags.platform_tag(data, X86_64) == "manylinux_2_28_x86_64"


@needs_library
def test_needs_are_those_that_binutils_finds() -> None:
    found = tags.needs(LIBRARY.read_bytes())
    assert (set(found.libraries), set(found.versions)) == by_readelf(LIBRARY)


@pytest.mark.usefixtures("static_library")
def test_a_library_linked_as_the_kernels_are_needs_old_symbols_only_and_works(tmp_path: Path) -> None:
    library = linked(tmp_path)
    data = library.read_bytes()
    assert tags.problems(data) == [] and tags.needs(data).newest("GLIBC") <= tags.OLDEST_GLIBC
    assert tags.platform_tag(data, X86_64) == "manylinux_2_28_x86_64"
    code = f"import ctypes; work = ctypes.CDLL({str(library)!r}).work; print(work(1234), work(-5))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "4 -1\n"
    exported = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True).stdout
    assert " work\n" in exported and "pthread" not in exported, "what is inside stays inside"


def test_a_library_linked_plainly_is_for_this_system_only(tmp_path: Path) -> None:
    data = linked(tmp_path, plainly=True).read_bytes()
    assert set(tags.needs(data).libraries) >= {"libstdc++.so.6"}
    assert "it needs libstdc++.so.6" in tags.problems(data)
    assert tags.platform_tag(data, X86_64) == X86_64


def test_a_newer_symbol_makes_a_newer_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    def needing(*versions: str, libraries: tuple[str, ...] = ("libc.so.6",)) -> str:
        monkeypatch.setattr(tags, "needs", lambda _: tags.Needs(libraries, versions))
        return tags.platform_tag(b"", "linux_aarch64")

    assert needing("GLIBC_2.17") == "manylinux_2_28_aarch64"
    assert needing("GLIBC_2.2.5", "GLIBC_2.28", "GLIBC_2.9") == "manylinux_2_28_aarch64"
    assert needing("GLIBC_2.2.5", "GLIBC_2.34", "GCC_3.0") == "manylinux_2_34_aarch64"
    assert needing("GLIBC_2.17", "GCC_12.0.0") == "linux_aarch64"
    assert needing("GLIBC_2.17", "GLIBCXX_3.4.30") == "linux_aarch64"
    assert needing("GLIBC_2.17", libraries=("libc.so.6", "libgomp.so.1")) == "linux_aarch64"
    assert needing(libraries=("libc.musl-x86_64.so.1",)) == "linux_aarch64"


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01", b"<html>", b"\x7fELF\x02\x01" + bytes(60) + b"\xff" * 64])
def test_a_file_that_is_no_library_promises_nothing(data: bytes) -> None:
    assert tags.platform_tag(data, X86_64) in (X86_64, "manylinux_2_28_x86_64")
    assert tags.problems(b"\x7fELF\x01\x01" + bytes(58)) and tags.problems(data[:5])


# ---------------------------------------------------------------------- wheels


def wheel(folder: Path, *command: str, **variables: str) -> zipfile.Path:
    """What `setup.py bdist_wheel` makes of the sources."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    ignore = shutil.ignore_patterns("__pycache__", "_cpu.*", "model.safetensors")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignore)
    clean = {key: value for key, value in os.environ.items() if key not in ("CXX", "PYTHONPATH")}
    run = [sys.executable, "setup.py", "-q", *command]
    done = subprocess.run(run, capture_output=True, text=True, env=clean | variables, cwd=folder)
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "dist").iterdir()
    return zipfile.Path(made)


def is_pure(made: zipfile.Path) -> bool:
    (info,) = (one for one in made.iterdir() if one.name.endswith(".dist-info"))
    return "Root-Is-Purelib: true" in (info / "WHEEL").read_text()


def test_a_wheel_without_kernels_is_for_any_system(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = wheel(tmp_path, "bdist_wheel", PATH=str(tmp_path / "empty"))
    assert made.name.endswith("-py3-none-any.whl")
    kernels = made / "isobit" / "kernels" / "cpu"
    assert not (kernels / "_cpu.so").exists() and "not found" in (kernels / "_cpu.json").read_text()
    assert is_pure(made)


@needs_library
@pytest.mark.usefixtures("static_library")
def test_a_wheel_with_kernels_says_what_they_need(tmp_path: Path) -> None:
    # A compiler that is quick: "links" by copying the library that was built.
    cxx = tmp_path / "cxx"
    cxx.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        "if '-o' in sys.argv:\n"
        f"    shutil.copy({str(LIBRARY)!r}, sys.argv[sys.argv.index('-o') + 1])\n"
        "print('quick 1.0')\n"
    )
    cxx.chmod(0o755)
    made = wheel(tmp_path, "bdist_wheel", CXX=str(cxx))
    assert re.search(r"-py3-none-manylinux_2_28_\w+\.whl$", made.name), made.name
    kernels = made / "isobit" / "kernels" / "cpu"
    assert (kernels / "_cpu.so").read_bytes() == LIBRARY.read_bytes()
    assert '"compiler": "quick 1.0"' in (kernels / "_cpu.json").read_text()
    assert not (kernels / "cpp").exists(), "sources are for source distributions"
    assert not is_pure(made)
    names = set(made.root.namelist())
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "isobit").rglob("*.py")}
    assert {name for name in modules if "/cpp/" not in name} <= names
    assert {"isobit/py.typed", "isobit/evaluation/report.html", "isobit/bundled/model/tokenizer.json"} <= names
