# SPDX-License-Identifier: BSD-3-Clause
"""Handwritten digits: a small network trained dense, pruned, packed, and run sparse."""
