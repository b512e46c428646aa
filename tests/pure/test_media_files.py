"""Files of pictures, videos and sounds to values: what is in them, and everything that is wrong with them."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.errors import IsobitError, UsageError
from isobit.media import Clip, Limits, Picture, clip, picture, sound

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
soundfile = pytest.importorskip("soundfile", reason="needs soundfile")


def colours(height: int = 9, width: int = 14, seed: int = 0) -> NDArray[np.uint8]:
    """Large areas of colour, which JPEG keeps nearly."""
    made = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return np.ascontiguousarray(np.kron(made, np.ones((height // 3 + 1, width // 3 + 1, 1), np.uint8))[:height, :width])


def saved(image: Any, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def wave(seconds: float = 0.25, rate: int = 8000, form: str = "WAV", channels: int = 1, **options: Any) -> bytes:
    t = np.arange(int(seconds * rate)) / rate
    tone = np.stack([0.5 * np.sin(2 * np.pi * 440 * (n + 1) * t) for n in range(channels)], axis=1)
    out = io.BytesIO()
    soundfile.write(out, tone, rate, format=form, **options)
    return out.getvalue()


def png_saying(width: int, height: int) -> bytes:
    """A PNG whose header says a size, and little behind it."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


# Pictures


@pytest.mark.parametrize("form, options", [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_exact_formats_give_the_pixels(form: str, options: dict[str, Any]) -> None:
    pixels = colours()
    found = picture(saved(Image.fromarray(pixels), form, **options)).pixels
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.array_equal(found, pixels)


def test_jpeg_is_what_pillow_decodes() -> None:
    data = saved(Image.fromarray(colours(48, 64)), "JPEG", quality=95)
    assert np.array_equal(picture(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_are_as_transformers_reads_them(mode: str) -> None:
    image_utils = pytest.importorskip("transformers.image_utils")
    image = Image.fromarray(colours()).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(colours(seed=1)[:, :, 0]))
    data = saved(image, "PNG", **({"transparency": bytes(range(0, 250, 50))} if mode == "P" else {}))
    image = Image.open(io.BytesIO(data))
    image.info.pop("transparency", None)  # of which Pillow warns
    assert np.array_equal(picture(data).pixels, np.asarray(image_utils.load_image(image)))


def test_gray_of_16_bits_is_scaled() -> None:
    deep = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    found = picture(saved(Image.fromarray(deep), "PNG")).pixels
    assert found[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert (found == found[:, :, :1]).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_pictures_are_upright(form: str, turned: int) -> None:
    """As Pillow's own function turns them."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x010F] = "a maker, before it"
    exif[0x0112] = turned
    data = saved(Image.fromarray(colours(30, 50)), form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(picture(data).pixels, np.asarray(upright))


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"junk"]
)
def test_an_orientation_that_cannot_be_read_is_none(exif: bytes) -> None:
    pixels = colours()
    assert np.array_equal(picture(saved(Image.fromarray(pixels), "PNG", exif=exif)).pixels, pixels)


def test_telephones_second_picture_is_left() -> None:
    first, second = (Image.fromarray(colours(30, 30, seed)) for seed in (1, 2))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(picture(data).pixels, np.asarray(Image.open(io.BytesIO(saved(first, "JPEG")))))


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    data = saved(Image.fromarray(colours(64, 64)), "JPEG", progressive=True)
    assert picture(data).pixels.shape == (64, 64, 3)
    at = data.rindex(b"\xff\xda")
    with pytest.raises(UsageError, match="a JPEG of .* scans"):
        picture(data[:at] + data[at:-2] * 200 + data[-2:])


def test_the_header_says_that_it_is_too_large() -> None:
    """No pixel is decoded for that: the bytes behind the header would not do."""
    with pytest.raises(UsageError, match="8000 x 9000 pixels; the limit is 1,000,000"):
        picture(png_saying(8000, 9000), Limits(pixels=1_000_000))
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (12_000, 12_000)):
        with pytest.raises(UsageError, match="pixels"):
            picture(png_saying(width, height))


def test_what_is_no_picture() -> None:
    for data in (b"text", b"\0" * 1000, b"GIF89a", b"<svg/>", b"%PDF-1.4", wave(), b"II*\0" + b"\0" * 100):
        with pytest.raises(UsageError, match=r"messages\[0\]"):
            picture(data, name="messages[0]")
    with pytest.raises(UsageError, match="the picture is empty"):
        picture(b"")
    with pytest.raises(UsageError, match="PNG, JPEG, WebP, GIF, BMP are"):
        picture(saved(Image.fromarray(colours()), "TIFF"))


def test_bytes_have_a_limit() -> None:
    data = saved(Image.fromarray(colours()), "PNG")
    assert picture(data, Limits(bytes=len(data))).pixels.shape == (9, 14, 3)
    with pytest.raises(UsageError, match=f"has {len(data)} bytes; the limit is {len(data) - 1}"):
        picture(data, Limits(bytes=len(data) - 1))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_cut_off_are_refused(form: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (40, 40, 3), np.uint8)
    data = saved(Image.fromarray(noise), form)
    for part in (len(data) // 10, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(UsageError, match="damaged or cut off|no image"):
            picture(data[:part])


# Clips


def animated(form: str, count: int = 5, duration: Any = 200) -> tuple[bytes, list[NDArray[np.uint8]]]:
    frames = [np.full((12, 16, 3), 40 * number, np.uint8) for number in range(count)]
    images = [Image.fromarray(frame) for frame in frames]
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = saved(images[0], form, save_all=True, append_images=images[1:], duration=duration, loop=0, **lossless)
    return data, frames


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_clips(form: str) -> None:
    data, frames = animated(form)
    found = clip(data)
    assert np.array_equal(found.frames, np.stack(frames))
    assert found.rate == pytest.approx(5.0)
    with pytest.raises(UsageError, match="is animated: give it as a video"):
        picture(data)
    with pytest.raises(UsageError, match="more than 4 frames"):
        clip(data, Limits(frames=4))
    with pytest.raises(UsageError, match="5 frames of 16 x 12 pixels"):
        clip(data, Limits(pixels=12 * 16 * 5 - 1))
    with pytest.raises(UsageError, match="lasts 1 seconds; the limit is 0.9"):
        clip(data, Limits(seconds=0.9))


def test_an_animations_rate_is_the_mean_one() -> None:
    data, _ = animated("GIF", 4, [100, 200, 300, 400])
    assert clip(data).rate == pytest.approx(4.0)


def test_a_still_image_is_a_clip_of_one_frame() -> None:
    found = clip(saved(Image.fromarray(colours()), "PNG"))
    assert np.array_equal(found.frames[0], colours()) and len(found.frames) == 1


def test_pictures_are_a_clip() -> None:
    frames = [Picture(colours(seed=seed)) for seed in range(3)]
    found = clip(frames, rate=2)
    assert isinstance(found, Clip) and found.rate == 2.0
    assert np.array_equal(found.frames, np.stack([frame.pixels for frame in frames]))
    files = [saved(Image.fromarray(frame.pixels), "PNG") for frame in frames]
    assert np.array_equal(clip(files, rate=2).frames, found.frames)
    with pytest.raises(UsageError, match="frame 2 of the video is no image"):
        clip([files[0], b"x", files[2]])
    for wrong, limits, rate, said in (
        ([], Limits(), 1.0, "no frames"),
        ([*frames, Picture(colours(3, 3))], Limits(), 1.0, "differ in size"),
        (frames, Limits(frames=2), 1.0, "3 frames"),
        (frames, Limits(pixels=300), 1.0, "3 frames of 14 x 9"),
        (frames, Limits(seconds=1), 1.0, "lasts 3.0 seconds"),
        (frames, Limits(), float("nan"), "frames a second"),
        (frames, Limits(), 0.0, "frames a second"),
    ):
        with pytest.raises(UsageError, match=said):
            clip(wrong, limits, rate=rate)


def film(count: int = 6, rate: int = 3, form: str = "mp4", codec: str = "mpeg4") -> bytes:
    av = pytest.importorskip("av", reason="needs PyAV")
    out = io.BytesIO()
    with av.open(out, "w", format=form) as file:
        track = file.add_stream(codec, rate=rate)
        track.width, track.height, track.pix_fmt = 48, 32, "yuv420p"
        for number in range(count):
            shade = np.full((32, 48, 3), 40 * number, np.uint8)
            shade[:, :16] += 50
            frame = av.VideoFrame.from_ndarray(shade, format="rgb24")
            file.mux(track.encode(frame))
        file.mux(track.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("form, codec", [("mp4", "mpeg4"), ("matroska", "mpeg4")])
def test_films_are_clips(form: str, codec: str) -> None:
    found = clip(film(form=form, codec=codec))
    assert found.frames.shape == (6, 32, 48, 3) and found.rate == pytest.approx(3.0)
    assert abs(found.frames[:, 16, 24, 0].astype(int) - 40 * np.arange(6)).max() < 8
    with pytest.raises(UsageError, match="frames"):
        clip(film(form=form, codec=codec), Limits(frames=5))
    with pytest.raises(UsageError, match="6 frames|5 frames"):
        clip(film(form=form, codec=codec), Limits(pixels=32 * 48 * 5 - 1))
    with pytest.raises(UsageError, match="lasts"):
        clip(film(form=form, codec=codec), Limits(seconds=1))


def test_films_are_upright() -> None:
    """A telephone held upright writes lying frames, and a matrix in the header of the track that turns them."""
    data = bytearray(film())
    at = data.index(b"tkhd") + 4 + 40  # behind version 0's fixed fields
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # right becomes down
    found = clip(bytes(data))
    assert found.frames.shape == (6, 48, 32, 3)
    assert found.frames[2, 8, 16, 0] > found.frames[2, 40, 16, 0] + 30  # what was left is above


def test_films_need_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    data = film()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"without PyAV: pip install 'isobit\[video\]'"):
        clip(data)


# Sounds


@pytest.mark.parametrize("form, options", [("WAV", {}), ("FLAC", {}), ("WAV", {"subtype": "FLOAT"}), ("WAVEX", {})])
def test_exact_sounds(form: str, options: dict[str, Any]) -> None:
    data = wave(form=form, **options)
    found = sound(data)
    assert found.rate == 8000 and found.samples.dtype == np.float32
    assert np.array_equal(found.samples, soundfile.read(io.BytesIO(data), dtype="float32")[0])
    assert np.abs(found.samples).max() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("form, options", [("OGG", {"subtype": "VORBIS"}), ("OGG", {"subtype": "OPUS"}), ("MP3", {})])
def test_lossy_sounds(form: str, options: dict[str, Any]) -> None:
    found = sound(wave(0.5, 16000, form, **options))
    assert abs(len(found.samples) / found.rate - 0.5) < 0.15
    assert 0.3 < np.abs(found.samples).max() < 0.8


def test_several_channels_are_their_mean() -> None:
    data = wave(1.0, channels=3)
    every = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]
    assert np.array_equal(sound(data).samples, every.mean(axis=1, dtype=np.float32))


def test_blocks_make_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from isobit.media import sounds

    data = wave(1.0, channels=2)
    whole = sound(data).samples
    monkeypatch.setattr(sounds, "_BLOCK", 1000)
    assert np.array_equal(sound(data).samples, whole)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_seconds_have_a_limit(form: str) -> None:
    data = wave(2.0, 16000, form)
    assert len(sound(data, Limits(seconds=2.5)).samples) >= 32000
    with pytest.raises(UsageError, match="lasts .*1.5"):
        sound(data, Limits(seconds=1.5))


def test_samples_have_a_limit_with_them() -> None:
    data = wave(1.0, 96_000)
    assert len(sound(data, Limits(seconds=2.0)).samples) == 96_000
    with pytest.raises(UsageError, match="lasts 1.0 seconds; the limit is 0.9"):
        sound(data, Limits(seconds=1.8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(value: float) -> None:
    out = io.BytesIO()
    soundfile.write(out, np.array([0.0, value, 0.5], np.float32), 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(UsageError, match="no numbers"):
        sound(out.getvalue())


def test_what_is_no_sound() -> None:
    for data in (
        b"text",
        b"\0" * 1000,
        png_saying(4, 4),
        b"RIFF\0\0\0\0WAVE",
        b"fLaC",
        b"OggS",
        b"\xff\xfb\x90\0",
        b"ID3",
    ):
        with pytest.raises(UsageError, match="sound 2 "):
            sound(data, name="sound 2")
    with pytest.raises(UsageError, match="the sound is empty"):
        sound(b"")
    with pytest.raises(UsageError, match="has no samples"):
        sound(wave(0.0))
    with pytest.raises(UsageError, match="samples a second"):
        sound(wave(0.1, 200))
    aiff = io.BytesIO()
    soundfile.write(aiff, np.zeros(100), 8000, format="AIFF")
    with pytest.raises(UsageError, match="WAV, FLAC, OGG"):
        sound(aiff.getvalue())


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_sounds_cut_off_are_refused(form: str) -> None:
    data = wave(2.0, form=form)
    for part in (len(data) // 10, len(data) // 2, len(data) - 200):
        with pytest.raises(UsageError, match="cut off"):
            sound(data[:part])


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0])
@pytest.mark.parametrize("riff", [None, 0, 0xFFFFFFFF])
def test_a_wave_written_into_a_pipe_ends_where_it_ends(size: int, riff: int | None) -> None:
    data = bytearray(wave())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    if riff is not None:
        data[4:8] = struct.pack("<I", riff)
    assert np.array_equal(sound(bytes(data)).samples, sound(wave()).samples)


def test_a_wave_without_samples_may_have_chunks_behind_them() -> None:
    data = wave(0.0) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(UsageError, match="has no samples"):
        sound(data)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("loud", [1e19, 3e38, -1e7])
def test_samples_far_beyond_full_scale_are_refused(loud: float, channels: int) -> None:
    made = io.BytesIO()
    samples = np.full((100, channels), loud, np.float32)
    soundfile.write(made, samples, 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(UsageError, match="full scale is 1|no numbers"):
        sound(made.getvalue())


def test_samples_beyond_full_scale_are_read() -> None:
    made = io.BytesIO()
    soundfile.write(made, np.full(100, 40.0, np.float32), 8000, format="WAV", subtype="FLOAT")
    assert (sound(made.getvalue()).samples == 40.0).all()


# Limits, libraries, and files that nobody made


@pytest.mark.parametrize(
    "wrong",
    [{"bytes": 0}, {"pixels": 2**40}, {"frames": True}, {"seconds": float("nan")}, {"seconds": 0}, {"count": -1}],
)
def test_limits_are_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Limits(**wrong)


@pytest.mark.parametrize("library, decode", [("PIL", picture), ("soundfile", sound)])
def test_libraries_are_named(library: str, decode: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    data = wave() if decode is sound else png_saying(4, 4)
    with pytest.raises(UsageError, match=r"pip install 'isobit\[media\]'"):
        decode(data)


def test_no_library_is_imported_before_a_file_is_read() -> None:
    code = "import sys, isobit.media; sys.exit(any(n in sys.modules for n in ('PIL', 'soundfile', 'av', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, doubled or swapped, the first ones more than others: headers are there."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(min(len(made), 200) if chance.random() < 0.6 else len(made))
        match chance.randrange(5):
            case 0:
                made[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 1:
                made[at : at + 4] = struct.pack(
                    chance.choice("<>") + "I", chance.choice((0, 1, 2**31, 2**32 - 1, 65536))
                )
            case 2:
                del made[at : at + chance.randint(1, 30)]
            case 3:
                made[at:at] = made[at : at + chance.randint(1, 30)]
            case _:
                del made[max(at, 20) :]
        if not made:
            return b"\0"
    return bytes(made)


def _specimens() -> dict[str, tuple[Callable[..., Any], bytes]]:
    noisy = Image.fromarray(np.random.default_rng(5).integers(0, 256, (24, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found: dict[str, tuple[Callable[..., Any], bytes]] = {
        form: (picture, saved(noisy, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {})))
        for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    }
    found |= {f"animated {form}": (clip, animated(form)[0]) for form in ("GIF", "WEBP", "PNG")}
    found |= {form: (sound, wave(0.1, 16000, form, channels=2)) for form in ("WAV", "FLAC", "OGG", "MP3")}
    try:
        import av  # noqa: F401
    except ImportError:
        return found
    return found | {form: (clip, film(form=form)) for form in ("mp4", "matroska")}


_KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "animated GIF", "animated WEBP", "animated PNG", "WAV", "FLAC", "OGG",
          "MP3", "mp4", "matroska")  # fmt: skip


def _fuzz(kind: str, count: int) -> None:
    """What mutated files give is a value within the limits, or an error of ours: bounded, printable, no address."""
    specimens = _specimens()
    if kind not in specimens:
        pytest.skip("needs PyAV")
    decode, data = specimens[kind]
    limits = Limits(pixels=1 << 20, frames=20, seconds=30.0)
    chance = random.Random(kind)
    refused = 0
    for _ in range(count):
        try:
            made = decode(_mutated(data, chance), limits)
        except IsobitError as error:
            refused += 1
            assert "0x" not in str(error) and len(str(error)) < 400
            continue
        values = getattr(made, {"image": "pixels", "video": "frames", "audio": "samples"}[made.kind])
        assert 0 < values.size <= 3 * limits.pixels + 30 * 384_000
    assert 0 < refused


@pytest.mark.parametrize("kind", _KINDS)
def test_mutated_files(kind: str) -> None:
    _fuzz(kind, 25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", _KINDS)
def test_many_mutated_files(kind: str) -> None:
    _fuzz(kind, 1000)
