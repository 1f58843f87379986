# SPDX-License-Identifier: BSD-3-Clause
"""The recipes on text, in small: a model of characters, a classifier, and what they share."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "recipes"))

import char_gpt
import minilm_sst2 as sst2
import run_tools
from minilm import Encoder

from gossamer.prune import density

CPU = torch.device("cpu")
TINY = char_gpt.Size(2, 2, 16, 16, 0.1, 8, 60, 40)
WORDS = ["<pad>", "good", "bad", "a", "film", "with", "some", "people", "in", "it"]


@pytest.fixture(autouse=True)
def in_small(seeded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)  # The models are so small that threads would wait for each other.
    monkeypatch.setattr(char_gpt, "SMALL", TINY)
    monkeypatch.setattr(char_gpt, "CALIBRATION_CHARACTERS", 1024)


# --- Characters -----------------------------------------------------------------------------------


def counting(characters: str = "abcdefgh", times: int = 400) -> char_gpt.Text:
    return char_gpt.Text(characters * times, CPU)


def test_a_character_sees_none_after_it() -> None:
    model = char_gpt.GPT(8, TINY).eval()
    ids = torch.randint(8, (3, 16))
    other = ids.clone()
    other[:, 10:] = (other[:, 10:] + 1) % 8
    with torch.no_grad():
        one, two = model(ids), model(other)
    torch.testing.assert_close(one[:, :10], two[:, :10])
    assert not torch.allclose(one[:, 10:], two[:, 10:])


def test_the_text_is_split_and_sampled() -> None:
    text = counting("abc", 100)
    assert text.vocabulary == 3
    assert len(text.train) == 270
    assert torch.equal(torch.cat([text.train, text.validation]), torch.arange(300) % 3)
    x, y = text.sample(TINY, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (TINY.batch, TINY.context)
    assert torch.equal(y, (x + 1) % 3)


def test_an_untrained_model_knows_nothing_and_a_trained_one_counts() -> None:
    text = counting()
    model = char_gpt.GPT(text.vocabulary, TINY)
    assert char_gpt.validation_loss(model, text, TINY) == pytest.approx(math.log(8), rel=0.1)
    lowest = char_gpt.train(model, text, TINY, 300, 0, "test")
    assert lowest < math.log(8) / 2
    assert char_gpt.validation_loss(model, text, TINY) == pytest.approx(lowest)


@pytest.mark.parametrize("name", char_gpt.ONE_SHOT)
def test_pruning_at_once_prunes_the_blocks_alone(name: str) -> None:
    text = counting()
    dense = char_gpt.GPT(text.vocabulary, TINY).eval()
    model = char_gpt.prune_at_once(dense, name, "2:4", text, TINY)
    assert density(model.blocks) == pytest.approx(0.5, abs=0.01)
    for name, weight in model.named_parameters():
        if not name.startswith("blocks."):
            assert torch.equal(weight, dense.get_parameter(name))
        elif weight.dim() == 2:
            assert bool(((weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all())


@pytest.mark.parametrize(("pattern", "kept"), [("unstructured:0.9", 0.1), ("2:4", 0.5)])
def test_pruning_gradually_reaches_the_pattern(pattern: str, kept: float) -> None:
    text = counting()
    dense = char_gpt.GPT(text.vocabulary, TINY)
    model = char_gpt.prune_gradually(dense, pattern, text, TINY, seed=0)
    matrices = [weight for weight in model.blocks.parameters() if weight.dim() == 2]
    zeros = sum(int((weight == 0).sum()) for weight in matrices)
    whole = sum(weight.numel() for weight in matrices)
    # Each of 8 weights has its own count of zeros, rounded to a whole one.
    assert abs(zeros - (1 - kept) * whole) <= len(matrices)
    assert not hasattr(model.blocks[0].up, "parametrizations")


def test_the_recipe_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("to be or not " * 100)
    options = argparse.Namespace(
        data=str(tmp_path), device="cpu", methods=None, patterns=None, small=True, quick=True
    )
    options.seeds, options.steps, options.keep = [3, 4], 20, tmp_path / "kept"
    options.record = None
    rows = char_gpt.run(options)
    assert list(rows) == ["dense", *char_gpt.QUICK_METHODS]
    assert rows["dense"] == {"dense": rows["dense"]["dense"]}
    for name in char_gpt.QUICK_METHODS:
        assert list(rows[name]) == list(char_gpt.QUICK_PATTERNS)
        assert all(len(losses) == 2 for losses in rows[name].values())
    assert len(list(options.keep.iterdir())) == 2
    table = capsys.readouterr().out
    assert "| gradual magnitude | – | " in table
    assert table.count(" ± ") == 7
    assert char_gpt.run(options) == rows


def test_runs_of_a_seed_each_share_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("to be or not " * 100)
    options = argparse.Namespace(
        data=str(tmp_path), device="cpu", methods="Wanda", patterns="2:4", small=True, quick=False
    )
    options.keep, options.steps, options.seeds, options.record = None, 20, [3, 4], None
    want = char_gpt.run(options)
    options.record = tmp_path / "results" / "gpt.jsonl"
    for seed in (3, 4):
        options.seeds = [seed]
        char_gpt.run(options)
    assert len(options.record.read_text().splitlines()) == 4
    capsys.readouterr()
    options.seeds = [3, 4]
    # Nothing is left to do: no model is trained.
    monkeypatch.setattr(char_gpt, "dense_model", None)
    assert char_gpt.run(options) == want
    assert capsys.readouterr().out.count(" ± ") == 2
    options.steps = 24  # Another run; its results are not these.
    with pytest.raises(TypeError, match="NoneType"):
        char_gpt.run(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at a machine without a GPU")
def test_a_complete_record_of_a_gpu_is_a_table_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("to be or not " * 100)
    options = argparse.Namespace(
        data=str(tmp_path), device="cuda:0", methods="Wanda", patterns="2:4", small=True
    )
    options.quick, options.keep, options.steps, options.seeds = False, None, None, [0, 1]
    options.record = tmp_path / "gpt.jsonl"
    with pytest.raises(run_tools.InputError, match=r"^--device cuda:0: .*cpu, cuda or cuda:N"):
        char_gpt.run(options)
    record = run_tools.Record(options.record, f"char-gpt {TINY} cuda")
    for seed in (0, 1):
        record.add(seed, "dense", "dense", 1.0 + seed)
        record.add(seed, "Wanda", "2:4", 2.0 + seed)
    rows = char_gpt.run(options)
    assert rows == {"dense": {"dense": [1.0, 2.0]}, "Wanda": {"2:4": [2.0, 3.0]}}
    assert "| Wanda | – | 2.5000 ± 0.7071 |" in capsys.readouterr().out


def test_the_table_of_the_page_is_that_of_its_record() -> None:
    folder = Path(char_gpt.__file__).parent
    run = f"char-gpt {char_gpt.FULL} cuda"
    record = run_tools.Record(folder / "results" / "char_gpt-h200.jsonl", run)
    page = (folder / "README.md").read_text(encoding="utf-8")
    columns = ("50 %", "2:4", "70 %", "80 %", "90 %")
    for name in char_gpt.METHODS:
        known = char_gpt.GRADUAL_PATTERNS if name == char_gpt.GRADUAL else columns
        found = record.rows([0, 1, 2], [(name, column) for column in known])[name]
        cells = [run_tools.cell(found.get(column, ()), 4) for column in columns]
        assert f"\n| {name} | {' | '.join(cells)} |\n" in page, name
    dense = record.rows([0, 1, 2], [("dense", "dense")])["dense"]["dense"]
    assert f"dense {run_tools.cell(dense, 4)}, mean" in page


@pytest.mark.parametrize("steps", [0, 3])
def test_a_training_too_short_to_prune_in_is_refused(tmp_path: Path, steps: int) -> None:
    options = argparse.Namespace(data=str(tmp_path), small=True, steps=steps)
    with pytest.raises(run_tools.InputError, match=f"--steps {steps}: 4 or more"):
        char_gpt.run(options)


# --- Sentences ------------------------------------------------------------------------------------


class Body(nn.Module):
    """An encoder with what `Classifier` reads of a transformer: each word sees the mean of all."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width)
        self.embeddings = nn.Embedding(len(WORDS), width)
        self.encoder = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x, words = self.embeddings(input_ids), mask[..., None].float()
        for layer in self.encoder:
            mean = (x * words).sum(dim=1, keepdim=True) / words.sum(dim=1, keepdim=True)
            x = x + torch.tanh(layer(x + mean))
        return SimpleNamespace(last_hidden_state=x)


