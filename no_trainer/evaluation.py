"""Predictions of whole splits, the metrics that they are scored with, and the score that needs no model."""

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import evaluate
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from torch.utils.data import DataLoader

from no_trainer.checkpoints import leave
from no_trainer.glue import Task, suffix
from no_trainer.labels import numbers
from no_trainer.launch import progress_bar
from no_trainer.messages import stop
from no_trainer.review import fit
from no_trainer.run import Run, numbers_in


def predict(
    run: Run, model: torch.nn.Module, loader: DataLoader, what: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits, float32 [rows, classes], and labels, [rows], of every row once, in the order of the file, on the CPU.

    The labels are None where the data has none. After a signal to stop the run ends.
    """
    before = model.training
    model.eval()
    parts = []
    for batch in progress_bar(what, iterable=loader, leave=False):
        if run.stop_signal():
            leave(run, model)
        rows, labels = batch.pop("row"), batch.pop("labels", None)
        with torch.no_grad():  # inference mode is not for XLA
            logits = model(**batch).logits.float()
        parts.append(run.accelerator.gather_for_metrics((rows, logits) if labels is None else (rows, logits, labels)))
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
    if not all(map(math.isfinite, numbers_in(results).values())):
        stop(f"the evaluation gave {results}: the weights are broken.", code=1)
    return results


def correlation(measure: Callable, references: np.ndarray, predictions: np.ndarray) -> float:
    if np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0  # undefined: one side is constant
    return measure(references, predictions)[0]


class GlueMetric(evaluate.Metric):
    """GLUE's metrics and those for own data, from scikit-learn and scipy, without `evaluate.load`'s download.

    Definitions: Wang et al. 2019, https://arxiv.org/abs/1804.07461, and https://gluebenchmark.com.
    """

    def _info(self) -> evaluate.MetricInfo:
        value = Value("float64" if self.config_name == "regression" else "int64")
        features = Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=features, format="numpy")

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, names: list[str], positive: int
    ) -> dict[str, float]:
        measures = {
            "accuracy": lambda: accuracy_score(references, predictions),
            "f1": lambda: f1_score(references, predictions, labels=[positive], average="macro", zero_division=0),
            "macro_f1": lambda: f1_score(references, predictions, average="macro", zero_division=0),
            "matthews_correlation": lambda: matthews_corrcoef(references, predictions),
            "mse": lambda: mean_squared_error(references, predictions),
            "pearson": lambda: correlation(pearsonr, references, predictions),
            "spearmanr": lambda: correlation(spearmanr, references, predictions),
        }
        return {name: float(measures[name]()) for name in names}


def compute_metrics(task: Task, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The task's metrics of predicted and true class ids or values, both [rows]; F1 is that of the second class."""
    metric = GlueMetric(config_name="regression" if task.labels is None else "classes", keep_in_memory=True)
    positive = task.values.index(sorted(task.values)[1]) if task.values else 0
    return metric.compute(predictions=predictions, references=references, names=task.metrics, positive=positive)


def with_baseline(
    task: Task, train_data: Dataset, eval_data: dict[str, Dataset], metric_for_best_model: str | None
) -> Task:
    """The task with its baseline, the score of always answering the training data's commonest class, or its mean, and
    with the metric that tells the best model.
    """
    floor = {}
    for name, split in eval_data.items():
        references = numbers(split, "labels")
        known = numbers(train_data, "labels") if len(train_data) else references
        answer = known.mean() if task.labels is None else np.bincount(known).argmax()
        values = compute_metrics(task, np.full(len(references), answer), references)
        floor |= {f"baseline_{metric}{suffix(name)}": value for metric, value in values.items()}
    names = ["loss", *task.metrics] + [f"{name}_mm" for name in ("loss", *task.metrics) if len(eval_data) > 1]
    name = (metric_for_best_model or task.metrics[0]).removeprefix("eval_")
    if name not in names:
        stop(f"--metric_for_best_model {name}: there are {', '.join(names)}")
    return replace(task, best_metric=name, baseline=floor)


def scores(results: dict[str, float], floor: dict[str, float]) -> str:
    """One line: where the run is, and each score beside the one that needs no model."""
    words = []
    for key, value in numbers_in(results).items():
        if key.startswith("eval_"):
            name, least = key.removeprefix("eval_"), floor.get(key.replace("eval_", "baseline_"))
            words.append(f"{name} {value:.4f}" + (f" (baseline {least:.4f})" if least is not None else ""))
    words[:1] = [f"epoch {results['epoch']:g}, step {results['step']}: {''.join(words[:1])}"]
    # in a file it stays one line
    return fit(words, shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000, 4)
