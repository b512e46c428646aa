"""What loading takes, beside what `isobit plan` says: linears of a Llama-2-7B on a GPU, a whole model on the CPU.

    python benchmarks/plan_memory.py --gpu [--layers 8]
    python benchmarks/plan_memory.py --cpu --work FOLDER      (a 1.1-billion-parameter checkpoint is made and removed)

On a GPU every linear is bound and run with 1, 16 and 512 tokens, so that every layout that a kernel asks for is there.
The CPU's figure is the peak resident memory of a process that loads the model, reads a prompt and decodes.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

from common import RESULTS, provenance, save

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip
SCHEMES = ("bf16", "fp8", "fp8-e5m2", "fp8-block", "int8", "int4", "int4-asym", "int3-g32")
CPU_SCHEMES = ("bf16", "fp8", "int8", "int4")
PROMPT, DECODED = 512, 8


def main() -> None:
    """Measure and append to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--csv", type=Path, default=RESULTS / "plan_memory.csv")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(resident(args.child)))
        return
    rows = on_gpu(args.layers) if args.gpu else []
    if args.cpu:
        rows += on_cpu(args.work)
    for row in rows:
        print(row)
    save([provenance() | row for row in rows], args.csv)


def row(device: str, what: str, scheme: str, predicted: float, measured: float) -> dict[str, object]:
    """One comparison, in MiB."""
    return {
        "device": device,
        "what": what,
        "scheme": scheme,
        "predicted_mib": round(predicted / 2**20, 1),
        "measured_mib": round(measured / 2**20, 1),
        "difference_percent": round(100 * (predicted / measured - 1), 2),
    }


def on_gpu(layers: int) -> list[dict[str, object]]:
    """Weights of all linears of some layers, and what the process holds besides."""
    import torch

    from isobit.formats.schemes import scheme as named
    from isobit.legalize.memory import GPU_RUNTIME_BYTES, tensor_bytes
    from isobit.models.workload import workload

    def used() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    line = ["nvidia-smi", "--query-gpu=memory.used,name", "--format=csv,noheader,nounits"]
    before, name = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    rows = []
    work = workload(LLAMA_2_7B)
    for scheme_name in SCHEMES:
        scheme = named(scheme_name)
        torch.cuda.empty_cache()
        start = torch.cuda.memory_allocated()
        bound, predicted = [], 0
        for tensor in (t for t in work.tensors if t.kind == "linear"):
            predicted += layers * tensor_bytes(tensor, *work.formats(tensor, scheme), "bfloat16")
            bound += [made(tensor.shape, scheme) for _ in range(layers)]
        for tokens in (1, 16, PROMPT):
            for linear, k in bound:
                linear(torch.ones(tokens, k, dtype=torch.bfloat16, device="cuda"))
        torch.cuda.synchronize()
        rows.append(
            row(name, f"linears of {layers} layers", scheme_name, predicted, torch.cuda.memory_allocated() - start)
        )
        del bound, linear
        gc.collect()  # a bound linear and its kernels refer to each other
    torch.cuda.empty_cache()
    runtime = used() - int(before) * 2**20 - torch.cuda.memory_reserved()
    return [*rows, row(name, "runtime", "", GPU_RUNTIME_BYTES, runtime)]


def made(shape, scheme):  # type: ignore[no-untyped-def]
    """A linear with random weights, bound to the GPU kernels, and its inputs."""
    import torch

    from isobit.kernels.gpu.bind import bind
    from isobit.quantizer.grid import quantize_weight

    n, k = shape
    weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    if scheme.weights is None:
        return bind(weight, None, None, None), k
    quantized = quantize_weight(weight, scheme.weights, search="absmax", scale_dtype=torch.bfloat16)
    return bind(quantized, scheme.activations, None, None), k


def on_cpu(folder: Path) -> list[dict[str, object]]:
    """Peak resident memory of a process that loads a model, reads a prompt and decodes."""
    from shapes import SHAPES, make_checkpoint

    from isobit.api import quantize
    from isobit.models.planning import plans
    from isobit.targets.here import here

    folder.mkdir(parents=True, exist_ok=True)
    source, rows = folder / "source", []
    make_checkpoint(source, SHAPES["1b"])
    target, board = here()[-1]
    for name in CPU_SCHEMES:
        out = source if name == "bf16" else folder / name
        if out != source:
            quantize(source, out, name, search="absmax", progress=False)
        command = [sys.executable, __file__, "--child", str(out)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        _, planned = plans(source, targets=[target.name], scheme_names=[name], context=PROMPT + DECODED)
        rows.append(row(board.name, "process", name, planned[0][0].memory.total, found["peak"]))
        if out != source:
            shutil.rmtree(out)
    shutil.rmtree(source)
    return rows


def resident(folder: Path) -> dict[str, int]:
    """Loads a model and runs it; the peak of this process's resident memory in bytes."""
    import torch

    from isobit.models.weights import load_model

    model = load_model(folder)
    cache = model.new_cache(1, PROMPT + DECODED)
    with torch.inference_mode():
        for begin in range(0, model.config.vocab_size, PROMPT):  # mapped weights are resident once they have been used
            model.embed_tokens(torch.arange(begin, min(begin + PROMPT, model.config.vocab_size)))
        model.forward(cache.next([[1] * PROMPT], wanted="last"), cache)
        for _ in range(DECODED):
            model.forward(cache.next([[1]], wanted="last"), cache)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"peak": int(status["VmHWM"].split()[0]) * 1024, "now": int(status["VmRSS"].split()[0]) * 1024}


if __name__ == "__main__":
    main()
