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
_ALIBI = "ALiBi in place of rotary embeddings"
_TOWER = "a tower that sees beside its decoder"
_LEARNED = "learned positions in place of rotary embeddings"
_WOVEN = "queries, keys and values of all heads woven into one matrix"
VLLM = "vLLM runs it in bf16, llama.cpp in few bits"
ALONE = "transformers runs it in bf16"
OWN = "its own code runs it in bf16"

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
    Other("Zamba", ("ZambaForCausalLM",), _MAMBA, BOTH),
    Other("Zamba 2", ("Zamba2ForCausalLM",), _MAMBA2, BOTH),
    Other("LFM2", ("Lfm2ForCausalLM",), "layers that are short convolutions with a state", nearest="Qwen3ForCausalLM"),
    Other("LFM2 with experts", ("Lfm2MoeForCausalLM",), "layers that are short convolutions with a state",
          nearest="Qwen3MoeForCausalLM"),
    Other("LFM2-VL and LFM3-VL", ("Lfm2VlForConditionalGeneration", "Lfm3VlForConditionalGeneration"),
          "layers that are short convolutions with a state, and a tower that sees", BOTH, "Qwen3ForCausalLM"),
    Other("LFM3", ("Lfm3ForCausalLM",), "layers that are short convolutions with a state", ALONE, "Qwen3ForCausalLM"),
    Other("Qwen4 (experimental)", ("Qwen4ExpForCausalLM", "Qwen4ExpForConditionalGeneration"), _DELTA, ALONE,
          "Qwen3MoeForCausalLM"),
    Other("Nemotron Nano VL and Omni", ("NemotronH_Nano_VL_V2", "NemotronH_Omni_Reasoning_V3"),
          f"{_MAMBA2}, and a tower that sees", "vLLM runs it in bf16", "LlamaForCausalLM"),
    Other("Phi-4 mini flash and Samba", ("Phi4FlashForCausalLM", "SambaForCausalLM"), _MAMBA, OWN, "Phi3ForCausalLM"),
    Other("PLaMo 2", ("Plamo2ForCausalLM",), _MAMBA, VLLM, "LlamaForCausalLM"),
    Other("Hymba", ("HymbaForCausalLM",), f"{_MAMBA} beside attention", OWN),
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
    Other("Hunyuan 4", ("HYV4ForCausalLM",), f"{_SPARSE}, and several residual streams", ALONE, "HYV3ForCausalLM"),
    Other("A.X K2", ("AXK2ForCausalLM",), f"{_SPARSE}, and gates in norms", ALONE, "DeepseekV3ForCausalLM"),
    Other("Mistral Large 4", ("MistralLarge4ForConditionalGeneration",), f"{_SPARSE}, and a tower that sees", ALONE,
          "DeepseekV3ForCausalLM"),
    Other("dots3 note", ("Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration"), _SPARSE, ALONE,
          "Dots1ForCausalLM"),
    Other("GLM-5 next", ("Glm5NextForConditionalGeneration",),
          f"layers with a recurrent state, and {_SPARSE}", ALONE, "Glm4MoeForCausalLM"),
    Other("GLM-5", ("GlmMoeDsaForCausalLM",), _SPARSE, BOTH, "Glm4MoeForCausalLM"),
    Other("MiniMax-M3", ("MiniMaxM3ForCausalLM", "MiniMaxM3VLForCausalLM", "MiniMaxM3VLForConditionalGeneration",
          "MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration"), _SPARSE, BOTH,
          "MiniMaxM2ForCausalLM"),
    Other("Gemma 3n", ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
          "layers that share keys and values, and embeddings of each layer", nearest="Gemma3ForCausalLM"),
    Other("Gemma 4", ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
          "layers that share keys and values, heads that differ in width, and embeddings of each layer", BOTH,
          "Gemma3ForCausalLM"),
    Other("Gemma 4 unified", ("Gemma4UnifiedForCausalLM", "Gemma4UnifiedForConditionalGeneration"),
          "layers that share keys and values", ALONE, "Gemma3ForCausalLM"),
    Other("Spark-X2.5", ("Spark2_5ForCausalLM",), "a gate by head over what attention gives, and a quarter of each head"
          " rotated, in layers of two kinds", "SGLang and mlx-lm run it in bf16, llama.cpp in few bits"),
    # Layers without a state, which differ from a Llama's in what no flag of isobit's says.
    Other("GPT-NeoX and Pythia", ("GPTNeoXForCausalLM",), f"{_WOVEN}, under names of their own"),
    Other("GPT-J", ("GPTJForCausalLM",), "tensors under names of its own", BOTH, "PhiForCausalLM"),
    Other("GPT-2", ("GPT2LMHeadModel", "GPT2Model"), _LEARNED),
    Other("GPT-Neo", ("GPTNeoForCausalLM",), _LEARNED, ALONE),
    Other("GPT-1", ("OpenAIGPTLMHeadModel",), _LEARNED, ALONE),
    Other("BioGPT", ("BioGptForCausalLM",), _LEARNED, ALONE),
    Other("XGLM and CTRL", ("XGLMForCausalLM", "CTRLLMHeadModel"), "sinusoidal positions", ALONE),
    Other("CodeGen", ("CodeGenForCausalLM",), _WOVEN, ALONE, "PhiForCausalLM"),
    Other("GPT-NeoX Japanese", ("GPTNeoXJapaneseForCausalLM",), _WOVEN, ALONE),
    Other("BLT", ("BltForCausalLM",), "models of bytes around its decoder", ALONE, "LlamaForCausalLM"),
    Other("StarCoder 1 and SantaCoder", ("GPTBigCodeForCausalLM",), _LEARNED, nearest="Starcoder2ForCausalLM"),
    Other("OPT", ("OPTForCausalLM",), _LEARNED, BOTH),
    Other("BLOOM", ("BloomForCausalLM",), _ALIBI),
    Other("MPT", ("MPTForCausalLM", "MptForCausalLM"), _ALIBI),
    Other("Falcon", ("FalconForCausalLM", "RWForCausalLM"), f"{_WOVEN}, in some models with ALiBi"),
    Other("Baichuan", ("BaichuanForCausalLM", "BaiChuanForCausalLM"),
          "queries, keys and values stored as one matrix (W_pack); ALiBi in the 13B, a normed head in Baichuan 2",
          VLLM, "LlamaForCausalLM"),
    Other("ChatGLM2, ChatGLM3 and GLM-4-9B by their own code",
          ("ChatGLMModel", "ChatGLMForConditionalGeneration", "ChatGLMForCausalLM"),
          "tensors under names of its own (GLM-4-9B is there under transformers', too: its -hf models)",
          VLLM, "GlmForCausalLM"),
    Other("InternLM 1", ("InternLMForCausalLM",), "tensors and a bias of its own code", VLLM, "LlamaForCausalLM"),
    Other("InternLM2", ("InternLM2ForCausalLM",), f"{_WOVEN} (wqkv)", VLLM, "LlamaForCausalLM"),
    Other("Qwen 1", ("QWenLMHeadModel",), "tensors under names of its own", VLLM, "Qwen2ForCausalLM"),
    Other("OLMo 1", ("OlmoForCausalLM", "OLMoForCausalLM"), "norms without weights", nearest="Olmo2ForCausalLM"),
    Other("Phi-4 multimodal", ("Phi4MMForCausalLM", "Phi4MultimodalForCausalLM"),
          "adapters for what it sees and hears", BOTH,
          "Phi3ForCausalLM"),
    Other("Persimmon and Fuyu", ("PersimmonForCausalLM", "FuyuForCausalLM"), _WOVEN, BOTH),
    Other("Apertus", ("ApertusForCausalLM",), "an activation with learned numbers (xIELU)", nearest="ArceeForCausalLM"),
    Other("DBRX", ("DbrxForCausalLM", "DBRXForCausalLM"), "queries, keys and values that are clipped, from one matrix",
          nearest="MixtralForCausalLM"),
    Other("Arctic", ("ArcticForCausalLM",), "a dense MLP beside the experts, with norms of its own", VLLM,
          "MixtralForCausalLM"),
    Other("Jais 1", ("JAISLMHeadModel",), _ALIBI, VLLM, "Jais2ForCausalLM"),
    Other("BitNet b1.58", ("BitNetForCausalLM", "BitnetForCausalLM"),
          "norms within attention and MLP, and ternary weights",
          "transformers runs it in bf16, bitnet.cpp in ternary", "LlamaForCausalLM"),
    Other("MiniCPM", ("MiniCPMForCausalLM",), "residuals and logits that are scaled by its depth and width", VLLM,
          "GraniteForCausalLM"),
    Other("MiniCPM3", ("MiniCPM3ForCausalLM",), "latent attention in layers whose residuals are scaled",
          nearest="YoutuForCausalLM"),
    Other("NanoChat", ("NanoChatForCausalLM",), "norms without weights", ALONE, "LlamaForCausalLM"),
    Other("Doge", ("DogeForCausalLM",), "masks of attention that are made of values, and scaled residuals", ALONE),
    Other("Trinity (AFM with experts)", ("AfmoeForCausalLM",), "a gate over what attention gives",
          nearest="ArceeForCausalLM"),
    Other("LongCat-Flash", ("LongcatFlashForCausalLM", "LongcatCausalLM"),
          "two attentions in a layer, and experts that do nothing", BOTH, "DeepseekV3ForCausalLM"),
    Other("Grok", ("Grok1ForCausalLM", "Grok1ModelForCausalLM", "Grok2ForCausalLM"),
          "scores and routers that are capped",
          "SGLang runs it, llama.cpp in few bits", "MixtralForCausalLM"),
    Other("Ling and Ring 1 and 2", ("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM"),
          "queries, keys and values stored as one matrix, under names of its own", VLLM, "Glm4MoeForCausalLM"),
    Other("Step-3", ("Step3TextForCausalLM", "Step3VLForConditionalGeneration", "Step3p5ForCausalLM",
          "Step3p7ForCausalLM", "Step3p7ForConditionalGeneration"),
          "attention of its own (factorized, or with a gate over each head)", "vLLM and SGLang run it in bf16"),
    Other("MiMo-V2", ("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"), "values that are narrower than keys, and scaled",
          BOTH, "Glm4MoeForCausalLM"),
    Other("MiMo 7B", ("MiMoForCausalLM",), "layers that guess further tokens under names of their own", VLLM,
          "Qwen2ForCausalLM"),
    Other("Mistral 4", ("Mistral4ForCausalLM",), "latent attention whose queries grow with their positions", BOTH,
          "DeepseekV3ForCausalLM"),
    Other("A.X K1", ("AXK1ForCausalLM",), "a norm behind the experts of layers that have some", BOTH,
          "DeepseekV3ForCausalLM"),
    Other("Command A with experts", ("Cohere2MoeForCausalLM",), "experts beside attention", ALONE,
          "Cohere2ForCausalLM"),
    Other("DeepSeek-MoE 16B", ("DeepseekForCausalLM",), "a mixture that its own code alone describes", VLLM,
          "DeepseekV2ForCausalLM"),
    Other("EXAONE 3", ("ExaoneForCausalLM",), "tensors under names of its own", VLLM, "LlamaForCausalLM"),
    Other("Nemotron-NAS (DeciLM)", ("DeciLMForCausalLM",), "layers without attention or MLP, and widths that differ",
          VLLM,
          "LlamaForCausalLM"),
    Other("OpenELM", ("OpenELMForCausalLM",), "heads and widths that differ from layer to layer",
          "llama.cpp runs it, also in few bits"),
    Other("Orion", ("OrionForCausalLM",), "a Llama with LayerNorms, by code of its own", VLLM, "LlamaForCausalLM"),
    Other("Beam", ("BeamForCausalLM",), "a gate over what attention gives", ALONE, "Qwen3MoeForCausalLM"),
    Other("Flint", ("FlintForCausalLM",), "sinks beside norms of query and key heads", ALONE, "Qwen3MoeForCausalLM"),
    Other("Kolibri 1", ("Kolibri1ForCausalLM",), "norms behind experts, in a mix of parts that no family here has",
          ALONE, "Qwen3MoeForCausalLM"),
    Other("Granite with windows", ("GraniteSWAForCausalLM", "GraniteMoeSWAForCausalLM"),
          "sinks, and a theta of each layer", ALONE, "GraniteForCausalLM"),
    Other("Zaya", ("ZayaForCausalLM",), "attention whose queries and keys go through convolutions, and routers that"
          " are MLPs", ALONE),
    Other("Inkling", ("InklingForCausalLM", "InklingForConditionalGeneration", "Inkling2ForCausalLM",
          "Inkling2ForConditionalGeneration"), "learned relative positions and short convolutions", ALONE),
    Other("HRM-Text", ("HrmTextForCausalLM",), "stacks of layers that are run in cycles", ALONE),
    Other("Ouro", ("OuroForCausalLM",), "layers that are run several times", "vLLM runs it in bf16",
          "LlamaForCausalLM"),
    Other("Motif", ("MotifForCausalLM",), "differences of two attentions, and an activation of its own",
          "vLLM runs it in bf16"),
    Other("Phi-3 small", ("Phi3SmallForCausalLM",), "attention to blocks of tokens, and a gate of its own",
          OWN, "Phi3ForCausalLM"),
    Other("PLaMo 1", ("PlamoForCausalLM",), "code of its own", "llama.cpp runs it, also in few bits"),
    Other("Hunyuan-Large", ("HunYuanForCausalLM",), "layers that share keys and values, by code of its own", OWN,
          "HunYuanMoEV1ForCausalLM"),
    Other("Aquila", ("AquilaForCausalLM", "AquilaModel"), "code of its own", "vLLM runs it in bf16",
          "LlamaForCausalLM"),
    Other("Skywork", ("SkyworkForCausalLM",), "code of its own", OWN, "LlamaForCausalLM"),
    Other("Laguna", ("LagunaForCausalLM",), "a gate over what attention gives", ALONE, "MellumForCausalLM"),
    Other("JetMoe", ("JetMoeForCausalLM",), "experts of attention", ALONE, "MixtralForCausalLM"),
    Other("DiffLlama", ("DiffLlamaForCausalLM",), "differences of two attentions", ALONE, "LlamaForCausalLM"),
    Other("Llama 3.2 Vision", ("MllamaForConditionalGeneration",), "layers that attend to what a tower sees", BOTH,
          "LlamaForCausalLM"),
    Other("Kimi-K2.5", ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"),
          "a tower that sees beside Kimi-K2's decoder", BOTH,
          "DeepseekV3ForCausalLM"),
    Other("ERNIE 4.5 VL", ("Ernie4_5_VLMoeForConditionalGeneration", "Ernie4_5_VLMoeForCausalLM"),
          "experts for what it sees beside those for text", BOTH, "Ernie4_5_MoeForCausalLM"),
    Other("LLaVA", ("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration",
          "LlavaOnevisionForConditionalGeneration", "LlavaLlamaForCausalLM", "LlavaQwenForCausalLM",
          "LlavaNextVideoForConditionalGeneration", "VideoLlavaForConditionalGeneration",
          "VipLlavaForConditionalGeneration"), _TOWER),
    Other("InternVL", ("InternVLChatModel", "InternVLForConditionalGeneration"), _TOWER, VLLM),
    Other("SmolVLM and Idefics", ("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration",
          "Idefics2ForConditionalGeneration"), _TOWER),
    Other("PaliGemma", ("PaliGemmaForConditionalGeneration",), f"{_TOWER}, and attention to later tokens", BOTH,
          "Gemma2ForCausalLM"),
    Other("Qwen2.5-Omni", ("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel",
          "Qwen2_5OmniThinkerForConditionalGeneration"), "towers that see and hear, and a part that speaks", BOTH,
          "Qwen2ForCausalLM"),
    Other("Qwen3-Omni", ("Qwen3OmniMoeForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration"),
          "towers that see and hear, and a part that speaks", BOTH, "Qwen3MoeForCausalLM"),
    Other("Aya Vision and Command A Vision", ("AyaVisionForConditionalGeneration",
          "Cohere2VisionForConditionalGeneration"), _TOWER, BOTH, "Cohere2ForCausalLM"),
    Other("DeepSeek-VL and Janus", ("DeepseekVLForConditionalGeneration", "DeepseekVLHybridForConditionalGeneration",
          "JanusForConditionalGeneration", "MultiModalityCausalLM"), _TOWER, ALONE, "LlamaForCausalLM"),
    Other("DeepSeek-VL2 and DeepSeek-OCR", ("DeepseekVLV2ForCausalLM", "DeepseekOCRForCausalLM",
          "DeepseekOCR2ForCausalLM", "DeepseekOcr2ForConditionalGeneration"), _TOWER, "vLLM runs it in bf16",
          "DeepseekV2ForCausalLM"),
    Other("GLM-OCR", ("GlmOcrForConditionalGeneration",), _TOWER, BOTH),
    Other("EXAONE 4.5", ("Exaone4_5_ForConditionalGeneration",), _TOWER, ALONE, "Exaone4ForCausalLM"),
    Other("PaddleOCR-VL", ("PaddleOCRVLForConditionalGeneration",), _TOWER, BOTH, "Ernie4_5ForCausalLM"),
    Other("Granite Vision and Docling", ("Granite4VisionForConditionalGeneration",
          "GraniteDoclingForConditionalGeneration"), _TOWER, ALONE, "GraniteForCausalLM"),
    Other("FastVLM, LightOnOCR and GOT-OCR", ("FastVlmForConditionalGeneration", "LlavaQwen2ForCausalLM",
          "LightOnOcrForConditionalGeneration", "GotOcr2ForConditionalGeneration", "GOTQwenForCausalLM"), _TOWER, ALONE,
          "Qwen2ForCausalLM"),
    Other("Ovis 2 and VideoLLaMA 3", ("Ovis2ForConditionalGeneration", "VideoLlama3ForConditionalGeneration"), _TOWER,
          ALONE, "Qwen2ForCausalLM"),
    Other("Aria", ("AriaForConditionalGeneration", "AriaTextForCausalLM"), f"{_TOWER}, whose experts have names and"
          " layouts of their own", BOTH),
    Other("BLIP", ("BlipForConditionalGeneration", "Blip2ForConditionalGeneration",
          "InstructBlipForConditionalGeneration"), _TOWER, ALONE),
    Other("Florence-2", ("Florence2ForConditionalGeneration",), "a tower that sees, and an encoder in front of its"
          " decoder", ALONE),
    Other("Chameleon and Emu3", ("ChameleonForConditionalGeneration", "Emu3ForConditionalGeneration",
          "Emu3ForCausalLM"), "an encoder beside its decoder that makes tokens of pictures", ALONE),
    Other("Phi-3 vision", ("Phi3VForCausalLM",), _TOWER, "vLLM runs it in bf16", "Phi3ForCausalLM"),
    Other("MiniCPM-V and MiniCPM-o", ("MiniCPMV", "MiniCPMO", "MiniCPMV4_6ForConditionalGeneration",
          "MiniCPMV4_7ForConditionalGeneration"), _TOWER, VLLM),
    Other("Kimi-VL", ("KimiVLForConditionalGeneration",), _TOWER, VLLM, "DeepseekV3ForCausalLM"),
    Other("Molmo", ("MolmoForCausalLM", "Molmo2ForConditionalGeneration"), _TOWER, "vLLM runs it in bf16"),
    Other("Qwen2-Audio", ("Qwen2AudioForConditionalGeneration",), "an encoder that hears beside its decoder",
          nearest="Qwen2ForCausalLM"),
    Other("Voxtral", ("VoxtralForConditionalGeneration", "VoxtralRealtimeForConditionalGeneration"),
          "an encoder that hears beside its decoder",
          nearest="MistralForCausalLM"),
    Other("Granite Speech", ("GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration"),
          "an encoder that hears beside its decoder", BOTH, "GraniteForCausalLM"),
    Other("Qwen3-ASR", ("Qwen3ASRForConditionalGeneration",), "an encoder that hears beside its decoder", BOTH,
          "Qwen3ForCausalLM"),
    Other("Whisper", ("WhisperForConditionalGeneration",), "an encoder that its decoder attends to",
          "transformers runs it, whisper.cpp in few bits"),
    Other("LLaDA and Dream", ("LLaDAModelLM", "LLaDAMoEModelLM", "DreamModel"),
          "attention to later tokens, for texts that are filled in and not continued", "their own code runs them"),
    Other("BERT and its like", ("BertModel", "BertForMaskedLM", "RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel",
          "XLMRobertaForMaskedLM", "ModernBertModel", "ModernBertForMaskedLM"),
          "attention to later tokens, and writes no text", "transformers and vLLM run it"),
    Other("EmbeddingGemma", ("Gemma3TextModel",), "attention to later tokens, and writes no text", BOTH,
          "Gemma3ForCausalLM"),
    Other("Solar Pro", ("SolarForCausalLM",), "layers whose results are added again further behind",
          "vLLM runs it in bf16", "LlamaForCausalLM"),
    Other("XVERSE", ("XverseForCausalLM",), "code of its own", VLLM, "LlamaForCausalLM"),
    Other("TeleChat 1 and 2", ("TelechatForCausalLM", "TeleChat2ForCausalLM"),
          "keys and values stored as one matrix, under names of its own", "vLLM runs it in bf16", "LlamaForCausalLM"),
    Other("T5, FLAN and other encoder-decoders", ("T5ForConditionalGeneration", "BartForConditionalGeneration",
          "MT5ForConditionalGeneration", "T5GemmaForConditionalGeneration", "T5Gemma2ForConditionalGeneration",
          "MBartForConditionalGeneration", "PegasusForConditionalGeneration", "MarianMTModel",
          "M2M100ForConditionalGeneration", "BlenderbotForConditionalGeneration"),
          "an encoder in front of its decoder",
          ALONE),
)  # fmt: skip

# Older layouts of models that isobit runs: what they are, and where the newer one is.
OLDER: dict[str, str] = {
    "GlmasrModel": (
        "GlmasrModel is the older layout of GLM-ASR (whisper_config and lm_config, with code of its own), which isobit"
        " does not read: download the model again (zai-org/GLM-ASR-Nano-2512 has had the newer layout,"
        " GlmAsrForConditionalGeneration, since the end of December 2025), without --revision"
    ),
    "YiForCausalLM": (
        "YiForCausalLM is Yi by code of its own: download the model again (01-ai has had LlamaForCausalLM in its place"
        " since the end of 2023), without --revision"
    ),
    "MixFormerSequentialForCausalLM": (
        "MixFormerSequentialForCausalLM is Phi-1.5 by code of its own: download the model again (microsoft has had"
        " PhiForCausalLM in its place since 2024), without --revision"
    ),
    "StableLMEpochForCausalLM": (
        "StableLMEpochForCausalLM is StableLM by code of its own: download the model again (stabilityai has had"
        " StableLmForCausalLM in its place since 2024), without --revision"
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
