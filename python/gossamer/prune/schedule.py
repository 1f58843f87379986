# SPDX-License-Identifier: BSD-3-Clause
"""How sparsity grows over steps."""

from __future__ import annotations

__all__ = ["cubic_sparsity"]


def cubic_sparsity(initial: float, final: float, begin: int, end: int, step: int) -> float:
    """The cubic schedule of gradual pruning: fast while much is redundant, slow near the end.

    `s(t) = final + (initial − final)·(1 − (t − begin)/(end − begin))³` between `begin` and `end`,
    `initial` before and `final` after (Zhu & Gupta 2017, arXiv:1710.01878, equation 1).

    Args:
        initial: fraction of zeros until `begin`, from 0 to 1.
        final: fraction of zeros from `end` on, from 0 to 1.
        begin: first step of the ramp.
        end: last step of the ramp; greater than `begin`.
        step: the step asked for.

    Returns:
        The fraction of zeros at `step`.

    Raises:
        ValueError: `end` is not after `begin`, or a fraction lies outside 0 to 1.
    """
    if end <= begin:
        raise ValueError(
            f"the schedule ends at step {end}, which is not after its begin, {begin}: an end_step "
            "greater than begin_step is accepted"
        )
    for name, value in (("initial", initial), ("final", final)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} sparsity {value}: a fraction from 0 to 1 is accepted")
    if step <= begin:
        return initial
    if step >= end:
        return final
    rest = 1.0 - (step - begin) / (end - begin)
    return final + (initial - final) * rest * rest * rest
