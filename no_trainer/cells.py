"""The rows of a .csv or .tsv file: every line a row, every cell as it is written."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NoReturn

from no_trainer.messages import many, stop

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LONE = "\ue00d"  # stands for a carriage return inside a cell while csv reads, which would end the row there
LONGEST_ROW = 1000  # lines that a row with line breaks in a quoted cell may have
csv.field_size_limit(2**31 - 1)


@dataclass
class Cells:
    """A file's columns by name, in which line each row begins, and what a person should know of the reading."""

    columns: dict[str, list[str]]
    lines: list[int]
    notes: list[str] = field(default_factory=list)


@dataclass
class Format:
    """How the cells of a file are told apart."""

    file: str
    separator: str
    skip_space: bool  # after a separator
    width: int = 0  # cells of the header

    def rows(self, lines: list[str], strict: bool = True) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self.separator, skipinitialspace=self.skip_space, strict=strict)


def read_cells(file: str) -> Cells:
    """Read a file that is separated by commas or tabs, as its name says, or by what its header has instead.

    Raises:
        SystemExit: 2, where some line has no reading as one row, or more than one; the first such line is named.
        UnicodeDecodeError: where the file is not UTF-8.
    """
    text = re.sub(r"\r{2,}\n", "\r\n", Path(file).read_bytes().decode("utf-8-sig"))
    notes = []
    if "\n" in text and (lone := len(re.findall(r"\r(?!\n)", text))):
        text = re.sub(r"\r(?!\n)", LONE, text)
        notes.append(f"{many(lone, 'carriage return')} without a line feed: read as part of the text")
    lines = list(io.StringIO(text, newline="\n" if "\n" in text else "\r"))
    first = next((number for number, line in enumerate(lines) if line.strip("\r\n")), len(lines))
    form, names, said = read_header(file, lines[first] if first < len(lines) else "")
    notes += said
    body = lines[first + 1 :]
    rows, begins = literal_rows(form, body, notes) or strict_rows(form, body, notes) or single_rows(form, body, notes)
    while rows and not any(rows[-1]) and form.width > 1:
        rows.pop()
        begins.pop()
        said = "empty rows at the end are left out"
        notes += [said] * (said not in notes)
    begins = [begin + first + 2 for begin in begins]
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in names]
    if LONE in text:
        columns = [[cell.replace(LONE, "\r") for cell in column] for column in columns]
    return Cells(name_columns(file, names, columns, begins, notes), begins, notes)


def read_header(file: str, line: str) -> tuple[Format, list[str], list[str]]:
    """How the cells are separated, the names of the columns, and what to say of them."""
    notes = []
    form = Format(file, "\t" if file.lower().endswith(".tsv") else ",", skip_space=False)
    try:
        names = next(form.rows([line], strict=False), [])
        if len(names) == 1:
            widths = {other: len(next(Format(file, other, False).rows([line], strict=False))) for other in SEPARATORS}
            if widths[other := max(widths, key=widths.get)] > 1:
                form.separator = other
                names = next(form.rows([line], strict=False))
                notes.append(f"its cells are separated by {SEPARATORS[other]}")
    except csv.Error as error:
        stop(f"{file}, line 1: {error}")
    if len(names) > 1 and all(name.startswith(" ") for name in names[1:]):
        form.skip_space = True
        names = next(form.rows([line]))
        notes.append("the space after each separator is not read")
    if spaced := [name for name in names if name != name.strip()]:
        notes.append(f"the column {spaced[0]!r} is read as {spaced[0].strip()!r}")
    form.width = len(names)
    return form, [name.strip() for name in names], notes


def literal_rows(form: Format, lines: list[str], notes: list[str]) -> tuple[list[list[str]], list[int]] | None:
    """The rows of a file with tabs if quotes mean nothing in it: each line then has the header's number of cells."""
    if form.separator != "\t":
        return None
    filled = [(number, line.rstrip("\r\n")) for number, line in enumerate(lines) if line.strip("\r\n")]
    rows = [line.split("\t") for _, line in filled]
    if not all(len(row) == form.width for row in rows):
        return None
    if quoted := sum(cell[:1] == '"' for row in rows for cell in row):
        notes.append(f"quotes are read as part of the text ({many(quoted, 'cell')} with one at the start)")
    return rows, [number for number, _ in filled]


