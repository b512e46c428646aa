"""What plans advise where formats lose much, are native for many tokens alone, or do not run at all."""

from __future__ import annotations

from typing import Any

import pytest

from isobit.legalize import text
from isobit.legalize.advice import in_short, recommendation
from isobit.models.planning import plans

SIZES: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTRAL = SIZES | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 2}
LLAMA = SIZES | {"architectures": ["LlamaForCausalLM"]}
ODD = LLAMA | {"hidden_size": 2560, "intermediate_size": 10240, "num_key_value_heads": 32}  # heads of 80


def test_an_overview_says_why_nothing_runs() -> None:
    _, found = plans(ODD, targets=["RTX 4090", "MI300X", "cpu-avx2"], scheme_names=["int4"], kv="mxfp4")
    for one in found[:2]:
        assert "not of 80" in in_short(one) and "above" not in in_short(one)
    assert any(line.startswith("Why something is refused") for line in text.overview(found))
    _, found = plans(LLAMA, targets=["V100 32GB"], scheme_names=["w4a8"])
    assert "no GPU kernel multiplies int4 weights by rounded activations" in in_short(found[0])
    assert "above" in recommendation(found[0])  # where the table has them


def test_a_native_kernel_that_a_shape_does_not_suit_is_told_of_by_the_shape() -> None:
    narrow = LLAMA | {"hidden_size": 2880, "num_attention_heads": 36, "num_key_value_heads": 36}
    _, found = plans(narrow, targets=["MI355X"], scheme_names=["mxfp4"])
    assert any("K = 2880 is not a multiple of 128" in reason for reason in found[0][0].reasons)


def test_native_for_many_tokens_alone_says_from_how_many() -> None:
    _, found = plans(MIXTRAL, targets=["B200"], scheme_names=["mxfp4", "int8"])
    rows = {plan.scheme: text.as_data(plan) for plan in found[0]}
    assert "from 17 tokens in a call on" in rows["mxfp4"]["how"] and "from" not in rows["int8"]["how"]
    assert "natively from 17 tokens" in recommendation(found[0][:1])


def test_what_loses_much_is_not_said_to_give_the_model_exactly() -> None:
    _, found = plans(MIXTRAL, targets=["H200"], scheme_names=["fp8", "mxfp4", "mxfp8", "nvfp4"], batch=8)
    said = recommendation(found[0])
    assert "mxfp4 and nvfp4 must be widened in registers here, which costs speed in prompts; each loses a lot" in said
    assert "mxfp8 gives exactly the model that was evaluated, too, but" in said
    speeds = {plan.scheme: plan.cost.decode for plan in found[0] if plan.cost}
    assert speeds["mxfp4"] > speeds["fp8"]
    _, found = plans(MIXTRAL, targets=["MI355X"], scheme_names=["fp8", "mxfp4"])
    assert "mxfp4 runs natively, too, and faster" in recommendation(found[0])


def test_what_lacks_little_is_told_of_fewer_bits() -> None:
    _, found = plans(MIXTRAL, targets=["RTX 4090"], scheme_names=["int4"])
    assert not found[0][0].memory.fits and "Use int3, which may fit (it loses a lot" in recommendation(found[0])
    _, found = plans(MIXTRAL, targets=["RTX 4090"], scheme_names=["int2"], memory=8 << 30)
    assert "may fit" not in recommendation(found[0])


def test_notes_name_their_schemes_and_figures_have_few_digits() -> None:
    _, found = plans(LLAMA, targets=["H200"], scheme_names=["fp8", "nvfp4"], kv="nvfp4")
    lines = "\n".join(text.describe(found[0]))
    assert "  - fp8: from 256 tokens in a call on" in lines
    assert "  - linears that are not quantized: from 17 tokens in a call on" in lines
    assert "but no kernel of isobit's does that" not in lines  # as f16 beside bf16 gains nothing
    assert text._kib(34.7891 * 1024) == "34.79" and text._kib(136) == "0.1328" and text._kib(1234 * 1024) == "1234"


def test_what_does_not_fit_is_not_advised() -> None:
    large = LLAMA | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    }
    _, found = plans(large, targets=["MI210"])
    too_large = [plan.scheme for plan in found[0] if plan.action == "legalized" and not plan.memory.fits]
    assert "fp8" in too_large and "fp8" not in recommendation(found[0]).partition("Not here")[0]


def test_what_is_allowed_can_be_raised() -> None:
    _, found = plans(LLAMA, targets=["H200"], scheme_names=["fp8", "int4"], memory=3 << 30)
    said = recommendation(found[0])
    assert "Nothing fits of the 3.0 GiB allowed: even int4 lacks" in said and "Allow more with --memory" in said
    assert "such cards" not in said
    _, found = plans(LLAMA, targets=["H200"], scheme_names=["fp8"], memory=20 << 30)
    assert in_short(found[0]).endswith("GiB free of the 20.0 GiB allowed")
    _, found = plans(LLAMA, targets=["H200"], scheme_names=["fp8"])
    assert in_short(found[0]).endswith("GiB free")


@pytest.mark.parametrize("hidden", [2080, 2064, 2056])
def test_the_nearest_scheme_is_used_in_groups_that_divide(hidden: int) -> None:
    """As the table has int4 beside it, which is legalized in groups that do."""
    odd = LLAMA | {"hidden_size": hidden, "intermediate_size": hidden, "head_dim": 64}
    _, ((first, int4),) = plans(odd, targets=["RTX A6000"], scheme_names=["w4a8", "int4"])
    assert first.action == "refused" and int4.action == "legalized" and first.instead == "int4"
    _, ((mx,),) = plans(odd | {"hidden_size": 2052}, targets=["RTX A6000"], scheme_names=["mxfp4-w16"])
    assert "for example int8-w8a16" in mx.reasons[0]


def test_only_what_is_widened_in_registers_is_said_to_be() -> None:
    _, (cpu,) = plans(LLAMA, targets=["cpu-avx2"], scheme_names=["int8", "bf16"])
    assert "it runs exactly, leaves" in recommendation(cpu[:1])
    assert "it runs exactly, widened in registers, leaves" in recommendation(cpu[1:])
