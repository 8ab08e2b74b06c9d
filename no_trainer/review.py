"""Reviews the data before training: a table, and a warning for each common mistake."""

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from no_trainer.glue import NUMBER, SEVERAL, Task, is_test
from no_trainer.labels import numbers
from no_trainer.launch import say
from no_trainer.messages import many, show
from no_trainer.models import length_limit


def review(
    splits: dict[str, Dataset], data: dict[str, Dataset], task: Task, model: torch.nn.Module, precision: str
) -> str:
    """Print and return a table of the tokenized `data`, and warn of what looks wrong."""
    table = describe(data, task)
    say(table)
    warn_of_texts(splits, task)
    warn_of_length(data, task, length_limit(model))
    warn_of_precision(data, task, precision)
    return table


def describe(data: dict[str, Dataset], task: Task) -> str:
    """A table of the splits: rows, tokens, how many texts are cut, and the largest classes."""
    width = max(map(len, data)) + 2
    lines = [f"{'':{width}}{'rows':>9}{'tokens: median':>18}{'95 %':>7}{'max':>8}{'cut':>8}"]
    classes = []
    for name, split in data.items():
        shares = describe_labels(split, task)
        classes.append(wrap([f"{name:{width}}{shares[0]}", *shares[1:]], 80, width))
        tokens = numbers(split, "length")
        middle, high = np.percentile(tokens, [50, 95])
        cut = int((tokens > task.max_length).sum())
        rows = f"{name:{width}}{len(tokens):>9,}"
        lines.append(f"{rows}{middle:>18.0f}{high:>7.0f}{tokens.max():>8,}{cut:>8,}")
    text = f"text: {' + '.join(task.text_columns)}, cut at {task.max_length} tokens; labels:"
    return "\n".join([*lines, text, *classes])


def describe_labels(split: Dataset, task: Task) -> list[str]:
    """The shares of the five largest classes; for regression, the range and the mean."""
    if "labels" not in split.column_names:
        return ["to be predicted"]
    labels = numbers(split, "labels")
    if task.problem_type == NUMBER:
        return [f"{labels.min():.3g} to {labels.max():.3g}", f"mean {labels.mean():.3g}"]
    several = task.problem_type == SEVERAL
    counts = labels.sum(0) if several else np.bincount(labels, minlength=len(task.labels))
    largest = np.argsort(-counts, kind="stable")[:5]
    shares = [f"{show(task.labels[i])} {counts[i] / len(labels):.1%}" for i in largest]
    return shares + [f"and {len(counts) - 5} more"] * (len(counts) > 5)


def wrap(parts: Sequence[str], columns: int, indent: int) -> str:
    """The parts joined by commas, in lines of at most `columns` that break between parts only."""
    whole = ", ".join(part.replace(" ", "\0") for part in parts)
    lines = textwrap.fill(whole, columns, subsequent_indent=" " * indent, break_long_words=False)
    return lines.replace("\0", " ")


def warn_of_texts(splits: dict[str, Dataset], task: Task) -> None:
    """Warn of validation texts that are also in the training data, and of texts with two labels."""
    if "train" not in splits:
        return
    train, labels = hash_texts(splits["train"], task.text_columns), splits["train"]["label"][:]
    for name in [name for name in splits if name != "train" and not is_test(name)]:
        own = hash_texts(splits[name], task.text_columns)
        if both := int(np.isin(own, train).sum()):
            say(f"warning: {both:,} of {len(own):,} {name} rows have a text of the training data")
    pairs = np.stack([train, np.array([hash(str(label)) for label in labels])])
    texts, labels_of = np.unique(np.unique(pairs, axis=1)[0], return_counts=True)
    if (twice := texts[labels_of > 1]).size:
        row = splits["train"][int(np.flatnonzero(np.isin(train, twice))[0])]
        text = textwrap.shorten(row[task.text_columns[0]] or "", 50, placeholder=" ...")
        found = f"{many(twice.size, 'text')} of the training data"
        say(f"warning: {found} with more than one label, such as {text!r}")


def warn_of_precision(data: dict[str, Dataset], task: Task, precision: str) -> None:
    """Warn of numbers to predict that are too close together, for their size, to be told apart."""
    if "train" not in data or task.problem_type != NUMBER:
        return
    labels = numbers(data["train"], "labels")
    kind = {"fp16": torch.float16, "no": torch.float32}.get(precision, torch.bfloat16)
    largest = np.abs(labels).max()
    step = torch.finfo(kind).eps * 2 ** np.floor(np.log2(largest)) if largest else 0
    if step > 0.1 * labels.std():
        named = {"no": "fp32"}.get(precision, precision)
        hint = "subtract their mean from the labels" + ", or use --mixed_precision no" * (precision != "no")
        say(f"warning: in {named}, numbers near {largest:g} are predicted in steps of {step:g}; {hint}")


def hash_texts(data: Dataset, columns: list[str]) -> np.ndarray:
    """A hash of the texts of each row, [rows], valid in this process only."""
    rows = zip(*(data[column][:] for column in columns), strict=True)
    return np.fromiter(map(hash, rows), np.int64, len(data))


def warn_of_length(data: dict[str, Dataset], task: Task, limit: float) -> None:
    """Warn of splits in which most texts are cut, with a --max_length that would hold 95 %, if below the `limit`."""
    for name, split in data.items():
        tokens = numbers(split, "length")
        if (cut := int((tokens > task.max_length).sum())) * 2 > len(tokens):
            most = int(np.percentile(tokens, 95))
            hint = f"--max_length {most} would hold 95 % of them"
            if most > limit:
                hint = f"95 % have at most {most}, but the model reads {limit} only"
            texts = f"{cut:,} of the {len(tokens):,} texts of the {name} data"
            say(f"warning: {texts} are cut at {task.max_length} tokens; {hint}")
