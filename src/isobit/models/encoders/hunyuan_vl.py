"""What HunyuanOCR sees with: a SigLIP-like tower over patches of an image, and a merger to the decoder's width.

Four patches become one token; the tower puts one behind each row of them, one in front of all and one behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, UsageError
from isobit.models.archs import model_config
from isobit.models.archs.hunyuan_vl import Vision, vision
from isobit.models.encoders.pictures import preparation, visible
from isobit.models.encoders.weights import filled
from isobit.models.fields import Fields
from isobit.models.media import Kind, MediaPrompt, Medium, Picture, Piece, Placed

TOKEN, START, END = 120120, 120118, 120119  # of an image, where config.json does not say
FRONTS = "model.vision_tower.", "vit.", "model.vit."
# Names of the tower's modules, and what version 1.0 calls them.
OLD = (
    ("patch_merger.", "perceive."), (".proj_conv.", ".proj.0."), (".proj_out.", ".proj.2."),
    (".mlp.fc1.", ".mlp.dense_h_to_4h."), (".mlp.fc2.", ".mlp.dense_4h_to_h."), (".layer_norm1.", ".input_layernorm."),
    (".layer_norm2.", ".post_attention_layernorm."),
)  # fmt: skip
PIXELS = 512 * 512, 2048 * 2048  # of a resized image, where no file says it


class HunyuanTower:
    """Sees: see :class:`isobit.models.media.Tower`.

    Args:
        ck: the checkpoint.
        dtype, device: of the decoder.

    Attributes:
        kinds: images.
        placeholders: the token of a part of an image, and those around it.

    Raises:
        ModelError: the configuration asks for what is not implemented.
        CheckpointError: tensors are missing or misshapen, or a file beside them is wrong.
        UsageError: transformers is not installed.
    """

    kinds: frozenset[Kind] = frozenset({"image"})

    def __init__(self, ck: Checkpoint, dtype: torch.dtype, device: torch.device | None = None) -> None:
        self._dtype, self._device = dtype, device
        keys = Fields(ck.config)
        self._vision = vision(keys)
        self._token = keys.integer("image_token_id", TOKEN, low=0)
        self._start = keys.integer("im_start_id", keys.integer("image_start_token_id", START, low=0), low=0)
        self._end = keys.integer("im_end_id", keys.integer("image_end_token_id", END, low=0), low=0)
        keys.check()
        self.placeholders = frozenset({self._token, self._start, self._end})
        decoder = model_config(ck.config)
        rope = decoder.layers[0].attention.rope
        self._axes = 1 if rope is None else rope.axes
        self._processor = _processor(ck.path, self._vision)
        self._module = _module(ck, self._vision, decoder.hidden_size, dtype, device)

    def messages(self, messages: Sequence[Mapping[str, Any]], media: Sequence[Medium]) -> Sequence[Mapping[str, Any]]:
        """Messages as the template wants them: as they came; see :meth:`isobit.models.media.Tower.messages`."""
        for medium in media:
            _require_picture(medium)
        found = sum(_images(message.get("content")) for message in messages)
        if found != len(media):
            raise UsageError(f"the messages have {found} parts of type image, and there are {len(media)} images")
        return messages

    def prompt(self, ids: Sequence[int], media: Sequence[Medium]) -> MediaPrompt:
        """The prompt with as many tokens as an image has, where the template wrote one between its two marks."""
        places = [place for place, id in enumerate(ids) if id == self._token]
        if len(places) != len(media):
            raise UsageError(
                f"the prompt has {len(places)} places for images (token {self._token}), and there are {len(media)}"
                " images: its chat template writes one for each part of type image"
            )
        for place in places:
            around = ids[place - 1] if place else None, ids[place + 1] if place + 1 < len(ids) else None
            if around != (self._start, self._end):
                raise UsageError(
                    f"token {place} of the prompt stands for an image and is not between the marks that this model"
                    f" knows images by (tokens {self._start} and {self._end}): use the model's chat template"
                )
        if not media:
            return MediaPrompt(tuple(ids))
        pieces = iter([self.piece(medium) for medium in media])
        made: list[int] = []
        placed: list[Placed] = []
        for id in ids:
            piece = next(pieces) if id == self._token else None
            if piece is not None:
                placed.append(Placed(piece, tuple(range(len(made), len(made) + piece.tokens))))
            made += [id] * (1 if piece is None else piece.tokens)
        positions = self._positions(len(made), placed)
        return MediaPrompt(tuple(made), tuple(placed), positions, int(positions.max()) + 1)

    def piece(self, medium: Medium) -> Piece:
        """An image as the tower reads it: patches, float32 ``[patches, 3 * patch * patch]``, and how many each way.

        Raises:
            UsageError: it is no image, has no pixels, or is too long for its width.
        """
        from PIL import Image

        picture = _require_picture(medium)
        height, width = visible(picture)
        # As an image of PIL: of an array with 1, 3 or 4 rows, transformers would take these for colours.
        made = self._processor(Image.fromarray(picture.pixels), return_tensors="pt")
        _, rows, columns = made["image_grid_thw"][0].tolist()
        if min(rows, columns) < 2:  # of a tower that merges no patches; others get two of them at least
            raise UsageError(
                f"an image is {width} by {height} pixels, which makes {columns} by {rows} patches: this model's tower"
                " takes two or more each way; give a larger image"
            )
        return Piece.of(
            "image",
            {"pixel_values": made["pixel_values"].float(), "image_grid_thw": made["image_grid_thw"]},
            self._tokens(rows, columns),
        )

    def encode(self, piece: Piece) -> Tensor:
        """Embeddings ``[piece.tokens, hidden]``; each image is encoded by itself."""
        pixels = piece.inputs["pixel_values"].to(self._device, self._dtype)
        with torch.no_grad():
            found: Tensor = self._module(pixels, piece.inputs["image_grid_thw"].to(self._device)).pooler_output[0]
        return found

    def _tokens(self, rows: int, columns: int) -> int:
        merged = self._vision.merged
        return (rows // merged) * (columns // merged + 1) + 2

    def _positions(self, length: int, placed: Sequence[Placed]) -> Tensor:
        """Positions on each axis: column, row and number of an image on the last three; all else along the prompt."""
        positions = torch.arange(length).unsqueeze(1).repeat(1, self._axes)
        for number, one in enumerate(placed):
            _, rows, columns = (int(size) for size in one.piece.inputs["image_grid_thw"][0])
            rows, columns = rows // self._vision.merged, columns // self._vision.merged + 1
            inner = slice(one.places[0] + 1, one.places[-1])  # without the one in front and the one behind
            positions[inner, -3] = torch.arange(columns).repeat(rows)
            positions[inner, -2] = torch.arange(rows).repeat_interleave(columns)
            positions[inner, -1] = number
        return positions


def _require_picture(medium: Medium) -> Picture:
    if not isinstance(medium, Picture):
        raise UsageError(f"this model sees images: it takes no {medium.kind}")
    return medium


def _images(content: Any) -> int:
    """Parts of a message that are images."""
    if not isinstance(content, list | tuple):
        return 0
    return sum(isinstance(part, Mapping) and part.get("type") == "image" for part in content)


def _processor(folder: Path, of: Vision) -> Any:
    """transformers' processor, told what the files beside the weights say."""
    try:
        from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import HunYuanVLImageProcessorPil
    except ImportError:
        raise UsageError(_NEEDED) from None
    return HunYuanVLImageProcessorPil(**preparation(folder, of.patch, of.merged, 1, PIXELS).told)


