"""What is said: the command of a run, without its token, and by which of the processes."""

import re

import pytest
from conftest import launch

from no_trainer.messages import own_command, resume_command


def test_the_command_of_a_run_is_its_own_and_not_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was typed, where Python knows that; in a notebook, where it does not, as it could have been."""
    monkeypatch.setattr("sys.argv", ["/a b/run_glue_no_trainer.py", "--seed", "1"])
    monkeypatch.setattr("sys.orig_argv", ["python3", "-m", "run_glue_no_trainer", "--seed", "1"])
    assert own_command() == "python3 -m run_glue_no_trainer --seed 1"
    monkeypatch.setattr("sys.orig_argv", ["python3", "-m", "ipykernel_launcher", "-f", "kernel.json"])
    assert own_command() == "python '/a b/run_glue_no_trainer.py' --seed 1"


@pytest.mark.parametrize("flag", [["--hub_token", "hf_x y"], ["--hub_token=hf_x"], ["--hub_token", "it's"]])
def test_no_command_that_is_printed_has_a_token(monkeypatch: pytest.MonkeyPatch, flag: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["run_glue_no_trainer.py", *flag, "--seed", "1"])
    command = resume_command()
    assert re.search(r" --hub_token[ =]\$HF_TOKEN --seed 1 --resume_from_checkpoint latest$", command)
    assert "hf_x" not in command


@pytest.mark.slow
def test_the_first_process_of_another_machine_says_what_is_wrong_there() -> None:
    flags = ["--model_name_or_path", "m", "--train_file", "only_on_the_first_machine.csv"]
    several = {"WORLD_SIZE": "4", "RANK": "2"}
    one, other = (launch(*flags, env=several | {"LOCAL_RANK": rank}) for rank in ("0", "1"))
    assert (one.returncode, other.returncode) == (2, 2)
    assert "there is no such file" in one.stderr
    assert other.stderr == ""
