"""What batch invariance costs: the same answers from a model bound as ever, and bound so that neighbours change no bit.

    python benchmarks/batch_invariant.py --work /dev/shm/isobit                        # 7B shape on the GPU
    python benchmarks/batch_invariant.py --device cpu --shape 1b --schemes bf16,int4   # on the CPU

Weights are random. Both models answer in one process, one after the other; "cost" is the time of a step over that of
the usual model, less one. Figures are medians, as `isobit bench` takes them.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

from common import RESULTS, provenance, save
from shapes import SHAPES, Recipe, make

CASES = ((8, 64, 64), (1, 64, 64), (64, 64, 64), (1, 4032, 32))  # sequences, tokens of a prompt, of an answer


def measure(folder: Path, scheme: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each case."""
    import torch

    from isobit.engine.llm import LLM
    from isobit.engine.tokenizer import Tokenizer
    from isobit.evaluation import bench
    from isobit.models.cache.paged import BLOCK
    from isobit.models.weights import load_model

    tokenizer, longest = Tokenizer.from_folder(folder), SHAPES[args.shape].context
    cases = [bench.Case(*case) for case in CASES if sum(case[1:]) <= longest and case[0] <= args.most]
    found: dict[bool, list[bench.Measured]] = {}
    for alike in (False, True):
        model = load_model(folder, device=args.device, lowering=args.target, batch_invariant=alike)
        memory = bench.reader(model).memory
        llm = LLM(
            model, tokenizer, sequences=max(case.batch for case in cases),
            cache_tokens=2 * BLOCK * max(case.blocks for case in cases), prefix_cache=False,
        )  # fmt: skip
        found[alike] = [bench.measure(llm, case, memory, rounds=args.rounds) for case in cases]
        del model, llm, memory
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    rows: list[dict[str, object]] = []
    for case, usual, other in zip(cases, found[False], found[True], strict=True):
        row: dict[str, object] = {"device": device, "target": args.target or "", "shape": args.shape, "scheme": scheme}
        row |= {"batch": case.batch, "prompt": case.prompt}
        row |= {"step_ms": round(1e3 * usual.step, 4), "alike_ms": round(1e3 * other.step, 4)}
        row |= {"cost": round(other.step / usual.step - 1, 3)}
        row |= {"prefill_tok_s": round(usual.prefill, 1), "alike_prefill_tok_s": round(other.prefill, 1)}
        print(*row.values(), flush=True)
        rows.append(row)
    return rows


def main() -> int:
    """Parses, makes what is not there, measures, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for checkpoints, which are left there")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--target", help="whose lowering runs on the GPU (default: its own)")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="7b")
    parser.add_argument("--schemes", default="bf16,fp8,int8,int4")
    parser.add_argument("--most", type=int, default=64, help="sequences at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--csv", type=Path, default=RESULTS / "batch_invariant.csv")
    args = parser.parse_args()
    from gpu_generate import write_tokenizer

    with tempfile.TemporaryDirectory() as temporary:
        for scheme in args.schemes.split(","):
            folder = make(args.work or Path(temporary), Recipe(args.shape, scheme))
            write_tokenizer(folder, SHAPES[args.shape].vocab)
            save([provenance() | row for row in measure(folder, scheme, args)], args.csv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
