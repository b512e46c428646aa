"""What other engines do with a checkpoint of isobit's: rows, and the sentences that `isobit quantize` prints.

The rows hold for the versions in ENGINES. They were made by running the engines on a Llama (benchmarks/interop.py,
whose results a test compares with them), and transformers on tiny models of other families (:data:`RUN`);
docs/interop.md says it in words, and what is known about GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isobit.checkpoint.ctrender import render
from isobit.checkpoint.cttargets import fused_conflicts, is_routed, module_class
from isobit.checkpoint.engine_experts import NOT_RUN, Shapes, experts_there
from isobit.checkpoint.verdicts import DIFFERS, GARBAGE, LOADS, REFUSES, SOME, VERDICTS
from isobit.formats.schemes import Scheme
from isobit.formats.table import element

# Families whose checkpoints an engine was seen to load: tiny random ones, in int8 and, of experts, in int4 and fp8.
RUN: dict[str, frozenset[str]] = {
    "transformers": frozenset(
        "arcee cohere cohere2 cwm deepseek_v2 deepseek_v3 ernie4_5 ernie4_5_moe exaone4 gemma gemma2 gemma3_text glm"
        " glm4 glm4_moe glm4_moe_lite gpt_oss granite granitemoe helium hunyuan_v1_dense hunyuan_v1_moe hyperclovax"
        " llama llama4_text ministral ministral3 mistral mixtral nemotron olmo2 olmo3 olmoe phi3 phimoe qwen2 qwen2_moe"
        " qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2"
        " gemma3 glm4v_moe llama4 mistral3 qwen2_5_vl qwen2_vl qwen3_vl qwen3_vl_moe".split()  # that see
    ),
    "vllm": frozenset(("llama",)),
}
ENGINES = {
    "transformers": "transformers 5.23.0 with compressed-tensors 0.20.0",
    "vllm": "vLLM 0.32.0 on a CPU",
}

Assignments = Mapping[str, Scheme | None]


@dataclass(frozen=True)
class Row:
    """One thing that an engine does not do as isobit does.

    Attributes:
        engine: a key of ENGINES.
        verdict: what becomes of a checkpoint that has this.
        met: whether a module with this scheme is such a case.
        words: what is the matter, with a place for the schemes' names.
        instead: a word of advice.
    """

    engine: str
    verdict: str
    met: Callable[[str, Scheme], bool]
    words: str
    instead: str = ""


def _weights(*elements: str, activations: bool | None = None) -> Callable[[str, Scheme], bool]:
    """Modules whose weights have one of these element formats, with or without rounded activations."""

    def met(module: str, chosen: Scheme) -> bool:
        assert chosen.weights is not None
        rounded = chosen.activations is not None
        plain = chosen.weights.scale is None
        return plain and chosen.weights.element in elements and (activations is None or activations == rounded)

    return met


def _embedding(module: str, chosen: Scheme) -> bool:
    return module_class(module) == "Embedding"


def _unknown_float(module: str, chosen: Scheme) -> bool:
    row = element(chosen.weights.element) if chosen.weights else None
    return row is not None and row.kind == "float" and row.name != "e4m3fn" and not _few_bit_scales(module, chosen)


def _few_bit_scales(module: str, chosen: Scheme) -> bool:
    return chosen.weights is not None and chosen.weights.scale is not None


def _asymmetric(module: str, chosen: Scheme) -> bool:
    return chosen.weights is not None and not chosen.weights.symmetric


def _static(module: str, chosen: Scheme) -> bool:
    return chosen.activations is not None and not chosen.activations.dynamic


def _blocks(module: str, chosen: Scheme) -> bool:
    return chosen.weights is not None and chosen.weights.granularity == "block"


ROWS = (
    Row("transformers", REFUSES, _unknown_float, "{schemes} is no format of compressed-tensors", "isobit runs it"),
    Row(
        "transformers",
        REFUSES,
        _asymmetric,
        "zero points ({schemes}), in checkpoints of compressed-tensors itself too",
        "transformers 5.19 with compressed-tensors 0.17 loads them, and 5.23 with dequantize=True",
    ),
    Row("transformers", REFUSES, _embedding, "it runs no quantized embedding ({schemes})", "keep embed_tokens"),
    Row("vllm", REFUSES, _unknown_float, "{schemes} is no format of compressed-tensors", "isobit runs it"),
    Row("vllm", REFUSES, _embedding, "it looks for no scales of an embedding ({schemes})", "keep embed_tokens"),
    Row("vllm", REFUSES, _static, "its operator for {schemes} fails there", "use fp8"),
    Row("vllm", REFUSES, _few_bit_scales, "it has no kernel for {schemes} there", "use int4 or fp8"),
    Row("vllm", REFUSES, _blocks, "its kernel for {schemes} needs AMX instructions", "use fp8"),
    Row("vllm", REFUSES, _weights("e4m3fn", activations=False), "it has no kernel for {schemes} there", "use fp8"),
    Row("vllm", REFUSES, _weights("int8", activations=False), "it has no kernel for {schemes} there", "use int8"),
    Row("vllm", REFUSES, _weights("int2", "int3"), "it has no kernel for {schemes} there", "use int4"),
    Row(
        "vllm",
        DIFFERS,
        _weights("int4", activations=True),
        "it does not round the activations of {schemes}: its answers are those of int4",
    ),
)


@dataclass(frozen=True)
class Answer:
    """What an engine does with a checkpoint.

    Attributes:
        engine: a key of ENGINES.
        verdict: one of VERDICTS, or SOME.
        reasons: a sentence for each thing that it does not do as isobit does.
    """

    engine: str
    verdict: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """One line for people."""
        name = ENGINES[self.engine]
        if self.verdict == SOME:
            return f"{name}: {'; '.join(self.reasons)} (docs/interop.md)"
        if self.verdict == LOADS:
            return f"{name} loads this checkpoint"
        says = {DIFFERS: "loads it, but", REFUSES: "refuses it:", GARBAGE: "loads it and can compute garbage:"}
        return f"{name} {says[self.verdict]} {'; '.join(self.reasons)} (docs/interop.md)"


_MIXTURES = {"transformers": NOT_RUN, "vllm": "mixtures of experts were not run there"}


def answers(
    assigned: Assignments,
    family: str = "llama",
    *,
    quantization: Mapping[str, Any] | None = None,
    shapes: Shapes | None = None,
) -> tuple[Answer, ...]:
    """What each engine does with a checkpoint whose modules are quantized as ``assigned`` says.

    Args:
        assigned: every linear, lm_head, router and embedding by module name, with its scheme; None (or a scheme that
            does not quantize) for those that are kept.
        family: of the model: the file in ``models/archs`` that reads it, or ``model_type`` of one that sees.
        quantization: the ``quantization_config`` that is written; None for that of a plain decoder.
        shapes: rows and columns of modules, where they are known.
    """
    written = render(assigned) if quantization is None else quantization
    return tuple(_answer(engine, assigned, family, written, shapes or {}) for engine in ENGINES)


def _answer(engine: str, assigned: Assignments, family: str, written: Mapping[str, Any], shapes: Shapes) -> Answer:
    quantized = {module: chosen for module, chosen in assigned.items() if chosen is not None and chosen.weights}
    answer = _of_schemes(engine, assigned, quantized)
    if any(map(is_routed, quantized)) and (engine == "vllm" or family not in RUN[engine]):
        return answer if engine != "vllm" and answer.verdict == REFUSES else Answer(engine, SOME, (_MIXTURES[engine],))
    if quantized and answer.verdict == LOADS and family not in RUN[engine]:
        return Answer(engine, SOME, (f"loads such checkpoints of Llama; none of {family} was run",))
    if quantized and engine == "transformers" and family in RUN[engine] and answer.verdict != REFUSES:
        return _with_experts(answer, dict.fromkeys(experts_there(family, assigned, written, shapes)))
    return answer


def _with_experts(answer: Answer, found: Iterable[tuple[str, str]]) -> Answer:
    """The worst of what schemes and experts bring; what was not run is worse than what loads."""
    order = (LOADS, DIFFERS, SOME, GARBAGE, REFUSES)
    told = [*((answer.verdict, words) for words in answer.reasons), *found]
    worst = max((verdict for verdict, _ in told), key=order.index, default=LOADS)
    return Answer(answer.engine, worst, tuple(words for verdict, words in told if verdict == worst))


def _of_schemes(engine: str, assigned: Assignments, quantized: Mapping[str, Scheme]) -> Answer:
    found: list[tuple[str, str]] = []
    for row in (row for row in ROWS if row.engine == engine):
        names = dict.fromkeys(chosen.name for module, chosen in quantized.items() if row.met(module, chosen))
        if names:
            advice = f" ({row.instead})" if row.instead else ""
            found.append((row.verdict, row.words.format(schemes=", ".join(names)) + advice))
    if engine == "vllm":
        found += _mixed(assigned)
    worst = max((verdict for verdict, _ in found), key=VERDICTS.index, default=LOADS)
    return Answer(engine, worst, tuple(words for verdict, words in found if verdict == worst))


def _mixed(assigned: Assignments) -> Iterator[tuple[str, str]]:
    """What vLLM makes of layers that it fuses but that are quantized differently."""
    names = {module: chosen.name if chosen and chosen.weights else None for module, chosen in assigned.items()}
    for conflict in fused_conflicts(names):
        kept = any(name is None for _, name in conflict.schemes)
        parts = ", ".join(part for part, _ in conflict.schemes)
        yield REFUSES if kept else GARBAGE, f"{parts} are one matrix there and need one scheme"
