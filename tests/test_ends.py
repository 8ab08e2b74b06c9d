"""The end of a run keeps its result: whatever is lost or full by then, the model and its scores are there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, log_lines, sentences, write_csv
from transformers import pipeline

import run_glue_no_trainer as script

resource = pytest.importorskip("resource", reason="this system sets no limits to a process")
LEFT = {"model.safetensors", "config.json", "tokenizer.json", "all_results.json"}


def shell(redirected: str, *flags: object, **environment: str) -> subprocess.CompletedProcess:
    """The script as a shell starts it, with its streams where `redirected` says."""
    command = ["bash", "-c", f'exec "$0" "$@" {redirected}', sys.executable, ROOT / "run_glue_no_trainer.py", *flags]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=os.environ | environment
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash on this system")
@pytest.mark.parametrize("redirected", [">&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>/dev/full"])
def test_nowhere_to_speak(tiny_model: Path, own_files: list, tmp_path: Path, redirected: str) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files, "--num_train_epochs", 1]
    ended = shell(redirected, *flags, "--output_dir", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} > LEFT


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash on this system")
@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", ">&- 2>&-"])
def test_nowhere_to_complain(redirected: str) -> None:
    assert shell(redirected, "--nonsense").returncode == 2


@pytest.mark.slow
def test_a_matplotlib_that_cannot_start(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files, "--num_train_epochs", 1, "--output_dir", tmp_path / "out"]
    ended = shell("", *flags, MPLBACKEND="nonsense")
    assert ended.returncode == 0, ended.stderr
    assert "warning: no picture of the curve: " in ended.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} > LEFT | {"README.md"}
    assert ".png" not in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_is_removed_meanwhile(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """After the best evaluation, with its weights: the model of the last step is what is left to save."""
    out, save = tmp_path / "out", script.note_best

    def removed(*args: object) -> None:
        save(*args)
        if args[0].progress.epoch == 2:
            shutil.rmtree(out)
            args[0].progress.best["eval_accuracy"] = 2.0  # so that none after it is better

    monkeypatch.setattr(script, "note_best", removed)
    flags = ["--checkpointing_steps", "epoch", "--load_best_model_at_end"]
    results = run(*own_files, "--num_train_epochs", 3, *flags, "--output_dir", out)
    assert "warning: the best weights are lost" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} > LEFT | {"README.md", "epoch_2"}
    assert log_lines(out)[-1]["step"] == results["step"] == 24
    assert pipeline("text-classification", str(out))("good")[0]["label"] in ("positive", "negative")
    assert json.loads((out / "all_results.json").read_text())["eval_accuracy"] == log_lines(out)[-1]["eval_accuracy"]


def limited(flags: list, size: int) -> subprocess.CompletedProcess:
    """The script where no file may be larger than so many bytes, while the disk has space, as with a quota."""
    command = [sys.executable, ROOT / "run_glue_no_trainer.py", *flags]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, preexec_fn=limit)  # noqa: PLW1509


@pytest.mark.slow
@pytest.mark.parametrize(("every", "code"), [(8, 1), (16, 0)])
def test_a_checkpoint_that_cannot_be_written(
    tiny_model: Path, own_files: list, tmp_path: Path, every: int, code: int
) -> None:
    """Before the end it ends the run, in one line; that of the last step is not worth the model."""
    out, between = tmp_path / "out", 200_000  # bytes: more than the model has, less than the optimizer
    flags = ["--model_name_or_path", tiny_model, *own_files, "--num_train_epochs", 2, "--output_dir", out]
    ended = limited([*flags, "--checkpointing_steps", every], between)
    assert ended.returncode == code, ended.stderr
    said = ended.stderr if code else ended.stdout
    (line,) = [line for line in said.splitlines() if "could not be written" in line]
    assert f".step_{every}.partial" in line
    assert "Traceback" not in ended.stderr
    left = {path.name for path in out.iterdir()}
    assert left >= LEFT if code == 0 else not left & LEFT
    assert not [name for name in left if name.endswith(".partial")]


def test_a_projects_readme_stays(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also under --overwrite_output_dir; a model card is replaced."""
    (tmp_path / "README.md").write_text("# My project\n")
    flags = [*own_files, "--max_train_steps", 1, "--overwrite_output_dir", "--output_dir", tmp_path]
    run(*flags)
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    assert "README.md is not a model card and stays as it is" in capsys.readouterr().out
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    run(*flags)
    assert "# " in (tmp_path / "README.md").read_text()


def test_labels_that_a_terminal_would_obey(run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Names with control characters are shown as escapes, on the terminal and in the card."""
    names = ("\x1b[31mred", "\x07bell")
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(text, names[label]) for text, label in sentences(40)])
    run("--train_file", file, "--num_train_epochs", 1, "--output_dir", tmp_path / "out")
    for said in (capsys.readouterr().out, (tmp_path / "out" / "README.md").read_text(encoding="utf-8")):
        assert "x1b" in said
        assert not {"\x1b", "\x07"} & set(said)


def test_a_log_that_cannot_be_written_after_the_last_step(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A folder takes its place: before the end that ends the run, after the last step the model is worth more."""
    out, log = tmp_path / "out", script.log_losses

    def in_the_way(*args: object) -> None:
        if args[0].progress.step >= when:
            (out / "log.jsonl").unlink(missing_ok=True)
            (out / "log.jsonl").mkdir()
        log(*args)

    monkeypatch.setattr(script, "log_losses", in_the_way)
    flags = [*own_files, "--num_train_epochs", 1, "--logging_steps", 4, "--output_dir", out]
    when = 8
    run(*flags)
    assert "warning: " in (said := capsys.readouterr().out)
    assert "log.jsonl could not be written" in said
    assert {path.name for path in out.iterdir()} > LEFT
    shutil.rmtree(out)
    when = 4
    with pytest.raises(SystemExit) as exit_:
        run(*flags)
    assert exit_.value.code == 1
    assert "log.jsonl could not be written" in capsys.readouterr().err
