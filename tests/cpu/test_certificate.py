"""Certificates: what a checkpoint lost, kept beside its weights, of these weights alone, and measured again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny

from isobit.cli.main import main
from isobit.evaluation import certificate
from isobit.evaluation.certify import _verdict
from isobit.server.run import described

TEXT = "".join(f"def function_{i}(x):\n    return x * {i * i}\n\n" for i in range(60))
FILE = "isobit_certificate.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, what was made of it, and a text."""
    folder = tmp_path_factory.mktemp("certified")
    tiny.save_model(folder / "source")
    assert main(["quantize", str(folder / "source"), "-s", "int4", "-q", "-o", str(folder / "int4")]) == 0
    (folder / "text.py").write_text(TEXT)
    assert certify(folder, "--text", folder / "text.py", "--ctx", 100, "--tokens", 1000) == 0
    return folder


def certify(folder: Path, *more: object, model: str = "int4", against: str = "source") -> int:
    command = ["certify", folder / model, "--against", folder / against, "-q", *more]
    return main([str(part) for part in command])


def test_what_is_kept_is_what_eval_measures(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--text", models / "text.py", "--ctx", 100, "--tokens", 1000, "-q", "--json"]
    command = ["eval", models / "int4", "--against", models / "source", *options]
    assert main([str(part) for part in command]) == 0
    measured = json.loads(capsys.readouterr().out)["fidelity"]
    found = certificate.read(models / "int4")
    assert found is not None and len(found.rows) == 1 and found.source == "source"
    assert json.loads((models / "int4" / FILE).read_text())["rows"][0]["fidelity"] == measured
    assert measured["kl_mean"]["value"] > 0
    assert {mark.name for mark in found.files} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_info_and_the_server_show_it(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(models / "int4")]) == 0
    said = capsys.readouterr().out
    assert "certificate" in said and "against source on" in said
    (row,) = described(models / "int4")["certificate"]
    assert row["source"] == "source" and 0 < row["kl_mean"] < 10 and 0 <= row["top1"] <= 1
    assert described(models / "source")["certificate"] is None


