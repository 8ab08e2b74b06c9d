"""The names of classes: those of the data beside those of a model, numbers that stand for them, and what is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from conftest import load, sentences, table, write_csv
from datasets import Dataset

from no_trainer.classes import in_models_order, match_labels, numbers_in_names
from no_trainer.glue import METRICS, Task

STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
NLI = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]


def config(names: list[str]) -> SimpleNamespace:
    return SimpleNamespace(id2label=dict(enumerate(names)))


def classes(values: list, kind: str = "classes") -> Task:
    return Task(METRICS[kind], ["text"], values, list(map(str, values)), list(map(str, values)))


@pytest.fixture(autouse=True)
def speaking() -> None:
    PartialState()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (STARS, [1, 2, 3, 4, 5]),
        (["0", "1"], [0, 1]),
        (["very bad (-2)", "good (2)"], [-2, 2]),
        (["LABEL_0", "LABEL_1"], []),
        (["top 10 of 100", "2"], []),
        (["1 a", "1 b"], []),
        (NLI, []),
    ],
)
def test_numbers_in_names(names: list[str], found: list[int]) -> None:
    assert numbers_in_names(names) == found


@pytest.mark.parametrize(
    ("names", "labels", "values", "said"),
    [
        (STARS, [1, 2, 4], [1, 2, 3, 4, 5], "by the numbers in their names: 1 is 1 star, 2 is 2 stars"),
        (STARS, [0, 1, 2], [0, 1, 2, 3, 4], "in the model's order: 0 is 1 star, 1 is 2 stars"),
        (NLI, [0, 1, 2], [0, 1, 2], "in the model's order: 0 is CONTRADICTION, 1 is NEUTRAL, 2 is ENTAILMENT"),
        (["0", "1"], [0, 1], [0, 1], ""),
        (["9", "7"], [7, 9], [9, 7], ""),
    ],
)
def test_numbers_for_a_models_classes_are_told(
    names: list, labels: list, values: list, said: str, capsys: pytest.CaptureFixture
) -> None:
    assert match_labels(names, Dataset.from_dict({"label": labels})) == values
    out = capsys.readouterr().out
    assert said in out
    assert bool(said) == bool(out)


def test_training_goes_on_with_the_numbers_in_a_models_names(capsys: pytest.CaptureFixture) -> None:
    task = in_models_order(classes([1, 2, 3, 4]), config(STARS))
    assert (task.labels, task.values) == (STARS, [1, 2, 3, 4, "5 stars"])
    assert "the model also knows the class 5 stars, of which the data has no row" in capsys.readouterr().out


def test_two_of_a_models_three_classes_keep_its_head(capsys: pytest.CaptureFixture) -> None:
    task = in_models_order(classes(["contradiction", "entailment"], "two classes"), config(NLI))
    assert task.labels == NLI
    assert task.values == ["contradiction", "NEUTRAL", "entailment"]
    assert task.metrics == METRICS["classes"]  # the third may be answered: there is no F1 of `the` second class
    assert "the model also knows the class NEUTRAL, of which the data has no row" in capsys.readouterr().out
    asked = in_models_order(classes(["contradiction", "entailment"]), config(NLI), new_head=True)
    assert asked.labels == ["contradiction", "entailment"]


def test_a_run_on_two_of_a_models_three_classes(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [(text, "abc"[number % 3]) for number, (text, _) in enumerate(sentences(60))]
    three = write_csv(tmp_path / "three.csv", ["text", "label"], rows)
    run("--train_file", three, "--max_train_steps", 2, "--output_dir", tmp_path / "three")
    two = write_csv(tmp_path / "two.csv", ["text", "label"], [row for row in rows if row[1] != "b"])
    flags = ["--train_file", two, "--model_name_or_path", tmp_path / "three", "--max_train_steps", 2]
    run(*flags, "--do_predict", "--test_file", two, "--output_dir", tmp_path / "two")
    assert "the model also knows the class b, of which the data has no row" in capsys.readouterr().out
    labels = json.loads((tmp_path / "two" / "config.json").read_text())["id2label"]
    assert labels == {"0": "a", "1": "b", "2": "c"}
    assert "probability_b" in table(tmp_path / "two" / "predict_results.csv")[0]


def test_plain_numbers_of_a_glue_task_are_written_in_its_words(run: Callable, made_glue: Path, tmp_path: Path) -> None:
    """A folder of qnli whose labels are numbers without names."""
    (tmp_path / "glue").mkdir()
    lines = ["configs:", "- config_name: qnli", "  data_files:"]
    for split in ("train", "validation", "test"):
        (file,) = (made_glue / "qnli").glob(f"{split}-*")
        data = Dataset.from_parquet(str(file))
        numbers = data["label"][:]
        data.remove_columns("label").add_column("label", numbers).to_parquet(tmp_path / "glue" / f"{split}.parquet")
        lines += [f"  - split: {split}", f"    path: {split}.parquet"]
    (tmp_path / "glue" / "README.md").write_text("\n".join(["---", *lines, "---", ""]))
    flags = ["--task_name", "qnli", "--dataset_name", tmp_path / "glue", "--max_train_steps", 1, "--do_predict"]
    run(*flags, "--output_dir", tmp_path / "out")
    answers = {row["prediction"] for row in table(tmp_path / "out" / "glue" / "QNLI.tsv", "\t")}
    assert answers <= {"entailment", "not_entailment"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["0.0", "1.0"] * 20, "the labels 0.0, 1.0 have a decimal point, so they are numbers to predict"),
        (["0.5", "1.0"] * 20, ""),
        (["0", "1"] * 20, ""),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet"])
def test_numbers_that_look_like_classes_are_told(
    tmp_path: Path, written: list, said: str, kind: str, capsys: pytest.CaptureFixture
) -> None:
    rows = [(f"row {number}", label) for number, label in enumerate(written)]
    file = tmp_path / f"t.{kind}"
    if kind == "csv":
        write_csv(file, ["text", "label"], rows)
    elif kind == "tsv":
        file.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    elif kind == "json":
        file.write_text(json.dumps([{"text": text, "label": label} for text, label in rows]))  # in quotes
    else:
        Dataset.from_dict({"text": [t for t, _ in rows], "label": [float(y) if "." in y else int(y) for _, y in rows]}
        ).to_parquet(file)  # fmt: skip
    task = load(file)[1]
    assert (task.labels is None) == ("." in "".join(written))
    out = capsys.readouterr().out
    assert said in out
    assert ("decimal point" in out) == bool(said)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_whole_numbers_of_many_digits_are_classes(tmp_path: Path, kind: str) -> None:
    """Of 19 digits and more: they do not fit the numbers that models know."""
    labels = ["1234567890123456789", "9876543210987654321", "123456789012345678901234567890"]
    file = tmp_path / f"t.{kind}"
    rows = [(f"row {number}", labels[number % 3]) for number in range(30)]
    if kind == "csv":
        write_csv(file, ["text", "label"], rows)
    else:
        file.write_text("\n".join(f'{{"text": "{text}", "label": {label}}}' for text, label in rows))
    assert load(file)[1].labels == sorted(labels)


def test_a_head_that_is_not_the_datas_starts_anew_when_asked(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    rows = [(text, "abc"[number % 3]) for number, (text, _) in enumerate(sentences(40))]
    three = write_csv(tmp_path / "three.csv", ["text", "label"], rows)
    flags = ["--train_file", three, "--model_name_or_path", tmp_path / "other", "--max_train_steps", 1]
    with pytest.raises(SystemExit):
        run(*flags)
    assert "has a head of another size than the 3 labels" in capsys.readouterr().err
    assert run(*flags, "--ignore_mismatched_sizes")["step"] == 1


@pytest.mark.parametrize(
    ("names", "labels", "values"),
    [
        (["IT", "it"], ["it", "IT"], ["IT", "it"]),
        (["IT", "it"], ["IT"], ["IT", "it"]),  # the class that has no row is not that of the other
        (["Spam", "Ham"], ["spam", "ham"], ["spam", "ham"]),
        (["Spam", "Ham"], ["spam", "Ham"], ["spam", "Ham"]),
        (["A", "a"], ["b", "a"], ["A", "a"]),
        (["IT", "it"], ["It"], ["IT", "it"]),  # of which of the two?
    ],
)
def test_capitals_tell_classes_apart_where_nothing_else_does(names: list, labels: list, values: list) -> None:
    assert match_labels(names, Dataset.from_dict({"label": labels})) == values


def test_training_goes_on_with_classes_that_differ_in_capitals(capsys: pytest.CaptureFixture) -> None:
    task = in_models_order(classes(["IT", "it"], "two classes"), config(["it", "IT"]))
    assert (task.labels, task.values) == (["it", "IT"], ["it", "IT"])
    assert not capsys.readouterr().out


def test_numbers_in_the_names_of_a_class_label_are_part_of_the_names(capsys: pytest.CaptureFixture) -> None:
    levels = Task(METRICS["two classes"], ["text"], [0, 1], ["level 0", "level 1"], ["level 0", "level 1"])
    task = in_models_order(levels, config(["level 1", "level 0"]))
    assert (task.labels, task.values) == (["level 1", "level 0"], [1, 0])
    assert not capsys.readouterr().out


def test_the_order_of_classes_without_names_is_told(
    run: Callable, own_files: list, tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is trained, so that the head must be taken as it is."""
    said = "the classes of the model have no names; they are taken in this order: negative, positive"
    run(*own_files, "--num_train_epochs", 0)
    assert said in capsys.readouterr().out
    run(*own_files, "--max_train_steps", 1)
    assert said not in capsys.readouterr().out
