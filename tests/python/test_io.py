# SPDX-License-Identifier: BSD-3-Clause
"""save and load_into: round trips, other writers' files, damaged files, atomic writes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gossamer as gs


def pruned(
    inputs: int, outputs: int, pattern: str, dtype: torch.dtype = torch.float32
) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, dtype=dtype)
    with torch.no_grad():
        linear.weight.mul_(torch.ops.gossamer.magnitude_mask(linear.weight, pattern, "tensor"))
    return linear


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """One layer of each format, one dense layer, buffers of several dtypes."""
    return nn.Sequential(
        pruned(64, 96, "unstructured:0.9", dtype),
        pruned(96, 64, "2:4", dtype),
        pruned(64, 64, "block:16x16:0.5", dtype),
        pruned(64, 48, "fanin:0.75", dtype),
        nn.Linear(48, 32, dtype=dtype),
        nn.BatchNorm1d(32, dtype=dtype),
    ).eval()


PATTERNS = {"0": None, "1": "2:4", "2": "block:16x16", "3": "fanin:0.75"}
FORMATS = {"0": "bitmask", "1": "nm", "2": "bsr", "3": "fanin"}


def packed(model: nn.Module) -> nn.Module:
    return gs.sparsify_(model, PATTERNS, layout="format")


def values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in the model, packed weights made dense."""
    return {
        name: value.to_dense() if isinstance(value, gs.SparseWeight) else value.detach().clone()
        for name, value in model.state_dict().items()
    }


def equal(got: nn.Module, want: dict[str, Tensor]) -> bool:
    found = values(got)
    return found.keys() == want.keys() and all(
        torch.equal(found[name], want[name]) for name in want
    )


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    tensors, notes = load_file(path), metadata(path)
    change(tensors, notes)
    save_file(tensors, path, notes)


# --- Round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("into_packed", [False, True])
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype, into_packed: bool) -> None:
    model = packed(network(dtype))
    want = values(model)
    gs.save(model, tmp_path / "m.safetensors")
    other = network(dtype)
    if into_packed:
        packed(other)
    assert not equal(other, want)
    result = gs.load_into(other, tmp_path / "m.safetensors", layout="format")
    assert result == gs.LoadResult([], [])
    assert equal(other, want)
    for name, form in FORMATS.items():
        weight = other[int(name)].weight
        assert isinstance(weight, gs.SparseWeight)
        assert weight.layout_name == form
        assert weight.pattern == model[int(name)].weight.pattern
        assert torch.equal(weight.mask(), model[int(name)].weight.mask())
    x = torch.randn(3, 64, dtype=dtype)
    assert torch.equal(other(x), model(x))


def test_the_file_is_what_the_documentation_says(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(packed(network()), path)
    notes, names = metadata(path), set(load_file(path))
    assert notes["gossamer.version"] == "1"
    info = json.loads(notes["gossamer.weight.1.weight"])
    assert info == {
        "format": "nm",
        "pattern": "2:4",
        "dtype": "float32",
        "shape": [64, 96],
        "transposed": False,
        "version": 1,
    }
    assert {"0.weight.bitmask", "0.weight.values", "0.weight.row_offsets"} <= names
    assert {"1.weight.values", "1.weight.indices", "3.weight.cols", "4.weight"} <= names
    assert "0.weight" not in names


def test_any_layout_is_saved_as_its_format(tmp_path: Path) -> None:
    model = nn.Sequential(pruned(256, 256, "unstructured:0.9"))
    gs.sparsify_(model, layout="kcsr128")
    assert model[0].weight.layout_name == "kcsr128"
    gs.save(model, tmp_path / "m.safetensors")
    other = nn.Sequential(nn.Linear(256, 256))
    gs.load_into(other, tmp_path / "m.safetensors", layout="kcsr64")
    assert other[0].weight.layout_name == "kcsr64"
    assert equal(other, values(model))


def test_loading_plans_for_this_machine(tmp_path: Path) -> None:
    model = nn.Sequential(pruned(512, 512, "unstructured:0.98"), pruned(512, 8, "unstructured:0.5"))
    gs.sparsify_(model, layout="format")
    gs.save(model, tmp_path / "m.safetensors")
    other = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 8))
    head = other[1].weight
    gs.load_into(other, tmp_path / "m.safetensors", plan="model")
    first, second = gs.explain(other)
    assert first.packed
    assert first.layout != "bitmask"
    assert first.plan
    assert first.frozen
    if not second.packed:  # copied into the parameter that was there
        assert other[1].weight is head
        assert "dense" in second.reason
    assert equal(other, values(model))
    gs.desparsify_(other)
    assert other[0].weight.requires_grad


