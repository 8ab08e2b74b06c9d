"""Own files: every row is a row, every cell is read as it is written, and each is parsed once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from conftest import ROOT, load, refused, sentences, write_csv

import run_glue_no_trainer as script
from no_trainer.files import parse_json
from no_trainer.tasks import load_data


def test_csv_text_stays_text(tmp_path: Path) -> None:
    texts = ["NA", "null", "007", "1e5", "", 'a, "quoted"\nline', "2020-01-01"]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(text, i % 2) for i, text in enumerate(texts)])
    file.write_text("\ufeff" + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert load(file)[0]["train"]["text"][:] == texts


def test_json_text_stays_text(tmp_path: Path) -> None:
    texts = ["2020-01-01", "007", "1e5", "null", "NA", "true", "2009-06-15T13:45:30"]
    file = tmp_path / "t.json"
    file.write_text(json.dumps([{"text": text, "label": str(i % 2)} for i, text in enumerate(texts)]))
    splits, task = load(file)
    assert splits["train"]["text"][:] == texts
    assert task.values == ["0", "1"]


def test_numbers_as_text_in_json_become_text(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text('{"text": 7, "label": "a"}\n{"text": 8, "label": "b"}\n')
    assert load(file)[0]["train"]["text"][:] == ["7", "8"]


def test_json_of_one_row_may_have_a_column_called_data(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"data": "x", "label": "a"}\n')
    assert parse_json(str(tmp_path / "t.jsonl")).column_names == ["data", "label"]


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
    parser = tmp_path / "no_trainer" / "files.py"
    parser.write_text(parser.read_text().replace("column.append(cell)", "column.append(cell.upper())"))
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
