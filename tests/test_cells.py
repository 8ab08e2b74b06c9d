"""The rows of .csv and .tsv files: each line one, each cell as it is written, and what is said of the reading."""

import csv
import random
from pathlib import Path

import pytest
from conftest import GLUE

from no_trainer.cells import read_cells

QUOTED = '" It works , he said .\tpos\nfine\tpos\nbad\tneg\nShe said , awful . "\tneg\ngood\tpos\npoor\tneg\n'


def read(folder: Path, text: str | bytes, suffix: str = ".csv") -> tuple[list[tuple], str]:
    """The rows of a file with this text, and all that is said of it."""
    file = folder / f"t{suffix}"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    table, _, notes = read_cells(str(file))
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True)), "; ".join(notes)


def refused(folder: Path, text: str, capsys: pytest.CaptureFixture, suffix: str = ".csv") -> str:
    with pytest.raises(SystemExit) as exit_:
        read(folder, text, suffix)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_quotes_in_a_tsv_mean_nothing_where_each_line_is_then_a_row(tmp_path: Path) -> None:
    rows, said = read(tmp_path, "sentence\tlabel\n" + QUOTED, ".tsv")
    assert [label for _, label in rows] == ["pos", "pos", "neg", "neg", "pos", "neg"]
    assert (rows[0][0], rows[3][0]) == ('" It works , he said .', 'She said , awful . "')
    assert said == "quotes are read as part of the text (1 cell with one at the start)"


@pytest.mark.parametrize("place", range(12))
def test_twelve_places_of_quotes_in_a_tsv(tmp_path: Path, place: int) -> None:
    """At the start, in the middle and at the end of a cell; one, two, three; in the first and in the second text."""
    cell = [
        '"a b c',
        'a "b c',
        'a b c"',
        '"a b c"',
        'a "b" c',
        '""a b c',
        '"a" b "c"',
        '"',
        '""',
        '"""',
        'a "" b',
        '" a',
    ][place]
    lines = [[str(number), "first text", "second text", "0"] for number in range(30)]
    for row in (0, 13, 29):
        lines[row][1 + place % 2] = cell
    text = "index\tsentence1\tsentence2\tlabel\n" + "".join("\t".join(line) + "\n" for line in lines)
    rows, _ = read(tmp_path, text, ".tsv")
    assert rows == [tuple(line) for line in lines]


def test_a_tsv_whose_cells_hold_tabs_is_read_with_quotes(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, 'text\tlabel\n"a\tb"\tc\n"d\n e ""f"""\tg\n', ".tsv")
    assert rows == [("a\tb", "c"), ('d\n e "f"', "g")]


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ('"x","say "no" now"', ("x", 'say "no" now')),
        ('"say "no", now",neg', ('say "no", now', "neg")),
        ('"He said "hi", and "bye", twice","a"', ('He said "hi", and "bye", twice', "a")),
        ('neg,"say ""yes"", not "no""', ("neg", 'say "yes", not "no"')),
        ('"one,a', ('"one', "a")),
        ('"o"ne",a', ('o"ne', "a")),
        ('"a" b,c', ('"a" b', "c")),
    ],
)
def test_a_line_that_splits_in_one_way_is_taken_as_it_stands(tmp_path: Path, line: str, cells: tuple) -> None:
    """Between rows that are well written, one of them over two lines."""
    rows, said = read(tmp_path, f'text,label\n"a, ""q""\nb",c\n{line}\n5" disk,d\n')
    assert rows == [('a, "q"\nb', "c"), cells, ('5" disk', "d")]
    assert said.startswith("1 row with a quote out of place, read as written")


def test_a_line_that_splits_in_no_way_or_in_two_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    said = refused(tmp_path, 'a,b,c\n1,2,3\n"x" y,"z", "u",v\nx,y\nx\n', capsys)
    assert "t.csv, line 3: " in said
    assert "(and 2 more lines like it)" in said
    said = refused(tmp_path, "text,label\na,b,c\nd,e\n", capsys)
    assert "t.csv, line 2: 3 cells, but the header has 2; " in said


def test_a_row_over_several_lines_that_could_be_rows_is_told(tmp_path: Path) -> None:
    """`"It works,pos` is perhaps a quote that nobody closed: the csv format has it as one cell."""
    rows, said = read(tmp_path, 'text,label\n"It works,pos\nfine,pos\nbad ",neg\n')
    assert len(rows) == 1
    assert said == "1 row with a quoted cell over several lines that look like rows"


