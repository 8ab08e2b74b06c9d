"""Checkpoints: which are kept, which is the latest, and what may go on from one."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import log_lines, sentences, weights, without_dropout, write_csv
from safetensors.torch import save_file

import run_glue_no_trainer as script
from no_trainer.batches import Collate
from no_trainer.checkpoints import find_checkpoint
from no_trainer.folder import BEST, checkpoints, checksum, damage, files_in


def test_checkpoints_and_their_limit(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--checkpointing_steps", 5, "--save_total_limit", 2, "--output_dir", tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_15", "step_20"]
    assert not list(tmp_path.glob(".*"))


def test_the_limit_counts_back_from_the_step_that_is_saved(
    run: Callable, three_checkpoints: list, tmp_path: Path
) -> None:
    """Going back to step 2 leaves those of later steps until they are written again."""
    flags = [*three_checkpoints, "--save_total_limit", 1, "--resume_from_checkpoint", tmp_path / "out" / "step_2"]
    kept = []
    save = script.save_checkpoint

    def watched(run: object, model: torch.nn.Module, name: str) -> None:
        save(run, model, name)
        kept.append(sorted(path.name for path in checkpoints(tmp_path / "out")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "save_checkpoint", watched)
        run(*flags)
    assert kept == [["step_4", "step_6"], ["step_6"]]


def test_latest_is_the_checkpoint_of_the_most_steps(run: Callable, own_files: list, tmp_path: Path) -> None:
    """By steps, not by name or date: step_9 is older than step_12, epoch_0 is that of step 8, after its evaluation."""
    flags = [*own_files, "--max_train_steps", 12, "--output_dir", tmp_path]
    run(*flags, "--checkpointing_steps", 3)
    (tmp_path / "step_15").mkdir()  # not a whole checkpoint
    os.utime(tmp_path / "step_9")
    args = script.parse_args(["--model_name_or_path", "m", *map(str, flags), "--resume_from_checkpoint", "latest"])
    assert find_checkpoint(args) == tmp_path / "step_12"


def test_latest_with_nothing_there_is_a_first_start(run: Callable, own_files: list, tmp_path: Path) -> None:
    """So that one command can be started again and again, as by a cluster."""
    flags = [*own_files, "--max_train_steps", 2, "--output_dir", tmp_path, "--resume_from_checkpoint", "latest"]
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')  # killed before the first checkpoint
    assert run(*flags)["step"] == 2
    assert [line["step"] for line in log_lines(tmp_path)] == [2, 2]


def test_a_refused_run_leaves_no_output_dir(run: Callable, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("good", "a")] * 3)
    with pytest.raises(SystemExit):
        run("--train_file", file, "--validation_file", file, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_small_a_disk_is_found_before_training(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 2
    assert "MB are free" in capsys.readouterr().err


# --- what is another run


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            ["--learning_rate", 5e-4],
            "schedule was linear from 0.001, 1 warm-up steps of 6 there and is linear from 0.0005",
        ),
        (["--max_train_steps", 9], "1 warm-up steps of 6 there and is linear from 0.001, 1 warm-up steps of 9 here"),
        (["--lr_scheduler_type", "cosine"], "schedule was linear"),
        (["--weight_decay", 0.1], "weight_decay was 0.0 there and is 0.1 here"),
        (["--max_grad_norm", 0], "max_grad_norm was 1.0 there and is 0.0 here"),
        (["--no_group_by_length"], "no_group_by_length was False there and is True here"),
        (["--max_train_samples", 60], ": data was "),
        (["--max_length", 5], ": data was "),
    ],
)
def test_another_run_is_not_resumed(
    run: Callable, three_checkpoints: list, capsys: pytest.CaptureFixture, changed: list, says: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*three_checkpoints, *changed, "--resume_from_checkpoint", "latest")
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("changed", [["--seed", 1], ["--per_device_train_batch_size", 4]])
def test_another_seed_or_global_batch_is_not_resumed(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture, changed: list
) -> None:
    flags = [*own_files, "--max_train_steps", 4, "--checkpointing_steps", 2, "--output_dir", tmp_path]
    run(*flags)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(*flags, "--resume_from_checkpoint", "latest", *changed)
    assert exit_.value.code == 2
    was, now = (42, 1) if "--seed" in changed else (8, 4)
    assert f"was {was} there and is {now} here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*flags, "--resume_from_checkpoint", tmp_path / "step_2", *changed, "--output_dir", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_other_rows_or_another_model_are_not_resumed(
    run: Callable, three_checkpoints: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    resume = [*three_checkpoints, "--resume_from_checkpoint", "latest"]
    rows = [(text, ("negative", "positive")[label]) for text, label in sentences(61)]
    same = write_csv(tmp_path / "same.csv", ["text", "label"], rows)
    resume[1] = same
    run(*resume)  # the same rows in another file are the same data
    rows[3], rows[4] = rows[4], rows[3]
    other = write_csv(tmp_path / "other.csv", ["text", "label"], rows)
    with pytest.raises(SystemExit):
        run(resume[0], other, *resume[2:])
    assert ": data was" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*resume, "--model_name_or_path", without_dropout(tiny_model, tmp_path / "model"))
    assert "model was BertForSequenceClassification of" in capsys.readouterr().err


def test_other_validation_data_is_not_resumed(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [*own_files, "--max_train_steps", 2, "--checkpointing_steps", 1, "--output_dir", tmp_path]
    run(*flags)
    with pytest.raises(SystemExit) as exit_:
        run(*flags, "--resume_from_checkpoint", "latest", "--max_eval_samples", 7)
    assert exit_.value.code == 2
    assert ": validation_data was " in capsys.readouterr().err


# --- what goes on


def test_a_constant_schedule_may_go_on_for_longer(run: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, "--lr_scheduler_type", "constant", "--checkpointing_steps", 4, "--logging_steps", 1]
    run(*flags, "--max_train_steps", 6, "--output_dir", tmp_path / "whole")
    run(*flags, "--max_train_steps", 4, "--output_dir", tmp_path / "longer")
    run(*flags, "--max_train_steps", 6, "--output_dir", tmp_path / "longer", "--resume_from_checkpoint", "latest")
    assert weights(tmp_path / "whole") == weights(tmp_path / "longer")


def test_the_best_model_may_be_asked_for_after_a_start_without_it(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    """No evaluation after the first is better: nothing has kept the weights of the first."""
    flags = [*own_files, "--num_train_epochs", 3, "--learning_rate", 0, "--checkpointing_steps", "epoch"]
    assert run(*flags, "--output_dir", tmp_path)["best_epoch"] == 1
    shutil.rmtree(tmp_path / "epoch_2")
    best = run(*flags, "--output_dir", tmp_path, "--resume_from_checkpoint", "latest", "--load_best_model_at_end")
    assert (best["best_epoch"], best["epoch"]) == (3, 3)


def test_a_resume_with_nothing_left_to_train_evaluates_what_it_saves(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    flags = [*own_files, "--lr_scheduler_type", "constant", "--learning_rate", 1e-2, "--output_dir", tmp_path / "out"]
    run(*flags, "--checkpointing_steps", 5)
    results = run(*flags, "--num_train_epochs", 1, "--resume_from_checkpoint", tmp_path / "out" / "step_15")
    alone = run(*own_files, "--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0)
    assert (results["step"], results["eval_loss"]) == (15, pytest.approx(alone["eval_loss"], abs=1e-6))


def test_skipping_to_the_place_loads_no_rows(run: Callable, own_files: list, tmp_path: Path) -> None:
    """From step 7 of 8, a resumed epoch reads the rows of one global batch, and the model sees no others.

    Before that, one batch of each kind is tried for its memory.
    """
    flags = [*own_files, "--max_train_steps", 8, "--output_dir", tmp_path]
    run(*flags, "--checkpointing_steps", 7)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        collate = Collate.__call__
        patch.setattr(
            Collate,
            "__call__",
            lambda self, rows: calls.append(len(rows)) or collate(self, rows),
        )
        run(*flags, "--resume_from_checkpoint", "latest", "--per_device_eval_batch_size", 23)
    assert calls[2:] == [8, 23]


def test_resuming_on_another_cut_continues_the_run(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path
) -> None:
    """Saved between two lines of the log by 1 × 8, gone on with by 1 × 2 with 4 accumulation steps."""
    model = without_dropout(tiny_model, tmp_path / "model")
    flags = [*own_files, "--model_name_or_path", model, "--learning_rate", 1e-3, "--logging_steps", 4]
    run(*flags, "--output_dir", tmp_path / "whole")
    run(*flags, "--output_dir", tmp_path / "cut", "--checkpointing_steps", 10)
    cut = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4]
    run(*flags, *cut, "--output_dir", tmp_path / "cut", "--resume_from_checkpoint", tmp_path / "cut" / "step_10")
    for a, b in zip(log_lines(tmp_path / "whole"), log_lines(tmp_path / "cut"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def reseal(checkpoint: Path) -> None:
    """Have the checksums say that all files are as they were written."""
    sums = {name: checksum(file) for name, file in files_in(checkpoint).items() if name != "checksums.json"}
    (checkpoint / "checksums.json").write_text(json.dumps(sums))


@pytest.mark.parametrize(
    "changed", ["{}", "[]", "nonsense", '{"step": "six"}', '{"settings": null}', '{"recent": [5]}']
)
def test_the_progress_of_another_version_is_refused(
    run: Callable, three_checkpoints: list, tmp_path: Path, capsys: pytest.CaptureFixture, changed: str
) -> None:
    """With a field that this version does not know, or in another form altogether."""
    file = tmp_path / "out" / "step_6" / "progress.json"
    newer = json.loads(file.read_text()) | {"of_tomorrow": 1}
    file.write_text(json.dumps(newer) if changed == "{}" else changed)
    reseal(file.parent)
    with pytest.raises(SystemExit) as exit_:
        run(*three_checkpoints, "--resume_from_checkpoint", file.parent)
    assert exit_.value.code == 2
    assert "progress.json was written by another version of this script" in capsys.readouterr().err


def test_a_random_state_that_cannot_be_loaded_is_told(
    run: Callable, three_checkpoints: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Accelerate itself goes on without a word, with the random numbers of the start."""
    said = "the random state could not be loaded"
    run(*three_checkpoints, "--resume_from_checkpoint", tmp_path / "out" / "step_2")
    assert said not in capsys.readouterr().out
    checkpoint = tmp_path / "out" / "step_2"
    torch.save({"step": 0}, checkpoint / "random_states_0.pkl")
    reseal(checkpoint)
    assert run(*three_checkpoints, "--resume_from_checkpoint", checkpoint)["step"] == 6
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_whatever_stands_where_a_checkpoint_is_written_aside(
    run: Callable, own_files: list, tmp_path: Path, kind: str
) -> None:
    aside = tmp_path / "out" / ".step_1.partial"
    aside.parent.mkdir()
    mine = tmp_path / "mine"
    mine.write_text("to stay")
    make = {
        "file": aside.touch,
        "link": lambda: aside.symlink_to(mine),
        "folder": lambda: (aside / "x").mkdir(parents=True),
    }
    make[kind]()
    run(*own_files, "--max_train_steps", 1, "--checkpointing_steps", 1, "--output_dir", tmp_path / "out")
    assert not damage(tmp_path / "out" / "step_1")
    assert mine.read_text() == "to stay"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("optimizer.bin", {}),
        ("optimizer.bin", [1, 2]),
        ("scheduler.bin", 7),
        ("model.safetensors", None),
        ("random_states_0.pkl", {"step": "x"}),
    ],
)
def test_a_checkpoint_of_other_contents_is_one_line(
    run: Callable,
    three_checkpoints: list,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    file: str,
    content: object,
) -> None:
    """With the right checksums, so that it is not noticed as damaged."""
    checkpoint = tmp_path / "out" / "step_4"
    custom = {"scheduler.bin": "custom_checkpoint_0.pkl"}.get(file, file)
    assert (checkpoint / custom).exists()
    if content is None:
        save_file({"other": torch.zeros(2)}, checkpoint / custom)
    else:
        torch.save(content, checkpoint / custom)
    sums = {name: checksum(path) for name, path in files_in(checkpoint).items() if name != "checksums.json"}
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    assert not damage(checkpoint)
    flags = [*three_checkpoints, "--resume_from_checkpoint", checkpoint]
    if file.startswith("random"):
        run(*flags)
        assert "the random state could not be loaded" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as exit_:
        run(*flags)
    assert exit_.value.code == 2
    assert f"--resume_from_checkpoint {checkpoint} cannot be loaded: " in capsys.readouterr().err


