"""The disk is full in the middle of the work: a clear error, nothing that looks complete, and a rerun that goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import hashes, write

from isobit.checkpoint.occupant import CONFIG
from isobit.errors import CapacityError, UsageError
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize
from isobit.quantizer.report import QuantizeReport

# The kernel itself refuses here: no file of the child may grow beyond so many bytes.
CHILD = """
import resource, sys
from pathlib import Path
from isobit.cli.main import main

limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(["quantize", sys.argv[1], "--out", sys.argv[2], "--scheme", "fp8", "--quiet"]))
"""


def run(source: Path, out: Path) -> QuantizeReport:
    return quantize(source, out, Policy(scheme("fp8")), progress=False, commit_bytes=1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("allowed", [0, 10_000, 60_000, 110_000])
def test_a_full_disk_is_named_and_the_rerun_goes_on(tmp_path: Path, allowed: int, code: int) -> None:
    source, out = write(tmp_path / "src"), tmp_path / "out"
    run(source, tmp_path / "undisturbed")
    left = allowed
    pwrite = os.pwrite

    def limited(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(code, os.strerror(code))
        count = pwrite(descriptor, data[:left], offset)  # the last write before the disk is full is a short one
        left -= count
        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", limited)
        with pytest.raises(CapacityError, match=r"needs [\d,]+ bytes more.*[\d,]+ are free.*goes on where it stopped"):
            run(source, out)
    assert not (out / CONFIG).exists()
    report = run(source, out)
    assert hashes(out) == hashes(tmp_path / "undisturbed")
    assert (report.resumed_from > 0) == (allowed > 20_000)


def test_the_kernel_refuses_to_write_more(tmp_path: Path) -> None:
    source, out = write(tmp_path / "src"), tmp_path / "out"
    command = [sys.executable, "-c", CHILD, str(source), str(out), "50000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "isobit: error: writing to" in done.stderr and "bytes more" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (out / CONFIG).exists()
    run(source, out)
    run(source, tmp_path / "undisturbed")
    assert hashes(out) == hashes(tmp_path / "undisturbed")


def test_an_error_of_the_disk_that_is_not_its_being_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(UsageError, match="cannot write to the output.*Input/output error"):
        run(write(tmp_path / "src"), tmp_path / "out")


def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    source = write(tmp_path / "src")
    with pytest.raises(UsageError, match="cannot write to the output"):
        run(source, Path("/proc/isobit-test-output"))
