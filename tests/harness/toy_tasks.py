"""Tasks of lm-evaluation-harness without a network: a file of each kind, with its data beside it."""

from __future__ import annotations

import json
from pathlib import Path

CHOICES = "toy_choices"
ROLLING = "toy_rolling"
WRITING = "toy_writing"
LAST_WORD = "toy_last_word"
ALL = (CHOICES, ROLLING, WRITING, LAST_WORD)

_TASK = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
{rest}"""

_CHOICES = """doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
_ROLLING = """doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
_WRITING = """doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n", ")", "a1", "a2", "a3", "a4", "a5"]
  max_gen_toks: 8
  do_sample: false
metric_list:
  - metric: exact_match
"""
_LAST_WORD = """doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: perplexity
  - metric: acc
"""


def write(folder: Path) -> Path:
    """The task files and their data; returns the folder, for ``--include-path``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("alpha", "beta", "gamma", "delta", "value", "item", "total", "index", "self", "name", "key", "path")
    choices = [
        {
            "question": f"def {name}(x):\n    return",
            "choices": [" x", f" {name}", " None", " [x for x in x]"],
            "answer": place % 3,
        }
        for place, name in enumerate(names)
    ]
    choices.append({"question": "", "choices": ["import os", "zzz"], "answer": 0})
    choices.append({"question": "for i in range(10): ", "choices": ["print(i)", "pass", "return"], "answer": 1})
    texts = [
        {"text": f"def {name}(x):\n    return x + {len(name)}\n" * (1 + 4 * k)} for k, name in enumerate(names[:5])
    ]
    asked = [{"question": f"print({name}", "answer": ""} for name in names[:6]]
    words = [{"question": f"import os\nimport sys\n\n{name} = sys.", "answer": "argv"} for name in names[:6]]
    words.append({"question": "if __name__ ==", "answer": ' "__main__"'})
    _task(folder, CHOICES, "multiple_choice", choices, _CHOICES)
    _task(folder, ROLLING, "loglikelihood_rolling", texts, _ROLLING)
    _task(folder, WRITING, "generate_until", asked, _WRITING)
    _task(folder, LAST_WORD, "loglikelihood", words, _LAST_WORD)
    return folder


def _task(folder: Path, task: str, kind: str, rows: list[dict[str, object]], rest: str) -> None:
    data = folder / f"{task}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{task}.yaml").write_text(_TASK.format(task=task, data=data, kind=kind, rest=rest))
