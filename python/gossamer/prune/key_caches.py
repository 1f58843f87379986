# SPDX-License-Identifier: BSD-3-Clause
"""Caches of keys and values, which language models fill unless they are told not to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["without_key_caches"]


@contextlib.contextmanager
def without_key_caches(model: nn.Module) -> Iterator[None]:
    """Configurations that say `use_cache` say False meanwhile, those for generation too.

    A block that appends to a cache cannot be run a second time on the same arguments, so that one
    cache would cost calibration every block. A single pass over whole batches has no use for it.

    Args:
        model: whose modules may have a `config` or `generation_config`, as in Hugging Face's
            transformers; parts of a model may have copies of their own.
    """
    changed: list[Any] = []
    try:
        for module in model.modules():
            for name in ("config", "generation_config"):
                config: Any = getattr(module, name, None)
                if getattr(config, "use_cache", None) is True:
                    config.use_cache = False
                    changed.append(config)
        yield
    finally:
        for config in changed:
            config.use_cache = True
