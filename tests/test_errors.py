"""Whatever people get wrong: exit code 2, one line with its name and the remedy, no traceback, no output folder."""

import gzip
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import fresh_accelerate, sentences, write_csv
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

import run_glue_no_trainer as script
from no_trainer.folder import checksum

GOOD = "text,label\n" + "".join(f"{text},{'ab'[label]}\n" for text, label in sentences(30))
ROWS = [{"text": text, "label": "ab"[label]} for text, label in sentences(30)]


def with_file(name: str, content: str | bytes, *flags: object) -> Callable[[Path], list]:
    """Flags that train on this file, with a good one to validate on."""

    def make(folder: Path) -> list:
        file = folder / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["--train_file", file, "--validation_file", folder / "good.csv", *flags]

    return make


def with_validation(content: str, *flags: object) -> Callable[[Path], list]:
    def make(folder: Path) -> list:
        (folder / "valid.csv").write_text(content)
        return ["--train_file", folder / "good.csv", "--validation_file", folder / "valid.csv", *flags]

    return make


def with_config(content: str) -> Callable[[Path], list]:
    def make(folder: Path) -> list:
        (folder / "recipe.yaml").write_text(content)
        return ["--config", folder / "recipe.yaml", "--train_file", folder / "good.csv"]

    return make


def with_flags(*flags: object) -> Callable[[Path], list]:
    return lambda folder: ["--train_file", folder / "good.csv", *flags]


def with_parquet(columns: dict, *flags: object) -> Callable[[Path], list]:
    def make(folder: Path) -> list:
        pa.parquet.write_table(pa.table(columns), folder / "t.parquet")
        return ["--train_file", folder / "t.parquet", "--validation_file", folder / "good.csv", *flags]

    return make


def with_model(change: Callable[[Path], object]) -> Callable[[Path], list]:
    """A copy of the tiny model with something wrong in it."""

    def make(folder: Path) -> list:
        shutil.copytree(folder / "tiny", folder / "model")
        change(folder / "model")
        return ["--model_name_or_path", folder / "model", "--train_file", folder / "good.csv"]

    return make


