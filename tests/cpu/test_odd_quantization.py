"""Odd quantization configs, through commands: one clear error or none, the same one whatever is asked. Seeded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_config_targets import mutated
from tiny import save_model

import isobit
from isobit.errors import IsobitError
from isobit.evaluation.info import describe, text
from isobit.models.pack import requests
from isobit.models.planning import plans
from isobit.models.weights import load_model
from isobit.targets.table import TARGETS

FP8_METHOD = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "ignored_layers": ["lm_head"]}
TIMES = 110


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("odd")
    plain = save_model(root / "plain", context=64)
    mixed = [("mlp", "fp8"), (r"layers\.1\.self_attn", "int4-g64")]
    for name, rules in (("int4-g32", []), ("fp8", []), ("int8", mixed)):
        isobit.quantize(plain, root / name, name, rules=rules, progress=False)
    return [plain, root / "int4-g32", root / "fp8", root / "int8"]


def said(ask: Callable[[], object]) -> str | None:
    """The error of a call; None if it gives none. Whatever is no error of ours gets out, and fails the test."""
    try:
        ask()
    except IsobitError as error:
        return str(error)
    return None


def test_commands_agree_about_odd_configs(folders: list[Path]) -> None:
    source = random.Random(7)
    verdicts = []
    for turn in range(TIMES):
        folder = source.choice(folders)
        file = folder / "config.json"
        whole = file.read_text()
        config: dict[str, Any] = json.loads(whole)
        odd: Any = config.get("quantization_config", FP8_METHOD) if source.random() < 0.8 else FP8_METHOD
        for _ in range(source.choice((1, 1, 2, 3))):
            odd = mutated(source, odd)
        file.write_text(json.dumps(config | {"quantization_config": odd}))
        try:
            loaded = said(lambda: load_model(folder))  # noqa: B023
            planned = said(lambda: plans(folder, targets=["a6000"]))  # noqa: B023
            # A plan reads headers at most: what shapes and data of tensors contradict is found where they are read.
            assert loaded == planned or (
                planned is None and f"{file.parent}/model.safetensors: tensor" in str(loaded)
            ), odd
            assert loaded is None or len(loaded) < 2000
            if (unread := said(lambda: describe(folder))) is None:  # noqa: B023
                info = describe(folder)
                assert text(info) and (planned is None or any(planned in note for note in info.notes)), (
                    odd,
                    info.notes,
                )
            else:
                assert unread == loaded and "not valid JSON" in unread or "half a character" in unread
            if turn % 4 == 0:
                assert said(lambda: requests(folder, TARGETS["sm_86"], None)) == loaded  # noqa: B023
                out = folder.parent / "never"
                refused = said(lambda: isobit.quantize(folder, out, "int8", progress=False))  # noqa: B023
                assert not out.exists() or refused is None
        finally:
            file.write_text(whole)
        verdicts.append(loaded is None)
    assert 10 < sum(verdicts) < TIMES - 10
