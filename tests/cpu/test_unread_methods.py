"""Checkpoints of methods that isobit does not run are refused by name, by every command alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import load_file
from safetensors.torch import save_file
from tiny import save_model

from isobit.checkpoint.methods import METHODS
from isobit.cli.main import main
from isobit.models.pack import requests
from isobit.targets.table import TARGETS
