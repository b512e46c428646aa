"""Tasks for lm-evaluation-harness that need no network, made of the held-out Python modules that come with isobit.

    python benchmarks/offline_tasks.py --out tasks
    isobit eval MODEL --against SOURCE --tasks code_next_line,code_rolling,code_word --include-path tasks

- ``code_next_line``: which of four lines follows twelve lines of code; the others stand elsewhere in the same text.
- ``code_rolling``: perplexity per word and per byte of pieces of the text.
- ``code_word``: the word that comes next, written greedily, where the piece above it has it once already.

Every item is drawn with a fixed seed, so the files are the same everywhere.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

from isobit.bundled import heldout_path

CONTEXT = 12  # lines
ITEMS = {"code_next_line": 200, "code_rolling": 24, "code_word": 100}

TASK = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
metadata:
  version: 1.0
{rest}"""

REST = {
    "code_next_line": """doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "code_rolling": """doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "code_word": """doc_to_text: "{{context}}"
doc_to_target: "{{word}}"
target_delimiter: ""
generation_kwargs:
  until: [" ", "\\n", "(", ")", ".", ",", ":", "[", "]", "=", "'", '"', "{", "}"]
  max_gen_toks: 16
  do_sample: false
metric_list:
  - metric: exact_match
""",
}
KINDS = {"code_next_line": "multiple_choice", "code_rolling": "loglikelihood_rolling", "code_word": "generate_until"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the task files to")
    write(parser.parse_args().out)


def write(out: Path) -> None:
    """The task files with their data."""
    out.mkdir(parents=True, exist_ok=True)
    lines = heldout_path().read_text(encoding="utf-8").splitlines()
    items = {"code_next_line": next_lines(lines), "code_rolling": pieces(lines), "code_word": words(lines)}
    for task, rows in items.items():
        data = (out / f"{task}.jsonl").resolve()
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        file = TASK.format(task=task, data=data, kind=KINDS[task], rest=REST[task])
        (out / f"{task}.yaml").write_text(file, encoding="utf-8")
        print(f"{task}: {len(rows)} items")


def next_lines(lines: list[str]) -> list[dict[str, object]]:
    """The line behind a piece, among three others of about its length."""
    draw = random.Random(1)
    long = [place for place in range(CONTEXT, len(lines)) if len(lines[place].strip()) >= 20]
    found: list[dict[str, object]] = []
    for place in draw.sample(long, ITEMS["code_next_line"]):
        right = lines[place]
        alike = [lines[p] for p in long if p != place and abs(len(lines[p]) - len(right)) <= 6 and lines[p] != right]
        choices = draw.sample(sorted(set(alike)), 3) + [right]
        draw.shuffle(choices)
        context = "\n".join(lines[place - CONTEXT : place])
        choices = ["\n" + choice for choice in choices]
        found.append({"context": context, "choices": choices, "answer": choices.index("\n" + right)})
    return found


def pieces(lines: list[str]) -> list[dict[str, object]]:
    """Pieces of sixty lines, evenly over the text."""
    step = len(lines) // ITEMS["code_rolling"]
    return [{"text": "\n".join(lines[begin : begin + 60])} for begin in range(0, ITEMS["code_rolling"] * step, step)]


def words(lines: list[str]) -> list[dict[str, object]]:
    """A word of six letters or more that the piece in front of it has once already."""
    draw, found = random.Random(2), []
    places = list(range(CONTEXT, len(lines)))
    draw.shuffle(places)
    for place in places:
        above = "\n".join(lines[place - CONTEXT : place])
        match = next((m for m in re.finditer(r"[A-Za-z_]{6,}", lines[place]) if above.count(m[0]) == 1), None)
        if match is not None and match.start() > 0:
            found.append({"context": above + "\n" + lines[place][: match.start()].rstrip(" "), "word": match[0]})
            if lines[place][: match.start()].endswith(" "):
                found.pop()  # a space before a word belongs to its token
        if len(found) == ITEMS["code_word"]:
            break
    return found


if __name__ == "__main__":
    main()
