"""The assembly that decodes codes of groups and multiplies them by their scales, for every code and every scale."""

from __future__ import annotations

import numpy as np
import ptx
import pytest
import torch

pytest.importorskip("triton")

from isobit.formats.codec import decode
from isobit.kernels.gpu.triton.grouped import _E2M1_BF16, _TIMES

LOWEST, HIGHEST = -100, 127  # exponents of scales that are powers of two: ``codec.power_scales``


def values(element: str, codes: np.ndarray) -> np.ndarray:
    return decode(torch.from_numpy(codes.astype(np.uint8)), element).double().numpy()


def test_every_byte_of_two_e2m1_codes() -> None:
    """Every byte in each of the four places of a register, beside others."""
    for at in range(0, 256, ptx.LANES):
        bytes = (np.arange(at, at + ptx.LANES, dtype=np.uint32) + np.array([[0], [77], [154], [231]])) % 256
        word = sum(one.astype(np.uint32) << 8 * place for place, one in enumerate(bytes))
        found = ptx.run(_E2M1_BF16.value, [*[np.zeros(ptx.LANES, np.uint32)] * 4, np.asarray(word)])
        for first, shift in ((0, 0), (2, 4)):  # registers of low halves, and of high ones
            got = np.concatenate([ptx.halves(found[f"${first + i}"], "bf16") for i in range(2)], axis=1)
            wanted = values("e2m1", (bytes.T >> shift) & 15)
            assert np.array_equal(got, wanted) and np.array_equal(np.signbit(got), np.signbit(wanted))


@pytest.mark.parametrize("element", ["e2m1", "e4m3fn"])
def test_every_code_by_every_power_of_two_is_a_bfloat16_number(element: str) -> None:
    """But where it is infinite in float32, too; the emulator refuses products that are rounded."""
    codes = np.arange(16 if element == "e2m1" else 256)
    numbers = values(element, codes)
    numbers = numbers[np.isfinite(numbers)]
    exponents = np.arange(LOWEST, HIGHEST + 1)
    pairs = np.stack(np.broadcast_arrays(numbers[:, None], np.ldexp(1.0, exponents)[None, :]), axis=-1).reshape(-1, 2)
    pairs = pairs[np.abs(pairs[:, 0] * pairs[:, 1]) < 2.0**128]
    assert np.abs((product := pairs.prod(axis=1))[product != 0]).min() >= 2.0**-126, "all are normal numbers"
    check(pairs)


def test_every_code_by_every_scale_of_nvfp4_is_a_bfloat16_number() -> None:
    scales = values("e4m3fn", np.arange(0x7F))
    codes = values("e2m1", np.arange(16))
    check(np.stack(np.broadcast_arrays(codes[:, None], scales[None, :]), axis=-1).reshape(-1, 2))


def check(pairs: np.ndarray) -> None:
    """Products of pairs, two in a register, are exact."""
    padded = np.concatenate([pairs, np.ones((-len(pairs) % (2 * ptx.LANES), 2))]).reshape(-1, ptx.LANES, 2, 2)
    nothing = np.zeros(ptx.LANES, np.uint32)
    for part in padded:
        operands = [ptx.packed(part[..., side], "bf16") for side in range(2)]
        got = ptx.halves(ptx.run(_TIMES.value, [nothing, *operands])["$0"], "bf16")
        wanted = part.prod(axis=-1)
        assert np.array_equal(got, wanted) and np.array_equal(np.signbit(got), np.signbit(wanted))
