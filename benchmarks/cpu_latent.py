"""Decoding and prompts with latent attention on the CPU: all in one call of the kernels, and attention in PyTorch.

    python benchmarks/cpu_latent.py          # three layers of DeepSeek-V2-Lite, 16 of 64 experts, int4: 0.8 GB
    python benchmarks/cpu_latent.py --behind 4000 --scheme fp8
    python benchmarks/cpu_latent.py --quick  # small, not recorded: shows that it works

Weights are random. Both ways run the same checkpoint in one process, by turns: one token behind so many others, and a
prompt; in PyTorch layers run one by one. Milliseconds are medians over turns, and since other programs disturb those,
the least time of the processor; "ratio" is that of the latter. The largest difference of logits is printed beside it,
relative to their size. Results are appended to benchmarks/results/cpu_latent.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import RESULTS, median, provenance, save, seconds, stop, use_threads
from runs import instruction_set

from isobit.errors import IsobitError

if TYPE_CHECKING:
    from isobit.models.decoder import Decoder

LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "attention_bias": False,
    "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 16384, "moe_intermediate_size": 1408,
    "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "n_routed_experts": 16, "n_shared_experts": 2,
    "norm_topk_prob": False, "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts_per_tok": 6,
    "num_hidden_layers": 3, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": False,
    "topk_method": "greedy", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 1024,
}  # fmt: skip
QUICK = LITE | {
    "hidden_size": 128, "intermediate_size": 256, "kv_lora_rank": 64, "moe_intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "num_hidden_layers": 2, "vocab_size": 256,
}  # fmt: skip


def write(folder: Path, config: dict[str, Any]) -> None:
    """A random bf16 checkpoint."""
    import torch
    from shapes import ONE, SHARD_BYTES, random_stretches

    from isobit.checkpoint.shards import INDEX, PlannedTensor, index_json, plan_shards
    from isobit.models.archs import model_config
    from isobit.models.blueprint import expected_tensors

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = random_stretches(torch.bfloat16, 1 << 24)
    named = expected_tensors(model_config(config))
    shards = plan_shards([[PlannedTensor(name, "BF16", shape)] for name, shape in named.items()], SHARD_BYTES)
    for shard in shards:
        with open(folder / shard.name, "wb") as file:
            file.write(shard.header)
            for tensor in shard.tensors.values():
                if len(tensor.shape) == 1:
                    file.write(ONE * tensor.shape[0])
                else:
                    weights.write(file, tensor.nbytes)
    index = index_json(shards)
    if index is not None:
        (folder / INDEX).write_bytes(index)


def both(folder: Path) -> tuple[Decoder, Decoder]:
    """The model with latent attention in PyTorch, layer by layer; and in one call of the kernels."""
    from isobit.models.decoder import Decoder
    from isobit.models.ops import latent
    from isobit.models.weights import load_model

    plain, whole = load_model(folder), load_model(folder)
    assert isinstance(plain, Decoder) and isinstance(whole, Decoder)
    if whole.why_by_layer is not None:
        stop(f"the kernels do not run this in one call: {whole.why_by_layer}")
    plain.layer_ops = replace(plain.layer_ops, latent=latent.attend)
    plain.__dict__["_stack"] = "for comparison"
    return plain, whole


def steps_of(model: Decoder, behind: int, fresh: int) -> Callable[[], Any]:
    """Reads so many tokens behind others, again and again."""
    import torch

    from isobit.models.cache.paged import BLOCK
    from isobit.models.cache.protocol import CachedSequence

    cache = model.paged_cache(-(-(behind + fresh) // BLOCK))
    blocks = tuple(range(cache.blocks))
    ids = [at % model.config.vocab_size for at in range(behind + fresh)]
    with torch.inference_mode():
        for at in range(0, behind, 512):
            part = ids[at : min(at + 512, behind)]
            model.forward(cache.batch([part], [CachedSequence(blocks, BLOCK * len(blocks), at)], wanted="last"), cache)

    @torch.inference_mode()
    def step() -> Any:
        held = CachedSequence(blocks, BLOCK * len(blocks), behind)
        return model.forward(cache.batch([ids[behind:]], [held], wanted="last"), cache)

    return step


def measure(models: tuple[Decoder, Decoder], behind: int, fresh: int, turns: int) -> dict[str, object]:
    """Both ways by turns."""
    runs = [steps_of(model, behind, fresh) for model in models]
    plain, whole = (run() for run in runs)
    times, busy = [], []
    for _ in range(turns):
        begins = [time.process_time()]
        times.append([])
        for run in runs:
            times[-1].append(seconds(run))
            begins.append(time.process_time())
        busy.append([end - begin for begin, end in pairwise(begins)])
    before, after = ([one[i] for one in times] for i in (0, 1))
    least = [min(one[i] for one in busy) for i in (0, 1)]
    return {
        "behind": behind, "tokens": fresh, "turns": turns,
        "torch_ms": round(1e3 * median(before), 2), "kernels_ms": round(1e3 * median(after), 2),
        "torch_cpu_ms": round(1e3 * least[0], 2), "kernels_cpu_ms": round(1e3 * least[1], 2),
        "ratio": round(least[0] / least[1], 2),
        "largest_difference": f"{float((plain - whole).abs().max() / plain.abs().max()):.1e}",
        "load_before": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", default="int4", metavar="NAME", help="default: int4")
    parser.add_argument("--behind", nargs="+", type=int, metavar="N", help="tokens in front; default: 100 2000")
    parser.add_argument("--prompt", type=int, metavar="N", help="tokens of a prompt (default: 512)")
    parser.add_argument("--turns", type=int, default=15, help="repetitions; figures are their medians (default: 15)")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or the cores this process may use")
    parser.add_argument("--quick", action="store_true", help="small layers; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="where the results go (default: benchmarks/results/cpu_latent.csv)")
    args = parser.parse_args()
    threads, config = use_threads(args.threads), QUICK if args.quick else LITE
    path = args.csv or (None if args.quick else RESULTS / "cpu_latent.csv")
    cases = [(behind, 1) for behind in args.behind or ([20] if args.quick else [100, 2000])]
    cases.append((0, args.prompt or (40 if args.quick else 512)))
    try:
        from isobit.api import quantize

        with tempfile.TemporaryDirectory() as work:
            source, out = Path(work, "source"), Path(work, args.scheme)
            write(source, config)
            quantize(source, out, args.scheme, search="absmax")
            models = both(out)
            for behind, fresh in cases:
                found = measure(models, behind, fresh, args.turns if fresh == 1 else min(5, args.turns))
                print(", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
                what = {"isa": instruction_set("cpu"), "threads": threads, "scheme": args.scheme}
                what |= {"layers": config["num_hidden_layers"], "heads": config["num_attention_heads"]}
                if path is not None:
                    save([provenance() | what | found], path)
    except IsobitError as error:
        stop(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