def test_dense_files(tmp_path: Path) -> None:
    model = packed(network())
    want = values(model)
    gs.save(model, tmp_path / "dense.safetensors", packed=False)
    assert set(load_file(tmp_path / "dense.safetensors")) == set(want)
    plain = network()
    parameter = plain[0].weight
    gs.load_into(plain, tmp_path / "dense.safetensors")
    assert plain[0].weight is parameter
    assert equal(plain, want)
    assert gs.explain(plain)["0"].reason == "the file holds it dense"
    # A packed model packs what it finds again, and keeps a weight without zeros plain.
    again = packed(network())
    with torch.no_grad():
        plain[1].weight.copy_(torch.randn(64, 96))
    gs.save(plain, tmp_path / "dense.safetensors")
    gs.load_into(again, tmp_path / "dense.safetensors", layout="format")
    assert isinstance(again[0].weight, gs.SparseWeight)
    assert type(again[1].weight) is nn.Parameter
    assert equal(again, values(plain))


def test_other_dtypes_are_converted_as_load_state_dict_does(tmp_path: Path) -> None:
    model = packed(network())
    gs.save(model, tmp_path / "m.safetensors")
    other = network(torch.float64)
    gs.load_into(other, tmp_path / "m.safetensors", layout="format")
    assert other[0].weight.dtype == torch.float64
    assert isinstance(other[0].weight, gs.SparseWeight)
    assert torch.equal(other[0].weight.to_dense(), model[0].weight.to_dense().double())


def test_meta_models_get_their_memory(tmp_path: Path) -> None:
    model = packed(network())
    gs.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty = nn.Sequential(
            nn.Linear(64, 96),
            nn.Linear(96, 64),
            nn.Linear(64, 64),
            nn.Linear(64, 48),
            nn.Linear(48, 32),
            nn.BatchNorm1d(32),
        ).eval()
    gs.load_into(empty, tmp_path / "m.safetensors", layout="format")
    x = torch.randn(3, 64)
    assert torch.equal(empty(x), model(x))
    assert isinstance(empty[0].weight, gs.SparseWeight)


class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def test_conv1d_keeps_its_orientation(tmp_path: Path) -> None:
    model = nn.Sequential(Conv1D(48, 64))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(64, 48) < 0.1)
    gs.sparsify_(model, layout="format")
    gs.save(model, tmp_path / "m.safetensors")
    info = json.loads(metadata(tmp_path / "m.safetensors")["gossamer.weight.0.weight"])
    assert info["transposed"] is True
    assert info["shape"] == [48, 64]
    other = nn.Sequential(Conv1D(48, 64))
    gs.load_into(other, tmp_path / "m.safetensors", layout="format")
    assert tuple(other[0].weight.shape) == (64, 48)
    assert equal(other, values(model))
    x = torch.randn(3, 64)
    assert torch.equal(other(x), model(x))


def test_shared_tensors_are_written_once(tmp_path: Path) -> None:
    def make() -> nn.ModuleDict:
        model = nn.ModuleDict(
            {
                "wte": nn.Embedding(50, 32),
                "head": nn.Linear(32, 50, bias=False),
                "a": pruned(64, 64, "unstructured:0.9"),
                "b": nn.Linear(64, 64),
            }
        )
        model["head"].weight = model["wte"].weight
        model["b"].weight = model["a"].weight
        return model

    path, model = tmp_path / "m.safetensors", make()
    gs.sparsify_(model, layout="format")
    gs.save(model, path)
    names, notes = set(load_file(path)), metadata(path)
    assert "head.weight" not in names
    assert notes["head.weight"] == "wte.weight"
    assert notes["b.weight"] == "a.weight"
    assert "gossamer.weight.b.weight" not in notes
    other = make()
    gs.load_into(other, path, layout="format")
    assert other["b"].weight is other["a"].weight
    assert isinstance(other["b"].weight, gs.SparseWeight)
    assert other["head"].weight is other["wte"].weight
    assert equal(other, values(model))
    # A model that does not share gets both.
    apart = make()
    apart["b"].weight = nn.Parameter(torch.zeros(64, 64))
    gs.load_into(apart, path, layout="format")
    assert torch.equal(apart["b"].weight.to_dense(), model["a"].weight.to_dense())


