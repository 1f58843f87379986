# SPDX-License-Identifier: BSD-3-Clause
"""One sparsity for a model becomes one for each layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gossamer.prune import Magnitude, density, erk, lamp, owl, uniform
from gossamer.prune.pattern import parse_pattern


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(8 * 16, 64), nn.Linear(64, 4)
    )


def batches() -> list[Tensor]:
    return [torch.randn(16, 3, 6, 6) for _ in range(2)]


METHODS: dict[str, Callable[[nn.Module, str], dict[str, str]]] = {
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
    "owl": lambda model, pattern: owl(model, pattern, batches()),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.93])
def test_the_whole_model_gets_what_was_asked(method: str, sparsity: float) -> None:
    model = net()
    config = METHODS[method](model, f"unstructured:{sparsity}")
    assert list(config) == ["0.weight", "2.weight", "3.weight"]
    pruner = Magnitude("unstructured:0.1")
    pruner.prepare(model, config)
    pruner.step()
    pruner.squash_mask()
    elements = 3 * 8 * 9 + 128 * 64 + 64 * 4
    # Each layer rounds to a whole number of weights.
    assert abs((1 - density(model)) - sparsity) <= 1.5 / elements + 1e-9


def test_rows_rounded_down_are_those_of_published_codes() -> None:
    model = nn.Sequential(nn.Conv2d(16, 4, 3), nn.Flatten(), nn.Linear(40, 10))
    for pattern in ("unstructured:0.7", "fanin:0.7"):
        for rounding, zeros in (("nearest", [101, 28]), ("down", [100, 28])):
            pruner = Magnitude(pattern, scope="row")
            pruner.prepare(model, uniform(model, pattern, rounding=rounding))
            pruner.step()
            for group, count in zip(pruner.groups, zeros, strict=True):
                rows = (~pruner.mask(group)).flatten(1).sum(dim=1)
                assert rows.tolist() == [count] * len(rows)
            pruner.squash_mask()
            for layer in (model[0], model[2]):
                nn.init.normal_(layer.weight)
    for pattern, rounding in (("2:4", "down"), ("unstructured:0.5", "up")):
        with pytest.raises(ValueError, match=f"rounding '{rounding}' of pattern '{pattern}'"):
            uniform(model, pattern, rounding=rounding)


def test_erk_by_hand() -> None:
    model = nn.Sequential(nn.Linear(100, 50, bias=False), nn.Linear(50, 10), nn.Linear(10, 2))
    config = erk(model, "unstructured:0.8")
    kept = {name: 1 - parse_pattern(text).sparsity for name, text in config.items()}
    # The last layer's 12/20 and the middle one's 60/500 are scaled until the budget of 1104 is
    # spent; both would be more than dense at first, or the first layer pays for what they keep.
    raw = {"0.weight": 150 / 5000, "1.weight": 60 / 500, "2.weight": 12 / 20}
    sizes = {"0.weight": 5000, "1.weight": 500, "2.weight": 20}
    assert kept["2.weight"] == 1
    epsilon = (1104 - 20) / (150 + 60)
    assert kept["0.weight"] == pytest.approx(epsilon * raw["0.weight"])
    assert kept["1.weight"] == pytest.approx(epsilon * raw["1.weight"])
    assert sum(kept[n] * sizes[n] for n in sizes) == pytest.approx(1104)


def test_lamp_by_definition() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    scores, owners = [], []
    for name in ("0.weight", "1.weight"):
        squares = model.get_parameter(name).detach().double().square().flatten().sort().values
        scores += (squares / squares.flip(0).cumsum(0).flip(0)).tolist()
        owners += [name] * len(squares)
    order = sorted(range(50), key=lambda i: scores[i], reverse=True)[:20]
    config = lamp(model, "unstructured:0.6")
    for name, size in (("0.weight", 30), ("1.weight", 20)):
        kept = sum(owners[i] == name for i in order)
        assert parse_pattern(config[name]).sparsity == pytest.approx(1 - kept / size)


def test_owl_keeps_more_where_outliers_are() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight[:, :3] *= 40
    config = owl(model, "unstructured:0.7", [torch.randn(32, 64)])
    first, second = (parse_pattern(text).sparsity for text in config.values())
    assert first - second == pytest.approx(0.16)
    assert (first + second) / 2 == pytest.approx(0.7)
    together = owl(model, "unstructured:0.7", [torch.randn(32, 64)], group=lambda name: "all")
    assert all(parse_pattern(t).sparsity == pytest.approx(0.7) for t in together.values())


def test_other_patterns_and_choices() -> None:
    model = net()
    assert set(uniform(model, "2:4").values()) == {"2:4"}
    config = erk(model, "block:2x4:0.5", {"0": None, "*": "2:4"})
    assert list(config) == ["2.weight", "3.weight"]
    assert config["2.weight"].startswith("block:2x4:0.5")
    with pytest.raises(ValueError, match="pattern '2:4': its sparsity follows"):
        erk(model, "2:4")
    with pytest.raises(ValueError, match=r"no batch reaches '0\.weight'"):
        owl(model, "fanin:0.5", [])


def test_the_layer_that_gives_logits_stays_dense() -> None:
    class Speaker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 50)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    model, batches = Speaker(), [torch.randn(8, 16)]
    for found in (
        uniform(model, "unstructured:0.5"),
        erk(model, "unstructured:0.5"),
        lamp(model, "unstructured:0.5"),
        owl(model, "unstructured:0.5", batches),
    ):
        assert list(found) == ["body.weight"]
    assert list(lamp(model, "unstructured:0.5", {"*": {}})) == ["body.weight", "head.weight"]
