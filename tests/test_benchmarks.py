"""Each benchmark, as small as it goes, as a process of its own; and what its figures are made of."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import ROOT, sentences
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))
import glue_table
import gpu
import speed
import works


def benchmark(name: str, *flags: object) -> str:
    command = [sys.executable, ROOT / "benchmarks" / name, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def cells(table: str) -> list[dict[str, str]]:
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


@pytest.fixture(scope="module")
def small_glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made sentences in the hub's layout, as the task sst2."""
    folder = tmp_path_factory.mktemp("glue")
    kinds = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    (folder / "sst2").mkdir()
    lines = ["configs:", "- config_name: sst2", "  data_files:"]
    for split, rows in (("train", 48), ("validation", 16)):
        texts, labels = zip(*sentences(rows, seed=rows), strict=True)
        data = Dataset.from_dict({"sentence": texts, "label": labels}, kinds)
        data.to_parquet(folder / "sst2" / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: sst2/{split}-*"]
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", ""]))
    return folder


def test_figures_of_a_run_that_can_be_counted_by_hand() -> None:
    """Five steps of two rows, 3 and 1 tokens in a batch of 2 x 4, half a second each; then two rows of full length."""
    short = {"rows": 2, "tokens": 8, "real": 4, "squares": 10}
    seen: dict[str, Any] = {"steps": [10.0, 10.5, 11.0, 11.5, 12.0], "forwards": [short] * 5, "whole": 20.0}
    seen |= {"peak_memory": 5e6, "tokenization": 1.0, "evaluation": 2.0, "saving": 3.0}
    shown = speed.figures(seen, shape=(100, 2, 8), peak=1e6)
    assert shown["padding"] == 0.5
    assert shown["examples/s, whole"] == 10 / 20
    assert shown["examples/s, step"] == 4 / 1.0  # the last two steps
    flop = 2 * (6 * 100 * 4 + 12 * 2 * 8 * 10)
    assert shown["GFLOP/s"] == pytest.approx(flop / 1e9)
    assert shown["of peak"] == pytest.approx(flop / 1e6)


def test_weights_that_every_token_passes(tiny_model: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_model)
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    assert speed.linear_weights(str(tiny_model)) == (layers * (4 * hidden**2 + 2 * hidden * inner), layers, hidden)


def test_a_difference_with_its_confidence_interval() -> None:
    """Welch: means 2 and 1, standard error 0.8165, 4 degrees of freedom, t = 2.776."""
    assert glue_table.difference([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]) == "+1.0000 (-1.2670 to +3.2670)"
    assert glue_table.difference([0.5], [0.25]) == "+0.2500"


@pytest.mark.slow
def test_the_benchmark_of_speed(tiny_model: Path, small_glue: Path, tmp_path: Path) -> None:
    flags = ["--model", tiny_model, "--glue", small_glue, "--task", "sst2", "--batch", 8, "--steps", 5]
    rows = cells(benchmark("speed.py", *flags, "--precisions", "no", "--json", tmp_path / "t.json"))
    assert [(row["precision"], row["script"]) for row in rows] == [("fp32", "this script")]
    row = json.loads((tmp_path / "t.json").read_text())[0]
    assert 0 <= row["padding"] < 0.5
    assert row["whole s"] > row["start s"] + row["tokenize s"]
    assert row["examples/s, step"] > row["examples/s, whole"] == pytest.approx(5 * 8 / row["whole s"])


def test_the_steps_that_warm_up_are_as_many_as_one_says() -> None:
    short = {"rows": 2, "tokens": 8, "real": 4, "squares": 10}
    seen: dict[str, Any] = {"steps": [10.0, 12.0, 12.5, 13.0], "forwards": [short] * 4, "whole": 20.0}
    seen |= {"peak_memory": 5e6, "tokenization": 1.0, "evaluation": 2.0, "saving": 3.0}
    assert speed.figures(seen, (100, 2, 8), 1e6, warm_up=2)["examples/s, step"] == 4 / 1.0
    assert speed.figures(seen, (100, 2, 8), 1e6, warm_up=1)["examples/s, step"] == 6 / 3.0


def test_a_case_that_fails_is_a_row() -> None:
    later = time.monotonic() + 60

    def fails(_until: float) -> None:
        raise KeyError("loss")

    def gives_no_end(until: float) -> None:
        works.run(["sleep", "60"], min(until, time.monotonic() + 0.2))

    assert gpu.attempt(lambda until: until > time.monotonic(), later, 30) == (True, "yes", "")
    assert gpu.attempt(fails, later, 30) == (None, "no", "KeyError: 'loss'")
    assert gpu.attempt(gives_no_end, later, 30) == (None, "no", "was not done after 0 s")
    assert gpu.attempt(fails, time.monotonic() + 1, 30) == (None, "untried", "no time was left")
    command = [sys.executable, "-c", "import sys; print('ready'); sys.exit('ValueError: seven')"]
    assert gpu.attempt(lambda until: works.run(command, until), later, 30)[1:] == (
        "no",
        "exit code 1: ValueError: seven",
    )


def test_every_edit_is_a_case_and_a_shape_is_what_it_says(tmp_path: Path) -> None:
    edits = {f"edit: {patch.stem}" for patch in (ROOT / "examples" / "edits").glob("*.patch")}
    assert {name for name in works.cases(few=False) if name.startswith("edit: ")} == edits
    gpu.make_model(tmp_path / "model", "tiny")
    assert speed.linear_weights(str(tmp_path / "model")) == (2 * (4 * 32**2 + 2 * 32 * 64), 2, 32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    data = datasets.load_dataset(gpu.make_mnli(tmp_path / "glue", 4000, 900), "mnli", cache_dir=str(tmp_path / "c"))
    rows = data["train"][:]
    lengths = [len(ids) for ids in tokenizer(rows["premise"], rows["hypothesis"])["input_ids"]]
    assert sum(lengths) / len(lengths) == pytest.approx(39, abs=1)
    assert max(lengths) <= 128


@pytest.mark.slow
def test_the_benchmark_of_one_gpu() -> None:
    """Here with whatever device there is: the cases that work anywhere do."""
    printed = benchmark("gpu.py", "--few", "--shape", "tiny", "--steps", 6, "--jobs", 2, "--minutes", 4)
    tables = {part: cells(rows) for part, rows in re.findall(r"## (\w+)\n\n((?:\|.+\n)+)", printed)}
    assert list(tables) == ["works", "host", "speed"]
    seen = {row["case"]: row for row in tables["works"]}
    assert {row["works"] for name, row in seen.items() if name != "fp16"} == {"yes"}, printed
    assert seen["edit: label_smoothing"]["what was seen"].startswith("3 steps, last loss ")
    alone, ours, peer = tables["host"]
    assert 0 < float(ours["fetching and padding"]) < float(ours["ms a step"])
    assert peer["note"] == "left out: no --peer"
    row = next(row for row in tables["speed"] if row["script"] == "this script")
    assert float(row["ratio"]) == 1
    assert 0 < float(row["padding"]) < 0.5
    assert re.fullmatch(r"(\d+ days?, )?\d+:\d\d:\d\d", row["MNLI, 3 epochs"])


@pytest.mark.slow
def test_the_benchmark_of_the_recorded_step() -> None:
    printed = benchmark("replay.py", "--shape", "tiny", "--steps", 4)
    times, kernels = (cells(rows) for rows in re.findall(r"((?:\|.+\n)+)", printed))
    assert [row["lengths"] for row in times] == ["those of MNLI", "32", "48", "64", "128"]
    *kinds, together = [float(row["ms"].replace(",", "")) for row in kernels]
    assert sum(kinds) == pytest.approx(together, abs=0.1)
    assert all(float(row["kernels"].replace(",", "")) > 0 for row in kernels if row["what"] != "compiled")


@pytest.mark.slow
def test_the_benchmark_of_scale(tiny_model: Path) -> None:
    rows = cells(benchmark("scale.py", "--model", tiny_model, "--sizes", 100, 300, "--steps", 5))
    assert [row["rows"] for row in rows] == ["100", "100", "300", "300"]
    assert [row["script"] for row in rows[:2]] == ["this script", "this script, again"]
    assert all(float(row["step µs/token"].replace(",", "")) > 0 and float(row["saved MB"]) > 0.1 for row in rows)


@pytest.mark.slow
def test_the_table_goes_on_where_it_stopped(tiny_model: Path, small_glue: Path, tmp_path: Path) -> None:
    settings = ["--setting", "grouped=", "--setting", "random=--no_group_by_length"]
    flags = ["--model", tiny_model, "--glue", small_glue, "--tasks", "sst2", "--output_dir", tmp_path, *settings]
    flags += ["--flags", "--max_train_steps 2"]
    assert cells(benchmark("glue_table.py", *flags, "--seeds", 1))[0]["grouped"].endswith("(1)")
    first = (tmp_path / "grouped" / "sst2" / "1" / "model.safetensors").stat().st_mtime_ns
    row = cells(benchmark("glue_table.py", *flags, "--seeds", 1, 2))[0]
    assert first == (tmp_path / "grouped" / "sst2" / "1" / "model.safetensors").stat().st_mtime_ns
    results = [json.loads((tmp_path / "grouped" / "sst2" / seed / "all_results.json").read_text()) for seed in "12"]
    mean = sum(result["eval_accuracy"] for result in results) / 2
    assert row["grouped"].startswith(f"{mean:.4f} ± ")
    assert results[1]["seed"] == 2
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.md").read_text().count("|") > 10
