# SPDX-License-Identifier: BSD-3-Clause
"""`gossamer prune` from saved statistics gives what Python gives; what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gossamer as gs
from cli_helpers import gossamer, report
from gossamer.prune import OneShot, save_statistics

METHODS: dict[str, Callable[[str], OneShot]] = {
    "wanda": lambda p: gs.Wanda(p, target="dense-inputs"),
    "ria": lambda p: gs.RIA(p, target="dense-inputs"),
    "sparsegpt": lambda p: gs.SparseGPT(p, target="dense-inputs"),
}
PATTERNS = ["2:4", "4:8", "unstructured:0.6", "fanin:0.5", "block:4x4:0.5", "vnm:4:2:8"]
TRANSPOSABLE = ["transposable:2:4", "transposable:4:8"]


class Net(nn.Module):
    """A convolution, one in groups, and two linear layers, one of them wider than a sweep block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3)
        self.grouped = nn.Conv2d(16, 16, 3, groups=2)
        self.wide = nn.Linear(256, 48)
        self.last = nn.Linear(48, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(self.first(x).relu()).relu().flatten(1)
        return self.last(self.wide(y).relu())


@pytest.fixture
def net() -> Net:
    return Net().eval()


def batches() -> list[Tensor]:
    return [torch.randn(96, 8, 8, 8) for _ in range(4)]


def pruned_in_python(net: Net, method: str, pattern: str, data: list[Tensor]) -> OneShot:
    sparsifier = METHODS[method](pattern)
    sparsifier.prepare(copy.deepcopy(net))
    sparsifier.calibrate(data)
    return sparsifier


def rounding(weight: Tensor) -> float:
    """The two sum in another order: at most `in` updates of a weight, each rounded to float32."""
    return weight[0].numel() * 2**-23 * float(weight.abs().max())


@pytest.mark.parametrize("pattern", [*PATTERNS, *TRANSPOSABLE])
@pytest.mark.parametrize("method", METHODS)
def test_the_command_prunes_as_python_does(
    tmp_path: Path, net: Net, method: str, pattern: str
) -> None:
    data = batches()
    stats, path, out = (tmp_path / f"{name}.safetensors" for name in ("stats", "in", "out"))
    save_file(net.state_dict(), path)
    tokens = save_statistics(net, data, stats)
    assert tokens["last.weight"] == 4 * 96
    found = report("prune", path, "-p", pattern, "--method", method, "--stats", stats, "-o", out)
    assert (found["method"], found["pruned"]) == (method, 4)
    errors = {row["name"]: row.get("error") for row in found["tensors"] if row["pruned"]}
    got = load_file(out)
    sparsifier = pruned_in_python(net, method, pattern, data)
    assert sparsifier.report is not None
    model = sparsifier.model
    sparsifier.squash_mask()
    assert model is not None
    for layer in sparsifier.report.layers:
        want = model.get_parameter(layer.fqn).detach()
        assert torch.equal(got[layer.fqn] != 0, want != 0), layer.fqn
        if method == "sparsegpt":
            torch.testing.assert_close(got[layer.fqn], want, rtol=0, atol=rounding(want))
        else:
            assert torch.equal(got[layer.fqn], want), layer.fqn
        assert errors[layer.fqn] == pytest.approx(layer.error, rel=1e-4)
    for name in ("first.bias", "wide.bias"):
        assert torch.equal(got[name], net.state_dict()[name])


@pytest.mark.parametrize("scope", ["row", "tensor"])
def test_scopes_are_those_of_python(tmp_path: Path, net: Net, scope: str) -> None:
    data = batches()
    stats, path, out = (tmp_path / f"{name}.safetensors" for name in ("stats", "in", "out"))
    save_file(net.state_dict(), path)
    save_statistics(net, data, stats)
    command = ["prune", path, "-p", "unstructured:0.7", "--scope", scope, "--stats", stats]
    gossamer(*command, "--method", "sparsegpt", "-o", out)
    method = gs.SparseGPT("unstructured:0.7", scope=scope, target="dense-inputs")
    model = copy.deepcopy(net)
    method.prepare(model)
    method.calibrate(data)
    method.squash_mask()
    for name, value in load_file(out).items():
        assert torch.equal(value != 0, model.state_dict()[name] != 0), name


@pytest.mark.parametrize("method", ["wanda", "ria"])
def test_norms_are_enough_for_masks(tmp_path: Path, net: Net, method: str) -> None:
    data = batches()
    path = tmp_path / "in.safetensors"
    save_file(net.state_dict(), path)
    results = []
    for kind in ("gram", "norms"):
        stats, out = tmp_path / f"{kind}.safetensors", tmp_path / f"{kind}-out.safetensors"
        save_statistics(net, data, stats, kind=kind)
        found = report("prune", path, "-p", "2:4", "--method", method, "--stats", stats, "-o", out)
        assert all(
            ("error" in row) == (kind == "gram") for row in found["tensors"] if row["pruned"]
        )
        results.append(load_file(out))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_values_are_rounded_to_the_dtype_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 32, bias=False).to(dtype)
    x = torch.randn(256, 64, dtype=dtype)
    stats, path, out = (tmp_path / f"{name}.safetensors" for name in ("stats", "in", "out"))
    save_file(layer.state_dict(), path)
    save_statistics(layer, [x], stats)
    gossamer("prune", path, "-p", "2:4", "--method", "sparsegpt", "--stats", stats, "-o", out)
    method = gs.SparseGPT("2:4", target="dense-inputs")
    method.prepare(layer)
    method.calibrate([x])
    method.squash_mask()
    got = load_file(out)["weight"]
    assert got.dtype == dtype
    assert torch.equal(got != 0, layer.weight != 0)
    want = layer.weight.detach()
    bound = rounding(want)  # and the last bit of the file's dtype, which a difference may turn over
    torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=bound)