def test_a_constant_schedule_that_was_cut_goes_on_with_the_rest_of_its_epoch(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    flags = [*own_files, "--lr_scheduler_type", "constant", "--checkpointing_steps", "epoch", "--logging_steps", 1]
    run(*flags, "--max_train_steps", 11, "--output_dir", tmp_path / "whole")
    run(*flags, "--max_train_steps", 3, "--output_dir", tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "epoch_0" / "progress.json").read_text())["batch"] == 3
    run(*flags, "--max_train_steps", 11, "--resume_from_checkpoint", "latest", "--output_dir", tmp_path / "cut")
    steps = [[line["loss"] for line in log_lines(tmp_path / name) if "loss" in line] for name in ("whole", "cut")]
    assert steps[1] == steps[0]
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_another_metric_for_the_best_model_is_not_resumed(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [
        *own_files,
        "--load_best_model_at_end",
        "--checkpointing_steps",
        "epoch",
        "--output_dir",
        tmp_path / "out",
    ]
    run(*flags, "--num_train_epochs", 1)
    with pytest.raises(SystemExit):
        run(*flags, "--num_train_epochs", 1, "--metric_for_best_model", "loss", "--resume_from_checkpoint", "latest")
    assert "metric_for_best_model was accuracy there and is loss here" in capsys.readouterr().err


def test_a_finished_run_is_not_replaced_by_one_that_goes_on_from_elsewhere(
    run: Callable, three_checkpoints: list, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path / "other")
    before = weights(tmp_path / "other")
    flags = [*three_checkpoints[:-1], tmp_path / "other", "--resume_from_checkpoint", tmp_path / "out" / "step_2"]
    with pytest.raises(SystemExit):
        run(*flags)
    assert "other holds an earlier run" in capsys.readouterr().err
    assert weights(tmp_path / "other") == before
    flags[flags.index(tmp_path / "other")] = tmp_path / "new"
    assert run(*flags)["step"] == 6


def test_a_checkpoint_past_the_end_of_the_run_is_told(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [*own_files, "--lr_scheduler_type", "constant", "--checkpointing_steps", 4, "--output_dir", tmp_path]
    run(*flags, "--max_train_steps", 8)
    run(*flags, "--max_train_steps", 4, "--resume_from_checkpoint", "latest")
    assert "step_8 is of step 8, and this run would end at step 4" in capsys.readouterr().out


def test_stale_best_weights_in_the_folder_are_in_no_checkpoint(run: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, "--checkpointing_steps", "epoch", "--learning_rate", 0, "--output_dir", tmp_path]
    run(*flags, "--num_train_epochs", 3)
    (tmp_path / BEST).touch()  # of a run that was killed later on
    shutil.rmtree(tmp_path / "epoch_2")
    run(*flags, "--num_train_epochs", 3, "--resume_from_checkpoint", "latest")
    assert not (tmp_path / "epoch_2" / BEST).exists()


def test_the_results_of_a_run_that_goes_on_are_not_those_of_its_first_end(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is over when all_results.json is there."""
    flags = [*own_files, "--lr_scheduler_type", "constant", "--checkpointing_steps", 2, "--output_dir", tmp_path]
    run(*flags, "--max_train_steps", 4)
    monkeypatch.setattr(script, "save_checkpoint", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        run(*flags, "--max_train_steps", 8, "--resume_from_checkpoint", "latest")
    assert not (tmp_path / "all_results.json").exists()
    assert (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    assert run(*flags, "--max_train_steps", 8, "--resume_from_checkpoint", "latest")["step"] == 8


def test_a_schedule_that_differs_names_its_flags(
    run: Callable, three_checkpoints: list, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        run(*three_checkpoints, "--learning_rate", 2e-3, "--resume_from_checkpoint", "latest")
    assert "here (--learning_rate, --lr_scheduler_type, warm-up, and epochs or steps); take the same" in (
        capsys.readouterr().err
    )
