"""The demo from end to end on a tiny model; the bundled model's own demo is what `make demo` runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from isobit.checkpoint.reader import Checkpoint
from isobit.cli import demo as command
from isobit.cli.main import build_parser, main
from isobit.errors import SchemeError, UsageError
from isobit.evaluation import demo, measure, paths, wording


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    folder = tmp_path_factory.mktemp("demo")
    source = tiny.save_model(folder / "source")
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SPEED_TOKENS", 4)
        patch.setattr(demo, "SPEED_ROUNDS", 1)
        patch.setattr(demo, "SPEED_BUFFER", 1 << 20)
        patch.setattr(demo, "COMPLETION_TOKENS", 8)
        found = demo.run(
            folder / "out", ["bf16", "fp8", "int8", "q4f16_1", "int3"], source=source, tokens=600, say=told.append
        )
    assert any("quantized to int3" in line for line in told)
    return found


def test_every_scheme_is_quantized_measured_and_timed(made: demo.Demo) -> None:
    rows = {row.name: row for row in made.results.schemes}
    assert list(rows) == ["bf16", "fp8", "int8", "int4-g32", "int3"]
    for name, row in rows.items():
        checkpoint = Checkpoint.open(made.folders[name])
        assert row.size == sum(file.stat().st_size for file in checkpoint.files)
        assert row.speed is not None and row.speed.tokens_per_second > 0
        assert 0 < row.speed.rate and 0 < row.speed.memory_rate and 0 < row.speed.again_rate
        assert row.speed.kernel == paths.linear_kernels(measure.load_subject(made.folders[name]).model)
        assert row.fidelity.tokens == made.results.source.likelihood.tokens > 500


def test_losses_are_in_the_order_of_bits(made: demo.Demo) -> None:
    rows = {row.name: row for row in made.results.schemes}
    assert rows["bf16"].fidelity.kl_mean.value == 0
    assert 0 < rows["int8"].fidelity.kl_mean.value < rows["int4-g32"].fidelity.kl_mean.value
    assert rows["int4-g32"].fidelity.kl_mean.value < rows["int3"].fidelity.kl_mean.value
    assert rows["int8"].bits_per_weight < 8.1 and rows["int4-g32"].bits_per_weight == pytest.approx(4.5, abs=0.01)
    assert set(rows["bf16"].layer_errors) == {0.0}
    assert rows["int8"].layer_errors[-1] < rows["int3"].layer_errors[-1]
    assert len(rows["int3"].weight_errors) == 7 * tiny.LAYERS
    assert all(0 < error < 0.5 for _, error in rows["int3"].weight_errors)


def test_the_report_and_the_data_say_the_same(made: demo.Demo) -> None:
    data = json.loads(made.data.read_text())
    page = made.report.read_text()
    assert [row["name"] for row in data["schemes"]] == [row.name for row in made.results.schemes]
    for row in made.results.schemes:
        assert wording.perplexity(row.fidelity.perplexity.value) in page
    assert [c.model for c in made.results.completions] == ["source (source)", "int3"]


def test_the_terminal_output_fits_and_says_what_next(made: demo.Demo) -> None:
    text = command.describe(made)
    assert max(map(len, text.splitlines()[:20])) <= 110
    for words in (
        "int4-g32",
        "KL mean",
        "of reading alone",
        "source (source) completes:",
        str(made.report),
        "isobit generate",
        "isobit eval",
    ):
        assert words in text
    assert command.describe(replace(made, seconds=61.4)).count("61 s") == 1


def test_a_second_run_replaces_the_first(made: demo.Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SPEED_TOKENS", 4)
    monkeypatch.setattr(demo, "SPEED_BUFFER", 1 << 20)
    again = demo.run(
        made.report.parent, ["fp8"], source=made.report.parent.parent / "source", tokens=600, say=lambda line: None
    )
    first = next(row for row in made.results.schemes if row.name == "fp8")
    assert again.results.schemes[0].fidelity == first.fidelity


def test_what_cannot_be_run_is_said_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SchemeError, match="int9"):
        demo.run(tmp_path / "a", ["int9"])
    with pytest.raises(UsageError, match="no scheme"):
        demo.run(tmp_path / "a", [])
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_the_command_line_of_the_report() -> None:
    args = build_parser().parse_args(["demo", "--out", "x y", "--schemes", "fp8,int4"])
    assert command.command_line(args) == "isobit demo --out 'x y' --schemes fp8,int4"


def test_tokens_must_be_a_number_above_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["demo", "--tokens", "0"])
    assert "above 0" in capsys.readouterr().err
