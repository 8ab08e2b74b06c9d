"""Which columns are guessed to be texts, what is said of it, and what never is one."""

import datetime
import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate import PartialState
from conftest import load, sentences, usage_error, write_csv
from datasets import ClassLabel, Dataset, Features, Value

import run_glue_no_trainer as script
from no_trainer.columns import choose_text_columns, find_text_columns, gives_away
from no_trainer.commands import names_in


def of(columns: list[str]) -> Dataset:
    return Dataset.from_dict({name: [f"some words in {name} {row}" for row in range(8)] for name in columns})


@pytest.mark.parametrize(
    ("columns", "read"),
    [
        (["text", "label"], ["text"]),
        (["sentence2", "x", "sentence1"], ["sentence1", "sentence2"]),
        (["id", "sentence2", "label", "sentence1"], ["sentence1", "sentence2"]),
        (["id", "question", "label", "answer"], ["question", "answer"]),
        (["question", "label", "answer", "note"], ["question", "answer"]),
        (["premise", "hypothesis", "label"], ["premise", "hypothesis"]),
        (["Index", "label", "text"], ["text"]),
        (["text", "label", "label_text"], ["text"]),
        (["text", "label", "labels"], ["text"]),
        (["text", "fine_label", "label"], ["text"]),
        (["Unnamed: 0", "label", "text", "__index_level_0__"], ["text"]),
    ],
)
def test_the_columns_of_text(columns: list[str], read: list[str], capsys: pytest.CaptureFixture) -> None:
    PartialState()
    assert find_text_columns(of(columns)) == read
    usual = [*read, "label", "id", "Index", "Unnamed: 0", "__index_level_0__"]
    others = ", ".join(name for name in columns if name not in usual)
    said = f"the text is read from {', '.join(read)}, not from {others}; --text_column_names names others\n"
    assert capsys.readouterr().out == (said if others else "")


def test_two_guessed_columns_are_told_with_what_is_left(capsys: pytest.CaptureFixture) -> None:
    PartialState()
    assert find_text_columns(of(["a", "b", "label", "c"])) == ["a", "b"]
    said = capsys.readouterr().out
    assert "two columns are read, as a pair of texts: a and b (not c); to read one: --text_column_names a" in said


def test_the_other_labels_of_a_chosen_one_are_no_text(tmp_path: Path) -> None:
    """`fine_label` gives `coarse_label` away."""
    file = tmp_path / "t.csv"
    rows = [[text, "AB"[label], f"{'AB'[label]}{row % 2}"] for row, (text, label) in enumerate(sentences(40))]
    write_csv(file, ["text", "coarse_label", "fine_label"], rows)
    assert load(file, label_column_name="coarse_label")[1].text_columns == ["text"]


@pytest.mark.parametrize(
    "cells",
    [
        [f"https://example.org/{row}" for row in range(40)],
        [f"www.example.org/{row}" for row in range(40)],
        [f"2024-03-{row % 28 + 1:02d}" for row in range(40)],
        [f"2024-03-{row % 28 + 1:02d}T10:{row:02d}:00Z" for row in range(40)],
        [f"{row % 28 + 1:02d}/03/2024 10:{row:02d}" for row in range(40)],
        [f"{row % 28 + 1} March 2024" for row in range(40)],
        [f"Mon Mar {row % 28 + 1:2d} 10:00:{row:02d} 2024" for row in range(40)],
        [str(row) for row in range(40)],
        [f"{row}.5" for row in range(40)],
        [f"{row} %" for row in range(40)],
        [f"tr-{row:04d}" for row in range(40)],
        [f"user{row}@example.org" for row in range(40)],
        [f"data/part_{row}.txt" for row in range(40)],
    ],
)
def test_addresses_dates_and_numbers_are_no_text(tmp_path: Path, cells: list, capsys: pytest.CaptureFixture) -> None:
    """Before and after the text."""
    texts = sentences(40)
    for order in (("other", "text"), ("text", "other")):
        columns = {"text": [text for text, _ in texts], "other": cells, "label": ["ab"[label] for _, label in texts]}
        rows = list(zip(*(columns[name] for name in (*order, "label")), strict=True))
        task = load(write_csv(tmp_path / "t.csv", [*order, "label"], rows))[1]
        assert task.text_columns == ["text"]
    assert "two columns" not in capsys.readouterr().out


