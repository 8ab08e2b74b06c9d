"""What answers are scored with, by the definitions, and the score that needs no model."""

import math
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import sentences, write_csv
from scipy import stats

from no_trainer.glue import METRICS, Task
from no_trainer.metrics import compute_metrics, second_class


def task(name: str, values: list | None = (0, 1), labels: list | None = ("no", "yes")) -> Task:
    return Task(METRICS.get(name, ["accuracy"]), ["a"], values and list(values), labels and list(labels))


def score(name: str, predictions: list, references: list, **classes: list | None) -> dict[str, float]:
    return compute_metrics(task(name, **classes), np.array(predictions), np.array(references))


def test_metrics_by_their_definitions() -> None:
    predictions, references = [1, 1, 1, 0, 0, 1, 0, 1], [1, 0, 1, 0, 1, 1, 0, 0]
    tp, fp, fn, tn = 3, 2, 1, 2
    f1 = {1: 2 * tp / (2 * tp + fp + fn), 0: 2 * tn / (2 * tn + fp + fn)}
    mcc = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert score("rte", predictions, references) == {"accuracy": 5 / 8}
    assert score("mrpc", predictions, references) == pytest.approx({"accuracy": 5 / 8, "f1": f1[1]})
    assert score("cola", predictions, references) == pytest.approx({"matthews_correlation": mcc})
    own = {"accuracy": 5 / 8, "macro_f1": (f1[0] + f1[1]) / 2, "f1": f1[1]}
    assert score("two classes", predictions, references) == pytest.approx(own)


def test_regression_metrics() -> None:
    predictions, references = [0.5, 2.0, 2.5, 5.5, 1.0], [0.0, 2.0, 3.0, 5.0, 1.5]
    pearson = np.corrcoef(predictions, references)[0, 1]
    spearman = np.corrcoef(stats.rankdata(predictions), stats.rankdata(references))[0, 1]
    none = {"values": None, "labels": None}
    found = score("stsb", predictions, references, **none)
    assert found == pytest.approx({"pearson": pearson, "spearmanr": spearman})
    assert score("regression", predictions, references, **none)["mse"] == pytest.approx(0.2)
    assert score("stsb", [1.0] * 5, references, **none) == {"pearson": 0.0, "spearmanr": 0.0}


def test_f1_is_that_of_the_datas_second_class_in_any_order_of_the_models() -> None:
    """A model that knows `yes` as class 0 is scored on `yes` all the same."""
    straight = score("mrpc", [1, 1, 0, 0], [1, 0, 0, 0])
    turned = score("mrpc", [0, 0, 1, 1], [0, 1, 1, 1], values=[1, 0], labels=["yes", "no"])
    assert straight == turned


@pytest.mark.parametrize(
    ("values", "words", "metrics", "second"),
    [
        ([0, 1], ["pos", "neg"], "two classes", 0),  # of a ClassLabel, as of the same words in a .csv file
        (["neg", "pos"], ["neg", "pos"], "two classes", 1),
        (["2", "10"], ["2", "10"], "two classes", 1),  # a model's names, without data
        ([0, "pos"], ["neg", "pos"], "two classes", 1),  # the data has one class only
        ([0, 1], ["not_equivalent", "equivalent"], "mrpc", 1),
        ([1, 0], ["equivalent", "not_equivalent"], "mrpc", 0),
    ],
)
def test_f1_is_that_of_the_same_class_in_every_kind_of_file(
    values: list, words: list, metrics: str, second: int
) -> None:
    assert second_class(Task(METRICS[metrics], ["text"], values, words, words)) == second


def test_metrics_need_no_network_and_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))
    assert score("mrpc", [1, 0], [1, 0])["f1"] == 1.0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_baseline_is_the_majority_class_of_training(run: Callable, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "t.csv", ["text", "label"], [("good", "a")] * 5 + [("bad", "b")] * 3)
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], [("good", "a")] * 3 + [("bad", "b")] * 1)
    results = run("--train_file", train, "--validation_file", valid, "--num_train_epochs", 0)
    assert results["baseline_accuracy"] == 0.75
    assert results["baseline_f1"] == 0.0


def test_the_baseline_of_regression_is_the_mean(run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [(text, f"{label + 0.5}") for text, label in sentences(16)]
    mean = np.mean([float(label) for _, label in rows])
    valid = [("good", "1.5"), ("bad", "0.5")]
    files = [write_csv(tmp_path / f"{n}.csv", ["text", "label"], part) for n, part in (("t", rows), ("v", valid))]
    results = run("--train_file", files[0], "--validation_file", files[1], "--num_train_epochs", 1)
    assert results["baseline_mse"] == pytest.approx(((1.5 - mean) ** 2 + (0.5 - mean) ** 2) / 2)
    assert {"eval_mse", "eval_pearson", "eval_spearmanr", "eval_loss"} <= results.keys()
    assert results["eval_loss"] == pytest.approx(results["eval_mse"], rel=1e-5)
    assert f"baseline (the mean): mse {results['baseline_mse']:.4f}" in capsys.readouterr().out
