"""Every row is predicted once, and stands in its place."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import compile_regions
from conftest import fresh_accelerate, log_lines, sentences, write_csv
from datasets import ClassLabel, Dataset, Features, Value
from torch.utils.data import default_collate
from transformers import AutoModelForSequenceClassification

import run_glue_no_trainer as script
from no_trainer.batches import make_eval_loaders
from no_trainer.evaluation import predict
from no_trainer.glue import Task


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


def test_evaluating_compiles_nothing() -> None:
    fresh_accelerate()

    def refuse(*_: object) -> None:
        raise AssertionError("it was compiled")

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return SimpleNamespace(logits=torch.stack([x, -x], dim=-1))

    accelerator = Accelerator(cpu=True)
    data = Dataset.from_dict({"x": [1.0, 2.0], "labels": [0, 1], "length": [5, 6]})
    (loader,) = make_eval_loaders(accelerator, {"validation": data}, default_collate, 0, 4).values()
    run = SimpleNamespace(accelerator=accelerator, stop_signal=lambda: 0)
    model = torch.compile(Same(), backend=refuse).train()
    logits, _ = predict(run, model, loader, "Evaluating")
    assert logits[:, 0].tolist() == [1.0, 2.0]
    assert model.training
    assert model._orig_mod.training


def test_layers_that_are_compiled_are_in_training_again_afterwards(tiny_model: Path) -> None:
    fresh_accelerate()
    accelerator = Accelerator(cpu=True)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    model = compile_regions(model.eval(), backend="eager").train()
    data = Dataset.from_dict({"input_ids": [[2, 3], [2, 4]], "labels": [0, 1], "length": [2, 2]})
    (loader,) = make_eval_loaders(accelerator, {"validation": data}, default_collate_rows, 0, 4).values()
    run = SimpleNamespace(accelerator=accelerator, stop_signal=lambda: 0)
    seen = []
    model._orig_mod.bert.embeddings.register_forward_hook(lambda module, *_: seen.append(module.training))
    predict(run, model, loader, "Evaluating")
    assert seen == [False]
    assert all(module.training for module in model.modules())
    model.eval()
    predict(run, model, loader, "Evaluating")
    assert not any(module.training for module in model.modules())


def default_collate_rows(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


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
    assert "--metric_for_best_model bleu: must be one of accuracy, macro_f1, f1, loss" in capsys.readouterr().err


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


@pytest.fixture
def two_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `judge` that somebody has given two scores more, as numbers of torch and NumPy."""
    usual = script.judge

    def judge(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> dict:
        wrong = (logits.argmax(-1) != labels).float().mean()
        found = {"wrong": wrong, "right": np.float32(1 - wrong)}
        baseline = bool((logits.max(-1).values == 1).all())  # for which a score may be undefined
        return usual(task, logits, labels) | found | ({"undefined": math.nan} if baseline else {})

    monkeypatch.setattr(script, "judge", judge)


@pytest.mark.usefixtures("two_scores")
def test_scores_that_somebody_adds_to_judge(run: Callable, own_files: list, tmp_path: Path) -> None:
    """They have a baseline, are in the results and the log, and can select the best model."""
    flags = ["--metric_for_best_model", "right", "--load_best_model_at_end", "--do_predict"]
    results = run(*own_files, *flags, "--test_file", own_files[3], "--output_dir", tmp_path)
    assert results["baseline_wrong"] == pytest.approx(1 - results["baseline_accuracy"])
    assert "baseline_undefined" not in results
    assert results["best_right"] == pytest.approx(results["eval_accuracy"])
    saved = json.loads((tmp_path / "all_results.json").read_text())
    assert saved["eval_right"] == saved["test_right"] == pytest.approx(saved["eval_accuracy"])
    assert [line for line in log_lines(tmp_path) if "eval_wrong" in line]


@pytest.mark.usefixtures("two_scores")
@pytest.mark.parametrize(("lower", "best"), [(["wrong"], min), ([], max)])
def test_lower_is_better_for_what_the_list_names(
    run: Callable, own_files: list, tmp_path: Path, lower: list, best: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("no_trainer.weights.LOWER_IS_BETTER", ("loss", "mse", *lower))
    flags = ["--metric_for_best_model", "wrong", "--learning_rate", 3e-3, "--num_train_epochs", 6]
    results = run(*own_files, *flags, "--output_dir", tmp_path)
    found = [line["eval_wrong"] for line in log_lines(tmp_path) if "eval_wrong" in line]
    assert len(set(found)) > 1, "or this shows nothing"
    assert results["best_wrong"] == best(found)


def test_the_lowest_loss_of_the_second_set_is_the_best(run: Callable, tmp_path: Path) -> None:
    flags = ["--task_name", "mnli", "--dataset_name", mnli(tmp_path / "glue"), "--learning_rate", 3e-3]
    flags += ["--metric_for_best_model", "loss_mm", "--num_train_epochs", 4, "--output_dir", tmp_path / "out"]
    best = run(*flags)["best_loss_mm"]
    found = [line["eval_loss_mm"] for line in log_lines(tmp_path / "out") if "eval_loss_mm" in line]
    assert best == min(found) < max(found)
