"""Flags, the --config file, and what is said of mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, launch, usage_error

import run_glue_no_trainer as script
from no_trainer.messages import tell_environment

MODEL = ["--model_name_or_path", "bert-base-cased"]
OWN = [*MODEL, "--task_name", "mrpc"]


def test_defaults_are_those_of_the_hugging_face_script_but_for_a_warm_up() -> None:
    args = vars(script.parse_args(OWN))
    theirs = {
        "max_length": None,  # 128, or that of a trained model
        "pad_to_max_length": False,
        "use_slow_tokenizer": False,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 5e-5,
        "weight_decay": 0.0,
        "num_train_epochs": 3,
        "max_train_steps": None,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "linear",
        "output_dir": None,
        "trust_remote_code": False,
        "checkpointing_steps": None,
        "resume_from_checkpoint": None,
        "with_tracking": False,
        "report_to": "all",
        "ignore_mismatched_sizes": False,
    }
    assert {name: args[name] for name in theirs} == theirs
    assert (args["num_warmup_steps"], args["warmup_ratio"]) == (None, 0.1)


def test_a_config_file_may_list_columns_and_files(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    config = tmp_path / "recipe.yaml"
    config.write_text(f"text_column_names: [a, b]\ntrain_file: [{tmp_path / 't.csv'}]\n")
    args = script.parse_args(["--config", str(config), *MODEL])
    assert args.text_column_names == ["a", "b"]
    assert args.train_file == [str(tmp_path / "t.csv")]


def test_a_warm_up_on_the_command_line_wins_over_the_other_one_in_the_file(tmp_path: Path) -> None:
    for written, given in (
        ("warmup_ratio: 0.2", ["--num_warmup_steps", "3"]),
        ("num_warmup_steps: 7", ["--warmup_ratio=0.2"]),
    ):
        (tmp_path / "recipe.yaml").write_text(written)
        args = script.parse_args(["--config", str(tmp_path / "recipe.yaml"), *OWN, *given])
        assert (args.num_warmup_steps, args.warmup_ratio) in ((3, 0.1), (None, 0.2))


def test_no_in_a_config_file_is_a_precision(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mixed_precision: no\n")
    assert script.parse_args(["--config", str(tmp_path / "recipe.yaml"), *OWN]).mixed_precision == "no"


@pytest.mark.parametrize(("written", "meant"), [([], True), (["true"], True), (["False"], False)])
def test_a_switch_takes_true_false_or_nothing(written: list[str], meant: bool) -> None:
    assert script.parse_args([*OWN, "--trust_remote_code", *written]).trust_remote_code is meant


def test_the_command_line_wins_over_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("task_name: rte\nlearning_rate: 2e-5\nno_group_by_length: true\nwith_tracking: false\nseed:\n")
    args = script.parse_args(["--config", str(config), *MODEL, "--learning_rate", "1e-4"])
    assert (args.task_name, args.learning_rate, args.no_group_by_length) == ("rte", 1e-4, True)
    assert (args.with_tracking, args.seed) == (False, 42)
    assert not script.parse_args(["--config", str(config), *MODEL, "--no_group_by_length", "false"]).no_group_by_length


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("learning_rat: 1", "'learning_rat'; did you mean learning_rate?"),
        ("seed: [1, 2]", "seed takes one value"),
        ("- 1", "learning_rate: 5e-5"),
        ("a: b: c", "mapping values"),
        ("lr: 1", "there is no flag 'lr'; here: --learning_rate"),
        ("seed: x", "--seed: takes a whole number, not 'x'"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture, text: str, named: str) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(text)
    assert named in usage_error(capsys, "--config", config, *OWN)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--model_name_or_path is needed"),
        (["--model_name_or_path", "./nowhere", "--task_name", "rte"], "./nowhere: there is no such folder"),
        (MODEL, "--task_name (cola, mnli"),
        ([*MODEL, "--task_name", "mrcp"], "'mrcp'"),
        ([*OWN, "--train_file", "a.csv"], "cannot be given together"),
        ([*MODEL, "--train_file", __file__], "the name must end in .csv, .tsv, .json, .jsonl, .parquet"),
        ([*MODEL, "--train_file", "a.csv", "--validation_file", "b.csv"], "--train_file a.csv: there is no such file"),
        ([*OWN, "--learning_rate", "-1"], "--learning_rate: must be at least 0, not -1"),
        ([*OWN, "--learning_rate", "nan"], "--learning_rate: must be at least 0, not nan"),
        ([*OWN, "--per_device_train_batch_size", "0"], "must be at least 1, not 0"),
        ([*OWN, "--warmup_ratio", "1.5"], "must be at least 0 and at most 1, not 1.5"),
        ([*OWN, "--num_train_epochs", "2.5"], "takes a whole number, not '2.5'"),
        (
            [*OWN, "--num_warmup_steps", "5", "--warmup_ratio", "0.1"],
            "--warmup_ratio: not allowed with argument --num_warmup_steps",
        ),
        ([*OWN, "--checkpointing_steps", "often", "--output_dir", "x"], "--checkpointing_steps often"),
        ([*OWN, "--checkpointing_steps", "5"], "--checkpointing_steps needs an --output_dir"),
        ([*OWN, "--with_tracking"], "--with_tracking needs an --output_dir"),
        ([*OWN, "--with_tracking", "maybe"], "not 'maybe'"),
        ([*OWN, "--learning_rat", "1"], "did you mean --learning_rate?"),
        ([*OWN, "--output_dir", __file__], "is a file, not a folder"),
        ([*OWN, "--output_dir", "x", "--resume_from_checkpoint", "y"], "--resume_from_checkpoint y"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml"),
        (
            [*MODEL, "--train_file", "a.csv", "--train_file=b.csv"],
            "--train_file is given twice; it takes several values",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(capsys: pytest.CaptureFixture, flags: list[str], named: str) -> None:
    assert named in usage_error(capsys, *flags)


@pytest.mark.parametrize("flags", [["--help"], ["--task_name", "mrcp"], MODEL])
def test_help_and_mistakes_do_not_wait_for_the_imports(flags: list[str]) -> None:
    """`-X importtime` lists every module that a process has imported."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "run_glue_no_trainer.py"), *flags]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == (0 if flags == ["--help"] else 2)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "evaluate", "datasets", "accelerate", "numpy"}


