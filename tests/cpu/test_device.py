"""eval and calibration on a device: what ran is said, what cannot run is refused by name before anything is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from tiny import save_model

from isobit import api
from isobit.cli.main import main
from isobit.errors import Unsupported, UsageError
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize

TEXT = "def f(x):\n    return x * 2\n\n" * 4


@pytest.mark.slow
def test_both_run_on_the_gpu_kernels_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(tiny, "LAYERS", 1)
    source = save_model(tmp_path / "tiny")
    config = json.loads((source / "config.json").read_text())
    # The interpreter adds and multiplies bfloat16 wrongly.
    (source / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    quantize(source, tmp_path / "tiny-int4", Policy(scheme("int4")), progress=False)
    (tmp_path / "text.py").write_text(TEXT)
    program = Path(__file__).with_name("interpreter_eval.py")
    paths = [source, tmp_path / "tiny-int4", tmp_path / "text.py", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program), *map(str, paths)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, _, rest = done.stdout.partition("\n")
    found = json.loads(first)
    cpu, cuda = found["cpu"], found["cuda"]
    # Activations are float16 there and float32 here.
    assert cuda["scale"] == pytest.approx(cpu["scale"], rel=0.02)
    assert cuda["perplexity"] == pytest.approx(cpu["perplexity"], rel=0.02)
    assert cuda["kl"] == pytest.approx(cpu["kl"], rel=0.2) and cuda["kl"] > 0
    assert cpu["notes"] == [] and len(cuda["notes"]) == 1 and "sm_86" in cuda["notes"][0]
    assert "triton" in cuda["versions"] and "triton" not in cpu["versions"]
    assert "tiny, tiny-int4 ran on cuda (sm_86), float16; linears: triton (in Triton's interpreter" in cuda["said"]
    document = json.loads(rest)["method"]
    (path,) = document["paths"]
    assert (path["model"], path["device"], path["target"], path["dtype"]) == ("tiny", "cuda", "sm_86", "float16")
    assert path["linears"].startswith("triton") and path["layers"] == "triton"
    assert document["command"].endswith("--device cuda --target sm_86")


def test_on_a_cpu_the_path_is_said_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, page = save_model(tmp_path / "tiny"), tmp_path / "report.html"
    words = ["eval", source, "--against", source, "--tokens", 64, "--ctx", 64, "-q", "--report", page]
    assert main([*map(str, words), "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)["method"]["paths"]
    assert [path["model"] for path in paths] == ["tiny", "tiny"] and paths[0] == paths[1]
    assert paths[0]["device"] == "cpu" and paths[0]["target"].startswith("cpu-") and paths[0]["dtype"] == "float32"
    assert paths[0]["linears"].split()[0] in ("cpu", "reference") and paths[0]["layers"] in ("cpu", "reference")
    assert "execution path of tiny" in page.read_text() and paths[0]["target"] in page.read_text()


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
REFUSED = [
    pytest.param({"device": "cuda"}, Unsupported, "running on a GPU", marks=NO_GPU),
    ({"device": "cuda", "target": "sm_1"}, UsageError, "sm_1"),
    ({"device": "cuda", "target": "cpu-avx2"}, UsageError, "no GPU that kernels"),
    ({"target": "sm_86"}, UsageError, "add --device cuda"),
    ({"device": "tpu"}, UsageError, "device must be one of"),
    ({"device": "cuda", "target": 86}, UsageError, "target must be"),
]


@pytest.mark.parametrize(("place", "error", "words"), REFUSED)
def test_refused_before_a_model_is_looked_for(place: dict[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        api.evaluate("no/such model", **place)  # type: ignore[arg-type]
    for run in (api.quantize, api.predict):
        with pytest.raises(error, match=words):
            run("./no such model", "out", "fp8-static", **place)  # type: ignore[operator]


@NO_GPU
def test_a_command_without_a_gpu_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["eval", "bundled"], ["quantize", "bundled", "-s", "fp8-static", "-o", str(tmp_path / "out")]):
        assert main([*words, "--device", "cuda"]) != 0
        assert "running on a GPU" in capsys.readouterr().err
    assert main(["quantize", "bundled", "-s", "int4", "-o", str(tmp_path / "out"), "--device", "cuda"]) != 0
    assert "no scheme here has" in capsys.readouterr().err and not (tmp_path / "out").exists()
