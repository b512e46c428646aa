"""An invented GPU and an invented 6-bit format, one row each in a copy of the sources: plans answer for both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).parents[2] / "src" / "isobit"

# File, the beginning of the line after which rows are inserted, and the rows.
ROWS = (
    # a format that no machine has: sign, 4 bits of exponent, 1 of mantissa
    ("formats/table.py", '    _float("e2m3", ', ('    _float("e4m1", 4, 1, 7, "finite"),',)),
    (
        "formats/schemes.py",
        '    Scheme("int2", ',
        (
            '    Scheme("fp6", WeightSpec("e4m1", "channel"), note="6-bit floats"),',
            '    Scheme("fp6-a6", WeightSpec("e4m1", "channel"), ActSpec("e4m1", "token"), note="6 by 6 bits"),',
        ),
    ),
    # a generation with a unit for that format, and none for 8-bit floats
    (
        "targets/table.py",
        '    _nvidia(86, "Ampere", ',
        (
            '    _nvidia(99, "Invented", (*_AMPERE, MatrixUnit("e4m1", "e4m1", "float32", "XMMA")), frozenset(), 99,',
            '            "invented"),',
        ),
    ),
    (
        "targets/boards.py",
        '    _gpu("A40", ',
        ('    _gpu("X1", "sm_99", 49140, 768, 300, "invented", f32=38.7, f16=154.8, i8=309.7, i4=619.3, f6=309.7),',),
    ),
)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    leave = shutil.ignore_patterns("*.so", "model", "heldout", "__pycache__", "cpp")
    shutil.copytree(SOURCES, root / "isobit", ignore=leave)
    for name, beginning, rows in ROWS:
        path = root / "isobit" / name
        lines = path.read_text(encoding="utf-8").splitlines()
        (at,) = [number for number, line in enumerate(lines) if line.startswith(beginning)]
        lines[at + 1 : at + 1] = rows
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def ask(root: Path, *words: str) -> Any:
    program = "import sys; from isobit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, cwd=root, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr and done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11520,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }))  # fmt: skip
    return path


def plans(root: Path, config: Path, targets: str, schemes: str) -> list[dict[str, Any]]:
    found = ask(root, "plan", str(config), "--target", targets, "--scheme", schemes, "--json")
    return [one for one in found["plans"]]


def test_every_scheme_has_an_answer_on_the_invented_gpu(changed: Path, config: Path) -> None:
    found = {one["scheme"]: one for one in plans(changed, config, "sm_99", "all")}
    same = {one["scheme"]: one for one in plans(changed, config, "sm_86", "all")}
    assert set(found) == set(same)
    for name in found:
        if not name.startswith("fp6"):  # it has what Ampere has, so it gets what Ampere gets
            assert found[name]["action"] == same[name]["action"], name
    assert found["fp8"]["action"] == "legalized" and found["int8"]["action"] == "native"


def test_the_invented_format_has_an_answer_on_every_target(changed: Path, config: Path) -> None:
    found = plans(changed, config, "all", "fp6,fp6-a6")
    assert len(found) > 2 * 16
    for one in found:
        assert one["action"] in ("native", "legalized", "relaxed", "refused")
        if one["action"] == "refused":  # no GPU kernel has it: said with the reason, and with what works
            assert any("e4m1" in reason for reason in one["reasons"]) and one["instead"], one["target"]
        else:
            assert one["target"].startswith("cpu") and one["memory"]["weights"] > 0
    assert any(one["action"] == "legalized" for one in found), "on CPUs the reference path runs any format"


def test_its_memory_is_six_bits_a_weight(changed: Path, config: Path) -> None:
    (fp6,) = plans(changed, config, "cpu-avx2", "fp6")
    (int8,) = plans(changed, config, "cpu-avx2", "int8")
    assert 0.75 < fp6["memory"]["weights"] / int8["memory"]["weights"] < 0.81  # the embeddings are not quantized
