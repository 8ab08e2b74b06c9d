"""What is seen: at a terminal of 80 columns, and in a log file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, launch, sentences, write_csv

from docs.pictures import at_a_terminal

FLAGS = ["--num_train_epochs", 2, "--logging_steps", 4, "--per_device_eval_batch_size", 2, "--do_predict"]


def look(*flags: object, cache: Path) -> str:
    """All that the script writes to a terminal of 80 columns, with an empty cache."""
    command = [sys.executable, str(ROOT / "run_glue_no_trainer.py"), *map(str, flags)]
    return at_a_terminal(command, ROOT, HF_HOME=str(cache))


@pytest.mark.slow
def test_at_a_terminal(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """A bar for each phase, nothing wider than the terminal but long paths."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--test_file", own_files[3], *FLAGS]
    said = look(*flags, "--output_dir", tmp_path / "out", cache=tmp_path / "cache")
    for phase in ("Tokenizing train", "Training", "Evaluating", "Predicting"):
        assert re.search(rf"{phase}: +\d+%\|", said), phase
    lines = [re.sub(r"\x1b\[[\d;]*\w", "", line) for line in re.split(r"[\r\n]+", said)]
    assert len([line for line in lines if line.startswith("to ask it: python -c ")]) == 1
    assert not [line for line in lines if len(line) > 80 and str(tmp_path) not in line]
    assert "step 4 of 16" not in said
    assert re.search(r"epoch 2, step 16: accuracy \d\.\d{4}, macro_f1", said)


@pytest.mark.slow
def test_in_a_log_file(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """No bars and no warnings; a line every --logging_steps, the scores, the summary."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--test_file", own_files[3], *FLAGS]
    ended = launch(*flags, "--output_dir", tmp_path / "out")
    assert ended.stderr == ""
    assert "\r" not in ended.stdout
    lines = ended.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if re.match(r"step|epoch", line)] == [
        *(f"step {step} of 16" for step in (4, 8)),
        "epoch 1, step 8",
        *(f"step {step} of 16" for step in (12, 16)),
        "epoch 2, step 16",
    ]
    summary = lines[lines.index(f"23 predictions are in {tmp_path / 'out' / 'predict_results.csv'}") + 1 :]
    assert summary[0].split() == ["score", "baseline"]
    assert [line.split()[0] for line in summary[1:5]] == ["accuracy", "macro_f1", "f1", "loss"]
    assert [line.split()[0] for line in summary[5:9]] == [
        f"test_{name}" for name in ("accuracy", "macro_f1", "f1", "loss")
    ]
    assert summary[9].startswith("the worst class is ")
    assert re.fullmatch(r"16 steps in 0 min \d+ s, [\d.]+ rows a second, evaluations included", summary[10])
    assert summary[11] == f"model, predictions and results are in {tmp_path / 'out'}"
    assert summary[12].startswith("to ask it: python -c ")
    assert sum("baseline" in line for line in lines) == 2  # before training and in the summary, not in each line


@pytest.mark.slow
def test_the_next_command_runs_as_printed(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = launch("--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 1, "--output_dir", out)
    (command,) = re.findall("^to ask it: (.+)$", ended.stdout, re.MULTILINE)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert "'label': " in run.stdout, run.stderr


@pytest.mark.slow
def test_a_log_file_that_knows_few_characters(tiny_model: Path, tmp_path: Path) -> None:
    """As one on Windows does; the labels are Chinese."""
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(text, "好坏"[label]) for text, label in sentences(30)])
    flags = ["--model_name_or_path", tiny_model, "--train_file", file, "--max_train_steps", 1]
    ended = launch(*flags, env={"PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0, ended.stderr
    assert r"\u597d" in ended.stdout


@pytest.mark.slow
def test_a_terminal_shows_no_bar_of_nothing(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """Neither of training where nothing is trained, nor of what takes a moment."""
    trained = tmp_path / "trained"
    launch("--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 1, "--output_dir", trained)
    flags = ["--model_name_or_path", trained, "--validation_file", own_files[3], "--num_train_epochs", 0]
    said = look(*flags, "--output_dir", tmp_path / "out", cache=tmp_path / "cache")
    assert "Evaluating: " in said
    assert "Training" not in said
    assert "Flattening" not in said