def tokenizer(sentences: list[str], **_: Any) -> dict[str, list[list[int]]]:
    return {"input_ids": [[WORDS.index(word) for word in text.split()] for text in sentences]}


def reviews(count: int) -> sst2.Reviews:
    generator = torch.Generator().manual_seed(count)
    sentences, labels = [], []
    for index in range(count):
        length = int(torch.randint(2, 9, (), generator=generator))
        words = [WORDS[int(i)] for i in torch.randint(3, 10, (length,), generator=generator)]
        words[index % length] = WORDS[1 + index % 2]
        sentences.append(" ".join(words))
        labels.append(1 - index % 2)
    return sst2.Reviews(sentences, torch.tensor(labels))


def encoder() -> Encoder:
    return Encoder(Body(), tokenizer)


def test_padding_changes_nothing() -> None:
    own, some = encoder(), reviews(20)
    model = sst2.Classifier(own.body).eval()
    tokens = own.tokens(some.sentences)
    with torch.no_grad():
        padded = model(**sst2.padded(tokens, CPU))
        alone = torch.cat([model(torch.tensor([ids])) for ids in tokens])
    torch.testing.assert_close(padded, alone)
    torch.testing.assert_close(sst2.logits_of(model, own, some.sentences), alone)


def test_every_sentence_is_in_one_batch() -> None:
    tokens = [[0] * (1 + index % 7) for index in range(101)]
    generator = torch.Generator().manual_seed(0)
    batches = list(sst2.shuffled(tokens, 4, generator))
    assert sorted(place for batch in batches for place in batch) == list(range(101))
    assert len(batches) == math.ceil(101 / 4)
    assert batches != list(sst2.shuffled(tokens, 4, generator))


