"""Metrics of GLUE and of own data, scores per class, and the baseline that needs no model."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    mean_squared_error,
    precision_recall_fscore_support,
)
from torch.nn import functional as F

from no_trainer.glue import METRICS, NUMBER, ONE, SEVERAL, Task, suffix
from no_trainer.labels import NUMBERS, numbers
from no_trainer.launch import say
from no_trainer.messages import stop


def correlation(measure: Callable, references: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's or Spearman's correlation; 0 where it is undefined because one side is constant."""
    if np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return measure(references, predictions)[0]


class GlueMetric(evaluate.Metric):
    """The metrics of GLUE and of own data, without the download that `evaluate.load` needs.

    Definitions: Wang et al. 2019, https://arxiv.org/abs/1804.07461, and https://gluebenchmark.com.
    """

    def _info(self) -> evaluate.MetricInfo:
        value: Any = Value("float64" if self.config_name == NUMBER else "int64")
        value = Sequence(value) if self.config_name == SEVERAL else value
        features = Features({"predictions": value, "references": value})
        # evaluate makes NumPy arrays of flat columns only
        form = None if self.config_name == SEVERAL else "numpy"
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=features, format=form)

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, names: list[str], positive: int
    ) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)

        def f1(average: str, **options: Any) -> float:
            return f1_score(references, predictions, average=average, zero_division=0, **options)

        measures = {
            "accuracy": lambda: accuracy_score(references, predictions),
            "exact_match": lambda: accuracy_score(references, predictions),  # every class right
            "f1": lambda: f1("macro", labels=[positive]),
            "macro_f1": lambda: f1("macro"),
            "micro_f1": lambda: f1("micro"),
            "matthews_correlation": lambda: matthews_corrcoef(references, predictions),
            "mse": lambda: mean_squared_error(references, predictions),
            "pearson": lambda: correlation(pearsonr, references, predictions),
            "spearmanr": lambda: correlation(spearmanr, references, predictions),
        }
        return {name: float(measures[name]()) for name in names}


def compute_metrics(task: Task, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The task's metrics; `f1` is that of `second_class`.

    Both arrays hold class ids or numbers, [rows]; with several classes, 0 and 1, [rows, classes].
    """
    metric = GlueMetric(config_name=task.problem_type, keep_in_memory=True)
    positive = second_class(task) if "f1" in task.metrics else 0
    if task.problem_type == SEVERAL:
        predictions, references = predictions.astype(np.int64), references.astype(np.int64)
    options = {"names": task.metrics, "positive": positive}
    return metric.compute(predictions=predictions, references=references, **options)


def second_class(task: Task) -> int:
    """The id of the class whose F1 counts: in GLUE its label 1, otherwise the second by its name, as sorted."""
    names = task.values
    if task.metrics == METRICS["two classes"]:
        names = [str(word) for word in task.words or task.labels]
        if all(re.fullmatch(NUMBERS["float64"], name.removeprefix("+")) for name in names):
            names = [float(name) for name in names]
    return names.index(sorted(names)[1])


def score_classes(task: Task, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """`per_class`: precision, recall, F1 and rows; `confusion_matrix`: true by predicted classes.

    The matrix needs one class per row; regression has neither. Takes what compute_metrics takes.
    """
    if task.problem_type == NUMBER:
        return {}
    everything = list(range(len(task.labels)))
    names = ("precision", "recall", "f1", "support")
    scores = precision_recall_fscore_support(references, predictions, labels=everything, zero_division=0)
    rows = zip(task.labels, *(column.tolist() for column in scores), strict=True)
    per_class = {label: dict(zip(names, row, strict=True)) for label, *row in rows}
    found: dict[str, Any] = {"per_class": per_class}
    if task.problem_type == ONE:
        matrix = confusion_matrix(references, predictions, labels=everything)
        found["confusion_matrix"] = matrix.tolist()
    return found


def row_losses(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each row's loss, [rows]: cross-entropy, its mean over several classes, or absolute error."""
    if task.problem_type == NUMBER:
        return (logits.squeeze(-1) - labels).abs()
    if task.problem_type == SEVERAL:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    return F.cross_entropy(logits, labels, reduction="none")


ALWAYS = {
    ONE: "the commonest class",
    SEVERAL: "each class's commoner answer",
    NUMBER: "the mean",
}


def with_baseline(
    task: Task,
    judge: Callable[[Task, torch.Tensor, torch.Tensor], dict[str, Any]],
    train_data: Dataset,
    eval_data: dict[str, Dataset],
    metric_for_best_model: str | None,
) -> Task:
    """The task with its baseline scores, and the metric that selects the best model: one that `judge` computes.

    The baseline always predicts the training data's commonest class, each class's commoner answer
    if a row may have several, or the mean. If nothing is trained, it is that of the validation data.
    """
    scores: dict[str, float] = {}
    for name, split in eval_data.items():
        labels = numbers(split, "labels")
        seen = numbers(train_data, "labels") if len(train_data) else labels
        if task.problem_type == NUMBER:
            logits = seen.mean(keepdims=True)
        elif task.problem_type == SEVERAL:
            logits = np.where(seen.mean(0) > 0.5, 1, -1).astype(labels.dtype)
        else:
            logits = np.eye(len(task.labels), dtype=np.float32)[np.bincount(seen).argmax()]
        answers = torch.from_numpy(logits).expand(len(labels), -1)
        found = numbers_in(plain(judge(task, answers, torch.from_numpy(labels))))
        scores |= {f"{metric}{suffix(name)}": value for metric, value in found.items()}
    best = (metric_for_best_model or task.metrics[0]).removeprefix("eval_")
    if best not in (names := scores or ["loss", *task.metrics]):
        stop(f"--metric_for_best_model {best}: must be one of {', '.join(names)}")
    scores = {n: value for n, value in scores.items() if n not in ("loss", "loss_mm") and math.isfinite(value)}
    if scores:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        say(f"baseline ({ALWAYS[task.problem_type]}): {shown}")
    baseline = {f"baseline_{name}": value for name, value in scores.items()}
    return replace(task, best_metric=best, baseline=baseline)


def numbers_in(results: dict[str, Any]) -> dict[str, float]:
    """The results that are numbers; the others are only in all_results.json."""
    return {name: value for name, value in results.items() if isinstance(value, (int, float))}


def score_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores of validation and test data, each with its `metric`, `score` and `baseline`, None without one."""
    scores = {name: value for name, value in numbers_in(results).items() if name.startswith(("eval_", "test_"))}
    names = {name: name.removeprefix("eval_") for name in scores}  # the baseline is that of the validation data
    return [
        {"metric": names[name], "score": score, "baseline": results.get(f"baseline_{names[name]}")}
        for name, score in scores.items()
    ]


def plain(results: dict[str, Any]) -> dict[str, Any]:
    """The results with numbers of torch and NumPy as Python's, which can be written as JSON."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in results.items()}
