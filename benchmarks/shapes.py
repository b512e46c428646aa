"""Llama-shaped checkpoints with random weights: which tensors they have, writing them fast, quantizing them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from isobit.api import quantize
from isobit.checkpoint.shards import INDEX, PlannedTensor, index_json, plan_shards
from isobit.formats.rules import KEEP
from isobit.formats.schemes import scheme

SHARD_BYTES = 5_000_000_000
POOL = 1 << 27  # random numbers drawn; every tensor is a stretch of them
ONE = b"\x80\x3f"  # 1.0 in bfloat16


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    title: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    context: int

    @property
    def kv_size(self) -> int:
        """Outputs of the key projection."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def read_weights(self) -> int:
        """Weights that one token's decoding reads: all matrices but the embedding table."""
        layer = 2 * self.hidden * (self.hidden + self.kv_size) + 3 * self.hidden * self.mlp
        return self.layers * layer + self.vocab * self.hidden

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, in the order of a real checkpoint."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        sizes = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.kv_size, self.hidden),
            "self_attn.v_proj": (self.kv_size, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.mlp, self.hidden),
            "mlp.up_proj": (self.mlp, self.hidden),
            "mlp.down_proj": (self.hidden, self.mlp),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }
        for i in range(self.layers):
            found.update({f"model.layers.{i}.{name}.weight": size for name, size in sizes.items()})
        found["model.norm.weight"] = (self.hidden,)
        found["lm_head.weight"] = (self.vocab, self.hidden)
        return found

    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "1b": Shape("1.1B Llama", 2048, 22, 32, 4, 5632, 32000, 2048),
    "7b": Shape("Llama-2-7B", 4096, 32, 32, 32, 11008, 32000, 4096),
    "8b": Shape("Llama-3-8B", 4096, 32, 32, 8, 14336, 128256, 8192),
    "tiny": Shape("tiny Llama", 256, 2, 4, 2, 640, 1280, 2048),
}


def random_stretches(dtype: torch.dtype, size: int = POOL) -> Stretches:
    """A source of random weights of standard deviation 0.02; the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return Stretches(memoryview((torch.randn(size, generator=generator) * 0.02).to(dtype).view(torch.uint8).numpy()))


class Stretches:
    """Bytes of one run of random numbers, each request from its own position: drawing billions would take too long."""

    def __init__(self, raw: memoryview) -> None:
        self._raw, self._position = raw, 0

    def write(self, file: BinaryIO, nbytes: int) -> None:
        """Writes so many bytes to an open binary file."""
        while nbytes:
            part = self._raw[self._position : self._position + nbytes]
            file.write(part)
            nbytes -= len(part)
            self._position = (self._position + len(part)) % len(self._raw)
        self._position = (self._position + 2 * 7919) % len(self._raw)


def make_checkpoint(folder: Path, shape: Shape) -> int:
    """Writes a random bf16 checkpoint, durable and not in the page cache; returns the bytes of its tensors."""
    folder.mkdir(parents=True)
    weights = random_stretches(torch.bfloat16, min(POOL, shape.read_weights))
    shards = plan_shards([[PlannedTensor(n, "BF16", s)] for n, s in shape.tensors().items()], SHARD_BYTES)
    for shard in shards:
        with open(folder / shard.name, "wb") as file:
            file.write(shard.header)
            for tensor in shard.tensors.values():
                if len(tensor.shape) == 1:
                    file.write(ONE * tensor.shape[0])  # a norm
                else:
                    weights.write(file, tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    index = index_json(shards)
    if index is not None:
        (folder / INDEX).write_bytes(index)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))
    return sum(shard.data_bytes for shard in shards)


# ---------------------------------------------------------------------- quantized copies


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint is quantized to.

    Attributes:
        shape: a key of SHAPES.
        scheme: scheme of the linear layers.
        head: scheme of lm_head, or ``keep``, which is what isobit does by itself.
    """

    shape: str
    scheme: str
    head: str = KEEP

    @property
    def name(self) -> str:
        """Of the checkpoint's folder."""
        return f"{self.shape}-{self.scheme}" + ("" if self.head == KEEP else f"-head-{self.head}")

    def nbytes(self) -> int:
        """About how large the checkpoint is."""
        shape = SHAPES[self.shape]
        table = shape.vocab * shape.hidden
        body = (shape.read_weights - table) * scheme(self.scheme).bits_per_weight(shape.hidden, shape.hidden)
        head = table * (16.0 if self.head == KEEP else scheme(self.head).bits_per_weight(shape.vocab, shape.hidden))
        return int((body + head + 16 * table) / 8)


def ready(folder: Path) -> bool:
    """Whether a folder holds a whole checkpoint: config.json is written last."""
    return (folder / "config.json").exists()


def make(work: Path, recipe: Recipe) -> Path:
    """The folder of a recipe's checkpoint; made, with its source, if it is not there yet.

    Raises:
        IsobitError: the scheme does not fit the shape, or the disk lacks space.
    """
    source = work / f"{recipe.shape}-bf16"
    if not ready(source):
        shutil.rmtree(source, ignore_errors=True)
        make_checkpoint(source, SHAPES[recipe.shape])
    if recipe.scheme == "bf16" and recipe.head == KEEP:
        return source
    out = work / recipe.name
    if not ready(out):
        rules = [] if recipe.head == KEEP else [("^lm_head$", recipe.head)]
        quantize(source, out, recipe.scheme, rules=rules, search="absmax", progress=False)
    return out
