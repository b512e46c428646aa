"""README's plan is what the command prints today."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from isobit.cli import main as command

README = Path(__file__).parents[2] / "README.md"
DEEPSEEK_LLM_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 30,
    "num_key_value_heads": 32, "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 102400,
}  # fmt: skip


def test_the_plan_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"^\$ isobit (plan config\.json .+)\n((?:.*\n)+?)```$", README.read_text(), re.MULTILINE)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(DEEPSEEK_LLM_7B))
    assert command.main([*found[1].split(), "--no-calibration"]) == 0
    assert capsys.readouterr().out == found[2]
