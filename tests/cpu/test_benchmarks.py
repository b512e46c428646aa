"""The benchmarks run: a small case of each, as a user starts them, and the GGUF files that one of them writes."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# Stands in for llama-bench: answers in its JSON, and fails on a file that is not there.
FAKE_BENCH = """#!{python}
import json, sys
path = sys.argv[sys.argv.index("-m") + 1]
assert open(path, "rb").read(4) == b"GGUF"
common = {{"build_commit": "fake"}}
tests = [{{"n_prompt": 32, "n_gen": 0, "avg_ts": 4.0}}, {{"n_prompt": 0, "n_gen": 8, "avg_ts": 2.0}}]
print(json.dumps([common | test for test in tests]))
"""


def bench(script: str, *options: object) -> subprocess.CompletedProcess[str]:
    """Runs a benchmark on one thread with the reference kernel."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ISOBIT_KERNEL": "reference"}
    command = [sys.executable, str(BENCHMARKS / script), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_linear(tmp_path: Path) -> None:
    out = tmp_path / "linear.csv"
    done = bench(
        "cpu_linear.py", "--quick", "--schemes", "int8", "int3", "--shapes", "2048x128", "--m", 1, 128, "--csv", out
    )
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert [(row["scheme"], row["k"], row["m"]) for row in found] == [
        ("int8", "128", "1"), ("int8", "128", "128"), ("int3", "120", "1"), ("int3", "120", "128"),
    ]  # fmt: skip
    for row in found:
        assert row["kernel"] == "reference" and row["threads"] == "1" and float(row["relative_error"]) <= 5e-4
        seconds, weights = float(row["microseconds"]) / 1e6, int(row["n"]) * int(row["k"])
        assert float(row["gb_per_s"]) == pytest.approx(
            weights * float(row["bits_per_weight"]) / 8 / seconds / 1e9, rel=0.1, abs=0.01
        )
        assert (row["ratio_to_torch_f32"] != "") == (row["m"] == "128")


def test_a_model(tmp_path: Path) -> None:
    out = tmp_path / "decode.csv"
    done = bench("cpu_decode.py", "--quick", "--schemes", "int4", "--rounds", 1, "--work", tmp_path, "--csv", out)
    assert done.returncode == 0, done.stderr
    (row,) = rows(out)
    assert row["scheme"] == "int4" and row["lm_head"] == "keep"
    linears, head = 2 * (2 * 256 * (256 + 128) + 3 * 256 * 640), 256 * 1280
    norms = 5 * 256
    read = (linears * 4.125 + (head + norms) * 16) / 8
    assert float(row["read_bits_per_weight"]) == pytest.approx(8 * read / (linears + head), rel=0.01)
    assert float(row["decode_gb_s"]) == pytest.approx(float(row["decode_tok_s"]) * read / 1e9, abs=0.006)
    assert [path.name for path in tmp_path.iterdir()] == ["decode.csv"], "the work folder is removed"


def test_beside_a_peer(tmp_path: Path) -> None:
    tool = tmp_path / "llama-bench"
    tool.write_text(FAKE_BENCH.format(python=sys.executable))
    tool.chmod(0o755)
    (tmp_path / "llama-quantize").symlink_to(tool)
    out = tmp_path / "peers.csv"
    options = ["--quick", "--pairs", "F16", "--schemes", "bf16", "--rounds", 1, "--csv", out]
    done = bench("cpu_peers.py", "--llama-bench", tool, *options)
    assert done.returncode == 0, done.stderr
    (row,) = rows(out)
    assert row["peer"] == "llama.cpp fake" and row["peer_bits"].startswith("16.0")
    assert float(row["decode_ratio"]) == pytest.approx(float(row["decode_tok_s"]) / 2, rel=0.01)
    assert float(row["prefill_ratio"]) == pytest.approx(float(row["prefill_tok_s"]) / 4, rel=0.01)


def test_the_engine(tmp_path: Path) -> None:
    out = tmp_path / "engine.csv"
    options = ["--device", "cpu", "--quick", "--schemes", "int8", "--work", tmp_path, "--csv", out]
    done = bench("engine_decode.py", *options)
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert [(row["part"], row["batch"], row["prompt"]) for row in found] == [
        ("batch", "1", "8"), ("batch", "2", "8"), ("behind", "1", "64"), ("prefill", "2", "64"),
    ]  # fmt: skip
    assert float(found[3]["prefill_tok_s"]) > 0 and found[3]["tok_s"] == ""
    for row in found[:3]:
        step, host = float(row["step_ms"]), float(row["host_us"])
        assert float(row["tok_s"]) == pytest.approx(1e3 * int(row["batch"]) / step, rel=0.01)
        assert 0 < host < 1e3 * step and float(row["share"]) > 0 and float(row["planned_tok_s"]) > 0


FAKE_STREAMS = """#!{python}
import json, sys
path, streams = sys.argv[sys.argv.index("-m") + 1], sys.argv[sys.argv.index("-npl") + 1].split(",")
assert open(path, "rb").read(4) == b"GGUF" and sys.argv[sys.argv.index("-c") + 1] == "32"
print("some words")
for number in streams:
    print(json.dumps({{"pl": int(number), "speed_tg": 5.0 * int(number), "speed_pp": 3.0}}))
"""


def test_the_host_s_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: it imports torch, and nothing of it is compiled."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("engine_host")
    for kind, rows in (("text", 1), ("random", 3), ("words", 2)):
        before, beside = module.measure(rows, 24, *module.chosen(kind, rows))
        assert before > 0 and beside > 0
    for name in ("engine_host", "gpu_generate", "shapes", "common"):
        sys.modules.pop(name, None)


def test_streams_beside_a_peer(tmp_path: Path) -> None:
    tool = tmp_path / "llama-batched-bench"
    tool.write_text(FAKE_STREAMS.format(python=sys.executable))
    tool.chmod(0o755)
    out, options = tmp_path / "streams.csv", ["--quick", "--schemes", "bf16", "--streams", 1, 2]
    words = ["--llama-batched-bench", tool, "--llama-quantize", tool, "--work", tmp_path / "work", "--csv", out]
    done = bench("cpu_streams.py", *options, *words)
    assert done.returncode == 0, done.stderr
    one, two = rows(out)
    assert (one["streams"], two["streams"]) == ("1", "2") and one["to_fewest"] == "1.0"
    assert float(two["to_fewest"]) == pytest.approx(float(two["tok_s"]) / float(one["tok_s"]), abs=0.01)
    assert float(two["ratio"]) == pytest.approx(float(two["tok_s"]) / 10, rel=0.01)


def test_two_trees(tmp_path: Path) -> None:
    out, tree = tmp_path / "trees.csv", BENCHMARKS.parent
    options = ["--quick", "--schemes", "int8", "--turns", 2, "--seconds", 0.02, "--csv", out]
    done = bench("cpu_trees.py", "--before", tree, *options)
    assert done.returncode == 0, done.stderr
    (row,) = rows(out)
    assert row["scheme"] == "int8" and row["commit"] == row["commit_before"] and row["turns"] == "2"
    assert float(row["decode_before_tok_s"]) > 0 and float(row["prefill_after_tok_s"]) > 0
    assert float(row["decode_ratio_low"]) <= float(row["decode_ratio"]) <= float(row["decode_ratio_high"])


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("cpu_linear.py", ["--schemes", "fp9"], "unknown scheme 'fp9'"),
        ("cpu_linear.py", ["--shapes", "64by64"], "write it as NxK"),
        ("cpu_experts.py", ["--schemes", "fp9"], "unknown scheme 'fp9'"),
        ("cpu_experts.py", ["--schemes", "bf16"], "bf16 has no codes"),
        ("cpu_formats.py", ["--schemes", "fp9"], "unknown scheme 'fp9'"),
        ("cpu_latent.py", ["--scheme", "fp9"], "unknown scheme 'fp9'"),
        ("cpu_decode.py", ["--keep"], "need --work"),
        ("cpu_peers.py", ["--llama-bench", "nowhere"], "is not a program"),
        ("cpu_trees.py", ["--before", "nowhere"], "is no checkout of isobit"),
        ("cpu_streams.py", ["--llama-batched-bench", "nowhere"], "is not a program"),
        ("engine_decode.py", ["--only", "speed"], "the parts are batch, behind, prefill, start"),
    ],
)
def test_mistakes_are_named(script: str, options: list[str], said: str) -> None:
    done = bench(script, *options)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_gguf_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gguf_file
    import shapes

    path = tmp_path / "tiny.gguf"
    gguf_file.write_random(path, shapes.SHAPES["tiny"])
    sizes = gguf_file.tensor_bytes(path)
    expected = {
        gguf_file.gguf_name(name): 4 * size[0] if len(size) == 1 else 2 * size[0] * size[1]
        for name, size in shapes.SHAPES["tiny"].tensors().items()
    }
    assert sizes == expected
    assert sizes["blk.1.ffn_up.weight"] == 2 * 640 * 256 and len(sizes) == 2 * 9 + 3


def test_no_row_goes_under_other_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    path = tmp_path / "some.csv"
    common.save([{"a": 1, "b": 2}], path)
    common.save([{"a": 3, "b": 4}], path)
    with pytest.raises(SystemExit):
        common.save([{"a": 5, "c": 6}], path)
    assert json.dumps(rows(path)) == json.dumps([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}])
