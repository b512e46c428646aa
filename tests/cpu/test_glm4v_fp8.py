"""GLM-4.6V-FP8's layout: codes with a scale for each output, experts too, and a list that names parameters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import glm4v_models as glm
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.models.batch import Batch
from isobit.models.contents import contents
from isobit.models.encoders.table import open_tower
from isobit.models.media import Picture
from isobit.models.weights import load_model

sys.path.append(str(Path(__file__).parents[1] / "pure"))
from published_seeing import fp8, fp8_ignored

LAYERS, DEPTH = 3, 2
LEFT = ("embed_tokens", "lm_head", "mlp.gate.", "norm", "visual.")
LARGEST = 448.0  # of e4m3fn


def packed(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes and scales ``[N, 1]`` of the scales' dtype, by the rule that every tool of this format has."""
    scale = (weight.float().abs().amax(dim=-1, keepdim=True) / LARGEST).to(dtype)
    return (weight.float() / scale.float()).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def quantized(folder: Path, dtype: torch.dtype, more: tuple[str, ...] = ()) -> dict[str, tuple[Tensor, Tensor]]:
    """Makes a saved model FP8 in its place, with modules ``more`` of those that are else left as they are.

    Returns:
        Module -> its codes and scales.
    """
    tensors, found = load_file(folder / "model.safetensors"), {}
    for name, tensor in [*tensors.items()]:
        module = name.removesuffix(".weight")
        chosen = module in more or not any(part in name for part in LEFT)
        if chosen and name.endswith(".weight") and tensor.dim() == 2:
            found[module] = packed(tensor, dtype)
            tensors[name], tensors[f"{name}_scale"] = found[module]
        elif "e_score" not in name and "mlp.gate." not in name:
            tensors[name] = tensor.bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "bfloat16", "quantization_config": fp8(fp8_ignored(LAYERS, DEPTH))}
    (folder / "config.json").write_text(json.dumps(config))
    return found


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["scales bf16", "scales f32"])
def saved(request, tmp_path) -> tuple[Path, dict[str, tuple[Tensor, Tensor]], torch.dtype]:
    folder = glm.save(glm.make(glm.EXPERTS, seed=5), tmp_path / "glm")
    return folder, quantized(folder, request.param), request.param


def test_every_code_and_scale_is_read(saved) -> None:
    folder, found, _ = saved
    assert {"model.language_model.layers.0.mlp.down_proj", "model.language_model.layers.2.mlp.experts.7.up_proj",
            "model.language_model.layers.1.mlp.shared_experts.gate_proj"} <= {*found}  # fmt: skip
    ck = contents(Checkpoint.open(folder)).ck
    for module, (codes, scale) in found.items():
        read = read_linear(ck, module.replace("language_model.", ""))
        assert isinstance(read.weight, QTensor)
        assert torch.equal(read.numbers(), codes.float() * scale.float())
        assert read.activations is not None and read.activations.dynamic
    assert load_model(folder).notes == contents(Checkpoint.open(folder)).notes


def test_transformers_reads_the_same_numbers(saved) -> None:
    """Whose experts lie one above the other; it rounds products to the scales' dtype in linears, not in experts."""
    import transformers
    from transformers.utils.quantization_config import CompressedTensorsConfig

    folder, found, _ = saved
    cls = transformers.Glm4vMoeForConditionalGeneration
    model = cls.from_pretrained(
        folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    theirs = model.state_dict()
    for module, (codes, scale) in found.items():
        wanted = codes.float() * scale.float()
        before, experts, expert = module.partition(".mlp.experts.")
        if not experts:
            assert torch.equal(theirs[f"{module}.weight"].float(), wanted.to(scale.dtype).float()), module
            continue
        number, _, part = expert.partition(".")
        stacked = theirs[f"{before}.mlp.experts.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"][int(number)]
        rows = {"gate_proj": stacked[: len(wanted)], "up_proj": stacked[-len(wanted) :]}.get(part, stacked)
        assert torch.equal(rows.float(), wanted), module


def numbers(folder: Path, out: Path, found: dict[str, tuple[Tensor, Tensor]]) -> Path:
    """The same model as plain float32 numbers."""
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if "_scale" not in name}
    for module, (codes, scale) in found.items():
        tensors[f"{module}.weight"] = codes.float() * scale.float()
    out.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def logits(folder: Path) -> Tensor:
    ids = torch.arange(40, 80)
    with torch.inference_mode():
        return load_model(folder).forward(Batch.of([ids]))


def test_it_computes_what_its_numbers_do_but_for_rounded_inputs(saved, tmp_path: Path) -> None:
    folder, found, _ = saved
    wanted, got = logits(numbers(folder, tmp_path / "plain", found)), logits(folder)
    assert 0 < float((got - wanted).norm() / wanted.norm()) < 0.3


SEEN = "model.visual.blocks.1.attn.qkv", "model.visual.merger.down_proj", "model.visual.merger.gate_proj"


@pytest.mark.parametrize("more", [(), SEEN], ids=["plain tower", "FP8 in the tower"])
def test_the_tower_is_what_its_tensors_say(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Whatever the list says of it."""
    folder = glm.save(glm.make(glm.EXPERTS, seed=5), tmp_path / "glm")
    found = quantized(folder, torch.bfloat16, more)
    assert {*more} <= {*found}
    plain = numbers(folder, tmp_path / "plain", found)
    seen = []
    for one in (folder, plain):
        load_model(one)
        tower = open_tower(Checkpoint.open(one), torch.float32)
        assert not isinstance(tower, str)
        picture = tower.prompt(glm.tokenizer().encode("<|image|>").ids, [Picture(glm.pixels(30, 40))]).placed[0].piece
        seen.append(tower.encode(picture))
    assert torch.equal(*seen)


def test_info_says_what_it_is(saved) -> None:
    folder, _, _ = saved
    info = describe(folder)
    assert info.architecture == glm.EXPERTS
    assert any("fp8" in row for row in map(str, info.schemes))
    assert not [note for note in info.notes if "does not" in note]


def test_a_plain_linear_that_the_list_does_not_name_is_refused(saved) -> None:
    folder, found, _ = saved
    tensors = load_file(folder / "model.safetensors")
    module = "model.language_model.layers.1.self_attn.q_proj"
    del tensors[f"{module}.weight_scale"]
    tensors[f"{module}.weight"] = tensors[f"{module}.weight"].bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"].append(f"{module}.weight")  # its parameter's name is as good as its own
    (folder / "config.json").write_text(json.dumps(config))
    load_model(folder)


def stacked(folder: Path) -> None:
    """Experts one above the other, as transformers holds them."""
    tensors = load_file(folder / "model.safetensors")
    for layer in range(1, LAYERS):
        prefix = f"model.language_model.layers.{layer}.mlp.experts."
        for name, parts in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
            for end in ("weight", "weight_scale"):
                rows = [torch.cat([tensors.pop(f"{prefix}{n}.{part}.{end}") for part in parts]) for n in range(8)]
                tensors[f"{prefix}{name}{'' if end == 'weight' else '_scale'}"] = torch.stack(rows)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_stacked_experts_with_codes_are_refused_by_name(saved) -> None:
    """No tool writes them so; what would be wrong is to take codes for numbers."""
    folder, _, _ = saved
    stacked(folder)
    with pytest.raises(CheckpointError, match=r"experts\.(gate_up|down)_proj"):
        load_model(folder)
