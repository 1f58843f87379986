# SPDX-License-Identifier: BSD-3-Clause
"""load_into refuses what does not fit and what is damaged, and leaves the model as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gossamer as gs
from io_helpers import equal, network, packed, rewrite, values

# --- What does not fit ----------------------------------------------------------------------------


def refused(model: nn.Module, path: Path, text: str, **options: object) -> None:
    """The file is refused with `text`, and the model is bit for bit what it was."""
    before, objects = values(model), list(model.parameters())
    with pytest.raises(ValueError, match=text):
        gs.load_into(model, path, **options)  # type: ignore[arg-type]
    assert equal(model, before)
    assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
    assert not any(hasattr(module, "gossamer_report") for module in model.modules())


def test_names_that_do_not_match_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(packed(network()), path)

    def change(tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
        del tensors["4.bias"]
        tensors["5.extra"] = torch.zeros(2)

    rewrite(path, change)
    refused(
        network(), path, r"missing in the file: 4.bias; not in the model: 5.extra.*strict=False"
    )
    model = network()
    bias = model[4].bias.detach().clone()
    result = gs.load_into(model, path, strict=False, layout="format")
    assert result == gs.LoadResult(["4.bias"], ["5.extra"])
    assert torch.equal(model[4].bias, bias)
    assert isinstance(model[0].weight, gs.SparseWeight)


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_that_differ_are_refused(tmp_path: Path, strict: bool) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(packed(network()), path)
    model = network()
    model[0] = nn.Linear(64, 95)
    text = r"shapes differ: 0.weight \(file \[96, 64\], model \[95, 64\]\), 0.bias"
    refused(model, path, text, strict=strict)


def test_a_file_with_live_masks(tmp_path: Path) -> None:
    path = tmp_path / "live.safetensors"
    live = network()
    pruner = gs.Magnitude("2:4")
    pruner.prepare(live, [{"tensor_fqn": "0.weight"}])
    pruner.step()
    gs.save(live, path)
    model = network()
    with pytest.raises(ValueError, match=r"saved with live masks: .*attach_masks\(model"):
        gs.load_into(model, path)
    gs.prune.attach_masks(model, load_file(path))
    gs.load_into(model, path)
    assert torch.equal(model[0].weight, live[0].weight)


def test_live_masks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(packed(network()), path)
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="live masks or parametrizations"):
        gs.load_into(model, path)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        gs.load_into(network(), tmp_path / "nowhere.safetensors")
    with pytest.raises(OSError, match="could not be written"):
        gs.save(network(), tmp_path / "no" / "such" / "m.safetensors")


def test_options_are_checked(tmp_path: Path) -> None:
    gs.save(network(), tmp_path / "m.safetensors")
    refused(network(), tmp_path / "m.safetensors", "plan='fast'", plan="fast")
    refused(network(), tmp_path / "m.safetensors", "memory='tiny'", memory="tiny")
    refused(network(), tmp_path / "m.safetensors", "cast='round'", cast="round")


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="_extra_state' is a dict"):
        gs.save(Extra(4, 4), path)
    with pytest.raises(ValueError, match="meta device"):
        gs.save(nn.Linear(4, 4, device="meta"), path)
    sparse = nn.Module()
    sparse.register_buffer("s", torch.eye(4).to_sparse())
    with pytest.raises(ValueError, match=r"'s' is torch.sparse_coo.*to_dense"):
        gs.save(sparse, path)
    assert not path.exists()


def with_dtype(path: Path, name: str, dtype: torch.dtype) -> None:
    def change(tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
        tensors[name] = (tensors[name] * 3).to(dtype)

    rewrite(path, change)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("4.weight", torch.float64),
        ("4.weight", torch.int64),
        ("4.weight", torch.int8),
        ("4.bias", torch.complex64),
        ("5.num_batches_tracked", torch.float32),
        ("5.num_batches_tracked", torch.bool),
    ],
)
def test_dtypes_that_would_lose_values_are_refused(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(packed(network()), path)
    with_dtype(path, name, dtype)
    model = network()
    held = str(model.state_dict()[name].dtype).removeprefix("torch.")
    text = rf"would lose values: {name} \(file {str(dtype)[6:]}, model {held}\).*cast='any'"
    refused(model, path, text)
    if not dtype.is_complex:
        gs.load_into(model, path, layout="format", cast="any")
        assert torch.equal(model.state_dict()[name], load_file(path)[name].to(getattr(torch, held)))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.float16),
    ],
)
def test_packed_weights_are_not_rounded_unasked(
    tmp_path: Path, source: torch.dtype, target: torch.dtype
) -> None:
    path = tmp_path / "m.safetensors"
    model = packed(network(source))
    gs.save(model, path)
    refused(network(target), path, "dtypes would lose values: 0.weight")
    with torch.device("meta"):
        empty = network(target)
    with pytest.raises(ValueError, match=r"dtypes would lose values: 0\.weight"):
        gs.load_into(empty, path)
    rounded = network(target)
    gs.load_into(rounded, path, layout="format", cast="any")
    assert torch.equal(rounded[0].weight.to_dense(), model[0].weight.to_dense().to(target))
    assert rounded[0].weight.dtype == target


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_wider_dtypes_take_every_value(
    tmp_path: Path, source: torch.dtype, target: torch.dtype
) -> None:
    path = tmp_path / "m.safetensors"
    model = packed(network(source))
    gs.save(model, path)
    wider = network(target)
    gs.load_into(wider, path, layout="format")
    want = {name: v.to(target) if v.is_floating_point() else v for name, v in values(model).items()}
    assert equal(wider, want)


# --- Damaged files --------------------------------------------------------------------------------


def change_info(**fields: object) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    def change(tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
        info = json.loads(notes["gossamer.weight.1.weight"])
        for key, value in fields.items():
            if value is None:
                del info[key]
            else:
                info[key] = value
        notes["gossamer.weight.1.weight"] = json.dumps(info)

    return change


def change_text(text: str) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    return lambda tensors, notes: notes.update({"gossamer.weight.1.weight": text})


def change_tensor(name: str, value: Callable[[Tensor], Tensor] | None) -> Callable[..., None]:
    def change(tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value(tensors[name]) if name in tensors else value(torch.empty(0))

    return change


def last_column_up(columns: Tensor) -> Tensor:
    columns = columns.to(torch.int32)
    columns[-1, -1] = 4096
    return columns.to(torch.uint16)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (change_text("{"), "not valid JSON"),
        (change_text("[" * 5000), "JSON"),
        (change_text("[]"), "no JSON object"),
        (change_info(format=None), "format is missing"),
        (change_info(colour="red"), "'colour' is not known"),
        (change_info(version=2), "version 2 is not 1"),
        (change_info(version=True), "version True is not 1"),
        (change_info(format="csr"), "format 'csr' is not one of"),
        (change_info(format=["nm"]), "format .* is not one of"),
        (change_info(transposed="no"), "transposed is 'no'"),
        (change_info(shape=[64]), "shape .64. is no list"),
        (change_info(shape=[64, 2**31]), "not an integer from 0"),
        (change_info(shape=[64, 96.0]), "not an integer from 0"),
        (change_info(shape=[64, 92]), "packed weight '1.weight'"),
        (change_info(dtype="float64"), "packed weight '1.weight'"),
        (change_info(dtype="float31"), "packed weight '1.weight'.*float31"),
        (change_info(pattern="2:5"), "packed weight '1.weight'"),
        (change_info(pattern="1:4"), "packed weight '1.weight'"),
        (change_tensor("1.weight.indices", None), "'1.weight.indices' is missing"),
        (change_tensor("1.weight.indices", lambda t: t[:-1].clone()), "packed weight '1.weight'"),
        (change_tensor("1.weight.values", lambda t: t.double()), "packed weight '1.weight'"),
        (
            change_tensor("1.weight.indices", lambda t: torch.zeros_like(t)),
            "packed weight '1.weight'",
        ),
        (change_tensor("0.weight.row_offsets", lambda t: t.flip(0)), "packed weight '0.weight'"),
        (change_tensor("0.weight.bitmask", lambda t: t * 0), "packed weight '0.weight'"),
        (change_tensor("2.weight.block_cols", lambda t: t + 1000), "packed weight '2.weight'"),
        (change_tensor("3.weight.cols", last_column_up), "packed weight '3.weight'"),
        (change_tensor("1.weight", lambda t: torch.zeros(64, 96)), "'1.weight' twice"),
    ],
)
def test_damaged_packed_weights(tmp_path: Path, change: Callable[..., None], text: str) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(packed(network()), path)
    rewrite(path, change)
    refused(network(), path, text)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(packed(network()), path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(network(), path, "is not a valid safetensors file")


def attack_files() -> list[Path]:
    return sorted((Path(__file__).parents[1] / "attacks").rglob("*.safetensors"))


@pytest.mark.parametrize("path", attack_files(), ids=lambda path: path.stem)
def test_attack_files_leave_the_model_alone(path: Path) -> None:
    refused(network(), path, "safetensors")


# --- What is no file ------------------------------------------------------------------------------


def test_a_folder_or_a_wrong_path_is_named_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a directory: .* name one in it"):
        gs.load_into(network(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not there: .* check the path"):
        gs.load_into(network(), tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"is no regular file: .* write it to a file first"):
        gs.load_into(network(), tmp_path / "pipe")


def test_saving_leaves_what_is_no_regular_file_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        with pytest.raises(OSError, match="it is no regular file; name a file"):
            gs.save(network(), path)
    with pytest.raises(IsADirectoryError, match="it is a directory; name a file"):
        gs.save(network(), tmp_path)
    assert pipe.is_fifo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "pipe"]
