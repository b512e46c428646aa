"""How fast mixtures of experts answer on the card at hand: Qwen3-30B-A3B's shape and Mixtral-8x7B's, formats x batches,
and prompts; each beside its floor, the weights that a step reads over 4.5 TB/s.

    python benchmarks/gpu_experts.py                                         # all of it, on a GPU
    python benchmarks/gpu_experts.py --shapes qwen3-30b-a3b --schemes fp8    # a part of it
    python benchmarks/gpu_experts.py --floors                                # the floors alone, anywhere
    python benchmarks/gpu_experts.py --quick                                 # tiny, on the CPU, not recorded

Weights are random and made on the device, so that nothing is read from a disk; each (shape, scheme) runs in this
process, one after the other. Figures are medians, as `isobit bench` takes them. Prompts go in pieces of 8192 tokens, as
plans have it for such models (legalize/pieces.py); rows that name no piece were in pieces of 2048. "all" is tokens of
answers over the time of a run, as other engines' throughput is given. A step of B tokens reads E (1 - (1 - A / E)^B)
experts of a layer, where each token chooses A of E at random, as tokens of random weights do that have no mean
(expert_choices.py).

The peer is vLLM with dummy weights, 64 tokens in, 128 out (`--load-format dummy`), at the same batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, provenance, save, stop
from torch import nn

from isobit.checkpoint.kvscales import KvScales
from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.formats.pack import words_per_row
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import Scheme, scheme
from isobit.formats.table import element
from isobit.kernels import mixtures
from isobit.kernels.grouped import Gating, Grouped, Mixture
from isobit.kernels.norm import NormSpec
from isobit.models.archs import model_config
from isobit.models.blueprint import by_input, layer_modules
from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.decoder import Decoder
from isobit.models.experts import ExpertsMLP
from isobit.models.feed_forward import Experts
from isobit.models.joined import bind_linears
from isobit.models.latent import Absorbed
from isobit.models.layers import Embedding, Layer
from isobit.models.linear import Linear
from isobit.models.mlp import GatedMLP
from isobit.models.norms import Norm
from isobit.models.place import Place, place
from isobit.models.roles import by_role
from isobit.models.stacking import routing
from isobit.targets.prefill import MIXED

BANDWIDTH = 4.5e12  # bytes a second that an H200 reads
QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "model_type": "qwen3_moe", "hidden_act": "silu", "attention_bias": False,
    "mlp_only_layers": [],
}  # fmt: skip
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "model_type": "mixtral", "hidden_act": "silu",
}  # fmt: skip
DEEPSEEK_V2_LITE = {  # latent attention, and an expert of all tokens
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    "scoring_func": "softmax", "topk_method": "greedy", "n_group": 1, "topk_group": 1, "rope_theta": 1e4,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "hidden_act": "silu", "attention_bias": False,
}  # fmt: skip
SMALL = {
    "vocab_size": 2048, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "max_position_embeddings": 2048,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": QWEN, "mixtral-8x7b": MIXTRAL, "deepseek-v2-lite": DEEPSEEK_V2_LITE,
    "tiny": {**QWEN, **SMALL, "moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2},
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="qwen3-30b-a3b,mixtral-8x7b")
    parser.add_argument("--schemes", default="fp8,int4")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--prefill", default="8x1024", help="prompts x tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--floors", action="store_true", help="print what the memory allows, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="tiny, on the CPU; nothing is recorded")
    parser.add_argument("--csv", type=Path, default=RESULTS / "gpu_experts.csv")
    return parser.parse_args()


# ---------------------------------------------------------------------- floors


def weight_bytes(row: Scheme, outputs: int, inputs: int) -> float:
    """Bytes of a weight with its scales."""
    if row.weights is None:
        return 2.0 * outputs * inputs
    scales = 1.0
    for size in row.weights.scale_shape(outputs, inputs):
        scales *= size
    return outputs * inputs * element(row.weights.element).bits / 8 + 2 * scales


def floor_bytes(config: ModelConfig, row: Scheme, tokens: int) -> float:
    """Bytes of weights that a step of so many tokens reads: of experts, those that random choices name."""
    total = 2.0 * config.vocab_size * config.hidden_size  # the output projection stays in 16 bits
    for spec in config.layers:
        for one in layer_modules(spec, config.hidden_size):
            if one.kind == "router":
                total += 4.0 * one.shape[0] * one.shape[1]
            elif len(one.shape) == 2:
                share = 1.0
                if one.expert is not None and isinstance(spec.mlp, Experts):
                    router = spec.mlp.router
                    share = 1 - (1 - router.active / router.experts) ** tokens
                total += share * weight_bytes(row, *one.shape)
    return total


# ---------------------------------------------------------------------- a model made where it runs


def random_weight(
    row: Scheme, outputs: int, inputs: int, where: Place, *, centred: bool = True
) -> QTensor | torch.Tensor:
    """Random codes without NaN, with scales that keep what comes out about as large as what goes in.

    Args:
        centred: whether integers of four bits have no mean, without which tokens become alike from layer to layer, and
            choose the same experts (expert_choices.py). The figures of int4 up to commit e499e69 are of such that had.
    """
    device = where.tensors
    if row.weights is None:
        return torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16) * inputs**-0.5
    kind = element(row.weights.element)
    if kind.bits < 8:
        shape, high = (outputs, words_per_row(inputs, kind)), 2**31 - 1
        codes = torch.randint(-high, high, shape, device=device, dtype=torch.int32)
        if centred and kind.bits == 4 and kind.kind != "float":
            codes |= _zeros(codes) << 3  # the lowest code, -8, has no counterpart: 0 takes its place
        largest = 2.0 ** (kind.bits - 1)
    elif kind.kind == "int":
        codes, largest = torch.randint(-127, 128, (outputs, inputs), device=device, dtype=torch.int8), 127.0
    else:
        codes = torch.randint(0, 112, (outputs, inputs), device=device, dtype=torch.uint8)
        codes |= torch.randint(0, 2, codes.shape, device=device, dtype=torch.uint8) << 7
        largest = 120.0
    shape = row.weights.scale_shape(outputs, inputs)
    scale = torch.full(shape, 2 / largest * inputs**-0.5, device=device, dtype=torch.bfloat16)
    zero = None if row.weights.symmetric else torch.full(shape, 8, device=device, dtype=torch.uint8)
    return QTensor(row.weights, (outputs, inputs), codes, scale, zero)


def _zeros(words: torch.Tensor) -> torch.Tensor:
    """The lowest bit of each nibble that is zero."""
    held = words | (words >> 1)
    return ~(held | (held >> 2)) & 0x11111111


def model(config: ModelConfig, row: Scheme, where: Place, dtype: torch.dtype) -> Decoder:
    """A whole decoder of random weights."""
    layers = [layer(config, number, spec, row, where, dtype) for number, spec in enumerate(config.layers)]
    norm = Norm(NormSpec(torch.ones(config.hidden_size, device=where.tensors), config.norm_eps))
    table = torch.randn(config.vocab_size, config.hidden_size, device=where.tensors, dtype=dtype)
    head = Linear(table * config.hidden_size**-0.5, None, None, None, dtype=dtype, place=where)
    return Decoder(config, Embedding(table, dtype), layers, norm, head, dtype, where).eval()


def layer(
    config: ModelConfig, number: int, spec: LayerSpec, row: Scheme, where: Place, dtype: torch.dtype
) -> Layer:  # fmt: skip
    """One layer."""
    modules = layer_modules(spec, config.hidden_size)
    parts: dict[str, nn.Module] = {}
    for group in by_input(tuple(one for one in modules if one.expert is None and one.kind != "router")):
        if group[0].kind == "norm":
            ones = torch.ones(*group[0].shape, device=where.tensors)
            parts[group[0].role] = Norm(NormSpec(ones, config.norm_eps))
            continue
        if group[0].kind == "absorbed":
            weight = torch.randn(*group[0].shape, device=where.tensors, dtype=dtype)
            parts[group[0].role] = Absorbed(weight * group[0].shape[1] ** -0.5)
            continue
        reads = [LinearWeight(plain(random_weight(row, *one.shape, where), dtype), row.activations) for one in group]
        named = by_role(group, reads)
        by_turns = any(role.endswith("gate") for role in named)
        made = bind_linears([*named.values()], by_turns=by_turns, keep_values=False, dtype=dtype, place=where)
        parts |= dict(zip(named, made, strict=True))
    if isinstance(spec.mlp, Experts):
        parts["experts"] = experts(config, spec.mlp, row, where, dtype, parts)
    return Layer(spec, number, parts, config.norm_eps, KvScales())


def plain(weight: QTensor | torch.Tensor, dtype: torch.dtype) -> QTensor | torch.Tensor:
    return weight if isinstance(weight, QTensor) else weight.to(dtype)


def experts(
    config: ModelConfig, spec: Experts, row: Scheme, where: Place, dtype: torch.dtype, parts: dict[str, nn.Module]
) -> ExpertsMLP:  # fmt: skip
    """The experts of a layer, and a router that chooses about as often each."""
    count, hidden, inner = spec.router.experts, config.hidden_size, spec.expert.size

    def tall(rows: int, columns: int) -> Grouped:
        weight = plain(random_weight(row, count * rows, columns, where), dtype)
        return Grouped(weight, count, rows, rows, activations=row.activations)

    whole = Mixture(tall(inner, hidden), tall(inner, hidden), tall(hidden, inner), Gating(spec.expert.activation))
    bound = mixtures.bind(whole, device=where.device, **where.options)
    weight = torch.randn(count, hidden, device=where.tensors) * hidden**-0.5
    weight = weight.to(dtype).float()  # in 16 bits, as checkpoints have it
    shared = None
    if spec.shared is not None:
        shared = GatedMLP(spec.shared, {role: parts[f"shared_{role}"] for role in ("gate", "up", "down")})
    return ExpertsMLP(routing(spec.router, weight), bound, shared, None, spec.names.shared)


# ---------------------------------------------------------------------- measuring


def measured(args: argparse.Namespace, shape: str, name: str, config: ModelConfig) -> Iterator[dict[str, object]]:
    """A row for each case of one model."""
    from isobit.engine.llm import LLM
    from isobit.engine.tokenizer import Tokenizer
    from isobit.evaluation import bench
    from isobit.models.cache.paged import BLOCK

    where = place("cpu" if args.quick else "cuda")
    dtype = torch.float32 if args.quick else torch.bfloat16
    made = model(config, scheme(name), where, dtype)
    prompts, length = (2, 64) if args.quick else (int(part) for part in args.prefill.split("x"))
    new, batches = (8, (1, 2)) if args.quick else (args.new, [int(part) for part in args.batches.split(",")])
    cases = [bench.Case(batch, args.prompt, new) for batch in batches] + [bench.Case(prompts, length, 2)]
    bundled = Path(__file__).parents[1] / "src" / "isobit" / "bundled" / "model"
    llm = LLM(
        made, Tokenizer.from_folder(bundled), sequences=max(case.batch for case in cases),
        cache_tokens=BLOCK * max(case.blocks for case in cases), prefix_cache=False, wide=None if args.quick else MIXED,
    )  # fmt: skip
    read = bench.reader(made)
    for case in cases:
        found = bench.measure(llm, case, read.memory, rounds=1 if args.quick else args.rounds)
        decodes = case.new > 2
        least = floor_bytes(config, scheme(name), case.batch) / BANDWIDTH
        yield {
            "device": "CPU" if args.quick else torch.cuda.get_device_name(), "shape": shape, "scheme": name,
            "batch": case.batch, "prompt": case.prompt, "new": case.new,
            "tok_s": round(found.decode, 1) if decodes else "",
            "step_ms": round(1e3 * found.step, 4) if decodes else "",
            "floor_ms": round(1e3 * least, 4) if decodes else "",
            "share": round(least / found.step, 3) if decodes else "", "all_tok_s": round(found.whole, 1),
            "prefill_tok_s": round(found.prefill, 1), "piece": "" if args.quick else MIXED,
        }  # fmt: skip


def main() -> None:
    args = parse()
    shapes = ["tiny"] if args.quick else args.shapes.split(",")
    if unknown := [name for name in shapes if name not in SHAPES]:
        stop(f"--shapes {', '.join(unknown)}: there are {', '.join(SHAPES)}")
    if not (args.quick or args.floors or torch.cuda.is_available()):
        stop("there is no GPU: --floors prints what the memory would allow, --quick tries the script on the CPU")
    for shape in shapes:
        config = model_config(SHAPES[shape])
        for name in args.schemes.split(","):
            for batch in args.batches.split(","):
                least = floor_bytes(config, scheme(name), int(batch)) / BANDWIDTH
                print(f"{shape} {name} batch {batch}: floor {1e3 * least:.2f} ms, {int(batch) / least:.0f} tok/s")
            if args.floors:
                continue
            for row in measured(args, shape, name, config):
                print(*row.values(), flush=True)
                if not args.quick:
                    save([{**provenance(), **row}], args.csv)


if __name__ == "__main__":
    main()
