"""Checkpoints and faults: whole or absent, damage, signals, divergence, full disks, and the same run on any cut."""

import functools
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, TORCHRUN, fresh_accelerate, log_lines, sentences, without_dropout, write_csv
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

import run_glue_no_trainer as script
from no_trainer.folder import checkpoints, damage
from no_trainer.launch import together

RUNS = int(os.environ.get("FAULT_RUNS", "1"))  # kills and signals to try; 25 and more for a stress test


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def three_checkpoints(run: Callable, own_files: list, tmp_path: Path) -> list:
    """Flags of a run of 6 steps that left step_2, step_4 and step_6 in tmp_path / "out"."""
    flags = [*own_files, "--max_train_steps", 6, "--learning_rate", 1e-3, "--logging_steps", 1]
    flags += ["--checkpointing_steps", 2, "--output_dir", tmp_path / "out"]
    run(*flags)
    return flags


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "optimizer.bin", 1000)


def flip_a_byte(name: str, checkpoint: Path) -> None:
    data = bytearray((checkpoint / name).read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / name).write_bytes(data)


def lose(name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()


DAMAGES = {
    "truncated": (truncate, "optimizer.bin is not as it was written"),
    "weights flipped": (functools.partial(flip_a_byte, "model.safetensors"), "model.safetensors is not as it was"),
    "random state flipped": (functools.partial(flip_a_byte, "random_states_0.pkl"), "random_states_0.pkl is not as"),
    "progress flipped": (functools.partial(flip_a_byte, "progress.json"), "progress.json is not as it was written"),
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
    damage, said = DAMAGES[kind]
    damage(folder / "step_6")
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
    assert "step_4 is damaged: optimizer.bin is not as it was written" in capsys.readouterr().err


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


def test_latest_with_nothing_there_is_a_first_start(run: Callable, own_files: list, tmp_path: Path) -> None:
    """So that one command can be started again and again, as by a cluster."""
    flags = [*own_files, "--max_train_steps", 2, "--output_dir", tmp_path, "--resume_from_checkpoint", "latest"]
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')  # killed before the first checkpoint
    assert run(*flags)["step"] == 2
    assert [line["step"] for line in log_lines(tmp_path)] == [2, 2]


def test_latest_does_not_replace_a_finished_run(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [*own_files, "--max_train_steps", 2, "--output_dir", tmp_path]
    run(*flags)
    with pytest.raises(SystemExit):
        run(*flags, "--resume_from_checkpoint", "latest")
    assert "holds a run that has ended and no checkpoint to go on from" in capsys.readouterr().err


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


def test_the_best_model_may_be_asked_for_after_a_start_without_it(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    """No evaluation after the first is better: nothing has kept the weights of the first."""
    flags = [*own_files, "--num_train_epochs", 3, "--learning_rate", 0, "--checkpointing_steps", "epoch"]
    assert run(*flags, "--output_dir", tmp_path)["best_epoch"] == 1
    shutil.rmtree(tmp_path / "epoch_2")
    best = run(*flags, "--output_dir", tmp_path, "--resume_from_checkpoint", "latest", "--load_best_model_at_end")
    assert (best["best_epoch"], best["epoch"]) == (3, 3)


def test_what_could_not_be_written_is_not_left_half_written(tmp_path: Path) -> None:
    fresh_accelerate()

    def write() -> None:
        (tmp_path / ".best.partial").write_bytes(b"half")
        raise OSError("no more")

    with pytest.raises(SystemExit) as exit_:
        together(Accelerator(cpu=True), write, tmp_path / ".best.partial")
    assert exit_.value.code == 1
    assert not list(tmp_path.iterdir())


def test_a_resume_with_nothing_left_to_train_evaluates_what_it_saves(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    flags = [*own_files, "--lr_scheduler_type", "constant", "--learning_rate", 1e-2, "--output_dir", tmp_path / "out"]
    run(*flags, "--checkpointing_steps", 5)
    results = run(*flags, "--num_train_epochs", 1, "--resume_from_checkpoint", tmp_path / "out" / "step_15")
    alone = run(*own_files, "--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0)
    assert (results["step"], results["eval_loss"]) == (15, pytest.approx(alone["eval_loss"], abs=1e-6))


def test_other_validation_data_is_not_resumed(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [*own_files, "--max_train_steps", 2, "--checkpointing_steps", 1, "--output_dir", tmp_path]
    run(*flags)
    with pytest.raises(SystemExit) as exit_:
        run(*flags, "--resume_from_checkpoint", "latest", "--max_eval_samples", 7)
    assert exit_.value.code == 2
    assert ": validation_data was " in capsys.readouterr().err


def test_a_constant_schedule_may_go_on_for_longer(run: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, "--lr_scheduler_type", "constant", "--checkpointing_steps", 4, "--logging_steps", 1]
    run(*flags, "--max_train_steps", 6, "--output_dir", tmp_path / "whole")
    run(*flags, "--max_train_steps", 4, "--output_dir", tmp_path / "longer")
    run(*flags, "--max_train_steps", 6, "--output_dir", tmp_path / "longer", "--resume_from_checkpoint", "latest")
    assert weights(tmp_path / "whole") == weights(tmp_path / "longer")


def test_skipping_to_the_place_loads_no_rows(run: Callable, own_files: list, tmp_path: Path) -> None:
    """From step 7 of 8, a resumed epoch reads the rows of one global batch, and the model sees no others."""
    flags = [*own_files, "--max_train_steps", 8, "--output_dir", tmp_path]
    run(*flags, "--checkpointing_steps", 7)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        collate = DataCollatorWithPadding.__call__
        patch.setattr(
            DataCollatorWithPadding,
            "__call__",
            lambda self, rows: calls.append(len(rows)) or collate(self, rows),
        )
        run(*flags, "--resume_from_checkpoint", "latest", "--per_device_eval_batch_size", 23)
    assert calls == [8, 23]


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


def test_a_step_that_the_scaler_skips_moves_neither_schedule_nor_count(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own scaler, on the CPU, with a first scale and losses that give infinite gradients at first."""
    rows = [(text, f"{10_000.5 + label}") for text, label in sentences(61)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    start = script.start_accelerator

    def with_scaler(args: object) -> Accelerator:
        accelerator = start(args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-16)
        return accelerator

    monkeypatch.setattr(script, "start_accelerator", with_scaler)
    flags = ["--train_file", file, "--validation_file", file, "--max_train_steps", 6, "--learning_rate", 1e-3]
    flags += ["--logging_steps", 1, "--max_grad_norm", 0, "--num_warmup_steps", 0]
    results = run(*flags, "--output_dir", tmp_path / "a", "--checkpointing_steps", 3)
    lines = [line for line in log_lines(tmp_path / "a") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3 * (6 - k) / 6 for k in range(6)])
    assert results["epoch"] > 6 / 8, "batches of skipped steps are not seen again"
    resumed = [*flags, "--output_dir", tmp_path / "a", "--resume_from_checkpoint", tmp_path / "a" / "step_3"]
    before = weights(tmp_path / "a")
    run(*resumed)
    assert weights(tmp_path / "a") == before, "the scale is in the checkpoint"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_trains_on_a_gpu(run: Callable, own_files: list) -> None:
    assert run(*own_files, "--mixed_precision", "fp16", "--max_train_steps", 8)["step"] == 8


# --- in processes of their own


class Run:
    """The script as a process that can be killed; its flags are those of a run of 24 steps with dropout."""

    def __init__(self, own_files: list, model: Path, folder: Path, *flags: object, launcher: tuple = ()) -> None:
        command = [*(launcher or (sys.executable,)), ROOT / "run_glue_no_trainer.py", "--model_name_or_path", model]
        command += [*own_files, "--learning_rate", 1e-3, "--logging_steps", 1, "--output_dir", folder]
        self.folder = folder
        self.process = subprocess.Popen(
            [str(word) for word in [*command, *flags]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"ACCELERATE_USE_CPU": "true"},
            start_new_session=True,
            cwd=folder.parent,
        )
        self.output = ""
        self.training = threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        while text := self.process.stdout.read(1):
            self.output += text
            if "training for" in self.output:
                self.training.set()
        self.training.set()

    def wait(self) -> int:
        code = self.process.wait(300)
        self.reader.join()
        return code

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]


def one_cut(processes: int) -> dict:
    """Global batches of 8 with accumulation, by one process or two."""
    size = 4 // processes
    flags = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", 2]
    return {"flags": flags, "launcher": () if processes == 1 else TORCHRUN}


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def whole(
    request: pytest.FixtureRequest, own_files: list, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[..., Run], Path]:
    """A way to start the run, and the folder of one that nobody stopped."""
    cut = one_cut(request.param)
    folder = tmp_path_factory.mktemp("whole") / "out"

    def start(where: Path, *flags: object) -> Run:
        every = [*cut["flags"], "--checkpointing_steps", 3]
        return Run(own_files, tiny_model, where, *every, *flags, launcher=cut["launcher"])

    run = start(folder)
    assert run.wait() == 0, run.output
    return start, folder


def same_run(a: Path, b: Path) -> bool:
    return weights(a) == weights(b) and log_lines(a) == log_lines(b)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_ends_in_the_same_bytes(
    whole: tuple[Callable[..., Run], Path], tmp_path: Path
) -> None:
    """`kill -9` at random moments from the first step to the end, again and again until a run gets through."""
    start, uninterrupted = whole
    pick = random.Random(0)
    kills = 0
    for number in range(RUNS):
        folder = tmp_path / str(number)
        for tries in itertools.count():
            run = start(folder, "--resume_from_checkpoint", "latest", "--save_total_limit", 2)
            run.training.wait(120)
            try:
                run.process.wait(pick.uniform(0, 1 + 2 * tries))  # longer every time: launchers are slow
            except subprocess.TimeoutExpired:
                os.killpg(run.process.pid, signal.SIGKILL)
                for child in psutil.process_iter(["cmdline"]):
                    if str(folder) in (child.info["cmdline"] or []):
                        child.kill()
                kills += 1
                run.wait()
                continue
            assert run.wait() == 0, run.output
            break
        assert same_run(folder, uninterrupted), f"run {number}"
    print(f"{RUNS} runs, {kills} kills")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_how_to_go_on_and_exits(
    whole: tuple[Callable[..., Run], Path], tmp_path: Path, number: signal.Signals
) -> None:
    """Sent to one of the processes: all of them stop at one step. The command that is printed goes on to the end."""
    start, uninterrupted = whole
    pick, stops = random.Random(1), 0
    for attempt in range(RUNS):
        folder = tmp_path / str(attempt)
        run = start(folder)
        assert run.training.wait(120)
        time.sleep(pick.uniform(0, 0.5))  # any moment will do; nothing is waited for
        children = run.children()
        os.kill(children[-1] if children else run.process.pid, number)
        code = run.wait()
        if (folder / "all_results.json").exists():
            continue  # it came after the end
        stops += 1
        assert code == (1 if children else 128 + number), run.output
        assert run.output.count(f"{number.name}: saved") == 1, run.output
        if children:
            assert run.output.count(f"exitcode  : {128 + number}") == len(children), run.output
        said, command = re.search(r"; to go on(.*):\n(.+)\n", run.output).groups()
        if children:
            assert said == ", under the launcher that you used"
            command = shlex.join(TORCHRUN) + command[command.index(f" {ROOT / 'run_glue_no_trainer.py'}") :]
        assert command.endswith("--resume_from_checkpoint latest")
        again = subprocess.run(
            command, shell=True, capture_output=True, text=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"}
        )
        assert again.returncode == 0, again.stderr
        assert same_run(folder, uninterrupted)
    print(f"{RUNS} runs, {stops} of them stopped before their end")


def test_ctrl_c_during_the_imports_just_ends(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    run = Run(own_files, tiny_model, tmp_path / "out")
    process = psutil.Process(run.process.pid)
    while not any("libtorch" in loaded.path for loaded in process.memory_maps()):
        assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == -signal.SIGINT
    assert run.output == ""


@pytest.mark.slow
def test_a_second_sigint_ends_at_once(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """The first one would wait for the step in hand, which takes longer than this test here."""
    rows = [(text, ("negative", "positive")[label]) for text, label in sentences(3000)]
    many = write_csv(tmp_path / "many.csv", ["text", "label"], rows)
    flags = ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 3000]
    run = Run(["--train_file", many, *own_files[2:]], tiny_model, tmp_path / "out", *flags)
    assert run.training.wait(120)
    run.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(0.5)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == -signal.SIGINT
    assert not checkpoints(tmp_path / "out")


@pytest.mark.slow
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(
    own_files: list, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [(text, ("negative", "positive")[label]) for text, label in sentences(20_000)]
    many = write_csv(tmp_path / "many.csv", ["text", "label"], rows)
    flags = ["--per_device_eval_batch_size", 1, "--max_train_steps", 1]
    run = Run([*own_files[:2], "--validation_file", many], tiny_model, tmp_path / "out", *flags)
    log = tmp_path / "out" / "log.jsonl"
    while not (log.exists() and log.read_text().endswith("\n")):  # the line of the only step
        assert run.process.poll() is None, run.output
    run.process.terminate()
    assert run.wait() == 143
    assert checkpoints(tmp_path / "out") == [tmp_path / "out" / "step_1"]
    assert len(log_lines(tmp_path / "out")) == 1


@pytest.mark.slow
def test_a_disk_that_fills_leaves_the_earlier_checkpoints(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """A file system of 3 MB; a checkpoint of the tiny model has 0.4 MB."""
    (tmp_path / "disk").mkdir()
    flags = ["--model_name_or_path", tiny_model, *own_files, "--checkpointing_steps", 1]
    command = [sys.executable, ROOT / "run_glue_no_trainer.py", *flags, "--output_dir", tmp_path / "disk" / "out"]
    line = shlex.join(str(word) for word in command)
    again = f"{line} --resume_from_checkpoint latest"
    mount = f"mount -t tmpfs -o size=3m none {tmp_path / 'disk'}"
    shell = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*shell, mount], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here, not even in a namespace")
    ended = subprocess.run(
        [*shell, f"{mount} && {line}; echo CODE $?; ls -A {tmp_path / 'disk' / 'out'}; {again}"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    first = next(line for line in ended.stderr.splitlines() if ": error: " in line)
    assert "could not be written: the disk is full" in first, ended.stderr
    assert "Earlier checkpoints are as they were" in first
    assert "Traceback" not in ended.stderr
    code, *names = ended.stdout.split("CODE ")[1].split()
    assert code == "1"
    kept = [name for name in names if name.startswith("step_")]
    assert len(kept) >= 2
    assert not any("partial" in name for name in names)
    newest = max(kept, key=lambda name: int(name.removeprefix("step_")))
    assert f"going on from {tmp_path / 'disk' / 'out' / newest}" in ended.stdout


def test_too_small_a_disk_is_found_before_training(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 2
    assert "MB are free" in capsys.readouterr().err


@pytest.mark.slow
def test_losses_are_the_same_on_every_cut(tiny_model: Path, tmp_path: Path) -> None:
    """333 rows in global batches of 32, three epochs; printed side by side."""
    rows = [(text, ("negative", "positive")[label]) for text, label in sentences(333)]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], rows)
    files = ["--train_file", train, "--validation_file", train]
    model = without_dropout(tiny_model, tmp_path / "model")
    logs, results = {}, {}
    for processes, size, steps in ((1, 32, 1), (1, 8, 4), (2, 16, 1), (2, 4, 4), (4, 2, 4)):
        launcher = () if processes == 1 else (*TORCHRUN[:-1], str(processes))
        cut = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps]
        name = f"{processes}x{size}x{steps}"
        run = Run(files, model, tmp_path / name, *cut, "--per_device_eval_batch_size", 16, launcher=launcher)
        assert run.wait() == 0, run.output
        logs[name] = [line["loss"] for line in log_lines(tmp_path / name) if "loss" in line]
        results[name] = json.loads((tmp_path / name / "all_results.json").read_text())
    print("step " + " ".join(f"{name:>10}" for name in logs))
    for step, losses in enumerate(zip(*logs.values(), strict=True), 1):
        print(f"{step:4d} " + " ".join(f"{loss:10.7f}" for loss in losses))
    furthest = max(max(losses) - min(losses) for losses in zip(*logs.values(), strict=True))
    print(f"largest difference {furthest:.1e}")
    assert len(logs["1x32x1"]) == 33
    assert furthest <= 1e-5
    for metric in ("accuracy", "f1", "macro_f1"):
        assert len({result[f"eval_{metric}"] for result in results.values()}) == 1


@pytest.mark.slow
def test_a_signal_to_the_run_and_its_reader_saves_all_the_same(
    own_files: list, tiny_model: Path, tmp_path: Path
) -> None:
    """Ctrl-C at `run_glue_no_trainer.py ... | tee file` ends tee at once: what is then said, nobody can read."""
    run = subprocess.Popen(
        [
            *(sys.executable, ROOT / "run_glue_no_trainer.py", "--model_name_or_path", tiny_model, *own_files),
            *("--logging_steps", "1", "--num_train_epochs", "10000", "--output_dir", tmp_path / "out"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "training for" not in run.stdout.readline():
        assert run.poll() is None
    run.stdout.close()
    run.send_signal(signal.SIGINT)
    said = run.stderr.read()
    assert (run.wait(120), said) == (130, "")
    assert len(checkpoints(tmp_path / "out")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rows", [100_000, 10_000], ids=["the rows", "their tokens"])
def test_a_cache_on_a_full_disk_is_named(tiny_model: Path, tmp_path: Path, rows: int) -> None:
    """A file system of 3 MB for what datasets keeps: 60 characters of each row, or eight times that of its tokens."""
    (tmp_path / "disk").mkdir()
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("0123456789" * 6, "ab"[row % 2]) for row in range(rows)])
    flags = ["--model_name_or_path", tiny_model, "--train_file", file, "--max_train_steps", 1]
    line = shlex.join(str(word) for word in [sys.executable, ROOT / "run_glue_no_trainer.py", *flags])
    mount = f"mount -t tmpfs -o size=3m none {tmp_path / 'disk'}"
    shell = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*shell, mount], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here, not even in a namespace")
    ended = subprocess.run(
        [*shell, f"{mount} && HF_HOME={tmp_path / 'disk'} {line}"], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 2, ended.stderr
    (error,) = ended.stderr.splitlines()
    assert "the cache of datasets cannot be written: [Errno 28]" in error
