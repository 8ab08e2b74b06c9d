"""The best model, and files of weights that are whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import log_lines
from safetensors.torch import load_file

import run_glue_no_trainer as script
from no_trainer.folder import checkpoints
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
