"""What a run leaves in --output_dir."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from conftest import log_lines, sentences, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import run_glue_no_trainer as script
from no_trainer.checkpoints import find_checkpoint
from no_trainer.folder import checkpoints
from no_trainer.messages import own_command


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


def test_log_lines(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--max_train_steps", 12, "--logging_steps", 4, "--output_dir", tmp_path)
    lines = log_lines(tmp_path)
    train = [line for line in lines if "loss" in line]
    assert [(line["step"], line["epoch"]) for line in train] == [(4, 0.5), (8, 1.0), (12, 1.5)]
    assert all(line.keys() == {"step", "epoch", "loss", "learning_rate", "grad_norm"} for line in train)
    evaluations = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in evaluations] == [8, 12]
    assert all("eval_accuracy" in line and "eval_loss" in line for line in evaluations)


def test_checkpoints_and_their_limit(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--checkpointing_steps", 5, "--save_total_limit", 2, "--output_dir", tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_15", "step_20"]
    assert not list(tmp_path.glob(".*"))


def test_latest_is_the_checkpoint_of_the_most_steps(run: Callable, own_files: list, tmp_path: Path) -> None:
    """By steps, not by name or date: step_9 is older than step_12, epoch_0 is that of step 8, after its evaluation."""
    flags = [*own_files, "--max_train_steps", 12, "--output_dir", tmp_path]
    run(*flags, "--checkpointing_steps", 3)
    (tmp_path / "step_15").mkdir()  # not a whole checkpoint
    os.utime(tmp_path / "step_9")
    args = script.parse_args(["--model_name_or_path", "m", *map(str, flags), "--resume_from_checkpoint", "latest"])
    assert find_checkpoint(args) == tmp_path / "step_12"


def test_overwriting_clears_the_earlier_run(run: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, "--max_train_steps", 4, "--output_dir", tmp_path, "--logging_steps", 2]
    (tmp_path / "step_by_step").mkdir()  # somebody's own folder
    (tmp_path / "notes.txt").touch()
    run(*flags, "--checkpointing_steps", 2)
    run(*flags, "--overwrite_output_dir")
    assert [line["step"] for line in log_lines(tmp_path)] == [2, 4, 4]
    assert not checkpoints(tmp_path)
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "step_by_step").exists()


def test_nothing_is_written_without_an_output_dir(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(*own_files, "--max_train_steps", 1)
    assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_no_output_dir(run: Callable, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("good", "a")] * 3)
    with pytest.raises(SystemExit):
        run("--train_file", file, "--validation_file", file, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_precision_that_is_not_to_be_had_is_named(
    run: Callable, own_files: list, capsys: pytest.CaptureFixture, precision: str
) -> None:
    """Accelerate itself would train in fp32 on a CPU where fp16 is asked for, and say nothing."""
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator, which may know fp16 and fp8")
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--mixed_precision", precision)
    assert exit_.value.code == 2
    assert precision in capsys.readouterr().err.lower()


def test_a_run_that_trains_nothing_leaves_its_results_alone(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The model is where it was; a card would tell of a training that never was."""
    run(*own_files, "--num_train_epochs", 0, "--output_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["all_results.json"]
    said = capsys.readouterr().out
    assert "has no trained head: what it answers is drawn at random" in said
    assert f"\nresults are in {tmp_path}\n" in said


def test_the_command_of_a_run_is_its_own_and_not_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was typed, where Python knows that; in a notebook, where it does not, as it could have been."""
    monkeypatch.setattr("sys.argv", ["/a b/run_glue_no_trainer.py", "--seed", "1"])
    monkeypatch.setattr("sys.orig_argv", ["python3", "-m", "run_glue_no_trainer", "--seed", "1"])
    assert own_command() == "python3 -m run_glue_no_trainer --seed 1"
    monkeypatch.setattr("sys.orig_argv", ["python3", "-m", "ipykernel_launcher", "-f", "kernel.json"])
    assert own_command() == "python '/a b/run_glue_no_trainer.py' --seed 1"


def test_folders_of_other_programs_stay(run: Callable, own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """Even those whose names are like a checkpoint's."""
    shutil.copytree(tiny_model, tmp_path / "epoch_2")
    (tmp_path / "best.safetensors").touch()
    run(*own_files, "--num_train_epochs", 0, "--output_dir", tmp_path)
    run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path, "--overwrite_output_dir")
    assert sorted(path.name for path in (tmp_path / "epoch_2").iterdir()) == sorted(
        path.name for path in tiny_model.iterdir()
    )


def test_what_an_overwritten_run_left_is_gone(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--max_train_steps", 1, "--do_predict", "--test_file", own_files[1], "--output_dir", tmp_path)
    assert (tmp_path / "predict_results.csv").exists()
    run(*own_files, "--max_train_steps", 1, "--overwrite_output_dir", "--output_dir", tmp_path)
    assert not (tmp_path / "predict_results.csv").exists()
