"""A small random Llama, quantized and saved by compressed-tensors itself; and what two engines make of it."""

from __future__ import annotations

import os
import sys

import torch
import transformers as T
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)

T.logging.set_verbosity_error()

INT8_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FP8_TOKEN = INT8_TOKEN | {"type": "float"}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FP8 = INT8 | {"type": "float"}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
IDS = list(range(3, 67))
VOCABULARY = 256


def model() -> T.LlamaForCausalLM:
    """Two layers, random bfloat16 weights; the layers count for more than the embedding."""
    torch.manual_seed(0)
    config = T.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, initializer_range=0.1,
    )  # fmt: skip
    made = T.LlamaForCausalLM(config).to(torch.bfloat16)
    made.model.embed_tokens.weight.data.mul_(0.1)
    return made


def save(folder: str, groups: dict[str, tuple[list[str], dict, dict | None, str]]) -> None:
    """Quantizes and saves: group -> targets, weights, input activations, format."""
    made = model()
    schemes = {
        name: QuantizationScheme(
            targets=targets,
            weights=QuantizationArgs(**weights),
            input_activations=inputs and QuantizationArgs(**inputs),
            format=format,
        )
        for name, (targets, weights, inputs, format) in groups.items()
    }
    formats = {scheme.format for scheme in schemes.values()}
    config = QuantizationConfig(
        config_groups=schemes,
        ignore=["lm_head"],
        format=formats.pop() if len(formats) == 1 else "mixed-precision",
        quantization_status="compressed",
    )
    apply_quantization_config(made, config)
    for module in made.modules():
        if hasattr(module, "weight_scale"):
            set_scales(module)
    compressor = ModelCompressor.from_pretrained_model(made)
    compressor.compress_model(made)
    made.save_pretrained(folder)
    compressor.update_config(folder)


def set_scales(module: torch.nn.Module) -> None:
    """Scales, and zero points, from the smallest and largest weight of each channel or group."""
    args = module.quantization_scheme.weights
    parts = module.weight.data.float().unflatten(1, (-1, args.group_size or module.weight.shape[1]))
    if args.symmetric:
        largest = 448 if args.type == "float" else 2 ** (args.num_bits - 1) - 1
        module.weight_scale.data.copy_(parts.abs().amax(-1) / largest)
        return
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scale = (high - low) / (2**args.num_bits - 1)
    smallest = -(2 ** (args.num_bits - 1))
    module.weight_scale.data.copy_(scale)
    module.weight_zero_point.data.copy_((smallest - (low / scale).round()).clamp(smallest, -smallest - 1))


def by_transformers(folder: str, **options: object) -> torch.Tensor:
    """Log-probabilities of the next tokens, float32 [tokens - 1, vocabulary]."""
    loaded = T.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    with torch.no_grad():
        return loaded(torch.tensor([IDS])).logits[0, :-1].log_softmax(-1)


def by_vllm(folder: str) -> torch.Tensor:
    """The same by vLLM on the CPU, in bfloat16."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder, dtype="bfloat16", max_model_len=128, enforce_eager=True, max_logprobs=-1, skip_tokenizer_init=True
    )
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, detokenize=False)
    (answer,) = engine.generate([{"prompt_token_ids": IDS}], params, use_tqdm=False)
    return torch.tensor([[row[token].logprob for token in range(VOCABULARY)] for row in answer.prompt_logprobs[1:]])


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean divergence in nats."""
    return float((one.exp() * (one - other)).sum(-1).mean())


def end(as_found: bool) -> None:
    """Says whether it is still so, and ends; engines leave threads behind that would wait."""
    print("as found" if as_found else "CHANGED")
    sys.stdout.flush()
    os._exit(0 if as_found else 1)
