"""A tokenizer that does not fit its model, or the data, is told before training; and what a saved one knows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import sentences, write_csv
from test_architectures import make
from tokenizers.processors import Sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)


def refused(run: Callable, capsys: pytest.CaptureFixture, *flags: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        run(*flags)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def copy(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    return folder


def test_a_folder_without_files_of_a_tokenizer(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """transformers makes an empty one, to which every word is unknown."""
    model = copy(tiny_model, tmp_path / "model")
    for file in model.glob("*token*"):
        file.unlink()
    said = refused(run, capsys, *own_files, "--model_name_or_path", model)
    assert "has no files of a tokenizer; name another with --tokenizer_name" in said
    again = [*own_files, "--model_name_or_path", model, "--tokenizer_name", tiny_model, "--max_train_steps", 1]
    run(*again, "--output_dir", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("good")["input_ids"] != [2, 1, 3]


def test_a_tokenizer_of_another_model_is_told(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its tokens are numbers that the model knows, of other words."""
    other, words = tmp_path / "other", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bad", "good", "fine", "poor"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(other)
    flags = [*own_files, "--model_name_or_path", tiny_model, "--max_train_steps", 1]
    said = "does not seem to be the model's: it has 9 tokens, the model "
    run(*flags, "--tokenizer_name", other)
    assert said in capsys.readouterr().out
    run(*flags, "--tokenizer_name", tiny_model)
    assert "does not seem to be" not in capsys.readouterr().out


