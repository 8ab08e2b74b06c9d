"""Faults in processes of their own: kills, signals, full disks; and the same run on any cut."""

import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TORCHRUN, log_lines, sentences, weights, without_dropout, write_csv

from no_trainer.folder import checkpoints

RUNS = int(os.environ.get("FAULT_RUNS", "1"))  # kills and signals to try; 25 and more for a stress test


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
    assert "Earlier checkpoints are unchanged" in first
    assert "Traceback" not in ended.stderr
    code, *names = ended.stdout.split("CODE ")[1].split()
    assert code == "1"
    kept = [name for name in names if name.startswith("step_")]
    assert len(kept) >= 2
    assert not any("partial" in name for name in names)
    newest = max(kept, key=lambda name: int(name.removeprefix("step_")))
    assert f"going on from {tmp_path / 'disk' / 'out' / newest}" in ended.stdout


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
