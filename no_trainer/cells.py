"""Reads .csv and .tsv files: every row is kept, and every cell stays as it is written."""

import csv
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from no_trainer.messages import many, stop

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LONE = "\ue00d"  # replaces a carriage return inside a cell, where csv would end the row
BLOCK = 10_000  # rows held as Python strings before they become Arrow arrays
LONGEST_ROW = 1000  # most lines that a row with line breaks in quoted cells may span
SEVERAL_LINES = "{} with a quoted cell over several lines that look like rows"
csv.field_size_limit(2**31 - 1)


@dataclass
class Format:
    """How the cells of a file are separated."""

    file: str
    separator: str
    skip_space: bool  # after each separator
    width: int = 0  # number of cells in the header

    def rows(self, lines: Iterable[str], strict: bool = True) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self.separator, skipinitialspace=self.skip_space, strict=strict)

    def fits(self, lines: list[str], full: bool = False) -> bool:
        """Whether each of these lines looks like a row, and has no empty cell if it has to be `full`."""
        rows = [line.rstrip("\r\n").split(self.separator) for line in lines]
        return all(len(row) == self.width and (all(row) or not full) for row in rows)


class Rows:
    """The rows read so far, as Arrow columns: they take far less memory than Python strings."""

    def __init__(self, width: int) -> None:
        self.blocks: list[list[pa.Array]] = [[] for _ in range(width)]
        self.latest: list[list[str]] = []
        self.empty: list[int] = []  # lines of empty rows, which are dropped at the end of the file
        self.lines, self.lone, self.notes = array("q"), 0, []  # of each row; carriage returns in cells; for the user

    def add(self, row: list[str], line: int) -> None:
        if not any(row) and len(row) > 1:
            self.empty.append(line)
            return
        if self.empty:
            self.latest += [[""] * len(row) for _ in self.empty]
            self.lines.extend(self.empty)
            self.empty = []
        self.latest.append(row)
        self.lines.append(line)
        if len(self.latest) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        for blocks, column in zip(self.blocks, zip(*self.latest, strict=True), strict=False):
            if lone := "".join(column).count(LONE):
                self.lone += lone
                column = [cell.replace(LONE, "\r") for cell in column]
            blocks.append(pa.array(column, pa.string()))
        self.latest = []

    def columns(self) -> list[pa.ChunkedArray]:
        self.flush()
        return [pa.chunked_array(blocks, pa.string()) for blocks in self.blocks]


def read_cells(file: str) -> tuple[pa.Table, Sequence[int], list[str]]:
    """A file's cells as text (NA, 007 and 1e5 stay as written), the line on which each row begins,
    and notes for the user. The file's extension gives the separator, or else the header.

    Raises:
        SystemExit: 2, if a line cannot be read as one row, or can be in several ways.
        UnicodeDecodeError: if the file is not UTF-8.
    """
    first, header = next(((n, line) for n, line in enumerate(lines_of(file)) if line.strip("\r\n")), (0, ""))
    form, names, notes = read_header(file, header)

    def body() -> Iterator[str]:
        return islice(lines_of(file), first + 1, None)

    rows = literal_rows(form, body) or strict_rows(form, body) or single_rows(form, list(body()))
    columns, begins = rows.columns(), array("q", (line + first + 2 for line in rows.lines))
    named = name_columns(file, names, columns, begins)
    notes = [f"{many(rows.lone, 'carriage return')} without a line feed, read as text"] * bool(rows.lone) + notes
    notes += rows.notes + ["empty rows at the end are left out"] * bool(rows.empty)
    notes += ["a column without a name and without cells is left out"] * (len(named) < len(columns))
    return pa.table(named), begins, notes


def lines_of(file: str) -> Iterator[str]:
    """The lines of a file; a carriage return that does not end a line is replaced by LONE."""
    with open(file, "rb") as content:
        ends = "\n" if any(b"\n" in block for block in iter(lambda: content.read(1 << 20), b"")) else "\r"
    with open(file, encoding="utf-8-sig", newline=ends) as lines:
        for line in lines:
            if "\r" in line and ends == "\n":
                line = re.sub("\r+\n$", "\n", line).replace("\r", LONE)
            yield line


def read_header(file: str, line: str) -> tuple[Format, list[str], list[str]]:
    """How the cells are separated, the names of the columns, and notes for the user."""
    notes, form = [], Format(file, "\t" if file.lower().endswith(".tsv") else ",", skip_space=False)
    try:
        names = next(form.rows([line], strict=False), [])
        if len(names) == 1:
            forms = {other: Format(file, other, skip_space=False) for other in SEPARATORS}
            found = {other: next(f.rows([line], strict=False)) for other, f in forms.items()}
            widest = max(found, key=lambda other: len(found[other]))
            if len(found[widest]) > 1:
                form.separator, names = widest, found[widest]
                notes.append(f"its cells are separated by {SEPARATORS[widest]}")
    except csv.Error as error:
        stop(f"{file}, line 1: {error}")
    if len(names) > 1 and all(name.startswith(" ") for name in names[1:]):
        form.skip_space = True
        names = next(form.rows([line], strict=False))
        notes.append("the space after each separator is ignored")
    if spaced := [name for name in names if name != name.strip()]:
        notes.append(f"the column {spaced[0]!r} is read as {spaced[0].strip()!r}")
    form.width = len(names)
    return form, [name.strip() for name in names], notes


