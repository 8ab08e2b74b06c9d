"""The folder of a run: damaged checkpoints, what a killed run left, what an earlier run left."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, log_lines, weights

import run_glue_no_trainer as script
from no_trainer.folder import LOCK, checkpoints, clear, clear_aside, damage, hold, is_free, let_go


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "optimizer.bin", 1000)


def flip_a_byte(name: str, checkpoint: Path) -> None:
    data = bytearray((checkpoint / name).read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / name).write_bytes(data)


def lose(name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()


DAMAGES = {
    "truncated": (truncate, "optimizer.bin has changed"),
    "weights flipped": (functools.partial(flip_a_byte, "model.safetensors"), "model.safetensors has changed"),
    "random state flipped": (functools.partial(flip_a_byte, "random_states_0.pkl"), "random_states_0.pkl has changed"),
    "progress flipped": (functools.partial(flip_a_byte, "progress.json"), "progress.json has changed"),
    "checksums flipped": (functools.partial(flip_a_byte, "checksums.json"), ""),
    "weights lost": (functools.partial(lose, "model.safetensors"), "it has no model.safetensors"),
    "progress lost": (functools.partial(lose, "progress.json"), "it has no progress.json"),
    "checksums lost": (functools.partial(lose, "checksums.json"), "checksums.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    run: Callable, three_checkpoints: list, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    folder = tmp_path / "out"
    whole, log = weights(folder), log_lines(folder)
    spoil, said = DAMAGES[kind]
    spoil(folder / "step_6")
    capsys.readouterr()
    run(*three_checkpoints, "--resume_from_checkpoint", "latest")
    out = capsys.readouterr().out
    assert f"warning: {folder / 'step_6'} is damaged: " in out
    assert said in out
    assert f"going on from {folder / 'step_4'}" in out
    assert (weights(folder), log_lines(folder)) == (whole, log)
    assert not damage(folder / "step_6"), "it has been written again"


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(
    run: Callable, three_checkpoints: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    truncate(tmp_path / "out" / "step_4")
    with pytest.raises(SystemExit) as exit_:
        run(*three_checkpoints, "--resume_from_checkpoint", tmp_path / "out" / "step_4")
    assert exit_.value.code == 2
    assert "step_4 is damaged: optimizer.bin has changed" in capsys.readouterr().err


def test_when_all_checkpoints_are_damaged_nothing_is_begun(
    run: Callable, three_checkpoints: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for step in (2, 4, 6):
        truncate(tmp_path / "out" / f"step_{step}")
    with pytest.raises(SystemExit) as exit_:
        run(*three_checkpoints, "--resume_from_checkpoint", "latest")
    assert exit_.value.code == 2
    assert "every checkpoint in" in capsys.readouterr().err
    assert len(checkpoints(tmp_path / "out")) == 3


def test_what_others_put_into_a_checkpoint_does_no_harm(
    run: Callable, three_checkpoints: list, tmp_path: Path
) -> None:
    """As Finder does with .DS_Store, and NFS with .nfs and a number."""
    (tmp_path / "out" / "step_6" / ".DS_Store").touch()
    assert not damage(tmp_path / "out" / "step_6")


def test_what_a_killed_run_left_aside_is_cleared(run: Callable, three_checkpoints: list, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(folder / "step_6", folder / ".step_6.partial")
    shutil.copytree(folder / "step_6", folder / ".epoch_0.old")
    (folder / ".notes.old").mkdir()
    run(*three_checkpoints, "--resume_from_checkpoint", "latest")
    assert [path.name for path in folder.glob(".*")] == [".notes.old"]


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


def test_an_overwritten_run_that_is_killed_leaves_no_model_of_the_run_before(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path)
    monkeypatch.setattr(script, "progress_bar", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(*own_files, "--max_train_steps", 1, "--overwrite_output_dir", "--output_dir", tmp_path)
    assert not {"model.safetensors", "config.json", "README.md"} & {file.name for file in tmp_path.iterdir()}


def test_evaluating_a_model_in_its_own_folder_does_not_delete_it(
    run: Callable, trained: Path, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = weights(trained)
    flags = [*own_files[2:], "--model_name_or_path", trained, "--num_train_epochs", 0, "--overwrite_output_dir"]
    with pytest.raises(SystemExit):
        run(*flags, "--output_dir", trained)
    assert "is the folder of the model; leave --overwrite_output_dir out" in capsys.readouterr().err
    run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path / "other")
    run(*flags, "--output_dir", tmp_path / "other")
    assert (tmp_path / "other" / "model.safetensors").exists()
    assert weights(trained) == before


def test_a_run_that_goes_on_from_elsewhere_replaces_all_of_the_run_before(
    run: Callable, three_checkpoints: list, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `latest` would go on from the other run if this one is killed before its first checkpoint."""
    run(*own_files, "--max_train_steps", 8, "--checkpointing_steps", 4, "--output_dir", tmp_path / "other")
    monkeypatch.setattr(script, "progress_bar", killed)
    flags = [*three_checkpoints[:-1], tmp_path / "other", "--overwrite_output_dir"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(*flags, "--resume_from_checkpoint", tmp_path / "out" / "step_2")
    assert not checkpoints(tmp_path / "other")
    assert len(checkpoints(tmp_path / "out")) == 3


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


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


def test_a_folder_in_which_a_run_is_at_work_is_refused(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whatever the second run was told, nothing of the first is touched; when it has ended the folder is free."""
    flags = [*own_files, "--max_train_steps", 2, "--output_dir", tmp_path / "out"]
    run(*flags)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert not [path for path in before if path.name == LOCK]
    command = [sys.executable, "-c", HOLD, tmp_path / "out"]
    with subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout.readline() == b"held\n"
        for flag in ([], ["--overwrite_output_dir"], ["--resume_from_checkpoint", "latest"]):
            with pytest.raises(SystemExit) as exit_:
                run(*flags, *flag)
            assert exit_.value.code == 2
            assert "another run is writing there" in capsys.readouterr().err
        after = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != LOCK}
        other.kill()  # the lock dies with its process
    assert after == before
    run(*flags, "--overwrite_output_dir")


HOLD = """
import sys; from pathlib import Path; from no_trainer.folder import hold
assert hold(Path(sys.argv[1])); print("held", flush=True); sys.stdin.read()
"""


@pytest.mark.slow
def test_of_two_runs_started_at_once_one_has_the_folder(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """The folder is there or not; the one that has it ends as if it had been alone."""
    command = [sys.executable, ROOT / "run_glue_no_trainer.py", "--model_name_or_path", tiny_model, *own_files]
    command += ["--num_train_epochs", 60, "--checkpointing_steps", 100, "--save_total_limit", 2]
    alone = subprocess.run([*map(str, [*command, "--output_dir", tmp_path / "alone"])], capture_output=True)
    assert alone.returncode == 0, alone.stderr
    for number in range(int(os.environ.get("FAULT_RUNS", "2"))):
        out = tmp_path / str(number)
        if number % 2:
            out.mkdir()
        both = [
            subprocess.Popen(
                [*map(str, [*command, "--output_dir", out])],
                text=True,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]
        said = [run.communicate(timeout=120)[1] for run in both]
        assert sorted(run.returncode for run in both) == [0, 2], said
        lost = said[[run.returncode for run in both].index(2)]
        print(f"{number}: {lost.strip()}")
        assert "another run is writing there" in lost or "holds an earlier run" in lost
        assert weights(out) == weights(tmp_path / "alone")
        assert [path.name for path in checkpoints(out)] == ["step_300", "step_400"]


def test_tables_that_are_not_of_a_run_stay(tmp_path: Path) -> None:
    mine = ["predict_results_backup.csv", "validation_predictions_2025.csv", "validation_predictions.csv.bak"]
    for name in [*mine, "predict_results.csv", "predict_results_mismatched.csv", "validation_predictions_mm.csv"]:
        (tmp_path / name).touch()
    clear(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(mine)


def test_the_lock_of_a_run_in_a_thread_of_this_process_stays(tmp_path: Path) -> None:
    assert hold(tmp_path)
    try:
        assert not is_free(tmp_path)
        assert (tmp_path / LOCK).exists()
    finally:
        let_go()
    assert is_free(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may open every file")
def test_the_lock_of_another_user_counts(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch(0o000)
    assert not is_free(tmp_path)


def test_looking_at_another_folder_leaves_the_locks_of_this_process(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
    (other / LOCK).touch()  # left by a run that was killed
    try:
        assert hold(mine)
        assert is_free(other)
        assert not is_free(mine)
        assert (mine / LOCK).exists()
    finally:
        let_go()


@pytest.mark.parametrize("name", [".predict_results.csv.partial", "glue/.MRPC.tsv.partial", ".step_3.old", "mine"])
def test_only_what_a_killed_run_had_begun_to_write_is_cleared(tmp_path: Path, name: str) -> None:
    (tmp_path / "glue").mkdir()
    (tmp_path / name).touch()
    clear_aside(tmp_path)
    assert (tmp_path / name).exists() == (name == "mine")
