"""Several classes at once: labels that are lists, from the file to the pipeline's answer."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TORCHRUN, launch, load, log_lines, refused, sentences, table, without_dropout, write_csv
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.metrics import f1_score
from transformers import BertConfig, BertForSequenceClassification, pipeline

WORDS = {"good": "praise", "bad": "blame", "fine": "calm"}
SUBSETS = [chosen for size in range(4) for chosen in itertools.combinations(WORDS, size)]


def rows(sets: list[tuple], times: int) -> list[dict]:
    """Three words are there or not, each with a class of its own."""
    return [
        {"text": " ".join(w if w in chosen else "x" for w in WORDS), "label": [WORDS[w] for w in chosen]}
        for chosen in sets
    ] * times


def write(file: Path, data: list[dict]) -> Path:
    if file.suffix == ".parquet":
        Dataset.from_list(data, Features(text=Value("string"), label=List(Value("string")))).to_parquet(file)
    else:
        file.write_text("\n".join(map(json.dumps, data)))
    return file


@pytest.fixture
def files(tmp_path: Path) -> list:
    """Training never sees all three together."""
    train = write(tmp_path / "train.jsonl", rows(SUBSETS[:-1], 20))
    return ["--train_file", train, "--validation_file", write(tmp_path / "valid.jsonl", rows(SUBSETS, 2))]


@pytest.fixture
def no_dropout(tiny_model: Path, tmp_path: Path) -> Path:
    return without_dropout(tiny_model, tmp_path / "no_dropout")


@pytest.mark.parametrize("epochs", [1, 40])
def test_from_lists_to_answers(
    run: Callable, files: list, no_dropout: Path, tmp_path: Path, epochs: int, capsys: pytest.CaptureFixture
) -> None:
    flags = [*files, "--do_predict", "--test_file", files[3], "--learning_rate", 3e-3, "--num_train_epochs", epochs]
    results = run(*flags, "--model_name_or_path", no_dropout, "--output_dir", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert set(config["label2id"]) == set(WORDS.values())

    classify = pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    predicted = table(tmp_path / "out" / "predict_results.csv")
    true, said = [], []
    for line, written in zip(rows(SUBSETS, 2), predicted, strict=True):
        answers = {answer["label"]: answer["score"] for answer in classify([line["text"]])[0]}
        assert {name: float(written[f"probability_{name}"]) for name in answers} == pytest.approx(answers, abs=1e-4)
        chosen = {name for name in answers if answers[name] > 0.5}
        assert set(written["prediction"].split("|")) - {""} == chosen
        assert set(written["label"].split("|")) - {""} == set(line["label"])
        assert epochs == 1 or chosen == set(line["label"]) or len(line["label"]) == 3
        true.append([name in line["label"] for name in config["label2id"]])
        said.append([name in chosen for name in config["label2id"]])
    true, said = np.array(true), np.array(said)
    for metric, value in {
        "micro_f1": f1_score(true, said, average="micro", zero_division=0),
        "macro_f1": f1_score(true, said, average="macro", zero_division=0),
        "exact_match": (true == said).all(1).mean(),
    }.items():
        assert results[f"eval_{metric}"] == results[f"test_{metric}"] == pytest.approx(value), metric
    for index, name in enumerate(config["label2id"]):
        one = results["eval_per_class"][name]
        assert one["f1"] == pytest.approx(f1_score(true[:, index], said[:, index], zero_division=0))
        assert one["support"] == true[:, index].sum()
    assert "eval_confusion_matrix" not in results
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A class is predicted if its probability is above 0.5." in card
    assert "top_k=None" in card
    if epochs > 1:
        assert sum(answers.values()) > 1.5  # of the last row: no softmax over the classes
        assert results["eval_micro_f1"] > results["baseline_micro_f1"]
    assert "praise 42.9%" in capsys.readouterr().out  # each class's share: together more than all


def test_the_loss_is_binary_cross_entropy(run: Callable, files: list, no_dropout: Path, tmp_path: Path) -> None:
    """At a learning rate of 0 the logged loss is that of the untrained head: near ln 2 for each class."""
    run(
        *files,
        "--model_name_or_path",
        no_dropout,
        "--learning_rate",
        0,
        "--max_train_steps",
        2,
        "--output_dir",
        tmp_path,
    )
    assert log_lines(tmp_path)[0]["loss"] == pytest.approx(math.log(2), abs=0.02)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "ClassLabel", "numbers"])
def test_lists_of_every_kind_are_the_same_task(tmp_path: Path, kind: str) -> None:
    data = rows(SUBSETS[1:], 3)
    names = sorted(WORDS.values())
    if kind in ("jsonl", "parquet"):
        splits, task = load(write(tmp_path / f"t.{kind}", data))
    else:
        feature = ClassLabel(names=names) if kind == "ClassLabel" else Value("int64")
        numbered = [row | {"label": [names.index(name) for name in row["label"]]} for row in data]
        features = Features(text=Value("string"), label=List(feature))
        Dataset.from_list(numbered, features).to_parquet(tmp_path / "t.parquet")
        splits, task = load(tmp_path / "t.parquet")
    labels = names if kind != "numbers" else ["0", "1", "2"]
    assert (task.labels, task.several) == (labels, True)
    spelled = [[name if kind != "numbers" else str(names.index(name)) for name in row["label"]] for row in data]
    assert splits["train"]["label"][:] == spelled
    assert load(tmp_path / next(tmp_path.glob("t.*")).name, validation_file=None)[0].keys() == {"train", "validation"}


def test_a_trained_model_is_evaluated_and_predicts_alone(
    run: Callable, files: list, no_dropout: Path, tmp_path: Path
) -> None:
    flags = [*files, "--model_name_or_path", no_dropout, "--learning_rate", 3e-3, "--num_train_epochs", 10]
    results = run(*flags, "--output_dir", tmp_path / "out")
    alone = ["--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0, *files[2:], "--do_predict"]
    again = run(*alone, "--test_file", files[3], "--output_dir", tmp_path / "again")
    for name in ("eval_loss", "eval_micro_f1", "eval_exact_match"):
        assert again[name] == pytest.approx(results[name], abs=1e-6)
    shares = [
        float(value) for name, value in table(tmp_path / "again" / "predict_results.csv")[-1].items() if "_" in name
    ]
    assert len(shares) == 3


def test_resuming_ends_in_the_same_bytes(run: Callable, files: list, tmp_path: Path) -> None:
    flags = [*files, "--max_train_steps", 30, "--learning_rate", 1e-3, "--checkpointing_steps", 13]
    run(*flags, "--output_dir", tmp_path / "whole")
    resumed = ["--resume_from_checkpoint", tmp_path / "whole" / "step_13", "--output_dir", tmp_path / "resumed"]
    run(*flags, *resumed)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert one == two


def test_lists_need_classes_that_were_trained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = write(tmp_path / "t.jsonl", rows(SUBSETS[1:], 2))
    valid = write(tmp_path / "v.jsonl", [{"text": "x", "label": []}, {"text": "y", "label": ["praise", "fear"]}])
    with pytest.raises(SystemExit):
        load(train, valid)
    assert "v.jsonl, line 2 (row 2 of the validation data) has the label 'fear'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_score_as_one(files: list, no_dropout: Path, tmp_path: Path) -> None:
    flags = [*files, "--model_name_or_path", no_dropout, "--max_train_steps", 20, "--learning_rate", 3e-3]
    one = launch(*flags, "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "one")
    two = launch(*flags, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "two", launcher=TORCHRUN)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    first, second = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("one", "two"))
    for name in ("eval_loss", "eval_micro_f1", "eval_macro_f1", "eval_exact_match", "baseline_micro_f1"):
        assert second[name] == pytest.approx(first[name], abs=1e-5), name
    assert first["eval_per_class"] == second["eval_per_class"]


def test_large_lists_are_lists(tmp_path: Path) -> None:
    """As polars writes them."""
    texts = [text for text, _ in sentences(40)]
    labels = pa.array([["a"], ["b", "a"], [], ["b"]] * 10, pa.large_list(pa.large_string()))
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet")[1].labels == ["a", "b"]


def test_a_word_is_not_taken_for_the_list_of_its_letters(
    run: Callable, files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A test row with a word as its label, where the model knows a class of each letter."""
    train = write(tmp_path / "t.jsonl", [{"text": f"good {n}", "label": ["ab"[n % 2]]} for n in range(40)])
    test = write(tmp_path / "test.jsonl", [{"text": "good", "label": "ab"}] * 3)
    flags = ["--max_train_steps", 1, "--do_predict", "--test_file", test, "--output_dir", tmp_path / "out"]
    results = run("--train_file", train, *flags)
    assert not [name for name in results if name.startswith("test_")]
    assert "the test data is not scored" in capsys.readouterr().out


