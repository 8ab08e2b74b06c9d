"""Predicts whole splits, and puts their scores into one line."""

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
from no_trainer.metrics import numbers_in, plain
from no_trainer.review import wrap
from no_trainer.run import Run

# on the CPU: float32 logits [rows, classes]; class ids [rows], numbers [rows] or 0 and 1 [rows, classes], or None
Predictions = tuple[torch.Tensor, torch.Tensor | None]


def predict(run: Run, model: torch.nn.Module, loader: DataLoader, what: str) -> Predictions:
    """The logits and labels of every row, once and in the order of the file, on every process.

    The labels are None if the data has none. After a signal to stop, the run ends here.
    """
    eager = getattr(model, "_orig_mod", model)  # compiling for evaluation takes longer than it saves
    before = model.training
    model.eval()
    eager.eval()  # a model that is compiled by layers has a mode of its own
    parts = []
    # XLA cannot use inference mode; one autocast around all batches casts the weights only once
    with torch.no_grad(), run.accelerator.autocast():
        for batch in progress_bar(what, iterable=loader, leave=False):
            if run.stop_signal() and (run.saved or not run.has_best):  # the best model is saved first
                leave(run, model)
            rows, labels = batch.pop("row"), batch.pop("labels", None)
            columns = (rows, eager(**batch).logits.float())
            columns += () if labels is None else (labels,)
            parts.append(run.accelerator.gather_for_metrics(columns))
    model.train(before)
    rows, *columns = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    logits, *labels = (column[rows.argsort()] for column in columns)
    return logits, labels[0] if labels else None


def agree(results: dict[str, Any]) -> dict[str, Any]:
    """The main process's results, on every process.

    Raises:
        SystemExit: 1, if one of them is not finite.
    """
    results = broadcast_object_list([plain(results)])[0]
    found = numbers_in(results)
    if not all(map(math.isfinite, found.values())):
        stop(f"the evaluation gave {found}: the weights are broken.", code=1)
    return results


def score_line(results: dict[str, Any]) -> str:
    """The epoch, the step and the scores in one line."""
    scores = {n: value for n, value in numbers_in(results).items() if n.startswith("eval_")}
    words = [f"{name.removeprefix('eval_')} {value:.4f}" for name, value in scores.items()]
    place = f"epoch {round(results['epoch'], 2):g}, step {results['step']}: "
    words[0] = place + words[0]
    # only a terminal needs it wrapped
    return wrap(words, shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000, 4)
