"""What a layer on GPUs refuses and launches; what it computes, test_layer_interpreter.py and tests/gpu say."""

from __future__ import annotations

from dataclasses import replace

import layer_oracle as oracle
import pytest
import torch

pytest.importorskip("triton", reason="the GPU binding needs Triton: pip install triton")

from isobit.errors import FormatError
from isobit.formats.caches import CACHE_FORMATS
from isobit.kernels.gpu import attention_alike_tiles as alike_tiles
from isobit.kernels.gpu import layer_tiles as tiles
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.layer_tiles import AttentionShape
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import MANY
from isobit.targets.table import TARGETS

SPEC = AttentionSpec(4, 2, 16)
EACH = AttentionSpec(4, 4, 16)  # every query head with keys of its own
GIVEN = oracle.batch(SPEC, [(1, 300), (20, 20)], 64, torch.float16, 1)
WRONG = {
    "queries of an attention": replace(GIVEN, q=GIVEN.q[:, :32]),
    "cosines of an attention": replace(GIVEN, cos=GIVEN.cos[:3]),
    "cached values of an attention": replace(GIVEN, values=GIVEN.values[:, :1]),
    "of one dtype": replace(GIVEN, keys=GIVEN.keys.float()),
    "float32 scales": replace(oracle.batch(SPEC, [(1, 20)], 64, torch.float16, 1, kv="int8"), value_scales=None),
    "or torch.uint8": replace(
        oracle.batch(SPEC, [(1, 20)], 64, torch.float16, 1, kv="int8"), form=CACHE_FORMATS["fp8-e5m2"]
    ),
    "the cache of a layer is contiguous": replace(
        GIVEN, keys=GIVEN.keys.transpose(1, 2).contiguous().transpose(1, 2), values=GIVEN.values
    ),
    "are int32": replace(GIVEN, sequences=replace(GIVEN.sequences, lengths=GIVEN.sequences.lengths.long())),
    "is contiguous": replace(
        GIVEN, sequences=replace(GIVEN.sequences, table=GIVEN.sequences.table.t().contiguous().t())
    ),
    "in bfloat16": replace(
        GIVEN, **{name: getattr(GIVEN, name).double() for name in ("q", "k", "v", "keys", "values")}
    ),
}  # fmt: skip


