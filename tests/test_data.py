"""GLUE and own files, labels, lengths, and the order of training rows."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from accelerate import PartialState
from conftest import ROOT, sentences, write_csv
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer, pipeline

import run_glue_no_trainer as script
from no_trainer.batches import GlobalBatchSampler, describe, tokenize
from no_trainer.files import parse_json
from no_trainer.glue import GLUE, Task
from no_trainer.labels import warn_of_labels
from no_trainer.tasks import find_text_columns, load_data


def load(train: Path, valid: Path | None = None, **changes: object) -> tuple:
    flags = ["--model_name_or_path", "m", "--train_file", str(train), "--validation_file", str(valid or train)]
    args = script.parse_args(flags)
    return load_data(Namespace(**(vars(args) | changes)))


def refused(capsys: pytest.CaptureFixture, train: Path, valid: Path | None = None) -> str:
    with pytest.raises(SystemExit) as exit_:
        load(train, valid)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "values", "labels", "metrics"),
    [
        (["yes", "no", "yes"], ["no", "yes"], ["no", "yes"], ["accuracy", "macro_f1", "f1"]),
        (["10", "9", "-1"], [-1, 9, 10], ["-1", "9", "10"], ["accuracy", "macro_f1"]),
        (["0.5", "2", "1e1"], None, None, ["mse", "pearson", "spearmanr"]),
        (["007", "7", "007"], ["007", "7"], ["007", "7"], ["accuracy", "macro_f1", "f1"]),
        (["+1", "-1", "+1"], ["+1", "-1"], ["+1", "-1"], ["accuracy", "macro_f1", "f1"]),
        (["true", "false", "true"], ["false", "true"], ["false", "true"], ["accuracy", "macro_f1", "f1"]),
        (["1", "b", "2.5"], ["1", "2.5", "b"], ["1", "2.5", "b"], ["accuracy", "macro_f1"]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_labels(tmp_path: Path, written: list, values: list, labels: list, metrics: list, kind: str) -> None:
    if kind == "csv":
        file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {i}", y) for i, y in enumerate(written)])
    else:
        file = tmp_path / "t.json"
        typed = [json.loads(y) if values is None or isinstance(values[0], int) else y for y in written]
        file.write_text("\n".join(json.dumps({"text": f"row {i}", "label": y}) for i, y in enumerate(typed)))
    splits, task = load(file)
    assert (task.values, task.labels, task.metrics) == (values, labels, metrics)
    assert splits["train"]["text"][:] == ["row 0", "row 1", "row 2"]


@pytest.mark.parametrize(("written", "read"), [([" 1", "2", "1 "], [1, 2, 1]), ([" 0.5", "2", "1"], [0.5, 2.0, 1.0])])
def test_a_number_may_have_a_space_beside_it(tmp_path: Path, written: list, read: list) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {i}", y) for i, y in enumerate(written)])
    assert load(file)[0]["train"]["label"][:] == read


def test_json_booleans_are_classes(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps([{"text": "a", "label": True}, {"text": "b", "label": False}]))
    assert load(file)[1].labels == ["false", "true"]


def test_csv_text_stays_text(tmp_path: Path) -> None:
    texts = ["NA", "null", "007", "1e5", "", 'a, "quoted"\nline', "2020-01-01"]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(text, i % 2) for i, text in enumerate(texts)])
    file.write_text("\ufeff" + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert load(file)[0]["train"]["text"][:] == texts


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["id", "sentence2", "label", "sentence1"], ["sentence1", "sentence2"]),
        (["question", "label", "answer", "note"], ["question", "answer"]),
        (["label", "text"], ["text"]),
    ],
)
def test_text_columns(columns: list[str], chosen: list[str]) -> None:
    assert find_text_columns(columns) == chosen


def test_numbers_as_text_in_json_become_text(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text('{"text": 7, "label": "a"}\n{"text": 8, "label": "b"}\n')
    assert load(file)[0]["train"]["text"][:] == ["7", "8"]


@pytest.mark.parametrize(
    ("train", "valid", "named"),
    [
        ("text,label\na,1\nb,1\n", None, "only one class, '1'"),
        ("text,kind\na,1\n", None, "the train data has no column 'label'; its columns are text, kind"),
        ("label\n1\n2\n", None, "no column of text"),
        ("text,label\n", None, "t.csv has no rows"),
        ("", None, "t.csv has no rows"),
        ("text,label\na,x\nb,\n", None, "row 2 of the train data has no label"),
        ("text,label\na,x\nb,y\n", "text,label\na,x\nb,z\n", "row 2 of the validation data has the label 'z'"),
        ("text,label\na,1\nb,2\n", "text,label\na,one\n", "the label 'one'; the training labels are whole numbers"),
        ("text,label\na,x\nb,y\n", "", "v.csv has no rows"),
        ("text,label\na,x\nb,y\n", "words,label\na,x\n", "the validation data has no column 'text'"),
    ],
)
def test_unusable_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, train: str, valid: str | None, named: str
) -> None:
    (tmp_path / "t.csv").write_text(train)
    (tmp_path / "v.csv").write_text(valid if valid is not None else train)
    assert named in refused(capsys, tmp_path / "t.csv", tmp_path / "v.csv")


def test_max_samples_take_the_first_rows(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {i}", i % 2) for i in range(9)])
    splits, _ = load(file, max_train_samples=4, max_eval_samples=100)
    assert splits["train"]["text"][:] == ["row 0", "row 1", "row 2", "row 3"]
    assert len(splits["validation"]) == 9


@pytest.mark.parametrize("task", GLUE)
def test_glue_from_a_local_folder(tmp_path: Path, task: str) -> None:
    """The layout and schema of nyu-mll/glue, with unlabelled test rows, for all nine tasks."""
    names = {"mnli": ["entailment", "neutral", "contradiction"]}.get(task, ["no", "yes"])
    label = Value("float32") if task == "stsb" else ClassLabel(names=names)
    columns = GLUE[task]
    features = Features({column: Value("string") for column in columns} | {"label": label, "idx": Value("int32")})
    validation = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    (tmp_path / task).mkdir()
    yaml = f"---\nconfigs:\n- config_name: {task}\n  data_files:\n"
    for split in ["train", *validation, "test"]:
        rows = {column: ["a", "b", "c"] for column in columns}
        rows |= {"label": [-1] * 3 if split == "test" else [0, 1, 0], "idx": [0, 1, 2]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / task / f"{split}-00000-of-00001.parquet")
        yaml += f"  - split: {split}\n    path: {task}/{split}-*\n"
    (tmp_path / "README.md").write_text(yaml + "---\n")
    flags = ["--model_name_or_path", "m", "--task_name", task, "--dataset_name", str(tmp_path)]
    splits, found = load_data(script.parse_args(flags))
    assert list(splits) == ["train", *validation]
    assert found.labels == (None if task == "stsb" else names)
    assert found.text_columns == columns


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["--model_name_or_path", "m", "--task_name", "rte", "--dataset_name", str(tmp_path / "nowhere")]
    with pytest.raises(SystemExit):
        load_data(script.parse_args(args))
    assert "nowhere could not be read" in capsys.readouterr().err


def tokens(tiny_model: Path, texts: list[str], *, pair: bool = False, max_length: int = 8) -> Dataset:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    columns = ["a", "b"] if pair else ["a"]
    data = Dataset.from_dict(dict.fromkeys(columns, texts) | {"label": ["y", "n"] * (len(texts) // 2)})
    task = Task(["accuracy"], columns, ["y", "n"], ["y", "n"], max_length=max_length)
    encode = script.make_encode(tokenizer, task)
    return tokenize({"train": data}, encode, tokenizer, max_length)["train"]


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


# --- five kinds of own data, to the pipeline's answer


def shards(folder: Path, rows: list[dict]) -> list:
    (folder / "shards").mkdir()
    for number in range(3):
        text = "\n".join(json.dumps(row) for row in rows[number::3])
        (folder / "shards" / f"{number}.jsonl").write_text("\ufeff" * (number == 1) + text + "\n\n", encoding="utf-8")
    return ["--train_file", folder / "shards" / "*.jsonl"]


def pairs(folder: Path, rows: list[dict]) -> list:
    written = [(row["text"], 'x, "y"\nz', row["label"]) for row in rows]
    file = write_csv(folder / "t.csv", ["sentence1", "sentence2", "label"], written)
    file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    return ["--train_file", file]


def tsv(folder: Path, rows: list[dict]) -> list:
    (folder / "t.tsv").write_text("label\ttext\n" + "".join(f"{row['label']}\t{row['text']}\n" for row in rows))
    return ["--train_file", folder / "t.tsv"]


def other_names(folder: Path, rows: list[dict]) -> list:
    made = {"data": [{"id": 7, "body": row["text"], "verdict": row["label"]} for row in rows]}
    (folder / "t.json").write_text(json.dumps(made))
    return ["--train_file", folder / "t.json", "--text_column_names", "body", "--label_column_name", "verdict"]


def parquet(folder: Path, rows: list[dict]) -> list:
    scores = [row | {"label": 4.0 * (row["label"] == "positive") + 0.5} for row in rows]
    Dataset.from_list(scores).to_parquet(folder / "t.parquet")
    return ["--train_file", folder / "t.parquet", "--learning_rate", 1e-2, "--num_train_epochs", 16]


@pytest.mark.parametrize("kind", [pairs, tsv, other_names, parquet, shards])
def test_own_data_from_file_to_answer(run: Callable, tmp_path: Path, kind: Callable) -> None:
    rows = [{"text": text, "label": ("negative", "positive")[label]} for text, label in sentences(81)]
    flags = ["--learning_rate", 3e-3, "--num_train_epochs", 6, *kind(tmp_path, rows), "--output_dir", tmp_path / "out"]
    results = run(*flags)
    ask = pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    if kind is parquet:
        assert results["eval_pearson"] > 0.9
        assert ask("good " * 5)[0]["score"] > ask("awful " * 5)[0]["score"] + 1.5
        return
    assert results["eval_accuracy"] == 1.0
    question = {"text": "good nice great", "text_pair": 'x, "y"\nz'} if kind is pairs else "good nice great"
    answer = ask(question)
    assert (answer[0] if isinstance(answer, list) else answer)["label"] == "positive"


def test_a_data_set_with_other_validation_splits_keeps_all_of_its_training_rows(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    rows = {"text": [text for text, _ in sentences(20)], "label": ["ab"[label] for _, label in sentences(20)]}
    names = ("train", "validation_matched", "validation_mismatched")
    for name in names:
        Dataset.from_dict(rows).to_parquet(folder / f"{name}.parquet")
    splits = "".join(f"  - split: {name}\n    path: {name}.parquet\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    results = run("--dataset_name", folder, "--max_train_steps", 1)
    assert {"eval_accuracy", "eval_accuracy_mm"} <= results.keys()
    assert "held out" not in capsys.readouterr().out


def test_a_task_without_validation_rows_holds_some_out(
    run: Callable, made_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "glue").mkdir()
    (file,) = (made_glue / "rte").glob("train*")
    shutil.copy(file, tmp_path / "glue" / "train.parquet")
    configs = "- config_name: rte\n  data_files:\n  - split: train\n    path: train.parquet\n"
    (tmp_path / "glue" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    results = run("--dataset_name", tmp_path / "glue", "--task_name", "rte", "--max_train_steps", 1)
    assert "eval_accuracy" in results
    assert "rows of 12 are held out" in capsys.readouterr().out


def test_a_tenth_is_held_out_by_label(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """90 rows of one class, 20 of another and one alone: 9 and 2 are held out, whatever the order of the file."""
    rows = [(f"row {i}", "often" if i % 11 < 9 else "rare") for i in range(110)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [*rows, ("row 110", "alone")])
    splits, _ = load_data(script.parse_args(["--model_name_or_path", "m", "--train_file", str(file)]))
    assert Counter(splits["validation"]["label"]) == {"often": 9, "rare": 2}
    texts = [*splits["train"]["text"], *splits["validation"]["text"]]
    assert sorted(texts) == sorted(f"row {i}" for i in range(111))
    out = capsys.readouterr().out
    assert "no validation data is given: 11 rows of 111 are held out, stratified by label" in out
    assert "warning: fewer than ten rows of the training data have the label alone" in out
    again, _ = load_data(script.parse_args(["--model_name_or_path", "m", "--train_file", str(file)]))
    assert again["validation"]["text"][:] == splits["validation"]["text"][:]


def test_empty_texts_are_kept_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("", "a"), ("x", "b"), ("", "b")])
    assert load(file)[0]["train"]["text"][:] == ["", "x", ""]
    assert "warning: 2 of 3 rows of the train data have an empty text" in capsys.readouterr().out


def test_json_text_stays_text(tmp_path: Path) -> None:
    texts = ["2020-01-01", "007", "1e5", "null", "NA", "true", "2009-06-15T13:45:30"]
    file = tmp_path / "t.json"
    file.write_text(json.dumps([{"text": text, "label": str(i % 2)} for i, text in enumerate(texts)]))
    splits, task = load(file)
    assert splits["train"]["text"][:] == texts
    assert task.values == ["0", "1"]


def test_a_file_that_is_changed_is_read_again(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("old", "a"), ("old", "b")])
    assert load(file)[0]["train"]["text"][:] == ["old", "old"]
    file.write_text(file.read_text().replace("old", "new"))
    assert load(file)[0]["train"]["text"][:] == ["new", "new"]


def test_a_data_set_of_the_hubs_layout_with_other_columns(tmp_path: Path) -> None:
    features = Features({"review": Value("string"), "stars": ClassLabel(names=["bad", "good"])})
    for split in ("train", "test"):
        data = Dataset.from_dict({"review": ["a", "b"] * 10, "stars": [0, 1] * 10}, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    flags = ["--model_name_or_path", "m", "--dataset_name", str(tmp_path), "--label_column_name", "stars"]
    splits, task = load_data(script.parse_args(flags))
    assert {name: len(data) for name, data in splits.items()} == {"train": 18, "validation": 2}
    assert (task.labels, task.text_columns) == (["bad", "good"], ["review"])
    predict = [*flags, "--do_predict", "--output_dir", str(tmp_path / "out")]
    assert load_data(script.parse_args(predict))[0]["test"].column_names == ["review"]


def test_a_class_may_be_missing_from_validation(run: Callable, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {i}", "abc"[i % 3]) for i in range(30)])
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], [("row", "a"), ("row", "c")])
    assert 0 <= run("--train_file", train, "--validation_file", valid, "--max_train_steps", 1)["eval_macro_f1"] <= 1


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


@pytest.mark.parametrize(
    ("columns", "read"),
    [
        (["text", "label"], ["text"]),
        (["sentence2", "x", "sentence1"], ["sentence1", "sentence2"]),
        (["id", "question", "label", "answer"], ["question", "answer"]),
        (["Index", "label", "text"], ["text"]),
        (["text", "label", "label_text"], ["text"]),
        (["Unnamed: 0", "label", "text", "__index_level_0__"], ["text"]),
    ],
)
def test_the_columns_of_text(columns: list[str], read: list[str], capsys: pytest.CaptureFixture) -> None:
    assert find_text_columns(columns) == read
    assert not capsys.readouterr().out


def test_more_than_two_columns_of_text_are_named(capsys: pytest.CaptureFixture) -> None:
    PartialState()
    assert find_text_columns(["a", "b", "label", "c"]) == ["a", "b"]
    assert "of the columns a, b, c the first two are read; --text_column_names names others" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b"], ""),
        (["bug", "Bug", "b"], "some labels differ only in capitals or spaces, such as those of 'bug'"),
        (["bug", " bug", "b"], "some labels differ only in capitals or spaces, such as those of 'bug'"),
        (["1,5", "2,0"], "the labels look like numbers; with a decimal point"),
        ([str(stars) for stars in range(9)], "whole numbers are classes; with a decimal point"),
        ([str(stars) for stars in range(5)], ""),
    ],
)
def test_labels_that_are_often_a_mistake(labels: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    warn_of_labels(Counter(labels * 10))
    out = capsys.readouterr().out
    assert said in out
    assert bool(out) == bool(said)


def test_text_columns_with_a_comma_or_a_space() -> None:
    flags = ["--model_name_or_path", "m", "--train_file", str(ROOT / "configs" / "quickstart" / "train.csv")]
    for written in (["a,b"], ["a", "b"], ["a, b"]):
        assert script.parse_args([*flags, "--text_column_names", *written]).text_column_names == ["a", "b"]


def test_the_columns_that_pandas_adds_are_no_text(tmp_path: Path) -> None:
    """`to_csv` and, after a shuffle, `to_parquet` write the index."""
    rows = pandas.DataFrame({"text": ["x", "y", "z"], "label": ["a", "b", "a"]}).sample(frac=1, random_state=0)
    rows.to_csv(tmp_path / "t.csv")
    rows.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        splits, task = load(tmp_path / name)
        assert task.text_columns == ["text"]
        assert splits["train"]["text"][:] == list(rows["text"])


def labelled_parquet(file: Path, names: list[str], labels: list[str]) -> Path:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = {"text": [f"row {i}" for i in range(len(labels))], "label": [names.index(label) for label in labels]}
    Dataset.from_dict(rows, features=features).to_parquet(file)
    return file


def test_the_numbers_of_a_class_label_are_read_with_the_names_of_their_own_split(tmp_path: Path) -> None:
    train = labelled_parquet(tmp_path / "t.parquet", ["bad", "good", "meh"], ["good", "bad", "meh"])
    words = write_csv(tmp_path / "w.csv", ["text", "label"], [("row 0", "meh"), ("row 1", "good")])
    for valid in (labelled_parquet(tmp_path / "v.parquet", ["good", "meh"], ["meh", "good"]), words):
        splits, task = load(train, valid)
        assert (task.values, splits["validation"]["label"][:]) == (["bad", "good", "meh"], ["meh", "good"])
    own = write_csv(tmp_path / "u.csv", ["text", "label"], [("x", "good"), ("y", "meh")])
    splits, _ = load(own, tmp_path / "v.parquet")
    assert splits["validation"]["label"][:] == ["meh", "good"]


def test_a_trained_model_reads_a_class_label_by_its_names(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--learning_rate", 3e-3, "--num_train_epochs", 6, "--output_dir", tmp_path / "out")
    labels = [("negative", "positive")[label] for _, label in sentences(23, seed=1)]
    file = labelled_parquet(tmp_path / "v.parquet", ["positive", "negative"], labels)
    Dataset.from_parquet(str(file)).remove_columns("text").add_column(
        "text", [text for text, _ in sentences(23, seed=1)]
    ).to_parquet(file)
    flags = ["--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0, "--validation_file", file]
    assert run(*flags)["eval_accuracy"] == 1.0


def test_a_cache_that_cannot_be_written_is_named(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"own {row}", "ab"[row % 2]) for row in range(30)])
    with monkeypatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", file / "cache")  # a file is no folder
        assert "HF_HOME names a folder for it" in refused(capsys, file)


def test_the_first_rows_of_a_sorted_file_have_but_one_class(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {row}", "ab"[row > 20]) for row in range(40)])
    load(file, max_train_samples=10)
    assert "the rows that --max_train_samples leaves are of one class" in capsys.readouterr().out
    load(file, max_train_samples=30)
    assert "of one class" not in capsys.readouterr().out


def test_files_may_differ_in_columns_that_nobody_reads(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "x", "label": "a", "meta": 1}\n{"text": "y", "label": "b", "meta": 2}\n'
    )
    (tmp_path / "b.jsonl").write_text('{"label": "a", "text": "z"}\n')
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    splits, _ = load(tmp_path / "a.jsonl", train_file=files, text_column_names=["text"])
    assert splits["train"]["text"][:] == ["x", "y", "z"]
    with pytest.raises(SystemExit):
        load(tmp_path / "a.jsonl", train_file=files)
    assert "; --text_column_names says which are needed" in capsys.readouterr().err


def test_an_edited_parser_reads_anew(tiny_model: Path, tmp_path: Path) -> None:
    """Of a file that is in the cache already."""
    shutil.copy(ROOT / "run_glue_no_trainer.py", tmp_path)
    shutil.copytree(ROOT / "no_trainer", tmp_path / "no_trainer")
    parser = tmp_path / "no_trainer" / "files.py"
    parser.write_text(parser.read_text().replace("column.append(cell)", "column.append(cell.upper())"))
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(text, "ab"[label]) for text, label in sentences(40)])
    flags = ["--model_name_or_path", tiny_model, "--train_file", file, "--max_train_steps", 1]
    for folder, labels in ((ROOT, "a 5"), (tmp_path, "A 5")):
        command = [sys.executable, folder / "run_glue_no_trainer.py", *flags]
        ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert f"train       {labels}" in ended.stdout, ended.stdout + ended.stderr


def test_json_of_one_row_may_have_a_column_called_data(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"data": "x", "label": "a"}\n')
    assert parse_json(str(tmp_path / "t.jsonl")).column_names == ["data", "label"]