@pytest.mark.parametrize(
    "labels", [[[0, 1], [1, 0]], [[True, False, True], [False, True, True]], [[0.1, 0.9], [0.8, 0.2]]]
)
def test_a_flag_for_each_class_is_no_list_of_classes(
    tmp_path: Path, labels: list, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"text": f"row {number}", "label": labels[number % 2]} for number in range(40)]
    with pytest.raises(SystemExit):
        load(write(tmp_path / "t.jsonl", rows))
    assert "look like a 0 or 1 for each class; give the names" in capsys.readouterr().err


@pytest.mark.parametrize("valid", [[0], [0, 1]])
def test_validation_rows_may_all_have_the_same_classes(tmp_path: Path, valid: list) -> None:
    rows = [{"text": f"row {number}", "label": [[0], [1, 2], [0, 1, 2]][number % 3]} for number in range(40)]
    file = write(tmp_path / "v.jsonl", [{"text": "row", "label": valid}] * 4)
    assert load(write(tmp_path / "t.jsonl", rows), file)[1].labels == ["0", "1", "2"]


def test_lists_of_what_is_no_label_are_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for labels in ([[math.nan], [1.0]], [[math.inf], [1.0]]):
        table = pa.table({"text": [f"row {n}" for n in range(40)], "label": [labels[n % 2] for n in range(40)]})
        pq.write_table(table, tmp_path / "t.parquet")
        with pytest.raises(SystemExit):
            load(tmp_path / "t.parquet")
        assert "give the names of a row's classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trained", "label", "said"),
    [
        ("lists", "b", "words or numbers; the model takes lists"),
        ("words", ["b"], "lists; the model takes one for each row"),
    ],
)
def test_a_trained_model_is_not_evaluated_on_the_other_kind(
    run: Callable, tmp_path: Path, trained: str, label: Any, said: str, capsys: pytest.CaptureFixture
) -> None:
    """A word would be found in other words: `toxic` in `severe_toxic`."""
    rows = [{"text": f"good {n}", "label": ["ab"[n % 2]] if trained == "lists" else "ab"[n % 2]} for n in range(40)]
    run("--train_file", write(tmp_path / "t.jsonl", rows), "--max_train_steps", 1, "--output_dir", tmp_path / "out")
    valid = write(tmp_path / "v.jsonl", [{"text": "good", "label": label}] * 3)
    flags = ["--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0, "--validation_file", valid]
    with pytest.raises(SystemExit) as exit_:
        run(*flags)
    assert exit_.value.code == 2
    assert f"the labels of the validation data are {said}" in capsys.readouterr().err


@pytest.mark.parametrize(("labels", "said"), [(["spam"], "have one class only, 'spam'"), ([], "is empty")])
def test_one_class_in_all_is_refused(
    run: Callable, tmp_path: Path, labels: list, said: str, capsys: pytest.CaptureFixture
) -> None:
    """scikit-learn would score its absence."""
    made = [{"text": text, "label": labels * label} for text, label in sentences(20)]
    with pytest.raises(SystemExit) as exit_:
        run("--train_file", write(tmp_path / "t.jsonl", made))
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_one_class_of_a_models_several_is_enough(run: Callable, files: list, tmp_path: Path) -> None:
    run(*files, "--max_train_steps", 1, "--output_dir", tmp_path / "out")
    made = write(tmp_path / "t.jsonl", [{"text": text, "label": ["calm"] * label} for text, label in sentences(20)])
    flags = ["--model_name_or_path", tmp_path / "out", "--train_file", made]
    assert set(run(*flags, "--max_train_steps", 1)["eval_per_class"]) == set(WORDS.values())


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_word_in_a_list_is_no_class(tmp_path: Path, blank: str, capsys: pytest.CaptureFixture) -> None:
    made = [{"text": f"row {row}", "label": ["x", "y"] if row else ["x", blank]} for row in range(20)]
    assert "line 1 (row 1 of the train data) has no label" in refused(capsys, write(tmp_path / "t.jsonl", made))


def test_a_saved_model_that_predicts_something_else_is_refused(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write_csv(tmp_path / "t.csv", ["text"], [["good"], ["bad"]])
    for kind, outputs, said in (
        ("multi_label_classification", 1, "the model has one class, which a row may have or not"),
        ("regression", 3, "the model predicts 3 numbers for each row"),
    ):
        folder = tmp_path / kind
        shutil.copytree(tiny_model, folder)
        config = BertConfig.from_pretrained(tiny_model, num_labels=outputs, problem_type=kind)
        BertForSequenceClassification(config).save_pretrained(folder)
        flags = ["--model_name_or_path", folder, "--num_train_epochs", 0, "--do_predict", "--test_file", file]
        with pytest.raises(SystemExit) as exit_:
            run(*flags, "--output_dir", tmp_path / "out")
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err
        valid = write_csv(tmp_path / "v.csv", ["text", "label"], [(text, "ab"[y]) for text, y in sentences(20)])
        with pytest.raises(SystemExit):
            run(*flags[:4], "--train_file", valid, "--validation_file", valid)
        assert said in capsys.readouterr().err


def test_the_first_rows_of_sorted_lists_lack_a_class(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = [{"text": f"row {row}", "label": [["x"], ["x", "y"], ["z", "y"]][row // 10]} for row in range(30)]
    load(write(tmp_path / "t.jsonl", made), max_train_samples=20)
    assert "--max_train_samples leaves no row of z in the train data" in capsys.readouterr().out


def test_lists_of_one_class_each_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = [{"text": text, "label": ["ab"[label]]} for text, label in sentences(20)]
    load(write(tmp_path / "t.jsonl", made))
    assert "warning: every row has a list of one class; to predict exactly one" in capsys.readouterr().out


def test_a_column_for_each_class_is_no_list(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "toxic", "insult"], [(text, y, 1 - y) for text, y in sentences(20)])
    with pytest.raises(SystemExit):
        load(file, label_column_name="toxic,insult")
    assert "takes one column; for several classes a row, it has lists of their names" in capsys.readouterr().err