def make_pickle(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save(
        BertForSequenceClassification(BertConfig.from_pretrained(model)).state_dict(), model / "pytorch_model.bin"
    )


def other_head(model: Path) -> None:
    config = BertConfig.from_pretrained(model, num_labels=5)
    BertForSequenceClassification(config).save_pretrained(model)


def a_number(model: Path) -> None:
    BertForSequenceClassification(BertConfig.from_pretrained(model, num_labels=1)).save_pretrained(model)


def two_parquets(folder: Path) -> list:
    pa.parquet.write_table(pa.table({"text": ["x"], "label": ["a"]}), folder / "1.parquet")
    pa.parquet.write_table(pa.table({"text": [["x"]], "label": ["b"]}), folder / "2.parquet")
    return ["--train_file", folder / "1.parquet", folder / "2.parquet"]


def with_a_script(folder: Path) -> list:
    (folder / "squares").mkdir()
    (folder / "squares" / "squares.py").touch()
    return ["--dataset_name", folder / "squares"]


def jsonl(*rows: object) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


WRONG: dict[str, tuple[Callable[[Path], list], str]] = {
    "no model": (
        lambda folder: ["--model_name_or_path", "", "--train_file", folder / "good.csv"],
        "--model_name_or_path",
    ),
    "no data": (lambda _: [], "--train_file"),
    "a flag misspelt": (with_flags("--learning_rte", 1), "did you mean --learning_rate?"),
    "a flag of other scripts": (with_flags("--fp16"), "--fp16; here: --mixed_precision fp16"),
    "a flag unknown": (with_flags("--wings"), "unrecognized arguments: --wings"),
    "a flag cut short": (with_flags("--learning", 1), "--learning"),
    "a value missing": (with_flags("--seed"), "--seed"),
    "a word for a number": (with_flags("--seed", "one"), "--seed: takes a whole number, not 'one'"),
    "a fraction for a number": (with_flags("--max_length", "12.5"), "--max_length"),
    "a seed too large": (with_flags("--seed", 5_000_000_000), "--seed: must be at least 0 and at most 2.14748e+09"),
    "steps without number": (with_flags("--max_train_steps", "9" * 401), "--max_train_steps: must be at least 1"),
    "steps without rows": (
        lambda f: ["--validation_file", f / "good.csv", "--num_train_epochs", 1, "--max_train_steps", 5],
        "what to train on?",
    ),
    "prediction without saying so": (
        lambda f: ["--test_file", f / "good.csv", "--do_predict", "--output_dir", f / "out"],
        "or --train_file; to evaluate or predict only, add --num_train_epochs 0",
    ),
    "two configurations": (
        lambda f: [(f / "a.yaml").touch(), "--config", f / "a.yaml", f"--config={f / 'a.yaml'}"][1:],
        "--config is given twice",
    ),
    "a constant rate that warms up": (
        with_flags("--lr_scheduler_type", "constant", "--num_warmup_steps", 5),
        "--lr_scheduler_type constant has no warm-up; constant_with_warmup has one",
    ),
    "a constant rate with a warm-up ratio": (
        with_flags("--lr_scheduler_type", "constant", "--warmup_ratio", 0.5),
        "--lr_scheduler_type constant has no warm-up; constant_with_warmup has one",
    ),
    "no epochs but some steps": (
        lambda f: ["--train_file", f / "good.csv", "--num_train_epochs", 0, "--max_train_steps", 5],
        "--num_train_epochs 0 trains nothing, and --max_train_steps trains",
    ),
    "negative rate": (with_flags("--learning_rate", "-1e-5"), "--learning_rate"),
    "infinite rate": (with_flags("--learning_rate", "inf"), "--learning_rate: must be at least 0, not inf"),
    "no batch": (with_flags("--per_device_train_batch_size", 0), "--per_device_train_batch_size"),
    "no accumulation": (with_flags("--gradient_accumulation_steps", 0), "--gradient_accumulation_steps"),
    "negative epochs": (with_flags("--num_train_epochs", -1), "--num_train_epochs"),
    "an attention that is not installed": (
        with_flags("--attn_implementation", "flash_attention_2"),
        "FlashAttention2",
    ),
    "warm-up over 1": (with_flags("--warmup_ratio", 2), "--warmup_ratio"),
    "two warm-ups": (
        with_flags("--warmup_ratio", 0.1, "--num_warmup_steps", 3),
        "not allowed with argument --warmup_ratio",
    ),
    "a schedule unknown": (with_flags("--lr_scheduler_type", "step"), "'step'"),
    "a precision unknown": (with_flags("--mixed_precision", "fp32"), "'fp32'"),
    "a switch with a word": (with_flags("--do_predict", "yes"), "takes true or false"),
    "checkpoints now and then": (with_flags("--checkpointing_steps", "daily"), "--checkpointing_steps daily"),
    "a task unknown": (lambda _: ["--task_name", "squad"], "'squad'"),
    "a task and files": (with_flags("--task_name", "rte"), "cannot be given together"),
    "a data set and files": (with_flags("--dataset_name", "imdb"), "--dataset_name and --train_file cannot"),
    "ax for training": (lambda _: ["--task_name", "ax"], "--num_train_epochs 0 --do_predict"),
    "ax for some steps": (
        lambda _: ["--task_name", "ax", "--do_predict", "--max_train_steps", 5],
        "--num_train_epochs 0 --do_predict",
    ),
    "GLUE's columns renamed": (
        lambda _: ["--task_name", "rte", "--text_column_names", "a"],
        "are for your own data: a GLUE task has",
    ),
    "an empty name": (with_flags("--text_column_names", "text,"), "takes columns as in a,b, each once"),
    "one text column twice": (with_flags("--text_column_names", "text,text"), "takes columns as in a,b, each once"),
    "the label as text": (with_flags("--text_column_names", "text,label"), "label is the column of the labels"),
    "predict what": (with_flags("--do_predict"), "--do_predict needs a --test_file"),
    "a test file for nothing": (
        lambda f: ["--train_file", f / "good.csv", "--test_file", f / "good.csv"],
        "--do_predict",
    ),
    "a best metric unknown": (
        with_flags("--metric_for_best_model", "bleu"),
        "must be one of accuracy, macro_f1, f1, loss",
    ),
    "a file that is not there": (lambda f: ["--train_file", f / "no.csv"], "no.csv: there is no such file"),
    "a glob of nothing": (lambda f: ["--train_file", f / "*.tsv"], "no file matches"),
    "a folder": (lambda f: ["--train_file", f], "is a folder; for its files, give"),
    "a spreadsheet": (with_file("t.xlsx", b"PK"), "the name must end in .csv, .tsv, .json, .jsonl, .parquet"),
    "a config that is not there": (with_flags("--config", "no.yaml"), "--config no.yaml"),
    "a config with an unknown key": (with_config("lerning_rate: 1"), "did you mean learning_rate?"),
    "a config with a mapping": (with_config("seed: {a: 1}"), "seed takes one value"),
    "a config that is no YAML": (with_config("seed: [1"), "recipe.yaml"),
    "a config that is a list": (with_config("- seed"), "must hold lines such as"),
    "a config with a wrong value": (with_config("seed: a"), "--seed: takes a whole number"),
    "a model that is not there": (
        with_flags("--model_name_or_path", "./no_model"),
        "./no_model: there is no such folder",
    ),
    "a home that no shell has named": (with_flags("--model_name_or_path=~"), "~: there is no such folder"),
    "a hub model that is not there": (with_flags("--model_name_or_path", "no/model"), "--model_name_or_path no/model"),
    "a data set that is not there": (
        lambda _: ["--task_name", "rte", "--dataset_name", "no/glue"],
        "no/glue could not be",
    ),
    "a data set with a script": (with_a_script, "squares could not be read: Dataset scripts are no longer supported"),
    "an empty file": (with_file("t.csv", ""), "t.csv has no rows"),
    "a header alone": (with_file("t.csv", "text,label\n"), "t.csv has no rows"),
    "no label column": (with_file("t.csv", GOOD.replace("label", "kind")), "choose another with --label_column_name"),
    "no text column": (with_file("t.csv", "label\na\nb\n"), "no text column besides 'label'"),
    "a text column misnamed": (
        with_flags("--text_column_names", "txt"),
        "no column 'txt'; its columns are text, label",
    ),
    "too many cells": (with_file("t.csv", GOOD + "one,two,a\n"), "t.csv, line 32: 3 cells, but the header has 2"),
    "too few cells": (with_file("t.csv", GOOD + "one\n"), "t.csv, line 32: 1 cells, but the header has 2"),
    "two columns of a name": (with_file("t.csv", "text,text,label\na,b,x\n"), "two columns 'text'"),
    "a column without a name": (with_file("t.csv", "text,,label\na,b,x\n"), "a column without a name"),
    "a column in capitals": (with_flags("--label_column_name", "Label"), "did you mean label?"),
    "a model of no use pushed": (
        with_flags("--push_to_hub", "--num_train_epochs", 0, "--output_dir", "out"),
        "--push_to_hub uploads the trained model",
    ),
    "Latin-1": (with_file("t.csv", GOOD.encode() + "Käse,a\n".encode("latin-1")), "can't decode byte 0xe4"),
    "UTF-16": (with_file("t.csv", GOOD.encode("utf-16")), "t.csv is UTF-16"),
    "one class": (with_file("t.csv", GOOD.replace(",b", ",a")), "only one class, 'a'"),
    "a row without a label": (with_file("t.csv", GOOD + "one,\n"), "t.csv, line 32 (row 31 of the train data) has no"),
    "a label never trained": (
        with_validation(GOOD + "one,c\n"),
        "line 32 (row 31 of the validation data) has the label 'c'",
    ),
    "words where numbers were": (
        with_file("t.csv", "text,label\nx,0.5\ny,1.5\n"),
        "of the validation data) has the label 'b'; the training labels are numbers",
    ),
    "validation without a label column": (with_validation("text\none\n"), "the validation data has no column 'label'"),
    "validation of another column": (with_validation(GOOD.replace("text", "words")), "no column 'text'"),
    "too few to hold out": (
        lambda f: ["--train_file", write_csv(f / "t.csv", ["text", "label"], ["xa", "yb"])],
        "too few",
    ),
    "files that differ": (
        lambda f: ["--train_file", f / "good.csv", write_csv(f / "t.csv", ["text", "kind"], ["xa", "yb"])],
        "t.csv has the columns {'text': Value('string'), 'kind'",
    ),
    "a JSON line cut off": (
        with_file("t.jsonl", jsonl(*ROWS, '{"text": "x')),
        "t.jsonl: Unterminated string starting at: line 31",
    ),
    "JSON that is none": (with_file("t.json", "hello"), "t.json: Expecting value: line 1"),
    "JSON of a number": (with_file("t.json", "7"), "row 1 is not an object such as"),
    "JSON rows that are lists": (with_file("t.json", '[["x", "a"]]'), "t.json, row 1 is not an object"),
    "an empty JSON list": (with_file("t.json", "[]"), "t.json has no rows"),
    "JSON nested too deep": (with_file("t.json", "[" * 100_000), "t.json"),
    "half a character": (
        with_file("t.jsonl", jsonl(*ROWS, '{"text": "\\ud800", "label": "a"}')),
        "t.jsonl, line 31: text holds half of a character",
    ),
    "a JSON label missing": (
        with_file("t.jsonl", jsonl(*ROWS, {"text": "x"})),
        "t.jsonl, line 31 (row 31 of the train data) has no label",
    ),
    "a JSON label null": (with_file("t.jsonl", jsonl(*ROWS, {"text": "x", "label": None})), "row 31 of the train"),
    "a JSON label NaN": (
        lambda f: with_file("t.jsonl", jsonl({"text": "x", "label": 0.5}, '{"text": "x", "label": NaN}'))(f)[:2],
        "t.jsonl, line 2 (row 2 of the train data) has the label nan",
    ),
    "a JSON label too large": (
        lambda f: with_file("t.jsonl", jsonl({"text": "x", "label": 0.5}, {"text": "x", "label": 3.41e38}))(f)[:2],
        "(row 2 of the train data) has the label 3.41e+38, which is not a number from -1e18 to 1e18",
    ),
    "words for a model of numbers": (
        lambda f: [*with_model(a_number)(f)[:2], "--validation_file", f / "good.csv", "--num_train_epochs", 0],
        "of the validation data) has the label 'b', which is not a number from",
    ),
    "parquet that is none": (with_file("t.parquet", b"PAR1"), "t.parquet could not be read"),
    "parquet labels that are lists": (
        with_parquet({"text": ["x"], "label": [["a"]]}),
        "the labels of the validation data are not lists, as those of the training data are",
    ),
    "parquet texts that are lists": (with_parquet({"text": [["x"], ["y"]], "label": ["a", "b"]}), "text"),
    "parquets of which one has lists": (two_parquets, "2.parquet has the columns {'text': List(Value('string'))"),
    "a model without weights": (with_model(lambda model: (model / "model.safetensors").unlink()), "model"),
    "a model in a pickle": (with_model(make_pickle), "has its weights in a pickle, which could run code"),
    "a model's weights cut off": (with_model(lambda model: os.truncate(model / "model.safetensors", 500)), "model"),
    "a model's config broken": (with_model(lambda model: (model / "config.json").write_text("{")), "model"),
    "a model type unknown": (with_model(lambda m: (m / "config.json").write_text('{"model_type": "x"}')), "model"),
    "a head of other classes": (with_model(other_head), "--ignore_mismatched_sizes starts a new head"),
    "output in a file": (with_flags("--output_dir", __file__), "is a file, not a folder"),
    "a checkpoint that is not there": (with_flags("--resume_from_checkpoint", "nowhere"), "nowhere"),
    "a tracker that is not there": (with_flags("--with_tracking", "--report_to", "comet_ml"), "--report_to comet_ml"),
    "attention unknown": (with_flags("--attn_implementation", "quick"), "quick"),
}


def with_rows(*rows: dict, flags: tuple = ()) -> Callable[[Path], list]:
    """Flags that train on these rows, among thirty good ones whose labels are lists."""
    listed = [row | {"label": [row["label"]]} for row in ROWS]
    return lambda folder: with_file("t.jsonl", jsonl(*listed, *rows), *flags)(folder)[:2] + list(flags)


def with_folder(readme: str, **files: str) -> Callable[[Path], list]:
    """--dataset_name of a folder with these files."""

    def make(folder: Path) -> list:
        (folder / "data").mkdir()
        (folder / "data" / "README.md").write_text(readme)
        for name, text in files.items():
            (folder / "data" / name.replace("_", ".")).write_text(text)
        return ["--dataset_name", folder / "data"]

    return make


def saved_to_disk(folder: Path) -> list:
    Dataset.from_list(ROWS).save_to_disk(folder / "data")
    return ["--dataset_name", folder / "data"]


def lists_of(labels: list, count: int = 2) -> Callable[[Path], list]:
    """Labels that are lists of the numbers of `count` classes."""

    def make(folder: Path) -> list:
        names = Features({"text": Value("string"), "label": List(ClassLabel(names=list("nopq")[:count]))})
        rows = {"text": ["good"] * len(labels), "label": labels}
        Dataset.from_dict(rows, features=names).to_parquet(folder / "t.parquet")
        return ["--train_file", folder / "t.parquet"]

    return make


NO_ROWS = {"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}
WRONG |= {
    "JSON in a .csv": (with_file("t.csv", jsonl(*ROWS)), "t.csv holds JSON; let its name end in .json or .jsonl"),
    "a compressed .csv": (with_file("t.csv", gzip.compress(GOOD.encode())), "t.csv is compressed; unpack it first"),
    "columns of other rows": (
        with_file("t.json", json.dumps({"text": {"0": "x", "1": "y"}, "label": {"0": "a", "2": "b"}})),
        "its values look like columns, but not all have the same rows",
    ),
    "a null character in the header": (
        with_file("t.csv", "te\0xt,label\nx,a\n"),
        "t.csv: its header has a null character",
    ),
    "half a character in a list": (
        with_rows(dict(ROWS[0], label=["\ud800"])),
        "t.jsonl, line 31: label holds half of a character",
    ),
    "a column nested too deep": (
        with_file("t.jsonl", jsonl(*(row | {"x": json.loads("[" * 200 + "]" * 200)} for row in ROWS))),
        "t.jsonl: ",
    ),
    "a list of labels with null": (
        with_rows({"text": "x", "label": ["a", None]}),
        "line 31 (row 31 of the train data)",
    ),
    "lists of lists of labels": (
        with_file("t.jsonl", jsonl(*(row | {"label": [["a"]]} for row in ROWS))),
        "the labels of the train data are lists of List(Value('string'))",
    ),
    "0 or 1 for each class": (
        lambda f: with_file("t.jsonl", jsonl(*({"text": "x", "label": [1, n % 2, 0]} for n in range(30))))(f)[:2],
        "look like a 0 or 1 for each class; give the names",
    ),
    "lists to predict numbers from": (with_rows(flags=("--do_regression",)), "--do_regression: the labels are lists"),
    "no class -1 in a list": (lists_of([[0], [-1], [1, 0]] * 9), "has the label -1; its data set names 2 classes"),
    "a label longer than any number": (
        lambda f: [
            *with_file("t.csv", "text,label\n" + "x,0\ny,1\n" * 9)(f)[:2],
            *with_validation("text,label\nx," + "9" * 20 + "\n")(f)[2:],
        ],
        "has the label '99999999999999999999'",
    ),
    "all labels the same number": (
        lambda f: with_file("t.csv", "text,label\n" + "x,1.5\ny,1.5\n" * 9)(f)[:2],
        "the training data has only one class, '1.5'",
    ),
    "a data set that save_to_disk wrote": (saved_to_disk, "was written by save_to_disk"),
    "a README whose YAML is broken": (with_folder("---\nconfigs: [\n---\n", train_csv=GOOD), "could not be read"),
    "a data set by the name of a format": (lambda f: ["--dataset_name", "csv"], "is the name of a file format"),
    "a parquet without rows": (with_parquet(NO_ROWS), "t.parquet has no rows"),
    "a text column called label": (
        lambda f: [
            *with_file("t.csv", "label,cat\nx,a\ny,b\n")(f)[:2],
            "--label_column_name",
            "cat",
            "--text_column_names",
            "label",
        ],
        "rename the column 'label'",
    ),  # fmt: skip
    "a value that looks like a flag": (with_config("text_column_names: [text, --seed, 7]"), "text_column_names"),
    "digits of another script": (with_flags("--seed", "\u0663"), "takes a whole number"),
    "more steps than anybody waits for": (with_flags("--max_train_steps", "1e30".replace("e30", "0" * 30)), "at most"),
    "a folder in folders in folders": (with_flags("--output_dir", "x/" * 1500), "--output_dir"),
    "a name of 300 letters": (with_flags("--model_name_or_path", "m" * 300), "--model_name_or_path"),
    "best weights that are a folder": (
        lambda f: ((f / "used" / "best.safetensors").mkdir(parents=True), with_flags("--output_dir", f / "used")(f))[
            1
        ],
        "best.safetensors in it is not a file",
    ),
}


def outcome(flags: list, tiny_model: Path, capsys: pytest.CaptureFixture) -> tuple[Any, list[str]]:
    """The exit code (None after training to the end) and the lines on stderr that are the script's own."""
    fresh_accelerate()
    capsys.readouterr()
    code = None
    try:
        script.main(script.parse_args([str(flag) for flag in ["--model_name_or_path", tiny_model, *flags]]))
    except SystemExit as exit_:
        code = exit_.code
    return code, [line for line in capsys.readouterr().err.splitlines() if "run_glue_no_trainer.py: " in line]


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_ends_in_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text(GOOD)
    shutil.copytree(tiny_model, tmp_path / "tiny")
    make, named = WRONG[mistake]
    output = ["--output_dir", tmp_path / "out"]
    code, lines = outcome([*output, *make(tmp_path)], tiny_model, capsys)
    print(f"{mistake}: {lines}")
    assert code == 2, lines
    assert len(lines) == 1
    assert lines[0].startswith("run_glue_no_trainer.py: error: ")
    assert named in lines[0]
    assert not (tmp_path / "out").exists()


def test_there_are_enough_mistakes() -> None:
    assert len(WRONG) >= 60


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def test_nothing_in_a_pickle_is_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text(GOOD)
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    code, _ = outcome(["--model_name_or_path", "./model", "--train_file", "good.csv"], tiny_model, capsys)
    assert code == 2
    flags = ["--train_file", "good.csv", "--max_train_steps", 2, "--checkpointing_steps", 1, "--output_dir", "out"]
    assert outcome(flags, tiny_model, capsys)[0] is None
    states = tmp_path / "out" / "step_1" / "random_states_0.pkl"
    states.write_bytes(pickle.dumps(Bomb()))
    sums = json.loads((states.parent / "checksums.json").read_text())
    (states.parent / "checksums.json").write_text(json.dumps(sums | {states.name: checksum(states)}))
    outcome([*flags, "--resume_from_checkpoint", "out/step_1"], tiny_model, capsys)
    assert not (tmp_path / "ran").exists()


# --- any bytes

CELL = st.one_of(
    st.sampled_from(
        ["good", "bad", "a", "b", "0", "1", "-1", "0.5", "1e5", "NA", "null", "true", "", " ", "nan", "inf"]
    ),
    st.text(max_size=8),
)
CSV = st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=14)
VALUE = st.one_of(
    CELL, st.integers(-3, 3), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(CELL, max_size=2)
)
OBJECT = st.one_of(
    st.fixed_dictionaries({"text": VALUE, "label": VALUE}), st.dictionaries(st.sampled_from("ab"), VALUE)
)


def as_csv(rows: list, quoted: bool) -> bytes:
    cells = [['"' + cell.replace('"', '""') + '"' if quoted else cell for cell in row] for row in rows]
    return ("text,label\n" + "\n".join(",".join(row) for row in cells)).encode("utf-8", "surrogatepass")


FILES = st.one_of(
    st.tuples(st.just(".csv"), st.builds(as_csv, CSV, st.booleans())),
    st.tuples(st.just(".tsv"), st.builds(lambda rows: as_csv(rows, True).replace(b",", b"\t"), CSV)),
    st.tuples(st.just(".jsonl"), st.lists(OBJECT, max_size=12).map(lambda rows: jsonl(*rows).encode())),
    st.tuples(st.just(".json"), st.lists(OBJECT, max_size=12).map(lambda rows: json.dumps({"data": rows}).encode())),
    st.tuples(st.sampled_from([".csv", ".json", ".jsonl", ".parquet"]), st.binary(max_size=60)),
)
COUNTS = {"tried": 0, "refused": 0, "trained": 0}


@pytest.mark.slow
def test_any_file_is_either_trained_on_or_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """FUZZ_CASES says how many files are tried."""

    @settings(
        max_examples=int(os.environ.get("FUZZ_CASES", "2000")),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(FILES, st.binary(max_size=0) | st.sampled_from([b"\xef\xbb\xbf"]), st.randoms())
    def try_it(made: tuple[str, bytes], mark: bytes, pick: random.Random) -> None:
        suffix, content = made
        file = tmp_path / f"train{suffix}"
        file.write_bytes(mark + content)
        flags = ["--train_file", file, "--max_train_steps", 1, "--max_length", 8, "--per_device_train_batch_size", 2]
        flags += ["--validation_file", file] if pick.random() < 0.5 else []
        code, lines = outcome(flags, tiny_model, capsys)
        COUNTS["tried"] += 1
        COUNTS["trained" if code is None else "refused"] += 1
        if code is not None:
            assert len(lines) == 1
            assert code == 2 or (code == 1 and "the loss is inf" in lines[0])  # labels such as 1e300

    try_it()
    with capsys.disabled():
        print(f"\n{COUNTS}")
    assert min(COUNTS.values()) > 0
