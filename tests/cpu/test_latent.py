"""Latent attention: both of its orders are one function, and its cache keeps one short vector of a token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model, save, token_ids
from running import run
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import Unsupported
from isobit.formats.caches import CACHE_FORMATS
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.kernels.latent import LatentSpec, absorbed, expanded, halves
from isobit.kernels.norm import NormSpec
from isobit.models.archs import model_config
from isobit.models.cache.paged import BLOCK
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

ARCHITECTURE = "DeepseekV3ForCausalLM"
TOKENS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model(ARCHITECTURE), tmp_path_factory.mktemp("latent"))


def spec(heads: int = 3, plain: int = 6, rotated: int = 4, value: int = 5, rank: int = 7) -> LatentSpec:
    generator = torch.Generator().manual_seed(heads)
    up = torch.randn(heads, plain + value, rank, generator=generator, dtype=torch.float64)
    return LatentSpec(heads, plain, rotated, value, 0.3, True, NormSpec(torch.ones(rank), 1e-6), up)


@pytest.mark.parametrize(("new", "length"), [(1, 1), (1, 9), (4, 9), (9, 9)])
def test_absorbed_and_expanded_are_one_function(new: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, generator = spec(), torch.Generator().manual_seed(new)
    shapes = (one.heads, new, one.plain), (one.heads, new, one.rotated), (length, one.rank), (length, one.rotated)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    whole = expanded(one, *given)
    assert whole.shape == (one.heads, new, one.value)
    torch.testing.assert_close(absorbed(one, *given), whole, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr("isobit.kernels.latent._AT_ONCE", 1)  # keys and values of one head at a time
    torch.testing.assert_close(expanded(one, *given), whole, rtol=1e-12, atol=1e-12)
    # and by hand, for the last token of the first head
    made = given[2] @ one.up[0].T
    keys = torch.cat((made[:, : one.plain], given[3]), dim=-1)
    shares = torch.softmax(keys @ torch.cat((given[0][0, -1], given[1][0, -1])) * one.scale, dim=0)
    torch.testing.assert_close(whole[0, -1], shares @ made[:, one.plain :], rtol=1e-12, atol=1e-12)


def test_which_order_runs_depends_on_how_many_tokens_ask() -> None:
    published = LatentSpec(
        128, 128, 64, 128, 0.1, True, NormSpec(torch.ones(512), 1e-6), torch.empty(128, 256, 512, device="meta")
    )  # fmt: skip
    assert published.absorbs(1, 100) and published.absorbs(1, 100_000) and published.absorbs(16, 4096)
    assert not published.absorbs(4096, 4096) and not published.absorbs(512, 8192)
    assert published.query == 192 and published.rank == 512


def test_pairs_of_neighbours_become_halves() -> None:
    assert halves(torch.tensor([0, 10, 1, 11, 2, 12])).tolist() == [0, 1, 2, 10, 11, 12]


# How far a cache in fewer bits may move the logits of a random model, relative to their size: what it has without
# latents is no less (test_kv_formats.py).
MOVED = {
    "auto": 1e-5, "f32": 1e-5, "bf16": 0.02, "f16": 0.003, "fp8": 0.1, "fp8-e5m2": 0.2, "int8": 0.06, "mxfp8": 0.12,
    "mxfp4": 0.3, "nvfp4": 0.25,
}  # fmt: skip


@pytest.mark.parametrize("name", CACHE_FORMATS)
@torch.inference_mode()
def test_every_format_of_the_cache(folder: Path, name: str) -> None:
    ids = token_ids(TOKENS)
    exact, model = run(load_model(folder), ids), load_model(folder, kv_cache=name)
    cache = model.new_cache(2, TOKENS)
    steps = [run(model, ids[:, :17], cache)] + [run(model, ids[:, at : at + 1], cache) for at in range(17, TOKENS)]
    found = torch.cat(steps, 1)
    moved = float((found - exact).norm() / exact.norm())
    assert moved <= MOVED[name] and (moved > 1e-6 or name in ("auto", "f32"))
    # a prompt at once rounds what it stores alike
    assert (found - run(model, ids)).norm() / exact.norm() <= 0.01
    kept = sum(part.numel() * part.element_size() for layer in range(3) for part in cache.memory(layer).tensors)
    assert model.cache_bytes(2 * TOKENS) == kept
    widths = [CACHE_FORMATS[name].width(dim) for dim in (128, 32)]
    assert [part.numbers.shape for part in cache.memory(0).parts] == [(2, 1, TOKENS, width) for width in widths]


@torch.inference_mode()
def test_a_cache_in_blocks_grows_and_holds_what_it_held(folder: Path) -> None:
    model, ids = load_model(folder), token_ids(70, batch=1)
    from isobit.models.cache.protocol import CachedSequence

    cache = model.paged_cache(1)
    one = CachedSequence((0,), 64)
    first = model(cache.batch([ids[0, :60]], [one]), cache)
    cache.grow(3)
    one = CachedSequence((0, 2), 128, 60)
    rest = model(cache.batch([ids[0, 60:]], [one]), cache)
    torch.testing.assert_close(torch.cat((first, rest)), run(model, ids)[0], rtol=1e-4, atol=1e-4)


def test_what_attention_absorbs_is_kept_unless_a_rule_says_otherwise(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "kept", Policy(scheme("int8")), progress=False)
    config = json.loads((tmp_path / "kept/config.json").read_text())
    assert any("kv_b_proj" in name for name in config["quantization_config"]["ignore"])
    rule = Rule("kv_b_proj", "int8-w8a16")
    quantize(folder, tmp_path / "ruled", Policy(scheme("int8"), (rule,)), progress=False)
    kept, ruled = load_model(tmp_path / "kept"), load_model(tmp_path / "ruled")
    up, rounded = (one.layers[0].self_attn.kv_b_proj.weight for one in (kept, ruled))
    assert up.dtype == rounded.dtype == torch.float32
    assert 1e-4 < (up - rounded).norm() / up.norm() < 0.01  # rounded, and read as numbers


def test_layers_that_guess_further_tokens_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(make_model(ARCHITECTURE), tmp_path / "model")
    plain = run(load_model(folder), token_ids(8))
    tensors = load_file(folder / "model.safetensors")
    behind = {"model.layers.3.eh_proj.weight": torch.zeros(4, 4), "model.layers.3.enorm.weight": torch.zeros(4)}
    save_file(tensors | behind, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    model = load_model(folder)
    assert torch.equal(run(model, token_ids(8)), plain)
    assert any("guess further tokens" in note and "model.layers.3." in note for note in model.notes)


def test_the_norms_of_latents_have_an_epsilon_of_their_own() -> None:
    tiny = json.loads(json.dumps(make_model(ARCHITECTURE).config.to_dict(), default=str))
    config = model_config(tiny | {"architectures": [ARCHITECTURE], "rms_norm_eps": 1e-3})
    assert config.layers[0].attention.eps == 1e-6 and any("epsilon" in note for note in config.notes)
    assert not model_config(tiny | {"architectures": [ARCHITECTURE]}).notes
    assert replace(config, notes=()) == replace(config, notes=("other",))


def test_batch_invariance_is_refused_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isobit.kernels.cpu.latent.LARGEST_HEAD", 3)
    with pytest.raises(Unsupported, match="latents of up to 3 dimensions, not .*, and runs that in PyTorch"):
        load_model(folder, batch_invariant=True)
    model = load_model(folder)  # which PyTorch runs then
    assert model.why_by_layer is not None and "latent attention of layer 0 runs in PyTorch" in model.why_by_layer
    assert bool(run(model, token_ids(8)).isfinite().all())


@pytest.mark.parametrize("options", [{}, {"cache_tokens": 5 * BLOCK, "chunk": 33}, {"kv_cache": "int8"}], ids=str)
def test_the_engine_serves_from_blocks_whose_prefixes_are_read_again(
    folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    given = dict(options)
    model = load_model(folder, kv_cache=given.pop("kv_cache", "auto"))
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, byte_level()))
    ids, params = [row.tolist() for row in token_ids(150, batch=3)], SamplingParams(max_tokens=5, temperature=0.0)
    alone = [LLM(model, tokenizer, prefix_cache=False).generate([one], params)[0].token_ids for one in ids]
    llm = LLM(model, tokenizer, **given)
    for _ in range(2):  # with room for fewer than all of them, some are computed again
        found = llm.generate(ids, params)
        assert [one.token_ids for one in found] == alone
    assert llm.engine.pool.found > 0 or "cache_tokens" in options  # where nothing is kept for long