def literal_rows(form: Format, body: Callable[[], Iterator[str]]) -> Rows | None:
    """The rows of a tab-separated file, with quotes as plain text; None if some do not fit."""
    if form.separator != "\t":
        return None
    rows, quoted = Rows(form.width), 0
    for number, line in enumerate(body()):
        if line.strip("\r\n"):
            row = line.rstrip("\r\n").split("\t")
            if len(row) != form.width:
                return None
            if '"' in line:
                quoted += sum(cell[:1] == '"' for cell in row)
            rows.add(row, number)
    if quoted:
        rows.notes.append(f"quotes are read as part of the text ({many(quoted, 'cell')} with one at the start)")
    return rows


def strict_rows(form: Format, body: Callable[[], Iterator[str]]) -> Rows | None:
    """The rows as the csv module reads them; None if it finds an error."""
    rows, taken, whole, begin = Rows(form.width), [], 0, 0  # taken: the lines of the row in hand
    try:
        for row in (reader := form.rows(taken.append(line) or line for line in body())):
            if row:  # an empty line is no row
                if len(row) != form.width:
                    return None
                rows.add(row, begin)
                whole += len(taken) > 1 and form.fits(taken)
            begin = reader.line_num
            taken.clear()
    except csv.Error:
        return None
    rows.notes += [SEVERAL_LINES.format(many(whole, "row"))] * bool(whole)
    return rows


def single_rows(form: Format, lines: list[str]) -> Rows:
    """The rows of a file with misplaced quotes or cells, each read in the only possible way."""
    rows, wrong, literal, trimmed, whole, number = Rows(form.width), [], 0, 0, 0, 0
    while number < len(lines):
        line, used = lines[number].rstrip("\r\n"), 1
        row = one_row(form.rows([line]))
        if row is None and '"' in line:
            reader = form.rows(islice(lines, number, number + LONGEST_ROW))
            row = one_row(reader)
            used = reader.line_num if row else 1
            span = lines[number : number + used]
            if len(span) > 2 and form.fits(span) and form.fits(span[1:-1], full=True):
                row, used = None, 1  # each of these lines looks like a row, so each is one
            whole += used > 1 and form.fits(span)
        if (row is None or len(row) != form.width) and '"' in line and (split := split_one_way(form, line)):
            row, used, literal = split, 1, literal + 1
        if row and len(row) > form.width and not any(row[form.width :]):
            row, trimmed = row[: form.width], trimmed + 1
        if row and len(row) == form.width:
            rows.add(row, number)
        elif line:
            wrong.append((number, len(row or [])))
        number += used
    if wrong:  # say the first line that cannot be read
        number, cells = wrong[0]
        what = f"{cells} cells, but the header has {form.width}"
        what = what if cells else "a quote that is not closed or not doubled"
        what += f" (and {many(len(wrong) - 1, 'more line')} like it)" * (len(wrong) > 1)
        hint = "put a cell that contains a separator in double quotes, and double any quote inside it"
        stop(f"{form.file}, line {number + 2}: {what}; {hint}")
    rows.notes += [f"{many(literal, 'row')} with a quote out of place, read as written"] * bool(literal)
    rows.notes += [f"{many(trimmed, 'row')} with empty cells beyond the header: ignored"] * bool(trimmed)
    rows.notes += [SEVERAL_LINES.format(many(whole, "row"))] * bool(whole)
    return rows


def one_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row of a reader; None at the end or if the csv module finds an error."""
    try:
        return next(reader, None)
    except csv.Error:
        return None


def split_one_way(form: Format, line: str) -> list[str] | None:
    """The cells of a line with undoubled quotes; None unless exactly one split fits the header."""
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
            rest = cuts(end + 1, left - 1) if left > 1 else [[]]
            yield from ([cell, *others] for others in rest)

    found = list(islice(cuts(0, form.width), 2))
    return found[0] if len(found) == 1 else None


def name_columns(
    file: str, names: list[str], columns: list[pa.ChunkedArray], begins: Sequence[int]
) -> dict[str, pa.ChunkedArray]:
    """The columns by name, without those that have neither a name nor a filled cell."""
    named = {}
    for number, (name, column) in enumerate(zip(names, columns, strict=True)):
        filled = 0 if name else next((row for row, cell in enumerate(column) if cell.as_py()), None)
        if filled is None:
            continue
        if not name and number:
            line, cell = begins[filled], column[filled].as_py()
            stop(f"{file}: the header has a column without a name; line {line} has {cell!r} there; name it")
        name = name or "Unnamed: 0"  # pandas' name for an index column that it writes without one
        if name in named:
            stop(f"{file}: the header has two columns {name!r}")
        named[name] = column
    return named
