"""However `main` is left, the process is as it was: handlers of signals, and folders that other runs may use."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, launch, log_lines, weights

import run_glue_no_trainer as script
from no_trainer.checkpoints import checkpoints
from no_trainer.folder import hold, let_go


def handlers() -> list:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal(
    run: Callable,
    own_files: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    capsys: pytest.CaptureFixture,
) -> None:
    """As a notebook has it, where the process lives on, and its own command line starts something else."""
    before, save = handlers(), script.log_losses
    monkeypatch.setattr(script, "log_losses", lambda *args: (save(*args), signal.raise_signal(number)))
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--output_dir", tmp_path / "out", "--logging_steps", 3)
    assert exit_.value.code == 128 + number
    assert handlers() == before
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["step_3"]
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith("python run_glue_no_trainer.py --model_name_or_path ")
    assert command.endswith(" --resume_from_checkpoint latest")
    monkeypatch.undo()
    run(*own_files, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest")
    assert handlers() == before


def test_after_an_error_in_the_loop(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = handlers()
    monkeypatch.setattr(script, "log_losses", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*own_files, "--output_dir", tmp_path / "out")
    assert handlers() == before
    assert hold(tmp_path / "out", 0), "the folder is free"
    let_go()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_with_workers(
    own_files: list, tiny_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Schedulers, and Ctrl-C at a terminal, signal every process, those that load batches too."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--dataloader_num_workers", "2", "--logging_steps", "1"]
    flags += ["--learning_rate", "1e-3", "--output_dir", tmp_path / "out"]
    command = [sys.executable, ROOT / "run_glue_no_trainer.py", *flags]
    run = subprocess.Popen(
        [*map(str, command), "--num_train_epochs", "200"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not (line := run.stdout.readline()).startswith("step 20 "):
        assert line, run.stderr.read()
    os.killpg(run.pid, number)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 128 + number, err
    assert err == ""
    (saved,) = checkpoints(tmp_path / "out")
    assert f"{number.name}: saved {saved}; to go on:" in out
    assert len(log_lines(tmp_path / "out")) >= 20


@pytest.mark.slow
def test_workers_change_no_byte(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 12, "--learning_rate", 1e-3]
    for workers in (0, 2):
        ended = launch(*flags, "--dataloader_num_workers", workers, "--output_dir", tmp_path / str(workers))
        assert ended.returncode == 0, ended.stderr
    assert weights(tmp_path / "0") == weights(tmp_path / "2")


@pytest.mark.slow
def test_a_run_in_the_background_outlives_its_shell(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """A variable of Accelerate that somebody has set is no sign of its launcher, with which a run ends."""
    out = tmp_path / "out"
    flags = ["--model_name_or_path", tiny_model, *own_files, "--logging_steps", 1, "--max_train_steps", 300]
    words = [sys.executable, ROOT / "run_glue_no_trainer.py", *flags, "--output_dir", out]
    shell = f"{shlex.join(map(str, words))} & until [ -s {shlex.quote(str(out / 'log.jsonl'))} ]; do sleep 0.05; done"
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "no"}
    # the pipe is closed when the run ends, not when the shell does
    ended = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, timeout=120)
    assert "SIGTERM" not in ended.stdout
    assert (out / "all_results.json").exists(), ended.stdout + ended.stderr