@pytest.mark.parametrize(
    ("text", "rows", "said"),
    [
        (
            "text,label,\na,x,\nb,y,\n",
            [("a", "x"), ("b", "y")],
            "a column without a name and without cells",
        ),
        ("text,label\na,x\nb,y\n,\n,\n", [("a", "x"), ("b", "y")], "empty rows at the end are left out"),
        ("text,label\na,x,\nb,y\n", [("a", "x"), ("b", "y")], "1 row with empty cells beyond the header: ignored"),
        (
            'text, label\na b, "x, y"\nc, z\n',
            [("a b", "x, y"), ("c", "z")],
            "the space after each separator",
        ),
        ("text,label \na,x\n", [("a", "x")], "the column 'label ' is read as 'label'"),
        ("text,label\ra,x\rb,y\r", [("a", "x"), ("b", "y")], ""),
        ("text,label\r\na\rb,x\r\nc,y\r\n", [("a\rb", "x"), ("c", "y")], "1 carriage return without a line feed"),
        ("text,label\r\r\na,x\r\r\n", [("a", "x")], ""),
        ("text;label\na, b;x\n", [("a, b", "x")], "its cells are separated by semicolons"),
        ("text\tlabel\na, b\tx\n", [("a, b", "x")], "its cells are separated by tabs"),
        ("text|label\na|x\n", [("a", "x")], "its cells are separated by bars"),
        (",text\n0,a\n1,b\n", [("0", "a"), ("1", "b")], ""),  # the index that pandas writes
        ("text\n\na\n\n", [("a",)], ""),
        ("\ufefftext,label\nNA,007\n", [("NA", "007")], ""),
    ],
)
def test_what_spreadsheets_write(tmp_path: Path, text: str, rows: list, said: str) -> None:
    found, notes = read(tmp_path, text)
    assert found == rows
    assert said in notes
    assert bool(said) == bool(notes)


def test_a_file_of_commas_called_tsv(tmp_path: Path) -> None:
    rows, said = read(tmp_path, "text,label\na,x\n", ".tsv")
    assert (rows, said) == ([("a", "x")], "its cells are separated by commas")


def test_a_column_that_has_cells_needs_a_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "a column without a name; line 3 has 'q' there" in refused(tmp_path, "a,,b\n1,,2\n3,q,4\n", capsys)


def test_lines_are_counted_as_the_file_has_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\n"a\nb",x\n\nc,y\n')
    assert list(read_cells(str(tmp_path / "t.csv"))[1]) == [2, 5]


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_whatever_the_csv_module_writes_is_read_as_it_was(tmp_path: Path, separator: str) -> None:
    pick = random.Random(0)
    rows = [["".join(pick.choices('ab", ;\t\n', k=pick.randint(1, 6))) for _ in "xyz"] for _ in range(300)]
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    with open(tmp_path / "t.csv", "w", newline="") as out:
        csv.writer(out, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([["x", "y", "z"], *rows])
    table, *_ = read_cells(str(tmp_path / "t.csv"))
    assert [list(row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)] == rows


def test_glues_own_files_as_tsv(tmp_path: Path, glue_folder: Path) -> None:
    """As the benchmark publishes them: quotes anywhere, and each line with the header's number of cells."""
    from datasets import load_dataset

    for task in ("mrpc", "rte", "stsb", "cola", "sst2", "wnli"):
        data = load_dataset(str(GLUE), task, split="validation")
        names = [name for name in data.column_names if name not in ("label", "idx")]
        lines = [[*(" ".join(row[name].split()) for name in names), str(row["label"])] for row in data]
        text = "".join("\t".join(line) + "\n" for line in [[*names, "label"], *lines])
        rows, _ = read(tmp_path, text, ".tsv")
        assert rows == [tuple(line) for line in lines], task


def test_rows_between_two_stray_quotes_are_rows(tmp_path: Path) -> None:
    """In a file with a quote out of place, a pair of quotes does not swallow the lines between them."""
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(20)]
    rows[3], rows[9], rows[15] = ('"good start', "a"), ('size 5"', "b"), ('"x" y', "a")
    found, said = read(tmp_path, "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    assert found == rows
    assert "2 rows with a quote out of place, read as written" in said


@pytest.mark.parametrize(
    ("cell", "noted"), [("Dear A,\nplease wait,\nthanks", True), ("Dear A,\nthanks", True), ("Dear A\nthanks", False)]
)
def test_a_cell_over_several_lines_beside_a_stray_quote(tmp_path: Path, cell: str, noted: bool) -> None:
    """Lines within quotes whose last cell would be empty are no rows; if they could be, that is told."""
    rows, said = read(tmp_path, f'text,label\n"{cell}",a\n"big" size,b\n')
    assert rows == [(cell, "a"), ('"big" size', "b")]
    assert ("1 row with a quoted cell over several lines that look like rows" in said) == noted
