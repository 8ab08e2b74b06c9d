"""What a run leaves in --output_dir, and what it says at its end."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from conftest import log_lines, sentences, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


def test_the_saved_model_answers_with_the_users_names(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--learning_rate", 3e-3, "--num_train_epochs", 6, "--output_dir", tmp_path)
    ask = pipeline("text-classification", str(tmp_path), device="cpu")
    assert [answer["label"] for answer in ask(["good nice great", "awful poor"])] == ["positive", "negative"]


def test_the_saved_regression_model_answers_with_numbers(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [(text, f"{4 * label + 0.5}") for text, label in sentences(61)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    flags = ["--train_file", file, "--validation_file", file, "--learning_rate", 1e-2, "--num_train_epochs", 8]
    assert run(*flags, "--output_dir", tmp_path / "out")["eval_pearson"] > 0.8
    assert "warning: no" not in capsys.readouterr().out  # such as a picture of its confusion matrix
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
    long = [word.replace('"text": "..."', '"text": "good " * 900') for word in command]
    assert long != command
    for asked in (command, long):
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        assert "'label': " in said


def test_a_run_that_trains_nothing_leaves_its_results_alone(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The model is where it was; a card would tell of a training that never was."""
    run(*own_files, "--num_train_epochs", 0, "--output_dir", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"all_results.json", "validation_predictions.csv"}
    said = capsys.readouterr().out
    assert "has no trained head: its predictions are random" in said
    assert f"\nresults are in {tmp_path}\n" in said