def test_a_tokenizer_without_words(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = copy(tiny_model, tmp_path / "model")
    for file in model.glob("*token*"):
        file.unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert "knows no words: a file is missing" in refused(run, capsys, *own_files, "--model_name_or_path", model)


def test_texts_that_a_tokenizer_does_not_know(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for share, letters in ((1.0, "中文字"), (0.4, "中b")):
        rows = [(letters * (1 + number % 3), "ab"[number % 2]) for number in range(40)]
        file = write_csv(tmp_path / f"{share}.csv", ["text", "label"], rows)
        flags = ["--train_file", file, "--max_train_steps", 1, "--model_name_or_path", tiny_model]
        if share == 1:
            said = refused(run, capsys, *flags)
            assert "of the tokens of the train data are [UNK]: there is nothing to learn from" in said
        else:
            run(*flags)
            assert "the tokenizer does not know them" in capsys.readouterr().out


def test_more_tokens_than_the_model_has(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = copy(tiny_model, tmp_path / "model")
    config = AutoConfig.from_pretrained(tiny_model, vocab_size=85)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
    said = refused(run, capsys, *own_files, "--model_name_or_path", model)
    assert (
        "of the train data, but the model knows 85 tokens; name the tokenizer of the model with --tokenizer_name"
        in said
    )


def test_a_token_to_pad_with_beyond_the_model(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = copy(tiny_model, tmp_path / "model")
    tokenizer = BertTokenizer.from_pretrained(tiny_model)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    tokenizer.save_pretrained(model)
    said = refused(run, capsys, *own_files, "--model_name_or_path", model)
    assert f"its tokenizer pads with token {size}, but the model knows {size} tokens" in said


def test_a_second_type_where_the_model_has_one(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = copy(tiny_model, tmp_path / "model")
    config = AutoConfig.from_pretrained(tiny_model, type_vocab_size=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
    rows = [(text, text, "ab"[label]) for text, label in sentences(30)]
    file = write_csv(tmp_path / "t.csv", ["sentence1", "sentence2", "label"], rows)
    said = refused(run, capsys, "--train_file", file, "--model_name_or_path", model)
    assert "the tokenizer marks the second text with type 1, which the model does not know" in said


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_text_that_holds_the_end_of_texts(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    model = make(kind, tiny_model, tmp_path / "model")
    rows = [(text, "ab"[label]) for text, label in sentences(30)]
    rows[7] = ("good [SEP] bad", "a")
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    flags = ["--train_file", file, "--validation_file", file, "--model_name_or_path", model]
    assert "row 8 of the train data has 2 times [SEP], others have 1" in refused(run, capsys, *flags)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_tokenizer_that_ends_no_text(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    model = make(kind, tiny_model, tmp_path / "model")
    file = model / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    said = refused(run, capsys, *own_files, "--model_name_or_path", model)
    assert "the tokenizer ends no text with [SEP], where the head of this model reads" in said


def test_something_is_put_between_two_texts(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """GPT-2's tokenizer adds nothing; that of the saved model then does what was done in training."""
    model = make("gpt2", tiny_model, tmp_path / "model")
    tokenizer = model / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"post_processor": None}))
    rows = [(text, text, "ab"[label]) for text, label in sentences(30)]
    file = write_csv(tmp_path / "t.csv", ["sentence1", "sentence2", "label"], rows)
    run("--train_file", file, "--model_name_or_path", model, "--max_train_steps", 1, "--output_dir", tmp_path / "out")
    assert "the tokenizer puts nothing between two texts: [SEP] is added there" in capsys.readouterr().out
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    good, bad = (saved(word)["input_ids"] for word in ("good", "bad"))
    assert saved("good", "bad")["input_ids"] == [*good, saved.eos_token_id, *bad]
    assert saved.eos_token_id not in good


def test_texts_that_nothing_separates_are_told(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = make("bert", tiny_model, tmp_path / "model")
    backend = AutoTokenizer.from_pretrained(tiny_model).backend_tokenizer
    backend.post_processor = Sequence([])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(model)
    rows = [(text, text, "ab"[label]) for text, label in sentences(30)]
    file = write_csv(tmp_path / "t.csv", ["sentence1", "sentence2", "label"], rows)
    run("--train_file", file, "--model_name_or_path", model, "--max_train_steps", 1)
    said = "warning: the tokenizer puts nothing between two texts: the model reads them as one"
    assert said in capsys.readouterr().out


def test_a_saved_tokenizer_knows_the_length_that_texts_were_cut_at(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    """So that the card's pipeline takes texts that are longer than the model can read."""
    run(*own_files, "--max_train_steps", 1, "--max_length", 12, "--output_dir", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 12
    assert "truncation=True" in (tmp_path / "README.md").read_text()
    classify = pipeline("text-classification", str(tmp_path), truncation=True)
    assert classify("good " * 500)[0] == classify("good " * 10)[0]


def test_a_tokenizer_that_pads_on_the_left_pads_on_the_right_where_places_count(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path
) -> None:
    """GPT-2 and BART read a word at its place: the scores do not depend on the size of the evaluation's batches."""
    for kind in ("gpt2", "bart"):
        model = make(kind, tiny_model, tmp_path / kind)
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.padding_side = "left"
        tokenizer.save_pretrained(model)
        run(*own_files, "--model_name_or_path", model, "--max_train_steps", 3, "--learning_rate", 1e-2,
            "--output_dir", tmp_path / f"{kind}_out")  # fmt: skip
        losses = set()
        for flags in (
            ["--per_device_eval_batch_size", 1],
            ["--per_device_eval_batch_size", 23],
            ["--pad_to_max_length"],
        ):
            only = ["--model_name_or_path", tmp_path / f"{kind}_out", "--num_train_epochs", 0]
            losses.add(round(run(*own_files, *only, *flags)["eval_loss"], 5))
        assert len(losses) == 1


def test_what_a_model_does_not_take_is_not_given_to_it(run: Callable, tiny_model: Path, tmp_path: Path) -> None:
    """DistilBERT has no types of tokens; BERT's tokenizer makes them."""
    model = make("distilbert", tiny_model, tmp_path / "model")
    BertTokenizer.from_pretrained(tiny_model).save_pretrained(model)
    rows = [(text, text, "ab"[label]) for text, label in sentences(30)]
    file = write_csv(tmp_path / "t.csv", ["sentence1", "sentence2", "label"], rows)
    assert run("--train_file", file, "--model_name_or_path", model, "--max_train_steps", 1)["step"] == 1
    assert torch.isfinite(torch.tensor(run("--train_file", file, "--model_name_or_path", model)["eval_loss"]))
