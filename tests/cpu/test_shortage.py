"""Memory and threads that are not given: one clear error, whatever library ran out of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import hashes, write
from tiny import save_model

import isobit
from isobit.cli import failures
from isobit.errors import CapacityError, UsageError
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.weights import load_model
from isobit.quantizer import stream
from isobit.quantizer.driver import quantize
from isobit.shortage import explain, require_address_space, shortages

NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("unable to mmap 1048576 bytes from file <x>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]
NO_THREAD = RuntimeError("can't start new thread")


@pytest.mark.parametrize("error", [*NO_MEMORY, NO_THREAD], ids=lambda error: str(error)[:20])
def test_every_spelling_becomes_one_error(error: Exception) -> None:
    with pytest.raises(CapacityError, match="no thread could be" if error is NO_THREAD else "memory does not suffice"):
        with shortages():
            raise error
    assert failures.explain(error) == explain(error)


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("out of memory"), RuntimeError("shape"), UsageError("out of memory"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            with shortages():
                raise error


def test_a_parser_without_memory_is_told_from_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import resource

    ours, theirs = Path(isobit.__file__).parent / "quantizer/driver.py", tmp_path / "driver.py"
    cut = [SyntaxError("expected ':'", (str(path), 350, 47, "def _threads() -> int:")) for path in (ours, theirs)]
    assert explain(cut[0]) is None  # without a limit it is what it says
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 30, 1 << 30))
    assert "memory does not suffice" in (explain(cut[0]) or "") and explain(cut[1]) is None


@pytest.mark.parametrize("error", [*NO_MEMORY[:3], NO_THREAD], ids=lambda error: str(error)[:20])
def test_quantize_keeps_what_is_done(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, work = write(tmp_path / "src"), tmp_path / "out", stream.work
    calls = []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) > 6:
            raise error
        return work(*args)  # type: ignore[arg-type]

    policy = Policy(scheme("fp8"))
    monkeypatch.setattr(stream, "work", failing)
    with pytest.raises(CapacityError):
        quantize(source, out, policy, progress=False, commit_bytes=1, threads=1)
    monkeypatch.undo()
    assert quantize(source, out, policy, progress=False).resumed_from == 6
    quantize(source, tmp_path / "undisturbed", policy, progress=False)
    assert hashes(out) == hashes(tmp_path / "undisturbed")


def test_loading_and_generating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "m")

    def failing(*args: object, **options: object) -> torch.Tensor:
        raise NO_MEMORY[2]

    loaded = isobit.load(model)
    monkeypatch.setattr(torch, "from_file", failing)
    with pytest.raises(CapacityError, match="unable to mmap"):
        load_model(model)
    monkeypatch.setattr(loaded._generator.model, "paged_cache", failing)
    with pytest.raises(CapacityError):
        loaded.generate("def", max_tokens=2)


def test_too_little_address_space_for_torch_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    require_address_space(2)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (600_000_000, 600_000_000))
    with pytest.raises(CapacityError, match=r"600,000,000 bytes of memory \(ulimit -v\)"):
        require_address_space(2)


def test_what_would_end_the_process_is_asked_for_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from isobit import shortage

    model = save_model(tmp_path / "m")
    tokenizer = isobit.load(model).tokenizer
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 40, 1 << 40))
    monkeypatch.setattr(shortage, "_used", lambda: (1 << 40) - (8 << 20))
    assert tokenizer.encode("short")
    with pytest.raises(CapacityError, match="splitting this text into tokens needs some .* bytes, and 8,388,608 of"):
        tokenizer.encode("x" * 100_000)
    monkeypatch.setattr(shortage, "_used", lambda: 1 << 40)
    with pytest.raises(CapacityError, match="reading .*tokenizer.json needs some .* and 0 of"):
        isobit.load(model)


# Each command with a few more megabytes than what is used already.
CHILD = """
import resource, sys
from isobit.cli.main import main
model, out = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
main(["info", model])
commands = [["generate", model, "def", "--max-tokens", "2"], ["quantize", model, "-s", "int8", "-q", "-o", out]]
ends = set()
for more in (0, 1, 4, 16):
    for number, command in enumerate(commands):
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (more << 20), resource.RLIM_INFINITY))
        try:
            status = main([*command[:-1], command[-1] + str(more)] if number else command)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        ends.add(status)
        print("status", status, flush=True)
assert ends <= {0, 2} and 2 in ends, ends
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to this limit")
def test_the_kernel_gives_no_more_memory(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    command = [sys.executable, "-c", CHILD, str(model), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("isobit: error: ") == done.stdout.count("status 2")
    assert "Traceback" not in done.stderr and "memory does not suffice" in done.stderr
