"""The demo: quantize the bundled model to several formats, measure each against the source, time it, write a report."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from isobit.bundled import model_path
from isobit.checkpoint.occupant import require_name
from isobit.engine.generate import Generator
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError
from isobit.evaluation import measure, report, speed, wording
from isobit.evaluation.corpus import heldout, sample
from isobit.evaluation.fidelity import compare_all
from isobit.evaluation.measure import Subject
from isobit.evaluation.results import CompletionResult, Results
from isobit.formats.rules import Policy
from isobit.formats.schemes import Scheme, scheme
from isobit.quantizer.driver import Prediction, predict, quantize
from isobit.quantizer.report import QuantizeReport

SCHEMES = ("bf16", "fp8", "fp8-e5m2", "int8", "int4", "w4a8", "int4-g32", "int3")
# Many short windows rather than few long ones: intervals resample windows, and eight models share three minutes.
TOKENS = 8_192
CTX = 256
COMPLETION_SCHEME = "int4"
COMPLETION_TOKENS = 48
PROMPT = '''class Point:
    """A point in the plane."""

    def __init__(self, x, y):
'''

PLAN_COLUMNS = (
    wording.Column("scheme", number=False),
    wording.Column("tensors quantized"),
    wording.Column("bits/weight"),
    wording.Column("size"),
    wording.Column("kernel on this machine", number=False),
)
SPEED_TOKENS = 64
SPEED_ROUNDS = 5
SPEED_BUFFER = speed.BUFFER_BYTES

Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """One scheme, the model that was made with it, and what making it said."""

    row: Scheme
    subject: Subject
    report: QuantizeReport


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        results: what it found.
        report: the HTML report.
        data: the same as JSON.
        folders: scheme -> its quantized checkpoint.
        seconds: how long it took.
    """

    results: Results
    report: Path
    data: Path
    folders: dict[str, Path]
    seconds: float


def run(
    out: Path,
    schemes: Sequence[str] = SCHEMES,
    *,
    source: Path | None = None,
    tokens: int = TOKENS,
    command: str = "isobit demo",
    say: Say | None = None,
) -> Demo:
    """Run the demo.

    Args:
        out: the folder to write; made if it isn't there.
        schemes: what to quantize to: any name or alias of a scheme.
        source: the model's folder; the bundled model if None.
        tokens: about how many tokens of the held-out text to measure on.
        command: the command line that does it again, for the report.
        say: takes a line about what happens now; stderr if None.

    Raises:
        IsobitError: an unknown scheme, a folder that can't be written.
    """
    begin = time.monotonic()
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
    chosen = unique([scheme(name) for name in schemes])
    make_folder(out)
    path, name = (model_path(), "bundled") if source is None else (source, source.resolve().name)
    tell(describe_plan(name, [predict(path, out / row.name, Policy(row)) for row in chosen]))
    reports = [quantize_one(path, out / row.name, row, tell) for row in chosen]
    subject = measure.load_subject(path, name)
    candidates = [
        Candidate(row, measure.load_subject(out / row.name, row.name), found)
        for row, found in zip(chosen, reports, strict=True)
    ]
    results = measure_all(subject, candidates, Tokenizer.from_folder(path), tokens=tokens, command=command, tell=tell)
    paths = out / "report.html", out / "results.json"
    report.write(results, paths[0])
    report.write_file(paths[1], json.dumps(asdict(results), indent=2, allow_nan=False) + "\n")
    return Demo(results, *paths, {row.name: out / row.name for row in chosen}, time.monotonic() - begin)


def unique(rows: Sequence[Scheme]) -> list[Scheme]:
    """Schemes without repeats, in their order; two names may stand for one.

    Raises:
        UsageError: there is none.
    """
    if not rows:
        raise UsageError("--schemes names no scheme; give some, for example --schemes fp8,int4")
    return list({row.name: row for row in rows}.values())


def make_folder(out: Path) -> None:
    """Make the output folder before anything is computed.

    Raises:
        UsageError: it is a file, or can't be made.
    """
    require_name(out, "model.safetensors.index.json")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: the folder cannot be made: {error.strerror}") from error


