"""Train the 4096-entry byte-level BPE tokenizer of the bundled model, and turn the corpus into token files.

    python tokenizer.py train  --corpus corpus --out ../src/isobit/bundled/model
    python tokenizer.py encode --corpus corpus --tokenizer ../src/isobit/bundled/model --out corpus

``encode`` writes ``train.bin`` and ``heldout.bin``: little-endian uint16 token ids, one ``<|endoftext|>`` before every
document, documents in a fixed shuffled order.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
END, PAD = "<|endoftext|>", "<|pad|>"
# One piece per: run of newlines; word with the underscores or the one space before it; digit; run of punctuation with
# the one space before it; indentation. Words, digits and indentation never share a token, so that a prompt may end
# after any of them and still be cut the way training text was.
PIECES = r"\n+| ?_*\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|[ \t]{2,}|\s"
TRAINING_BYTES = 60_000_000
# A base model has no turns: the template only joins the messages' text, so a chat front end completes it as code.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def documents(corpus: Path, only: list[str] | None = None) -> list[str]:
    """Texts of the training documents in a fixed shuffled order; ``only`` keeps the named packages."""
    with (corpus / "train.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    texts = [r["text"] for r in records if not only or r["package"] in only]
    if not texts:
        raise SystemExit(f"no document in {corpus / 'train.jsonl'} belongs to {only}")
    random.Random(0).shuffle(texts)
    return texts


def first_bytes(texts: list[str], limit: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        if taken > limit:
            return
        taken += len(text)
        yield text


def train(corpus: Path, out: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(first_bytes(documents(corpus), TRAINING_BYTES), trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 1024,
            "bos_token": END,
            "eos_token": END,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    ids = {name: tokenizer.token_to_id(name) for name in (END, PAD)}
    write_json(
        out / "generation_config.json",
        {"bos_token_id": ids[END], "eos_token_id": ids[END], "pad_token_id": ids[PAD], "max_new_tokens": 128},
    )


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def encode(corpus: Path, folder: Path, out: Path, only: list[str] | None) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    heldout = (corpus / "heldout.txt").read_text("utf-8")
    for name, texts in (("train", documents(corpus, only)), ("heldout", [heldout])):
        end = tokenizer.token_to_id(END)
        with (out / f"{name}.bin").open("wb") as sink:
            for start in range(0, len(texts), 256):
                for encoding in tokenizer.encode_batch(texts[start : start + 256]):
                    sink.write(np.array([end, *encoding.ids], dtype="<u2").tobytes())
        tokens, size = (out / f"{name}.bin").stat().st_size // 2, sum(len(t.encode()) for t in texts)
        print(f"{name}: {tokens} tokens, {size} bytes, {size / tokens:.3f} bytes per token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("task", choices=("train", "encode"))
    parser.add_argument("--corpus", type=Path, default=Path("corpus"))
    parser.add_argument("--tokenizer", type=Path, help="folder of tokenizer.json, for encode")
    parser.add_argument("--only", action="append", help="encode only this package's documents (may be repeated)")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.task == "train":
        train(given.corpus, given.out)
    elif given.tokenizer is None:
        parser.error("encode needs --tokenizer")
    else:
        encode(given.corpus, given.tokenizer, given.out, given.only)


if __name__ == "__main__":
    main()