def test_the_distance_to_the_teacher() -> None:
    logits = torch.randn(5, 2)
    assert float(sst2.distance(logits, logits)) == pytest.approx(0.0, abs=1e-6)
    own = torch.tensor([[0.0, 0.0]])
    teacher = sst2.TEMPERATURE * torch.tensor([[math.log(3.0), 0.0]])
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(sst2.distance(own, teacher)) == pytest.approx(sst2.TEMPERATURE**2 * want)


def test_reviews_are_read(tmp_path: Path) -> None:
    file = tmp_path / "some.tsv"
    file.write_text("a good film\t1\nit\thas tabs\t0\nbad\t0\n")
    found = sst2.load_reviews(file, 2)
    assert found.sentences == ["a good film", "it\thas tabs"]
    assert found.labels.tolist() == [1, 0]


def test_the_classifier_is_trained_and_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    for part, count in (("train", 300), ("test", 100)):
        some = reviews(count)
        lines = [f"{s}\t{y}\n" for s, y in zip(some.sentences, some.labels.tolist(), strict=True)]
        (tmp_path / "text" / f"sst2-{part}.tsv").write_text("".join(lines))
    plan = sst2.Plan(epochs=8, rate=1e-2, gradual_epochs=8, gradual_rate=1e-2, batch=16)
    options = argparse.Namespace(
        data=str(tmp_path), methods=None, patterns="80 %;2:4", seeds=[0, 1], quick=False
    )
    options.device = "cpu"
    options.record = tmp_path / "record.jsonl"
    rows = sst2.run(options, plan, encoder)
    # A word decides, so that training gets nearly all; 99 of 100 tells it from luck.
    assert min(rows["dense"]["dense"]) >= 95.0
    for name in (sst2.GRADUAL, sst2.DISTILLED):
        assert min(rows[name]["2:4"]) >= 95.0
    assert [list(rows[name]) for name in sst2.METHODS] == [["80 %", "2:4"]] * len(sst2.METHODS)
    assert "| gradual magnitude, distilled | – | " in capsys.readouterr().out

    def unloadable() -> Encoder:
        raise AssertionError("the record is complete")

    assert sst2.run(options, plan, unloadable) == rows
    assert len(options.record.read_text().splitlines()) == 2 * (1 + 2 * len(sst2.METHODS))


