"""The law of ``spec.py`` in torch: encode, decode, and the rounding of activations.

Rounding is a search among the midpoints of the row, so every format works from its row alone. Formats that a torch
cast or a rounding instruction serves exactly take that faster path; the tests prove each of them equal to the law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.pack import code_dtype
from isobit.formats.scales import ScaleSpec
from isobit.formats.schemes import ActSpec
from isobit.formats.spec import Element
from isobit.formats.table import element as lookup

# Elements handled at once, so that temporaries stay in the cache: 256 Ki was best of 64 Ki to 4 Mi on two cores.
_CHUNK = 1 << 18

# Smallest activation scale. A subnormal float32 divided by it rounds to zero in every format, so the result does not
# depend on whether the hardware flushes subnormals.
SMALLEST_ACTIVATION_SCALE = 2.0**-100

_FLOAT_INPUTS = (torch.float32, torch.bfloat16, torch.float16)


# ---------------------------------------------------------------------- encode


def encode(x: Tensor, element: Element | str) -> Tensor:
    """Codes of the values nearest to ``x``: ties to even, saturating (infinities too), zeros keep their sign.

    Args:
        x: float32, bfloat16 or float16 tensor of any shape.
        element: element format or its name.

    Returns:
        codes of the same shape: int8 for signed integers, else uint8 (bit patterns of floats).

    Raises:
        FormatError: NaN in a format without NaN, a negative value in a scale format, or another dtype.
    """
    row = lookup(element)
    if x.dtype not in _FLOAT_INPUTS:
        raise FormatError(f"{row.name}: values to round are float32, bfloat16 or float16, not {x.dtype}")
    codes = torch.empty(x.shape, dtype=code_dtype(row), device=x.device)
    encode_chunk = _encoder(row)
    source, target = x.reshape(-1), codes.view(-1)
    for start in range(0, source.numel(), _CHUNK):
        part = source[start : start + _CHUNK].float()
        encode_chunk(part, row, target[start : start + _CHUNK])
    return codes


def _encoder(row: Element) -> Callable[[Tensor, Element, Tensor], None]:
    if row.kind == "int":
        return _encode_int
    if row.name in _CAST_ENCODES:
        return _encode_cast
    return _encode_search


def _encode_int(x: Tensor, row: Element, out: Tensor) -> None:
    if math.isnan(float(x.amax())):
        raise FormatError(f"NaN cannot be stored as {row.name}, which has no NaN")
    out.copy_(x.clamp(row.min, row.max).round_())


# Torch casts that round to nearest even once the input is clamped (torch itself overflows e5m2 to infinity and, in
# some releases, e4m3fn to NaN).
_CAST_ENCODES = frozenset({"e4m3fn", "e5m2"})


def _encode_cast(x: Tensor, row: Element, out: Tensor) -> None:
    assert row.torch_name is not None and row.nan_code is not None
    out.view(getattr(torch, row.torch_name)).copy_(x.clamp(row.min, row.max))
    if math.isnan(float(x.amax())):
        out.masked_fill_(x.isnan(), row.nan_code)


def _encode_search(x: Tensor, row: Element, out: Tensor) -> None:
    nan = x.isnan()
    has_nan = bool(nan.any())
    if has_nan and row.nan_code is None:
        raise FormatError(f"NaN cannot be stored as {row.name}, which has no NaN")
    if row.specials == "scale" and bool((x < 0).any()):
        raise FormatError(f"a negative value cannot be stored as {row.name}, which holds positive scales only")
    codes = torch.bucketize(x.abs() if row.sign_bit else x, _thresholds(row, x.device), right=True, out_int32=True)
    codes += row.grid_first_code
    if row.sign_bit:
        negative = x.signbit()
        if not row.has_negative_zero:
            negative &= codes != 0
        codes += negative.to(torch.int32) * row.sign_bit
    if has_nan:
        assert row.nan_code is not None
        codes.masked_fill_(nan, row.nan_code)
    out.copy_(codes)


@lru_cache(maxsize=64)
def _thresholds(row: Element, device: torch.device) -> Tensor:
    """The smallest float32 that rounds to ``grid[i + 1]``, for each i: the midpoint itself where that code is even."""
    middle = torch.tensor(row.midpoints, dtype=torch.float32)
    above = torch.nextafter(middle, torch.tensor(math.inf))
    upper_is_even = (torch.arange(len(row.midpoints)) + row.grid_first_code + 1) % 2 == 0
    return torch.where(upper_is_even, middle, above).to(device)


# ---------------------------------------------------------------------- decode


def decode(codes: Tensor, element: Element | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values behind ``codes``, exact.

    Args:
        codes: int8 (signed integers) or uint8 (all others) tensor of any shape.
        element: element format or its name.
        dtype: float dtype of the result.

    Raises:
        FormatError: the codes have another dtype, or ``dtype`` cannot hold every value of the format.
    """
    row = lookup(element)
    if codes.dtype != code_dtype(row):
        raise FormatError(f"{row.name} codes are {code_dtype(row)}, not {codes.dtype}")
    if not widens_exactly(row, dtype):
        raise FormatError(f"{dtype} cannot hold every value of {row.name}")
    if row.kind == "int":
        return codes.to(dtype)
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    decode_chunk = _decode_float16 if _fits_float16_fields(row) else _decode_table
    source, target = codes.reshape(-1), values.view(-1)
    for start in range(0, source.numel(), _CHUNK):
        decode_chunk(source[start : start + _CHUNK], row, target[start : start + _CHUNK])
    return values


