"""A command that asks for a GPU opens it while it imports torch; others leave the driver alone."""

from __future__ import annotations

import argparse
import ctypes
from typing import Any

import pytest

from isobit.cli import early


class Driver:
    """One whose first calls succeed."""

    def __init__(self, good: int) -> None:
        self.good = good
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: object) -> int:
            self.called.append(name)
            return 0 if len(self.called) <= self.good else 100

        return call


@pytest.mark.parametrize(
    ("good", "called"),
    [
        (3, ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]),
        (1, ["cuInit", "cuDeviceGet"]),
        (0, ["cuInit"]),
    ],
)
def test_the_first_card_is_opened_as_far_as_that_goes(
    good: int, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(good)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    thread = early.open_card(argparse.Namespace(device="cuda"))
    assert thread is not None
    thread.join()
    assert driver.called == called


def test_without_a_driver_and_without_a_gpu_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    thread = early.open_card(argparse.Namespace(device="cuda"))
    assert thread is not None
    thread.join()
    assert early.open_card(argparse.Namespace(device="cpu")) is None and early.open_card(argparse.Namespace()) is None