def test_weights_stored_the_other_way_round(tmp_path: Path) -> None:
    class Conv1D(nn.Module):
        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf = nf
            self.weight = nn.Parameter(torch.randn(nx, nf))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model, x = nn.Sequential(Conv1D(24, 32)), torch.randn(128, 32)
    stats, path, out = (tmp_path / f"{name}.safetensors" for name in ("stats", "in", "out"))
    save_file(model.state_dict(), path)
    save_statistics(model, [x], stats)
    gossamer("prune", path, "-p", "2:4", "--method", "wanda", "--stats", stats, "-o", out)
    method = gs.Wanda("2:4", target="dense-inputs")
    method.prepare(model)
    method.calibrate([x])
    method.squash_mask()
    assert torch.equal(load_file(out)["0.weight"], model[0].weight)


def test_weights_without_statistics_are_left(tmp_path: Path, net: Net) -> None:
    stats, path, out = (tmp_path / f"{name}.safetensors" for name in ("stats", "in", "out"))
    save_file(net.state_dict(), path)
    save_statistics(net, batches(), stats, config={"wide": "2:4"})
    found = report("prune", path, "-p", "2:4", "--method", "wanda", "--stats", stats, "-o", out)
    assert [row["name"] for row in found["tensors"] if row["pruned"]] == ["wide.weight"]
    reasons = {row["name"]: row["reason"] for row in found["tensors"] if not row["pruned"]}
    assert reasons["last.weight"] == "no statistics of its inputs"
    assert torch.equal(load_file(out)["last.weight"], net.last.weight)


