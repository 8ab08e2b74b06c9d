"""The best model, and files of weights that are whole."""

import csv
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import log_lines, write_csv
from safetensors.torch import load_file

import run_glue_no_trainer as script
from no_trainer import evaluation, weights
from no_trainer import results as results_module
from no_trainer.folder import checkpoints
from no_trainer.launch import together
from no_trainer.results import all_results, save_results


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
    assert "early stopping: loss did not improve in 1 evaluation\n" in capsys.readouterr().out
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
    runs, keep = [], save_results
    monkeypatch.setattr(
        script,
        "save_results",
        lambda run, model, tokenizer, task: runs.append((run, task)) or keep(run, model, tokenizer, task),
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


def with_signal(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Send SIGTERM when `what` begins, such as the prediction of the test data."""
    plain = evaluation.progress_bar

    def progress_bar(title: str, **options: object) -> object:
        if title == what:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(title, **options)

    monkeypatch.setattr(evaluation, "progress_bar", progress_bar)


def test_a_signal_while_predicting_leaves_the_checkpoints_as_they_are(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The weights are those of the best step then, which are no checkpoint's of the last."""
    test = write_csv(tmp_path / "test.csv", ["text"], [("good",), ("bad",)])
    flags = [*own_files, *SWINGING, "--load_best_model_at_end", "--do_predict", "--test_file", test]
    flags += ["--checkpointing_steps", 40]
    run(*flags, "--output_dir", tmp_path / "whole")
    with_signal(monkeypatch, "Predicting")
    with pytest.raises(SystemExit) as exit_:
        run(*flags, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 128 + signal.SIGTERM
    assert f"the model and its results are in {tmp_path / 'out'}" in capsys.readouterr().out
    for name in ("model.safetensors", "best.safetensors"):
        here, there = (tmp_path / run_ / "step_40" / name for run_ in ("out", "whole"))
        assert here.read_bytes() == there.read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != here.with_name("model.safetensors").read_bytes()


def mean_loss(folder: Path) -> float:
    with open(folder / "validation_predictions.csv", encoding="utf-8", newline="") as file:
        return statistics.fmean(float(row["loss"]) for row in csv.DictReader(file))


def test_the_mistakes_are_those_of_the_best_weights_that_could_be_written(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def first_time(*_: object, **__: object) -> bool:
        written.append(together(*_, **__) if not written else False)
        return written[-1]

    monkeypatch.setattr(weights, "together", first_time)
    monkeypatch.setattr(weights, "save_files", lambda *_: [])
    monkeypatch.setattr(results_module, "save_files", lambda *_: [])
    flags = [*own_files, "--learning_rate", 3e-3, "--num_train_epochs", 3, "--load_best_model_at_end"]
    results = run(*flags, "--output_dir", tmp_path)
    assert len(written) > 1, "a later epoch was better"
    assert results["best_epoch"] == 1
    assert mean_loss(tmp_path) == pytest.approx(results["eval_loss"], rel=1e-4)


def test_a_run_that_was_killed_before_its_end_has_the_mistakes_after_it_goes_on(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    flags = [*own_files, "--learning_rate", 3e-3, "--num_train_epochs", 2, "--checkpointing_steps", "epoch"]
    flags += ["--output_dir", tmp_path]
    run(*flags)
    before = (tmp_path / "validation_predictions.csv").read_bytes()
    for name in ("validation_predictions.csv", "all_results.json", "model.safetensors"):
        (tmp_path / name).unlink()
    run(*flags, "--resume_from_checkpoint", "latest")
    assert (tmp_path / "validation_predictions.csv").read_bytes() == before


def test_a_file_called_like_the_best_weights_is_not_lost(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mine = tmp_path / "out" / "best.safetensors"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--max_train_steps", 1, "--output_dir", mine.parent)
    assert exit_.value.code == 2
    assert "best.safetensors that is not of a training run of this script" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_a_tracker_that_fails_does_not_change_what_a_signal_does(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("its server is gone")

    monkeypatch.setattr("no_trainer.checkpoints.end_trackers", fails)
    with_signal(monkeypatch, "Evaluating")
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path)
    assert exit_.value.code == 128 + signal.SIGTERM
    assert "a tracker could not be closed: RuntimeError: its server is gone" in capsys.readouterr().out


def test_best_weights_of_another_evaluation_are_not_saved_as_the_best(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A run that keeps its best weights goes on without keeping them, and then with it again."""
    keep, out = "--load_best_model_at_end", ["--output_dir", tmp_path]
    flags = [*own_files, "--learning_rate", 3e-3, "--lr_scheduler_type", "constant", *out]
    flags += ["--metric_for_best_model", "loss", "--checkpointing_steps", "epoch"]
    run(*flags, keep, "--num_train_epochs", 1)
    assert "were not kept" not in capsys.readouterr().out
    again = ["--resume_from_checkpoint", "latest"]
    run(*flags, "--num_train_epochs", 2, *again)
    capsys.readouterr()
    results = run(*flags, keep, "--num_train_epochs", 3, *again)
    assert "the weights of the best evaluation so far were not kept" in capsys.readouterr().out
    assert results["best_step"] == results["step"]
    evaluated = run("--model_name_or_path", tmp_path, *own_files, "--num_train_epochs", 0)
    assert evaluated["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("step", [12, 16])
def test_best_weights_that_nobody_asks_for_any_more_are_gone(
    run: Callable, own_files: list, tmp_path: Path, step: int
) -> None:
    flags = [*own_files, "--checkpointing_steps", 4, "--num_train_epochs", 2, "--output_dir", tmp_path]
    run(*flags, "--load_best_model_at_end")
    assert (tmp_path / f"step_{step}" / "best.safetensors").exists(), "or this shows nothing"
    run(*flags, "--resume_from_checkpoint", tmp_path / f"step_{step}")
    assert not (tmp_path / "best.safetensors").exists()
