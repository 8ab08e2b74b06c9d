"""Answers as files: the table of new rows, what GLUE's server takes, and the rows that the model got most wrong."""

import csv
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from no_trainer.glue import IN_WORDS, NUMBER, SEVERAL, TEST_FILES, Task, suffix
from no_trainer.launch import say
from no_trainer.metrics import row_losses
from no_trainer.run import Run

CHUNK = 10_000  # rows that are in memory as Python objects


def write_answers(run: Run, task: Task, name: str, split: Dataset, logits: torch.Tensor, shares: torch.Tensor) -> None:
    """The answers to the rows of a split: predict_results.csv, or the file of GLUE's server.

    `logits`, and `shares`, the probabilities: [rows, classes].
    """
    args, folder = run.args, Path(run.args.output_dir)
    if args.task_name:
        part = {"test_mismatched": "mnli_mm", "ax": "ax"}.get(name, args.task_name)
        file = folder / "glue" / f"{TEST_FILES[part]}.tsv"
        write(file, server_rows(task, part, logits), "\t")
        pack_submission(folder / "glue")
    else:
        file = folder / f"predict_results{name.removeprefix('test')}.csv"
        write(file, answer_rows(task, split, logits, shares), ",")
    say(f"{len(logits)} predictions are in {file}")


def answer_rows(task: Task, split: Dataset, logits: torch.Tensor, shares: torch.Tensor) -> Iterator[list[Any]]:
    """The header, then each row: its number, texts and label, if it has one; the answer and the probabilities."""
    labelled = "label" in split.column_names
    header = ["row", *task.text_columns, *(["label"] * labelled), "prediction"]
    yield header + (["probability", *(f"probability_{label}" for label in task.labels)] if task.labels else [])
    for first in range(0, len(split), CHUNK):
        rows = slice(first, first + CHUNK)
        columns = [split[rows][name] for name in task.text_columns]
        columns += [[spell(task, label) for label in split[rows]["label"]]] if labelled else []
        answers = zip(named(task, logits[rows]), sure(task, shares[rows]), shares[rows].tolist(), strict=True)
        for number, (answer, share, each) in enumerate(answers, first):
            cells = [number + 1, *(column[number - first] for column in columns), answer]
            yield cells + ([share, *each] if task.labels else [])


def named(task: Task, logits: torch.Tensor) -> list[Any]:
    """The answers as they are written: a name, several with bars between them, or a number."""
    if task.problem_type == NUMBER:
        return logits[:, 0].tolist()
    if task.problem_type == SEVERAL:
        return [
            "|".join(name for name, one in zip(task.labels, row, strict=True) if one > 0) for row in logits.tolist()
        ]
    return [task.labels[index] for index in logits.argmax(-1).tolist()]


def sure(task: Task, shares: torch.Tensor) -> list[float]:
    """The probability of each answer; of several classes that of the one that is least sure."""
    if task.problem_type == SEVERAL:
        return torch.maximum(shares, 1 - shares).min(-1).values.tolist()
    return shares.max(-1).values.tolist()


def spell(task: Task, label: Any) -> Any:
    """A label of the data as the answers are written."""
    if task.problem_type == NUMBER:
        return label
    names = dict(zip(map(str, task.values), task.labels, strict=True))
    return "|".join(names[str(one)] for one in label) if task.problem_type == SEVERAL else names[str(label)]


def write_mistakes(
    run: Run, task: Task, name: str, split: Dataset, logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor
) -> list[str]:
    """validation_predictions.csv, the row with the greatest loss first; returns a line on each of the first three."""
    losses = row_losses(task, logits, labels)
    order = losses.argsort(descending=True, stable=True)
    header = ["row", *task.text_columns, "label", "prediction", *(["probability"] * bool(task.labels)), "loss"]
    worst: list[str] = []

    def rows() -> Iterator[list[Any]]:
        yield header
        for first in range(0, len(order), CHUNK):
            part = order[first : first + CHUNK]
            taken = split.select(part.tolist())
            columns = [taken[column][:] for column in task.text_columns]
            columns.append([spell(task, label) for label in taken["label"][:]])
            columns.append(named(task, logits[part]))
            columns += [sure(task, shares[part])] if task.labels else []
            for place, cells in enumerate(zip(*columns, losses[part].tolist(), strict=True)):
                *texts, label, answer = cells[: len(task.text_columns) + 2]
                if len(worst) < 3 and label != answer:
                    answer = f"{answer:.4g}" if task.problem_type == NUMBER else answer
                    worst.append(f"row {part[place] + 1}: {label}, predicted {answer}: {' / '.join(map(str, texts))}")
                yield [int(part[place]) + 1, *cells]

    write(Path(run.args.output_dir) / f"validation_predictions{suffix(name)}.csv", rows(), ",")
    return worst


def write(file: Path, rows: Iterable[list[Any]], delimiter: str) -> None:
    """Write a table, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.partial")
    try:
        with open(aside, "w", encoding="utf-8", newline="") as out:
            csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def server_rows(task: Task, part: str, logits: torch.Tensor) -> Iterator[list[Any]]:
    """The file of GLUE's server for this part of the benchmark."""
    yield ["index", "prediction"]
    if task.problem_type == NUMBER:
        yield from ([index, f"{min(max(value, 0), 5):.3f}"] for index, value in enumerate(logits[:, 0].tolist()))
        return
    answers = task.words if part in IN_WORDS else task.values
    yield from ([index, answers[k]] for index, k in enumerate(logits.argmax(-1).tolist()))


def pack_submission(folder: Path) -> None:
    """submission.zip, as GLUE's server takes it, once the files of all tasks are there."""
    files = [folder / f"{name}.tsv" for name in TEST_FILES.values()]
    if all(file.exists() for file in files):
        with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
