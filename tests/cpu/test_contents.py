"""Which tensors a checkpoint has: tied or not, under which names; every command agrees, every file type and family."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import families
import pytest
import torch
from families import FEW, make_model, token_ids, walked
from hf_checkpoints import quantize_tiny, tiny_model
from running import run
from safetensors.torch import load_file, save_file
from torch import Tensor

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.evaluation.info import describe
from isobit.evaluation.measure import bytes_per_token
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.archs import model_config
from isobit.models.config import Norms
from isobit.models.contents import contents
from isobit.models.names import renamed
from isobit.models.planning import plans
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

IDS = token_ids(20)
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TWO = "lm_head holds another matrix"


@cache
def tied(architecture: str) -> Any:
    """A random transformers model whose output projection is its embedding."""
    dense = {"first_k_dense_replace": 3} if architecture.startswith("Deepseek") else {}  # experts have their own tests
    return make_model(architecture, tie_word_embeddings=True, **dense)


def notes_of(folder: Path) -> tuple[str, ...]:
    """What there is to say of a model of its family, whatever its tensors."""
    return model_config(json.loads((folder / "config.json").read_text())).notes


# The head of these has a bias, and cannot be the embedding alone.
UNTIED = ("PhiForCausalLM", "PhimoeForCausalLM")


@pytest.fixture(params=[one for one in walked() if one.id not in UNTIED])
def model(request: pytest.FixtureRequest) -> Any:
    return tied(request.param)


@pytest.fixture(params=["safetensors", "bin"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def written(model: Any) -> dict[str, Tensor]:
    """A model's tensors by the names that they have in files, which are not those of its modules in every family."""
    with TemporaryDirectory() as folder:
        return load_file(families.save(model, Path(folder)) / "model.safetensors")


