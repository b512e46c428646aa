"""Codes under few-bit scales (MX, NVFP4) in Triton's interpreter: run as a program it prints one result a line.

The interpreter multiplies bfloat16 wrongly, so what would be bfloat16 is float32 here, and it takes the e4m3 scales of
a block-scaled product for powers of two, which is mended here.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from micro_oracle import FLOATS, GENERATOR, KERNELS, agree, entering, inputs, over_of, weight
from triton.runtime import interpreter

from isobit import quantize
from isobit.formats import codec
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor, stacked
from isobit.formats.scales import POWERS, UNDER_ONE
from isobit.formats.schemes import scheme
from isobit.formats.table import element
from isobit.kernels import backends, mixtures
from isobit.kernels.gpu import micro_rounding
from isobit.kernels.gpu import mixture as experts
from isobit.kernels.gpu.bind import BoundLinear
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.micro_rounding import MicroRounding
from isobit.kernels.gpu.rows import variant
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.grouped import Grouped, Mixture, Routes
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.targets.table import target

micro_rounding._VALUES["*bf16"] = torch.float32
_POWERS_OF_TWO = interpreter._dot_scaled_scale_to_f32


def _scales(handle, compute):  # type: ignore[no-untyped-def]
    if handle.dtype.is_int():
        return _POWERS_OF_TWO(handle, compute)
    return codec.decode(torch.from_numpy(handle.data.view(np.uint8).copy()), "e4m3fn").numpy()


interpreter._dot_scaled_scale_to_f32 = _scales


# ---------------------------------------------------------------------- rounding


def roundings(dtypes: tuple[torch.dtype, ...] = FLOATS, overs: int = 4) -> Iterator[tuple[str, float]]:
    """Of every kernel that asks for a rounding, by reciprocals and by divisions, under several numbers above scales."""
    for name, kernels in KERNELS.items():
        acts = scheme(name).activations
        assert acts is not None
        for over in (700.0, 0.037, 3.3e-20, 1e6)[:overs] if acts.calibrated else (None,):
            above = None if over is None else torch.tensor([over])
            x = inputs(acts, above)
            for kernel in kernels:
                for lowering in ("sm_120", "gfx950"):
                    made = MicroRounding(acts, above, variant(kernel), 256, Machine.imagined(target(lowering)))
                    for dtype in dtypes:
                        right = agree(made, x.to(dtype), acts, above)
                        yield f"rounding {kernel} {over} {lowering} {dtype}", 0.0 if right else 1.0


# ---------------------------------------------------------------------- linears


LINEARS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "mxfp4": ("mxfp4", "mxfp4", ("sm_86", "sm_120", "gfx950")),
    "mxfp8": ("mxfp8", "mxfp8", ("sm_86", "sm_100")),
    "nvfp4": ("nvfp4", "nvfp4", ("sm_86", "sm_120", "sm_75")),
    "mxfp4 by mxfp8": ("mxfp4", "mxfp8", ("sm_86",)),
}


def linears(shapes: tuple[tuple[int, int], ...] = ((5, 256), (70, 384), (33, 192))) -> Iterator[tuple[str, float]]:
    """One token and several, K of whole steps of each size; q, k and v joined under numbers of their own."""
    for name, (weights, activations, lowerings) in LINEARS.items():
        spec, acts = scheme(weights).weights, scheme(activations).activations
        assert spec is not None and acts is not None
        over = over_of(acts)
        for n, k in shapes:
            held = weight(spec, n, k)
            if n == 70 and held.over is not None:
                held = stacked([held.rows(slice(0, 30)), replace(held.rows(slice(30, 70)), over=torch.tensor([0.2]))])
            bias = torch.randn(n, generator=GENERATOR)
            for lowering in lowerings:
                bound = backends.bind(
                    held, acts, over, bias, device="cuda", target=target(lowering), out_dtype=torch.float32
                )
                run = bound.run
                assert isinstance(run, BoundLinear) and run.weight.nbytes == held.nbytes  # type: ignore[union-attr]
                for tokens in (1, 18):
                    x = torch.randn(tokens, k, generator=GENERATOR).half()
                    y64 = entering(x, acts, over) @ held.dequantize().double().T + bias.double()
                    row = run.variant(tokens, torch.float16)
                    error = float((run(x).double() - y64).norm() / y64.norm())
                    yield f"linear {name} {lowering} {row.name if row else ''} {tokens}x{n}x{k}", error


def signs() -> Iterator[tuple[str, float]]:
    """Scales with signs, which units do not read, stay with kernels that do; a NaN makes its own token NaN."""
    spec, acts = scheme("nvfp4").weights, scheme("nvfp4").activations
    assert spec is not None and acts is not None
    held, over = weight(spec, 33, 256), torch.tensor([700.0])
    x = torch.randn(18, 256, generator=GENERATOR).half()
    for name, scale in (("plain", held.scale), ("signed", held.scale | (torch.arange(16) % 2 * 0x80).to(torch.uint8))):
        weights = replace(held, scale=scale)
        run = backends.bind(
            weights, acts, over, None, device="cuda", target=target("sm_120"), out_dtype=torch.float32
        ).run
        y64 = entering(x, acts, over) @ weights.dequantize().double().T
        row = run.variant(18, torch.float16).name  # type: ignore[attr-defined]
        yield f"linear {name} signs {row}", float((run(x).double() - y64).norm() / y64.norm())
        for tokens in (3, 18):
            bad = x[:tokens].clone()
            bad[1, 70] = torch.inf
            found = run(bad)
            right = bool(found[1].isnan().all()) and torch.equal(found[0], run(x[:tokens])[0])
            yield f"codes infinity {name} {tokens}", float(not right)


def codes() -> Iterator[tuple[str, float]]:
    """Every code under every scale, a scale a row, in each place of a unit; those beyond float32 left out."""
    for name, stored, kernel, first, last in (
        ("mxfp4", POWERS, "few", 16, 250), ("mxfp8", POWERS, "few", 24, 240), ("nvfp4", UNDER_ONE, "few", 0, 126),
        ("mxfp4", POWERS, "many", 16, 250), ("nvfp4", UNDER_ONE, "many", 0, 126),
    ):  # fmt: skip
        spec, acts = scheme(name).weights, scheme(name).activations
        assert spec is not None and acts is not None and spec.scale == stored
        row, n = element(spec.element), last - first + 1
        all_codes = torch.tensor([c for c, v in zip(row.codes, row.values, strict=True) if abs(v) < 1e300])
        column = all_codes[(torch.arange(256) * 37 + 11 * torch.arange(256) // 16) % len(all_codes)].to(torch.uint8)
        matrix = column.expand(n, 256).contiguous()
        scale = torch.arange(first, last + 1, dtype=torch.uint8)[:, None].repeat(1, 256 // (spec.group or 1))
        over = torch.ones(1) if spec.scale.over else None
        held = QTensor(spec, (n, 256), pack(matrix, row) if row.bits < 8 else matrix, scale, over=over)
        lowering = "sm_120" if kernel == "many" else "sm_86"
        run = backends.bind(held, acts, over, None, device="cuda", target=target(lowering), out_dtype=torch.float32).run
        x, step = torch.eye(256), 16 if kernel == "few" else 256  # each token sees one weight of each row
        found = torch.cat([run(x[at : at + step]) for at in range(0, 256, step)])
        wanted = held.dequantize().T * entering(x, acts, over).sum(-1, keepdim=True).float()
        yield f"codes {name} {kernel} {lowering}", float(not torch.equal(found, wanted))


# ---------------------------------------------------------------------- experts


def tall(name: str, rows: int, columns: int) -> Grouped:
    """Three experts of one role, those of NVFP4 under numbers of their own."""
    spec, acts = scheme(name).weights, scheme(name).activations
    assert spec is not None and acts is not None
    each = [weight(spec, rows, columns) for _ in range(3)]
    if spec.scale is not None and spec.scale.over:
        each = [replace(one, over=torch.tensor([2.0 + number])) for number, one in enumerate(each)]
    return Grouped(stacked(each), 3, rows, rows, None, acts, over_of(acts))


def mixed() -> Iterator[tuple[str, float]]:
    """Each role against float64, and whole mixtures bound as models bind them."""
    from interpreter_experts import one

    ids = {"one token": torch.tensor([[2, 0]]), "many": torch.tensor([[0, 1]] * 20 + [[1, 2]] * 30)}
    for name in KERNELS:
        for lowering in ("sm_86", "sm_120"):
            machine, part = Machine.imagined(target(lowering)), tall(name, 70, 256)
            assert part.activations is not None
            bound = experts._Experts(part, machine, False)
            for case, chosen in ids.items():
                for share in (1, 2):
                    found, row, x = one(bound, machine, chosen, share)
                    given = entering(x, part.activations, part.input_scale)
                    y64 = torch.stack([
                        part.expert(expert).dequantize().double() @ given[pair // share]  # type: ignore[union-attr]
                        for pair, expert in enumerate(chosen.flatten().tolist())
                    ])  # fmt: skip
                    error = float((found.double() - y64).norm() / y64.norm())
                    yield f"experts {name} {lowering} {case} {share} {row}", error
        whole = Mixture(tall(name, 64, 256), tall(name, 64, 256), tall(name, 256, 64))
        run = mixtures.bind(whole, device="cuda", machine=Machine.imagined(target("sm_86")),
                            workspace=Workspace(torch.device("cpu"))).run  # fmt: skip
        assert isinstance(run, experts.GpuMixture) and len(run.inner) == 1
        law = mixtures.bind(whole, device="cpu").run
        x = 1e-3 * torch.randn(3, 256, generator=GENERATOR)
        routes = Routes(torch.tensor([[0, 2], [1, 0], [2, 1]]).int(), torch.rand(3, 2, generator=GENERATOR))
        wanted = law(x.half().float(), routes).double()
        yield f"whole {name}", float((run(x.half(), routes).double() - wanted).norm() / wanted.norm())


# ---------------------------------------------------------------------- models


def models() -> Iterator[tuple[str, float]]:
    """Whole models in float16, as far from float32 as the reference in float16 is: steps of codes flip in both."""
    from families import make_model, save
    from running import run

    ids = torch.randint(0, 320, (1, 20), generator=GENERATOR)

    def logits(model: Decoder) -> torch.Tensor:
        cache = model.new_cache(1, 20)
        with torch.inference_mode():
            return torch.cat([run(model, ids[:, :-1], cache), run(model, ids[:, -1:], cache)], 1).float()

    for family, name in (("LlamaForCausalLM", "mxfp4"), ("MixtralForCausalLM", "mxfp8")):
        with tempfile.TemporaryDirectory() as folder:
            source = save(make_model(family).half(), Path(folder, "source"))
            quantize(source, Path(folder, name), name)
            wanted = logits(load_model(Path(folder, name)))
            apart = float((logits(load_model(Path(folder, name), dtype="float16")) - wanted).norm())
            found = load_model(Path(folder, name), device="cuda", lowering="sm_86", dtype="float16")
            yield f"model {family} {name}", float((logits(found) - wanted).norm()) / apart


def thin() -> Iterator[tuple[str, float]]:
    """A slice of the first two."""
    yield from roundings((torch.bfloat16,), 1)
    yield from linears(((5, 256),))


if __name__ == "__main__":
    PARTS = {part.__name__: part for part in (roundings, linears, signs, codes, mixed, models, thin)}
    for part in sys.argv[1:]:
        for result in PARTS[part]():
            print(json.dumps(result), flush=True)
