"""Tries tiles of the GPU kernels on the card at hand and writes every time: ``kernels/gpu/tiles.py`` is chosen from it.

    python benchmarks/gpu_tune.py one|many|next|lanes [--out gpu_tune_one.csv] [--only int4]

``one``: a token on the layer shapes of Llama-2-7B, rotated over more matrices than the level-2 cache holds, in a CUDA
graph. ``many``: 4096 tokens. ``next``: one-token tiles not tried yet, for rows that miss their goal. ``lanes``: the
kernels of ``linear_lanes.py`` beside the best tiles of the others so far. Kernels are compiled beforehand, in parallel,
without the card.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

LAYER = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008))  # qkv, output, gate and up, down
SQUARE = ((4096, 4096),)
ROTATED_BYTES = 1 << 30
# As `measure` passes them: Triton's cache knows a kernel by the order of its hints too.
ARGUMENTS = ("w", "x", "token_scale", "scale", "zero", "bias", "y", "partials", "counters", "M", "N", "K", "gain")
FIELDS = ("kind", "target", "N", "K", "M", "config", "us", "figure")


@dataclass(frozen=True)
class Case:
    """A variant with constants in place of its own."""

    kind: str
    variant: str
    target: str
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int
    tokens: int
    w: str = ""  # another type of weights than the variant's

    def config(self, k: int) -> Any:
        from dataclasses import replace

        from isobit.kernels.gpu.rows import variant
        from isobit.targets.table import target

        config = variant(self.variant).config(target(self.target)).with_constants(**dict(self.constants))
        config = replace(config, num_warps=self.warps, num_stages=self.stages)
        if self.w:
            config = replace(config, signature={**config.signature, "w": self.w})
        if "EVEN_K" in config.constexprs:
            words = k // variant(self.variant).layout.per_word
            config = config.with_constants(EVEN_K=words % int(config.constexprs["BLOCK_K"]) == 0)
        return config

    @property
    def label(self) -> str:
        return " ".join(f"{n}={v}" for n, v in self.constants) + f" w{self.warps} s{self.stages}"


def one_token() -> Iterator[Case]:
    """Tiles for one token: few rows a program or many, K whole or in parts, shallow or deep pipelines."""
    kinds = {
        "bf16": ("few-bf16", "sm_90", (128, 256)), "e4m3": ("few-e4m3fn-native", "sm_90", (256, 512)),
        "e4m3 on sm_86": ("few-e4m3fn-widened", "sm_86", (256, 512)),
        "e4m3 widened": ("few-e4m3fn-widened", "sm_90", (256,)), "int8": ("few-int8-native", "sm_90", (256, 512)),
        "int4": ("few-int4-bf16", "sm_90", (256, 128, 512)),
    }  # fmt: skip
    for kind, (variant, target, steps) in kinds.items():
        for step, (n, warps), stages, split in itertools.product(
            steps, ((16, 1), (32, 2), (64, 4)), (3, 4, 5, 6), (1, 2, 4, 8)
        ):
            width = "UNIT" if "int4" in variant else "BLOCK_K"
            size = step * (2 if kind == "bf16" else 1) * stages * (n + 16)
            if size > 200 << 10:
                continue
            lines = (2, 4) if target == "sm_90" else (0,)
            for ahead in lines:
                constants = (("BLOCK_N", n), ("BLOCK_M", 8), (width, step), ("SPLIT_K", split), ("OVERLAP", ahead))
                yield Case(kind, variant, target, constants, warps, stages, 1)
    for w, element, target in (("*fp8e4nv", "hardware", "sm_90"), ("", "e4m3fn", "sm_90"), ("", "e4m3fn", "sm_86")):
        for n, step, warps, unroll in itertools.product((2, 4, 8), (512, 1024), (1, 2, 4), (1, 2, 4)):
            constants = (("BLOCK_N", n), ("BLOCK_K", step), ("UNROLL", unroll), ("OVERLAP", 2 * (target == "sm_90")))
            kind = "e4m3" if target == "sm_90" else "e4m3 on sm_86"
            yield Case(kind, "vector-e4m3fn-widened", target, (("ELEMENT", element), *constants), warps, 1, 1, w)
    for kind, variant, step in (("int8", "vector-int8-dp4a", 256), ("bf16", "vector-bf16", 512)):
        for n, warps, unroll, ahead in itertools.product((2, 4, 8), (1, 2, 4), (2, 4), (2, 8)):
            constants = (("BLOCK_N", n), ("BLOCK_K", step), ("UNROLL", unroll), ("OVERLAP", ahead))
            yield Case(kind, variant, "sm_90", constants, warps, 1, 1)


def untried() -> Iterator[Case]:
    """One token: deeper steps, one warp to a tile, and fewer lines ahead, where e4m3 and int4 miss their goals."""
    for step, (n, warps), stages, split in itertools.product(
        (512, 1024), ((16, 1), (32, 1), (32, 2), (64, 2), (32, 4)), (2, 3, 4), (1, 2, 4)
    ):
        if step * stages * (n + 16) > 200 << 10:
            continue
        for ahead in (0, 2, 8):
            constants = (("BLOCK_N", n), ("BLOCK_M", 8), ("BLOCK_K", step), ("SPLIT_K", split), ("OVERLAP", ahead))
            yield Case("e4m3", "few-e4m3fn-native", "sm_90", constants, warps, stages, 1)
    for unit, (n, warps), stages, split in itertools.product(
        (256, 512, 1024), ((16, 1), (32, 1), (64, 2), (128, 4)), (2, 3, 4, 6), (1, 2, 4)
    ):
        if (unit * n // 2 + unit * 2 * 16) * stages > 200 << 10:
            continue
        for ahead in (0, 2):
            constants = (("BLOCK_N", n), ("BLOCK_M", 8), ("UNIT", unit), ("SPLIT_K", split), ("OVERLAP", ahead))
            yield Case("int4", "few-int4-bf16", "sm_90", constants, warps, stages, 1)


def lanes() -> Iterator[Case]:
    """One token on the matrix units without shared memory: few rows a program or many, K by one warp or by eight."""
    kinds: tuple[tuple[str, str, str, tuple[tuple[str, Any], ...]], ...] = (
        ("bf16", "bf16-lanes", "sm_90", ()), ("e4m3", "e4m3fn-lanes", "sm_90", ()),
        ("e5m2", "e5m2-lanes-widened", "sm_90", ()), ("e4m3 on sm_86", "e4m3fn-lanes-widened", "sm_86", ()),
        ("int4", "int4-lanes-bf16", "sm_90", ()), ("int4 on sm_86", "int4-lanes-bf16", "sm_86", ()),
        ("e4m3 by bf16", "e4m3fn-lanes-bf16", "sm_90", ()), ("e4m3 by f16", "e4m3fn-lanes-f16", "sm_90", ()),
        ("e4m3 by f16 on sm_86", "e4m3fn-lanes-f16", "sm_86", ()),
        ("int8 by bf16", "int8-lanes-bf16", "sm_90", ()), ("int8 by f16", "int8-lanes-f16", "sm_90", ()),
        ("uint4", "uint4-lanes-bf16", "sm_90", ()), ("uint4 by f16", "uint4-lanes-f16", "sm_90", ()),
        ("int4-g32", "int4-lanes-bf16", "sm_90", (("GROUP", 32), ("UNIT", 128))),
        ("block", "block-lanes", "sm_90", ()), ("block on sm_86", "block-lanes-widened", "sm_86", ()),
    )  # fmt: skip
    for kind, name, target, known in kinds:
        for n, warps, unroll in itertools.product((4, 8), (1, 2, 4), (1, 2, 4)):
            constants = (*known, ("BLOCK_N", n), ("BLOCK_K", 128 * warps), ("UNROLL", unroll))
            yield Case(kind, f"vector-{name}", target, constants, warps, 1, 1)
    best = (  # of gpu_tune_one.csv
        ("e4m3", "few-e4m3fn-native", (64, 256, 2), 4, 5), ("e4m3", "few-e4m3fn-native", (16, 512, 1), 1, 5),
        ("e4m3", "few-e4m3fn-native", (32, 512, 2), 2, 5), ("int4", "few-int4-bf16", (32, 256, 2), 2, 5),
        ("int4", "few-int4-bf16", (32, 256, 1), 2, 5), ("int4", "few-int4-bf16", (64, 256, 8), 4, 3),
    )  # fmt: skip
    for kind, name, (n, step, split), warps, stages in best:
        width = "UNIT" if "int4" in name else "BLOCK_K"
        constants = (("BLOCK_N", n), ("BLOCK_M", 8), (width, step), ("SPLIT_K", split), ("OVERLAP", 2))
        yield Case(kind, name, "sm_90", constants, warps, stages, 1)
    for kind, name, step, unroll in (("int8", "int8-dp4a", 256, 4), ("bf16", "bf16", 512, 4)):
        constants = (("BLOCK_N", 4), ("BLOCK_K", step), ("UNROLL", unroll), ("OVERLAP", 2))
        yield Case(kind, f"vector-{name}", "sm_90", constants, 2, 1, 1)


def many_tokens() -> Iterator[Case]:
    """Tiles for thousands of tokens."""
    tiles = {
        "bf16": [("many-bf16", "sm_90", (128, 256, 64, 8, 3)), ("many-bf16", "sm_90", (128, 256, 64, 8, 4)),
                 ("many-bf16", "sm_90", (256, 128, 64, 8, 3)), ("many-bf16", "sm_90", (128, 128, 64, 4, 4))],
        "bf16 on sm_86": [("many-bf16", "sm_86", t) for t in (
            (128, 128, 64, 8, 3), (128, 128, 32, 4, 4), (128, 128, 64, 4, 3), (128, 256, 32, 8, 3),
            (256, 128, 32, 8, 3))],
        "e4m3": [("many-e4m3fn-native", "sm_90", t) for t in (
            (128, 128, 128, 8, 4), (128, 128, 128, 4, 4), (64, 128, 128, 4, 4), (128, 256, 128, 8, 3),
            (64, 256, 128, 4, 3), (128, 128, 256, 8, 3))],
        "int8": [("many-int8-native", "sm_90", t) for t in (
            (128, 256, 128, 8, 3), (128, 256, 128, 8, 4), (128, 128, 128, 8, 4), (128, 128, 128, 4, 4),
            (256, 128, 128, 8, 4), (128, 256, 64, 8, 4))],
        "e4m3 on sm_86": [("many-e4m3fn-widened", "sm_86", t) for t in (
            (128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 32, 4, 4), (128, 64, 64, 4, 3), (64, 128, 64, 4, 3),
            (128, 256, 64, 8, 3), (128, 256, 32, 8, 3), (256, 128, 32, 8, 3), (64, 256, 64, 8, 3),
            (64, 256, 32, 4, 3))],
        "int4": [("many-int4-bf16", "sm_90", t) for t in (
            (128, 128, 128, 8, 3), (128, 128, 128, 4, 3), (64, 256, 128, 4, 2), (128, 256, 128, 8, 2),
            (64, 128, 128, 4, 3), (128, 128, 256, 8, 2), (64, 256, 128, 8, 3), (128, 64, 256, 4, 3))],
        "block": [("many-block-native", "sm_90", t) for t in ((128, 128, 128, 8, 4), (128, 128, 128, 4, 3),
            (64, 256, 128, 8, 3), (64, 128, 128, 4, 4))],
        "block on sm_86": [("many-block-widened", "sm_86", t) for t in ((128, 64, 128, 8, 2), (64, 128, 128, 8, 2),
            (64, 64, 128, 4, 2))],
    }  # fmt: skip
    for kind, rows in tiles.items():
        for variant, target, (n, m, k, warps, stages) in rows:
            width = "UNIT" if "int4" in variant else "BLOCK_K"
            constants = (("BLOCK_N", n), ("BLOCK_M", m), (width, k))
            for band in (4, 16):
                yield Case(kind, variant, target, (*constants, ("SWIZZLE", band)), warps, stages, 4096)
            if kind == "e4m3":
                promoted = (("IMPRECISE", None), ("PROMOTE", True), ("SWIZZLE", 8))
                yield Case(kind, variant, target, (*constants, *promoted), warps, stages, 4096)


def compile_case(case: Case, k: int, device: int) -> str:
    """Compiles into Triton's cache, as the run will; what went wrong, or nothing."""
    from isobit.kernels.gpu import launch
    from isobit.kernels.gpu.compile.request import specialize
    from isobit.kernels.gpu.rows import variant
    from isobit.targets.table import target

    config = case.config(k)
    row = variant(case.variant)
    pointers = [name for name, kind in config.signature.items() if kind.startswith("*")]
    aligned = tuple(name for name in ARGUMENTS if name in pointers or name in ("N", "K"))
    try:
        launch._compiled(specialize(row.entry, config, target(case.target), aligned), device)
    except Exception as failure:  # noqa: BLE001 - a tile that does not compile is a result
        return f"{type(failure).__name__}: {str(failure)[-200:]}"
    return ""


