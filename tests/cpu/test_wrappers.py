"""Models that see of which text is run: logits equal transformers', as saved and as older files name tensors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import token_ids
from running import run
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import isobit
from isobit.checkpoint.reader import Checkpoint
from isobit.engine.tokenizer import Tokenizer as TextTokenizer
from isobit.errors import CheckpointWarning, ModelError, UsageError
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.archs import family, model_config
from isobit.models.contents import contents
from isobit.models.planning import plans
from isobit.models.weights import load_model
from isobit.models.wrappers import WRAPPERS
from isobit.quantizer.driver import quantize

SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "head_dim": 16,
}  # fmt: skip
LLAMA4 = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip
QWEN2 = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
QWEN25 = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
    "fullatt_block_indexes": [0],
}  # fmt: skip
QWEN3 = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
}  # fmt: skip
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
# Keys of the tower, and of the decoder beside those of its family's tiny model.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Gemma3ForConditionalGeneration": (SIGLIP, {}),
    "Llama4ForConditionalGeneration": (LLAMA4, {}),
    "Mistral3ForConditionalGeneration": (PIXTRAL, {}),
    "Qwen2VLForConditionalGeneration": (
        QWEN2, SMALL | {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}, "head_dim": None}),
    "Qwen2_5_VLForConditionalGeneration": (
        QWEN25, SMALL | {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}, "head_dim": None}),
    "Qwen3VLForConditionalGeneration": (
        QWEN3, SMALL | {"rope_parameters": ROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}}),
    "Qwen3VLMoeForConditionalGeneration": (
        QWEN3, SMALL | {"rope_parameters": ROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True},
                        "moe_intermediate_size": 48}),
}  # fmt: skip
LENGTH = 70


def make(architecture: str, text_family: str | None = None) -> Any:
    """A random float32 model of transformers."""
    torch.manual_seed(len(architecture))
    row, (vision, changes) = WRAPPERS[architecture], SIZES[architecture]
    kind = next(kind for kind, name in row.families.items() if text_family in (None, name))
    text = family(row.families[kind]).tiny() | {"model_type": kind, "bos_token_id": 1, "eos_token_id": 2} | changes
    text = {key: value for key, value in text.items() if value is not None or key == "pad_token_id"}
    tied = text.pop("tie_word_embeddings", row.tied)
    cls = getattr(transformers, architecture)
    given = {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}
    if architecture.startswith("Gemma3"):
        given["mm_tokens_per_image"] = 4
    model = cls(cls.config_class(**given)).float().eval()
    around_zero = 1.0 if "Gemma" in architecture else 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.05)
        elif name.endswith("norm.weight"):
            parameter.data.uniform_(0.5 - around_zero, 1.5 - around_zero)
        else:
            parameter.data.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Architecture to (transformers' model, folder), each made once."""

    @cache
    def save(architecture: str, text_family: str | None = None) -> tuple[Any, Path]:
        transformers.utils.logging.disable_progress_bar()
        model, folder = make(architecture, text_family), tmp_path_factory.mktemp(architecture)
        model.save_pretrained(folder)
        return model, folder

    return save


@torch.no_grad()
def wanted(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids).logits
    return logits


CASES = [*((name, None) for name in WRAPPERS), ("Mistral3ForConditionalGeneration", "ministral3")]


@pytest.mark.parametrize(("architecture", "text_family"), CASES)
def test_logits_equal_transformers(saved, architecture: str, text_family: str | None) -> None:
    model, folder = saved(architecture, text_family)
    mine, ids = load_model(folder), token_ids(LENGTH)
    assert mine.config.family == (text_family or next(iter(WRAPPERS[architecture].families.values())))
    assert (run(mine, ids) - wanted(model, ids)).abs().max() <= 1e-4
    assert mine.notes[: len(WRAPPERS[architecture].notes)] == WRAPPERS[architecture].notes


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def copied(folder: Path, out: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    out.mkdir()
    config = config or json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, out / "model.safetensors", {"format": "pt"}
    )
    return out


@pytest.mark.parametrize("architecture", WRAPPERS)
def test_the_names_of_transformers_own_modules_are_read(saved, architecture: str, tmp_path: Path) -> None:
    model, folder = saved(architecture)
    tensors = {name: value for name, value in model.state_dict().items() if not name.endswith("inv_freq")}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if WRAPPERS[architecture].turned:  # as published: with inputs first
        tensors = {name: value.transpose(1, 2) if ".experts." in name else value for name, value in tensors.items()}
    ids = token_ids(LENGTH)
    mine = load_model(copied(folder, tmp_path / "copy", tensors))
    assert (run(mine, ids) - wanted(model, ids)).abs().max() <= 1e-4