def describe_plan(name: str, plan: Sequence[Prediction]) -> str:
    """What will be made and what will run it, a line per scheme, from headers alone."""
    cells = [
        [
            step.scheme,
            f"{step.quantized} of {step.tensors}",
            "16.00" if step.bits_per_weight is None else f"{step.bits_per_weight:.2f}",
            wording.size(step.output_bytes),
            ", ".join(step.kernels),
        ]
        for step in plan
    ]
    return f"The plan for {name} ({wording.size(plan[0].source_bytes)}):\n\n{wording.table(PLAN_COLUMNS, cells)}\n"


def quantize_one(source: Path, target: Path, row: Scheme, tell: Say) -> QuantizeReport:
    """Quantize the source to one scheme, in place of what an earlier demo left there."""
    found = quantize(source, target, Policy(row), overwrite=True, progress=False)
    tell(f"quantized to {row.name:<10} {found.seconds:5.1f} s  {target}")
    return found


def measure_all(
    source: Subject, candidates: Sequence[Candidate], tokenizer: Tokenizer, *, tokens: int, command: str, tell: Say
) -> Results:
    """Fidelity, error by layer, speed and completions of all models."""
    corpus = heldout()
    ctx = min(CTX, measure.choose_ctx(source, None))
    text = sample(corpus, tokenizer, ctx, tokens=tokens)
    models = {candidate.row.name: candidate.subject.model for candidate in candidates}
    own, found = compare_all(
        source.model,
        models,
        text.windows,
        bytes_per_token=text.bytes_per_token,
        progress=progress_lines(tell),
    )
    layers, layer_tokens = measure.errors_by_layer(source, [candidate.subject for candidate in candidates], text)
    tell("measured the error by layer")
    speeds = speed.decode_speeds(
        [source, *(candidate.subject for candidate in candidates)],
        tokenizer, PROMPT, tokens=SPEED_TOKENS, rounds=SPEED_ROUNDS, nbytes=SPEED_BUFFER,
    )  # fmt: skip
    tell("measured the decoding speed")
    rows = [
        measure.scheme_result(
            candidate.subject,
            found[candidate.row.name],
            note=candidate.row.note,
            layers=errors,
            weights=weight_errors(candidate.report),
            speed=found_speed,
        )
        for candidate, errors, found_speed in zip(candidates, layers, speeds[1:], strict=True)
    ]
    subjects = [source, *(candidate.subject for candidate in candidates)]
    return Results(
        source=measure.source_result(source, own, speeds[0]),
        schemes=tuple(rows),
        completions=completions(source, candidates, tokenizer),
        method=measure.describe_method(corpus, text, 0, command, subjects, layer_tokens),
    )


def progress_lines(tell: Say) -> Callable[[int, int], None]:
    """A progress that tells about each quarter of the windows, once."""
    told = 0

    def step(done: int, total: int) -> None:
        nonlocal told
        quarter = 4 * done // total
        if quarter > told:
            told = quarter
            tell(f"measured {done} of {total} windows with every model")

    return step


def weight_errors(found: QuantizeReport) -> tuple[tuple[str, float], ...]:
    """(module, relative error of its weight) of every quantized module."""
    return tuple(
        (module.name, math.sqrt(module.relative_squared_error))
        for module in found.modules
        if module.relative_squared_error is not None
    )


def completions(source: Subject, candidates: Sequence[Candidate], tokenizer: Tokenizer) -> tuple[CompletionResult, ...]:
    """The same code completed by the source and by one quantized model: int4 if it is among them, else the last."""
    chosen = next((c.subject for c in candidates if c.row.name == COMPLETION_SCHEME), candidates[-1].subject)
    params = SamplingParams(temperature=0.0, max_tokens=COMPLETION_TOKENS)
    return tuple(
        CompletionResult(label, PROMPT, Generator(LLM(subject.model, tokenizer)).generate(PROMPT, params).text)
        for label, subject in ((f"{source.name} (source)", source), (chosen.name, chosen))
    )
