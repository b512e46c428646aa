"""An output of quantize that was interrupted, given to commands that read: all say what it is and how to finish it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoints import write
from tokenizers_for_tests import byte_level, write_folder

from isobit import api
from isobit.checkpoint.occupant import CONFIG, PARTIAL
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.writer import OutputFolder
from isobit.cli.main import main
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError

SAID = r"unfinished output of isobit quantize \('fp8'\)[\s\S]*Run the same isobit quantize command again"


class Killed(BaseException):
    pass


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(write(tmp_path / "src"), byte_level())


def interrupted(source: Path, out: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output whose run ended in the method ``where``: at its beginning, or just before config.json moves up."""
    method = getattr(OutputFolder, where)

    def ends(self: OutputFolder, *args: object, **kwargs: object) -> object:
        if where != "_move_up" or args[0] == CONFIG:
            raise Killed
        return method(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, where, ends)
        with pytest.raises(Killed):
            api.quantize(source, out, progress=False)
    assert (out / PARTIAL).is_dir() and not (out / CONFIG).exists()
    return out


@pytest.mark.parametrize("where", ["complete", "finish", "_move_up"])
def test_every_command_says_so(
    where: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = interrupted(source, tmp_path / "out", where, monkeypatch)
    for path in (out, out / PARTIAL):
        for words in (
            ["generate", str(path), "x"],
            ["chat", str(path)],
            ["eval", str(path)],
            ["eval", str(source), "--against", str(path)],
            ["info", str(path)],
            ["plan", str(path)],
            ["compile", str(path), "--target", "sm_90", "--out", str(tmp_path / "pack")],
            ["quantize", str(path), "-s", "fp8", "--out", str(tmp_path / "other")],
        ):
            assert main(words) == 2, words
            error = capsys.readouterr().err
            assert "unfinished output of isobit quantize ('fp8')" in error, (words, error)
            assert f"{out}: " in error
    with pytest.raises(CheckpointError, match=SAID):
        Checkpoint.open(out)
    if where != "_move_up":  # there the tokenizer is in place already
        with pytest.raises(CheckpointError, match=SAID):
            Tokenizer.from_folder(out)
    api.quantize(source, out, progress=False)
    assert main(["info", str(out)]) == 0


def test_a_damaged_journal_changes_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = interrupted(source, tmp_path / "out", "finish", monkeypatch)
    for content in (b"", b"{", b"[]\n", b'{"scheme": 5}\n', b"\xff\n", b"[" * 100_000):
        (out / PARTIAL / "journal").write_bytes(content)
        with pytest.raises(CheckpointError, match="unfinished output of isobit quantize, or one still"):
            api.info(out)
    (out / PARTIAL / "journal").unlink()
    with pytest.raises(CheckpointError, match="unfinished output"):
        api.info(out)


def test_a_finished_output_that_was_not_tidied_up_is_whole(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.quantize(source, out, progress=False)
    (out / PARTIAL).mkdir()
    assert api.info(out)
    shutil.rmtree(out / PARTIAL)
