"""``qmodel.pt`` of hqq's own ``save_quantized``: read without unpickling, the same numbers as of its safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, linears, tiny_model
from test_hqq_quanto import hqq
from torch import Tensor

import isobit
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import IsobitError, Unsupported
from isobit.models.batch import Batch
from isobit.models.contents import contents
from isobit.models.planning import plans
from isobit.models.weights import load_model

Modules = dict[str, Any]
FIRST = linears(CONFIG)[0]


def as_said(parts: dict[str, Tensor], early: bool) -> Modules:
    """The parts of a module as hqq pickles them: what is no tensor as it is; in early versions in a dictionary."""
    found: Modules = {name: parts[name] for name in ("W_q", "scale", "zero")}
    meta: Modules = {name: bytes(parts[name].tolist()).decode() for name in ("packing",)}
    meta |= {name: int(parts[name]) for name in ("nbits", "group_size", "axis")}
    meta |= {name: bool(parts[name]) for name in ("view_as_float", "quant_scale", "quant_zero")}
    meta |= {"shape": torch.Size(parts["shape"].tolist()), "unpack_view_dtype": torch.uint8, "bias": None}
    meta["compute_dtype"] = getattr(torch, bytes(parts["compute_dtype"].tolist()).decode().removeprefix("torch."))
    return found | ({"meta": meta} if early else meta)


def modules(early: bool = False) -> tuple[Modules, dict[str, Tensor]]:
    """A model, and the numbers of its linears."""
    state, found, values = tiny_model(torch.float16).state_dict(), {}, {}
    for seed, (name, tensor) in enumerate(state.items()):
        module, _, part = name.rpartition(".")
        if module in linears(CONFIG):
            parts, values[module] = hqq(
                *tensor.shape, bits=4 if seed % 2 else 3, axis=seed % 3 % 2, group=32, seed=seed
            )
            found[module] = as_said(parts, early)
        else:
            found.setdefault(module, {})[part] = tensor
    return found, values


def save(folder: Path, found: Any) -> Path:
    folder.mkdir()
    torch.save(found, folder / "qmodel.pt")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"dtype": "float16"}))
    return folder


@pytest.mark.parametrize("early", [False, True])
def test_every_number_is_read(tmp_path: Path, early: bool) -> None:
    stored, values = modules(early)
    folder = save(tmp_path / "m", stored)
    found = contents(Checkpoint.open(folder))
    for module, numbers in values.items():
        assert torch.equal(read_linear(found.ck, module).weight, numbers), module  # type: ignore[arg-type]
        part = read_linear(found.ck, module, slice(3, 20), slice(5, 40)).weight
        assert torch.equal(part, numbers[3:20, 5:40])  # type: ignore[arg-type]
    _, ((plan,),) = plans(folder, targets=("cpu-avx2",))
    assert plan.scheme == "as stored" and plan.action in ("native", "legalized")
    info = isobit.info(folder)
    assert info.quantization == "hqq" and {use.scheme for use in info.schemes} >= {"hqq, 3 bits", "hqq, 4 bits"}
    isobit.quantize(folder, tmp_path / "out", "int8-w8a16", progress=False, from_quantized=True)
    one, two = (load_model(path).forward(Batch.of([[3, 1, 4]])) for path in (folder, tmp_path / "out"))
    assert float((one - two).norm() / one.norm()) < 0.3


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("early", [False, True])
def test_groups_of_no_size_are_whole_rows_or_columns(tmp_path: Path, axis: int, early: bool) -> None:
    """As hqq 0.2.2 writes them; later versions write the size."""
    stored, _ = modules(early)
    n, k = tiny_model(torch.float16).get_parameter(f"{FIRST}.weight").shape
    parts, numbers = hqq(n, k, bits=8, group=(n, k)[axis], axis=axis)
    module = as_said(parts, early)
    (module["meta"] if early else module)["group_size"] = None
    stored[FIRST] = module
    found = contents(Checkpoint.open(save(tmp_path / "m", stored)))
    assert torch.equal(read_linear(found.ck, FIRST).weight, numbers)  # type: ignore[arg-type]


def test_beside_other_weights_nothing_says_which_are_meant(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", modules()[0])
    tiny_model(torch.float16).save_pretrained(folder)
    with pytest.raises(
        Unsupported, match=r"where there are no other weights(?s:.*)qmodel\.pt lies beside config\.json"
    ):
        load_model(folder)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


BAD: dict[str, tuple[Callable[[Modules], Any], str]] = {
    "no modules": (lambda found: [found], "holds a list, not a dictionary of modules"),
    "a number as module": (lambda found: found | {"lm_head": 3}, "entry 'lm_head' is no module with its parts"),
    "what runs": (lambda found: found | {"lm_head": {"weight": Runs()}}, "refused: .*could run code"),
    "a text without end": (lambda found: found[FIRST].update(packing="x" * 9999), "packing.*is too long"),
    "an empty text": (lambda found: found[FIRST].update(packing=""), "packing.*or empty"),
    "a shape of texts": (lambda found: found[FIRST].update(shape=("1", "2")), "shape.*isobit reads whole numbers"),
    "a huge axis": (lambda found: found[FIRST].update(axis=1 << 70), "axis.*isobit reads whole numbers"),
    "another axis": (lambda found: found[FIRST].update(axis=2), "axis 2, which do not fit"),
    "a part twice": (lambda found: found[FIRST].update(meta={"axis": 1}), "axis.*is given twice"),
    "no shape": (lambda found: found[FIRST].pop("shape"), "shape.*is missing"),
    "scales that are quantized": (lambda found: found[FIRST].update(quant_scale=True), "quant_scale.*is not 0"),
    "another dtype": (lambda found: found[FIRST].update(compute_dtype=torch.float64), "compute_dtype.*isobit reads"),
    "other codes": (lambda found: found[FIRST].update(W_q=torch.zeros(3, 5, dtype=torch.uint8)), "W_q.*holds 3 lines"),
    "a module is missing": (lambda found: found.pop(FIRST), f"{FIRST}.*is missing"),
    "sparse codes": (lambda found: found[FIRST].update(W_q=torch.eye(3).to_sparse()), "W_q.*not a plain dense tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_lies_is_refused_by_name(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stored, _ = modules()
    change, why = BAD[name]
    changed = change(stored)
    folder = save(tmp_path / "m", changed if isinstance(changed, dict | list) and changed and name in (
        "no modules", "a number as module", "what runs") else stored)  # fmt: skip
    with pytest.raises(IsobitError, match=why) as caught:
        load_model(folder)
    assert len(str(caught.value)) < 2000 and "it ran" not in capsys.readouterr().out


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", modules()[0])
    file = folder / "qmodel.pt"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(IsobitError, match=r"qmodel\.pt"):
        load_model(folder)