def test_every_flag_has_help_and_a_group() -> None:
    groups = script.build_parser()._action_groups
    assert [group.title for group in groups if group._group_actions] == [
        "general", "data", "model", "training", "output",
    ]  # fmt: skip
    assert all(action.help for group in groups for action in group._group_actions)


def test_python_without_docstrings_is_told_at_once() -> None:
    """transformers builds on its docstrings."""
    command = [sys.executable, "-OO", str(ROOT / "run_glue_no_trainer.py"), "--task_name", "rte"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "python -OO removes the docstrings" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "variable",
    ["TQDM_MININTERVAL=often", "HF_HUB_DOWNLOAD_TIMEOUT=ten", "HF_DATASETS_IN_MEMORY_MAX_SIZE=x", "TORCH_LOGS=nope"],
)
def test_a_variable_at_which_an_import_fails_is_named(own_files: list, tiny_model: Path, variable: str) -> None:
    ended = launch("--model_name_or_path", tiny_model, *own_files, env=dict([variable.split("=")]))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("run_glue_no_trainer.py: error: a library cannot be imported: ")
    assert line.endswith(f"; the environment has {variable}")


def test_other_errors_of_imports_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SOME_SETTING", "twelve")
    for error in (ValueError("no thirteen here"), ImportError("twelve")):
        tell_environment(type(error), error, None)
        assert capsys.readouterr().err == f"{type(error).__name__}: {error}\n"
    with pytest.raises(SystemExit) as exit_:
        tell_environment(ValueError, ValueError("no twelve here"), None)
    assert exit_.value.code == 2
    assert "SOME_SETTING=twelve" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["foo", ""])
def test_a_level_of_the_log_that_is_none_is_named(level: str) -> None:
    """Accelerate's import would end in a traceback."""
    command = [sys.executable, str(ROOT / "run_glue_no_trainer.py"), "--model_name_or_path", "x", "--task_name", "rte"]
    ended = subprocess.run(command, env=os.environ | {"ACCELERATE_LOG_LEVEL": level}, capture_output=True, text=True)
    assert ended.returncode == 2
    said = f"run_glue_no_trainer.py: error: ACCELERATE_LOG_LEVEL in the environment is {level!r}; "
    assert ended.stderr.startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seed: 2024-13-45", "takes a whole number, not '2024-13-45'"),
        ("seed: !!timestamp nope", "takes a whole number, not 'nope'"),
        ("seed: !!int abc", "takes a whole number, not 'abc'"),
        ("seed: 1\nseed: 2", "seed is given twice, the second time in line 2"),
        ("seed: &a [*a]", "--config"),
    ],
)
def test_what_yaml_would_make_of_a_word_is_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture, line: str, said: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(line + "\n")
    assert said in usage_error(capsys, *OWN, "--config", tmp_path / "recipe.yaml")


@pytest.mark.slow
def test_after_the_imports_an_error_keeps_its_traceback(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """Whatever variables have the values that it speaks of."""
    program = tmp_path / "program.py"
    program.write_text(
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from transformers import BertForSequenceClassification as Bert\n"
        "def forward(*_, **__): raise ValueError(\"no 'twelve' here\")\n"
        "Bert.forward = forward\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    flags = ["--model_name_or_path", tiny_model, *own_files]
    ended = launch(*flags, launcher=(sys.executable, program), env={"SOME_SETTING": "twelve"})
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1] == "ValueError: no 'twelve' here"


def test_epochs_on_the_command_line_win_over_steps_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"train_file: {__file__}.csv\nmodel_name_or_path: m\nmax_train_steps: 100\n")
    file = tmp_path / "t.csv"
    file.write_text("text,label\n")
    flags = ["--config", str(tmp_path / "c.yaml"), "--train_file", str(file)]
    assert script.parse_args(flags).max_train_steps == 100
    evaluating = script.parse_args([*flags, "--num_train_epochs", "0"])
    assert (evaluating.num_train_epochs, evaluating.max_train_steps) == (0, None)
    assert script.parse_args([*flags, "--max_train_steps", "5"]).max_train_steps == 5


@pytest.mark.parametrize("names", [["t.csv", "t.csv"], ["*.csv", "t.csv"], ["t.csv", "link.csv"]])
def test_a_file_that_is_given_twice_is_named(tmp_path: Path, names: list, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "t.csv").write_text("text,label\n")
    if "link.csv" in names:
        (tmp_path / "link.csv").symlink_to(tmp_path / "t.csv")
    with pytest.raises(SystemExit):
        script.parse_args(["--model_name_or_path", "m", "--train_file", *(str(tmp_path / name) for name in names)])
    assert "is given twice" in capsys.readouterr().err
