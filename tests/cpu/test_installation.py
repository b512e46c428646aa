"""Installations that went differently: no compiler, a library that is damaged or of another version, wrong variables.

Each runs as a process of its own, on a copy of the package (symbolic links) without its library.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny import save_model

from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu.cpp import build

ROOT = Path(__file__).parents[2]
PROBLEM = cpu_library.problem()
VARIABLES = ("ISOBIT_ISA", "ISOBIT_THREADS", "ISOBIT_KERNEL", "OMP_NUM_THREADS", "CXX")


class Copy(NamedTuple):
    """A copy of the package."""

    folder: Path  # that has the package `isobit`

    @property
    def library(self) -> Path:
        return self.folder / "isobit" / "kernels" / "cpu" / "_cpu.so"

    @property
    def note(self) -> Path:
        return self.library.with_suffix(".json")

    def run(self, *words: str, on: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
        """``isobit WORDS`` with this copy, through an emulator if there is one; never with a traceback."""
        clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        environment = clean | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"} | variables
        command = [*on, sys.executable, "-m", "isobit", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=self.folder)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def doctor(self, **variables: str) -> dict[str, object]:
        done = self.run("doctor", "--json", **variables)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """The package as it is in the sources, without a library."""
    ignore = shutil.ignore_patterns("__pycache__", "_cpu.*")
    shutil.copytree(ROOT / "src" / "isobit", tmp_path / "isobit", ignore=ignore, copy_function=os.symlink)
    return Copy(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("models") / "tiny"))


def install(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What installing does with the library: `setup.py build_ext` on a copy of the sources."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "src").mkdir()
    (folder / "src" / "isobit").symlink_to(folder / "isobit")
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "built", "--build-temp", "made"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean | variables, cwd=folder)


# ---------------------------------------------------------------------- no compiler


def test_without_a_compiler_everything_runs_and_doctor_says_how_to_mend_it(copy: Copy, model: str) -> None:
    empty = copy.folder / "empty"
    empty.mkdir()
    done = install(copy.folder, PATH=str(empty))
    assert done.returncode == 0, done.stderr
    assert "the CPU kernels are not built" in done.stderr and "c++, g++, clang++ not found" in done.stderr
    made = copy.folder / "built" / "isobit" / "kernels" / "cpu"
    assert [path.name for path in made.iterdir()] == ["_cpu.json"]
    shutil.copy(made / "_cpu.json", copy.note)

    kernels = copy.doctor(PATH=str(empty))["cpu_kernels"]
    assert isinstance(kernels, dict) and kernels["used"] is False
    assert "there is no C++ compiler" in kernels["problem"]
    assert "apt-get install g++" in kernels["remedy"] and "pip install" in kernels["remedy"]
    text = copy.run("doctor", PATH=str(empty)).stdout
    assert "not in use: the CPU kernels are not built" in text and "Missing: the CPU kernels: install a C++" in text

    done = copy.run("plan", model, "--json", PATH=str(empty))
    assert done.returncode == 0 and "those of the CPU kernels; but the CPU kernels are not built" in done.stderr
    done = copy.run("generate", model, "x = ", "--max-tokens", "3", "--json", PATH=str(empty))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) == 3
    assert "run through the reference path, slowly: the CPU kernels are not built" in done.stderr
    if PROBLEM is None:
        shutil.copy(cpu_library.LIBRARY, copy.library)
        copy.note.unlink()
        with_kernels = copy.run("generate", model, "x = ", "--max-tokens", "3", "--json")
        assert with_kernels.stderr == ""
        assert json.loads(with_kernels.stdout)["token_ids"] == json.loads(done.stdout)["token_ids"]


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("nonesuch -O2", "there is no C++ compiler: CXX=nonesuch -O2 not found"),
        (shutil.which("false") or "false", "failed with status 1"),
    ],
)
def test_a_compiler_that_does_not_work_is_named(copy: Copy, named: str, why: str) -> None:
    done = install(copy.folder, CXX=named)
    assert done.returncode == 0 and why in done.stderr, done.stderr
    shutil.copy(copy.folder / "built" / "isobit" / "kernels" / "cpu" / "_cpu.json", copy.note)
    kernels = copy.doctor(CXX=named)["cpu_kernels"]
    assert isinstance(kernels, dict) and why in kernels["problem"] and "CXX" in kernels["remedy"]


# ---------------------------------------------------------------------- a library that stands


def test_a_library_stands_until_anything_that_it_is_made_of_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    sources, library = tmp_path / "cpp", tmp_path / "_cpu.so"
    sources.mkdir()
    shutil.copy(build.SOURCES.parent / "library_file.py", tmp_path)
    (sources / "isa_portable.cpp").write_text('#include "one.h"\nextern "C" int one() { return ONE; }\n')
    header = sources / "one.h"
    header.write_text("#define ONE 1\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    assert not build.stands(library)
    build.build(library)
    assert build.stands(library)
    header.write_text("#define ONE 2\n")
    assert not build.stands(library)
    header.write_text("#define ONE 1\n")
    assert build.stands(library)
    monkeypatch.setenv("CXX", f"{build.find_compiler()} -g")
    assert not build.stands(library)
    monkeypatch.setenv("CXX", f"{build.find_compiler()} -march=native")
    build.build(library)
    assert not build.stands(library), "another CPU may be the native one now"
    monkeypatch.delenv("CXX")
    build.build(library)
    note, whole = library.with_suffix(".json"), library.read_bytes()
    for text in ("[1]", "", "{}", '{"inputs": 1, "digest": 2}'):
        note.write_text(text)
        assert not build.stands(library), text
    build.build(library)
    library.write_bytes(whole[:18] + bytes([whole[18] ^ 0xFF]) + whole[19:])
    assert not build.stands(library), "for another machine"
    library.write_bytes(whole[:-1])
    assert not build.stands(library)
    library.write_bytes(whole)
    assert build.stands(library)
    build.build(library, flags=("-g",))
    assert not build.stands(library), "sanitizers are not what is installed"


@pytest.mark.skipif(not build.LIBRARY.exists() or not build.stands(), reason="the library here is of other sources")
def test_installing_again_compiles_nothing(copy: Copy, tmp_path: Path) -> None:
    shutil.copy(build.LIBRARY, copy.library)
    shutil.copy(build.LIBRARY.with_suffix(".json"), copy.note)
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\ncase " $* " in *" -c "*) exit 1 ;; esac\nexec {build.find_compiler()} "$@"\n')
    compiler.chmod(0o755)
    built = copy.folder / "built" / "isobit" / "kernels" / "cpu" / "_cpu.so"
    built.parent.mkdir(parents=True)
    built.write_bytes(b"newer, of other sources")
    done = install(copy.folder, PATH=f"{compiler.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert built.read_bytes() == build.LIBRARY.read_bytes()
    assert built.with_suffix(".json").read_bytes() == copy.note.read_bytes()
    header = copy.folder / "isobit" / "kernels" / "cpu" / "cpp" / "pool.h"
    changed = header.read_text() + "// \n"
    header.unlink()
    header.write_text(changed)
    assert "are not built" in install_again(copy.folder, compiler.parent).stderr


def install_again(folder: Path, first: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--force", "--build-lib", "built", "--build-temp", "made"]
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment = clean | {"PATH": f"{first}:{os.environ['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


def test_no_more_files_are_compiled_at_a_time_than_memory_has_room_for() -> None:
    gib = 1 << 30
    wanted = {(8, 64 * gib): 8, (8, 16 * gib): 4, (8, 7 * gib): 1, (2, 1 * gib): 1, (8, None): 8}
    assert {given: build._at_a_time(*given) for given in wanted} == wanted
    assert build._available() is None or build._available() > 1 << 20


def test_a_copy_that_was_never_built_says_so(copy: Copy) -> None:
    kernels = copy.doctor()["cpu_kernels"]
    assert isinstance(kernels, dict) and "this copy of the package was never built" in kernels["problem"]
    copy.note.write_text("{")
    assert copy.doctor()["cpu_kernels"] == kernels


# ---------------------------------------------------------------------- a library that is not the one that was built


def damaged(copy: Copy, why: str) -> None:
    """Doctor says why the library cannot be loaded; who insists on it is refused."""
    kernels = copy.doctor()["cpu_kernels"]
    assert isinstance(kernels, dict) and kernels["used"] is False
    assert kernels["problem"].startswith(f"the CPU kernels cannot be loaded ({copy.library}: "), kernels["problem"]
    assert why in kernels["problem"] and "pip install" in kernels["remedy"]


needs_library = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


def test_a_file_that_is_no_library(copy: Copy, model: str) -> None:
    copy.library.write_bytes(b"<html>not found</html>" * 100)
    damaged(copy, "no 64-bit ELF library")
    done = copy.run("generate", model, "x", "--max-tokens", "2", ISOBIT_KERNEL="cpu")
    assert done.returncode == 2 and done.stdout == ""
    assert "isobit: error:" in done.stderr and "no 64-bit ELF library" in done.stderr


@needs_library
def test_a_library_cut_short(copy: Copy) -> None:
    data = cpu_library.LIBRARY.read_bytes()
    for length in (len(data) // 2, len(data) - 100):
        copy.library.write_bytes(data[:length])
        damaged(copy, f"it ends at byte {length} of {len(data)}")


@needs_library
def test_a_library_with_a_hole(copy: Copy) -> None:
    data = cpu_library.LIBRARY.read_bytes()
    copy.library.write_bytes(data)
    build.write_note(copy.library, digest=build._digest(copy.library))
    kernels = copy.doctor()["cpu_kernels"]
    assert isinstance(kernels, dict) and kernels["used"] is True
    copy.library.write_bytes(data[:4096] + bytes(4096) + data[8192:])
    damaged(copy, "its contents are not those that were built")


@needs_library
def test_a_library_for_another_machine(copy: Copy) -> None:
    data = bytearray(cpu_library.LIBRARY.read_bytes())
    data[18:20] = b"\x16\x00"  # e_machine: IBM S/390
    copy.library.write_bytes(data)
    damaged(copy, "it is for s390x, and this machine is ")


@needs_library
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("int isobit_cpu_threads() { return 1; }", "it is of an older version of isobit"),
        ("int isobit_cpu_abi() { return 0; }", "it has interface 0, and this version calls"),
        (f"int isobit_cpu_abi() {{ return {cpu_library.ABI}; }}", "it lacks isobit_cpu_built, isobit_cpu_compiler"),
    ],
)
def test_a_library_of_another_version(copy: Copy, source: str, why: str) -> None:
    try:
        compiler = build._words(build.find_compiler())
    except build.BuildError as error:
        pytest.skip(str(error))
    (copy.folder / "old.cpp").write_text(f'extern "C" {source}\n')
    old = ["-shared", "-fPIC", str(copy.folder / "old.cpp"), "-o", str(copy.library)]
    subprocess.run([*compiler, *old], check=True)
    damaged(copy, why)


# ---------------------------------------------------------------------- variables


@needs_library
def test_doctor_names_the_variables_that_decide(copy: Copy) -> None:
    shutil.copy(cpu_library.LIBRARY, copy.library)
    kernels = copy.doctor(ISOBIT_ISA="portable", ISOBIT_THREADS="3", ISOBIT_KERNEL="reference")["cpu_kernels"]
    assert isinstance(kernels, dict)
    assert (kernels["isa"], kernels["isa_reason"]) == ("portable", "ISOBIT_ISA")
    assert (kernels["threads"], kernels["threads_reason"]) == (3, "ISOBIT_THREADS")
    assert (kernels["forced"], kernels["used"]) == ("reference", False)
    assert kernels["built"][-1] == "portable" and set(kernels["runnable"]) <= set(kernels["built"])
    assert any(name in kernels["compiler"] for name in ("GCC", "Clang", "clang"))
    text = copy.run("doctor", ISOBIT_ISA="portable", ISOBIT_KERNEL="reference").stdout
    assert "not in use: ISOBIT_KERNEL=reference; else portable (ISOBIT_ISA) of" in text
    assert f"by {kernels['compiler']}" in text and "1 (OMP_NUM_THREADS)" in text


WRONG = [
    ("ISOBIT_ISA", "mmx", "it is not in this build; choose one of"),
    ("ISOBIT_THREADS", "0", "give a number of threads from 1 to 4096"),
    ("ISOBIT_THREADS", "all", "give a number of threads from 1 to 4096"),
    ("OMP_NUM_THREADS", "auto", "or set ISOBIT_THREADS instead of it"),
    ("ISOBIT_KERNEL", "gpu", "there is no such kernel; known: triton, cpu, reference"),
]


@needs_library
@pytest.mark.parametrize(("name", "value", "why"), WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG])
def test_a_wrong_variable_is_an_error_that_says_what_would_be_right(
    copy: Copy, model: str, name: str, value: str, why: str
) -> None:
    shutil.copy(cpu_library.LIBRARY, copy.library)
    runs = [("doctor",)] if value == "all" else [("doctor",), ("generate", model, "x", "--max-tokens", "1")]
    for words in runs:
        done = copy.run(*words, **{name: value})
        assert done.returncode == 2 and done.stdout == ""
        said = done.stderr.splitlines()[-1]  # behind what OpenMP says of its variable
        assert said.startswith(f"isobit: error: {name}={value}: ") and why in said


@needs_library
def test_an_instruction_set_that_this_machine_lacks_is_told_from_one_that_was_not_built(copy: Copy) -> None:
    lacking = sorted(set(cpu_library.built_isas()) - set(cpu_library.isas()))
    on = ()
    if not lacking and "avx2" in cpu_library.built_isas() and (qemu := shutil.which("qemu-x86_64")):
        lacking, on = ["avx2"], (qemu, "-cpu", "Nehalem")
    if not lacking:
        pytest.skip("this machine has every instruction set of the build, and no qemu-x86_64 (package qemu-user)")
    shutil.copy(cpu_library.LIBRARY, copy.library)
    done = copy.run("doctor", on=on, ISOBIT_ISA=lacking[0])
    assert done.returncode == 2 and "this CPU does not have it; choose one of" in done.stderr


def test_without_triton_models_run_on_the_cpu() -> None:
    program = Path(__file__).parent / "without_triton.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
