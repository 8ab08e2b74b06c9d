"""Commands that are printed: pasted into a real shell, they run what they say and nothing else; none has a secret."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, launch, usage_error
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from no_trainer.commands import join, literal, own_command, quote, quote_windows, resume_command

NAME = 'it\'s $(touch PWN) `touch PWN` "x"; touch PWN & ü😀, #1'  # of a folder
bash = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash on this system")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a command line that of this process."""

    def of(*words: str) -> None:
        monkeypatch.setattr("sys.argv", list(words))
        monkeypatch.setattr("sys.orig_argv", ["python", *words])

    return of


def paste(command: str, folder: Path) -> subprocess.CompletedProcess:
    """What a shell in this folder makes of a line, with this Python before others."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=folder, env=environment, timeout=120
    )


@bash
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=3))
@example([NAME, "", "a\nb", "\x1b]0;title\x07", "\u2028", "\x7f", "'\t\\'", "$HOME", "~", "*", "-", "\u200bx"])
def test_a_shell_reads_the_words_that_were_joined(words: list[str]) -> None:
    command = join(words)
    assert command.isprintable()
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout
    assert said.decode() == "".join(f"{word}\0" for word in words or [""])


def test_on_windows_both_shells_are_thought_of() -> None:
    """cmd.exe knows no single quotes, and PowerShell looks for variables in double ones."""
    assert quote_windows(r"C:\runs\one") == r"C:\runs\one"
    assert quote_windows("C:\\my runs\\") == '"C:\\my runs\\\\"'
    assert quote_windows("a & b") == '"a & b"'
    assert quote_windows("it's $(touch PWN)") == "'it''s $(touch PWN)'"
    assert quote_windows('say "no"') == r'"say \"no\""'


def test_python_reads_the_names_in_the_code_that_is_printed() -> None:
    for name in (NAME, "a\\b\n\x07", "\U0001f600"):
        assert eval(literal(name)) == name  # noqa: S307


def test_the_command_of_a_run_is_its_own_and_not_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was typed, where Python knows that; in a notebook, where it does not, as it could have been."""
    monkeypatch.setattr("sys.argv", ["/a b/run_glue_no_trainer.py", "--seed", "1"])
    monkeypatch.setattr("sys.orig_argv", ["python3", "-m", "run_glue_no_trainer", "--seed", "1"])
    assert own_command() == "python3 -m run_glue_no_trainer --seed 1"
    monkeypatch.setattr("sys.orig_argv", ["python3", "-m", "ipykernel_launcher", "-f", "kernel.json"])
    assert own_command() == "python '/a b/run_glue_no_trainer.py' --seed 1"


