"""Metrics of GLUE and of own data, scores per class, and the baseline that needs no model."""

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
        if all(re.fullmatch(NUMBERS["float64"], name) for name in names):
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
    task: Task, train_data: Dataset, eval_data: dict[str, Dataset], metric_for_best_model: str | None
) -> Task:
    """The task with its baseline scores and the metric that selects the best model.

    The baseline always predicts the training data's commonest class, each class's commoner answer
    if a row may have several, or the mean.
    """
    floor = {}
    for name, split in eval_data.items():
        references = numbers(split, "labels")
        known = numbers(train_data, "labels") if len(train_data) else references
        if task.problem_type == ONE:
            answer = np.bincount(known).argmax()
        else:
            answer = known.mean() if task.problem_type == NUMBER else known.mean(0) > 0.5
        answers = np.broadcast_to(answer, references.shape)
        values = compute_metrics(task, answers, references)
        floor |= {f"baseline_{metric}{suffix(name)}": value for metric, value in values.items()}
    names = ["loss", *task.metrics]
    names += [f"{name}_mm" for name in names if len(eval_data) > 1]
    name = (metric_for_best_model or task.metrics[0]).removeprefix("eval_")
    if name not in names:
        stop(f"--metric_for_best_model {name}: must be one of {', '.join(names)}")
    known = [f"{metric.removeprefix('baseline_')} {value:.4f}" for metric, value in floor.items()]
    if known:
        say(f"baseline ({ALWAYS[task.problem_type]}): {', '.join(known)}")
    return replace(task, best_metric=name, baseline=floor)
