"""Writes answers to files: predictions, GLUE's submission, and the worst mistakes."""

import csv
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from no_trainer.glue import IN_WORDS, NUMBER, ONE, ROW, SEVERAL, TEST_FILES, Task, suffix
from no_trainer.launch import say
from no_trainer.metrics import row_losses
from no_trainer.run import Run

CHUNK = 10_000  # rows held in memory as Python objects


def write_answers(
    run: Run, task: Task, name: str, split: Dataset, logits: torch.Tensor, probabilities: torch.Tensor
) -> None:
    """Write the answers for a split: predict_results.csv, or a file for GLUE's server.

    `logits` and `probabilities` are [rows, classes].
    """
    args, folder = run.args, Path(run.args.output_dir)
    if args.task_name:
        part = {"test_mismatched": "mnli_mm", "ax": "ax"}.get(name, args.task_name)
        file = folder / "glue" / f"{TEST_FILES[part]}.tsv"
        write(file, server_rows(task, part, logits), "\t")
        if args.max_predict_samples:
            say(f"warning: {file} has the first rows only; the server takes all")
        else:
            pack_submission(folder / "glue")
    else:
        file = folder / f"predict_results{name.removeprefix('test')}.csv"
        write(file, answer_rows(task, split, logits, probabilities), ",")
    say(f"{len(logits)} predictions are in {file}")


def answer_rows(task: Task, split: Dataset, logits: torch.Tensor, probabilities: torch.Tensor) -> Iterator[list[Any]]:
    """The header, then each row: number, texts, label if it has one, answer, probabilities."""
    labelled = "label" in split.column_names
    others = ["label"] * labelled + ["prediction"]
    if task.labels:
        others += ["probability", *(f"probability_{label}" for label in task.labels)]
    yield ["row", *titles(task, others), *others]
    for first in range(0, len(split), CHUNK):
        rows = slice(first, first + CHUNK)
        columns = [split[rows][name] for name in task.text_columns]
        columns += [spelled(task, split[rows]["label"])] if labelled else []
        part = probabilities[rows]
        answers = zip(named(task, logits[rows]), sure(task, part), part.tolist(), strict=True)
        for number, (answer, share, each) in enumerate(answers, first):
            cells = [number + 1, *(column[number - first] for column in columns), answer]
            yield cells + ([share, *each] if task.labels else [])


def titles(task: Task, others: list[str]) -> list[str]:
    """The names of the text columns, changed if another column of the table has the same one."""
    return [f"{name} (text)" if name in ("row", *others) else name for name in task.text_columns]


def named(task: Task, logits: torch.Tensor) -> list[Any]:
    """The answers as they are written: a class name, several names joined by bars, or a number."""
    if task.problem_type == NUMBER:
        return logits[:, 0].tolist()
    if task.problem_type == SEVERAL:
        rows = [zip(task.labels, row, strict=True) for row in logits.tolist()]
        return [joined(name for name, logit in row if logit > 0) for row in rows]
    return [task.labels[index] for index in logits.argmax(-1).tolist()]


def joined(names: Iterable[str]) -> str:
    """Several class names in one cell, with bars between them; a bar in a name gets a backslash."""
    return "|".join(name.replace("|", r"\|") for name in names)


def sure(task: Task, probabilities: torch.Tensor) -> list[float]:
    """The probability of each answer; with several classes, that of the least certain one."""
    if task.problem_type == SEVERAL:
        return torch.maximum(probabilities, 1 - probabilities).min(-1).values.tolist()
    return probabilities.max(-1).values.tolist()


def spelled(task: Task, labels: list[Any]) -> list[Any]:
    """Labels of the data, written like the answers."""
    if task.problem_type == NUMBER:
        return labels
    names = dict(zip(map(str, task.values), task.labels, strict=True))
    if task.problem_type == ONE:
        return [names[str(label)] for label in labels]
    given = [set(map(str, label)) for label in labels]  # in the order of the classes, as the answers are
    return [joined(name for value, name in names.items() if value in row) for row in given]


def write_mistakes(
    run: Run,
    task: Task,
    name: str,
    split: Dataset,
    logits: torch.Tensor,
    labels: torch.Tensor,
    probabilities: torch.Tensor,
) -> list[str]:
    """Write validation_predictions.csv, greatest loss first; returns a line on the worst three.

    Rows keep their numbers in the data from which they were held out, or others left out.
    """
    losses = row_losses(task, logits, labels)
    order = losses.argsort(descending=True, stable=True)
    probability = ["probability"] * bool(task.labels)
    others = ["label", "prediction", *probability, "loss"]
    header = ["row", *titles(task, others), *others]
    worst: list[str] = []

    def rows() -> Iterator[list[Any]]:
        yield header
        for first in range(0, len(order), CHUNK):
            part = order[first : first + CHUNK]
            taken = split.select(part.tolist())
            numbers = [row + 1 for row in (taken[ROW][:] if ROW in taken.column_names else part.tolist())]
            columns = [taken[column][:] for column in task.text_columns]
            columns.append(spelled(task, taken["label"][:]))
            columns.append(named(task, logits[part]))
            columns += [sure(task, probabilities[part])] if task.labels else []
            for place, cells in enumerate(zip(*columns, losses[part].tolist(), strict=True)):
                *texts, label, answer = cells[: len(task.text_columns) + 2]
                if len(worst) < 3 and label != answer:
                    answer = f"{answer:.4g}" if task.problem_type == NUMBER else answer
                    text = " / ".join(map(str, texts))
                    worst.append(f"row {numbers[place]}: {label}, predicted {answer}: {text}")
                yield [numbers[place], *cells]

    write(Path(run.args.output_dir) / f"validation_predictions{suffix(name)}.csv", rows(), ",")
    return worst


def write(file: Path, rows: Iterable[list[Any]], delimiter: str) -> None:
    """Write a table atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.partial")
    try:
        with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as out:
            csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def server_rows(task: Task, part: str, logits: torch.Tensor) -> Iterator[list[Any]]:
    """The rows of the file for GLUE's server; `part` is a task, or a part of one."""
    yield ["index", "prediction"]
    if task.problem_type == NUMBER:
        values = logits[:, 0].tolist()
        yield from ([index, f"{min(max(value, 0), 5):.3f}"] for index, value in enumerate(values))
        return
    answers = task.words if part in IN_WORDS else task.values
    yield from ([index, answers[k]] for index, k in enumerate(logits.argmax(-1).tolist()))


def pack_submission(folder: Path) -> None:
    """Write submission.zip for GLUE's server once the files of all tasks are there."""
    files = [folder / f"{name}.tsv" for name in TEST_FILES.values()]
    if all(file.exists() for file in files):
        with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