def test_damping_is_raised_and_said(tmp_path: Path) -> None:
    layer = nn.Linear(16, 8, bias=False)
    stats, path, out = (tmp_path / f"{name}.safetensors" for name in ("stats", "in", "out"))
    save_file(layer.state_dict(), path)
    save_statistics(layer, [torch.randn(2, 16)], stats)
    command = ["prune", path, "-p", "2:4", "--method", "sparsegpt", "--stats", stats, "-o", out]
    assert "damping raised from 0 to" in gossamer(*command, "--damping", "0").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "wanda"], "needs --stats"),
        (["--stats", "STATS"], "says nothing to --method magnitude"),
        (["--method", "wanda", "--stats", "IN"], "no file of statistics"),
        (["--method", "wanda", "--stats", "STATS", "--scope", "global"], "weight by weight"),
        (["--method", "sparsegpt", "--stats", "NORMS"], 'kind="gram"'),
        (["--method", "wanda", "--stats", "OTHER"], "of 12 inputs"),
        (["--method", "wanda", "--stats", "NONE"], "statistics of no weight"),
        (["--method", "best", "--stats", "STATS"], "--method"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], words: str) -> None:
    layer = nn.Linear(16, 8, bias=False)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("IN", "STATS", "NORMS")}
    save_file(layer.state_dict(), files["IN"])
    save_statistics(layer, [torch.randn(32, 16)], files["STATS"])
    save_statistics(layer, [torch.randn(32, 16)], files["NORMS"], kind="norms")
    files["OTHER"], files["NONE"] = tmp_path / "other.safetensors", tmp_path / "none.safetensors"
    save_statistics(nn.Linear(12, 8, bias=False), [torch.randn(32, 12)], files["OTHER"])
    save_statistics(nn.Sequential(layer), [torch.randn(32, 16)], files["NONE"])
    out = tmp_path / "out.safetensors"
    given = [files.get(argument, argument) for argument in arguments]
    run = gossamer("prune", files["IN"], "-p", "2:4", *given, "-o", out, status=2)
    assert words in run.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": 0}, "tokens"),
        ({"groups": "2"}, "groups"),
        ({"segment": 5}, "no divisor"),
        ({"groups": 2}, "must be [groups, in, in]"),
    ],
)
def test_broken_descriptions_are_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    layer = nn.Linear(16, 8, bias=False)
    path, stats = tmp_path / "in.safetensors", tmp_path / "stats.safetensors"
    save_file(layer.state_dict(), path)
    save_statistics(layer, [torch.randn(32, 16)], stats)
    with safe_open(stats, "pt") as file:
        metadata = dict(file.metadata())
    own = json.loads(metadata["gossamer.stats.weight"])
    metadata["gossamer.stats.weight"] = json.dumps({**own, **change})
    save_file(load_file(stats), stats, metadata)
    command = ["prune", path, "-p", "2:4", "--method", "wanda", "--stats", stats]
    run = gossamer(*command, "-o", tmp_path / "out.safetensors", status=2)
    assert words in run.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_broken_numbers_are_refused(tmp_path: Path, value: float) -> None:
    layer = nn.Linear(16, 8, bias=False)
    path, stats = tmp_path / "in.safetensors", tmp_path / "stats.safetensors"
    save_file(layer.state_dict(), path)
    save_statistics(layer, [torch.randn(32, 16)], stats)
    with safe_open(stats, "pt") as file:
        metadata = dict(file.metadata())
    arrays = load_file(stats)
    arrays["weight.gram"][0, 3, 3] = value
    save_file(arrays, stats, metadata)
    command = ["prune", path, "-p", "2:4", "--method", "wanda", "--stats", stats]
    gossamer(*command, "-o", tmp_path / "out.safetensors", status=2)


def test_sensitivity_without_statistics_is_the_error_of_the_weight(
    tmp_path: Path, net: Net
) -> None:
    path = tmp_path / "in.safetensors"
    save_file(net.state_dict(), path)
    found = report("inspect", path, "--sensitivity")["sensitivity"]
    assert [row["name"] for row in found] == sorted(f"{n}.weight" for n, _ in net.named_children())
    for row in found:
        weight = net.get_parameter(row["name"]).detach()
        assert row["by"] == "magnitude"
        for pattern, error in row["errors"].items():
            pruner = gs.Magnitude(pattern)
            model = copy.deepcopy(net)
            pruner.prepare(model, {row["name"]: pattern})
            pruner.step()
            pruner.squash_mask()
            lost = weight - model.get_parameter(row["name"]).detach()
            want = float(lost.double().square().sum() / weight.double().square().sum())
            assert error == pytest.approx(want, rel=1e-6), (row["name"], pattern)