_NEEDED = (
    "what sees of this model needs transformers 5 and Pillow, which are not installed: pip install 'isobit[media]'"
)


def _module(ck: Checkpoint, of: Vision, width: int, dtype: torch.dtype, device: torch.device | None) -> nn.Module:
    """The tower with its weights."""
    try:
        from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLVisionConfig
        from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLVisionTransformer
    except ImportError:
        raise UsageError(_NEEDED) from None
    config = HunYuanVLVisionConfig(
        hidden_size=of.hidden, intermediate_size=of.intermediate, num_hidden_layers=of.layers,
        num_attention_heads=of.heads, patch_size=of.patch, spatial_merge_size=of.merged, max_image_size=of.largest,
        rms_norm_eps=of.eps, hidden_act=of.activation, interpolate_mode=of.resized, text_hidden_size=width,
    )  # fmt: skip
    names = Names(ck)
    return filled(lambda: HunYuanVLVisionTransformer(config), ck, names, dtype=dtype, device=device)


class Names:
    """What a checkpoint calls the tensors of the tower, by their names in transformers' module.

    Args:
        ck: the checkpoint.

    Raises:
        CheckpointError: it holds no tower.
    """

    def __init__(self, ck: Checkpoint) -> None:
        anchor = "embeddings.patch_embedding.weight"
        self._front = next((front for front in FRONTS if front + anchor in ck.tensors), None)
        if self._front is None:
            raise CheckpointError(
                "is missing: this checkpoint holds no tower that sees", file=ck.path, tensor=FRONTS[0] + anchor
            )
        self._modules = {name.rpartition(".")[0] for name in ck.tensors} | {*ck.tensors}

    def __call__(self, name: str) -> str:
        """The name in the checkpoint; the newer one if it has neither."""
        found = [f"{self._front}{one}" for one in _spellings(name)]
        return next((one for one in found if one in self._modules or one.rpartition(".")[0] in self._modules), found[0])


def _spellings(name: str) -> Iterator[str]:
    """A name as the two versions have it."""
    yield name
    old = f".{name}"
    for new, other in OLD:
        old = old.replace(new, other)
    yield old.removeprefix(".")
