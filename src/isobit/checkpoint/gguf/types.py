"""How GGUF stores numbers: every type of tensor as one row, with what isobit makes of it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.formats.schemes import WeightSpec


@dataclass(frozen=True)
class BlockType:
    """One type of tensor.

    Attributes:
        name: as llama.cpp spells it.
        number: in the file.
        weights: numbers in one block; rows are whole blocks.
        nbytes: bytes of one block.
        held: the format that holds its numbers as they are, bit for bit; None where there is none.
        widened: whether its numbers are made float32 when a tensor is read.
        plain: the safetensors name of a type that is not quantized at all.
        tables: whether that takes the package ``gguf``, which has the tables its codes are looked up in.
        scale: dtype of the scales of what is held.
        halves: where in a block numbers in float16 lie, as which scales are stored.
    """

    name: str
    number: int
    weights: int
    nbytes: int
    held: WeightSpec | None = None
    widened: bool = False
    plain: str | None = None
    tables: bool = False
    scale: str = "float16"
    halves: tuple[int, ...] = ()

    @property
    def read(self) -> bool:
        """Whether isobit reads weights of this type."""
        return self.plain in ("F32", "F16", "BF16") or self.held is not None or self.widened

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales included."""
        return 8 * self.nbytes / self.weights


def _group(element: str, size: int) -> WeightSpec:
    return WeightSpec(element, "group", size)


_ROWS = (
    BlockType("F32", 0, 1, 4, plain="F32"),
    BlockType("F16", 1, 1, 2, plain="F16"),
    BlockType("Q4_0", 2, 32, 18, _group("int4", 32), halves=(0,)),
    BlockType("Q4_1", 3, 32, 20, widened=True, halves=(0, 2)),
    BlockType("Q5_0", 6, 32, 22, _group("int8", 32), halves=(0,)),
    BlockType("Q5_1", 7, 32, 24, widened=True, halves=(0, 2)),
    BlockType("Q8_0", 8, 32, 34, _group("int8", 32), halves=(0,)),
    BlockType("Q2_K", 10, 256, 84, widened=True, halves=(80, 82)),
    BlockType("Q3_K", 11, 256, 110, _group("int4", 16), scale="float32", halves=(108,)),
    BlockType("Q4_K", 12, 256, 144, widened=True, halves=(0, 2)),
    BlockType("Q5_K", 13, 256, 176, widened=True, halves=(0, 2)),
    BlockType("Q6_K", 14, 256, 210, _group("int8", 16), scale="float32", halves=(208,)),
    BlockType("Q8_K", 15, 256, 292),
    BlockType("IQ2_XXS", 16, 256, 66, widened=True, tables=True, halves=(0,)),
    BlockType("IQ2_XS", 17, 256, 74, widened=True, tables=True, halves=(0,)),
    BlockType("IQ3_XXS", 18, 256, 98, widened=True, tables=True, halves=(0,)),
    BlockType("IQ1_S", 19, 256, 50, widened=True, tables=True, halves=(0,)),
    BlockType("IQ4_NL", 20, 32, 18, _group("int8", 32), halves=(0,)),
    BlockType("IQ3_S", 21, 256, 110, widened=True, tables=True, halves=(0,)),
    BlockType("IQ2_S", 22, 256, 82, widened=True, tables=True, halves=(0,)),
    BlockType("IQ4_XS", 23, 256, 136, _group("int8", 32), scale="float32", halves=(0,)),
    BlockType("I8", 24, 1, 1, plain="I8"),
    BlockType("I16", 25, 1, 2, plain="I16"),
    BlockType("I32", 26, 1, 4, plain="I32"),
    BlockType("I64", 27, 1, 8, plain="I64"),
    BlockType("F64", 28, 1, 8, plain="F64"),
    BlockType("IQ1_M", 29, 256, 56, widened=True, tables=True),
    BlockType("BF16", 30, 1, 2, plain="BF16"),
    BlockType("TQ1_0", 34, 256, 54, _group("int2", 256), halves=(52,)),
    BlockType("TQ2_0", 35, 256, 66, _group("int3", 256), halves=(64,)),  # a code that nobody writes means 2
    BlockType("MXFP4", 39, 32, 17, _group("int8", 32), scale="float32"),
    BlockType("NVFP4", 40, 64, 36, widened=True, tables=True),
    BlockType("Q1_0", 41, 128, 18),
)

TYPES: dict[int, BlockType] = {row.number: row for row in _ROWS}
BY_NAME: dict[str, BlockType] = {row.name: row for row in _ROWS}
QUANTIZED = tuple(row.name for row in _ROWS if row.plain is None)
READ = tuple(row.name for row in _ROWS if row.plain is None and row.read)

INSTALL = "pip install 'isobit[gguf]'"  # for types with tables

# Numbers of types that were taken out of the format, and of those that no file holds.
GONE = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
