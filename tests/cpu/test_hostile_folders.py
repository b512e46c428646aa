"""Hundreds of model folders with something wrong in each: every command reads them or refuses them by name, at once."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import tensors, write
from hostile_folders import spoil
from tiny import save_tokenizer

from isobit.checkpoint.reader import Checkpoint
from isobit.engine.generate import load_generator
from isobit.engine.params import SamplingParams
from isobit.errors import IsobitError
from isobit.evaluation.info import describe
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.planning import read_config
from isobit.quantizer.driver import predict, quantize

FOLDERS = 400  # a few thousand other seeds were run by hand

Command = Callable[[Path], object]
COMMANDS: dict[str, Command] = {
    "open": Checkpoint.open,
    "info": lambda folder: str(describe(folder)),
    "predict": lambda folder: predict(folder, folder / "out", Policy(scheme("fp8"))),
    "config": read_config,
    "generate": lambda folder: list(load_generator(folder).stream("def f(x):", SamplingParams(max_tokens=2))),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Plain safetensors, both kinds of .bin files, shards with an index, quantized weights."""
    top = tmp_path_factory.mktemp("models")
    plain = write(top / "plain")
    save_tokenizer(plain)
    found = [plain]
    for name, zip_format in (("bin", True), ("old", False)):
        shutil.copytree(plain, top / name)
        (top / name / "model.safetensors").unlink()
        torch.save(tensors(), top / name / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
        found.append(top / name)
    for name, shard in (("int4-g32", 60_000), ("fp8", 10**9)):
        quantize(plain, top / name, Policy(scheme(name)), progress=False, max_shard_bytes=shard)
        found.append(top / name)
    return found


@pytest.mark.parametrize("part", range(4))
def test_every_command_reads_a_spoilt_folder_or_refuses_it(tmp_path: Path, models: list[Path], part: int) -> None:
    refused = 0
    for seed in range(part, FOLDERS, 4):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(chance.choice(models), folder)
        what = [spoil(folder, chance) for _ in range(chance.choice((1, 1, 1, 2)))]
        for name, command in COMMANDS.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    command(folder)
            except IsobitError as error:
                refused += 1
                text = str(error)
                assert len(text) < 10_000 and text.replace("\n", "").isprintable(), (seed, name, what)
            except Exception as error:
                raise AssertionError(f"seed {seed}, {name}: {what}") from error
    assert refused > FOLDERS / 4  # one in five at the least: most of what is done is damage
