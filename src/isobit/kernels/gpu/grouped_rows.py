"""What is proved of kernels over caches whose groups share a scale, for ``layer_rows.py``. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from isobit.kernels.gpu.grouped_tiles import unread
from isobit.kernels.gpu.latent_tiles import LatentShape
from isobit.kernels.gpu.layer_tiles import AttentionShape, NormOf, RareRope, RopeShape
from isobit.targets.spec import Target

# Format, numbers of a head, activations: the first three are all formats. All are multiplied in bfloat16.
_SHAPES = (
    ("mxfp8", 128, "bfloat16"), ("mxfp4", 128, "bfloat16"), ("nvfp4", 128, "bfloat16"), ("mxfp4", 64, "bfloat16"),
    ("nvfp4", 256, "bfloat16"), ("mxfp4", 128, "float16"),
)  # fmt: skip
_ROPES: tuple[tuple[NormOf, bool], ...] = (("none", False), ("none", True), ("head", True))


def attentions(multiplied: str, target: Target, most: int = len(_SHAPES)) -> Iterator[AttentionShape]:
    """Attentions that multiply in a dtype, where a target reads such caches."""
    for kv, dim, dtype in _SHAPES[:most] if multiplied == "bfloat16" else ():
        if unread(kv, dim, target) is None:
            yield AttentionShape(dtype, 32, 8, dim, element=kv)


def formats(multiplied: str, target: Target) -> Iterator[AttentionShape]:
    """The same, each format once."""
    return attentions(multiplied, target, 3)


def latents(multiplied: str, target: Target) -> Iterator[LatentShape]:
    """Latent attentions that multiply in a dtype."""
    for shape in attentions(multiplied, target):
        if shape.dim == 128:
            yield LatentShape(shape.dtype, 16, element=shape.element, late=True)


def ropes(target: Target) -> Iterator[RareRope]:
    """What stands before them."""
    for shape in formats("bfloat16", target):
        for norm, late in _ROPES:
            plain = RopeShape(shape.dtype, 32, 8, shape.dim, late=late, element=shape.element)
            yield RareRope(plain, norm, shape.dim)
