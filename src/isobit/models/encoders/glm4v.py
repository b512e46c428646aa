"""What GLM-4.1V, 4.5V, 4.6V and AutoGLM see with: pictures and videos as pieces of prompts, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.text.fast import guarded, read_fast
from isobit.errors import ModelError, UsageError
from isobit.models.archs import model_config
from isobit.models.encoders import glm4v_settings as files
from isobit.models.encoders.glm4v_frames import FrameSettings, prepare
from isobit.models.encoders.weights import filled
from isobit.models.media import Clip, Kind, MediaPrompt, Medium, Picture, Piece, Placed

BEGINNINGS = ("model.visual.", "visual.")  # of the names of the tower's tensors
_BEGIN, _END = "<|begin_of_image|>", "<|end_of_image|>"  # around a frame
_LACKING = "what this model sees with needs transformers and Pillow: pip install 'isobit[media]'"
_AT_ONCE = 1 << 14  # patches of frames that are computed together


class Cut(NamedTuple):
    """A medium as tokens.

    Attributes:
        piece: it.
        grids: rows and columns of tokens of its pictures: of itself, or of each of its frames.
        marks: ids in front of each picture and behind it.
    """

    piece: Piece
    grids: list[tuple[int, int]]
    marks: list[tuple[list[int], list[int]]]


class Tower:
    """See :class:`isobit.models.media.Tower`.

    Args:
        vision: transformers' module.
        processor: transformers' processor of pictures.
        frames: how videos are prepared.
        sizes: of the tower.
        ids: of the tokens that stand for media.
        tokens: token ids of a text, special tokens in it as those.
        timestamp: what stands behind a frame that is so many seconds from the beginning.

    Attributes:
        kinds: pictures and videos.
        placeholders: the tokens that stand for them, and those around these.
    """

    kinds: frozenset[Kind] = frozenset(("image", "video"))

    def __init__(
        self,
        vision: Any,
        processor: Any,
        frames: FrameSettings,
        sizes: files.Sizes,
        ids: files.Ids,
        tokens: Callable[[str], list[int]],
        timestamp: Callable[[float], str],
    ) -> None:
        self.vision, self._processor, self._frames, self._sizes = vision, processor, frames, sizes
        self._ids, self._tokens, self._timestamp = ids, tokens, timestamp
        self.placeholders = ids.around | {ids.image, ids.video}

    def messages(self, messages: Sequence[Mapping[str, Any]], media: Sequence[Medium]) -> Sequence[Mapping[str, Any]]:
        """As they are: the templates of these models write what stands for each part."""
        parts = [
            part.get("type") for message in messages if isinstance(message.get("content"), list | tuple)
            for part in message["content"] if isinstance(part, Mapping)
        ]  # fmt: skip
        wanted: list[Any] = [kind for kind in parts if kind in ("image", "video", "audio")]
        given = [medium.kind for medium in media]
        if "audio" in (*wanted, *given):
            raise UsageError("this model sees and does not hear: it takes pictures and videos, and no sounds")
        if wanted != given:
            raise UsageError(
                f"the messages have parts for {_counted(wanted)}, and {_counted(given)} are given: as many of each, in"
                " the same order"
            )
        return messages

    def prompt(self, ids: Sequence[int], media: Sequence[Medium]) -> MediaPrompt:
        """See the protocol. A place for a video may hold its frames alone: its marks are the template's."""
        stands = {self._ids.image: "image", self._ids.video: "video"}
        wanted = [stands[id] for id in ids if id in stands]
        given = [medium.kind for medium in media]
        if sorted(wanted) != sorted(given):
            raise UsageError(
                f"the prompt has places for {_counted(wanted)}, and {_counted(given)} are given (is there a part for"
                " each, and does the chat template write it?)"
            )
        if not media:
            return MediaPrompt(tuple(ids))
        waiting = {kind: iter([medium for medium in media if medium.kind == kind]) for kind in stands.values()}
        made, begin = _Prompt(self._ids.image), 0
        for place, id in enumerate(ids):
            if id in stands:
                made.text(ids[begin:place])
                made.put(self._cut(next(waiting[stands[id]])))
                begin = place + 1
        made.text(ids[begin:])
        return made.whole()

    def encode(self, piece: Piece) -> Tensor:
        """Embeddings of a picture, or of the frames of a video, one after the other."""
        grid = piece.inputs["grid"]
        frames = torch.split(piece.inputs["patches"], [int(rows * columns) for _, rows, columns in grid])
        step = max(1, _AT_ONCE // max(1, len(frames[0])))
        place = next(self.vision.parameters())
        with torch.no_grad():
            found = [
                self.vision(
                    torch.cat(frames[begin : begin + step]).to(place.device, place.dtype),
                    grid_thw=grid[begin : begin + step].to(place.device),
                ).pooler_output
                for begin in range(0, len(frames), step)
            ]  # fmt: skip
        return torch.cat(found)

    def _cut(self, medium: Medium) -> Cut:
        if isinstance(medium, Picture):
            return self._picture(medium)
        assert isinstance(medium, Clip)
        return self._clip(medium)

    def _picture(self, picture: Picture) -> Cut:
        height, width = picture.pixels.shape[:2]
        if not height or not width:
            raise UsageError(f"a picture of {width} x {height} pixels: there is nothing to see")
        try:
            read = self._processor([picture.pixels], return_tensors="pt", input_data_format="channels_last")
        except ValueError as error:
            raise UsageError(f"a picture of {width} x {height} pixels cannot be read by this model: {error}") from None
        return self._of("image", read["pixel_values"], read["image_grid_thw"].to(torch.int64), [([], [])])

    def _clip(self, clip: Clip) -> Cut:
        read = prepare(clip.frames, clip.rate, self._frames)
        count, *size = read.grid
        marks = [
            (self._tokens(_BEGIN), self._tokens(f"{_END}{self._timestamp(seconds)}")) for seconds in read.seconds
        ]  # fmt: skip
        return self._of("video", read.patches, torch.tensor([[1, *size]] * count), marks)

    def _of(self, kind: Kind, patches: Tensor, grid: Tensor, marks: list[tuple[list[int], list[int]]]) -> Cut:
        merge = self._sizes.merge
        grids = [(int(rows) // merge, int(columns) // merge) for _, rows, columns in grid]
        tokens = sum(rows * columns for rows, columns in grids)
        return Cut(Piece.of(kind, {"patches": patches, "grid": grid}, tokens), grids, marks)


class _Prompt:
    """A prompt as it is put together: ids, and positions in time, row and column."""

    def __init__(self, image: int) -> None:
        self._image = image
        self._ids: list[int] = []
        self._positions: list[Tensor] = []
        self._placed: list[Placed] = []
        self._next = 0

    def text(self, ids: Sequence[int]) -> None:
        """Tokens of which each is one further, on every axis."""
        self._ids += ids
        self._positions.append(torch.arange(self._next, self._next + len(ids))[:, None].expand(-1, 3))
        self._next += len(ids)

    def put(self, cut: Cut) -> None:
        """A medium: its pictures each begin where what is before them ends, and end where their longer side does."""
        places: list[int] = []
        for (rows, columns), (before, behind) in zip(cut.grids, cut.marks, strict=True):
            self.text(before)
            places += range(len(self._ids), len(self._ids) + rows * columns)
            self._ids += [self._image] * (rows * columns)
            axes = torch.arange(1), torch.arange(rows), torch.arange(columns)
            self._positions.append(torch.cartesian_prod(*axes) + self._next)
            self._next += max(rows, columns)
            self.text(behind)
        self._placed.append(Placed(cut.piece, tuple(places)))

    def whole(self) -> MediaPrompt:
        return MediaPrompt(tuple(self._ids), tuple(self._placed), torch.cat(self._positions), self._next)


def open(ck: Checkpoint, dtype: torch.dtype, device: torch.device | None = None) -> Tower:
    """The tower of a checkpoint.

    Args:
        ck: it, with the tower's tensors under their own names.
        dtype, device: of the decoder.

    Raises:
        CheckpointError: tensors are missing or do not fit.
        ModelError: the files say what isobit or the tower cannot do.
        UsageError: transformers is not there.
    """
    given, folder = ck.config.get("vision_config") or {}, ck.path if ck.path.is_dir() else ck.path.parent
    if not isinstance(given, Mapping):
        raise ModelError("config.json: vision_config: expected an object")
    experts = model_config(ck.config).family == "glm4v_moe"
    sizes, told = files.read_sizes(given, model_config(ck.config).hidden_size)
    ids = files.read_ids(ck.config, experts)
    frames, pictures = files.frame_settings(folder, sizes), files.image_settings(folder, sizes)
    vision = _vision(ck, told, experts, dtype, device)
    try:
        from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
    except ImportError as error:
        raise UsageError(_LACKING) from error
    processor: Any = Glm4vImageProcessorPil
    return Tower(vision, processor(**pictures), frames, sizes, ids, _tokenizer(folder), files.timestamp(folder))


def _vision(
    ck: Checkpoint, given: dict[str, Any], experts: bool, dtype: torch.dtype, device: torch.device | None
) -> Any:
    """transformers' module with its weights."""
    try:
        from transformers.models.glm4v import configuration_glm4v, modeling_glm4v
        from transformers.models.glm4v_moe import configuration_glm4v_moe, modeling_glm4v_moe
    except ImportError as error:
        raise UsageError(_LACKING) from error
    made: Any = configuration_glm4v_moe.Glm4vMoeVisionConfig if experts else configuration_glm4v.Glm4vVisionConfig
    model: Any = modeling_glm4v_moe.Glm4vMoeVisionModel if experts else modeling_glm4v.Glm4vVisionModel
    try:
        settings = made(**given)
        settings._attn_implementation = "sdpa"
        with torch.device("meta"):
            kind = type(model(settings).rotary_pos_emb)
        angles = kind(settings)  # its frequencies are in no checkpoint
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"config.json: vision_config: {str(error)[:400]}") from None
    beginning = next((one for one in BEGINNINGS if any(name.startswith(one) for name in ck.tensors)), BEGINNINGS[0])
    vision: Any = filled(lambda: model(settings), ck, lambda name: beginning + name, dtype=dtype, device=device)
    vision.rotary_pos_emb = angles
    return vision


def _tokenizer(folder: Path) -> Callable[[str], list[int]]:
    """Token ids of what stands between the frames of a video; the tokenizer is read when the first video comes."""

    @cache
    def read() -> Any:
        return read_fast(folder).tokenizer

    def tokens(text: str) -> list[int]:
        what = "the tokenizer cannot encode the time of a frame"
        found = guarded(folder / "tokenizer.json", what, read().encode, text, add_special_tokens=False)
        return list(found.ids)

    return tokens


def _counted(kinds: Sequence[str]) -> str:
    """Kinds for people: ``2 pictures and 1 video``."""
    names = {"image": "picture", "video": "video", "audio": "sound"}
    numbers = {name: kinds.count(kind) for kind, name in names.items() if kind in kinds}
    return " and ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in numbers.items()) or "none"
