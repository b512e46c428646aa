"""Builds the source distribution and, from it, the wheel, and checks the wheel as a stranger meets it: `make wheel`.

    python dev/check_wheel.py [--out dist]

Checked: the tag says what the library in it needs (src/isobit/kernels/cpu/cpp/tags.py), every module of the sources is
there, and in a new environment, where this wheel is all there is of isobit, its kernels run and answer as the
reference does. The environment borrows PyTorch and the other dependencies from the Python that runs this.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

from setuptools import build_meta

ROOT = Path(__file__).parents[1]
CPP = ROOT / "src" / "isobit" / "kernels" / "cpu" / "cpp"
LIBRARY = "isobit/kernels/cpu/_cpu.so"
SCHEME = "int4"  # what is quantized and run in the new environment

sys.path.insert(0, str(CPP))
import tags  # noqa: E402


def fail(reason: str) -> NoReturn:
    """Ends with the reason."""
    print(f"check_wheel: {reason}", file=sys.stderr)
    raise SystemExit(1)


def build(out: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it and from nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()):  # it lists every file
        sdist = out / build_meta.build_sdist(str(out))
    shutil.rmtree(ROOT / "src" / "isobit.egg-info", ignore_errors=True)
    with tempfile.TemporaryDirectory() as made:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel"]
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--no-index", "-w", made, str(sdist)], check=True)
        (wheel,) = Path(made).iterdir()
        return sdist, Path(shutil.copy(wheel, out))


def check_contents(wheel: Path) -> None:
    """Every module is in the wheel, no source of the kernels is, and the tag is what the library needs."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        library = archive.read(LIBRARY) if LIBRARY in names else None
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    wanted = {name for name in modules if not name.startswith("isobit/kernels/cpu/cpp/")}
    missing, surplus = sorted(wanted - names), sorted(name for name in names if "/cpp/" in name)
    if missing or surplus:
        fail(f"{wheel.name} lacks {missing[:5]} and should not have {surplus[:5]}")
    if library is None:
        fail(f"{wheel.name} has no kernels: is there a C++ compiler?")
    local = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    tag = f"py3-none-{tags.platform_tag(library, local)}"
    if not wheel.name.endswith(f"-{tag}.whl"):
        fail(f"{wheel.name} has a library that needs {tags.needs(library)}, which is the tag {tag}")
    if problems := tags.problems(library):
        fail(f"{wheel.name} runs on systems like this one only: {'; '.join(problems)}")
    print(f"{wheel.name}: needs glibc {'.'.join(map(str, tags.needs(library).newest('GLIBC')))}, {len(names)} files")


def check_installed(wheel: Path) -> None:
    """In an environment of its own the wheel's kernels run, and greedy tokens are those of the reference."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "env")], check=True)
        site = next((home / "env" / "lib").glob("python*")) / "site-packages"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--target", str(site), str(wheel)], check=True)
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind what is installed here

        def isobit(*words: str, kernel: str = "") -> str:
            clean = {key: value for key, value in os.environ.items() if not key.startswith(("ISOBIT_", "PYTHON"))}
            command = [str(home / "env" / "bin" / "python"), "-m", "isobit", *words]
            env = clean | ({"ISOBIT_KERNEL": kernel} if kernel else {})
            done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=home)
            if done.returncode:
                fail(f"isobit {' '.join(words)}: {done.stderr}")
            return done.stdout

        kernels = json.loads(isobit("doctor", "--json"))["cpu_kernels"]
        if not kernels["used"]:
            fail(f"the kernels are not used: {kernels['problem']}")
        isobit("quantize", "bundled", "--scheme", SCHEME, "--out", SCHEME, "--quiet")
        words = ("generate", SCHEME, "def add(a, b):", "--max-tokens", "8", "--json")
        by_kernel, by_law = (json.loads(isobit(*words, kernel=one))["token_ids"] for one in ("cpu", "reference"))
        if by_kernel != by_law:
            fail(f"{SCHEME}: the kernels answer {by_kernel}, the reference {by_law}")
        print(f"installed: {kernels['isa']} of {', '.join(kernels['built'])}; {SCHEME} as the reference")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the wheel and check it.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where both go (dist)")
    sdist, wheel = build(parser.parse_args().out.resolve())
    print(f"{sdist.name}")
    check_contents(wheel)
    check_installed(wheel)


if __name__ == "__main__":
    main()