def test_measured_again_it_is_the_same(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certify(models, "--check", "--text", models / "text.py") == 0
    assert "the same figures again" in capsys.readouterr().out
    assert certify(models, "--check") == 0
    assert "name it with --text" in capsys.readouterr().out
    assert certify(models, "--check", "--ctx", 10) == 2
    assert "leave out --ctx" in capsys.readouterr().err


def test_a_figure_that_differs_is_a_status_of_its_own(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = models / "int4" / FILE
    kept = path.read_bytes()
    data = json.loads(kept)
    kl = data["rows"][0]["fidelity"]["kl_mean"]
    kl["value"] = (kl["value"] + kl["high"]) / 2
    path.write_text(json.dumps(data))
    try:
        assert certify(models, "--check", "--text", models / "text.py") == 1
        assert "DIFFERS: kl_mean" in capsys.readouterr().out
    finally:
        path.write_bytes(kept)


def test_another_path_is_within_the_intervals_or_differs(models: Path) -> None:
    from dataclasses import replace

    found = certificate.read(models / "int4")
    assert found is not None
    row = found.rows[0]
    kl = row.fidelity.kl_mean
    assert kl.low is not None and kl.high is not None

    def other(value: float) -> certificate.Row:
        paths = (row.method.paths[0], replace(row.path, target="sm_90"))
        fidelity = replace(row.fidelity, kl_mean=replace(kl, value=value))
        return replace(row, method=replace(row.method, paths=paths), fidelity=fidelity)

    assert _verdict(row, row).verdict == "same"
    assert _verdict(row, other((kl.value + kl.high) / 2)).verdict == "within"
    assert _verdict(row, other(kl.high * 2)).verdict == "differs"


def test_rows_come_together_and_replace_their_like(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "m")
    options = "--text", models / "text.py", "--ctx", 100, "--tokens", 1000
    assert certify(tmp_path / "m", *options, "--kv-cache", "int8") == 0
    assert certify(tmp_path / "m", *options) == 0
    found = certificate.read(tmp_path / "m/int4")
    assert found is not None and [row.kv_cache for row in found.rows] == ["int8", "auto"]


@pytest.mark.parametrize("change", ["bits", "size", "config", "missing"])
def test_it_is_of_these_weights_alone(
    change: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, tmp_path / "m")
    file = tmp_path / "m/int4/model.safetensors"
    data = bytearray(file.read_bytes())
    if change == "bits":
        data[-1] ^= 1
        file.write_bytes(data)
    elif change == "size":
        shutil.copy(tmp_path / "m/source/model.safetensors", file)
    elif change == "config":
        config = tmp_path / "m/int4/config.json"
        config.write_text(config.read_text().rstrip() + " ")
    else:
        (tmp_path / "m/int4/tokenizer_config.json").unlink()
    assert certify(tmp_path / "m", "--check", "--text", models / "text.py") == 2
    assert "is not of what lies here" in capsys.readouterr().err
    shown = change == "bits"  # which only reading the weights shows
    found, wrong = certificate.valid(tmp_path / "m/int4")
    assert (found is not None, wrong is None) == (shown, shown)


@pytest.mark.parametrize("text", ["{", "{}", '{"version": 2}', '{"version": 1, "rows": 3}', "[]", '{"version": 1}'])
def test_a_damaged_one_is_said_and_nothing_else_fails(
    text: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "int4", tmp_path / "int4")
    (tmp_path / "int4" / FILE).write_text(text)
    assert main(["info", str(tmp_path / "int4")]) == 0
    assert FILE in capsys.readouterr().out
    assert described(tmp_path / "int4")["certificate"] is None
    shutil.copytree(models / "source", tmp_path / "source")
    assert certify(tmp_path, "--check") == 2
    assert FILE in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "number"), [("kl_mean", float("nan")), ("top1", -5), ("top1", 1.5), ("perplexity", 1e400)]
)
def test_figures_that_no_measurement_gives(name: str, number: float, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "int4", tmp_path / "int4")
    data = json.loads((tmp_path / "int4" / FILE).read_text())
    data["rows"][0]["fidelity"][name]["value"] = number
    (tmp_path / "int4" / FILE).write_text(json.dumps(data))
    found, wrong = certificate.valid(tmp_path / "int4")
    assert found is None and wrong is not None and "is damaged" in wrong


def test_another_source_does_not_throw_a_certificate_away(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, tmp_path / "m")
    tiny.save_model(tmp_path / "m/other", seed=5)
    kept = (tmp_path / "m/int4" / FILE).read_bytes()
    assert certify(tmp_path / "m", against="other") == 2
    assert "against another source (source)" in capsys.readouterr().err
    assert (tmp_path / "m/int4" / FILE).read_bytes() == kept


def test_what_cannot_be_certified(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certify(models, model="source") == 2
    assert "are the same checkpoint" in capsys.readouterr().err
    assert main(["certify", "bundled", "--against", "bundled"]) == 2
    assert "comes with isobit" in capsys.readouterr().err
    assert main(["certify", "some/model", "--against", "bundled"]) == 2
    assert "is not on this machine" in capsys.readouterr().err
    shutil.copytree(models / "int4", tmp_path / "int4")
    (tmp_path / "int4" / FILE).unlink()
    assert main(["certify", str(tmp_path / "int4"), "--against", str(models / "source"), "--check"]) == 2
    assert "make one with isobit certify" in capsys.readouterr().err
    other = tiny.save_model(tmp_path / "other", seed=5)
    assert main(["certify", str(models / "int4"), "--against", str(other), "--check"]) == 0  # its text is not at hand
    options = ["--check", "--text", str(models / "text.py")]
    assert main(["certify", str(models / "int4"), "--against", str(other), *options]) == 2
    assert "is not the source that was measured" in capsys.readouterr().err


def test_a_checkpoint_that_is_replaced_loses_it(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "m")
    command = ["quantize", tmp_path / "m/source", "-s", "int8", "-q", "--overwrite", "-o", tmp_path / "m/int4"]
    assert main([str(part) for part in command]) == 0
    assert not (tmp_path / "m/int4" / FILE).exists()