def strict_rows(form: Format, lines: list[str], notes: list[str]) -> tuple[list[list[str]], list[int]] | None:
    """The rows as the csv module reads them, if it finds nothing wrong."""
    rows, begins, reader, begin = [], [], form.rows(lines), 0
    try:
        for row in reader:
            if row:  # an empty line is no row
                if len(row) != form.width:
                    return None
                rows.append(row)
                begins.append(begin)
            begin = reader.line_num
    except csv.Error:
        return None
    broken = [begin for begin, row in zip(begins, rows, strict=True) if any("\n" in cell for cell in row)]
    ends = dict(zip(begins, [*begins[1:], len(lines)], strict=False))
    if whole := sum(all(line.count(form.separator) == form.width - 1 for line in lines[b : ends[b]]) for b in broken):
        notes.append(f"{many(whole, 'row')} with a quoted cell over several lines, each of which could be a row")
    return rows, begins


def single_rows(form: Format, lines: list[str], notes: list[str]) -> tuple[list[list[str]], list[int]]:
    """The rows of a file with something out of place, one after the other, each read in the one way that it can be."""
    rows, begins, wrong, literal, trimmed, number = [], [], [], 0, 0, 0
    while number < len(lines):
        line, used = lines[number].rstrip("\r\n"), 1
        row = one_row(form, [line])
        if row is None and '"' in line:
            reader = form.rows(islice(lines, number, number + LONGEST_ROW))
            row = one_row(form, reader)
            used = reader.line_num if row else 1
        if (row is None or len(row) != form.width) and '"' in line and (split := split_one_way(form, line)):
            row, used, literal = split, 1, literal + 1
        if row and len(row) > form.width and not any(row[form.width :]):
            row, trimmed = row[: form.width], trimmed + 1
        if row and len(row) == form.width:
            rows.append(row)
            begins.append(number)
        elif line:
            wrong.append((number, len(row or [])))
        number += used
    if wrong:
        refuse(form, wrong)
    if literal:
        notes.append(f"{many(literal, 'row')} with a quote out of place: read as they stand")
    if trimmed:
        notes.append(f"{many(trimmed, 'row')} with an empty cell more than the header: it is left out")
    return rows, begins


def one_row(form: Format, lines: Iterator[list[str]] | list[str]) -> list[str] | None:
    """The first row of these lines; None where it is not a row as the csv module has it."""
    try:
        return next(form.rows(lines) if isinstance(lines, list) else lines, None)
    except csv.Error:
        return None


def split_one_way(form: Format, line: str) -> list[str] | None:
    """The cells of a line in which quotes are not doubled, if it can be cut into the header's number in one way only.

    A cell in quotes may have anything in it but a quote, a separator and a quote; any other cell no separator.
    """
    ends = [match.start() for match in re.finditer(re.escape(form.separator), line)] + [len(line)]
    border = f'"{form.separator}"'

    def cuts(start: int, left: int) -> Iterator[list[str]]:
        for end in ends:
            cell = line[start:end]
            if end < start or (left == 1) != (end == len(line)):
                continue
            quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
            if form.separator in cell and (not quoted or border in cell[1:-1]):
                continue
            cell = cell[1:-1].replace('""', '"') if quoted else cell
            if left == 1:
                yield [cell]
            else:
                yield from ([cell, *rest] for rest in cuts(end + 1, left - 1))

    found = list(islice(cuts(0, form.width), 2))
    return found[0] if len(found) == 1 else None


def refuse(form: Format, wrong: list[tuple[int, int]]) -> NoReturn:
    """Stop, and name the first line that is no row, and how many there are."""
    number, cells = wrong[0]
    more = f" (and {many(len(wrong) - 1, 'more line')} like it)" * (len(wrong) > 1)
    what = f"{cells} cells, but the header has {form.width}" if cells else "a quote that is not closed, or not doubled"
    hint = "put cells that hold a separator in double quotes, and write a double quote inside them twice"
    stop(f"{form.file}, line {number + 2}: {what}{more}; {hint}")


def name_columns(
    file: str, names: list[str], columns: list[list[str]], begins: list[int], notes: list[str]
) -> dict[str, list[str]]:
    """The columns by name, without those that have neither a name nor a cell."""
    named = {}
    for number, (name, column) in enumerate(zip(names, columns, strict=True)):
        filled = next((row for row, cell in enumerate(column) if cell), None)
        if not name and filled is None:
            notes.append("a column without a name and without cells is left out")
            continue
        if not name and number:
            stop(f"{file}: the header has a column without a name; line {begins[filled]} has {column[filled]!r} there")
        name = name or "Unnamed: 0"  # as pandas calls the index that it writes so
        if name in named:
            stop(f"{file}: the header has two columns {name!r}")
        named[name] = column
    return named
