"""Own files: every row is a row, every cell is read as it is written, and each is parsed once."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from accelerate import PartialState
from conftest import ROOT, load, refused, sentences, write_csv
from datasets import Dataset

import run_glue_no_trainer as script
from no_trainer.files import place_of, read_dataset, read_files
from no_trainer.tasks import load_data

MANY = [{"text": f"t{number}", "label": "ab"[number % 2]} for number in range(30)]


def test_csv_text_stays_text(tmp_path: Path) -> None:
    texts = ["NA", "null", "007", "1e5", "", 'a, "quoted"\nline', "2020-01-01"]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(text, i % 2) for i, text in enumerate(texts)])
    file.write_text("\ufeff" + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert load(file)[0]["train"]["text"][:] == texts


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


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["--model_name_or_path", "m", "--task_name", "rte", "--dataset_name", str(tmp_path / "nowhere")]
    with pytest.raises(SystemExit):
        load_data(script.parse_args(args))
    assert "nowhere could not be read" in capsys.readouterr().err


def test_a_file_that_is_changed_is_read_again(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("old", "a"), ("old", "b")])
    assert load(file)[0]["train"]["text"][:] == ["old", "old"]
    file.write_text(file.read_text().replace("old", "new"))
    assert load(file)[0]["train"]["text"][:] == ["new", "new"]


def test_an_edited_parser_reads_anew(tiny_model: Path, tmp_path: Path) -> None:
    """Of a file that is in the cache already."""
    shutil.copy(ROOT / "run_glue_no_trainer.py", tmp_path)
    shutil.copytree(ROOT / "no_trainer", tmp_path / "no_trainer")
    parser = tmp_path / "no_trainer" / "cells.py"
    edited = parser.read_text().replace("rows.add(row, begin)", "rows.add([cell.upper() for cell in row], begin)")
    parser.write_text(edited)
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(text, "ab"[label]) for text, label in sentences(40)])
    flags = ["--model_name_or_path", tiny_model, "--train_file", file, "--max_train_steps", 1]
    for folder, labels in ((ROOT, "a 5"), (tmp_path, "A 5")):
        command = [sys.executable, folder / "run_glue_no_trainer.py", *flags]
        ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert f"train       {labels}" in ended.stdout, ended.stdout + ended.stderr


def test_a_cache_that_cannot_be_written_is_named(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"own {row}", "ab"[row % 2]) for row in range(30)])
    with monkeypatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", file / "cache")  # a file is no folder
        assert "HF_HOME names a folder for it" in refused(capsys, file)


def read(file: Path) -> dict[str, list]:
    return read_files([str(file)], []).to_dict()


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(["3.6", "1.2", "2.0"], None), (["1", "2", "10"], [1, 2, 10]), (["1", "2", "x"], ["1", "2", "x"])],
)
@pytest.mark.parametrize("suffix", ["json", "csv", "tsv", "parquet"])
def test_numbers_in_quotes_are_numbers_in_every_format(tmp_path: Path, labels: list, kind: list, suffix: str) -> None:
    data = Dataset.from_dict({"text": ["one text", "two texts", "a third"], "label": labels})
    file = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        data.to_parquet(file)
    elif suffix == "json":
        data.to_json(file)
    else:
        data.to_csv(file, sep="\t" if suffix == "tsv" else ",", index=False)
    assert load(file)[1].values == kind


def test_shards_with_whole_numbers_and_fractions_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": 1}\n{"text": "y", "label": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "z", "label": 0.5}\n')
    data = read_files([str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")], [])
    assert data["label"][:] == [1.0, 2.0, 0.5]


def test_where_a_row_stands(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"x\ny",a\nz,b\n')
    (tmp_path / "b.jsonl").write_text('\n{"text": "x"}\n\n{"text": "y"}\n')
    (tmp_path / "c.json").write_text('[{"text": "x"},\n{"text": "y"}]')
    files = [str(tmp_path / name) for name in ("a.csv", "b.jsonl", "c.json")]
    places = [place_of(files, row).removeprefix(f"{tmp_path}/") for row in range(6)]
    assert places == [
        "a.csv, line 2", "a.csv, line 4", "b.jsonl, line 2", "b.jsonl, line 4", "c.json, row 1", "c.json, row 2",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    file = write_csv(
        tmp_path / "t.csv",
        ["text", "label"],
        [(f"about to be {damage} in its cache: {n}", "ab"[n % 2]) for n in range(300)],
    )
    before = read(file)
    (kept,) = [
        kept
        for kept in Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow")
        if f"about to be {damage} in its cache".encode() in kept.read_bytes()
    ]
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes({"empty": b"", "cut": bytes(content[:500]), "flipped": bytes(content)}[damage])
    assert read(file) == before


def test_what_is_said_of_a_file_is_said_again_when_it_is_cached(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    (tmp_path / "t.csv").write_text("text;label\nx;a\n")
    for _ in range(2):
        read(tmp_path / "t.csv")
        assert f"{tmp_path / 't.csv'}: its cells are separated by semicolons" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "name", "content"),
    [
        ("field: rows", "train.json", json.dumps({"rows": MANY, "data": MANY[:4]})),
        (
            "skiprows: 1",
            "train.csv",
            "made by hand\n" + "text,label\n" + "".join(f"t{n},{n % 2}\n" for n in range(30)),
        ),
    ],
)
def test_what_a_readme_says_of_its_files_counts(tmp_path: Path, options: str, name: str, content: str) -> None:
    """Options such as `skiprows` are those of datasets, which then reads the files."""
    (tmp_path / name).write_text(content)
    head = f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n  {options}\n---\n"
    (tmp_path / "README.md").write_text(head)
    data = read_dataset(str(tmp_path), None)["train"]
    assert data["text"][:] == [f"t{number}" for number in range(30)]


def describe(folder: Path, kind: str) -> None:
    """Write a README that says what the column `label` is."""
    features = f"  - {{name: text, dtype: string}}\n  - {{name: label, dtype: {kind}}}\n"
    (folder / "README.md").write_text(f"---\ndataset_info:\n  features:\n{features}---\n")


@pytest.mark.parametrize("labels", [(0, 1), ("neg", "pos"), (" neg", "pos")])
def test_class_names_that_a_readme_gives_are_those_of_the_model(tmp_path: Path, labels: tuple) -> None:
    write_csv(tmp_path / "train.csv", ["text", "label", "note"], [("null", labels[0], "x"), ("007", labels[1], "y")])
    write_csv(tmp_path / "test.csv", ["text", "label"], [("null", ""), ("x", -1)])
    describe(tmp_path, "{class_label: {names: [neg, pos]}}")
    data = read_dataset(str(tmp_path), None)
    assert data["train"].features["label"].names == ["neg", "pos"]
    assert data["train"]["label"][:] == [0, 1]
    assert data["train"]["text"][:] == ["null", "007"]
    assert data["test"]["label"][:] == [-1, -1]


def test_whole_numbers_that_a_readme_calls_fractions_are_numbers(tmp_path: Path) -> None:
    rows = [(f"row {row}", row % 3) for row in range(30)]
    write_csv(tmp_path / "train.csv", ["text", "label"], rows)
    describe(tmp_path, "float32")
    args = script.parse_args(["--model_name_or_path", "m", "--dataset_name", str(tmp_path)])
    assert load_data(args)[1].values is None


def test_a_readme_of_other_labels_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_csv(tmp_path / "train.csv", ["text", "label"], [("x", "neg"), ("y", "neutral")])
    describe(tmp_path, "{class_label: {names: [neg, pos]}}")
    assert read_dataset(str(tmp_path), None)["train"]["label"][:] == ["neg", "neutral"]
    assert "the column label is not what its README.md says, and read as it is" in capsys.readouterr().out


@pytest.mark.parametrize("lists", [False, True])
def test_numbers_of_classes_whose_names_are_numbers(tmp_path: Path, lists: bool) -> None:
    """As `datasets` reads them: a number is that of a class, never its name."""
    labels = [[row % 3] if lists else row % 3 for row in range(6)]
    lines = [json.dumps({"text": f"row {row}", "label": label}) for row, label in enumerate(labels)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    kind = "{class_label: {names: ['1', '2', '3']}}"
    describe(tmp_path, f"{{list: {kind}}}" if lists else kind)
    assert read_dataset(str(tmp_path), None)["train"]["label"][:] == labels
    assert datasets.load_dataset(str(tmp_path))["train"]["label"][:] == labels


def test_a_column_of_lists_is_read_in_one_way(tmp_path: Path) -> None:
    """Numbers that are written as text: the classes are `1` and `2`, and 0 is no name, so all are numbers."""
    lines = [json.dumps({"text": f"row {row}", "label": [str(row % 2)]}) for row in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    describe(tmp_path, "{list: {class_label: {names: ['1', '2']}}}")
    assert read_dataset(str(tmp_path), None)["train"]["label"][:] == [[row % 2] for row in range(6)]


def test_a_folder_is_read_the_same_after_datasets_has_read_it(tmp_path: Path) -> None:
    """`datasets` alone would join the rows between two quotes, and read 007 as 7."""
    lines = [f"row {row}\t00{row % 2}" for row in range(20)]
    lines[5], lines[9] = '"an open quote\t001', 'a closed" one\t001'
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    before = read_dataset(str(tmp_path), None)["train"][:]
    datasets.load_dataset(str(tmp_path))
    assert read_dataset(str(tmp_path), None)["train"][:] == before
    assert len(before["text"]) == 20


def test_files_that_datasets_joins_by_their_names_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It takes test_hard.csv for a part of the test data. Shards need no word."""
    for name in ("train-00000-of-00002.csv", "train-00001-of-00002.csv", "test.csv", "test_hard.csv"):
        write_csv(tmp_path / name, ["text", "label"], [("good", 0), ("bad", 1)])
    assert len(read_dataset(str(tmp_path), None)["test"]) == 4
    said = capsys.readouterr().out
    assert f"{tmp_path}: the test data are those of test.csv, test_hard.csv\n" in said
    assert "train-0" not in said
    assert "does not read" not in said


