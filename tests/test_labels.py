"""Labels: classes or numbers, in which order, by which names, and what is often a mistake."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate import PartialState
from conftest import load, refused, sentences, write_csv
from datasets import ClassLabel, Dataset, Features, List, Value

from no_trainer.classes import warn_of_labels
from no_trainer.glue import Task
from no_trainer.labels import keep_answers
from no_trainer.metrics import second_class


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


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b"], ""),
        (["bug", "Bug", "b"], "the labels 'Bug' and 'bug' differ only in capitals or spaces"),
        (["bug", " bug", "b"], "the labels ' bug' and 'bug' differ only in capitals or spaces"),
        (["a  b", "A b", "a b", "c"], "the labels 'A b' and 'a  b' and 'a b' differ only"),
        (["1", "2", "3", "4", "n/a"], "most labels are numbers; because of 'n/a', all are classes"),
        (["1,5", "2,0"], "labels with a decimal comma are classes; to predict numbers, write 1.5"),
        ([str(stars) for stars in range(9)], "whole numbers are classes; --do_regression predicts them as numbers"),
        ([str(stars) for stars in range(5)], ""),
    ],
)
def test_labels_that_are_often_a_mistake(labels: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    warn_of_labels(Counter(labels * 10))
    out = capsys.readouterr().out
    assert said in out
    assert bool(out) == bool(said)


def test_a_class_may_be_missing_from_validation(run: Callable, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {i}", "abc"[i % 3]) for i in range(30)])
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], [("row", "a"), ("row", "c")])
    assert 0 <= run("--train_file", train, "--validation_file", valid, "--max_train_steps", 1)["eval_macro_f1"] <= 1


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


def test_a_label_that_the_model_does_not_know_is_refused(
    run: Callable, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], [("good", "positive"), ("bad", "nasty")])
    with pytest.raises(SystemExit):
        run("--model_name_or_path", trained, "--validation_file", valid, "--num_train_epochs", 0)
    assert "(row 2 of the validation data) has the label 'nasty'" in capsys.readouterr().err


NONE = ClassLabel(names=["Bug", "None"])
SIGNS = {"labels": ["-1", "0", "1"], "words": ["-1", "0", "1"], "values": [-1, 0, 1]}
NUMERALS = {"labels": ["1", "2", "3"], "words": ["1", "2", "3"], "values": [0, 1, 2]}
CAPITALS = {"labels": ["IT", "it"], "words": ["IT", "it"], "values": ["IT", "it"]}
WORDS = {"labels": ["Bug", "None"], "words": ["Bug", "None"], "values": ["Bug", "None"]}


@pytest.mark.parametrize(
    ("task", "feature", "given", "kept", "said"),
    [
        (WORDS, Value("string"), [None, None], None, ""),  # no label is not the class None
        (WORDS, Value("string"), ["Bug", None], None, "1 of its 2 rows have no label"),
        (WORDS, Value("string"), ["Bug", "  "], None, "1 of its 2 rows have no label"),
        (WORDS, Value("string"), ["Bug", "None"], ["Bug", "None"], ""),
        (WORDS, NONE, [-1, -1], None, ""),
        (WORDS, NONE, [0, -1], None, "1 of its 2 rows have no label"),
        (WORDS, NONE, [1, 0], ["None", "Bug"], ""),
        (WORDS | {"several": True}, List(NONE), [[0], [1, 0]], [["Bug"], ["None", "Bug"]], ""),
        (WORDS | {"several": True}, List(NONE), [[0], [-1]], None, "1 of its 2 rows have no label"),
        (WORDS | {"several": True}, List(NONE), [[0], []], [["Bug"], []], ""),
        (SIGNS, Value("int64"), [-1, 1], [-1, 1], ""),  # where -1 is a class, it is one
        (SIGNS, Value("int64"), [-1, -1], [-1, -1], ""),
        (SIGNS, Value("int64"), [-1, 7], None, "does not know all of its labels"),
        (SIGNS, Value("float64"), [-1.0, 1.0], [-1, 1], ""),
        (NUMERALS, ClassLabel(names=["1", "2", "3"]), [0, 2], [0, 2], ""),  # the names, not the numbers in the file
        (NUMERALS, Value("int64"), [1, 3], [0, 2], ""),
        (NUMERALS, Value("int64"), [0, 2], [0, 2], ""),  # the column is read in one way: there is no name 0
        (WORDS, Value("string"), ["bug", "NONE "], ["Bug", "None"], ""),
        (CAPITALS, Value("string"), ["IT", "it"], ["IT", "it"], ""),
        (CAPITALS, Value("string"), ["It", "it"], None, "does not know all of its labels"),
        (NUMERALS, Value("string"), ["1", "3"], [0, 2], ""),
        ({"labels": None, "values": None}, Value("float64"), [-1.0, 2.5], [-1.0, 2.5], ""),
        ({"labels": None, "values": None}, Value("float64"), [-1.0, -1.0], None, ""),  # as STS-B has them
    ],
)
def test_labels_of_a_test_split(
    task: dict, feature: Any, given: list, kept: list | None, said: str, capsys: pytest.CaptureFixture
) -> None:
    data = Dataset.from_dict({"label": given}, features=Features({"label": feature}))
    answers = keep_answers(data.add_column("text", ["x", "y"]), "test", Task([], ["text"], **task))
    assert (answers["label"][:] if "label" in answers.column_names else None) == kept
    out = capsys.readouterr().out
    assert said in out if said else not out


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["\u00e9t\u00e9", "e\u0301te\u0301"], "or in how they are encoded"),
        (["bug", "bug\u200b"], "or in how they are encoded"),
        (["billing", "urgent", "billing|urgent"], "'billing|urgent' is one class here"),
        (["['a']", "['a', 'b']"], "is one class here; a row with several takes a list"),
        (["1,200", "950"], "labels such as '1,200' are classes"),
        (["15 %", "20 %"], "labels such as '15 %' are classes"),
        (["a|b", "c"], ""),
        (["10", "9"], ""),
    ],
)
def test_labels_that_are_seldom_meant_as_they_are(labels: list, said: str, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    warn_of_labels(Counter(dict.fromkeys(labels, 20)))
    out = capsys.readouterr().out
    assert said in out if said else not out


@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_a_label_of_spaces_is_no_label(tmp_path: Path, blank: str, capsys: pytest.CaptureFixture) -> None:
    rows = [(f"row {row}", blank if row == 7 else "ab"[row % 2]) for row in range(20)]
    assert "line 9 (row 8 of the train data) has no label" in refused(
        capsys, write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    )


def test_large_unsigned_numbers_are_classes(tmp_path: Path) -> None:
    labels = pa.array([2**63 + 1, 5] * 10, pa.uint64())
    pq.write_table(pa.table({"text": ["x", "y"] * 10, "label": labels}), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet")[1].values == [5, 2**63 + 1]


@pytest.mark.parametrize("word", ["nan", "NA", "None", "-", "?", "-1"])
def test_a_word_for_no_label_is_told(tmp_path: Path, word: str, capsys: pytest.CaptureFixture) -> None:
    rows = [(f"row {row}", ["0", "1", "2", word][row % 4]) for row in range(80)]
    load(write_csv(tmp_path / "t.csv", ["text", "label"], rows))
    said = f"warning: {word!r} among the classes; if this means no label, leave out these rows"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("labels", ["-1 1", "-1 0 1", "-2 -1 0 1 2", "none some", "na fr", "+ -", ". ? !"])
def test_labels_that_look_like_none_but_are_not(tmp_path: Path, labels: str, capsys: pytest.CaptureFixture) -> None:
    rows = [(f"row {row}", labels.split()[row % len(labels.split())]) for row in range(60)]
    load(write_csv(tmp_path / "t.csv", ["text", "label"], rows))
    assert "among the classes" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("billing, urgent", "warning: 'billing, urgent' is one class here"),
        ("billing;urgent", "warning: 'billing;urgent' is one class here"),
        ("urgent#billing", "warning: 'urgent#billing' is one class here"),
        ('{"choices": ["urgent"]}', "is one class here"),
        ("Rome, NY", ""),
        ("C/C++", ""),
        ("billing/other", ""),
    ],
)
def test_several_classes_in_one_cell_are_told(label: str, said: str, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    other = label.replace("urgent", "refund")
    warn_of_labels(Counter({"billing": 30, "urgent": 30, "refund": 30, label: 30, other: 30}))
    shown = capsys.readouterr().out
    assert said in shown
    assert ("is one class here" in shown) == bool(said)


def test_one_name_that_is_made_of_two_others_is_a_name(capsys: pytest.CaptureFixture) -> None:
    PartialState()
    warn_of_labels(Counter({"OS": 30, "2": 30, "OS/2": 30, "000": 30}))
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("price", ["$421.99", "€ 5", "1,200 $", "$1,200.50"])
def test_prices_are_classes_and_told(price: str, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    warn_of_labels(Counter({price: 20, "7": 20, "12": 20}))
    assert f"warning: labels such as {price!r} are classes; to predict numbers, write" in capsys.readouterr().out


def test_ratings_up_to_ten_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [(f"row {row}", f"{row % 11}.0") for row in range(66)]
    load(write_csv(tmp_path / "t.csv", ["text", "label"], rows))
    assert "have a decimal point, so they are numbers to predict" in capsys.readouterr().out


def test_signs_have_plus_as_their_second_class(tmp_path: Path) -> None:
    rows = [(f"row {row}", ["+1", "-1"][row % 2]) for row in range(40)]
    task = load(write_csv(tmp_path / "t.csv", ["text", "label"], rows))[1]
    assert task.labels[second_class(task)] == "+1"


def test_a_file_without_a_header_is_told_by_its_label(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its first row became the names of the columns."""
    rows = [(["ham", "spam"][row % 2], f"message {row}, and so on") for row in range(40)]
    file = write_csv(tmp_path / "t.csv", rows[0], rows[1:])
    load(file, label_column_name="ham")
    said = "warning: the column 'ham' of the train data holds 'ham'; does its file have a header?"
    assert said in capsys.readouterr().out
    with pytest.raises(SystemExit):
        load(file)
    assert "(if these are the cells of a row, give the file a first line with names)" in capsys.readouterr().err


def test_whole_numbers_of_any_size_take_whole_numbers_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """01 is a word, also beside the int32 of a parquet file."""
    features = Features(text=Value("string"), label=Value("int32"))
    Dataset.from_dict({"text": ["x", "y"] * 10, "label": [0, 1] * 10}, features).to_parquet(tmp_path / "t.parquet")
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], [("x", "00"), ("y", "01")])
    said = refused(capsys, tmp_path / "t.parquet", valid)
    assert "has the label '00'; the training labels are whole numbers" in said
