"""Whole models that see, through the Python interface: they answer as transformers does, whatever comes beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import glm4v_models
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import isobit
from isobit.engine.gpu_runner import GpuRunner
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.errors import UsageError
from isobit.media.values import Picture
from isobit.models.media import MediaPrompt

PARAMS = SamplingParams(max_tokens=10, ignore_eos=True, logprobs=0)
PICTURES = [Picture(glm4v_models.pixels(*shape)) for shape in ((40, 56), (48, 32))]
ASKED: list[list[dict[str, Any]]] = [
    [{"type": "text", "text": "an <|image|> of "}, {"type": "image"}, {"type": "text", "text": "?"}],
    [{"type": "image"}, {"type": "text", "text": " beside "}, {"type": "image"}],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seeing") / "model"
    return glm4v_models.save(glm4v_models.make(glm4v_models.PLAIN, seed=3), made)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    cls = transformers.Glm4vForConditionalGeneration
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


def asked(llm: Any) -> list[MediaPrompt]:
    found = []
    for parts in ASKED:
        media = PICTURES[: sum(part["type"] == "image" for part in parts)]
        found.append(llm.media_prompt(glm4v_models.FIRST_TEMPLATE, [{"role": "user", "content": parts}], media))
    return found


@torch.no_grad()
def answered(theirs: Any, prompt: MediaPrompt) -> tuple[tuple[int, ...], list[float]]:
    """Tokens of transformers, and their log-probabilities."""
    ids = torch.tensor([prompt.ids])
    kinds = torch.zeros_like(ids)
    for one in prompt.placed:
        kinds[0, list(one.places)] = 1
    inputs = [one.piece.inputs for one in prompt.placed]
    made = theirs.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds,
        pixel_values=torch.cat([one["patches"] for one in inputs]),
        image_grid_thw=torch.cat([one["grid"] for one in inputs]),
        max_new_tokens=PARAMS.max_tokens, min_new_tokens=PARAMS.max_tokens, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tokens = tuple(made.sequences[0, len(prompt.ids) :].tolist())
    scores = [float(row[0].log_softmax(-1)[token]) for row, token in zip(made.logits, tokens, strict=True)]
    return tokens, scores


@pytest.mark.parametrize("options", [{}, {"chunk": 9, "sequences": 3}], ids=str)
@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "ahead"])
def test_answers_are_those_of_transformers(folder: Path, theirs: Any, options: dict[str, int], ahead: bool) -> None:
    loaded = isobit.LLM(folder)
    assert loaded.tower is not None and loaded.tower.kinds == {"image", "video"}
    runner = GpuRunner(loaded.model, 4) if ahead else None  # type: ignore[arg-type]
    llm = LLM(loaded.model, loaded.tokenizer, runner, tower=loaded.tower, **options)  # type: ignore[arg-type]
    given = asked(llm)
    assert [len(one.placed) for one in given] == [1, 2] and all(one.shift < 0 for one in given)
    for prompt, found in zip(given, llm.generate([*given, [5, 6, 7]], PARAMS), strict=False):
        tokens, scores = answered(theirs, prompt)
        assert found.token_ids == tokens and found.logprobs is not None
        assert [one.logprob for one in found.logprobs] == pytest.approx(scores, abs=1e-3)


def test_one_answer_after_the_other(folder: Path, theirs: Any) -> None:
    model = isobit.load(folder)
    content = ASKED[0]
    prompt = model.media_prompt([{"role": "user", "content": content}], PICTURES[:1])
    found = model.generate(prompt, max_tokens=10, ignore_eos=True)
    assert found.token_ids == answered(theirs, prompt)[0]
    *_, last = model.stream(prompt, max_tokens=10, ignore_eos=True)
    assert last.completion is not None and last.completion.token_ids == found.token_ids
    with pytest.raises(UsageError):
        model.media_prompt([{"role": "user", "content": content}], PICTURES)


def test_the_encoder_is_beside_a_quantized_decoder(folder: Path, tmp_path: Path) -> None:
    isobit.quantize(folder, tmp_path / "int8", "int8", progress=False)
    plain, few = isobit.LLM(folder), isobit.LLM(tmp_path / "int8")
    assert plain.tower is not None and few.tower is not None
    for one, other in zip(asked(plain), asked(few), strict=True):
        assert one.ids == other.ids and torch.equal(one.positions, other.positions)  # type: ignore[arg-type]
        for left, right in zip(one.placed, other.placed, strict=True):
            assert left.places == right.places and left.piece.key == right.piece.key
            assert torch.equal(plain.tower.encode(left.piece), few.tower.encode(right.piece))
    (found,) = few.generate(asked(few)[0], PARAMS)
    assert len(found.token_ids) == 10


def test_what_is_quantized_of_an_encoder_becomes_numbers_with_the_rest(folder: Path, tmp_path: Path) -> None:
    """A linear of the encoder in fp8 with a scale for each row, as zai-org's FP8 files may have them."""
    source, out, module = tmp_path / "fp8", tmp_path / "int8", "model.visual.blocks.0.attn.qkv"
    isobit.quantize(folder, source, "fp8", progress=False)
    tensors = load_file(source / "model.safetensors")
    weight = tensors[f"{module}.weight"].float()
    scale = weight.abs().amax(1, keepdim=True) / 448
    tensors[f"{module}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    tensors[f"{module}.weight_scale"] = scale
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    before = isobit.LLM(source)
    isobit.quantize(source, out, "int8", from_quantized=True, progress=False)
    written = load_file(out / "model.safetensors")
    assert f"{module}.weight_scale" not in written and written[f"{module}.weight"].dtype == torch.float32
    assert torch.equal(written[f"{module}.weight"], tensors[f"{module}.weight"].float() * scale)
    after = isobit.LLM(out)
    assert before.tower is not None and after.tower is not None
    (one,) = asked(before)[0].placed
    assert torch.equal(before.tower.encode(one.piece), after.tower.encode(one.piece))
    plain = isobit.LLM(folder).tower
    assert plain is not None and not torch.equal(plain.encode(one.piece), after.tower.encode(one.piece))
