"""Whether a model fits is known before a tensor of it is read; what is left is its cache's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
from families import make_model, save

import isobit
from isobit import arguments
from isobit.cli.main import main
from isobit.engine import generate
from isobit.errors import CapacityError, UsageError
from isobit.formats.caches import cache_format
from isobit.kernels.gpu.latent_tiles import arena, parts_of
from isobit.legalize import plan as plans
from isobit.legalize.memory import CPU_RUNTIME_BYTES, USABLE
from isobit.models import weights
from isobit.models.cache.paged import BLOCK
from isobit.models.room import LEAST_TOKENS, Room, room
from isobit.models.weights import load_model
from isobit.server import run as running
from isobit.targets import detect
from isobit.targets.prefill import MIXED
from isobit.targets.recorded import GRAPH_BYTES, recorded_steps
from isobit.targets.table import lookup

PER_TOKEN = 2 * tiny.LAYERS * 2 * 64 * 4  # keys and values of two heads of 64 float32 numbers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("room") / "model", context=4096)


def asked(model: Path, given: int | None, cache: str = "auto", free: int = 1 << 40, sequences: int = 1) -> Room:
    found = room(model, gpu=False, free=free, given=given, cache=cache_format(cache), sequences=sequences)
    assert found is not None
    return found


def least(model: Path) -> int:
    """Bytes with which it just fits."""
    one = asked(model, 1 << 40)
    small = one.memory.weights + CPU_RUNTIME_BYTES + LEAST_TOKENS * PER_TOKEN
    low, high = small, small + (64 << 20)
    while high - low > 1024:
        middle = (low + high) // 2
        try:
            asked(model, middle)
            high = middle
        except CapacityError:
            low = middle
    return high


def test_the_figures_are_the_plan_s(model: Path) -> None:
    found = asked(model, 1 << 30)
    plan = isobit.plan(str(model), schemes=["bf16"], context=4096, memory="1GiB")[1][-1][0]
    assert found.memory == plan.memory and plan.memory.capacity == int(USABLE * (1 << 30))
    assert plan.memory.kv_per_token == PER_TOKEN
    blocks = (plan.memory.capacity - found.held) // PER_TOKEN // BLOCK
    assert found.tokens == blocks * BLOCK and found.fits
    assert asked(model, 1 << 30, sequences=65).held - found.held == 64 * 4 * tiny.VOCAB
    assert found.cache_tokens(2) == 2 * 4097 and found.cache_tokens(1 << 20) == found.tokens


def test_narrow_caches_hold_more(model: Path) -> None:
    wide, narrow = asked(model, 1 << 30), asked(model, 1 << 30, "int8")
    assert narrow.memory.kv_per_token == 2 * tiny.LAYERS * 2 * (64 + 4) and narrow.tokens > 3 * wide.tokens


def test_what_does_not_fit_is_refused_with_numbers_before_it_is_read(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*args: object, **options: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(weights._Loader, "decoder", read)
    for call in (isobit.load, isobit.LLM, isobit.evaluate, isobit.bench):
        with pytest.raises(CapacityError, match="does not fit") as error:
            call(model, memory="100MiB")
        said = str(error.value)
        for part in ("weights 8.81 MiB", "runtime 274 MiB", "256 tokens 512 KiB", "100 MiB were given",
                     "no context fits. Allow more"):  # fmt: skip
            assert part in said, said
        assert "--kv-cache" not in said and "isobit plan" not in said, "neither would help"
    for command in (["generate", str(model), "a"], ["chat", str(model)], ["eval", str(model)], ["bench", str(model)]):
        if command[0] != "chat":  # a model without a template is refused before
            assert main([*command, "--memory", "100MiB"]) == 2
            assert "100 MiB were given" in capsys.readouterr().err
    with pytest.raises(CapacityError, match="of model|model does not fit"):
        isobit.compare([model], memory="100MiB")


@pytest.mark.parametrize("cache", ["auto", "int8", "mxfp4"])
def test_a_refusal_names_what_suffices_and_what_helps(model: Path, cache: str) -> None:
    """The least that it names is enough, and each of the caches that it advises: not the one that was asked for."""
    with pytest.raises(CapacityError, match="are needed at least") as error:
        asked(model, 285 << 20, cache)
    needed = re.search(r"([0-9.]+ MiB) are needed at least", str(error.value))
    assert needed is not None
    enough = arguments.size("memory", needed[1])
    assert asked(model, enough, cache).fits and enough - (1 << 18) < int(USABLE * enough) / USABLE
    few = enough - (160 << 10)
    with pytest.raises(CapacityError) as error:
        asked(model, few, cache)
    advised = re.search(r"--kv-cache ([^)]*)\)", str(error.value))
    names = advised[1].split(" or ") if advised else []
    assert cache not in names and ("int8" in names) == (cache == "auto")
    assert all(asked(model, few, name).fits for name in names)
    longest = re.search("longest context that fits is ([0-9]+) tokens", str(error.value))
    assert longest is not None
    short = room(
        model, gpu=False, free=1 << 40, given=few, cache=cache_format(cache), sequences=1, context=int(longest[1])
    )
    assert short is not None and short.fits and short.context == int(longest[1])


def test_what_is_free_counts_where_nobody_says(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "memory", lambda: (1 << 40, 50 << 20))
    with pytest.raises(CapacityError, match="has 50 MiB free"):
        isobit.load(model)
    assert isobit.load(model, memory="1GiB").generate([1, 2], max_tokens=2).token_ids, "whoever knows better says so"


def test_the_cache_takes_what_is_left_and_no_more(model: Path) -> None:
    enough = least(model)
    llm = isobit.LLM(model, memory=enough, sequences=1)
    tokens = llm.engine.pool.count * BLOCK
    assert LEAST_TOKENS - BLOCK <= tokens <= LEAST_TOKENS + BLOCK
    with pytest.raises(CapacityError, match=f"never fit the key-value cache, which holds {tokens} tokens"):
        llm.generate([[1] * (tokens + 1)], isobit.SamplingParams(max_tokens=1))
    prompts = [[place + 1] * 100 for place in range(3)]
    params = isobit.SamplingParams(max_tokens=8, ignore_eos=True)
    alone = [isobit.LLM(model).generate([prompt], params)[0].token_ids for prompt in prompts]
    tight = isobit.LLM(model, memory=enough, sequences=3).generate(prompts, params)
    assert [answer.token_ids for answer in tight] == alone, "they wait for each other"
    with pytest.raises(CapacityError, match="does not fit"):
        isobit.LLM(model, memory=enough - (1 << 20))


def test_a_short_context_needs_no_more_than_itself(tmp_path: Path) -> None:
    small = tiny.save_model(tmp_path / "small", context=64)
    assert asked(small, 1 << 30).cache_tokens(1) == 65


def test_what_cannot_be_planned_is_left_to_loading(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Unknown"]}))
    assert room(tmp_path, gpu=False, free=1, given=None, cache=cache_format("auto"), sequences=1) is None


def test_cases_that_need_a_larger_cache(model: Path) -> None:
    with pytest.raises(CapacityError, match="these cases need a cache of .* there is room for"):
        isobit.bench(model, memory=least(model) + (1 << 20), batches=[64], prompt=64, new=8)


def test_benches_that_cannot_be_run_are_refused_before_a_tensor_is_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args: object, **options: object) -> None:
        raise AssertionError("a tensor was read")

    few = least(model) + (1 << 20)
    monkeypatch.setattr(weights._Loader, "decoder", read)
    with pytest.raises(UsageError, match="9000 tokens of prompt and 8 of answer: this model's context is 4096"):
        isobit.bench(model, batches=[1], prompt=64, new=8, context=9000)
    with pytest.raises(CapacityError, match="these cases need a cache of"):
        isobit.bench(model, memory=few, batches=[64], prompt=64, new=8)


@pytest.mark.parametrize(
    ("text", "value"),
    [("20GiB", 20 << 30), ("20G", 20 << 30), ("1.5 gib", 3 << 29), ("500MB", 500_000_000), ("4096", 4096), (7, 7),
     ("2k", 2048), ("3B", 3)],
)  # fmt: skip
def test_sizes(text: object, value: int) -> None:
    assert arguments.size("memory", text) == value


@pytest.mark.parametrize("wrong", ["", "0", 0, -1, True, 1.5, "20 XB", "GiB", "1e9", "-5GiB", "0.1B", [1]])
def test_sizes_that_are_none(wrong: object) -> None:
    with pytest.raises(UsageError, match="memory must be a size like 20GiB"):
        arguments.size("memory", wrong)


def test_require_room_is_what_loading_asks(model: Path) -> None:
    assert generate.require_room(model, memory=1 << 30) == asked(model, 1 << 30)


def test_recorded_steps_take_their_part(model: Path) -> None:
    """Of a GPU whose memory is given: the cache is made at once, and the steps are recorded."""

    def on_a_card(graphs: int) -> Room:
        found = room(
            model, gpu=True, free=1 << 36, given=1 << 36, cache=cache_format("auto"), sequences=64,
            machine=card, graphs=graphs,
        )  # fmt: skip
        assert found is not None
        return found

    target, board = lookup("H200")
    assert board is not None
    card = (target, board)
    without, one = on_a_card(0), on_a_card(48)
    assert one.graphs == 48 * GRAPH_BYTES + one.memory.activations // 2 + one.logits
    assert one.held - without.held == one.graphs and "recorded steps" in str(one) and "recorded" not in str(without)
    assert one.tokens < without.tokens
    plans = isobit.plan(str(model), targets=["h200"], schemes=["bf16"], context=4096, batch=64)[1][0]
    steps = recorded_steps(64)
    assert plans[0].memory.recorded == on_a_card(steps).graphs > steps * GRAPH_BYTES, "one figure for both"
    assert plans[0].memory.total - plans[0].memory.recorded < plans[0].memory.total


def test_parts_of_latent_attention_take_theirs(tmp_path: Path) -> None:
    folder = save(make_model("DeepseekV3ForCausalLM", max_position_embeddings=4096), tmp_path / "latent")
    target, board = lookup("H200")
    assert board is not None
    found = room(
        folder, gpu=True, free=1 << 36, given=1 << 36, cache=cache_format("auto"), sequences=64,
        machine=(target, board), graphs=1,
    )  # fmt: skip
    assert found is not None
    attention = load_model(folder).config.layers[0].attention
    parts = arena(attention.heads, attention.rank, 64, found.context)
    assert parts == 4 * 64 * attention.heads * parts_of(attention.heads, found.context) * (attention.rank + 2) > 0
    assert found.graphs == GRAPH_BYTES + found.memory.activations // 2 + found.logits + parts


def test_loading_starts_no_program(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(detect.subprocess, "run", started)
    left = generate.require_room(model, memory=1 << 31)
    assert left is not None and left.fits
    assert detect.detect(programs=False).compiler is None


def test_more_than_there_is_is_refused_with_numbers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "memory", lambda: (4 << 30, 3 << 30))
    for call in (isobit.load, isobit.LLM, isobit.evaluate, isobit.bench):
        with pytest.raises(CapacityError, match=r"allows 4.50 GiB, and this machine has 4.00 GiB, 3.00 of them free"):
            call(model, memory="4.5GiB")
    assert generate.require_room(model, memory=4 << 30) is not None


def test_what_is_printed_before_serving_names_the_cache_s_context(model: Path) -> None:
    def said(**options: int | str) -> str:
        found = running.planned(model, "cpu", sequences=2, **options)
        line, table = found["text"][:2]
        assert table.endswith(f"for {found['plan'][0]['context']} tokens")
        return f"{line.partition('context up to ')[2]}, {found['plan'][0]['context']}"

    assert said() == "4096 tokens, 4096" and said(context=1000) == "1000 tokens, 1000"
    told = "256 tokens, which is what the cache holds (the model reads 4096), 256"
    assert said(cache_tokens=300) == told.replace("256", str(300 // BLOCK * BLOCK))
    assert said(cache_tokens=100_000) == said(memory="1GiB") == "4096 tokens, 4096"
    few = least(model) + (1 << 20)
    held = isobit.LLM(model, memory=few, sequences=2).engine.longest
    assert held is not None and said(memory=few).startswith(f"{held} tokens, which is what the cache holds")
    assert said(memory="100MiB").startswith("4096 tokens"), "loading says that it does not fit"


@pytest.mark.parametrize("more", [0, 60 << 10, 300 << 10])
def test_plans_and_the_server_name_the_same_longest_context(model: Path, more: int) -> None:
    """A cache has whole blocks, so a plan does not promise tokens of a block that there is no room for."""
    few = least(model) + more
    shown = running.planned(model, "cpu", memory=few)["plan"][0]
    context = isobit.LLM(model, memory=few, sequences=1).engine.longest
    assert shown["context"] == shown["memory"]["longest_context"] == context
    plan = isobit.plan(str(model), schemes=["bf16"], memory=few)[1][-1][0]
    assert plan.memory.longest_context == context and context % BLOCK == 0


def test_a_sequence_takes_whole_blocks_of_a_plan_s_cache(model: Path) -> None:
    short, long = (
        isobit.plan(str(model), schemes=["bf16"], context=context, memory="1GiB")[1][-1][0].memory
        for context in (1, BLOCK + 1)
    )
    assert short.kv == BLOCK * PER_TOKEN and long.kv == 2 * BLOCK * PER_TOKEN


def test_the_engine_takes_the_plan_s_steps_of_prompts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What steps of several prompts take is set aside; a model that is loaded is fed in them."""
    target, board = lookup("H200")
    assert board is not None
    folder = save(make_model("Qwen3MoeForCausalLM", max_position_embeddings=4096), tmp_path / "mixture")

    def on_a_card(size: int, sequences: int, folder: Path = folder) -> Room:
        found = room(
            folder, gpu=True, free=size, given=size, cache=cache_format("auto"), sequences=sequences,
            machine=(target, board), graphs=1,
        )  # fmt: skip
        assert found is not None
        return found

    one, many = on_a_card(1 << 36, 1), on_a_card(1 << 36, 64)
    assert one.piece == many.piece == MIXED and one.wider == 0 < many.wider, "8192 tokens are due of two of them"
    assert many.held - one.held == many.wider + 4 * 63 * 320 * 2
    assert many.tokens < one.tokens
    assert isobit.LLM(model).engine.scheduler.wide == 512
    monkeypatch.setattr(plans, "piece", lambda *args, **options: 640)
    assert isobit.LLM(model).engine.scheduler.wide == 640
