"""JSON and JSON lines: every object is a row, every value stays as it is written."""

import json
from pathlib import Path

import pytest
from conftest import load

from no_trainer.files import read_files
from no_trainer.records import read_records

COLUMNS = {"text": ["a b", "c d", "e f"], "label": ["x", "y", "x"]}


def read(file: Path) -> dict[str, list]:
    return read_files([str(file)], []).to_dict()


def test_json_text_stays_text(tmp_path: Path) -> None:
    texts = ["2020-01-01", "007", "1e5", "null", "NA", "true", "2009-06-15T13:45:30"]
    file = tmp_path / "t.json"
    file.write_text(json.dumps([{"text": text, "label": str(i % 2)} for i, text in enumerate(texts)]))
    splits, task = load(file)
    assert splits["train"]["text"][:] == texts
    assert task.values == [0, 1]  # numbers in quotes are numbers, as in a .csv


def test_numbers_as_text_in_json_become_text(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text('{"text": 7, "label": "a"}\n{"text": 8, "label": "b"}\n')
    assert load(file)[0]["train"]["text"][:] == ["7", "8"]


def test_json_of_one_row_may_have_a_column_called_data(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"data": "x", "label": "a"}\n')
    assert read_records(str(tmp_path / "t.jsonl"))[0].column_names == ["data", "label"]


@pytest.mark.parametrize(
    "content",
    [
        COLUMNS,
        {name: dict(enumerate(values)) for name, values in COLUMNS.items()},  # as pandas writes it
        {"data": [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]},
        [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)],
    ],
    ids=["columns", "columns by row", "under data", "a list"],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_of_columns_is_read_as_columns(
    tmp_path: Path, content: object, suffix: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / f"t.{suffix}").write_text(json.dumps(content))
    assert read(tmp_path / f"t.{suffix}") == COLUMNS
    told = "its values are read as columns of 3 rows" in capsys.readouterr().out
    assert told == (isinstance(content, dict) and "data" not in content)


def test_json_of_columns_of_different_lengths_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"text": ["a", "b"], "label": ["x"]}))
    with pytest.raises(SystemExit):
        read(tmp_path / "t.json")
    assert "its values look like columns, but have different lengths" in capsys.readouterr().err


def test_json_columns_are_joined_by_their_row_numbers(tmp_path: Path) -> None:
    """As pandas writes them, in whatever order the rows of each column stand."""
    file = tmp_path / "t.json"
    file.write_text('{"text": {"0": "bad", "1": "good"}, "label": {"1": "pos", "0": "neg"}}')
    assert read_files([str(file)], []).to_dict() == {"text": ["bad", "good"], "label": ["neg", "pos"]}
