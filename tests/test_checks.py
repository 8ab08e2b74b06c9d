"""What can be wrong with flags that are well-formed: files, the output folder, an earlier run, the hub."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, usage_error
from test_errors import GOOD

import run_glue_no_trainer as script
from no_trainer.folder import WRITTEN

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
    assert "it cannot be read" in lines[0] or "cannot be written to" in lines[0]


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


@pytest.mark.parametrize("name", [*WRITTEN, "glue_no_trainer"])
def test_what_stands_in_the_way_of_a_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    """Before training: a folder where a file is to be written, a file in the place of a folder."""
    make = (tmp_path / name).mkdir if name in WRITTEN else (tmp_path / name).touch
    make()
    said = usage_error(capsys, *OWN, "--output_dir", tmp_path, "--overwrite_output_dir")
    assert f"{name} in it is not a {'file' if name in WRITTEN else 'folder'}" in said


def test_folders_that_hold_something_else(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture) -> None:
    """A project's README.md, or a model, would be lost; files that no run writes do no harm."""
    (tmp_path / "notes.txt").touch()
    flags = ["--task_name", "mrpc", "--output_dir", tmp_path]
    assert script.parse_args([*map(str, ["--model_name_or_path", "m", *flags])])
    (tmp_path / "README.md").write_text("# My project")
    assert "has a README.md that is not of a training run" in usage_error(capsys, "--model_name_or_path", "m", *flags)
    same = ["--model_name_or_path", tiny_model, "--task_name", "mrpc", "--output_dir", tiny_model]
    assert "is the folder of the model to train" in usage_error(capsys, *same, "--overwrite_output_dir")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert "is a broken link" in usage_error(capsys, *OWN, "--output_dir", link)
    assert "File name too long" in usage_error(capsys, *OWN, "--output_dir", tmp_path / ("x" * 300))


@pytest.mark.parametrize("flag", ["output_dir", "config", "train_file", "model_name_or_path", "hub_model_id"])
def test_a_variable_that_is_not_set(capsys: pytest.CaptureFixture, flag: str) -> None:
    assert f"--{flag} is empty" in usage_error(capsys, "--model_name_or_path", "m", f"--{flag}", "")


def test_a_polynomial_that_begins_below_its_end(capsys: pytest.CaptureFixture) -> None:
    flags = [*OWN, "--lr_scheduler_type", "polynomial", "--learning_rate"]
    for rate in ("0", "1e-8", "1e-7"):
        assert "the polynomial schedule needs more than 1e-7" in usage_error(capsys, *flags, rate)
    assert script.parse_args([*flags, "2e-7"])


FILES = {
    "config.json": ["[]", "null", "", '"x"', "5"],
    "tokenizer.json": ["[]", "null", ""],
    "tokenizer_config.json": ["[]", "5"],
    "special_tokens_map.json": ["[]"],
    "added_tokens.json": ["[]"],
}


@pytest.mark.parametrize(("name", "holds"), [(name, held) for name, all_ in FILES.items() for held in all_])
def test_a_models_files_hold_objects(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, holds: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "m")
    (model / name).write_text(holds)
    said = usage_error(capsys, "--model_name_or_path", model, "--task_name", "mrpc")
    assert f"{name} in it is not a JSON object" in said


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "without gaps"),
        ({"id2label": {"zero": "a"}}, "without gaps"),
        ({"id2label": ["a", "b"]}, "without gaps"),
        ({"id2label": "a"}, "without gaps"),
        ({"glue_no_trainer": [1]}, "is not what this script writes"),
        ({"glue_no_trainer": {"text_columns": "text", "max_length": 8}}, "is not what this script writes"),
        ({"glue_no_trainer": {"text_columns": ["text"], "max_length": -4}}, "is not what this script writes"),
        ({"hidden_size": -1}, "hidden_size in config.json is -1"),
        ({"num_attention_heads": 0}, "num_attention_heads in config.json is 0"),
    ],
)
def test_a_models_configuration_says_what_it_must(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, changed: dict, named: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "m")
    (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | changed))
    assert named in usage_error(capsys, "--model_name_or_path", model, "--task_name", "mrpc")
