"""Metrics, and that every row is counted once and in its place."""

import json
import math
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import fresh_accelerate, sentences, write_csv
from datasets import ClassLabel, Dataset, Features, Value
from scipy import stats
from torch.utils.data import default_collate
from transformers import AutoModelForSequenceClassification

from no_trainer.batches import make_eval_loaders
from no_trainer.evaluation import compute_metrics, predict
from no_trainer.glue import METRICS, Task


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


def test_metrics_need_no_network_and_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))
    assert score("mrpc", [1, 0], [1, 0])["f1"] == 1.0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 33])
def test_predictions_come_in_file_order(rows: int) -> None:
    """A stand-in for a model that answers with what it was asked, so that a row out of place would show."""
    fresh_accelerate()
    lengths = np.random.default_rng(0).integers(3, 60, rows)
    asked = Dataset.from_dict({"x": np.arange(rows) * 1.0, "labels": range(rows), "length": lengths})

    class Echo(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return type("Output", (), {"logits": torch.stack([x, -x], dim=-1)})

    accelerator = Accelerator(cpu=True)
    (loader,) = make_eval_loaders(accelerator, {"validation": asked}, default_collate, 0, 4).values()
    run = SimpleNamespace(accelerator=accelerator, stop_signal=lambda: 0)
    logits, labels = predict(run, Echo(), loader, "Evaluating")
    assert labels.tolist() == list(range(rows))
    assert logits[:, 0].tolist() == [float(row) for row in range(rows)]


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
    assert f"(baseline {results['baseline_mse']:.4f})" in capsys.readouterr().out


def mnli(folder: Path) -> Path:
    """MNLI's five splits in the hub's layout, from made data; the second validation set is labelled wrongly."""
    names = ["entailment", "neutral", "contradiction"]
    features = Features(
        premise=Value("string"), hypothesis=Value("string"), label=ClassLabel(names=names), idx=Value("int32")
    )
    (folder / "mnli").mkdir(parents=True)
    config = "---\nconfigs:\n- config_name: mnli\n  data_files:\n"
    words = ["good", "dull", "bad"]
    sizes = {"train": 60, "validation_matched": 13, "validation_mismatched": 11, "test_matched": 3}
    for split, rows in sizes.items():
        wrong = split == "validation_mismatched"
        made = {
            "premise": [words[row % 3] for row in range(rows)],
            "hypothesis": ["fine"] * rows,
            "label": [-1 if split.startswith("test") else (row + wrong) % 3 for row in range(rows)],
            "idx": list(range(rows)),
        }
        Dataset.from_dict(made, features=features).to_parquet(folder / "mnli" / f"{split}-00000-of-00001.parquet")
        config += f"  - split: {split}\n    path: mnli/{split}-*\n"
    (folder / "README.md").write_text(config + "---\n")
    return folder


def test_mnli_is_evaluated_on_both_sets_after_every_epoch(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--task_name", "mnli", "--dataset_name", mnli(tmp_path / "glue"), "--learning_rate", 3e-3]
    results = run(*flags, "--num_train_epochs", 12, "--output_dir", tmp_path / "out")
    assert (results["eval_accuracy"], results["eval_accuracy_mm"]) == (1.0, 0.0)
    assert results["eval_loss"] < results["eval_loss_mm"]
    assert {"baseline_accuracy", "baseline_accuracy_mm"} <= results.keys()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 12
    assert all("accuracy_mm" in line for line in lines)


@pytest.mark.parametrize("kind", ["names", "other case", "numbers"])
def test_evaluating_a_trained_model_needs_no_training_data(
    run: Callable, own_files: list, trained: Path, tmp_path: Path, kind: str
) -> None:
    names = {"names": ("negative", "positive"), "other case": ("Negative", "POSITIVE"), "numbers": (0, 1)}[kind]
    rows = [(text, names[label]) for text, label in sentences(23, seed=1)]
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], rows)
    flags = ["--model_name_or_path", trained, "--validation_file", valid, "--num_train_epochs", 0]
    results = run(*flags, "--output_dir", tmp_path / "out")
    assert results["eval_accuracy"] == json.loads((trained / "all_results.json").read_text())["eval_accuracy"] == 1.0
    assert results["baseline_accuracy"] == pytest.approx(13 / 23)
    assert not (tmp_path / "out" / "model.safetensors").exists()  # it is where it was


def test_an_unknown_metric_is_answered_with_those_there_are(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        run(*own_files, "--metric_for_best_model", "bleu", "--output_dir", tmp_path / "out")
    assert "--metric_for_best_model bleu: there are loss, accuracy, macro_f1, f1" in capsys.readouterr().err


def test_an_evaluation_of_broken_weights_is_an_error(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "out")
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0)
    assert exit_.value.code == 1
    assert "the weights are broken" in capsys.readouterr().err