class Operands:
    """Random weights of one kind and shape, more of them than the level-2 cache holds."""

    def __init__(self, case: Case, n: int, k: int) -> None:
        import torch

        signature = case.config(k).signature
        from isobit.kernels.gpu.rows import variant

        row = variant(case.variant)
        width = k // 4 if signature["w"] == "*i16" else k // row.per_word
        dtypes = {
            "*bf16": torch.bfloat16, "*fp16": torch.float16, "*u8": torch.uint8, "*i8": torch.int8, "*i16": torch.int16,
            "*i32": torch.int32, "*fp8e4nv": torch.float8_e4m3fn, "*fp32": torch.float32,
        }  # fmt: skip
        self.dtype = dtypes[signature["w"]]
        size = n * width * self.dtype.itemsize
        count = max(4, min(16, ROTATED_BYTES // size)) if case.tokens == 1 else 2
        self.weights = [self._random(n, width) for _ in range(count)]
        m, x_type = case.tokens, dtypes[signature["x"]]
        x_width = k // (4 if row.activations else 2) if signature["x"] == "*i32" else k
        if x_type.itemsize == 1 or x_type == torch.int32:
            self.x = torch.randint(0, 120, (m, x_width * x_type.itemsize), dtype=torch.uint8, device="cuda").view(
                x_type
            )
        else:
            self.x = torch.randn(m, x_width, device="cuda").to(x_type)
        groups = k // int(dict(case.constants).get("GROUP", 128))
        blocks, grouped = "block" in case.variant, "int4" in case.variant
        self.token_scale = torch.rand(m * (groups if blocks else 1), device="cuda")
        self.scale = torch.rand(n * groups if grouped or blocks else n, device="cuda").to(dtypes[signature["scale"]])
        self.zero = torch.randint(0, 16, (n * groups,), dtype=torch.uint8, device="cuda")
        self.y = torch.empty(m, n, dtype=dtypes[signature["y"]], device="cuda")
        self.partials = torch.empty(8 * (n + 128) * 16, dtype=dtypes[signature["partials"]], device="cuda")
        self.counters = torch.zeros(4096, dtype=torch.int32, device="cuda")
        of_group = self.scale.element_size() + ("uint4" in case.variant)
        self.bytes = size + (n * groups * of_group if grouped else 0)

    def _random(self, n: int, width: int) -> Any:
        import torch

        if self.dtype.is_floating_point and self.dtype.itemsize > 1:
            return torch.randn(n, width, device="cuda").to(self.dtype)
        raw = torch.randint(0, 256, (n, width * self.dtype.itemsize), dtype=torch.uint8, device="cuda")
        if self.dtype == torch.float8_e4m3fn or self.dtype == torch.uint8:
            raw = torch.where((raw & 0x7F) == 0x7F, raw - 1, raw)
        return raw.view(self.dtype)


def measure(case: Case, operands: Operands, n: int, k: int) -> float:
    """Microseconds a launch, in a CUDA graph over all matrices, the median of replays."""

    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.launch import Kernel
    from isobit.kernels.gpu.rows import variant
    from isobit.targets.table import target

    config = case.config(k)
    kernel = Kernel(variant(case.variant).entry, config, card.machine(target(case.target)))
    constants, m = config.constexprs, case.tokens
    rows = -(-n // int(constants["BLOCK_N"]))
    words = k // variant(case.variant).layout.per_word
    arguments = {"x": operands.x, "token_scale": operands.token_scale, "scale": operands.scale, "zero": operands.zero,
                 "bias": operands.scale, "y": operands.y, "partials": operands.partials,
                 "counters": operands.counters, "M": m, "N": n, "K": words, "gain": 1.0}  # fmt: skip
    if case.variant.startswith("vector"):
        grid: tuple[int, ...] = (rows, m)
    else:
        grid = (rows * -(-m // int(constants["BLOCK_M"])) * int(constants["SPLIT_K"]),)

    def launch() -> None:
        for w in operands.weights:
            kernel(grid, w=w, **arguments)

    return timed(launch, 12 if m == 1 else 6) / len(operands.weights)


def timed(launch: Any, replays: int) -> float:
    """Microseconds of one ``launch`` replayed as a CUDA graph: the median."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    graph.replay()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(WHAT))
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", default="", help="regular expression of kinds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    cases = [case for case in WHAT[options.what]() if re.search(options.only, case.kind)]
    shapes = SQUARE if options.what == "many" else LAYER
    begin = time.time()
    keys = list(dict.fromkeys((case, k) for case in cases for _, k in shapes))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        answers = list(pool.map(compile_case, *zip(*keys, strict=True), itertools.repeat(90), chunksize=4))
    problems = {key: answer for key, answer in zip(keys, answers, strict=True) if answer}
    print(f"{len(keys)} kernels, {len(problems)} do not compile, {time.time() - begin:.0f} s", flush=True)
    for (case, k), answer in list(problems.items())[:6]:
        print(case.kind, case.label, k, answer.replace("\n", " "))
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for n, k in shapes:
            held: dict[tuple[str, str, str], Operands] = {}
            for case in cases:
                if (case, k) in problems:
                    continue
                which = (case.kind, case.variant, case.w)
                if which not in held:
                    held = {which: Operands(case, n, k)}
                try:
                    us = measure(case, held[which], n, k)
                except Exception as failure:  # noqa: BLE001 - too much shared memory, say: a result
                    print(case.kind, case.label, type(failure).__name__, str(failure)[:120], flush=True)
                    continue
                work = held[which].bytes if case.tokens == 1 else 2 * case.tokens * n * k
                writer.writerow(
                    (
                        case.kind,
                        case.target,
                        n,
                        k,
                        case.tokens,
                        f"{case.variant} {case.label}",
                        f"{us:.2f}",
                        f"{work / us / 1e6:.3f}",
                    )
                )
            file.flush()
            print(n, k, f"{time.time() - begin:.0f} s", flush=True)
    report(options.out)


WHAT = {"one": one_token, "many": many_tokens, "next": untried, "lanes": lanes}


def report(path: str) -> None:
    """The three fastest of each kind and shape; then, for a kind, those that take the least for all shapes together."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    layers: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        layers.setdefault(row["kind"], {}).setdefault(row["config"], []).append(float(row["us"]))
    for (kind, n, k), group in itertools.groupby(
        sorted(rows, key=lambda r: (r["kind"], r["N"], r["K"], float(r["us"]))),
        key=lambda r: (r["kind"], r["N"], r["K"]),
    ):
        for row in list(group)[:3]:
            print(f"{kind:14} {n}x{k} {row['us']:>8} us {row['figure']:>9} T/s  {row['config']}")
    for kind, configs in layers.items():
        whole = max(len(times) for times in configs.values())
        for config, times in sorted(configs.items(), key=lambda item: sum(item[1]))[:40]:
            if len(times) == whole and sum(times) <= 1.05 * min(sum(t) for t in configs.values() if len(t) == whole):
                print(f"{kind:14} layer {sum(times):8.2f} us = {' + '.join(f'{us:.2f}' for us in times)}  {config}")


if __name__ == "__main__":
    main()