@bash
def test_the_home_folder_is_not_published_and_still_found(typed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    words = ["/home/somebody/run.py", "--output_dir=/home/somebody/my runs", "--train_file", "/home/somebody/a b.csv"]
    typed(*words)
    assert "somebody" not in own_command()
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {own_command()}"], capture_output=True, text=True).stdout
    assert said.splitlines() == ["python", words[0], *words[1].split("="), *words[2:]]


@pytest.mark.parametrize("flag", [["--hub_token", "hf_x y"], ["--hub_token=hf_x"], ["--hub_token", "it's"]])
def test_no_command_that_is_printed_has_a_token(typed: Callable, flag: list[str]) -> None:
    typed("run_glue_no_trainer.py", *flag, "--seed", "1")
    command = resume_command()
    assert re.search(r" --hub_token \$HF_TOKEN --seed 1 --resume_from_checkpoint latest$", command)
    assert "hf_x" not in command


def test_secrets_of_other_programs_are_not_published(typed: Callable) -> None:
    """Of a program that starts the script, or of code that does."""
    typed("wrap.py", "--my_api_key=s3cret", "--wandb-token", "s3cret", "A_PASSWORD=s3cret", "--tokenizer_name", "mine")
    assert own_command().endswith(
        "wrap.py --my_api_key=HIDDEN --wandb-token HIDDEN A_PASSWORD=HIDDEN --tokenizer_name mine"
    )
    typed("-c", "import run; WANDB_API_KEY = 's3cret'; run.main()", "--seed", "1")
    assert own_command() == "python -c HIDDEN --seed 1"


def test_a_misspelled_flag_does_not_show_its_secret(capsys: pytest.CaptureFixture) -> None:
    said = usage_error(capsys, "--hubtoken=hf_s3cret", "--hub-token", "hf_s3cret")
    assert "s3cret" not in said
    assert "--hubtoken=HIDDEN --hub-token HIDDEN" in said


@pytest.mark.parametrize(
    "earlier",
    [
        ["--resume_from_checkpoint", f"{NAME}/step_2"],
        [f"--resume_from_checkpoint={NAME}/step_2"],
        ["--overwrite_output_dir"],
        ["--overwrite_output_dir", "True"],
        ["--overwrite_output_dir=true"],
    ],
)
def test_what_goes_on_says_so_once(typed: Callable, earlier: list[str]) -> None:
    """Whatever the earlier start was told about that goes, and nothing else."""
    typed("run.py", *earlier, "--output_dir", NAME)
    expected = ["python", "run.py", "--output_dir", NAME, "--seed", "1", "--resume_from_checkpoint", "latest"]
    assert shlex.split(resume_command("--seed", "1")) == expected


@bash
@pytest.mark.slow
def test_every_command_of_a_run_can_be_pasted(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """A run that is stopped goes on by the command that it prints; summary and card have commands, too."""
    home = tmp_path / "home"
    home.mkdir()
    model = shutil.copytree(tiny_model, home / f"model {NAME}")
    train, valid = (shutil.copy(file, home / f"{NAME}{Path(file).name}") for file in own_files[1::2])
    command = [sys.executable, ROOT / "run_glue_no_trainer.py", "--model_name_or_path", model.name]
    command += ["--train_file", Path(train).name, "--validation_file", Path(valid).name]
    command += ["--num_train_epochs", "60", "--logging_steps", "1", "--output_dir", NAME]
    started = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True, cwd=home)
    said = ""
    for line in started.stdout:
        said += line
        if line.startswith("step 3 of "):
            started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 128 + signal.SIGTERM
    resume = said.splitlines()[-1]
    assert resume.endswith("--resume_from_checkpoint latest")

    ended = paste(resume, home)
    assert ended.returncode == 0, ended.stderr
    assert f"step {60 * 8} of {60 * 8}: " in ended.stdout
    (ask,) = re.findall("^to ask it: (.+)$", ended.stdout, re.MULTILINE)
    assert "'label': " in paste(ask, home).stdout

    card = (home / NAME / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall("^```python\n(.+?)\n```$", card, re.MULTILINE | re.DOTALL)
    assert "'label': " in paste(f"python -c {quote(code)}", home).stdout
    (again,) = re.findall("^```sh\n(.+?)\n```$", card, re.MULTILINE | re.DOTALL)
    first = again.removesuffix(" --resume_from_checkpoint latest") + " --overwrite_output_dir --max_train_steps 1"
    assert paste(first, home).returncode == 0
    assert not list(tmp_path.rglob("PWN"))


@bash
@pytest.mark.slow
def test_a_pickle_is_converted_by_the_command_that_is_printed(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / f"model {NAME}")
    weights = load_file(model / "model.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    ended = launch("--model_name_or_path", model, *own_files)
    assert ended.returncode == 2
    pasted = paste(ended.stderr.partition("without running any: ")[2], tmp_path)
    assert pasted.returncode == 0, pasted.stderr
    assert load_file(model / "model.safetensors").keys() == weights.keys()
    assert not list(tmp_path.rglob("PWN"))


@bash
def test_a_folder_called_like_the_variable_is_no_token(typed: Callable) -> None:
    typed("run.py", "--hub_token", "hf_x", "--output_dir", "$HF_TOKEN")
    said = subprocess.run(["bash", "-c", f"HF_TOKEN=hf_y; printf '%s\\n' {own_command()}"], capture_output=True).stdout
    assert said.decode().splitlines()[-3:] == ["hf_y", "--output_dir", "$HF_TOKEN"]


def test_the_command_of_a_run_that_another_program_has_started(typed: Callable) -> None:
    """In a notebook the process's own flags are those of its kernel."""
    typed("/lib/ipykernel_launcher.py", "-f", "kernel.json")
    flags = ["--train_file", "a b.csv", "--hub_token", "hf_x", "--seed", "1"]
    assert own_command(flags) == "python run_glue_no_trainer.py --train_file 'a b.csv' --hub_token $HF_TOKEN --seed 1"
    assert resume_command(argv=flags[:2]) == (
        "python run_glue_no_trainer.py --train_file 'a b.csv' --resume_from_checkpoint latest"
    )
    typed("seeds.py", "--train_file", "t.csv")  # the edit several_seeds adds flags to those that were typed
    assert own_command(["--train_file", "t.csv", "--seed=2"]) == "python seeds.py --train_file t.csv"


def test_a_user_without_a_home_has_a_command(typed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it returns if there is none
    typed("run_glue_no_trainer.py", "--seed", "1")
    assert own_command() == "python run_glue_no_trainer.py --seed 1"
