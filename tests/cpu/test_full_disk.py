"""The disk is full in the middle of the work: a clear error, nothing that looks complete, and a rerun that goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import hashes, write

from isobit.checkpoint import room
from isobit.checkpoint.occupant import CONFIG
from isobit.errors import CapacityError, UsageError
from isobit.evaluation import demo, report
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import predict, quantize
from isobit.quantizer.report import QuantizeReport

# The kernel itself refuses here: no file of the child may grow beyond so many bytes.
CHILD = """
import resource, sys
from pathlib import Path
from isobit.cli.main import main

limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if sys.argv[4] == "False":  # as if the limit were the file system's own, which nobody can ask for
    resource.getrlimit = lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
sys.exit(main(["quantize", sys.argv[1], "--out", sys.argv[2], "--scheme", "fp8", "--quiet"]))
"""


def run(source: Path, out: Path) -> QuantizeReport:
    return quantize(source, out, Policy(scheme("fp8")), progress=False, commit_bytes=1)


WORDS = {
    errno.ENOSPC: r"the disk is full .*needs [\d,]+ bytes more, [\d,]+ are free\. Free some",
    errno.EDQUOT: r"the quota of this user .*needs [\d,]+ bytes more\. Remove some files of yours",
    errno.EFBIG: r"a file would become larger .*needs [\d,]+ bytes more\. Raise the limit",
}


@pytest.mark.parametrize("code", WORDS)
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
        with pytest.raises(CapacityError, match=f"{WORDS[code]}.*goes on where it stopped"):
            run(source, out)
    assert not (out / CONFIG).exists()
    report = run(source, out)
    assert hashes(out) == hashes(tmp_path / "undisturbed")
    assert (report.resumed_from > 0) == (allowed > 20_000)


@pytest.mark.parametrize(
    ("known", "message"), [("True", "may write files of at most 50,000 bytes"), ("False", "a file would become larger")]
)
def test_the_kernel_refuses_to_write_more(tmp_path: Path, known: str, message: str) -> None:
    source, out = write(tmp_path / "src"), tmp_path / "out"
    command = [sys.executable, "-c", CHILD, str(source), str(out), "50000", known]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"isobit: error: {'this process' if known == 'True' else 'writing to'}" in done.stderr
    assert message in done.stderr and "ulimit -f" in done.stderr
    assert out.exists() == (known == "False")
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


def test_what_is_copied_is_counted_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write(tmp_path / "src"), tmp_path / "out"
    (source / "LICENSE").write_bytes(b"x" * 5_000_000)  # as large as a tokenizer often is
    monkeypatch.setattr(room, "free_bytes", lambda path: 4_900_000)
    with pytest.raises(CapacityError, match=r"lacks space: the output needs 5,\d\d\d,\d\d\d bytes more, 4,900,000 are"):
        run(source, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 256, "a name of 256 bytes; names have at most 255"),
        ("ä" * 128, "a name of 256 bytes"),
        ("/".join(["d" * 200] * 21), "paths of .* bytes; 4095 are the most"),
        ("a\0b", "a NUL character"),
        ("a\ud800", "not text"),
    ],
)
def test_names_that_no_folder_can_have_are_refused_before_anything_is_done(
    tmp_path: Path, name: str, message: str
) -> None:
    source = write(tmp_path / "src")
    for command in (run, lambda source, out: predict(source, out, Policy(scheme("fp8")))):
        with pytest.raises(UsageError, match=message) as caught:
            command(source, tmp_path / name)
        assert len(str(caught.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, CapacityError, "the disk is full"),
        (errno.EDQUOT, CapacityError, "the quota of this user"),
        (errno.EFBIG, CapacityError, "ulimit -f"),
        (errno.EACCES, UsageError, "cannot write .*r.html: Permission denied"),
    ],
)
def test_a_report_that_cannot_be_written(
    tmp_path: Path, code: int, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(kind, match=words):
        report.write_file(tmp_path / "r.html", "text")


@pytest.mark.parametrize("name", ["n" * 256, "a\0b"])
def test_other_folders_that_no_file_system_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="the output folder"):
        demo.make_folder(tmp_path / name)


def test_a_name_of_every_letter_that_a_folder_can_have(tmp_path: Path) -> None:
    run(write(tmp_path / "src"), tmp_path / "a\nb\x1b[31m ä 😀" / ("n" * 255))
    assert (tmp_path / "a\nb\x1b[31m ä 😀" / ("n" * 255) / CONFIG).exists()
