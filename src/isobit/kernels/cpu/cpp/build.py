"""Builds the CPU kernels into one shared library with a C interface. Needs a C++ compiler and nothing else.

``setup.py`` calls :func:`build` when the package is installed. Beside the library goes a note in JSON of how the build
went, which the package reads when it loads the library, or finds none. By hand, after a change of a source:

    python src/isobit/kernels/cpu/cpp/build.py               # src/isobit/kernels/cpu/_cpu.so
    python src/isobit/kernels/cpu/cpp/build.py --help        # another place, compiler, machine; sanitizers
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
LIBRARY = SOURCES.parent / "_cpu.so"
COMPILERS = ("c++", "g++", "clang++")  # the first that is there, unless CXX names one

# Never -ffast-math: linked into a library it makes the whole process flush subnormals, and the law of rounding needs
# exact divisions. Contraction to fused multiply-adds is what the kernels are written for.
COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-pthread")

# What makes the library run on older systems than the one that builds it: the C++ library inside, and old versions of
# what the C library has in two (OLDEST_SOURCE). Tried first; where a linker cannot, the library is linked plainly.
OLDEST_SOURCE = "oldest.cpp"
_WRAPPED = ("pthread_create", "pthread_join", "pthread_once", "pthread_mutex_trylock", "__pthread_key_create")
PORTABLE_LINK = (
    "-static-libstdc++",
    "-Wl,--gc-sections",  # or parts of it come that nothing here calls, with needs of their own
    "-Wl,--exclude-libs,ALL",
    "-Wl,-z,defs",
    *(f"-Wl,--wrap={name}" for name in _WRAPPED),
)

MEMORY = 4 << 30  # bytes: what GCC 12 takes for the file of AVX-512, 3.7 GB, and a little more


@dataclass(frozen=True)
class Isa:
    """One instruction set beyond the machine's least one.

    Attributes:
        name: what isobit_cpu_isas() calls it.
        source: the file that is compiled for it.
        define: tells all files that it is there.
        flags: for its own file only.
        machines: spellings of the machine, as ``platform.machine()`` and compilers have them.
    """

    name: str
    source: str
    define: str
    flags: tuple[str, ...]
    machines: tuple[str, ...]


X86 = ("x86_64", "AMD64", "amd64")
ARM = ("aarch64", "arm64")

ISAS: tuple[Isa, ...] = (
    Isa("avx2", "isa_avx2.cpp", "ISOBIT_AVX2", ("-mavx2", "-mfma", "-mf16c", "-mbmi2"), X86),
    Isa(
        "avx512",
        "isa_avx512.cpp",
        "ISOBIT_AVX512",
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c", "-mbmi2")
        + ("-mprefer-vector-width=512",),
        X86,
    ),
    Isa("neon", "isa_neon.cpp", "ISOBIT_NEON", ("-march=armv8.2-a+dotprod+fp16",), ARM),
)


class BuildError(Exception):
    """The library cannot be built; the message says why, with the compiler's own words."""


@dataclass(frozen=True)
class Built:
    """What was built.

    Attributes:
        compiler: first line of its ``--version``.
        isas: instruction sets in the library, the portable one included.
        left_out: those for this machine that the compiler does not know.
    """

    compiler: str
    isas: tuple[str, ...]
    left_out: tuple[str, ...]


def find_compiler() -> str:
    """The C++ compiler: CXX, which may have options, or the first of COMPILERS.

    Raises:
        BuildError: there is none.
    """
    if named := os.environ.get("CXX", "").strip():
        if shutil.which(_words(named)[0]) is None:
            raise BuildError(f"there is no C++ compiler: CXX={named} not found")
        return named
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError(f"there is no C++ compiler: {', '.join(COMPILERS)} not found")
    return shlex.quote(found)


def build(
    output: Path = LIBRARY,
    *,
    compiler: str | None = None,
    machine: str | None = None,
    flags: tuple[str, ...] = (),
    jobs: int | None = None,
    only: str | None = None,
) -> Built:
    """Compiles and links the library, and writes the note beside it.

    Args:
        output: where it goes; replaced in one step.
        compiler: a command; None for the one of this machine.
        machine: what it is compiled for, when that is not this machine.
        flags: further ones for every file and for linking.
        jobs: files compiled at a time; None for one on each core, as far as there is memory.
        only: the one instruction set that the library has beside the portable one; None for all.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    command = _words(compiler or find_compiler())
    version, wanted, known = _known(command, machine)
    if only is not None:
        if only not in [isa.name for isa in wanted]:
            raise BuildError(f"{only}: this machine has {', '.join(isa.name for isa in wanted) or 'none to name'}")
        wanted, known = ([isa for isa in some if isa.name == only] for some in (wanted, known))
    inputs = _inputs(command, version, known, machine, flags)
    defines = tuple(f"-D{isa.define}" for isa in known)
    own_flags = {isa.source: isa.flags for isa in known}
    sources = [path for path in sorted(SOURCES.glob("*.cpp")) if _belongs(path.name, known)]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="isobit-") as folder:
        objects = [Path(folder, f"{path.stem}.o") for path in sources]

        def compile_one(source: Path, target: Path) -> None:
            own = own_flags.get(source.name, ())
            _run([*command, *COMMON, *defines, *own, *flags, "-c", str(source), "-o", str(target)])

        with ThreadPoolExecutor(jobs or _at_a_time(os.cpu_count() or 1, _available())) as pool:
            list(pool.map(compile_one, sources, objects))
        linked = output.with_name(f"{output.name}.{os.getpid()}.new")  # beside it: a rename must not cross file systems
        try:
            _link([*command, "-shared", "-pthread", *flags], objects, linked)
            digest = _digest(linked)
            linked.replace(output)
        finally:
            linked.unlink(missing_ok=True)
    known_names = tuple(isa.name for isa in known)
    built = Built(version, (*known_names, "portable"), tuple(isa.name for isa in wanted if isa not in known))
    write_note(output, compiler=version, isas=built.isas, left_out=built.left_out, digest=digest, inputs=inputs)
    return built


def stands(library: Path = LIBRARY) -> bool:
    """Whether a library is there that was built from just these sources by the compiler that would build it now.

    Raises:
        BuildError: there is no compiler.
    """
    command = _words(find_compiler())
    version, _, known = _known(command, None)
    try:
        note = json.loads(library.with_suffix(".json").read_text(encoding="utf-8"))
        damage = _library_file().damage(library.read_bytes(), platform.machine(), note.get("digest"))
    except (OSError, ValueError, AttributeError):  # not there, or not what write_note() writes
        return False
    native = any("native" in word for word in command)  # for the CPU that was there, which nothing here knows
    return not native and damage is None and note.get("inputs") == _inputs(command, version, known, None, ())


def _known(command: list[str], machine: str | None) -> tuple[str, list[Isa], list[Isa]]:
    """First line of a compiler's version; instruction sets of the machine; those of them that the compiler knows."""
    version = (_run([*command, "--version"]).splitlines() or [command[0]])[0]
    wanted = [
        isa for isa in ISAS if (machine or platform.machine()) in isa.machines and (SOURCES / isa.source).exists()
    ]
    return version, wanted, [isa for isa in wanted if _knows(command, isa.flags)]