@pytest.mark.parametrize("architecture", ["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"])
def test_flat_files_are_read(saved, architecture: str, tmp_path: Path) -> None:
    model, folder = saved(architecture)
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    ids = token_ids(LENGTH)
    for number, whole in enumerate((text | config, text | config | {"text_config": text})):
        mine = load_model(copied(folder, tmp_path / f"copy{number}", stored(folder), whole))
        assert (run(mine, ids) - wanted(model, ids)).abs().max() <= 1e-4


QUANTIZED = [
    pytest.param(name, marks=() if name.startswith(("Gemma3", "Qwen2_5", "Mistral3")) else pytest.mark.slow, id=name)
    for name in WRAPPERS
]


@pytest.mark.parametrize("architecture", QUANTIZED)
def test_quantized_it_loads_here_and_in_transformers(saved, architecture: str, tmp_path: Path) -> None:
    model, folder = saved(architecture)
    quantize(folder, tmp_path / "out", Policy(scheme("int8-w8a16")), progress=False)
    before, after = Checkpoint.open(folder), Checkpoint.open(tmp_path / "out")
    beside = contents(before).beside
    assert beside and all(torch.equal(before.read(name), after.read(name)) for name in beside)
    ids = token_ids(LENGTH)
    mine = run(load_model(tmp_path / "out"), ids)
    exact = wanted(model, ids)
    assert 1e-5 < (mine - exact).norm() / exact.norm() < 0.1
    if "experts" in WRAPPERS[architecture].called or architecture.startswith("Llama4"):
        return  # transformers reads experts of these families from one tensor of a layer alone
    load = getattr(transformers, architecture).from_pretrained
    theirs = wanted(load(tmp_path / "out", dtype=torch.float32).eval(), ids)
    assert (mine - theirs).norm() / theirs.norm() <= 1e-4


@pytest.mark.parametrize("architecture", WRAPPERS)
def test_plans_say_that_text_is_run(saved, architecture: str) -> None:
    _, folder = saved(architecture)
    work, _ = plans(folder, targets=["cpu-avx512"], scheme_names=["fp8"])
    said = (
        f"the vision tower of {WRAPPERS[architecture].called} is not run here: isobit runs the text of this model alone"
    )
    assert (said in work.notes) == (not WRAPPERS[architecture].tower)


def written(architecture: str) -> dict[str, Any]:
    """The configuration that transformers writes, with its defaults."""
    found = getattr(transformers, architecture).config_class().to_dict() | {"architectures": [architecture]}
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", WRAPPERS)
def test_what_transformers_writes_is_read(architecture: str) -> None:
    config = written(architecture)
    assert model_config(config).family == next(iter(WRAPPERS[architecture].families.values()))
    for wrong, said in (
        ({"odd": 1}, "odd = 1"),
        ({"text_config": config["text_config"] | {"odd": 1}}, "text_config: odd = 1"),
        ({"text_config": config["text_config"] | {"model_type": "bert"}}, "model_type = 'bert'"),
        ({"text_config": 3}, "text_config = 3"),
    ):
        with pytest.raises(ModelError) as error:
            model_config(config | wrong)
        assert said in str(error.value)


def with_tokenizer(folder: Path, out: Path) -> Path:
    """The model with a tokenizer whose vocabulary are printable characters."""
    copied(folder, out, stored(folder))
    vocabulary = {chr(32 + number): number for number in range(95)} | {"[unk]": 95}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(out / "tokenizer.json"))
    return out


def test_scales_are_calibrated_and_text_is_generated(saved, tmp_path: Path) -> None:
    model, folder = saved("Qwen3VLForConditionalGeneration")
    source = with_tokenizer(folder, tmp_path / "source")
    ids = [*range(10, 30)]
    theirs = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    params = isobit.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with pytest.warns(CheckpointWarning, match="the vision tower of Qwen3-VL is not run here: isobit runs the text"):
        mine = isobit.LLM(source, device="cpu", dtype="float32")
    (answer,) = mine.generate([ids], params)
    with pytest.raises(UsageError, match="takes images and videos, and isobit runs its decoder alone, on text"):
        mine.media_prompt("{{ messages }}", [{"role": "user", "content": [{"type": "image"}]}])
    assert [*answer.token_ids] == theirs[0, len(ids) :].tolist()
    quantize(source, tmp_path / "out", Policy(scheme("fp8-static")), progress=False)
    assert torch.isfinite(run(load_model(tmp_path / "out"), token_ids(LENGTH))).all()


def test_the_end_of_an_answer_may_stand_with_the_decoder(saved, tmp_path: Path) -> None:
    _, folder = saved("Qwen2_5_VLForConditionalGeneration")
    source = with_tokenizer(folder, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["eos_token_id"] = [7, 9]
    (source / "config.json").write_text(json.dumps(config))
    assert TextTokenizer.from_folder(source).eos_ids == {7, 9}