@pytest.mark.parametrize("distilled", [False, True])
def test_the_classifier_reaches_its_sparsity(distilled: bool) -> None:
    own, some = encoder(), reviews(200)
    dense = sst2.Classifier(own.body)
    teacher = sst2.logits_of(dense, own, some.sentences) if distilled else None
    plan = sst2.Plan(gradual_epochs=3, batch=8)
    model = sst2.prune_gradually(dense, own, "unstructured:0.9", some, plan, 0, teacher)
    kept = [int((layer.weight != 0).sum()) for layer in model.body.encoder]
    assert kept == [26, 26]  # 256 weights, 230 of them zero
    assert bool((model.body.embeddings.weight != 0).all())


# --- What they share ------------------------------------------------------------------------------


def test_devices_and_methods_that_do_not_exist_are_refused() -> None:
    assert run_tools.pick_device("cpu") == CPU
    with pytest.raises(ValueError, match=r"--device abacus: .*cpu, cuda or cuda:N is accepted"):
        run_tools.pick_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cuda: "):
            run_tools.pick_device("cuda")
    assert run_tools.chosen("b; a", ["a", "b"], ["a"]) == ["b", "a"]
    assert run_tools.chosen(None, ["a", "b"], ["a"]) == ["a"]
    with pytest.raises(ValueError, match=r"'c': one of \['a', 'b'\]"):
        run_tools.chosen("c", ["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"';': one of \['a', 'b'\]"):
        run_tools.chosen(";", ["a", "b"], ["a"])
    with pytest.raises(FileNotFoundError, match="set GOSSAMER_DATA"):
        run_tools.text_file("/nowhere", "some.txt")


@pytest.mark.parametrize("text", ["0,1,2", "0 1 2", "0 1,2"])
def test_seeds(text: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", action=run_tools.Seeds, nargs="+", default=[0])
    assert parser.parse_args(["--seeds", *text.split()]).seeds == [0, 1, 2]
    assert parser.parse_args([]).seeds == [0]


@pytest.mark.parametrize("text", ["a", "-1", "0,", "0 1 0"])
def test_seeds_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", action=run_tools.Seeds, nargs="+")
    with pytest.raises(SystemExit):
        parser.parse_args(["--seeds", *text.split()])
    assert "--seeds" in capsys.readouterr().err


def test_a_record_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for line in ("{", "[]", '{"run": "a"}'):
        path.write_text(line + "\n")
        with pytest.raises(ValueError, match=r"record.jsonl, line 1: .* is no result"):
            run_tools.Record(path, "a")


def test_what_the_user_can_mend_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["folder/recipe.py"])

    def wrong_option() -> None:
        run_tools.chosen("c", ["a", "b"], ["a"])

    with pytest.raises(SystemExit, match=r"^recipe.py: error: 'c': one of"):
        run_tools.start(wrong_option)

    def broken() -> None:
        raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault of the program"):
        run_tools.start(broken)


def test_cells() -> None:
    assert run_tools.cell([], 2) == "–"
    assert run_tools.cell([1.234], 2) == "1.23"
    assert run_tools.cell([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"
