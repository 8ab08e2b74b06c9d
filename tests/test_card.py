"""The model card and the training curve."""

import contextlib
import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from conftest import ROOT, launch, write_csv
from huggingface_hub import ModelCard

import run_glue_no_trainer as script
from no_trainer.card import example, write_card
from no_trainer.glue import Task


def snippet(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def test_the_cards_metadata_are_what_the_hub_reads(run: Callable, own_files: list, tmp_path: Path) -> None:
    results = run(*own_files, "--max_train_steps", 12, "--output_dir", tmp_path / "praise")
    data = ModelCard.load(tmp_path / "praise" / "README.md").data
    assert (data.model_name, data.library_name, data.pipeline_tag) == ("praise", "transformers", "text-classification")
    assert data.metrics == ["accuracy", "f1"]
    assert data.base_model is None  # a folder of this machine is nothing for the hub
    assert data.datasets is None
    scores = {result.metric_name: (result.metric_type, result.metric_value) for result in data.eval_results}
    assert scores == {
        "accuracy": ("accuracy", pytest.approx(results["eval_accuracy"], abs=1e-4)),
        "macro_f1": ("f1", pytest.approx(results["eval_macro_f1"], abs=1e-4)),
        "f1": ("f1", pytest.approx(results["eval_f1"], abs=1e-4)),
    }


def test_the_card_tells_scores_epochs_command_and_versions(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["run_glue_no_trainer.py", *own_files, "--output_dir", str(tmp_path / "out")])
    monkeypatch.setenv("HOME", str(tmp_path))
    results = run(*own_files, "--max_train_steps", 12, "--output_dir", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "negative, positive" in card
    assert f"| accuracy | {results['eval_accuracy']:.4g} | {results['baseline_accuracy']:.4g} |" in card
    epochs = [line for line in card.splitlines() if re.match(r"\| 1(\.5)? \| (8|12) \|", line)]
    assert len(epochs) == 2
    assert "| 1.5 | 12 | " in epochs[1]
    assert "| schedule | linear from 5e-05, 2 warm-up steps of 12 |" in card
    assert f"run_glue_no_trainer.py {shlex.join(own_files)} --output_dir ~/out" in card
    assert str(tmp_path) not in card.split("## Training")[1]
    assert re.search(r"^train +61 ", card, re.MULTILINE)
    for module, version in results["versions"].items():
        assert f"{module} {version}" in card
    assert (tmp_path / "out" / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "training_curve.png" in card


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("numbers", [False, True])
def test_the_cards_snippet_runs_as_printed(run: Callable, tmp_path: Path, pairs: bool, numbers: bool) -> None:
    rows = [(f"good {n}", "fine", n % 2 + 0.5 if numbers else "yn"[n % 2]) for n in range(24)]
    rows = rows if pairs else [(text, label) for text, _, label in rows]
    header = ["sentence1", "sentence2", "label"] if pairs else ["a", "label"]
    file = write_csv(tmp_path / "t.csv", header, rows)
    run("--train_file", file, "--max_train_steps", 1, "--output_dir", tmp_path / "out")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(snippet(tmp_path / "out"), {})
    assert "'score': " in said.getvalue()
    assert ("text_pair" in snippet(tmp_path / "out")) == pairs


def test_a_card_of_glue_names_the_data_set_and_both_of_mnlis_scores(
    run: Callable, made_glue: Path, tmp_path: Path
) -> None:
    flags = ["--dataset_name", made_glue, "--task_name", "mnli", "--max_train_steps", 1]
    run(*flags, "--output_dir", tmp_path / "out")
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.datasets == ["nyu-mll/glue"]
    measured = [(result.dataset_config, result.dataset_split, result.metric_type) for result in data.eval_results]
    assert measured == [("mnli", "validation", "accuracy"), ("mnli", "validation_mismatched", "accuracy")]


def test_a_model_of_the_hub_is_named_as_the_base(tmp_path: Path) -> None:
    """Without the hub no run can load one; the card alone does not mind."""
    PartialState()
    args = script.parse_args(["--model_name_or_path", "bert-base-cased", "--task_name", "rte"])
    args.output_dir = str(tmp_path)
    task = Task(["accuracy"], ["sentence1", "sentence2"], [0, 1], ["yes", "no"])
    results = {"eval_accuracy": 0.5, "global_batch_size": 8, "schedule": "linear", "versions": {}}
    run = SimpleNamespace(args=args, accelerator=Accelerator(), table="", files=set(), repository=None)
    write_card(run, torch.nn.Module(), task, results, [])
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "bert-base-cased"
    assert "[bert-base-cased](https://huggingface.co/bert-base-cased)" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_without_matplotlib_there_is_no_curve_and_it_is_said_once(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """A folder on the path whose matplotlib cannot be imported, as one that was built for another NumPy."""
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('built for another NumPy')\n")
    flags = ["--model_name_or_path", tiny_model, *own_files, "--num_train_epochs", 2, "--output_dir", tmp_path / "out"]
    ended = launch(*flags, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("pip install matplotlib") == 1
    assert not (tmp_path / "out" / "training_curve.png").exists()
    assert "training_curve" not in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["step"] == 16


def test_a_home_is_not_told_and_may_be_the_root(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/")  # of a container's user without a name
    monkeypatch.setattr("sys.argv", ["/opt/run_glue_no_trainer.py", *own_files])
    run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path / "out")
    assert f"/opt/run_glue_no_trainer.py {shlex.join(own_files)}\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_card_is_not_written_through_a_link(
    run: Callable, own_files: list, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").symlink_to(trained / "README.md")
    before = (trained / "README.md").read_bytes()
    run(*own_files, "--max_train_steps", 1, "--overwrite_output_dir", "--output_dir", tmp_path / "out")
    assert (trained / "README.md").read_bytes() == before
    assert "README.md is a link and stays as it is" in capsys.readouterr().out


def test_backticks_in_a_name_do_not_end_the_block_of_the_command(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = "o```\u202ex"
    monkeypatch.setattr("sys.argv", ["run_glue_no_trainer.py", "--output_dir", folder])
    monkeypatch.setattr("sys.orig_argv", ["python", "run_glue_no_trainer.py", "--output_dir", folder])
    run(*own_files, "--max_train_steps", 1, "--output_dir", folder)
    card = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall("^````sh\n(.+)\n````$", card, re.MULTILINE)
    assert "o```" in command
    assert 'pipeline("text-classification", "o```\\u202ex"' in card


@pytest.mark.parametrize(("columns", "times"), [(["a"], 1), (["a", "b", "c"], 3)])
def test_the_example_has_a_text_for_each_column(columns: list, times: int) -> None:
    assert example(Task([], columns, None, None, separator="[SEP]")).count("The parcel came") == times


def test_test_scores_have_no_baseline_of_the_validation_data(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--max_train_steps", 1, "--do_predict", "--test_file", own_files[3], "--output_dir", tmp_path)
    rows = re.findall(r"^\| (test_)?accuracy \| \S+ \| (.*) \|$", (tmp_path / "README.md").read_text(), re.MULTILINE)
    (_, baseline), (_, none) = sorted(rows)
    assert float(baseline) > 0
    assert not none.strip()
