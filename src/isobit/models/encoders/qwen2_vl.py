"""What Qwen2-VL and Qwen2.5-VL see pictures with; their videos are not taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import ModelError, UsageError
from isobit.models.archs import model_config
from isobit.models.encoders.pictures import preparation, visible
from isobit.models.encoders.weights import filled
from isobit.models.fields import Fields
from isobit.models.media import Kind, MediaPrompt, Medium, Picture, Piece, Placed

FRONTS = "model.visual.", "visual."  # of the names of the tower's tensors
PIXELS = 56 * 56, 28 * 28 * 1280  # of a resized picture, where no file says it
IMAGE, VIDEO, BEGIN, END = 151655, 151656, 151652, 151653  # tokens, where config.json does not say
NEWER = "Qwen2_5_VLForConditionalGeneration"
MOST_LAYERS = 1000


class QwenTower:
    """Sees: see :class:`isobit.models.media.Tower`.

    Args:
        ck: the checkpoint.
        dtype, device: of the decoder.

    Attributes:
        kinds: pictures.
        placeholders: the tokens of a part of a picture or a video, and those around them.

    Raises:
        ModelError: the configuration asks for what is not implemented.
        CheckpointError: tensors are missing or misshapen, or a file beside them is wrong.
        UsageError: transformers is not installed.
    """

    kinds: frozenset[Kind] = frozenset({"image"})

    def __init__(self, ck: Checkpoint, dtype: torch.dtype, device: torch.device | None = None) -> None:
        self._dtype, self._device = dtype, device
        keys = Fields(ck.config)
        names = (("image_token_id", IMAGE), ("video_token_id", VIDEO), ("vision_start_token_id", BEGIN),
                 ("vision_end_token_id", END))  # fmt: skip
        ids = [keys.integer(key, usual, low=0) for key, usual in names]
        self._token, self.placeholders = ids[0], frozenset(ids)
        newer = ck.config.get("architectures") == [NEWER]
        given = _sizes(keys, newer, model_config(ck.config).hidden_size)
        keys.check()
        self._merge = int(given["spatial_merge_size"])
        told = preparation(ck.path, given["patch_size"], self._merge, given["temporal_patch_size"], PIXELS).told
        self._module = _module(ck, given, newer, dtype, device)
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        made: Any = Qwen2VLImageProcessorPil
        self._processor = made(**told)

    def messages(self, messages: Sequence[Mapping[str, Any]], media: Sequence[Medium]) -> Sequence[Mapping[str, Any]]:
        """Messages as the template wants them: as they came; see :meth:`isobit.models.media.Tower.messages`."""
        for medium in media:
            _require_picture(medium)
        found = sum(_pictures(message.get("content")) for message in messages)
        if found != len(media):
            raise UsageError(f"the messages have {found} parts of type image, and there are {len(media)} images")
        return messages

    def prompt(self, ids: Sequence[int], media: Sequence[Medium]) -> MediaPrompt:
        """The prompt with as many tokens as a picture has, where the template wrote one for it."""
        if (found := sum(id == self._token for id in ids)) != len(media):
            raise UsageError(
                f"the prompt has {found} places for images (token {self._token}), and there are {len(media)} images:"
                " its chat template writes one for each part of type image"
            )
        if not media:
            return MediaPrompt(tuple(ids))
        pieces = iter([self.piece(medium) for medium in media])
        made: list[int] = []
        placed: list[Placed] = []
        positions: list[Tensor] = []
        behind = 0  # the position of the next token
        for id in ids:
            if id != self._token:
                made.append(id)
                positions.append(torch.full((1, 3), behind))
                behind += 1
                continue
            piece = next(pieces)
            placed.append(Placed(piece, tuple(range(len(made), len(made) + piece.tokens))))
            made += [id] * piece.tokens
            rows, columns = (int(size) // self._merge for size in piece.inputs["image_grid_thw"][0, 1:])
            positions.append(torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)) + behind)
            behind += max(rows, columns)
        return MediaPrompt(tuple(made), tuple(placed), torch.cat(positions), behind)

    def piece(self, medium: Medium) -> Piece:
        """A picture as the tower reads it: patches, float32, and how many there are each way.

        Raises:
            UsageError: it is no picture, has no pixels, or is too long for its width.
        """
        from PIL import Image

        picture = _require_picture(medium)
        visible(picture)
        made = self._processor(Image.fromarray(picture.pixels), return_tensors="pt")
        grid = made["image_grid_thw"]
        inputs = {"pixel_values": made["pixel_values"].float(), "image_grid_thw": grid}
        return Piece.of("image", inputs, int(grid[0].prod()) // self._merge**2)

    def encode(self, piece: Piece) -> Tensor:
        """Embeddings ``[piece.tokens, hidden]``; each picture is encoded by itself."""
        pixels = piece.inputs["pixel_values"].to(self._device, self._dtype)
        with torch.no_grad():
            grid = piece.inputs["image_grid_thw"].to(self._device)
            found: Tensor = self._module(pixels, grid_thw=grid).pooler_output
        return found


def _require_picture(medium: Medium) -> Picture:
    if medium.kind == "video":
        raise UsageError("isobit gives this model pictures, and no videos yet: give some of the video's frames")
    if not isinstance(medium, Picture):
        raise UsageError(f"this model sees images: it takes no {medium.kind}")
    return medium


def _pictures(content: Any) -> int:
    """Parts of a message that are pictures.

    Raises:
        UsageError: there are parts of another kind.
    """
    kinds = [part.get("type") for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    if "video" in kinds:
        raise UsageError("isobit gives this model pictures, and no videos yet: give some of the video's frames")
    return kinds.count("image")


def _sizes(keys: Fields, newer: bool, width: int) -> dict[str, Any]:
    """What the tower is, by the names of transformers' configuration."""
    part = keys.section("vision_config") or keys.inner({}, "vision_config")
    for key in ("in_channels", "in_chans"):
        part.only(key, (3,), "number of colours")
    if (rope := part.section("rope_parameters")) is not None:
        rope.only("rope_type", ("axial",), "rope type")
        rope.only("rope_theta", (10000,), "base of its rope")
    usual = 3584 if newer else 1280
    found: dict[str, Any] = {
        "depth": part.integer("depth", 32, high=MOST_LAYERS),
        "num_heads": part.integer("num_heads", 16),
        "patch_size": part.integer("patch_size", 14, high=1024),
        "spatial_merge_size": part.integer("spatial_merge_size", 2, high=64),
        "temporal_patch_size": part.integer("temporal_patch_size", 2, high=64),
    }
    if newer:
        part.only("hidden_act", ("silu", "gelu", "gelu_pytorch_tanh"), "activation")
        found |= {
            "hidden_size": part.integer("hidden_size", usual),
            "intermediate_size": part.integer("intermediate_size", 3420),
            "window_size": part.integer("window_size", 112, high=1 << 16),
            "out_hidden_size": part.integer("out_hidden_size", 3584),
            "hidden_act": part.raw("hidden_act") or "silu",
            "fullatt_block_indexes": _whole_layers(part),
        }
    else:
        part.only("hidden_act", ("quick_gelu", "gelu", "silu"), "activation")
        found |= {
            "embed_dim": part.integer("embed_dim", usual),
            "hidden_size": part.integer("hidden_size", 3584),
            "mlp_ratio": part.integer("mlp_ratio", 4, high=64),
            "hidden_act": part.raw("hidden_act") or "quick_gelu",
        }
    inner, outer = (
        (found["hidden_size"], found["out_hidden_size"]) if newer else (found["embed_dim"], found["hidden_size"])
    )
    if keys.sound and (inner % found["num_heads"] or inner // found["num_heads"] % 4):
        part.complain(f"{inner} is no multiple of four times num_heads = {found['num_heads']}")
    if keys.sound and outer != width:
        part.complain(f"the tower makes embeddings of {outer} numbers, and the decoder's hidden_size is {width}")
    return found


def _whole_layers(part: Fields) -> list[int]:
    """Layers whose patches look at all others of their picture."""
    found = part.raw("fullatt_block_indexes")
    if found is None:
        return [7, 15, 23, 31]
    if not isinstance(found, list) or not all(type(layer) is int for layer in found):
        part.problem("fullatt_block_indexes", "expected a list of layers")
        return []
    return found


def _module(ck: Checkpoint, given: dict[str, Any], newer: bool, dtype: torch.dtype, device: torch.device | None) -> Any:
    """transformers' module with its weights."""
    try:
        from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl
        from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl
    except ImportError:
        raise UsageError(
            "what this model sees with needs transformers 5 and Pillow, which are missing: pip install 'isobit[media]'"
        ) from None
    made: Any = configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig if newer else configuration_qwen2_vl.Qwen2VLVisionConfig
    model: Any = (
        modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel
        if newer
        else modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel
    )
    try:
        config = made(**given)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            kind = type(model(config).rotary_pos_emb)
        angles = kind(config).to(device)  # its frequencies are in no checkpoint
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json: vision_config: {str(error)[:400]}") from None
    front = next((one for one in FRONTS if any(name.startswith(one) for name in ck.tensors)), FRONTS[0])
    module: Any = filled(lambda: model(config), ck, lambda name: front + name, dtype=dtype, device=device)
    module.rotary_pos_emb = angles
    return module
