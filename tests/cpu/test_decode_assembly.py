"""The assembly that decodes four e2m1 codes of a word, instruction by instruction, against the codec."""

from __future__ import annotations

import numpy as np
import ptx
import pytest
import torch

pytest.importorskip("triton")

from isobit.formats.codec import decode
from isobit.kernels.gpu.triton.linear_halves import _E2M1_BF16, _E2M1_F16


@pytest.mark.parametrize(("dtype", "text"), [("f16", _E2M1_F16), ("bf16", _E2M1_BF16)])
def test_every_word_of_four_e2m1_codes(dtype: str, text: object) -> None:
    """Two words of 16 bits in a register; every word stands in both halves."""
    words = np.arange(1 << 16, dtype=np.uint32)
    pairs = words | words[::-1] << 16
    nothing = [np.zeros(ptx.LANES, np.uint32)] * 4
    for at in range(0, len(pairs), 64 * ptx.LANES):  # every 64th register: all codes in all places, beside all others
        word = pairs[at : at + ptx.LANES]
        found = ptx.run(text.value, [*nothing, word])  # type: ignore[attr-defined]
        for place in range(4):
            codes = np.stack([word >> 4 * place & 15, word >> (16 + 4 * place) & 15], axis=1).astype(np.uint8)
            values = decode(torch.from_numpy(codes), "e2m1").double().numpy()
            got = ptx.halves(found[f"${place}"], dtype)
            assert np.array_equal(got, values) and np.array_equal(np.signbit(got), np.signbit(values))
