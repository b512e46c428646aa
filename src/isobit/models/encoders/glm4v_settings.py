"""What a checkpoint's files say of GLM's towers, checked before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.models.encoders.glm4v_frames import FrameSettings, by_length, even, steadily
from isobit.models.encoders.processors import processor_class, settings
from isobit.models.fields import Fields, shown

MOST_PIXELS = 1 << 28  # of a picture or of all frames of a video, once they are resized: the published ones stay below
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_NEWER = "Glm46V"  # how the classes of GLM-4.6V begin


@dataclass(frozen=True)
class Ids:
    """Tokens that stand for media.

    Attributes:
        image: for a part of a picture, or of a frame of a video.
        video: for a video in what a chat template writes.
        around: what stands in front of a picture or video, and behind it, where the files say it.
    """

    image: int
    video: int
    around: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Sizes:
    """Of a tower.

    Attributes:
        patch: pixels along an edge of a patch.
        merge: patches along an edge of a token.
        together: frames of a token.
        hidden: width of its embeddings.
    """

    patch: int
    merge: int
    together: int
    hidden: int


def read_ids(config: Mapping[str, Any], newer: bool) -> Ids:
    """The ids in ``config.json``, or those of its family: of the models with experts, and of the others."""
    fields = Fields(config)
    usual = (151363, 151364) if newer else (151343, 151344)
    found = [fields.integer(f"{kind}_token_id", id, low=0) for kind, id in zip(("image", "video"), usual, strict=True)]
    if fields.sound and found[0] == found[1]:
        fields.problem("video_token_id", "image_token_id is the same")
    around = [f"{kind}_{end}_token_id" for kind in ("image", "video") for end in ("start", "end")]
    marks = frozenset(fields.integer(key, low=0) for key in around if fields.raw(key) is not None)
    fields.check()
    return Ids(found[0], found[1], marks)


def read_sizes(config: Mapping[str, Any], hidden: int) -> tuple[Sizes, dict[str, Any]]:
    """The sizes in ``vision_config``, and all that transformers' configuration of the tower is made with.

    Raises:
        ModelError: they are none, contradict each other, or are not those of the decoder, of width ``hidden``.
    """
    fields = Fields(config, "config.json: vision_config")
    width, heads = fields.integer("hidden_size", 1536), fields.integer("num_heads", 12)
    fields.only("in_channels", (3,), "number of colours")
    fields.only("hidden_act", ACTIVATIONS, "activation")
    fields.only("attention_dropout", (0,), "dropout")
    patch, edge = fields.integer("patch_size", 14, high=4096), fields.integer("image_size", 336, high=1 << 14)
    made: dict[str, Any] = {
        "hidden_size": width,
        "num_heads": heads,
        "patch_size": patch,
        "image_size": edge,
        "depth": fields.integer("depth", 24, high=1000),
        "intermediate_size": fields.integer("intermediate_size", 13696),
        "hidden_act": fields.raw("hidden_act") or "silu",
        "attention_bias": _flag(fields, "attention_bias"),
        "rms_norm_eps": fields.number("rms_norm_eps", 1e-5, high=1.0),
    }
    if (rope := fields.section("rope_parameters")) is not None:
        rope.only("rope_type", ("axial",), "rope type")
        theta = rope.number("rope_theta", 10000.0, low=1.0)
        made["rope_parameters"] = {**rope.whole, "rope_type": "axial", "rope_theta": theta}
    sizes = Sizes(
        patch,
        fields.integer("spatial_merge_size", 2, high=64),
        fields.integer("temporal_patch_size", 2, high=64),
        fields.integer("out_hidden_size", 4096),
    )
    if fields.sound and (width % heads or width // heads % 4):
        fields.problem("hidden_size", f"is no multiple of four times num_heads = {heads}")
    if fields.sound and edge < patch:
        fields.problem("image_size", f"is smaller than patch_size = {patch}")
    if fields.sound and sizes.hidden != hidden:
        fields.problem("out_hidden_size", f"the decoder's hidden_size is {hidden}")
    fields.check()
    made |= {"spatial_merge_size": sizes.merge, "temporal_patch_size": sizes.together, "out_hidden_size": sizes.hidden}
    return sizes, made


def _flag(fields: Fields, key: str) -> bool:
    """True or false, which some write as 1 or 0."""
    value = fields.raw(key)
    return bool(value) if type(value) is int and value in (0, 1) else fields.flag(key, False)


def image_settings(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """What transformers' processor of pictures is made with.

    Raises:
        ModelError: the file says what neither it nor the tower can have.
    """
    given, path = settings(folder, "image_processor")
    fields = Fields(given, path.name)
    _known(fields, "image_processor_type", "ImageProcessor", ("", "Fast", "Pil"))
    found = _common(fields, sizes, 28 * 28 * 15000)
    found["resample"] = fields.integer("resample", 3, low=0, high=5)
    found["rescale_factor"] = fields.number("rescale_factor", 1 / 255, high=1e6)
    found |= {key: fields.flag(key, True) for key in ("do_rescale", "do_normalize")}
    fields.check()
    return found


def frame_settings(folder: Path, sizes: Sizes) -> FrameSettings:
    """How videos are prepared.

    Raises:
        ModelError: the file says what isobit does not do, or the tower cannot have.
    """
    given, path = settings(folder, "video_processor")
    fields = Fields(given, path.name)
    _known(fields, "video_processor_type", "VideoProcessor", ("", "Fast"))
    found = _common(fields, sizes, 28 * 28 * 2 * 30000)
    fields.only("resample", (3,), "way to resize frames")
    for key in ("do_rescale", "do_normalize"):
        fields.only(key, (True,), "way to prepare frames")
    a_second = fields.number("fps", 2.0, high=1000.0)
    longest = fields.number("max_duration", 300.0, high=1e6)
    sampled = fields.flag("do_sample_frames", True)
    newer = str(given.get("video_processor_type") or processor_class(folder) or "").startswith(_NEWER)
    factor = fields.number("rescale_factor", 1 / 255, high=1e6)
    fields.check()
    sampling = by_length(sizes.together) if newer else steadily(a_second, longest)
    return FrameSettings(
        sampling if sampled else lambda count, rate: even(range(count)),
        sizes.patch,
        sizes.merge,
        sizes.together,
        found["size"]["shortest_edge"],
        found["size"]["longest_edge"],
        tuple(found["image_mean"]),
        tuple(found["image_std"]),
        factor,
    )


def timestamp(folder: Path) -> Callable[[float], str]:
    """What stands behind a frame that is so many seconds from the beginning."""
    if (processor_class(folder) or "").startswith(_NEWER):
        return lambda seconds: f"{seconds:.1f} seconds"
    return lambda seconds: str(int(seconds))


def _known(fields: Fields, key: str, kind: str, ends: tuple[str, ...]) -> None:
    """Refuses classes of transformers other than those of these models, which compute something else."""
    fields.only(
        key, tuple(f"{model}{kind}{end}" for model in ("Glm4v", _NEWER) for end in ends), "way to prepare media"
    )


def _common(fields: Fields, sizes: Sizes, most: int) -> dict[str, Any]:
    """What is said of pictures and videos alike."""
    own = {"patch_size": sizes.patch, "merge_size": sizes.merge, "temporal_patch_size": sizes.together}
    for (key, wanted), usual in zip(own.items(), (14, 2, 2), strict=True):
        if fields.integer(key, usual, high=4096) != wanted and fields.sound:
            fields.complain(f"{key} = {shown(fields.raw(key) or usual)}: the tower's is {wanted} (config.json)")
    fields.only("do_resize", (True,), "way to prepare media")
    size = fields.section("size") or fields.inner({}, "size")
    low = size.integer("shortest_edge", 112 * 112, high=MOST_PIXELS)
    high = size.integer("longest_edge", most, high=MOST_PIXELS)
    if fields.sound and low > high:
        size.problem("shortest_edge", f"longest_edge is {high}")
    colours = {"image_mean": _colours(fields, "image_mean", _MEAN), "image_std": _colours(fields, "image_std", _STD)}
    return own | {"size": {"shortest_edge": low, "longest_edge": high}} | colours


def _colours(fields: Fields, key: str, usual: tuple[float, ...]) -> list[float]:
    """Numbers of red, green and blue."""
    given = fields.raw(key)
    if given is None:
        return list(usual)
    numbers = given if isinstance(given, list) else []
    sound = len(numbers) == 3 and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) and abs(one) < 1e6
        for one in numbers
    )
    if not sound or (key == "image_std" and min(numbers) <= 0):
        fields.problem(key, "expected three numbers, of red, green and blue" + (" above 0" * (key == "image_std")))
        return list(usual)
    return [float(one) for one in numbers]
