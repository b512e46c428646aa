"""How machine code spells the formats that a matrix instruction multiplies, for promises about them. Pure."""

from __future__ import annotations

_NVIDIA_16 = {"float16": r"\.\w+\.F32$", "bfloat16": r"\.\w+\.F32\.BF16$"}
_NVIDIA_8 = {"e4m3fn": r"\.\w+\.F32\.E4M3\.E4M3$", "e5m2": r"\.\w+\.F32\.E5M2\.E5M2$"}
_NVIDIA_INT = {"int8": r"\.\w+\.S8\.S8"}
_AMD = {
    "float16": r"_f32_\d+x\d+x\d+_?f16",
    "bfloat16": r"_f32_\d+x\d+x\d+_?bf16",
    # f8f6f4 takes every format of 8, 6 and 4 bits; which, its modifiers say.
    "e4m3fn": r"_f32_\d+x\d+x\d+_(fp8_fp8|f8f6f4)",
    "e5m2": r"_f32_\d+x\d+x\d+_(bf8_bf8|f8f6f4)",
    "int8": r"_i32_\d+x\d+x\d+_?iu?8",
}
# By mnemonic family. tcgen05's instructions (UTC...) have the formats in a descriptor, beside float or integer.
_SPELLED = {
    "HMMA": _NVIDIA_16, "HGMMA": _NVIDIA_16, "QMMA": _NVIDIA_8, "QGMMA": _NVIDIA_8, "IMMA": _NVIDIA_INT,
    "IGMMA": _NVIDIA_INT, "v_mfma": _AMD, "v_wmma": _AMD,
    # Block-scaled units, by the format of codes and that of scales.
    "QMMA.SF": {"e4m3fn e8m0": r"\.\w+\.F32\.E4M3\.E4M3\.E8$"},
    "OMMA.SF": {
        "e2m1 e8m0": r"\.\w+\.F32\.E2M1\.E2M1\.E8$", "e2m1 e4m3fn": r"\.\w+\.F32\.E2M1\.E2M1\.UE4M3\.4X$",
    },
    "UTCOMMA": {"e2m1 e8m0": r"(?!.*(4X|BLOCK16))", "e2m1 e4m3fn": r".*\.(4X|BLOCK16)$"},
    "v_mfma_scale": dict.fromkeys(("e4m3fn e8m0", "e2m1 e8m0"), r"_f32_\d+x\d+x\d+_f8f6f4"),
}  # fmt: skip


def precise(promise: str, operand: str | None) -> str:
    """A promise of a mnemonic family made to say which format is multiplied, where machine code spells that.

    Args:
        promise: a mnemonic family, as rows of targets have them, or any other regular expression, which is returned.
        operand: format of the operands of the product; with that of their scales where the unit applies those.
    """
    return promise + _SPELLED.get(promise, {}).get(operand or "", "")
