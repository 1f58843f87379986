# SPDX-License-Identifier: BSD-3-Clause
"""The `gossamer` command: what it does to files, what it refuses, what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from cli_helpers import BINARY, gossamer, report

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = ROOT / "tests" / "attacks"
# The peer lets these pass; the format's text does not, or the shape cannot be held by any tensor.
PEER_IS_LAXER = {"duplicate_metadata_key", "leading_space", "shape_rank", "unknown_key"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small checkpoint with all kinds of tensors."""
    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {
        "fc1.weight": random.standard_normal((64, 33), dtype=np.float32),
        "fc1.bias": random.standard_normal(64, dtype=np.float32),
        "fc2.weight": random.standard_normal((16, 64)).astype(np.float16),
        "embed.weight": random.standard_normal((10, 8), dtype=np.float32),
        "conv.weight": random.standard_normal((8, 6, 3, 3), dtype=np.float32),
        "steps": np.arange(5),
        "odd": np.arange(3, dtype=np.uint8),
        "scalar": np.array(2.5),
        "none": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def groups_hold(weight: np.ndarray, kept: int, size: int) -> bool:
    """Whether every group of `size` columns has exactly `kept` non-zeros, the last one at most."""
    full = weight.shape[1] // size * size
    counts = (weight[:, :full] != 0).reshape(weight.shape[0], -1, size).sum(-1)
    return bool((counts == kept).all() and ((weight[:, full:] != 0).sum(-1) <= kept).all())


def test_prune_two_four(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = report("prune", model, "-p", "2:4", "-o", out)
    before, after = load_file(model), load_file(out)
    assert before.keys() == after.keys()
    assert groups_hold(after["fc1.weight"], 2, 4)
    assert groups_hold(after["fc2.weight"], 2, 4)
    # A convolution's groups run along the input channels of one tap.
    taps = after["conv.weight"].transpose(0, 2, 3, 1).reshape(-1, 6)
    assert groups_hold(taps, 2, 4)
    for name, tensor in after.items():
        pruned = name in ("fc1.weight", "fc2.weight", "conv.weight")
        kept = tensor != 0 if pruned else np.ones_like(tensor, bool)
        np.testing.assert_array_equal(tensor[kept], before[name][kept])
    weight = np.abs(before["fc1.weight"][:, :32].reshape(64, 8, 4))
    best = np.sort(np.argsort(-weight, axis=-1, kind="stable")[..., :2], axis=-1)
    mask = (after["fc1.weight"][:, :32] != 0).reshape(64, 8, 4)
    np.testing.assert_array_equal(np.nonzero(mask)[2].reshape(64, 8, 2), best)
    assert result["pruned"] == 3
    assert {t["name"]: t["pruned"] for t in result["tensors"]}["embed.weight"] is False
    with safe_open(out, "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
def test_prune_counts_are_exact(model: Path, tmp_path: Path, scope: str) -> None:
    out = tmp_path / "out.safetensors"
    gossamer("prune", model, "-p", "unstructured:0.73", "--scope", scope, "-o", out)
    before, after = load_file(model), load_file(out)
    names = ["conv.weight", "fc1.weight", "fc2.weight"]
    if scope == "row":
        for row in after["fc1.weight"]:
            assert (row == 0).sum() == round(0.73 * row.size)
    if scope == "tensor":
        for name in names:
            assert (after[name] == 0).sum() == int(0.73 * after[name].size + 0.5)
    if scope == "global":
        total = sum(after[name].size for name in names)
        zeros = sum(int((after[name] == 0).sum()) for name in names)
        assert zeros == int(0.73 * total + 0.5)
        dropped = [np.abs(before[n][after[n] == 0]).astype(np.float64) for n in names]
        kept = [np.abs(after[n][after[n] != 0]).astype(np.float64) for n in names]
        assert np.concatenate(dropped).max() <= np.concatenate(kept).min()
        gossamer("verify", out, "-p", "unstructured:0.73", "--scope", "global")
        gossamer("verify", out, "-p", "unstructured:0.75", "--scope", "global", status=1)


def test_global_ties_go_to_the_earlier(tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({n: np.ones((4, 4), np.float32) for n in ("a.weight", "b.weight")}, path)
    gossamer("prune", path, "-p", "unstructured:0.75", "--scope", "global", "-o", out)
    after = load_file(out)
    assert after["a.weight"].ravel().tolist() == [1] * 8 + [0] * 8
    assert not after["b.weight"].any()


@pytest.mark.parametrize("pattern", ["block:16x16:0.5", "fanin:0.97", "unstructured:0.999"])
def test_a_pattern_too_coarse_for_a_weight_is_refused(tmp_path: Path, pattern: str) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    weights = {
        "big.weight": np.ones((64, 64), np.float32),
        "small.weight": np.ones((4, 16), np.float32),
    }
    save_file(weights, path)
    arguments = ("prune", path, "-p", pattern, "-o", out)
    ran = gossamer(*arguments, status=2)
    words = f"weight 'small.weight': pattern {pattern} keeps nothing of [4, 16]; "
    assert words in ran.stderr
    assert not out.exists()
    gossamer(*arguments, "--exclude", "small.weight")
    assert load_file(out)["small.weight"].all()
    assert load_file(out)["big.weight"].any()
    gossamer("prune", path, "-p", "unstructured:1", "-o", out, "--force")
    assert not load_file(out)["small.weight"].any()


def test_global_blocks(tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    random = np.random.default_rng(1)
    tensors: dict[str, Any] = {
        "a.weight": random.standard_normal((10, 9)).astype(np.float32),
        "b.weight": 3 * random.standard_normal((8, 8)).astype(np.float32),
    }
    save_file(tensors, path)
    gossamer("prune", path, "-p", "block:4x4:0.5", "--scope", "global", "-o", out)
    after = load_file(out)
    means = []
    for name, weight in tensors.items():
        for row in range(0, weight.shape[0], 4):
            for col in range(0, weight.shape[1], 4):
                block = np.abs(weight[row : row + 4, col : col + 4]).astype(np.float64)
                zero = not after[name][row : row + 4, col : col + 4].any()
                means.append((block.mean(), zero))
    means.sort()
    assert [zero for _, zero in means] == [True] * 7 + [False] * 6  # half of 13, halves up


@pytest.mark.parametrize(
    "pattern",
    ["unstructured:0.8", "2:4", "4:8", "1:16", "block:4x4:0.5", "block:3x5:0.7", "fanin:0.8"],
)
def test_pack_and_unpack_are_inverse(model: Path, tmp_path: Path, pattern: str) -> None:
    pruned, packed, back = (tmp_path / name for name in ("p", "k", "u"))
    gossamer("prune", model, "-p", pattern, "-o", pruned)
    result = report("pack", pruned, "-p", pattern, "-o", packed)
    assert result["packed"] == 3
    rows = {t["name"]: t for t in report("inspect", packed)["tensors"]}
    assert rows["fc1.weight"]["packed"]
    assert rows["fc1.weight"]["shape"] == [64, 33]
    assert rows["conv.weight"]["packed"]
    with safe_open(model, "np") as file:
        assert rows["conv.weight"]["shape"] == file.get_slice("conv.weight").get_shape()
    gossamer("verify", packed)
    gossamer("verify", packed, "-p", pattern)
    gossamer("unpack", packed, "-o", back)
    before, after = load_file(pruned), load_file(back)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor, after[name])
    with safe_open(back, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_pack_infers_and_leaves_dense_weights(model: Path, tmp_path: Path) -> None:
    pruned, packed = tmp_path / "p", tmp_path / "k"
    gossamer("prune", model, "-p", "2:4", "--include", "fc1*", "--exclude", "*bias", "-o", pruned)
    tensors = {t["name"]: t for t in report("pack", pruned, "-o", packed)["tensors"]}
    assert tensors["fc1.weight"]["pattern"] == "2:4"
    assert tensors["fc1.weight"]["bytes"] < tensors["fc1.weight"]["dense_bytes"]
    assert "not be smaller" in tensors["fc2.weight"]["reason"]


def test_transposed_weights_keep_their_place(tmp_path: Path) -> None:
    path, pruned, packed, back = (tmp_path / name for name in "abcd")
    weight = np.random.default_rng(2).standard_normal((16, 10)).astype(np.float32)  # [in, out]
    save_file({"c_fc.weight": weight}, path)
    gossamer("prune", path, "-p", "2:4", "--transposed", "c_*", "-o", pruned)
    assert groups_hold(load_file(pruned)["c_fc.weight"].T, 2, 4)
    gossamer("verify", pruned, "-p", "2:4", "--transposed", "c_*")
    gossamer("pack", pruned, "--transposed", "c_*", "-o", packed)
    with safe_open(packed, "np") as file:
        info = json.loads(file.metadata()["gossamer.weight.c_fc.weight"])
    assert info["transposed"] is True
    assert info["shape"] == [10, 16]
    gossamer("unpack", packed, "-o", back)
    np.testing.assert_array_equal(load_file(back)["c_fc.weight"], load_file(pruned)["c_fc.weight"])


def test_verify_names_the_place(model: Path, tmp_path: Path) -> None:
    pruned = tmp_path / "p"
    gossamer("prune", model, "-p", "2:4", "-o", pruned)
    tensors = load_file(pruned)
    tensors["fc1.weight"][17, 20:24] = [1, 2, 3, 0]
    save_file(tensors, pruned)
    result = report("verify", pruned, "-p", "2:4", status=1)
    wrong = [t for t in result["tensors"] if not t["ok"]]
    assert [t["name"] for t in wrong] == ["fc1.weight"]
    assert wrong[0]["place"] == {"batch": 0, "row": 17, "col_begin": 20, "col_end": 24}
    text = gossamer("verify", pruned, "-p", "2:4", status=1).stdout
    assert "row 17, columns 20–23: 3 non-zeros, 2:4 allows 2" in text
    refused = gossamer("pack", pruned, "-p", "2:4", "-o", tmp_path / "k", status=2)
    assert "fc1.weight" in refused.stderr
    assert "row 17" in refused.stderr
    assert not (tmp_path / "k").exists()


def test_inspect(model: Path) -> None:
    result = report("inspect", model)
    rows = {t["name"]: t for t in result["tensors"]}
    assert rows["fc1.weight"]["shape"] == [64, 33]
    assert rows["fc1.weight"]["zeros"] == 0
    assert rows["steps"]["dtype"] == "I64"
    assert rows["steps"]["zeros"] is None
    assert result["total"]["tensors"] == 9
    text = gossamer("inspect", model).stdout
    assert "fc1.weight" in text
    assert "\x1b" not in text
    assert "\r" not in text


def test_doctor() -> None:
    result = report("doctor")
    assert result["machine"]["cores"] >= 1
    assert result["kernels"], "the kernel table is empty"
    for kernel in result["kernels"]:
        assert kernel["runs"] or kernel["reason"]
    assert any(k["runs"] and not k["needs"] for k in result["kernels"]), "no portable kernel"
    hidden = subprocess.run(
        [BINARY, "doctor", "--json"],
        env=os.environ | {"GOSSAMER_MAX_ISA": "generic"},
        capture_output=True,
        check=True,
    )
    for kernel in json.loads(hidden.stdout)["kernels"]:
        assert kernel["runs"] == (not kernel["needs"])
    wrong = subprocess.run(
        [BINARY, "doctor"],
        env=os.environ | {"GOSSAMER_MAX_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2
    assert "mmx" in wrong.stderr


@pytest.mark.parametrize("command", ["", "inspect", "prune", "pack", "unpack", "verify", "doctor"])
def test_help(command: str) -> None:
    text = gossamer(*command.split(), "--help").stdout
    assert "--help" in text
    assert not command or "Examples:" in text


def test_quiet_says_nothing(model: Path, tmp_path: Path) -> None:
    for arguments in (["inspect", model], ["prune", model, "-p", "2:4", "-o", tmp_path / "p"]):
        run = gossamer(*arguments, "-q")
        assert run.stdout == ""
        assert run.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "subcommand"),
        (["frobnicate"], "'frobnicate' is no subcommand"),
        (["inspect"], "FILE"),
        (["inspect", "MODEL", "--frobnicate"], "--frobnicate"),
        (["inspect", "missing.safetensors"], "No such file"),
        (["inspect", "."], "directory"),
        (["prune", "MODEL", "-o", "x"], "--pattern"),
        (["prune", "MODEL", "-p", "2:4"], "-o OUT"),
        (["prune", "MODEL", "-p", "5:4", "-o", "x"], "pattern '5:4'"),
        (["prune", "MODEL", "-p", "2:4", "--scope", "galaxy", "-o", "x"], "galaxy"),
        (["prune", "MODEL", "-p", "2:4", "--include", "zzz*", "-o", "x"], "'zzz*' matches no"),
        (["prune", "MODEL", "-p", "2:4", "--include", "steps", "-o", "x"], "no tensor"),
        (["prune", "MODEL", "-p", "2:4", "-o", "MODEL"], "--in-place"),
        (["prune", "MODEL", "-p", "2:4", "-o", "."], "exists"),
        (["prune", "MODEL", "-p", "2:4", "-o", ".", "--force"], "directory"),
        (["prune", "MODEL", "-p", "2:4", "-o", "no/such/x"], "No such file"),
        (["verify", "MODEL"], "--pattern"),
        (["verify", "MODEL", "-p", "2:4", "--scope", "global"], "unstructured"),
    ],
)
def test_bad_usage(
    model: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(model.parent)
    before = model.read_bytes()
    named = [str(model) if a == "MODEL" else a for a in arguments]
    assert message in gossamer(*named, status=2).stderr
    assert model.read_bytes() == before
    assert [p.name for p in model.parent.iterdir()] == [model.name]


def test_overwriting_needs_force(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    refused = gossamer("prune", model, "-p", "2:4", "-o", out, status=2)
    assert "--force" in refused.stderr
    assert out.read_text() == "precious"
    gossamer("prune", model, "-p", "2:4", "-o", out, "--force")
    assert groups_hold(load_file(out)["fc1.weight"], 2, 4)
    gossamer("prune", model, "-p", "2:4", "--in-place")
    assert model.read_bytes() == out.read_bytes()


def test_nan_is_refused_with_its_place(tmp_path: Path) -> None:
    weight = np.ones((4, 8), np.float32)
    weight[2, 5] = np.nan
    path = tmp_path / "a"
    save_file({"bad.weight": weight}, path)
    for scope in ("tensor", "global"):
        error = gossamer(
            "prune",
            path,
            "-p",
            "unstructured:0.5",
            "--scope",
            scope,
            "-o",
            tmp_path / "b",
            status=2,
        ).stderr
        assert "bad.weight" in error
        assert "row 2" in error
        assert "column 5" in error


def test_misaligned_tensors(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).standard_normal((8, 16)).astype(np.float32)
    tensors = {"a": ("U8", b"abc", [3]), "b.weight": ("F32", weight.tobytes(), [8, 16])}
    header, data = {}, b""
    for name, (dtype, raw, shape) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    for scope in ("tensor", "global"):
        gossamer("prune", path, "-p", "unstructured:0.5", "--scope", scope, "-o", out, "--force")
        after = load_file(out)["b.weight"]
        assert (after == 0).sum() == 64
        np.testing.assert_array_equal(after[after != 0], weight[after != 0])


def attack_rows() -> list[tuple[str, str]]:
    """File and message of every attack."""
    text = (ATTACKS / "README.md").read_text()
    return re.findall(r"^\| `([^`]+)` \| .* \| `([^`]+)` \|$", text, re.M)


def test_every_attack_is_listed() -> None:
    assert {name for name, _ in attack_rows()} == {
        path.relative_to(ATTACKS).as_posix() for path in ATTACKS.rglob("*.safetensors")
    }


@pytest.mark.parametrize(("name", "message"), attack_rows())
def test_attack_is_not_handed_on(name: str, message: str, tmp_path: Path) -> None:
    run = gossamer("pack", ATTACKS / name, "-o", tmp_path / "out", status=2)
    assert message in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("pack",), ("prune", "-p", "2:4")])
def test_damaged_weight_beside_a_sound_one_is_not_handed_on(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    attack = ATTACKS / "packed" / "nm_descending.safetensors"
    with safe_open(attack, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors["fc.weight"] = np.ones((8, 8), np.float32)
        save_file(tensors, path, file.metadata())
    run = gossamer(*command, path, "-o", tmp_path / "out", status=2)
    assert "row 0, group 0: the positions are not 2 ascending ones" in run.stderr
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "message"), attack_rows())
def test_attack_is_refused(name: str, message: str, tmp_path: Path) -> None:
    path = ATTACKS / name
    out = tmp_path / "out"
    assert message in gossamer("inspect", path, status=2).stderr
    assert "gossamer: error" in gossamer("unpack", path, "-o", out, status=2).stderr
    assert list(tmp_path.iterdir()) == []
    if name.startswith("packed/"):
        return
    if name.removesuffix(".safetensors") in PEER_IS_LAXER:
        safe_open(path, "np")
    else:
        with pytest.raises((SafetensorError, OSError)):
            safe_open(path, "np")


def test_attacks_are_as_generated(tmp_path: Path) -> None:
    for source in ATTACKS.glob("*.py"):
        shutil.copy(source, tmp_path)
    subprocess.run([sys.executable, tmp_path / "make_attacks.py"], check=True)
    for path in [ATTACKS / "README.md", *ATTACKS.rglob("*.safetensors")]:
        assert path.read_bytes() == (tmp_path / path.relative_to(ATTACKS)).read_bytes()


@pytest.mark.parametrize("text", (ATTACKS / "patterns.txt").read_text().split("\n"))
def test_malformed_pattern(model: Path, text: str) -> None:
    assert "pattern" in gossamer("verify", model, f"--pattern={text}", status=2).stderr


def reader() -> dict[str, Any]:
    """The reader that docs/formats.md ends with."""
    code = (ROOT / "docs" / "formats.md").read_text().split("```python")[1].split("```")[0]
    scope: dict[str, Any] = {}
    exec(compile(code, "docs/formats.md", "exec"), scope)
    return scope


@pytest.mark.parametrize(
    "pattern",
    [
        *("unstructured:0.8", "2:4", "1:4", "2:8", "4:8", "8:16", "3:8", "1:1", "4:64"),
        *("block:4x4:0.5", "block:3x5:0.7", "fanin:0.8", "vnm:8:2:8"),
    ],
)
def test_documented_reader_reads_what_the_command_writes(
    model: Path, tmp_path: Path, pattern: str
) -> None:
    pruned, packed = tmp_path / "p", tmp_path / "k"
    gossamer("prune", model, "-p", pattern, "-o", pruned)
    # Two matrices and a convolution.
    assert report("pack", pruned, "-p", pattern, "-o", packed)["packed"] == 3
    expected, found = load_file(pruned), reader()["read"](packed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)
