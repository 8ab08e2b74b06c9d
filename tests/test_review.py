"""The lines that say, before training, what in the data often is a mistake; each only where it is so."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import PartialState
from conftest import load, sentences, write_csv
from datasets import Dataset

from no_trainer.glue import Task
from no_trainer.review import warn_of_precision, warn_of_texts


def rows(number: int) -> list[tuple[str, str]]:
    return [(f"text {row} {text}", "ab"[label]) for row, (text, label) in enumerate(sentences(number))]


def said(folder: Path, train: list, valid: list, capsys: pytest.CaptureFixture) -> str:
    header = [f"column{number}" for number in range(len(train[0]) - 1)] + ["label"]
    names = ",".join(header[:-1])
    files = [write_csv(folder / f"{name}.csv", header, part) for name, part in (("t", train), ("v", valid))]
    splits, task = load(*files, text_column_names=names.split(","))
    capsys.readouterr()
    warn_of_texts(splits, task)
    return capsys.readouterr().out


def test_nothing_is_said_of_good_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert said(tmp_path, rows(30), [(f"other {text}", label) for text, label in rows(9)], capsys) == ""


def test_rows_in_both(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    valid = [("new", "a"), *rows(3)]
    out = said(tmp_path, rows(30), valid, capsys)
    assert "3 of 4 validation rows have a text of the training data" in out


def test_pairs_are_the_same_where_both_texts_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = [("x y", f"answer {number}", "ab"[number % 2]) for number in range(20)]
    valid = [("x y", "answer 3", "a"), ("x y", "answer 99", "b")]
    assert "1 of 2 validation rows have a text" in said(tmp_path, train, valid, capsys)
    assert "more than one label" not in said(tmp_path, train, valid, capsys)


def test_one_text_with_two_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = [*rows(30), ("the parcel is late", "a"), ("the parcel is late", "b"), ("twice", "a"), ("twice", "a")]
    out = said(tmp_path, train, [("new", "a")], capsys)
    assert "1 text of the training data with more than one label, such as 'the parcel is late'" in out


def test_most_texts_cut(run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = write_csv(tmp_path / "t.csv", ["text", "label"], [("good " * (9 + n % 2), "ab"[n % 2]) for n in range(40)])
    run("--train_file", train, "--max_train_steps", 1, "--max_length", 8)
    out = capsys.readouterr().out
    assert "warning: 36 of the 36 texts of the train data are cut at 8 tokens; --max_length 12 would hold 95 %" in out
    run("--train_file", train, "--max_train_steps", 1, "--max_length", 12)
    assert "would hold" not in capsys.readouterr().out


def test_all_rows_without_a_label_are_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By the file's line, counted with the header and with the lines of the rows before."""
    text = 'text,label\n"a\nb",x\nc,\nd,y\ne,\n' + "f,\n" * 5
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SystemExit):
        load(tmp_path / "t.csv")
    err = capsys.readouterr().err
    assert "t.csv, line 4 (row 2 of the train data), " in err
    assert "t.csv, line 6 (row 4 of the train data), " in err
    assert " and 2 more have no label" in err


def test_the_table_shows_control_characters_as_escapes(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [(text, ("tab\there", "bell\x07")[label]) for text, label in sentences(40)]
    run("--train_file", write_csv(tmp_path / "t.csv", ["text", "label"], rows), "--max_train_steps", 1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if re.match("train .*%", line)]
    assert "tab\\there" in line
    assert "bell\\x07" in line


def test_no_longer_text_is_advised_than_the_model_can_read(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [(" ".join([("bad", "good")[row % 2]] * 90), "ab"[row % 2]) for row in range(30)]
    run("--train_file", write_csv(tmp_path / "t.csv", ["text", "label"], rows), "--max_train_steps", 1)
    said = capsys.readouterr().out
    assert "are cut at 64 tokens; 95 % have at most 92, but the model reads 64 only" in said
    assert "would hold" not in said


@pytest.mark.parametrize(
    ("labels", "precision", "said"),
    [
        ([1990.5, 1993.5, 1996.5], "bf16", "in bf16, numbers near 1996.5 are predicted in steps of 8; subtract"),
        ([1990.5, 1993.5, 1996.5], "no", ""),
        ([1e9, 1e9 + 3.5, 1e9 + 6], "no", "in fp32, numbers near 1e+09 are predicted in steps of 64; subtract"),
        ([0.0, 2.5, 5.0], "bf16", ""),
        ([0.0, 0.0, 0.0], "bf16", ""),
    ],
)
def test_numbers_that_the_precision_does_not_tell_apart(
    labels: list[float], precision: str, said: str, capsys: pytest.CaptureFixture
) -> None:
    PartialState()
    data = {"train": Dataset.from_dict({"labels": [labels[row % 3] for row in range(30)]})}
    warn_of_precision(data, Task(["mse"], ["text"], None, None), precision)
    shown = capsys.readouterr().out
    assert said in shown
    assert shown.count("warning") == bool(said)