def test_a_packed_weight_goes_dense_where_its_place_needs_that(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = nn.ModuleDict({"layer": pruned(32, 50, "unstructured:0.9")})
    del model["layer"].bias
    model["layer"].register_parameter("bias", None)
    gs.sparsify_(model, layout="format")
    gs.save(model, path)
    other = nn.ModuleDict({"layer": nn.Embedding(50, 32)})
    gs.load_into(other, path)
    assert torch.equal(other["layer"].weight, model["layer"].weight.to_dense())


def test_views_and_strided_tensors(tmp_path: Path) -> None:
    model = nn.Module()
    base = torch.arange(12.0)
    model.register_buffer("whole", base)
    model.register_buffer("part", base[3:9])
    model.register_buffer("across", base.view(3, 4).t())
    model.register_buffer("scalar", torch.tensor(7))
    model.register_buffer("empty", torch.empty(0, 3))
    model.register_buffer("empty_too", torch.empty(0, 3))
    gs.save(model, tmp_path / "m.safetensors")
    want = values(model)
    other = copy.deepcopy(model)
    for buffer in other.buffers():
        buffer.zero_()
    gs.load_into(other, tmp_path / "m.safetensors")
    assert equal(other, want)


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
    with pytest.raises(FileNotFoundError, match="no file"):
        gs.load_into(network(), tmp_path)
    with pytest.raises(OSError, match="could not be written"):
        gs.save(network(), tmp_path / "no" / "such" / "m.safetensors")


def test_options_are_checked(tmp_path: Path) -> None:
    gs.save(network(), tmp_path / "m.safetensors")
    refused(network(), tmp_path / "m.safetensors", "plan='fast'", plan="fast")
    refused(network(), tmp_path / "m.safetensors", "memory='low'", memory="low")


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


# --- Writing is atomic ----------------------------------------------------------------------------


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.endswith(".tmp")]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(network(), path)
    before = path.read_bytes()
    program = (
        "import resource, signal, sys, torch, gossamer as gs\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    gs.save(torch.nn.Linear(512, 512), sys.argv[1])\n"
        "except OSError as error:\n"
        "    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert "refused:" in done.stdout, done.stderr
    assert "could not be written" in done.stdout
    assert path.read_bytes() == before
    assert not leftovers(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(network(), path)
    before = path.read_bytes()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gossamer.io.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gs.save(network(), path)
    assert path.read_bytes() == before
    assert not leftovers(tmp_path)


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "m.safetensors", tmp_path / "link.safetensors"
    gs.save(nn.Linear(4, 4), path)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o640)
    link.symlink_to(path)
    gs.save(nn.Linear(5, 5), link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert load_file(path)["weight"].shape == (5, 5)


# --- The command reads and writes the same files --------------------------------------------------

needs_command = pytest.mark.skipif(
    "GOSSAMER_BIN" not in os.environ, reason="GOSSAMER_BIN does not name the gossamer command"
)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [os.environ["GOSSAMER_BIN"], *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@needs_command
def test_the_command_unpacks_what_save_wrote(tmp_path: Path) -> None:
    model = packed(network())
    gs.save(model, tmp_path / "packed.safetensors")
    command("unpack", tmp_path / "packed.safetensors", "-o", tmp_path / "dense.safetensors")
    want, got = values(model), load_file(tmp_path / "dense.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@needs_command
def test_load_into_reads_what_the_command_packed(tmp_path: Path) -> None:
    model = packed(network())
    gs.save(model, tmp_path / "dense.safetensors", packed=False)
    command("pack", tmp_path / "dense.safetensors", "-o", tmp_path / "packed.safetensors")
    other = network()
    gs.load_into(other, tmp_path / "packed.safetensors", layout="format")
    assert isinstance(other[0].weight, gs.SparseWeight)
    assert equal(other, values(model))