def any_not_finite(codes: Tensor, element: Element | str) -> bool:
    """Whether codes of a format, one a byte ``[N, K]``, hold any that means NaN or infinity; of others none does."""
    row = lookup(element)
    strange = _not_finite(row)
    if not strange or not codes.numel():
        return False
    if strange == (row.sign_bit,):
        return bool((codes == row.sign_bit).any())
    # They are the largest without their sign and with it: the largest of bytes read as signed, and as unsigned ones.
    largest = codes.view(torch.int8).amax(-1).amax(), codes.view(torch.uint8).amax(-1).amax()
    return any(int(found) & 0xFF in strange for found in largest)


@lru_cache(maxsize=64)
def _not_finite(row: Element) -> tuple[int, ...]:
    """Codes of NaN and infinity, of formats with eight bits and a sign."""
    if row.kind != "float" or row.bits != 8 or not row.sign_bit:
        return ()
    return tuple(code for code in row.codes if not math.isfinite(row.decode(code)))


@lru_cache(maxsize=256)
def widens_exactly(element: Element | str, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` holds every value of the format exactly, found by converting all of them."""
    exact = torch.tensor(lookup(element).values, dtype=torch.float64)
    return torch.equal(exact.to(dtype).double().nan_to_num(nan=1e300), exact.nan_to_num(nan=1e300))


def _fits_float16_fields(row: Element) -> bool:
    """Whether an 8-bit code, shifted, is a float16 of the same value but for a power of two.

    Unlike the same trick with float32 bits this needs no subnormal float32, so it also holds where those are flushed.
    """
    if row.bits != 8 or not row.signed or row.mantissa_bits > 10:
        return False
    if row.specials == "ieee":  # infinity and NaN sit in the top exponent, as float16's do
        return row.exponent_bits == 5
    return row.exponent_bits < 5  # else the top exponent, a number here, would be float16's infinity


def _decode_float16(codes: Tensor, row: Element, out: Tensor) -> None:
    shift = 10 - row.mantissa_bits
    bits = codes.view(torch.int8).to(torch.int16)  # sign extended: the sign also reaches bit 15
    bits <<= shift
    bits &= -0x8000 | (0x7F << shift)
    out.copy_(bits.view(torch.float16))
    out *= 2.0 ** (15 - row.bias)
    if row.specials != "ieee":
        for code in _nan_codes(row):
            is_nan = codes == code
            if bool(is_nan.any()):
                out.masked_fill_(is_nan, math.nan)


def _decode_table(codes: Tensor, row: Element, out: Tensor) -> None:
    out.copy_(_value_table(row, codes.device).index_select(0, codes.int()))


def _nan_codes(row: Element) -> tuple[int, ...]:
    return tuple(code for code, value in zip(row.codes, row.values, strict=True) if math.isnan(value))


@lru_cache(maxsize=64)
def _value_table(row: Element, device: torch.device) -> Tensor:
    return torch.tensor(row.values, dtype=torch.float32, device=device)


def round_to(x: Tensor, element: Element | str) -> Tensor:
    """The float32 values nearest to ``x``: ``decode(encode(x))``."""
    return decode(encode(x, element), element)


# ---------------------------------------------------------------------- activations


def quantize_activations(x: Tensor, spec: ActSpec, static_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rounds activations, bit for bit as ``docs/numerics.md`` says.

    ``scale = max(amax / qmax, 2**-100)`` and ``codes = round(clamp(x / scale, -qmax, qmax))``, both quotients correctly
    rounded float32 divisions. Values that share a scale with a NaN or an infinity get scale NaN and codes 0, so that
    the outputs computed from them are NaN.

    Args:
        x: float32, bfloat16 or float16, shape ``[..., K]``.
        spec: element format and what shares a scale.
        static_scale: the calibrated scale, one positive float32 number; required when ``spec`` is static.

    Returns:
        codes ``[..., K]`` and float32 scales that multiply them: ``[..., 1]`` per token and for static scales (a token
        with a NaN or an infinity has its own NaN), ``[..., ceil(K / group)]`` per group, of which the last may be
        shorter.

    Raises:
        FormatError: a static scale is missing, surplus or not positive, or the dtype of ``x`` is another one.
    """
    _check_activations(x, spec, static_scale)
    row = lookup(spec.element)
    if spec.scale is not None:
        return _under_stored_scales(x, spec, spec.scale, row, static_scale)
    shared = x.float()  # exact; the last axis is what shares a scale
    if spec.group is not None:
        shared = _in_groups(x, spec.group)
    amax = shared.abs().amax(dim=-1, keepdim=True)
    scale = _activation_scale(amax, row, static_scale)
    quotient = shared / scale
    quotient.masked_fill_(scale.isnan(), 0.0)
    quotient.clamp_(-row.max, row.max)
    if spec.group is None:
        return encode(quotient, row), scale
    return encode(quotient.flatten(-2)[..., : x.shape[-1]], row), scale.squeeze(-1)


def _under_stored_scales(
    x: Tensor, spec: ActSpec, stored: ScaleSpec, row: Element, static_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same with scales of groups in a format of their own; the last group may be shorter."""
    assert spec.group is not None
    shared = _in_groups(x, spec.group)
    amax = shared.abs().amax(dim=-1, keepdim=True)
    if stored.powers:
        scale = power_scales(amax, row)
    else:
        over = _one_scale(static_scale)
        scale = scales_under(amax, row, over) / over
    scale = scale.masked_fill(~amax.isfinite(), math.nan)
    quotient = (shared / scale).masked_fill_(scale.isnan(), 0.0).clamp_(-row.max, row.max)
    return encode(quotient.flatten(-2)[..., : x.shape[-1]], row), scale.squeeze(-1)


def power_scales(amax: Tensor, row: Element) -> Tensor:
    """MX scales of groups by their largest magnitude: powers of two, float32 in the shape of ``amax``.

    The exponent is that of ``amax``, one more from 1.75 times a power of two on, less that of the largest value of
    the format: the rule of compressed-tensors for every element format ("even" in OCP's words where the format has one
    bit of mantissa). At least :data:`SMALLEST_ACTIVATION_SCALE`, which a group of zeros has.
    """
    bits = amax.float().contiguous().view(torch.int32)
    exponent = ((bits + (1 << 21)) >> 23) - 127 - math.floor(math.log2(row.max))
    return torch.ldexp(torch.ones_like(amax, dtype=torch.float32), exponent.clamp(-100, 127))


def scales_under(amax: Tensor, row: Element, over: Tensor) -> Tensor:
    """NVFP4 scales of groups by their largest magnitude, before they are divided by the one of the whole tensor.

    ``e4m3(over * (amax / qmax))``, each operation rounded to float32; where that is zero, 2**-3, as compressed-tensors
    has it.
    """
    return _few_bits(over * (amax / _top(row, amax.device)))


def quantize_under_tokens(x: Tensor, element: Element | str, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds values in groups whose scales are e4m3fn numbers under one of float32 for each token (or head of it).

    ``above = max(amax / (qmax * 448), 2**-100)`` of all that a token has, ``scales = e4m3((amax / qmax) / above)`` of a
    group, 2**-3 where that is zero, and ``codes = round(clamp(x / (scales * above), -qmax, qmax))``, each operation
    rounded to float32. A token with a NaN or an infinity has NaN
    above scales of 2**-3, and codes 0.

    Args:
        x: float32, bfloat16 or float16, ``[..., K]``.
        element: format of the codes.
        group: values along K that share a scale; the last group may be shorter.

    Returns:
        codes ``[..., K]``; float32 scales ``[..., ceil(K / group)]``, numbers that e4m3fn has; float32 ``[...]``.
    """
    row = lookup(element)
    shared = _in_groups(x, group)
    amax = shared.abs().amax(dim=-1, keepdim=True)
    whole = amax.amax(dim=-2, keepdim=True)
    top = torch.full((), row.max * lookup("e4m3fn").max, dtype=torch.float32, device=x.device)
    above = (whole / top).clamp_(min=SMALLEST_ACTIVATION_SCALE).masked_fill_(~whole.isfinite(), math.nan)
    scales = _few_bits((amax / _top(row, x.device)) / above)
    quotient = (shared / (scales * above)).masked_fill_(above.isnan(), 0.0).clamp_(-row.max, row.max)
    codes = encode(quotient.flatten(-2)[..., : x.shape[-1]], row)
    return codes, scales.squeeze(-1), above.squeeze(-1).squeeze(-1)


def _few_bits(scales: Tensor) -> Tensor:
    """Scales as e4m3fn has them; 2**-3 where that is zero."""
    found = round_to(scales.clamp(max=lookup("e4m3fn").max).nan_to_num(nan=0.0), "e4m3fn")
    return found.masked_fill(found == 0, 0.125)


def _top(row: Element, device: torch.device) -> Tensor:
    """The largest value, as a tensor: torch turns division by a Python number into a reciprocal product on CUDA."""
    return torch.full((), row.max, dtype=torch.float32, device=device)


def _in_groups(x: Tensor, group: int) -> Tensor:
    """``[..., K]`` as float32 ``[..., groups, group]``, zeros behind the last value."""
    shared = F.pad(x.float(), (0, -x.shape[-1] % group))
    return shared.reshape(*x.shape[:-1], shared.shape[-1] // group, group)


def _check_activations(x: Tensor, spec: ActSpec, static_scale: Tensor | None) -> None:
    if x.dtype not in _FLOAT_INPUTS:
        raise FormatError(f"activations are float32, bfloat16 or float16, not {x.dtype}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise FormatError(f"activations of shape {list(x.shape)} have no values along K")
    if spec.calibrated != (static_scale is not None):
        raise FormatError(f"a static scale is {'missing' if spec.calibrated else 'surplus'} for {spec}")


def _activation_scale(amax: Tensor, row: Element, static_scale: Tensor | None) -> Tensor:
    if static_scale is None:
        scale = amax / _top(row, amax.device)
        scale.clamp_(min=SMALLEST_ACTIVATION_SCALE)
    else:
        scale = _one_scale(static_scale).to(amax.device).expand(amax.shape).clone()
    return scale.masked_fill_(~amax.isfinite(), math.nan)


def _one_scale(static_scale: Tensor | None) -> Tensor:
    value = torch.empty(0) if static_scale is None else static_scale.float().reshape(-1)
    if value.numel() != 1 or not bool(value > 0) or not bool(value.isfinite()):
        shown = None if static_scale is None else static_scale.tolist()
        raise FormatError(f"a static activation scale is one positive number, not {shown}")
    return value
