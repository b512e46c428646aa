"""Families that isobit does not run and people have: what is in the way, and what runs them. A row each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

ALL = "vLLM and transformers run it in bf16, llama.cpp in few bits"
BOTH = "vLLM and transformers run it in bf16"


@dataclass(frozen=True)
class Other:
    """A family that is refused by name.

    Attributes:
        called: by people.
        names: its architectures in ``config.json``.
        has: what isobit does not implement.
        runs: what runs it.
        nearest: the architecture that isobit runs and that is nearest to it; None: there is none.
    """

    called: str
    names: tuple[str, ...]
    has: str
    runs: str = ALL
    nearest: str | None = None


_DELTA = "layers with a recurrent state (a gated delta rule behind short convolutions)"
_MAMBA = "layers with a recurrent state (Mamba)"
_MAMBA2 = "layers with a recurrent state (Mamba 2)"
_LIGHTNING = "layers with a recurrent state (lightning attention, which is linear in the tokens)"
_SPARSE = "attention to tokens that an indexer chooses"

OTHERS: tuple[Other, ...] = (
    Other("Qwen3-Next", ("Qwen3NextForCausalLM",), _DELTA, nearest="Qwen3MoeForCausalLM"),
    Other("Qwen3.5", ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"), _DELTA, nearest="Qwen3ForCausalLM"),
    Other("Qwen3.5 with experts", ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"), _DELTA,
          nearest="Qwen3MoeForCausalLM"),
    Other("OLMo hybrid", ("OlmoHybridForCausalLM",), _DELTA, BOTH, "Olmo3ForCausalLM"),
    Other("Kimi-Linear", ("KimiLinearForCausalLM",), "layers with a recurrent state (Kimi's delta attention)", BOTH,
          "DeepseekV3ForCausalLM"),
    Other("Nemotron-H", ("NemotronHForCausalLM", "NemotronHPuzzleForCausalLM"), _MAMBA2, nearest="LlamaForCausalLM"),
    Other("Falcon-H1", ("FalconH1ForCausalLM",), f"{_MAMBA2} beside attention", nearest="LlamaForCausalLM"),
    Other("Falcon Mamba", ("FalconMambaForCausalLM",), _MAMBA, nearest="LlamaForCausalLM"),
    Other("Mamba", ("MambaForCausalLM",), _MAMBA),
    Other("Mamba 2", ("Mamba2ForCausalLM",), _MAMBA2),
    Other("Codestral Mamba", ("MambaLMHeadModel",), _MAMBA2, nearest="MistralForCausalLM"),
    Other("Jamba", ("JambaForCausalLM",), _MAMBA, nearest="MixtralForCausalLM"),
    Other("Bamba", ("BambaForCausalLM",), _MAMBA2, nearest="LlamaForCausalLM"),
    Other("Granite 4 (hybrid)", ("GraniteMoeHybridForCausalLM",), _MAMBA2, nearest="GraniteForCausalLM"),
    Other("Zamba", ("ZambaForCausalLM",), _MAMBA, BOTH),
    Other("Zamba 2", ("Zamba2ForCausalLM",), _MAMBA2, BOTH),
    Other("LFM2", ("Lfm2ForCausalLM",), "layers that are short convolutions with a state", nearest="Qwen3ForCausalLM"),
    Other("LFM2 with experts", ("Lfm2MoeForCausalLM",), "layers that are short convolutions with a state",
          nearest="Qwen3MoeForCausalLM"),
    Other("MiniMax-Text-01 and M1", ("MiniMaxForCausalLM", "MiniMaxM1ForCausalLM", "MiniMaxText01ForCausalLM"),
          _LIGHTNING, BOTH, "MiniMaxM2ForCausalLM"),
    Other("Ring-linear and Ling 2.5", ("BailingMoeLinearForCausalLM", "BailingMoeLinearV2ForCausalLM",
          "BailingMoeV2_5ForCausalLM", "BailingHybridForCausalLM"), _LIGHTNING, "SGLang and vLLM run it in bf16"),
    Other("RWKV", ("RwkvForCausalLM", "RWKV5ForCausalLM", "Rwkv5ForCausalLM", "Rwkv6ForCausalLM", "RWKV7ForCausalLM"),
          "a recurrent state in place of attention", "llama.cpp runs it, also in few bits"),
    Other("RecurrentGemma", ("RecurrentGemmaForCausalLM",), "layers with a recurrent state (RG-LRU)",
          "transformers runs it in bf16", "Gemma2ForCausalLM"),
    Other("xLSTM", ("xLSTMForCausalLM",), "a recurrent state in place of attention", "transformers runs it in bf16"),
    Other("DeepSeek-V3.2", ("DeepseekV32ForCausalLM",), _SPARSE, BOTH, "DeepseekV3ForCausalLM"),
    Other("DeepSeek-V4", ("DeepseekV4ForCausalLM",), "compressed attention and several residual streams", BOTH,
          "DeepseekV3ForCausalLM"),
    Other("GLM-5", ("GlmMoeDsaForCausalLM",), _SPARSE, BOTH, "Glm4MoeForCausalLM"),
    Other("MiniMax-M3", ("MiniMaxM3ForCausalLM", "MiniMaxM3VLForCausalLM", "MiniMaxM3VLForConditionalGeneration",
          "MiniMaxM3SparseForCausalLM"), _SPARSE, BOTH, "MiniMaxM2ForCausalLM"),
    Other("Gemma 3n", ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
          "layers that share keys and values, and embeddings of each layer", nearest="Gemma3ForCausalLM"),
    Other("Gemma 4", ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
          "layers that share keys and values, heads that differ in width, and embeddings of each layer", BOTH,
          "Gemma3ForCausalLM"),
    Other("Spark-X2.5", ("Spark2_5ForCausalLM",), "a gate by head over what attention gives, and a quarter of each head"
          " rotated, in layers of two kinds", "SGLang and mlx-lm run it in bf16, llama.cpp in few bits"),
)  # fmt: skip

# Older layouts of models that isobit runs: what they are, and where the newer one is.
OLDER: dict[str, str] = {
    "GlmasrModel": (
        "GlmasrModel is the older layout of GLM-ASR (whisper_config and lm_config, with code of its own), which isobit"
        " does not read: download the model again (zai-org/GLM-ASR-Nano-2512 has had the newer layout,"
        " GlmAsrForConditionalGeneration, since the end of December 2025), without --revision"
    ),
}

_BY_NAME = {name: other for other in OTHERS for name in other.names}


def why_not(architecture: str, known: Collection[str]) -> str | None:
    """Why an architecture is refused, and what runs it; None where nothing is known of it.

    Args:
        architecture: as config.json names it.
        known: those that isobit runs.
    """
    if architecture in OLDER:
        return OLDER[architecture]
    other = _BY_NAME.get(architecture)
    if other is None:
        return None
    nearest = f"; the nearest that isobit runs is {other.nearest}" if other.nearest in known else ""
    return f"{other.called} ({architecture}) has {other.has}, which isobit does not implement. {other.runs}{nearest}"