def save(model: Any, folder: Path, kind: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The model's folder with its tensors changed."""
    tensors = {name: value.clone() for name, value in written(model).items() if name != HEAD}
    return store(folder, kind, change(tensors), model.config.to_dict() | {"architectures": [type(model).__name__]})


def store(folder: Path, kind: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def another_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tensors | {HEAD: torch.randn(tensors[TABLE].shape, generator=generator) * 0.05}


def a_copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {HEAD: tensors[TABLE].clone()}


def only_the_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {HEAD if name == TABLE else name: value for name, value in tensors.items()}


def under(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {prefix + name.removeprefix("model."): value for name, value in tensors.items()}


@torch.inference_mode()
def logits(folder: Path) -> Tensor:
    return run(load_model(folder), IDS)


@torch.inference_mode()
def transformers_logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits  # type: ignore[no-any-return]


def planned_as_tied(folder: Path) -> bool:
    return plans(folder, targets=["sm_90"], scheme_names=["bf16"])[0].tied


def test_two_different_matrices_stay_two(model: Any, kind: str, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model", kind, another_head)
    found = logits(folder)
    if kind == "safetensors":
        assert (found - transformers_logits(folder)).abs().max() <= 1e-4
    own = save(model, tmp_path / "own", "safetensors", another_head)
    config = json.loads((own / "config.json").read_text()) | {"tie_word_embeddings": False}
    (own / "config.json").write_text(json.dumps(config))
    assert torch.equal(found, logits(own))
    # Every other command says the same.
    assert any(TWO in note for note in describe(folder).notes) and TWO in " ".join(load_model(folder).notes)
    assert describe(folder).parameters == describe(own).parameters
    work = plans(folder, targets=["sm_90"], scheme_names=["bf16"])[0]
    assert not work.tied and any(TWO in note for note in work.notes)
    assert bytes_per_token(Checkpoint.open(folder)) == bytes_per_token(Checkpoint.open(own))
    report = quantize(folder, tmp_path / "out", Policy(scheme("int8-w8a16")), progress=False)
    assert any(TWO in note for note in report.notes)
    out = json.loads((tmp_path / "out/config.json").read_text())
    assert out["tie_word_embeddings"] is False
    kept = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(kept[HEAD], another_head({TABLE: model.state_dict()[TABLE]})[HEAD])
    moved = (logits(tmp_path / "out") - found).norm(dim=-1) / found.norm(dim=-1)
    assert moved.median() < 0.1, "of the token in the middle: one that takes another expert is far off"
    assert load_model(tmp_path / "out").notes == notes_of(folder)


def test_a_copy_is_left_out(model: Any, kind: str, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model", kind, a_copy)
    plain = save(model, tmp_path / "plain", "safetensors", dict)
    assert torch.equal(logits(folder), logits(plain))
    assert contents(Checkpoint.open(folder)).left_out == (HEAD,) and planned_as_tied(folder)
    assert load_model(folder).notes == notes_of(folder) == describe(folder).notes
    assert describe(folder).parameters == describe(plain).parameters
    quantize(folder, tmp_path / "out", Policy(scheme("int8")), progress=False)
    assert HEAD not in Checkpoint.open(tmp_path / "out").tensors
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is True


def test_a_copy_in_a_wider_dtype_is_a_copy(tmp_path: Path) -> None:
    plain = tiny_model(torch.bfloat16, tie_word_embeddings=True)
    folder = save(plain, tmp_path / "model", "safetensors", lambda t: t | {HEAD: t[TABLE].float()})
    assert contents(Checkpoint.open(folder)).left_out == (HEAD,)
    other = save(plain, tmp_path / "other", "safetensors", lambda t: t | {HEAD: t[TABLE].float() * 1.0001})
    assert not contents(Checkpoint.open(other)).config.tie_word_embeddings


def test_the_one_matrix_may_have_either_name(model: Any, kind: str, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model", kind, only_the_head)
    plain = save(model, tmp_path / "plain", kind, dict)
    assert torch.equal(logits(folder), logits(plain)) and planned_as_tied(folder)
    quantize(folder, tmp_path / "out", Policy(scheme("int8")), progress=False)
    written = Checkpoint.open(tmp_path / "out").tensors
    assert TABLE in written and HEAD not in written
    assert describe(folder).notes == notes_of(folder)


PREFIXES = ("base.", "", "language_model.model.", "_orig_mod.model.", "model.language_model.")


@pytest.mark.parametrize(("architecture", "prefix"), [*zip(FEW, cycle(PREFIXES), strict=False)])
def test_any_one_prefix_is_read(kind: str, architecture: str, prefix: str, tmp_path: Path) -> None:
    model = tied(architecture)
    folder = save(model, tmp_path / "model", kind, under(prefix))
    assert torch.equal(logits(folder), logits(save(model, tmp_path / "plain", kind, dict)))
    assert "model.embed_tokens.weight" in " ".join(load_model(folder).notes) and planned_as_tied(folder)
    quantize(folder, tmp_path / "out", Policy(scheme("int8-w8a16")), progress=False)
    written = Checkpoint.open(tmp_path / "out").tensors
    assert all(name.startswith("model.") for name in written)
    assert (transformers_logits(tmp_path / "out") - logits(tmp_path / "out")).abs().max() <= 1e-4


def test_the_base_model_s_names_are_what_transformers_reads(tmp_path: Path) -> None:
    model = tied("Qwen3ForCausalLM")
    folder = save(model, tmp_path / "model", "safetensors", under(""))
    assert (logits(folder) - transformers_logits(folder)).abs().max() <= 1e-4


def test_names() -> None:
    found = partial(renamed, norms=Norms())
    inner = ["embed_tokens.weight", "layers.0.input_layernorm.weight", "layers.1.mlp.up_proj.weight", "norm.weight"]
    assert found([f"model.{name}" for name in inner] + [HEAD]) == {}
    assert found([*inner, HEAD, "visual.proj"]) == {name: f"model.{name}" for name in inner}
    wrapped = found([*(f"a.model.{name}" for name in inner), "a.lm_head.weight", "a.other", "b.lm_head.weight"])
    assert wrapped == {f"a.model.{name}": f"model.{name}" for name in inner} | {"a.lm_head.weight": HEAD}
    assert found([f"{prefix}{name}" for name in inner for prefix in ("a.", "b.")]) == {}  # which of the two?
    assert found(["a.model.layers.0.input_layernorm.weight", "model.norm.weight", "a.model.norm.weight"]) == {}
    assert found([]) == {} == found(["layers.0.input_layernorm.bias"])


def test_a_prefix_does_not_hide_what_is_missing_or_surplus(tmp_path: Path) -> None:
    model = tied("LlamaForCausalLM")

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = under("")(tensors) | {"visual.weight": torch.ones(2)}
        del found["layers.1.mlp.up_proj.weight"]
        return found

    folder = save(model, tmp_path / "model", "safetensors", change)
    with pytest.raises(CheckpointError, match=r"(?s)up_proj.*is missing.*visual.weight.*surplus"):
        load_model(folder)
    assert "does not load" in " ".join(describe(folder).notes)


@pytest.mark.parametrize("name", ["int8-w8a16", "int4-g32", "fp8"])
def test_a_quantized_head_of_a_tied_model_is_its_own(tmp_path: Path, name: str) -> None:
    plain = tmp_path / "plain"
    untied = tiny_model(torch.bfloat16)
    untied.save_pretrained(plain)
    held = quantize_tiny(plain, tmp_path / "model", {HEAD.removesuffix(".weight"): scheme(name)})
    wanted = run(load_model(tmp_path / "model"), torch.arange(9)[None])
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = load_model(tmp_path / "model")
    assert isinstance(model.lm_head.weight, QTensor) and held
    assert torch.equal(run(model, torch.arange(9)[None]), wanted)
    assert any(TWO in note for note in model.notes) and any(TWO in note for note in describe(tmp_path / "model").notes)
    assert not plans(tmp_path / "model", targets=["sm_90"])[0].tied


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    plain = tiny_model(torch.bfloat16, tie_word_embeddings=True)
    folder = save(plain, tmp_path / "model", "safetensors", lambda t: t | {HEAD: torch.ones(3, 128)})
    with pytest.raises(CheckpointError, match=r"lm_head.weight.*\[3, 128\].*\[64, 128\]"):
        load_model(folder)
