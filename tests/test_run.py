"""The log of a run, a loss that is not finite, and what the trackers are told."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.tracking import TensorBoardTracker
from conftest import TORCHRUN, launch, log_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from no_trainer.folder import checkpoints


def test_log_lines(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--max_train_steps", 12, "--logging_steps", 4, "--output_dir", tmp_path)
    lines = log_lines(tmp_path)
    train = [line for line in lines if "loss" in line]
    assert [(line["step"], line["epoch"]) for line in train] == [(4, 0.5), (8, 1.0), (12, 1.5)]
    assert all(line.keys() == {"step", "epoch", "loss", "learning_rate", "grad_norm"} for line in train)
    evaluations = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in evaluations] == [8, 12]
    assert all("eval_accuracy" in line and "eval_loss" in line for line in evaluations)


def test_divergence_is_named_and_leaves_no_broken_checkpoint(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [*own_files, "--learning_rate", 1e30, "--max_grad_norm", 0, "--output_dir", tmp_path]
    with pytest.raises(SystemExit) as exit_:
        run(*flags, "--checkpointing_steps", 1, "--lr_scheduler_type", "constant_with_warmup", "--warmup_ratio", 0.1)
    assert exit_.value.code == 1
    error = next(line for line in capsys.readouterr().err.splitlines() if ": error: " in line)
    assert "step 2: the weights are not finite" in error
    assert [path.name for path in checkpoints(tmp_path)] == ["step_1"]  # its learning rate was 0
    with pytest.raises(SystemExit) as exit_:
        run(*flags, "--num_warmup_steps", 0, "--overwrite_output_dir", "--logging_steps", 5)
    assert exit_.value.code == 1
    error = next(line for line in capsys.readouterr().err.splitlines() if ": error: " in line)
    assert "run_glue_no_trainer.py: error: step 2: the loss is nan" in error
    assert "at learning rate 9.583e+29" in error
    assert "the step before had loss 0." in error


# --- trackers


TENSORBOARD = ["--with_tracking", "--report_to", "tensorboard"]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars that TensorBoard would draw: by tag, steps and values."""
    read = EventAccumulator(str(folder / "glue_no_trainer"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from log.jsonl."""
    tags: dict[str, list[tuple[int, float]]] = {}
    for line in log_lines(folder):
        for name, value in line.items():
            if name != "step":
                tags.setdefault(name, []).append((line["step"], pytest.approx(value, rel=1e-6)))
    return tags


def test_tensorboard_has_every_number_of_the_log_by_its_own_tag(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    run(*own_files, *TENSORBOARD, "--logging_steps", 2, "--max_train_steps", 12, "--output_dir", tmp_path)
    drawn = curves(tmp_path)
    speed = drawn.pop("samples_per_second")
    assert [step for step, _ in speed] == [2, 4, 6, 8, 10, 12]
    assert all(value > 0 for _, value in speed)
    assert drawn == expected(tmp_path)
    assert drawn.keys() >= {"loss", "learning_rate", "grad_norm", "eval_loss", "eval_accuracy", "eval_f1"}


@pytest.mark.parametrize("checkpoint", ["step_6", "step_8", "epoch_0"])
def test_a_resumed_run_goes_on_with_the_same_curves(
    run: Callable, own_files: list, tmp_path: Path, checkpoint: str
) -> None:
    """What was logged after the checkpoint is drawn once; step 8 ends the first epoch and has an evaluation."""
    flags = [*own_files, *TENSORBOARD, "--logging_steps", 1, "--max_train_steps", 12, "--output_dir", tmp_path]
    flags += ["--checkpointing_steps", "epoch" if checkpoint == "epoch_0" else 2]
    run(*flags)
    (events,) = (tmp_path / "glue_no_trainer").glob("events.*")  # TensorBoard reads them by the second in their names
    events.rename(events.with_name("events.out.tfevents.1000000000.host.1.0"))
    run(*flags, "--resume_from_checkpoint", tmp_path / checkpoint)
    drawn = curves(tmp_path)
    drawn.pop("samples_per_second")
    assert drawn == expected(tmp_path)
    assert [step for step, _ in drawn["loss"]] == list(range(1, 13))


def test_a_new_run_in_the_same_folder_has_new_curves(run: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, *TENSORBOARD, "--logging_steps", 1, "--output_dir", tmp_path]
    run(*flags, "--max_train_steps", 3)
    run(*flags, "--max_train_steps", 2, "--overwrite_output_dir")
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2]


def test_hyper_parameters(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, *TENSORBOARD, "--learning_rate", 3e-4, "--max_train_steps", 1, "--output_dir", tmp_path)
    (file,) = (tmp_path / "glue_no_trainer").glob("*/hparams.yml")
    flags = file.read_text()
    assert "learning_rate: 0.0003" in flags
    assert "token" not in flags


@pytest.mark.slow
def test_weights_and_biases_offline_and_trackio(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """`all` of those installed; a resumed run has the name and the id of the one before."""
    environment = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    out = tmp_path / "out"
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 4, "--logging_steps", 1]
    flags += ["--checkpointing_steps", 2, "--with_tracking", "--output_dir", out]
    for more in ([], ["--resume_from_checkpoint", out / "step_2"]):
        ended = launch(*flags, *more, env=environment)
        assert ended.returncode == 0, ended.stderr
    progress = json.loads((out / "step_4" / "progress.json").read_text())
    runs = sorted((out / "glue_no_trainer" / "wandb").glob("offline-run-*"))
    assert [folder.name.endswith(progress["run"]) for folder in runs] == [True, True]
    for folder in runs:
        (record,) = folder.glob("*.wandb")
        assert all(tag in record.read_bytes() for tag in (b"samples_per_second", b"eval_accuracy", b"learning_rate"))
    with sqlite3.connect(tmp_path / "trackio" / "glue_no_trainer.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {name for name, _, _ in rows} == {f"out-{progress['run']}"}
    losses = {step: json.loads(metrics)["loss"] for _, step, metrics in rows if "loss" in json.loads(metrics)}
    assert losses == {line["step"]: line["loss"] for line in log_lines(out) if "loss" in line}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("comet_ml", "--report_to comet_ml: not installed; pip install comet_ml brings it"),
        ("tensorbord", "--report_to tensorbord: takes one of all, "),
        ("tensorbord", "; did you mean tensorboard?"),
    ],
)
def test_a_tracker_that_is_not_to_be_had(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, said: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--with_tracking", "--report_to", name, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tracking_without_any_tracker_is_refused(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("no_trainer.launch.get_available_trackers", list)
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--with_tracking", "--output_dir", tmp_path / "out")
    assert exit_.value.code == 2
    assert "pip install tensorboard" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tracker_that_cannot_start_is_an_error_of_one_line(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """Weights & Biases without a login and without a terminal to ask for one."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--with_tracking", "--report_to", "wandb"]
    ended = launch(*flags, "--output_dir", tmp_path / "out", env={"WANDB_MODE": "online", "HOME": str(tmp_path)})
    assert ended.returncode == 2
    assert "error: --report_to wandb: UsageError: " in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_no_token_is_written_anywhere(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "hf_" + "secret" * 5
    monkeypatch.setenv("HF_TOKEN", token)
    flags = ["--max_train_steps", 2, "--checkpointing_steps", 1, *TENSORBOARD]
    run(*own_files, *flags, "--output_dir", tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    assert not [path for path in files if token.encode() in path.read_bytes()]
    assert token not in "".join(capsys.readouterr())


def test_a_tracker_that_fails_does_not_stop_the_run(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Such as one whose server is gone; TensorBoard writes in a thread and fails in silence."""

    def gone(*_: object, **__: object) -> None:
        raise OSError("the server is gone")

    monkeypatch.setattr(TensorBoardTracker, "log", gone)
    flags = ["--with_tracking", "--report_to", "tensorboard", "--max_train_steps", 2, "--output_dir", tmp_path / "out"]
    assert run(*own_files, *flags)["step"] == 2
    assert "warning: a tracker failed: OSError: the server is gone" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_go_on_with_the_curves_of_another_folder(
    own_files: list, tiny_model: Path, tmp_path: Path
) -> None:
    """Only the first process copies the log, and only it reads it."""
    flags = ["--model_name_or_path", tiny_model, *own_files, *TENSORBOARD, "--max_train_steps", 6]
    flags += ["--logging_steps", 1, "--checkpointing_steps", 3]
    assert launch(*flags, "--output_dir", tmp_path / "old", launcher=TORCHRUN).returncode == 0
    for number in range(3):
        new = tmp_path / f"new_{number}"
        goes_on = ["--resume_from_checkpoint", tmp_path / "old" / "step_3", "--output_dir", new]
        ended = launch(*flags, *goes_on, launcher=TORCHRUN)
        assert ended.returncode == 0, ended.stderr
        assert [line["step"] for line in log_lines(new) if "loss" in line] == [1, 2, 3, 4, 5, 6]
