"""Tokens and their lengths, the order of training rows, and padding."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from conftest import write_csv
from datasets import Dataset
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

import run_glue_no_trainer as script
from no_trainer.batches import GlobalBatchSampler, make_collate, tokenize
from no_trainer.glue import Task
from no_trainer.review import describe


def tokens(tiny_model: Path, texts: list[str], *, pair: bool = False, max_length: int = 8) -> Dataset:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    columns = ["a", "b"] if pair else ["a"]
    data = Dataset.from_dict(dict.fromkeys(columns, texts) | {"label": ["y", "n"] * (len(texts) // 2)})
    task = Task(["accuracy"], columns, ["y", "n"], ["y", "n"], max_length=max_length)
    encode = script.make_encode(tokenizer, task)
    return tokenize({"train": data}, encode, tokenizer, task)["train"]


def test_tokenize_cuts_and_keeps_the_full_length(tiny_model: Path) -> None:
    data = tokens(tiny_model, ["good", "good " * 6, "good " * 7, ""])
    assert data["length"][:] == [3, 8, 9, 2]
    assert [len(row) for row in data["input_ids"]] == [3, 8, 8, 2]
    assert data["labels"][:] == [0, 1, 0, 1]
    assert set(data.column_names) == {
        "input_ids",
        "labels",
        "length",
    }  # no masks of ones and types of zeros in a large cache
    data = tokens(tiny_model, ["good " * 3, "good " * 2], pair=True)
    assert data["length"][:] == [9, 7]
    assert data["token_type_ids"][1] == [0, 0, 0, 0, 1, 1, 1]


def test_tokens_are_kept_for_a_run_with_other_flags(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not change the tokens does not make them anew."""
    written = []
    write = datasets.arrow_writer.ArrowWriter.__init__

    def noted(self: object, *args: object, **options: object) -> None:
        written.extend([options["path"]] if options.get("path") else [])  # without one: the metrics, in memory
        write(self, *args, **options)

    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "__init__", noted)
    run(*own_files, "--max_train_steps", 1, "--max_length", 63)
    assert written
    written.clear()
    run(*own_files, "--max_train_steps", 2, "--max_length", 63, "--learning_rate", 1e-3, "--output_dir", tmp_path)
    assert not written


def test_describe(tiny_model: Path) -> None:
    data = tokens(tiny_model, ["good", "good " * 6, "good " * 7, "bad bad"])
    task = Task(["accuracy"], ["a"], ["y", "n"], ["y", "n"], max_length=8)
    header, row, text, classes = describe({"train": data}, task).splitlines()
    assert row.split() == ["train", "4", "6", "9", "9", "1"]
    assert header.split() == ["rows", "tokens:", "median", "95", "%", "max", "cut"]
    assert text == "text: a, cut at 8 tokens; labels:"
    assert classes.split() == ["train", "y", "50.0%,", "n", "50.0%"]
    assert max(map(len, (header, row))) < 80