def layer(target: str = "sm_90") -> tuple[GpuLayer, Recorder]:
    recorder = Recorder()
    return GpuLayer(Machine.imagined(TARGETS[target], recorder=recorder), Workspace(torch.device("cpu"))), recorder


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_together_is_refused(message: str) -> None:
    given, (kernels, recorder) = WRONG[message], layer()
    if message == "in bfloat16":
        message = "bfloat16, float32, not in float64"
    with pytest.raises(FormatError, match=message):
        kernels.attention(SPEC, *given.arguments)  # type: ignore[arg-type]
    assert not recorder.requests


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, scale=-1.0), "positive"),
        (replace(SPEC, softcap=0.0), "positive"),
        (AttentionSpec(4, 2, 15), "even heads of up to 256"),
        (AttentionSpec(4, 2, 512), "even heads of up to 256"),
    ],
)
def test_attentions_that_no_kernel_computes_are_refused(spec: AttentionSpec, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        layer()[0].attention(spec, *GIVEN.arguments)  # type: ignore[arg-type]


def test_rows_that_do_not_fit_are_refused() -> None:
    kernels, x = layer()[0], torch.zeros(3, 32, dtype=torch.float16)
    with pytest.raises(FormatError, match=r"float32 \[32\]"):
        kernels.norm(x, torch.ones(32).half(), 1e-5)
    with pytest.raises(FormatError, match="what is added"):
        kernels.add_norm(x, x.float(), torch.ones(32), 1e-5)
    with pytest.raises(FormatError, match="silu, gelu_tanh, gelu, relu2, not relu$"):
        kernels.gate(x, x, "relu")
    with pytest.raises(FormatError, match="does not fit"):
        kernels.gate(x, x[:2])


def test_no_tokens_launch_nothing() -> None:
    kernels, recorder = layer()
    x = torch.zeros(0, 32, dtype=torch.float16)
    assert kernels.add_norm(x, x, torch.ones(32), 1e-5)[1].shape == (0, 32)
    assert kernels.gate(x, x).shape == (0, 32)
    assert not recorder.requests


def launched(
    new: list[tuple[int, int]],
    most: int | None = None,
    *,
    alike: bool = False,
    target: str = "sm_90",
    spec: AttentionSpec = SPEC,
    least: int = 1,
) -> set[str]:
    recorder = Recorder()
    kernels = GpuLayer(
        Machine.imagined(TARGETS[target], recorder=recorder), Workspace(torch.device("cpu")), alike=alike
    )
    given = oracle.batch(spec, new, 64, torch.float16, 1)
    sequences = replace(given.sequences, most=most or given.sequences.most, least_new=least)
    kernels.attention(spec, *replace(given, sequences=sequences).arguments)  # type: ignore[arg-type]
    return {request.entry.partition(":")[2].removeprefix("attention_") for request in recorder.requests.values()}


def test_what_is_launched_follows_from_what_the_host_knows() -> None:
    assert launched([(1, 40)], spec=EACH) == {"one"}
    assert launched([(1, 40), (1, 0), (1, tiles.ONE_PART)], spec=EACH) == {"one"}
    assert launched([(1, 40)], tiles.ONE_PART + 1, spec=EACH) == {"one"}, "who is last merges the parts"
    assert launched([(1, tiles.ONE_PART + 1), (2, 10)], spec=EACH) == {"rope_append", "one", "many"}
    assert launched([(50, 50)], spec=EACH) == launched([(2, 30)], spec=EACH) == {"rope_append", "many"}
    assert launched([(50, 50), (1, 9)], spec=EACH) == {"rope_append", "one", "many"}


def test_what_has_nothing_to_do_is_not_launched() -> None:
    """Where the host knows that no sequence is one of few; what it does not know is launched."""
    prompts = [(50, 900), (9, 9), (12, 0)]
    for alike, few in ((False, {"few", "merge"}), (True, {"alike_few", "alike_merge"})):
        others = {"rope_append", "alike_many" if alike else "many"}
        assert launched(prompts, alike=alike) == others | few
        assert launched(prompts, alike=alike, least=MANY) == others
    assert launched(prompts, spec=EACH) - launched(prompts, spec=EACH, least=MANY) == {"one"}
    for heads in (1, 2, 4, 8, 16, 32):
        shape = AttentionShape("fp16", heads, 1, 64, block=64, columns=8)
        assert max(shape.few, replace(shape, fused=True).few) < MANY


def test_batch_invariant_attention_is_split_by_position_where_its_bits_were_compared() -> None:
    assert launched([(1, 40)], alike=True) == launched([(1, 40)], alike=True, spec=EACH) == {"rope_append", "alike_few"}
    assert launched([(1, 300)], alike=True) == {"rope_append", "alike_few", "alike_merge"}
    assert launched([(50, 50)], alike=True) == {"rope_append", "alike_many"}
    assert launched([(1, 40), (50, 50)], alike=True) == {"rope_append", "alike_few", "alike_many"}
    for name in ("sm_75", "sm_100", "gfx942"):
        assert launched([(1, 300)], alike=True, target=name) == {"rope_append", "many"}, name


def test_parts_by_position() -> None:
    """As ``part_size`` has them: no position decides anything before it, and even long sequences have few."""
    size = alike_tiles.PART
    assert [alike_tiles.parts_of(size * n) for n in (0, 1, 32, 33, 36, 37, 128, 144, 512, 576)] == [
        1, 1, 32, 33, 33, 34, 56, 57, 80, 81
    ]  # fmt: skip
    assert alike_tiles.parts_of(1 << 20) == 80 + ((1 << 20) - 512 * size) // (64 * size)
    assert all(alike_tiles.parts_of(n) <= alike_tiles.parts_of(n + 1) for n in range(0, 200000, 97))


@pytest.mark.parametrize(
    ("spec", "rope"),
    [
        (SPEC, "rope_append"),  # queries that share keys are worth a matrix unit, but those of one sequence alone
        (replace(EACH, rope_dims=8), "rope_append_any"),
        (replace(EACH, interleaved=True), "rope_append_any"),
    ],
)
def test_what_one_kernel_does_not_do_is_launched_apart(spec: AttentionSpec, rope: str) -> None:
    some = [(1, 40), (1, 9)] if spec is SPEC else [(1, 40)]
    assert launched(some, spec=spec) == {rope, "few"}
    assert launched(some, tiles.ONE_PART + 1, spec=spec) == {rope, "few", "merge"}
    assert launched([(50, 50), (1, 9)], spec=spec) == {rope, "few", "many"}


@pytest.mark.parametrize("spec", [SPEC, EACH])
def test_the_workspace_is_sized_before_it_is_used(spec: AttentionSpec) -> None:
    kernels, _ = layer()
    given = oracle.batch(spec, [(1, 300), (1, 700)], 64, torch.float16, 1)
    kernels.reserve(spec, 8, 1, 4096)
    kernels.attention(spec, *given.arguments)  # type: ignore[arg-type]
    held, parts = kernels.workspace.nbytes, 8 * 4 * tiles.parts_of(4096)  # of all query heads; and a counter of each
    assert held == 4 * parts * (16 + 2) + (4 * 8 * 4 if spec is EACH else 0)
    for most in (4096, 1 << 20):
        longest = replace(given, sequences=replace(given.sequences, most=most))
        kernels.attention(spec, *longest.arguments)  # type: ignore[arg-type]
    assert 4 * 2 * 4 * tiles.MOST_PARTS * 18 <= held == kernels.workspace.nbytes


def test_parts_and_programs() -> None:
    assert [tiles.parts_of(most) for most in (0, 1, 256, 512, 513, 8192, 1 << 30)] == [1, 1, 1, 1, 5, 32, 32]
    assert tiles.programs_of(32, 32, 132) == 32, "one sequence: a program for each part"
    assert tiles.programs_of(32, 2048, 132) == 1, "many: a program for several"
