"""Runs the inline assembly of kernels on the CPU: the few instructions of PTX that they use, for one warp.

Written from NVIDIA's PTX ISA: registers are arrays of 32 lanes. Arithmetic in 16 bits must be exact here, as the
kernels claim that it is; a result that would be rounded is an error.
"""

from __future__ import annotations

import re

import numpy as np
import torch

LANES = 32
_LANE = np.arange(LANES, dtype=np.uint32)
Registers = dict[str, np.ndarray]


def run(text: str, operands: list[np.ndarray]) -> Registers:
    """Executes a block of assembly.

    Args:
        text: as a kernel passes it, ``$0`` being the first operand.
        operands: uint32 ``[32]`` each; float32 operands as their bits. Results have places too.

    Returns:
        All registers, by name.
    """
    registers: Registers = {f"${i}": value.astype(np.uint32).copy() for i, value in enumerate(operands)}
    for statement in text.strip().removeprefix("{").removesuffix("}").split(";"):
        words = statement.strip()
        if words and not words.startswith(".reg"):
            name, _, arguments = words.partition(" ")
            _execute(name, re.findall(r"\{[^}]*\}|[^,\s]+", arguments), registers)
    return registers


def _execute(name: str, arguments: list[str], registers: Registers) -> None:
    target, sources = arguments[0], arguments[1:]
    if name.startswith("mma."):
        _mma(name.split(".")[-2], *(_list(part) for part in arguments), registers)
    elif target.startswith("{"):  # mov.b32 {low, high}, word
        word = _value(sources[0], registers)
        low, high = _list(target)
        registers[low], registers[high] = word & 0xFFFF, word >> 16
    elif name.startswith("setp.ne"):
        registers[target] = _value(sources[0], registers) != _value(sources[1], registers)
    else:
        registers[target] = _OPERATIONS[name](*(_value(source, registers) for source in sources))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{}").split(",")]


def _value(name: str, registers: Registers) -> np.ndarray:
    if name == "%laneid":
        return _LANE
    if name.startswith("0f"):
        return np.full(LANES, int(name[2:], 16), np.uint32)
    return registers[name] if name in registers else np.full(LANES, int(name, 0), np.uint32)


def _permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    pool = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros(LANES, np.uint64)
    for place in range(4):
        mode = selector >> (4 * place)
        byte = (pool >> (8 * (mode & 7)).astype(np.uint64)) & np.uint64(255)
        byte = np.where(mode & 8, np.where(byte >> np.uint64(7), np.uint64(255), np.uint64(0)), byte)  # the sign alone
        result |= byte << np.uint64(8 * place)
    return result.astype(np.uint32)


def _lookup(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    result = np.zeros(LANES, np.uint32)
    for case in range(8):
        if int(table[0]) >> case & 1:
            x, y, z = (v if case >> bit & 1 else ~v for v, bit in ((a, 2), (b, 1), (c, 0)))
            result |= x & y & z
    return result


def halves(words: np.ndarray, dtype: str) -> np.ndarray:
    """The two 16-bit floats of each word, ``[32, 2]``, as float64."""
    bits = np.ascontiguousarray(np.stack([words & 0xFFFF, words >> 16], axis=1).astype(np.uint16))
    kind = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    return torch.from_numpy(bits.view(np.int16)).view(kind).double().numpy()


def packed(values: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of :func:`halves`; numbers that the format does not have are an error."""
    kind = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(kind)
    assert np.array_equal(rounded.double().numpy(), values), "a product or sum in 16 bits was rounded"
    bits = rounded.view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    return bits[:, 0] | bits[:, 1] << 16


def _pairs(dtype: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return packed(halves(a, dtype) * halves(b, dtype) + halves(c, dtype), dtype)


def _unpack_e4m3(codes: np.ndarray) -> np.ndarray:
    both = np.stack([codes & 0xFF, codes >> 8 & 0xFF], axis=1).astype(np.uint8)
    values = torch.from_numpy(np.ascontiguousarray(both)).view(torch.float8_e4m3fn).double().numpy()
    return packed(values, "f16")


_ONE = np.full(LANES, 0x3C003C00, np.uint32)
_OPERATIONS = {
    "mov.b32": lambda a: a,
    "mov.u32": lambda a: a,
    "prmt.b32": _permute,
    "lop3.b32": _lookup,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "shr.u32": lambda a, b: a >> b,
    "shl.b32": lambda a, b: a << b,
    "add.f16x2": lambda a, b: _pairs("f16", a, _ONE, b),
    "mul.rn.f16x2": lambda a, b: _pairs("f16", a, b, np.full(LANES, 0x80008000, np.uint32)),
    "fma.rn.f16x2": lambda a, b, c: _pairs("f16", a, b, c),
    "fma.rn.bf16x2": lambda a, b, c: _pairs("bf16", a, b, c),
    "cvt.rn.f16x2.e4m3x2": _unpack_e4m3,
    "selp.f32": lambda a, b, p: np.where(p, a, b),
}


def _mma(dtype: str, result: list[str], a: list[str], b: list[str], c: list[str], registers: Registers) -> None:
    """``mma.m16n8k16``: which element a lane holds where is in the PTX ISA's figures of its fragments."""
    group, thread = _LANE // 4, _LANE % 4
    left, right, sums = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    for i, name in enumerate(a):
        for half in range(2):
            left[group + 8 * (i % 2), 2 * thread + half + 8 * (i // 2)] = halves(registers[name], dtype)[:, half]
    for i, name in enumerate(b):
        for half in range(2):
            right[2 * thread + half + 8 * i, group] = halves(registers[name], dtype)[:, half]
    for i, name in enumerate(c):
        sums[group + 8 * (i // 2), 2 * thread + i % 2] = _value(name, registers).view(np.float32)
    sums = sums + left @ right
    for i, name in enumerate(result):
        registers[name] = sums[group + 8 * (i // 2), 2 * thread + i % 2].astype(np.float32).view(np.uint32)