def order(
    rows: int, global_batch: int, size: int, *, seed: int = 0, epoch: int = 0, first: int = 0, grouped: bool = True
) -> list:
    lengths = np.random.default_rng(5).integers(3, 90, rows) if grouped else None
    sampler = GlobalBatchSampler(rows, global_batch, size, seed, lengths)
    sampler.start(epoch, first)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert {len(batch) for batch in batches} <= {size}
    return batches


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("rows", [1, 31, 32, 333, 4001])
def test_an_epoch_has_every_row_and_full_batches(rows: int, grouped: bool) -> None:
    seen = Counter(row for batch in order(rows, 32, 8, grouped=grouped) for row in batch)
    assert set(seen) == set(range(rows))
    assert sum(seen.values()) == -(-rows // 32) * 32
    assert max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize("grouped", [True, False])
def test_global_batches_do_not_depend_on_the_cut(grouped: bool) -> None:
    whole = order(333, 32, 32, grouped=grouped)
    quarters = order(333, 32, 8, grouped=grouped)
    assert whole == [sum(quarters[i : i + 4], []) for i in range(0, len(quarters), 4)]
    assert order(333, 32, 8, first=5, grouped=grouped) == quarters[20:]
    assert order(333, 32, 32, epoch=1, grouped=grouped) != whole
    assert order(333, 32, 32, seed=1, grouped=grouped) != whole


def test_grouping_saves_padding() -> None:
    lengths = np.random.default_rng(5).integers(3, 90, 4001)

    def padded(grouped: bool) -> int:
        return sum(max(lengths[batch]) * len(batch) for batch in order(4001, 32, 32, grouped=grouped))

    assert padded(True) < 0.7 * padded(False)
    assert padded(True) < 1.1 * lengths.sum()


@pytest.mark.parametrize(
    ("precision", "compiler", "max_length", "length"),
    [
        ("no", {}, None, 8),
        ("bf16", {}, None, 8),
        ("fp8", {}, None, 16),
        ("no", {}, 32, 32),
        ("bf16", {"backend": "inductor"}, None, 32),
        ("bf16", {"backend": "inductor", "dynamic": False}, None, 32),
        ("bf16", {"backend": "inductor", "dynamic": True}, None, 8),
        ("bf16", {"backend": "inductor", "dynamic": True, "mode": "reduce-overhead"}, None, 16),
    ],
)
def test_what_a_batch_is_padded_to(
    tiny_model: Path,
    precision: str,
    compiler: dict,
    max_length: int | None,
    length: int,
) -> None:
    """Few shapes, of which oneDNN keeps less; as long as tensor cores want them; a single one on XLA."""
    state = SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(**compiler))
    where = SimpleNamespace(mixed_precision=precision, state=state)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    collate = make_collate(tokenizer, where, torch.nn.Module(), max_length)
    batch = collate([{"input_ids": tokenizer(text)["input_ids"]} for text in ("good bad fine", "good")])
    assert batch["input_ids"].shape == (2, length)
    assert batch["attention_mask"].sum(1).tolist() == [5, 3]


@pytest.mark.parametrize("kind", ["right", "left", "other ids", "no mask"])
@pytest.mark.parametrize("labels", [[0, 2, 1], [0.5, 2.0, -1.0], [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], None])
def test_a_batch_is_that_of_the_tokenizers_own_pad(tiny_model: Path, kind: str, labels: list | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    if kind == "other ids":  # XLNet's, on the left and with a type of their own
        tokenizer.padding_side, tokenizer.pad_token, tokenizer._pad_token_type_id = "left", "[MASK]", 3
        assert tokenizer.pad_token_type_id == 3
    elif kind == "left":
        tokenizer.padding_side = "left"
    elif kind == "no mask":
        tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    no_compiler = SimpleNamespace(dynamo_plugin=TorchDynamoPlugin())
    where = SimpleNamespace(mixed_precision="no", state=no_compiler)
    collate = make_collate(tokenizer, where, torch.nn.Module(), None)
    pairs = [("good bad", "fine"), ("nice " * 9, "poor " * 8), ("dull", "")]
    for names in (["input_ids"], ["input_ids", "token_type_ids"]):
        rows = [{name: tokenizer(*pair)[name] for name in names} | {"row": i} for i, pair in enumerate(pairs)]
        rows = [row | ({"labels": labels[i]} if labels else {}) for i, row in enumerate(rows)]
        ours, theirs = collate(rows), tokenizer.pad(rows, pad_to_multiple_of=8, return_tensors="pt")
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            assert ours[name].tolist() == tensor.tolist(), name


def test_no_batch_is_longer_than_the_model_can_read(run: Callable, tmp_path: Path, tiny_model: Path) -> None:
    """60 positions are no multiple of 8."""
    short = BertConfig.from_pretrained(tiny_model, max_position_embeddings=60)
    shutil.copytree(tiny_model, tmp_path / "short")
    BertForSequenceClassification(short).bert.save_pretrained(tmp_path / "short")
    rows = [(" ".join(["good", "bad"][row % 2] for _ in range(70)), "ab"[row % 2]) for row in range(40)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    assert run("--model_name_or_path", tmp_path / "short", "--train_file", file, "--max_train_steps", 2)["step"] == 2


def test_three_texts_are_as_long_as_the_model_would_read_them(tiny_model: Path) -> None:
    """The separators between them count: 3 words, 2 separators, [CLS] and [SEP]."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    columns = ["a", "b", "c"]
    task = Task(["accuracy"], columns, ["y", "n"], ["y", "n"], max_length=6, separator="[SEP]")
    data = Dataset.from_dict({"a": ["good"], "b": ["bad"], "c": ["fine"]})
    tokens = tokenize({"test": data}, script.make_encode(tokenizer, task), tokenizer, task)["test"]
    assert tokens["length"][:] == [7]
    assert len(tokens["input_ids"][0]) == 6
