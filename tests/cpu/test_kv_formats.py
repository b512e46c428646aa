"""Formats of the key-value cache: one rounding law, read by exact decoding, in every row that attends."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hf_checkpoints import tiny_model
from torch import Tensor

from isobit import api
from isobit.errors import Unsupported, UsageError
from isobit.formats.caches import AUTO, CACHE_FORMATS, CacheFormat, cache_format
from isobit.formats.codec import decode, quantize_activations
from isobit.formats.schemes import ActSpec
from isobit.kernels.cached import Cached, rounded
from isobit.models.batch import Batch
from isobit.models.cache.memory import new_layers
from isobit.models.config import Kept
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model

CODES = [row for row in CACHE_FORMATS.values() if row.element and not row.group]
LENGTHS = (70, 9, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kv") / "plain"
    tiny_model().save_pretrained(path)
    return path


def loaded(folder: Path, name: str, kernel: str, monkeypatch: pytest.MonkeyPatch, dtype: str | None = None) -> Decoder:
    if kernel:
        monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    return load_model(folder, kv_cache=name, dtype=dtype)


def prompts(model: Decoder) -> list[list[int]]:
    made = torch.Generator().manual_seed(3)
    return [torch.randint(model.config.vocab_size, (n,), generator=made).tolist() for n in LENGTHS]


# ---------------------------------------------------------------------- names


def test_names_and_refusals(folder: Path) -> None:
    assert cache_format("FP8") == cache_format("e4m3") == CACHE_FORMATS["fp8"] and cache_format("half").name == "f16"
    for wrong in ("fp4", "", "int4", 8, None):
        with pytest.raises(UsageError, match="unknown format of a key-value cache.*fp8-e5m2"):
            cache_format(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="unknown format of a key-value cache"):
            api.LLM(folder, kv_cache=wrong)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="(?s)float16 for activations in bfloat16.*does not hold"):
        load_model(folder, dtype="bfloat16", kv_cache="f16")
    with pytest.raises(Unsupported, match="(?s)float32 for activations in float16.*twice the memory"):
        load_model(folder, dtype="float16", kv_cache="f32")


@pytest.mark.parametrize("row", CACHE_FORMATS.values(), ids=lambda row: row.name)
def test_bytes_are_those_of_the_memory(folder: Path, row: CacheFormat) -> None:
    model = load_model(folder, kv_cache=row.name)
    cache = model.paged_cache(3)
    held = sum(part.nbytes for layer in range(model.config.num_layers) for part in cache.memory(layer).tensors)
    assert model.cache_bytes(3 * cache.block) == held
    cache.grow(5)
    assert cache.memory(0).keys.shape[0] == 5 and len(cache.memory(0).tensors) == 2 * (
        1 + row.one_scale + (row.group is not None)
    )
    other = load_model(folder, kv_cache="int8" if row.name != "int8" else "fp8")
    batch = other.paged_cache(1).batch([[1]], [dataclasses.replace(_one(), blocks=(0,))])
    with pytest.raises(UsageError, match="was not made for this model"):
        other.forward(batch, cache)


def _one():  # type: ignore[no-untyped-def]
    from isobit.models.cache.protocol import CachedSequence

    return CachedSequence((0,), 64)


# ---------------------------------------------------------------------- the law


@pytest.mark.parametrize("row", CODES, ids=lambda row: row.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_law_is_that_of_activations(row: CacheFormat, dtype: torch.dtype) -> None:
    """A scale for each token and head; zeros and what is no number as activations have them."""
    x = torch.randn(5, 2, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1, 0], x[2, 1, 3], x[3, 0, 0] = 0, float("nan"), float("inf")
    (held,) = new_layers([Kept(2, 32, 32)], 3, 4, dtype, None, row)
    slots = torch.tensor([0, 5, 6, 11, 3])
    held.store(slots, x, 2 * x)
    codes, scales = quantize_activations(x, ActSpec(row.element, "token"))
    for i, slot in enumerate(slots.tolist()):
        assert torch.equal(held.keys[slot // 4, :, slot % 4], codes[i])
        assert held.key_scales is not None and torch.equal(
            held.key_scales[slot // 4, :, slot % 4].view(torch.int32), scales[i, :, 0].view(torch.int32)
        )
    keys, values = held.read((0, 1, 2), 12, dtype)
    assert keys.dtype == torch.float32 and keys.shape == (2, 12, 32)
    assert torch.equal(keys[:, 5], torch.zeros(32).expand(2, 32) * 0 + decode(codes[1], row.element) * scales[1])
    assert keys[1, 6].isnan().all() and keys[0, 11].isnan().all() and keys[1, 11].isfinite().all()
    assert (values[:, 0] == 2 * keys[:, 0]).all()  # a power of two moves scales alone


def test_plain_numbers_saturate_and_keep_what_is_no_number() -> None:
    x = torch.tensor([1.0, 1e30, -1e30, float("inf"), float("-inf"), float("nan"), 65519.0, 2049.0])
    found = rounded(x, AUTO, torch.float16)
    halves = found.numbers
    assert len(found.tensors) == 1 and halves.dtype == torch.float16
    assert halves.tolist()[:5] == [1.0, 65504.0, -65504.0, float("inf"), float("-inf")] and halves[5].isnan()
    assert halves[6:].tolist() == [65504.0, 2048.0]  # ties to even
    assert rounded(torch.tensor([3.4e38]), AUTO, torch.bfloat16).numbers.isfinite().all()


# ---------------------------------------------------------------------- models

KERNELS = ["reference", ""]  # "": what is chosen


@pytest.mark.parametrize("kernel", KERNELS, ids=["reference", "chosen"])
@pytest.mark.parametrize("row", CACHE_FORMATS.values(), ids=lambda row: row.name)
@torch.inference_mode()
def test_paged_cut_and_alone_as_whole_prompts(
    folder: Path, row: CacheFormat, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cache keys and values are rounded all the same, so an evaluation says what generation will compute."""
    model = loaded(folder, row.name, kernel, monkeypatch)
    texts = prompts(model)
    whole = model.forward(Batch.of(texts)).split(list(LENGTHS))
    cache = model.new_cache(3, 80)
    parts = [[one[: len(one) // 2] or one for one in texts], [one[len(one) // 2 :] for one in texts[:2]]]
    first = model.forward(cache.next(parts[0]), cache).split([len(part) for part in parts[0]])
    second = model.forward(cache.batch(parts[1], cache.sequences[:2]), cache).split([len(part) for part in parts[1]])
    for i, expected in enumerate(whole):
        got = torch.cat([first[i], *second[i : i + 1]])
        assert (got - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_formats_differ_by_what_they_round(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finer formats are nearer; all of them are near, and none of them is the full cache."""
    found: dict[str, Tensor] = {}
    for name in CACHE_FORMATS:
        model = loaded(folder, name, "reference", monkeypatch)
        found[name] = model.forward(Batch.of(prompts(model)))
    error = {name: float((logits - found["auto"]).norm() / found["auto"].norm()) for name, logits in found.items()}
    assert error["f32"] == 0 < error["f16"] < error["bf16"] < error["int8"] < error["fp8"] < error["fp8-e5m2"] < 0.2
    assert error["int8"] < error["mxfp8"] < error["nvfp4"] < error["mxfp4"] < 0.5


@torch.inference_mode()
def test_half_precision_models_take_codes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("bfloat16", "float16"):
        full = loaded(folder, "auto", "reference", monkeypatch, dtype)
        narrow = loaded(folder, "int8", "reference", monkeypatch, dtype)
        a, b = (model.forward(Batch.of(prompts(model))) for model in (full, narrow))
        assert 0 < (a - b).norm() / a.norm() < 0.05


# ---------------------------------------------------------------------- interface


def test_generate_and_evaluate(folder: Path) -> None:
    found = api.evaluate("bundled", kv_cache="int8", tokens=512, ctx=128)
    assert found.fidelity is not None and 0 < found.fidelity.kl_mean.value < 0.05
    assert "int8 cache" in found.method.paths[1].layers and "cache" not in found.method.paths[0].layers
    answers = {
        name: api.LLM("bundled", kv_cache=name).generate("def f(", api.SamplingParams(max_tokens=8))
        for name in ("auto", "f32")
    }
    assert answers["auto"][0].token_ids == answers["f32"][0].token_ids
    assert api.load("bundled", kv_cache="fp8").generate("def f(", max_tokens=4).token_ids


def test_what_is_kept_of_a_prompt_in_groups_serves_the_next_one() -> None:
    """Blocks of a prefix with all their scales: an answer is the same whether its prompt was read or found."""
    sampling, prompt = api.SamplingParams(max_tokens=6), "def f(a, b):\n    return a + b\n\n" * 12
    llm = api.LLM("bundled", kv_cache="nvfp4")
    first, again = (llm.generate(prompt, sampling)[0] for _ in range(2))
    other = api.LLM("bundled", kv_cache="nvfp4", prefix_cache=False).generate(prompt, sampling)[0]
    assert first.token_ids == again.token_ids == other.token_ids


def test_auto_is_what_it_was() -> None:
    assert AUTO.stored("bfloat16") == "bfloat16" and AUTO.bytes(2, 64, "float32") == 512
    assert CACHE_FORMATS["fp8"].bytes(8, 128, "bfloat16") == 8 * 132
    assert Cached(torch.empty(0), torch.empty(0)).element == ""
