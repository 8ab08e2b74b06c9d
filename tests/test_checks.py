"""What can be wrong with flags that are well-formed: files, the output folder, an earlier run, the hub."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, usage_error
from test_errors import GOOD

import run_glue_no_trainer as script

OWN = ["--model_name_or_path", "bert-base-cased", "--task_name", "mrpc"]


def test_text_columns_with_a_comma_or_a_space() -> None:
    flags = ["--model_name_or_path", "m", "--train_file", str(ROOT / "configs" / "quickstart" / "train.csv")]
    for written in (["a,b"], ["a", "b"], ["a, b"]):
        assert script.parse_args([*flags, "--text_column_names", *written]).text_column_names == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("flag", ["--train_file", "--output_dir"])
def test_a_closed_door_is_named(tmp_path: Path, flag: str) -> None:
    """In a process that is not root's, for which no door is closed."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "t.csv").write_text(GOOD)
    (tmp_path / "closed").chmod(0)
    files = {"--train_file": [], "--output_dir": ["--task_name", "rte"]}[flag]
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.dup2(writing, 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            if os.getuid() == 0:
                os.setuid(65534)
            script.parse_args(["--model_name_or_path", "m", flag, str(tmp_path / "closed" / "t.csv"), *files])
        except SystemExit as exit_:
            os._exit(exit_.code)
        finally:
            os._exit(99)
    os.close(writing)
    with open(reading) as said:
        lines = said.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    (tmp_path / "closed").chmod(0o700)
    assert len(lines) == 1
    assert flag in lines[0]
    assert "may not be read" in lines[0] or "cannot be written to" in lines[0]


def test_an_earlier_run_is_not_mixed_with_a_new_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "log.jsonl").touch()
    assert "--overwrite_output_dir" in usage_error(capsys, *OWN, "--output_dir", tmp_path)
    assert script.parse_args([*OWN, "--output_dir", str(tmp_path), "--overwrite_output_dir"])


def test_latest_does_not_replace_a_finished_run(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [*own_files, "--max_train_steps", 2, "--output_dir", tmp_path]
    run(*flags)
    with pytest.raises(SystemExit):
        run(*flags, "--resume_from_checkpoint", "latest")
    assert "holds a run that has ended and no checkpoint to go on from" in capsys.readouterr().err


def test_flags_of_the_hub_that_have_no_use(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", "m", "--task_name", "rte"]
    assert "--push_to_hub needs an --output_dir" in usage_error(capsys, *flags, "--push_to_hub")
    flags += ["--output_dir", tmp_path]
    for flag in (["--hub_model_id", "x"], ["--hub_private_repo"]):
        assert f"{flag[0]} is for --push_to_hub, which is not given" in usage_error(capsys, *flags, *flag)
    assert script.parse_args([*map(str, flags), "--hub_token", "x"]).hub_token == "x"  # it does no harm
    said = usage_error(capsys, *flags, "--push_to_hub", "--hub_token", "hf_a\nhf_b")
    assert "--hub_token" in said
    assert "hf_a" not in said
