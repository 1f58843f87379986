# SPDX-License-Identifier: BSD-3-Clause
"""What this machine is, and which kernels the library has for it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from gossamer import _ops  # noqa: F401  (loads the operators)

__all__ = ["Kernel", "Machine", "kernels", "machine"]


@dataclass(frozen=True)
class Machine:
    """The processor that plans are made for.

    Attributes:
        name: short name, e.g. `zen5-avx512`; part of the key of cached plans.
        processor: the processor's own name.
        isa: instruction sets that kernels may use here (capped by GOSSAMER_MAX_ISA).
        isa_detected: instruction sets that the processor has.
        l1d_bytes: first-level data cache of one core.
        l2_bytes: second-level cache of one core.
        l3_bytes: last-level cache.
        cores: cores that this process may use.
        threads: torch's threads now.
    """

    name: str
    processor: str
    isa: tuple[str, ...]
    isa_detected: tuple[str, ...]
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int
    threads: int


@dataclass(frozen=True)
class Kernel:
    """One row of the kernel table.

    Attributes:
        name: what GOSSAMER_KERNEL and explain() call it.
        operation: `linear` or `conv2d`.
        needs: instruction sets without which it cannot run.
        layout: how it wants the weight.
        weight_dtype: of the weight's values, as torch spells it without the prefix.
        activation_dtype: of the inputs and the result.
        runs_here: the machine has what it needs.
    """

    name: str
    operation: str
    needs: tuple[str, ...]
    layout: str
    weight_dtype: str
    activation_dtype: str
    runs_here: bool


def machine() -> Machine:
    """The machine that this process runs on."""
    fields = json.loads(torch.ops.gossamer.machine_info())
    fields["isa"] = tuple(fields["isa"])
    fields["isa_detected"] = tuple(fields["isa_detected"])
    return Machine(**fields)


def kernels() -> tuple[Kernel, ...]:
    """The kernel tables, ordered by name: every row, those of other machines included."""
    rows = json.loads(torch.ops.gossamer.kernel_table())
    rows.sort(key=lambda row: row["name"])
    return tuple(Kernel(**{**row, "needs": tuple(row["needs"])}) for row in rows)
