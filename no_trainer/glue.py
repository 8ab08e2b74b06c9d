"""The tasks of GLUE, and the description of any task: its columns, classes and metrics."""

from dataclasses import dataclass, field
from typing import Any

GLUE = {  # task: its text columns in nyu-mll/glue
    "cola": ["sentence"],
    "mnli": ["premise", "hypothesis"],
    "mrpc": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "rte": ["sentence1", "sentence2"],
    "sst2": ["sentence"],
    "stsb": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}
CLASSES = {  # task: the names of its labels 0, 1, ...
    "cola": ["unacceptable", "acceptable"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "ax": ["entailment", "neutral", "contradiction"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "rte": ["entailment", "not_entailment"],
    "sst2": ["negative", "positive"],
    "wnli": ["not_entailment", "entailment"],
}
TEST_FILES = {  # task, or a part of one: its file for GLUE's server
    **{"cola": "CoLA", "mnli": "MNLI-m", "mnli_mm": "MNLI-mm", "mrpc": "MRPC"},
    **{"qnli": "QNLI", "qqp": "QQP", "rte": "RTE", "sst2": "SST-2"},
    **{"stsb": "STS-B", "wnli": "WNLI", "ax": "AX"},
}
IN_WORDS = ("mnli", "mnli_mm", "qnli", "rte", "ax")  # the server takes these labels as words
METRICS = {  # task, or kind of own data: its metrics; other tasks have accuracy
    "cola": ["matthews_correlation"],
    "mrpc": ["accuracy", "f1"],
    "qqp": ["accuracy", "f1"],
    "stsb": ["pearson", "spearmanr"],
    "two classes": ["accuracy", "macro_f1", "f1"],
    "classes": ["accuracy", "macro_f1"],
    "several classes": ["micro_f1", "macro_f1", "exact_match"],
    "regression": ["mse", "pearson", "spearmanr"],
}
LOWER_IS_BETTER = ("loss", "mse")  # of other metrics, the highest is the best
ROW = "row of the data"  # column with the number of each row, from 0, where others were held out or left out
# the names that transformers gives to the kinds of tasks
ONE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class Task:
    """What is learned from which columns, the names of the classes, and the metrics."""

    metrics: list[str]
    text_columns: list[str]
    values: list[Any] | None  # of column `label`, by class id; None: regression
    labels: list[str] | None  # names of the classes, by class id; None: regression
    words: list[str] | None = None  # the same names as the data spells them
    several: bool = False  # a row may have any number of the classes
    mean: float = 0.0  # of the training labels, in regression
    max_length: int = 128  # at which texts are cut, in tokens
    label_column: str = "label"  # the name of column `label` in the data
    separator: str = "|"  # joins the texts of more than two columns into one
    best_metric: str = "loss"  # metric that selects the best model, without `eval_`
    baseline: dict[str, float] = field(default_factory=dict)  # `baseline_<metric>`: score

    @property
    def problem_type(self) -> str:
        return NUMBER if self.labels is None else SEVERAL if self.several else ONE


def is_test(split: str) -> bool:
    """Whether a split is to be predicted."""
    return split.startswith("test") or split == "ax"


def suffix(split: str) -> str:
    """What is appended to the names of metrics on this split."""
    return "_mm" if split == "validation_mismatched" else ""
