"""What a run leaves in --output_dir: the model, the results, the predictions; and the best model."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from conftest import TRAIN, log_lines, sentences, table, write_csv
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from no_trainer.folder import checkpoints
from no_trainer.results import all_results, keep_model


def test_the_saved_model_answers_with_the_users_names(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--learning_rate", 3e-3, "--num_train_epochs", 6, "--output_dir", tmp_path)
    ask = pipeline("text-classification", str(tmp_path), device="cpu")
    assert [answer["label"] for answer in ask(["good nice great", "awful poor"])] == ["positive", "negative"]


def test_the_saved_regression_model_answers_with_numbers(run: Callable, tmp_path: Path) -> None:
    rows = [(text, f"{4 * label + 0.5}") for text, label in sentences(61)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    flags = ["--train_file", file, "--validation_file", file, "--learning_rate", 1e-2, "--num_train_epochs", 8]
    assert run(*flags, "--output_dir", tmp_path / "out")["eval_pearson"] > 0.8
    ask = pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    assert ask("good " * 5)[0]["score"] > 3


def test_all_results(run: Callable, own_files: list, tmp_path: Path) -> None:
    returned = run(*own_files, "--max_train_steps", 12, "--output_dir", tmp_path)
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results == returned
    for metric in ("accuracy", "macro_f1", "f1"):
        assert 0 <= results[f"eval_{metric}"] <= 1
        assert 0 <= results[f"baseline_{metric}"] <= 1
    assert results["seed"] == 42
    assert (results["step"], results["epoch"], results["global_batch_size"]) == (12, 1.5, 8)
    assert results["train_samples_per_second"] == pytest.approx(12 * 8 / results["train_runtime"], rel=0.05)
    assert results["versions"]["torch"] == torch.__version__
    logged = [line for line in log_lines(tmp_path) if "loss" in line]
    mean = sum(line["loss"] * steps for line, steps in zip(logged, (10, 2), strict=True)) / 12
    assert results["train_loss"] == pytest.approx(mean)


def test_train_loss_counts_the_steps_since_the_last_line_of_the_log(run: Callable, own_files: list) -> None:
    flags = ["--num_train_epochs", 10, "--early_stopping_patience", 1, "--logging_steps", 500, "--learning_rate", 0]
    assert run(*own_files, *flags)["train_loss"] == pytest.approx(0.69, abs=0.02)


def test_nothing_is_written_without_an_output_dir(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(*own_files, "--max_train_steps", 1)
    assert not list(tmp_path.iterdir())


def test_the_saved_tokenizer_and_model_are_those_of_the_last_step(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    run(*own_files, "--max_train_steps", 4, "--checkpointing_steps", 4, "--output_dir", tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    saved = model.state_dict()
    checkpoint = AutoModelForSequenceClassification.from_config(model.config)
    accelerate.load_checkpoint_in_model(checkpoint, tmp_path / "step_4")
    assert all(torch.equal(saved[name], tensor) for name, tensor in checkpoint.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path)("good bad")["input_ids"]


def test_what_comes_next_can_be_pasted(
    run: Callable, made_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A folder with a space and a quote in its name: the command works as it stands."""
    out = tmp_path / "it's my run"
    run("--dataset_name", made_glue, "--task_name", "rte", "--max_train_steps", 1, "--output_dir", out)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("to ask it: ")]
    command = [sys.executable, *shlex.split(line.removeprefix("to ask it: "))[1:]]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "'label': " in said


def test_a_run_that_trains_nothing_leaves_its_results_alone(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The model is where it was; a card would tell of a training that never was."""
    run(*own_files, "--num_train_epochs", 0, "--output_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["all_results.json"]
    said = capsys.readouterr().out
    assert "has no trained head: what it answers is drawn at random" in said
    assert f"\nresults are in {tmp_path}\n" in said


# --- predictions


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "test.csv", ["text"], [[text] for text, _ in sentences(37, seed=2)])


def test_predictions_of_own_data(
    run: Callable, own_files: list, trained: Path, unlabelled: Path, tmp_path: Path
) -> None:
    """With the training, after it, and by transformers' own pipeline: the same answers in the order of the file."""
    run(*own_files, *TRAIN, "--do_predict", "--test_file", unlabelled, "--output_dir", tmp_path / "a")
    only = ["--num_train_epochs", 0, "--do_predict", "--test_file", unlabelled, "--output_dir", tmp_path / "b"]
    run("--model_name_or_path", trained, *only)
    first, second = (table(tmp_path / name / "predict_results.csv") for name in "ab")
    assert [row["label"] for row in first] == [row["label"] for row in second]
    assert list(second[0]) == ["label", "probability", "probability_negative", "probability_positive"]
    answers = pipeline("text-classification", str(trained), device="cpu")([text for text, _ in sentences(37, seed=2)])
    for row, answer in zip(second, answers, strict=True):
        assert row["label"] == answer["label"]
        assert float(row["probability"]) == pytest.approx(answer["score"], abs=1e-5)
        assert float(row[f"probability_{answer['label']}"]) == float(row["probability"])
        assert float(row["probability_negative"]) + float(row["probability_positive"]) == pytest.approx(1)


def test_the_first_rows_only(run: Callable, trained: Path, unlabelled: Path, tmp_path: Path) -> None:
    flags = ["--num_train_epochs", 0, "--do_predict", "--test_file", unlabelled, "--max_predict_samples", 5]
    run("--model_name_or_path", trained, *flags, "--output_dir", tmp_path / "out")
    assert len(table(tmp_path / "out" / "predict_results.csv")) == 5


def test_predicted_numbers(run: Callable, unlabelled: Path, tmp_path: Path) -> None:
    train = write_csv(
        tmp_path / "t.csv", ["text", "label"], [(text, f"{label + 0.5}") for text, label in sentences(61)]
    )
    flags = ["--train_file", train, "--learning_rate", 1e-2, "--num_train_epochs", 8, "--output_dir", tmp_path / "out"]
    run(*flags, "--do_predict", "--test_file", unlabelled)
    rows = table(tmp_path / "out" / "predict_results.csv")
    assert list(rows[0]) == ["label"]
    truth = [label + 0.5 for _, label in sentences(37, seed=2)]
    assert np.corrcoef([float(row["label"]) for row in rows], truth)[0, 1] > 0.8


def test_predictions_that_cannot_be_written_leave_the_model(
    run: Callable, own_files: list, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out" / "predict_results.csv").mkdir(parents=True)
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--do_predict", "--test_file", unlabelled, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 1
    assert "the predictions could not be written, the model is saved" in capsys.readouterr().err
    assert {"model.safetensors", "all_results.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_each_test_split_has_a_file_of_its_own(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, rows in {"train": 40, "test": 11, "test_hard": 5}.items():
        made = [{"text": text, "label": "ab"[label]} for text, label in sentences(rows)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, made)))
    splits = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("train", "test", "test_hard"))
    (tmp_path / "data" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"
    )
    run("--dataset_name", tmp_path / "data", "--max_train_steps", 2, "--do_predict", "--output_dir", tmp_path / "out")
    files = {path.name: len(table(path)) for path in (tmp_path / "out").glob("predict*")}
    assert files == {"predict_results.csv": 11, "predict_results_hard.csv": 5}


