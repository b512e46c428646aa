"""An unfinished output whose bytes changed, or whose source did: noticed, and done again or refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import hashes, tensors, write

from isobit.checkpoint.checksums import checksum
from isobit.checkpoint.journal import Journal
from isobit.checkpoint.occupant import CONFIG, PARTIAL
from isobit.checkpoint.safetensors import read_header
from isobit.checkpoint.writer import OutputFolder
from isobit.errors import CheckpointError, UsageError
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer import calibrate, jobs
from isobit.quantizer.driver import quantize
from isobit.quantizer.progress import Lines
from isobit.quantizer.report import QuantizeReport


class Killed(BaseException):
    """Stands for SIGKILL."""


def run(source: Path, out: Path, name: str = "int4-g32", **options: object) -> tuple[QuantizeReport, str]:
    """Quantizes with a commit after every tensor: (report, what was shown)."""
    shown = io.StringIO()
    report = quantize(
        source, out, Policy(scheme(name)), progress=Lines(shown, interval=3600), commit_bytes=1,
        max_shard_bytes=60_000, **options,
    )  # fmt: skip
    return report, shown.getvalue()


@pytest.fixture(autouse=True)
def _no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def killed(source: Path, out: Path, lines: int, name: str = "int4-g32") -> None:
    """A run that ends when its journal has so many lines."""
    append = Journal.append

    def counted(journal: Journal, entries: object) -> None:
        append(journal, entries)  # type: ignore[arg-type]
        if len(journal.entries) >= lines:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", counted)
        with pytest.raises(Killed):
            run(source, out, name)


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("damaged") / "src")


@pytest.fixture(scope="module")
def wanted(source: Path) -> dict[str, str]:
    run(source, source.parent / "undisturbed")
    return hashes(source.parent / "undisturbed")


@pytest.mark.parametrize("where", ["first byte", "middle", "last byte", "header", "header's length"])
def test_a_flipped_bit_in_a_shard_is_found_and_mended(
    tmp_path: Path, source: Path, wanted: dict[str, str], where: str
) -> None:
    out = tmp_path / "out"
    killed(source, out, 8)
    path = sorted((out / PARTIAL).glob("*.safetensors"))[0]
    modules = [name.removesuffix(".weight") for name in done_in(out)]
    everything = list(read_header(path)[0].values())
    infos = [info for info in everything if info.name.rpartition(".")[0] in modules]
    begin, end = infos[0].begin, infos[-1].end
    position = {
        "first byte": begin, "middle": infos[3].begin + 5, "last byte": end - 1, "header": 20, "header's length": 3
    }[where]  # fmt: skip
    for bit in (0, 7):
        flip(path, position, bit)
    report, shown = run(source, out)
    assert hashes(out) == wanted
    if "header" in where:
        assert report.resumed_from == 8 and "damaged" not in shown
    else:
        assert report.resumed_from == 7
        hit = next(info.name for info in everything if info.begin <= position < info.end)
        module = hit.rpartition(".")[0]
        assert "damaged since the last run, and done again: 1 tensors (" in shown and f"({module}." in shown


def test_many_damaged_tensors_and_a_second_kill(tmp_path: Path, source: Path, wanted: dict[str, str]) -> None:
    out = tmp_path / "out"
    killed(source, out, 12)
    for path in (out / PARTIAL).glob("*.safetensors"):
        for info in read_header(path)[0].values():
            if info.nbytes > 4:
                flip(path, info.begin + 3)
    killed(source, out, 14)  # two of the damaged are mended
    report, shown = run(source, out)
    assert 2 <= report.resumed_from < 12 and "done again" in shown
    assert hashes(out) == wanted


def test_a_flipped_bit_anywhere_in_the_journal_is_refused_or_does_no_harm(
    tmp_path: Path, source: Path, wanted: dict[str, str]
) -> None:
    out = tmp_path / "out"
    killed(source, out, 6)
    journal = out / PARTIAL / "journal"
    whole = journal.read_bytes()
    last = len(whole) - 1
    for position in [*range(0, last, len(whole) // 16), last]:
        flip(journal, position, position % 8)
        try:
            done = Journal.open(journal)
        except CheckpointError as error:
            assert "damaged" in str(error) and "--no-resume" in str(error)
            assert position < last
        else:
            assert position == last and done is not None and len(done.entries) == 5  # its end is lost: done again
            done.close()
        journal.write_bytes(whole)
    flip(journal, len(whole) // 2)
    with pytest.raises(CheckpointError, match="journal.*damaged"):
        run(source, out)
    run(source, out, resume=False)
    assert hashes(out) == wanted


def test_damage_after_the_files_began_to_move_up_is_refused(
    tmp_path: Path, source: Path, wanted: dict[str, str]
) -> None:
    out = tmp_path / "out"
    killed(source, out, len(tensors()) + 2)  # all tensors, "finishing" and "cleared"
    assert not (out / CONFIG).exists()
    path = sorted((out / PARTIAL).glob("*.safetensors"))[0]
    flip(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="damaged: start over without resuming"):
        run(source, out)
    flip(path, path.stat().st_size - 1)
    path.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="has vanished from the unfinished output.*--no-resume"):
        run(source, out)
    (tmp_path / "away").rename(path)
    run(source, out)
    assert hashes(out) == wanted


def change_unseen(path: Path, position: int) -> None:
    """Changes a byte; size and time stay."""
    status = path.stat()
    flip(path, position)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def to_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tensors(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("prepare", [lambda folder: None, to_bin], ids=["safetensors", "bin"])
@pytest.mark.parametrize("piece", [jobs.PIECE_BYTES, 1])
def test_a_source_that_changed_with_its_size_and_time_kept(
    tmp_path: Path, prepare: Callable[[Path], None], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PIECE_BYTES", piece)
    folder, out = write(tmp_path / "src"), tmp_path / "out"
    prepare(folder)
    killed(folder, out, 4)
    done = sorted(done_in(out))
    file = folder / ("pytorch_model.bin" if prepare is to_bin else "model.safetensors")
    info = next(info for info in read_tensors(folder) if info[0] == done[1])
    change_unseen(file, info[2] - 2)
    with pytest.raises(UsageError, match="another source: .* has other weights than then, though .*--no-resume"):
        run(folder, out)
    change_unseen(file, info[2] - 2)
    left = next(info for info in read_tensors(folder) if info[0] not in done)
    change_unseen(file, left[2] - 2)  # what is not done yet may change: the result is that of the new source
    report, _ = run(folder, out)
    assert report.resumed_from == 4
    run(folder, tmp_path / "again")
    assert hashes(out) == hashes(tmp_path / "again")


def done_in(out: Path) -> list[str]:
    journal = Journal.open(out / PARTIAL / "journal")
    assert journal is not None
    journal.close()
    return [entry["done"] for entry in journal.entries if "done" in entry]


def read_tensors(folder: Path) -> list[tuple[str, int, int]]:
    from isobit.checkpoint.reader import Checkpoint

    return [(info.name, info.begin, info.end) for info in Checkpoint.open(folder).tensors.values()]


def test_scales_that_were_measured_on_other_weights_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        calibrate, "input_scales", lambda ck, modules, text, **place: {module: 0.5 for module in sorted(modules)}
    )
    folder, out = write(tmp_path / "src"), tmp_path / "out"
    killed(folder, out, 2, "fp8-static")  # the scales, and one tensor
    done = done_in(out)
    _, _, end = next(info for info in read_tensors(folder) if info[0] not in done)
    change_unseen(folder / "model.safetensors", end - 2)
    with pytest.raises(UsageError, match="another source"):
        run(folder, out, "fp8-static")
    change_unseen(folder / "model.safetensors", end - 2)
    assert run(folder, out, "fp8-static")[0].resumed_from == 1


def test_an_undisturbed_output_says_nothing_of_damage(tmp_path: Path, source: Path, wanted: dict[str, str]) -> None:
    out = tmp_path / "out"
    killed(source, out, 10)
    report, shown = run(source, out)
    assert report.resumed_from == 10 and "damaged" not in shown and hashes(out) == wanted


def test_parts_written_in_any_order_are_compared(tmp_path: Path) -> None:
    from isobit.checkpoint.shards import PlannedTensor, plan_shards

    shards = plan_shards([[PlannedTensor("a", "U8", (9,))], [PlannedTensor("b", "U8", (2,))]], 100)
    data = torch.arange(9, dtype=torch.uint8)
    with OutputFolder(tmp_path / "out", {}, shards, commit_bytes=1) as output:
        for begin, end in ((6, 9), (0, 2), (2, 6)):
            output.write("a", data[begin:end], offset=begin)
        output.complete("a", {})
    with OutputFolder(tmp_path / "out", {}, shards) as output:
        assert output.done == {"a": {}} and output.damaged == ()
    for byte in range(9):
        flip(output.partial / shards[0].name, shards[0].offsets["a"] + byte)
        with OutputFolder(tmp_path / "out", {}, shards) as output:
            assert output.done == {} and output.damaged == ("a",)
        flip(output.partial / shards[0].name, shards[0].offsets["a"] + byte)


def test_a_checksum_finds_every_flipped_bit_and_moved_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (0, 1, 7, 8191, 8192, 8193, 3 * 8192 + 11):
        data = torch.randint(0, 256, (size,), generator=generator).to(torch.uint8)
        known = checksum(data)
        for position in {0, size // 2, size - 1} if size else ():
            for bit in range(8):
                data[position] ^= 1 << bit
                assert checksum(data) != known
                data[position] ^= 1 << bit
        assert checksum(data) == known
    moved = data.clone()
    moved[:8192], moved[8192:16384] = data[8192:16384], data[:8192]
    assert checksum(moved) != known
    moved = data.clone()
    moved[:8], moved[8:16] = data[8:16], data[:8]
    assert checksum(moved) != known
    assert checksum(data[8192:], checksum(data[:8192])) == known
    whole = data[: 3 * 8192]
    assert checksum(whole.view(torch.bfloat16)) == checksum(whole) == checksum(whole.view(3, -1))
    assert checksum(data[1:9001]) == checksum(data[1:9001].clone())  # wherever it lies