def _inputs(
    command: list[str], version: str, known: list[Isa], machine: str | None, flags: tuple[str, ...]
) -> str:  # fmt: skip
    """SHA-256 of all that a library is made of: the folder's files, this one among them, and how they are compiled."""
    files = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h", ".py"))
    held = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    how = [command[1:], version, [isa.name for isa in known], machine or platform.machine(), flags]
    return hashlib.sha256(json.dumps([held, how]).encode()).hexdigest()


def _at_a_time(cores: int, available: int | None) -> int:
    """How many files are compiled at a time, with so many bytes of memory; None where nobody knows."""
    return cores if available is None else max(1, min(cores, available // MEMORY))


def _available() -> int | None:
    """Bytes of memory that this process may still take, as the machine or its container says."""
    found = [line.split()[1:2] for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    limits = [int(words[0]) << 10 for words in found if words]
    limits += [int(line) for line in _lines("/sys/fs/cgroup/memory.max") if line.isdecimal()]
    return min(limits, default=None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []


def _link(command: list[str], objects: list[Path], output: Path) -> None:
    """Links the library so that it runs on older systems too, or plainly where that cannot be done.

    Sanitizers bring libraries of their own that everything has to go through.
    """
    if not any(word.startswith("-fsanitize") for word in command):
        try:
            _run([*command, *map(str, objects), *PORTABLE_LINK, "-o", str(output)])
            return
        except BuildError:
            pass
    plain = [str(path) for path in objects if path.stem != Path(OLDEST_SOURCE).stem]
    _run([*command, *plain, "-o", str(output)])


def write_note(library: Path, **facts: object) -> None:
    """Writes how the build of a library went: what was built, or ``problem``, why it was not."""
    library.parent.mkdir(parents=True, exist_ok=True)
    note = {"compiler": None, "isas": (), "left_out": (), "digest": None, "inputs": None, "problem": None} | facts
    library.with_suffix(".json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def _digest(library: Path) -> str:
    """What kernels/cpu/library_file.py makes of a library."""
    return str(_library_file().digest(library.read_bytes()))


def _library_file() -> Any:
    """That module, by its path, since the package may not be importable yet."""
    spec = importlib.util.spec_from_file_location("isobit_library_file", SOURCES.parent / "library_file.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _words(command: str) -> list[str]:
    """A command as the shell would split it.

    Raises:
        BuildError: it has a quote without an end.
    """
    try:
        return shlex.split(command)
    except ValueError as error:
        raise BuildError(f"there is no C++ compiler: the command {command} cannot be read ({error})") from None


def _belongs(source: str, known: list[Isa]) -> bool:
    return not source.startswith("isa_") or source == "isa_portable.cpp" or source in {isa.source for isa in known}


def _knows(command: list[str], flags: tuple[str, ...]) -> bool:
    """Whether a compiler takes these flags."""
    done = subprocess.run(
        [*command, *flags, "-fsyntax-only", "-x", "c++", "-"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        said = done.stderr.strip()
        first = next((line for line in said.splitlines() if "error" in line.lower()), said.partition("\n")[0])
        failed = f"{command[0]} failed with status {done.returncode}"
        raise BuildError(f"{failed}{f': {first}' if first else ''}\n{shlex.join(command)}\n{said}".rstrip())
    return done.stdout


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build isobit's CPU kernels.")
    parser.add_argument("--output", type=Path, default=LIBRARY, help="the library (%(default)s)")
    parser.add_argument("--compiler", help="a C++ compiler, with flags if need be (CXX, or what is found)")
    parser.add_argument("--machine", help="what it is for, e.g. aarch64 with a cross compiler (this machine)")
    parser.add_argument("--isa", help="the one instruction set that it has beside the portable one (all)")
    parser.add_argument("--flag", action="append", default=[], help="for every file and for linking; may be repeated")
    args = parser.parse_args()
    try:
        built = build(args.output, compiler=args.compiler, machine=args.machine, flags=tuple(args.flag), only=args.isa)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.output}: {', '.join(built.isas)} ({built.compiler})")
    for name in built.left_out:
        print(f"left out, because the compiler does not know it: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
