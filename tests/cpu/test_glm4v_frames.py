"""Which frames of a video GLM's towers read, and how large: as transformers decides it, without torchvision."""

from __future__ import annotations

import random

import glm4v_models as glm
import numpy as np
import pytest
from transformers.video_utils import VideoMetadata

from isobit.errors import UsageError
from isobit.models.encoders.glm4v_frames import FrameSettings, by_length, fitted, prepare, steadily

GIVEN = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
RATES = (0.25, 0.5, 1.0, 3.0, 23.976, 24.0, 29.97, 30.0, 59.94)
COUNTS = (*range(1, 12), 30, 31, 89, 90, 91, 299, 300, 301, 640, 1280, 1300, 7200, 9001, 20000)


@pytest.mark.parametrize("newer", [False, True], ids=["GLM-4.1V", "GLM-4.6V"])
def test_the_frames_that_transformers_takes(newer: bool) -> None:
    theirs, ours = glm.VideoFunctions(newer), by_length(2) if newer else steadily(2.0, 300.0)
    compared = 0
    for rate in RATES:
        for count in COUNTS:
            metadata = VideoMetadata(count, rate, duration=count / rate)
            wanted = theirs.sample_frames(metadata, {}).tolist()
            if wanted:  # of less than a sixth of a second GLM-4.6V's processor takes none, and fails
                assert ours(count, rate) == wanted, (count, rate)
                compared += 1
            else:
                assert newer
                assert count / rate < 1 / 6
                assert ours(count, rate) == [0, 0]
    assert compared > 200


@pytest.mark.parametrize(("a_second", "longest"), [(1, 20), (0.5, 300), (7.5, 2)])
def test_other_settings_of_sampling(a_second: float, longest: float) -> None:
    theirs, ours = glm.VideoFunctions(False), steadily(a_second, longest)
    for rate in RATES:
        for count in COUNTS:
            metadata = VideoMetadata(count, rate, duration=count / rate)
            wanted = theirs.sample_frames(metadata, {"fps": a_second, "max_duration": longest}).tolist()
            assert ours(count, rate) == wanted, (count, rate)


def test_the_sizes_that_transformers_gives() -> None:
    rng, theirs = random.Random(5), glm.VideoFunctions(False)
    for _ in range(3000):
        given = {
            "patch_size": rng.choice([3, 4, 14]), "merge_size": rng.choice([1, 2, 3]), "temporal_patch_size": 2,
            "size": {"shortest_edge": rng.choice([1, 12544, 10**6]), "longest_edge": rng.choice([10**6, 11_760_000])},
        }  # fmt: skip
        count, height, width = 2 * rng.randint(1, 40), *(int(10 ** rng.uniform(0, 3.7)) for _ in range(2))
        edge, size = given["patch_size"] * given["merge_size"], given["size"]
        bounds = {"edge": edge, "together": 2, "least": size["shortest_edge"], "most": size["longest_edge"]}
        try:
            wanted = theirs.resized(count, height, width, given)
        except ValueError:
            with pytest.raises(UsageError, match="too long"):
                fitted(count, height, width, **bounds)
            continue
        assert fitted(count, height, width, **bounds) == wanted, (count, height, width, given)


@pytest.mark.parametrize(("shape", "rate"), [((0, 8, 8), 1.0), ((3, 0, 8), 1.0), ((3, 8, 0), 1.0), ((3, 8, 8), 0.0)])
def test_nothing_is_refused(shape: tuple[int, ...], rate: float) -> None:
    with pytest.raises(UsageError, match="there is nothing"):
        prepare(np.zeros((*shape, 3), np.uint8), rate, FrameSettings(steadily(2.0, 300.0)))
