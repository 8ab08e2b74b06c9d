"""Predictions of whole splits, and the line that tells their scores."""

import math
import shutil
import sys
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from no_trainer.checkpoints import leave
from no_trainer.launch import progress_bar
from no_trainer.messages import stop
from no_trainer.review import fit
from no_trainer.run import Run, numbers_in

Predictions = tuple[torch.Tensor, torch.Tensor | None]  # logits, float32 [rows, classes], and labels; on the CPU


def predict(run: Run, model: torch.nn.Module, loader: DataLoader, what: str) -> Predictions:
    """The logits and the labels of every row once, in the order of the file, on the main process.

    The labels are None where the data has none. After a signal to stop the run ends.
    """
    before = model.training
    model.eval()
    parts = []
    # inference mode is not for XLA; one autocast around all batches casts the weights once, and not for each batch
    with torch.no_grad(), run.accelerator.autocast():
        for batch in progress_bar(what, iterable=loader, leave=False):
            if run.stop_signal():
                leave(run, model)
            rows, labels = batch.pop("row"), batch.pop("labels", None)
            columns = (rows, model(**batch).logits.float())
            columns += () if labels is None else (labels,)
            parts.append(run.accelerator.gather_for_metrics(columns))
    model.train(before)
    rows, *columns = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    logits, *labels = (column[rows.argsort()] for column in columns)
    return logits, labels[0] if labels else None


def agree(results: dict[str, Any]) -> dict[str, Any]:
    """The main process's results, on every process.

    Raises:
        SystemExit: 1, where one of them is not finite.
    """
    results = broadcast_object_list([results])[0]
    found = numbers_in(results)
    if not all(map(math.isfinite, found.values())):
        stop(f"the evaluation gave {found}: the weights are broken.", code=1)
    return results


def score_line(results: dict[str, Any]) -> str:
    """One line: where the run is, and its scores."""
    scores = {name: value for name, value in numbers_in(results).items() if name.startswith("eval_")}
    words = [f"{name.removeprefix('eval_')} {value:.4f}" for name, value in scores.items()]
    words[:1] = [f"epoch {round(results['epoch'], 2):g}, step {results['step']}: {''.join(words[:1])}"]
    # in a file it stays one line
    return fit(words, shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000, 4)
