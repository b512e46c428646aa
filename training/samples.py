"""Print greedy completions of a few prompts, as they stand in the model card.

python samples.py --model ../src/isobit/bundled/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import Llama, load
from tokenizers import Tokenizer

# No prompt ends in a single space: the tokenizer gives that space to the word after it.
PROMPTS = (
    "class Person:\n    def __init__(self, name):\n        self.",
    "import os\n\ndef read_file(path):\n    with open(path) as f:\n        return",
    "def is_even(n):\n    return",
    "def add(self, key, value):\n    if key not in self.items:\n        self.items[key] =",
    "try:\n    import json\nexcept",
)


def complete(model: Llama, tokenizer: Tokenizer, prompt: str, count: int) -> str:
    ids = tokenizer.encode(prompt).ids
    new: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            new.append(int(model(torch.tensor([ids + new]))[0, -1].argmax()))
            if new[-1] == 0:
                break
    return str(tokenizer.decode(new))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=24)
    given = parser.parse_args()
    model, tokenizer = load(given.model), Tokenizer.from_file(str(given.model / "tokenizer.json"))
    for prompt in PROMPTS:
        print(f"```python\n{prompt}<<<{complete(model, tokenizer, prompt, given.tokens)}>>>\n```")


if __name__ == "__main__":
    main()