def test_sensitivity_with_statistics_is_the_error_of_the_output(tmp_path: Path, net: Net) -> None:
    data = batches()
    path, stats = tmp_path / "in.safetensors", tmp_path / "stats.safetensors"
    save_file(net.state_dict(), path)
    save_statistics(net, data, stats)
    found = report("inspect", path, "--sensitivity", "--stats", stats)["sensitivity"]
    for pattern in ("2:4", "unstructured:0.8"):
        sparsifier = pruned_in_python(net, "wanda", pattern, data)
        assert sparsifier.report is not None
        for layer in sparsifier.report.layers:
            (row,) = [row for row in found if row["name"] == layer.fqn]
            assert row["by"] == "wanda"
            assert row["errors"][pattern] == pytest.approx(layer.error, rel=1e-5)
    lines = gossamer("inspect", path, "--sensitivity").stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].split()[:4] == ["name", "by", "error", "of"]
    assert lines[-1].startswith("weight: ")


def test_sensitivity_says_what_its_errors_are_of(tmp_path: Path, net: Net) -> None:
    path = tmp_path / "in.safetensors"
    save_file(net.state_dict(), path)
    over, shown = {}, {}
    for kind in ("gram", "norms"):
        stats = tmp_path / f"{kind}.safetensors"
        save_statistics(net, batches()[:1], stats, config={"wide": "2:4"}, kind=kind)
        command = ("inspect", path, "--sensitivity", "--stats", stats)
        found = report(*command)["sensitivity"]
        over[kind] = {row["name"]: row["over"] for row in found}
        shown[kind] = gossamer(*command).stdout.splitlines()
    for kind in over:
        others = {"first.weight": "weight", "grouped.weight": "weight", "last.weight": "weight"}
        assert over[kind] == {"wide.weight": kind, **others}
        assert [line.split(":")[0] for line in shown[kind][-2:]] == ["weight", kind]
        (row,) = [line for line in shown[kind] if line.startswith("wide.weight")]
        assert row.split()[1:3] == ["wanda", kind]


@pytest.mark.parametrize(("tokens", "remark"), [(64, None), (63, "63 tokens, fewer than its 64")])
def test_weights_fitted_to_few_tokens_are_remarked(
    tmp_path: Path, tokens: int, remark: str | None
) -> None:
    layer = nn.Linear(64, 32, bias=False)
    stats, path = tmp_path / "stats.safetensors", tmp_path / "in.safetensors"
    save_file(layer.state_dict(), path)
    save_statistics(layer, [torch.randn(tokens, 64)], stats)
    for method in ("sparsegpt", "wanda"):
        command = ("prune", path, "-p", "2:4", "--method", method, "--stats", stats)
        found = report(*command, "-o", tmp_path / f"{method}.safetensors")["tensors"][0]
        line = gossamer(*command, "-o", tmp_path / f"{method}-2.safetensors").stdout
        expected = remark if method == "sparsegpt" else None
        assert ("remark" in found) == (expected is not None)
        assert ("fitted to" in line) == (expected is not None)
        if expected:
            assert expected in found["remark"]
            assert expected in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "mean"}, "'gram', 'norms'"),
        ({"dtype": torch.float16}, "float64 or torch.float32"),
        ({"config": {"nothing": "2:4"}}, "matches no parameter"),
    ],
)
def test_python_refuses(tmp_path: Path, net: Net, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        save_statistics(net, batches(), tmp_path / "s", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no batches"):
        save_statistics(net, [], tmp_path / "s")
    with pytest.raises(ValueError, match="NaN"):
        save_statistics(net, [torch.full((2, 8, 8, 8), float("nan"))], tmp_path / "s")
    assert not (tmp_path / "s").exists()