def test_files_that_datasets_leaves_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It takes the commonest kind of file only, and files with the name of a split."""
    for name in ("train.csv", "train_more.csv", "notes.csv"):
        write_csv(tmp_path / name, ["text", "label"], [("good", 0), ("bad", 1)])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "train.csv").touch()
    (tmp_path / "train_json.jsonl").write_text('{"text": "fine", "label": 0}\n')
    assert len(read_dataset(str(tmp_path), None)["train"]) == 4
    assert f"warning: {tmp_path}: datasets does not read notes.csv, train_json.jsonl\n" in capsys.readouterr().out


def test_a_folder_of_parquet_files_is_read_as_it_is_now(tmp_path: Path) -> None:
    """The cache of datasets takes a folder of the same name with the same README for the same data."""
    paths = "  data_files:\n  - {split: train, path: train.parquet}\n"
    for number, (place, rows) in enumerate([("a", 12), ("b", 20), ("b", 16)]):
        (folder := tmp_path / place / "data").mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n{paths}---\n")
        Dataset.from_dict({"text": [f"{number} {row}" for row in range(rows)]}).to_parquet(folder / "train.parquet")
        assert read_dataset(str(folder), None)["train"]["text"][:] == [f"{number} {row}" for row in range(rows)]


def test_a_data_set_of_a_test_split_alone_is_predicted(run: Callable, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"text": text, "label": ("negative", "positive")[label]} for text, label in sentences(9)]
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "test.parquet")
    flags = ["--model_name_or_path", trained, "--dataset_name", tmp_path / "data", "--num_train_epochs", 0]
    assert run(*flags, "--do_predict", "--output_dir", tmp_path / "out")["test_accuracy"] == 1


def test_a_parquet_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """Even if its time is the same, as some archives and builds set it."""
    for rows in (12, 20):
        data = {"text": [f"row {row}" for row in range(rows)], "label": ["ab"[row % 2] for row in range(rows)]}
        Dataset.from_dict(data).to_parquet(tmp_path / "t.parquet")
        os.utime(tmp_path / "t.parquet", (1e9, 1e9))
        assert len(read_files([str(tmp_path / "t.parquet")], [])) == rows


def test_a_tsv_file_in_a_folder_is_read_like_one_that_is_named(tmp_path: Path) -> None:
    """Quotes are part of the text, and 01 is another class than 1."""
    (tmp_path / "d").mkdir()
    lines = ["text\tlabel", '"an open quote\t01', *(f"row {row}\t{row % 2}" for row in range(20)), 'a "quote"\t01']
    (tmp_path / "d" / "train.tsv").write_text("\n".join(lines) + "\n")
    named = read_files([str(tmp_path / "d" / "train.tsv")], [])
    assert read_dataset(str(tmp_path / "d"), None)["train"][:] == named[:]
    assert len(named) == 22


def test_files_of_another_configuration_are_not_missed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    head = "---\nconfigs:\n"
    for name in ("default", "extra"):
        write_csv(tmp_path / f"{name}.csv", ["text", "label"], [("good", 0), ("bad", 1)])
        head += f"- config_name: {name}\n  data_files: {name}.csv\n"
    (tmp_path / "README.md").write_text(f"{head}---\n")
    assert len(read_dataset(str(tmp_path), None)["train"]) == 2
    assert "does not read" not in capsys.readouterr().out
