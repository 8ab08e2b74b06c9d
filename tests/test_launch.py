"""The ways in: python, accelerate launch and torchrun, one process and two, with and without a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, TORCHRUN, launch, log_lines, without_dropout, write_csv
from transformers import AutoModelForSequenceClassification

ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")
pytestmark = pytest.mark.slow


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def test_two_processes_count_every_row_once_and_learn_the_same(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """23 validation rows in batches of 4: two processes have to be given one row twice, and not count it."""
    model = without_dropout(tiny_model, tmp_path / "model")
    flags = ["--model_name_or_path", model, *own_files, "--per_device_eval_batch_size", 4, "--logging_steps", 1]
    flags += ["--learning_rate", 1e-3, "--num_train_epochs", 2]
    one = launch(*flags, "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "one")
    two = launch(
        *flags, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "two",
        launcher=TORCHRUN, env={"ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    first, second = results(tmp_path / "one"), results(tmp_path / "two")
    assert second["global_batch_size"] == 8
    for name in first:
        if name.startswith(("eval_", "baseline_", "train_loss")):
            assert second[name] == pytest.approx(first[name], abs=1e-5), name
    assert len(log_lines(tmp_path / "two")) == len(log_lines(tmp_path / "one")) == 18
    for a, b in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, abs=1e-4)
    assert two.stdout.count("epoch 1, step 8") == 1


def test_two_processes_make_one_complaint(tiny_model: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("good", "a")] * 3)
    flags = ["--model_name_or_path", tiny_model, "--train_file", file, "--validation_file", file]
    ended = launch(*flags, "--output_dir", tmp_path / "out", launcher=TORCHRUN)
    assert ended.returncode != 0
    assert ended.stderr.count("run_glue_no_trainer.py: error: the training data has only one class") == 1
    assert not (tmp_path / "out").exists()


def test_accelerate_launch_on_the_cpu(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 3, "--output_dir", tmp_path]
    config = ROOT / "configs" / "accelerate" / "cpu.yaml"
    ended = launch(*flags, launcher=(*ACCELERATE, "--config_file", str(config)))
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path)["step"] == 3


def test_a_compiled_model_is_padded_to_few_lengths_and_saved_like_any_other(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """With the backend `eager`, which traces but compiles nothing: the shapes and the names are what matters here."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 4, "--output_dir", tmp_path]
    flags += ["--load_best_model_at_end", "--checkpointing_steps", 2]
    ended = launch(*flags, env={"ACCELERATE_DYNAMO_BACKEND": "EAGER", "TORCH_LOGS": "recompiles"})
    assert ended.returncode == 0, ended.stderr
    assert "size mismatch at index 1" not in ended.stderr  # nothing is compiled anew for another length
    same = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)[1]
    assert not same["missing_keys"]
    assert not same["unexpected_keys"]


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_each_of_the_configs(file: Path) -> None:
    when, how = file.read_text().splitlines()[:2]
    assert when.startswith("# When to take it: ")
    assert f"accelerate launch --config_file configs/accelerate/{file.name}" in how
    config = load_config_from_file(str(file))  # refuses keys that it does not know
    assert config.use_cpu == ("cpu" in file.stem)


def test_the_network_is_not_needed(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """In a network namespace of its own, with nothing told to be offline, and no waiting for what does not come."""
    cut_off = ("unshare", "-rn")
    try:
        subprocess.run([*cut_off, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 3, "--output_dir", tmp_path]
    ended = launch(*flags, launcher=(*cut_off, sys.executable), env={"HF_HUB_OFFLINE": "0"})
    assert ended.returncode == 0, ended.stderr
    assert "retry" not in ended.stderr.lower()
    assert results(tmp_path)["step"] == 3