# --- the best model


def evaluations(folder: Path, metric: str) -> list[float]:
    return [line[f"eval_{metric}"] for line in log_lines(folder) if f"eval_{metric}" in line]


SWINGING = ["--learning_rate", 5e-2, "--num_train_epochs", 5]  # too high: later epochs are worse than earlier ones


@pytest.mark.parametrize(("metric", "best"), [("loss", min), ("eval_macro_f1", max)])
def test_the_best_model_is_saved_with_its_scores(
    run: Callable, own_files: list, tmp_path: Path, metric: str, best: Callable
) -> None:
    flags = [*own_files, *SWINGING, "--load_best_model_at_end", "--metric_for_best_model", metric]
    results = run(*flags, "--output_dir", tmp_path / "out")
    name = metric.removeprefix("eval_")
    scores = evaluations(tmp_path / "out", name)
    assert scores.index(best(scores)) < 4, "the last epoch is not to be the best one"
    assert results[f"best_{name}"] == results[f"eval_{name}"] == best(scores)
    assert results["best_epoch"] == scores.index(best(scores)) + 1
    again = ["--model_name_or_path", tmp_path / "out", *own_files, "--num_train_epochs", 0]
    assert run(*again)[f"eval_{name}"] == pytest.approx(best(scores))
    assert not list(tmp_path.glob("out/*best*")) + list(tmp_path.glob("out/.*"))


def test_early_stopping(run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = [*own_files, *SWINGING, "--metric_for_best_model", "loss", "--early_stopping_patience", 1]
    results = run(*flags, "--num_train_epochs", 9, "--output_dir", tmp_path / "out")
    losses = evaluations(tmp_path / "out", "loss")
    assert len(losses) < 9
    assert losses[-1] >= min(losses[:-1])
    assert all(later < earlier for earlier, later in zip(losses[:-2], losses[1:-1], strict=True))
    assert "early stopping: loss was not better in 1 evaluations" in capsys.readouterr().out
    assert results["best_loss"] == min(losses)


def test_the_best_model_survives_a_resume(run: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, *SWINGING, "--load_best_model_at_end", "--metric_for_best_model", "loss"]
    flags += ["--early_stopping_patience", 2, "--checkpointing_steps", "epoch"]
    whole = run(*flags, "--output_dir", tmp_path / "whole")
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    last = checkpoints(tmp_path / "whole")[-1]
    resumed = run(*flags, "--output_dir", tmp_path / "elsewhere", "--resume_from_checkpoint", last)
    assert {k: v for k, v in resumed.items() if k.startswith(("best_", "eval_"))} == {
        k: v for k, v in whole.items() if k.startswith(("best_", "eval_"))
    }
    again = load_file(tmp_path / "elsewhere" / "model.safetensors")
    assert all(saved[name].equal(again[name]) for name in saved)


def test_the_best_scores_are_told_when_the_best_weights_are_saved(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: what is shared after an epoch has that epoch's weights."""
    runs, keep = [], keep_model
    monkeypatch.setattr(
        "no_trainer.results.keep_model",
        lambda run, model, tokenizer, task, last: runs.append((run, task)) or keep(run, model, tokenizer, task, last),
    )
    flags = [
        "--num_train_epochs",
        4,
        "--learning_rate",
        0.1,
        "--load_best_model_at_end",
        "--lr_scheduler_type",
        "constant",
    ]
    results = run(*own_files, *flags, "--metric_for_best_model", "loss", "--output_dir", tmp_path)
    evaluations = [line["eval_loss"] for line in log_lines(tmp_path) if "eval_loss" in line]
    assert min(evaluations) < evaluations[-1], "or this shows nothing"
    assert results["eval_loss"] == min(evaluations)
    assert all_results(*runs[-1], last=False)["eval_loss"] == evaluations[-1]
