# SPDX-License-Identifier: BSD-3-Clause
"""Clock and power of a GPU while it computes, asked of the driver's library of sensors (NVML).

A time says little without them: dense and sparse products of many tokens both run into the power
limit, and the clock that is left there differs from card to card.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from gossamer._cuda_timing import captured

__all__ = ["Load", "under_load"]

_LIBRARY = "libnvidia-ml.so.1"
_SECONDS = 0.15
"""Of load: sensors of power follow within a few tens of milliseconds, so the later half counts."""

# nvml.h
_CLOCK_SM = 1
_FIELD_POWER_INSTANT = 186
_UNSIGNED = 1
_PAUSE = 5e-4


class Load(NamedTuple):
    """What the sensors said; None where there is no such sensor.

    Attributes:
        clock_mhz: of the multiprocessors.
        power_w: of the card.
    """

    clock_mhz: float | None = None
    power_w: float | None = None


class _Field(ctypes.Structure):
    _fields_ = (
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("type", ctypes.c_int),
        ("status", ctypes.c_int),
        ("value", ctypes.c_ulonglong),
    )


class _Sensors:
    """Of one GPU."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    def clock_mhz(self) -> float | None:
        value = ctypes.c_uint()
        status = self._library.nvmlDeviceGetClockInfo(self._handle, _CLOCK_SM, ctypes.byref(value))
        return float(value.value) if status == 0 else None

    def power_w(self) -> float | None:
        """The power of this moment; on cards that know none, what they report as such."""
        field = _Field(field=_FIELD_POWER_INSTANT)
        status = self._library.nvmlDeviceGetFieldValues(self._handle, 1, ctypes.byref(field))
        if status == 0 and field.status == 0 and field.type == _UNSIGNED:
            return (field.value & 0xFFFFFFFF) / 1e3
        value = ctypes.c_uint()
        if self._library.nvmlDeviceGetPowerUsage(self._handle, ctypes.byref(value)) != 0:
            return None
        return value.value / 1e3


@cache
def _sensors(uuid: str) -> _Sensors | None:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2() != 0:
        return None
    name = f"GPU-{uuid}".encode()
    if library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) != 0:
        return None  # a slice of a card, for one
    return _Sensors(library, handle)


def under_load(calls: Sequence[Callable[[], Any]]) -> Load:
    """Repeats calls on the current device for a moment, and reads its sensors meanwhile.

    Args:
        calls: to be captured into a CUDA graph, and made in turn.

    Returns:
        The medians of the later half; None in place of what cannot be read here.
    """
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    sensors = None if uuid is None else _sensors(str(uuid))
    if sensors is None:
        return Load()
    graph, _ = captured(calls)
    graph.replay()
    torch.cuda.synchronize()
    begin = time.monotonic()
    clocks: list[float | None] = []
    powers: list[float | None] = []
    while (spent := time.monotonic() - begin) < _SECONDS:
        # Two graphs in the queue, so that the GPU does not wait for the sensors.
        graph.replay()
        event = torch.cuda.Event()
        event.record()
        graph.replay()
        if spent > _SECONDS / 2:
            clocks.append(sensors.clock_mhz())
            powers.append(sensors.power_w())
        while not event.query() and time.monotonic() - begin < 2 * _SECONDS:
            time.sleep(_PAUSE)
    torch.cuda.synchronize()
    return Load(_median(clocks), _median(powers))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
