"""What a command may begin before it imports torch, which takes seconds."""

from __future__ import annotations

import argparse
import ctypes
import threading


def open_card(args: argparse.Namespace) -> threading.Thread | None:
    """Opens the GPU's context in a thread, for a command that will ask for one; torch then finds it open.

    That takes the driver 0.4 s on an H200 beside 4 of importing torch. Whatever fails here will fail again where it is
    said.
    """
    if getattr(args, "device", None) != "cuda":
        return None
    thread = threading.Thread(target=_open, name="isobit-card", daemon=True)
    thread.start()
    return thread


def _open() -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
