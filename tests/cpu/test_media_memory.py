"""What encodes media takes memory: plans count it, describing a checkpoint tells it from the decoder."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import glm4v_models
import pytest
import torch
from safetensors.torch import load_file, save_file

import isobit
from isobit.checkpoint.reader import Checkpoint
from isobit.engine.params import SamplingParams
from isobit.evaluation.info import describe
from isobit.formats.caches import cache_format
from isobit.models.archs import is_within
from isobit.models.encoders.table import open_tower
from isobit.models.planning import plans
from isobit.models.room import room
from isobit.models.towers import TOWERS, tower_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seeing") / "model"
    return glm4v_models.save(glm4v_models.make(glm4v_models.PLAIN), made)


def numbers(folder: Path) -> int:
    return sum(info.numel for name, info in Checkpoint.open(folder).tensors.items() if "visual" in name)


def test_a_plan_counts_the_tower_in_the_dtype_of_activations(folder: Path) -> None:
    work, ((cpu,), (gpu,)) = plans(folder, targets=["cpu-avx2", "a6000"], scheme_names=["bf16"])
    assert work.tower == numbers(folder) > 100_000 and "and a tower of 0.1 million" in work.title
    assert (cpu.memory.tower, gpu.memory.tower) == (4 * work.tower, 2 * work.tower)
    one = gpu.memory
    assert one.total == one.weights + one.tower + one.kv + one.activations + one.runtime + one.recorded
    left = room(folder, gpu=False, free=1 << 40, given=1 << 30, cache=cache_format("auto"), sequences=1)
    assert left is not None and left.held >= left.memory.weights + left.memory.tower + left.memory.runtime
    assert "tower " in str(left)


def test_a_configuration_alone_says_that_the_tower_is_not_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    work, ((one,),) = plans(tmp_path / "config.json", targets=["a6000"], scheme_names=["bf16"])
    assert work.tower == 0 and one.memory.tower == 0
    assert any("takes memory, too, which is not counted" in note for note in work.notes)


def test_the_command_says_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from isobit.cli.main import main

    assert main(["plan", str(folder), "--target", "a6000", "--scheme", "bf16"]) == 0
    assert "What encodes media takes 0.00 GiB besides" in capsys.readouterr().out
    assert main(["plan", str(folder), "--target", "a6000", "--scheme", "bf16", "--json"]) == 0
    assert f'"tower": {2 * numbers(folder)}' in capsys.readouterr().out


def test_describing_tells_the_tower_from_the_decoder(folder: Path, tmp_path: Path) -> None:
    found = describe(folder)
    assert sum(use.weights for use in found.schemes if use.kind == "tower") == numbers(folder)
    isobit.quantize(folder, tmp_path / "int8", "int8", progress=False)
    kinds = {(use.kind, use.scheme) for use in describe(tmp_path / "int8").schemes}
    assert {("tower", "f32"), ("linear", "int8")} <= kinds and ("linear", "f32") not in kinds
    planned = plans(tmp_path / "int8", targets=["a6000"])[0]
    assert planned.tower == numbers(folder) and planned.stored is not None
    assert not isinstance(open_tower(Checkpoint.open(tmp_path / "int8"), torch.float32), str)


def test_a_checkpoint_without_its_tower_answers_text(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "visual" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    llm = isobit.LLM(tmp_path)
    assert llm.tower is None and "no tensors of what reads images and videos" in llm.why_no_media
    assert llm.generate([[3, 4, 5]], SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids


@pytest.mark.parametrize("name", [name for name, row in TOWERS.items() if row.file])
def test_every_tower_has_its_file_and_its_decoder(name: str) -> None:
    row = TOWERS[name]
    assert callable(getattr(importlib.import_module(f"isobit.models.encoders.{row.file}"), row.opener))
    assert is_within({"architectures": [name]}) and tower_of({"architectures": [name]}) == row
    assert all(tower_of({"architectures": [other]}) is None for other in ("LlamaForCausalLM", "Nobody"))


def test_a_model_type_alone_names_a_tower() -> None:
    assert tower_of({"model_type": "glm4v"}) == TOWERS["Glm4vForConditionalGeneration"]
    assert tower_of({"model_type": "llama"}) is None and tower_of({}) is None


def test_without_the_extra_text_works_and_media_name_it(folder: Path) -> None:
    """In a process of its own, to which transformers is not there."""
    program = f"""
import importlib.util, json, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "transformers" else found(name, *rest)
import isobit, isobit.errors
from isobit.engine.params import SamplingParams
llm = isobit.LLM({str(folder)!r})
(answer,) = llm.generate([[3, 4, 5]], SamplingParams(max_tokens=3, ignore_eos=True))
try:
    llm.media_prompt("x", [{{"role": "user", "content": [{{"type": "image"}}]}}])
except isobit.errors.UsageError as error:
    print(json.dumps([len(answer.token_ids), str(error), "transformers" in sys.modules]))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, said, imported = json.loads(ran.stdout.splitlines()[-1])
    assert count == 3 and "pip install 'isobit[media]'" in said and not imported