def test_columns_of_other_types_are_no_text(tmp_path: Path) -> None:
    texts = sentences(40)
    features = Features(
        {
            "kind": ClassLabel(names=["x", "y"]),
            "stars": Value("int64"),
            "score": Value("float32"),
            "day": Value("date32"),
            "seen": Value("bool"),
            "text": Value("string"),
            "label": Value("string"),
        }
    )
    columns = {"kind": [0, 1] * 20, "stars": range(40), "score": [0.5] * 40, "day": [datetime.date(2024, 1, 1)] * 40}
    columns |= {"seen": [True] * 40, "text": [text for text, _ in texts], "label": ["ab"[y] for _, y in texts]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet")[1].text_columns == ["text"]


def test_a_column_that_the_label_can_be_told_from_is_no_text(tmp_path: Path) -> None:
    """`kind` has one label for each of its few values; where both labels occur with each, its values repeat."""
    texts = sentences(60)
    names = {0: ["it is a complaint", "it asks for money"], 1: ["it is all praise", "it says its thanks"]}
    header = ["kind", "review", "label"]
    for kinds in ([names[label] for _, label in texts], [names[row % 2] for row in range(60)]):
        rows = [[kinds[row][row % 2], text, "ab"[label]] for row, (text, label) in enumerate(texts)]
        assert load(write_csv(tmp_path / "t.csv", header, rows))[1].text_columns == ["review"]


@pytest.mark.parametrize(
    ("value", "what"),
    [('["the", "film"]', "a list"), ('{"a": 1}', "an object"), ("[]", "a list"), ("[[1]]", "a list")],
)
def test_lists_and_objects_are_no_text(tmp_path: Path, value: str, what: str, capsys: pytest.CaptureFixture) -> None:
    """In the third row, or in all of them."""
    for number, other in ((3, '"good film"'), (1, value)):
        lines = [f'{{"text": {value if row == number else other}, "label": "{"ab"[row % 2]}"}}' for row in range(1, 5)]
        (tmp_path / "t.jsonl").write_text("\n".join(lines))
        with pytest.raises(SystemExit):
            load(tmp_path / "t.jsonl")
        said = capsys.readouterr().err
        assert f"t.jsonl, line {number} (row {number} of the train data): column text holds {what}" in said


def test_a_thousand_columns_are_looked_at_in_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Dataset.features` is a deep copy at each look: the number of looks does not grow with the columns."""
    looks, features = [], Dataset.features
    monkeypatch.setattr(Dataset, "features", property(lambda data: looks.append(1) or features.fget(data)))
    counts = []
    for columns in (10, 300):
        rows = [[str(number)] * columns + [text, "ab"[label]] for number, (text, label) in enumerate(sentences(30))]
        header = [f"c{number}" for number in range(columns)] + ["text", "label"]
        looks.clear()
        assert load(write_csv(tmp_path / f"{columns}.csv", header, rows))[1].text_columns == ["text"]
        counts.append(len(looks))
    assert counts[1] <= counts[0] + 5


def test_columns_without_a_filled_cell_are_no_texts() -> None:
    columns = {"a": [""] * 8, "b": [None] * 8, "body": [f"words {row}" for row in range(8)], "label": list("ababbaab")}
    data = Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Value("string"))))
    assert find_text_columns(data) == ["body"]


@pytest.mark.parametrize(
    "texts", [["play music", "stop", "louder"], [f"https://example.org/{row}" for row in range(40)]]
)
def test_a_column_called_text_is_read_or_named(tmp_path: Path, texts: list, capsys: pytest.CaptureFixture) -> None:
    """Addresses are read; few texts, each with one label, give it away."""
    PartialState()
    users = [f"user {'abcde'[row % 5]}{'fghijklm'[row % 8]}" for row in range(40)]
    rows = [[texts[row % len(texts)], users[row], "abc"[row % len(texts) % 3]] for row in range(40)]
    file = write_csv(tmp_path / "t.csv", ["text", "user", "label"], rows)
    read = load(file)[1].text_columns[0]
    shown = capsys.readouterr().out
    said = "not read, since the label can be told from them: text\n" in shown
    assert (read, said) == (("user", True) if texts[0] == "play music" else ("text", False))
    assert ("the text is read from text, not from user; --text_column_names names others" in shown) != said


REASONS = ["late flight", "lost bag", "bad service", ""]
SAID = [f"{text} said somebody" for text, _ in sentences(60)]


@pytest.mark.parametrize(
    ("columns", "read"),
    [
        ({"reason": REASONS, "airline": ["Delta", "United"], "text": SAID}, ["text"]),
        ({"keyword": ["fire", "flood", ""], "location": ["New York", "Rome"], "tweet": SAID}, ["tweet"]),
        ({"locale": ["en-US"], "partition": ["train"], "utt": SAID}, ["utt"]),
        ({"user": ["ABXLMWJIXXAIN", "A3SGXH7AUHU8GW"], "name": ["Ann Lee", "Bo"], "Review": SAID}, ["Review"]),
        ({"topic": ["art", "war"], "question": SAID, "answer": SAID}, ["question", "answer"]),
        ({"question": SAID, "title": ["Rome", "War and Peace"], "passage": SAID}, ["question", "passage"]),
        (
            {"genre": ["fiction"], "premise": SAID, "premise_parse": SAID, "hypothesis": SAID},
            ["premise", "hypothesis"],
        ),
        ({"question": SAID, "sentence": SAID[::-1], "kind": ["x", "y"]}, ["question", "sentence"]),
        ({"tags": ['["a", "b"]', '["c"]'], "review": SAID}, ["review"]),
        ({"title": SAID, "body": SAID[::-1], "author": ["Ann", "Bob"]}, ["title", "body"]),
        ({"作者": ["张", "李"], "内容": ["这部电影非常好看", "我不喜欢这个服务"]}, ["内容"]),
        ({"command": ["turn on", "stop it", "louder now"], "room": ["kitchen", "hall"]}, ["command", "room"]),
    ],
)
def test_columns_of_names_and_kinds_are_no_texts(columns: dict, read: list, capsys: pytest.CaptureFixture) -> None:
    """Beside sentences; a constant says nothing. What is read instead of what is told."""
    PartialState()
    cells = {name: [values[row * 7 % len(values)] for row in range(60)] for name, values in columns.items()}
    labels = ["ab"[row % 5 % 2] for row in range(60)]
    assert find_text_columns(Dataset.from_dict(cells | {"label": labels})) == read
    others = [name for name in columns if name not in read]
    assert all(name in capsys.readouterr().out for name in others[:1])


def test_a_sorted_file_does_not_look_as_if_every_column_told_the_label(tmp_path: Path) -> None:
    """5,000 rows, of which the first 2,500 have one label; the messages are drawn for both."""
    rows = [[f"message {row * 7 % 300}", f"customer {row}", "ab"[row >= 2500]] for row in range(5000)]
    file = write_csv(tmp_path / "t.csv", ["message", "customer", "label"], rows)
    assert load(file)[1].text_columns == ["message", "customer"]


def test_the_labels_are_not_read_as_the_text_that_the_model_was_trained_on(capsys: pytest.CaptureFixture) -> None:
    args = Namespace(task_name=None, text_column_names=None, num_train_epochs=1)
    with pytest.raises(SystemExit):
        choose_text_columns(args, of(["text", "topic"]), {"text_columns": ["text", "topic"]}, "topic")
    assert "the model was trained on the column topic as text, which is the column of the labels here" in (
        capsys.readouterr().err
    )


def test_labels_that_alternate_do_not_look_as_if_every_column_told_them() -> None:
    """Of 4,000 rows, every second one has the same label, and the messages are drawn for both."""
    rows = range(4000)
    columns = {"message": [f"message {row * 7919 % 301}" for row in rows], "customer": [f"c {row}" for row in rows]}
    data = Dataset.from_dict(columns | {"label": ["ab"[row % 2] for row in rows]})
    assert find_text_columns(data) == ["message", "customer"]


def test_a_single_label_is_told_by_no_column() -> None:
    columns = {"message": ["hello", "good bye"] * 20, "user": [f"u {row}" for row in range(40)], "label": ["a"] * 40}
    assert find_text_columns(Dataset.from_dict(columns)) == ["message", "user"]


@pytest.mark.parametrize(("exceptions", "tells"), [(0, True), (2, True), (12, False)])
def test_a_column_that_nearly_tells_the_label(exceptions: int, tells: bool) -> None:
    """With a tenth of the mistakes that the commonest label makes, or fewer."""
    answers = ["ab"[row % 2] for row in range(60)]
    cells = [f"kind {answer} {row % 3}" for row, answer in enumerate(answers)]
    flipped = [{"a": "b", "b": "a"}[answer] for answer in answers[:exceptions]]
    assert gives_away(cells, flipped + answers[exceptions:]) == tells
    assert not gives_away([f"text {row}" for row in range(60)], answers)  # each text is another
    assert not gives_away(["kind"] * 60, ["a"] * 60)


def test_a_description_of_each_class_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Even where the texts are shorter than it is."""
    about = {"play": "the user wants to hear music", "stop": "the user wants to hear nothing"}
    said = ["play music", "put music on", "stop", "be quiet", "silence please", "a song", "louder", "another one"]
    rows = [[f"{said[row % 8]} {'abcde'[row % 5]}", about[label := list(about)[row % 2]], label] for row in range(80)]
    file = write_csv(tmp_path / "t.csv", ["utterance", "description", "intent"], rows)
    assert load(file, label_column_name="intent")[1].text_columns == ["utterance"]
    assert "not read, since the label can be told from them: description\n" in capsys.readouterr().out


def test_of_two_columns_whose_names_differ_in_case_both_are_there() -> None:
    cells = {"text": [f"some words in {row}" for row in range(8)], "Text": [""] * 8, "label": list("ababbaab")}
    assert find_text_columns(Dataset.from_dict(cells)) == ["text"]
    assert find_text_columns(Dataset.from_dict(cells | {"text": [""] * 8, "body": cells["text"]})) == ["body"]


def test_a_text_with_few_values_is_a_text(tmp_path: Path) -> None:
    """Short commands, with a few wrong labels; nobody needs to name a column that is called text."""
    commands = ["on", "off", "louder", "quieter"]
    rows = [[f"user {row} says", commands[row % 4], "ab"[row % 2]] for row in range(80)]
    rows[0][2] = "b"
    file = write_csv(tmp_path / "t.csv", ["user", "text", "label"], rows)
    assert load(file)[1].text_columns == ["text"]


def test_the_command_that_reads_one_column_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    find_text_columns(of(["what, then", "it's", "label"]))
    line = capsys.readouterr().out
    (words,) = re.findall(r"to read one: --text_column_names (.*)", line)
    assert names_in(*shlex.split(words)) == ["what, then"]


def test_a_column_with_a_comma_in_its_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It is chosen, and shown, in double quotes."""
    name = "says, verbatim"
    file = write_csv(tmp_path / "t.csv", [name, "note", "label"], [(t, "n", y) for t, y in sentences(40)])
    flags = ["--model_name_or_path", "m", "--train_file", str(file), "--text_column_names"]
    assert script.parse_args([*flags, f'"{name}"']).text_column_names == [name]
    assert script.parse_args([*flags, f'note,"{name}"']).text_column_names == ["note", name]
    odd = ['"quoted" one', '"5 inch', "two\\nlines", "a"]  # none of them has a comma
    assert script.parse_args([*flags, ",".join(odd)]).text_column_names == odd
    assert "takes columns as in a,b" in usage_error(capsys, *flags, "a,,b")
    assert load(file, text_column_names=[name])[1].text_columns == [name]
    with pytest.raises(SystemExit):
        load(file, text_column_names=["says"])
    assert f'its columns are "{name}", note, label (if these are the cells of a row' in capsys.readouterr().err
