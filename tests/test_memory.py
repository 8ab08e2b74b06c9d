"""Batches that do not fit: halved before training, and told in one line when it happens later."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin
from conftest import ROOT, TORCHRUN, fresh_accelerate, launch, log_lines, table, weights, without_dropout
from transformers import BertForSequenceClassification

import run_glue_no_trainer as script
from no_trainer.memory import preallocate_gradients, stop_for_memory

FLAGS = ["--max_train_steps", 12, "--logging_steps", 1, "--learning_rate", 1e-3, "--num_warmup_steps", 0]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A BERT that fits as many rows as `train` and `eval` say, and no row from the call number `until` on."""
    limits = {"train": 3, "eval": 5, "until": 10**9, "calls": 0}
    forward = BertForSequenceClassification.forward

    def limited(self: torch.nn.Module, *args: object, **inputs: torch.Tensor) -> object:
        limits["calls"] += 1
        most = limits["train" if self.training else "eval"]
        if len(inputs["input_ids"]) > most or limits["calls"] >= limits["until"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, *args, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", limited)
    yield limits
    monkeypatch.undo()


def same(here: dict, there: dict) -> bool:
    """Losses, scores and rates of a line of the log to 1e-5; the norm of a gradient adds up what they differ in."""
    norms = [line.pop("grad_norm", 0.0) for line in (here, there)]
    return here == pytest.approx(there, abs=1e-5) and norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_batch_that_does_not_fit_is_halved_and_the_run_is_the_same(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, small_memory: dict, capsys: pytest.CaptureFixture
) -> None:
    """12 rows at a time are asked for, 3 fit: the losses are those of the run that fits, across an epoch's end."""
    model = without_dropout(tiny_model, tmp_path / "model")
    flags = ["--model_name_or_path", model, *own_files, *FLAGS, "--per_device_train_batch_size", 12]
    small = run(*flags, "--output_dir", tmp_path / "small")
    out = capsys.readouterr().out
    assert "--per_device_train_batch_size 12 does not fit the memory of the device: it is 3, with 4 times the" in out
    assert "--per_device_eval_batch_size 8 does not fit the memory of the device: it is 4, which gives the same" in out
    assert "training for 12 steps of 12 rows" in out
    small_memory |= {"train": 100, "eval": 100}
    whole = run(*flags, "--output_dir", tmp_path / "whole")
    pairs = zip(log_lines(tmp_path / "small"), log_lines(tmp_path / "whole"), strict=True)
    for here, there in pairs:
        assert same(here, there)
    assert small["global_batch_size"] == whole["global_batch_size"] == 12


@pytest.mark.parametrize(("asked", "fits", "taken"), [(6, 5, 3), (6, 2, 1), (7, 6, 1), (10, 9, 5), (8, 8, 8)])
def test_a_cut_has_equal_parts(
    run: Callable,
    own_files: list,
    small_memory: dict,
    capsys: pytest.CaptureFixture,
    asked: int,
    fits: int,
    taken: int,
) -> None:
    """Each part is a divisor of what was asked for: their losses are averaged."""
    small_memory |= {"train": fits, "eval": 100}
    results = run(*own_files, "--max_train_steps", 2, "--per_device_train_batch_size", asked)
    said = re.findall(
        r"train_batch_size \d+ does not fit the memory of the device: it is (\d+)", capsys.readouterr().out
    )
    assert said == ([str(taken)] if taken != asked else [])
    assert results["global_batch_size"] == asked


def test_not_even_one_row(
    run: Callable, own_files: list, tmp_path: Path, small_memory: dict, capsys: pytest.CaptureFixture
) -> None:
    small_memory["train"] = 0
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 1
    assert "out of memory: not even one row fits; use a smaller --max_length" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_an_evaluation(
    run: Callable, trained: Path, own_files: list, tmp_path: Path, small_memory: dict, capsys: pytest.CaptureFixture
) -> None:
    """Predictions are the same, in the order of the file; the training batch is not tried."""
    only = ["--model_name_or_path", trained, "--num_train_epochs", 0, *own_files[2:], "--do_predict", "--test_file"]
    small_memory |= {"train": 0, "eval": 100}
    whole = run(*only, own_files[3], "--output_dir", tmp_path / "whole")
    small_memory["eval"] = 2
    small = run(*only, own_files[3], "--output_dir", tmp_path / "small")
    assert "--per_device_eval_batch_size 8 does not fit" in capsys.readouterr().out
    names = [name for name in whole if name.startswith(("eval_", "test_")) and isinstance(whole[name], float)]
    assert {name: small[name] for name in names} == pytest.approx({name: whole[name] for name in names}, abs=1e-6)
    first, second = (table(tmp_path / name / "predict_results.csv") for name in ("whole", "small"))
    assert [row["prediction"] for row in first] == [row["prediction"] for row in second]


def test_trying_changes_no_byte(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, which draws random numbers."""
    flags = [*own_files, *FLAGS, "--gradient_accumulation_steps", 2]
    run(*flags, "--output_dir", tmp_path / "tried")
    sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
    monkeypatch.setattr(script, "fit_batches", lambda args, *_: tuple(getattr(args, size) for size in sizes))
    run(*flags, "--output_dir", tmp_path / "not tried")
    assert weights(tmp_path / "tried") == weights(tmp_path / "not tried")
    assert log_lines(tmp_path / "tried") == log_lines(tmp_path / "not tried")


LATER = """
import os, runpy, sys, torch
from transformers import BertForSequenceClassification as Bert
forward, calls = Bert.forward, []
def limited(self, *args, **inputs):
    calls.append(1)
    if {condition}:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    return forward(self, *args, **inputs)
Bert.forward = limited
sys.argv = sys.argv[1:]
sys.path.insert(0, {root!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def limited_script(file: Path, condition: str) -> list[str]:
    """A program that runs the script with a BERT that has no memory under this condition."""
    file.write_text(LATER.format(condition=condition, root=str(ROOT)))
    return [sys.executable, str(file)]


@pytest.mark.slow
def test_out_of_memory_later_on_is_told_with_what_goes_on(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """In the eighth step; the command that is printed is pasted into a shell, and ends as if nothing had been."""
    model = without_dropout(tiny_model, tmp_path / "model")
    flags = ["--model_name_or_path", model, *own_files, *FLAGS, "--checkpointing_steps", 3]
    limited = limited_script(tmp_path / "limited.py", "len(calls) > 1 + 1 + 7 and len(inputs['input_ids']) > 4")
    ended = launch(*flags, "--output_dir", tmp_path / "out", launcher=tuple(limited))
    assert ended.returncode == 1
    (error,) = ended.stderr.splitlines()
    assert error.startswith("run_glue_no_trainer.py: error: out of memory: OutOfMemoryError: CUDA out of memory.")
    assert "step_6 with half the batch: " in error
    command = error.partition("half the batch: ")[2]
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 2" in command
    again = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert again.returncode == 0, again.stderr
    assert f"going on from {tmp_path / 'out' / 'step_6'}" in again.stdout
    assert launch(*flags, "--output_dir", tmp_path / "whole").returncode == 0
    for here, there in zip(log_lines(tmp_path / "out"), log_lines(tmp_path / "whole"), strict=True):
        assert same(here, there)


@pytest.mark.slow
def test_two_processes_agree_on_what_fits(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """The second of them has memory for two rows at a time, the first for all."""
    model = without_dropout(tiny_model, tmp_path / "model")
    flags = ["--model_name_or_path", model, *own_files, *FLAGS, "--per_device_eval_batch_size", 4]
    condition = "os.environ['RANK'] == '1' and len(inputs['input_ids']) > 2 and self.training"
    launcher = (*TORCHRUN, limited_script(tmp_path / "limited.py", condition)[1])
    on_cpu = {"ACCELERATE_USE_CPU": "true"}
    ended = launch(*flags, "--output_dir", tmp_path / "small", launcher=launcher, env=on_cpu)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("--per_device_train_batch_size 8 does not fit") == 1
    assert "it is 2, with 4 times the gradient accumulation" in ended.stdout
    whole = launch(*flags, "--output_dir", tmp_path / "whole", launcher=TORCHRUN, env=on_cpu)
    assert whole.returncode == 0, whole.stderr
    for here, there in zip(log_lines(tmp_path / "small"), log_lines(tmp_path / "whole"), strict=True):
        assert same(here, there)


@pytest.mark.slow
def test_one_process_that_runs_out_of_memory_later_on_speaks(
    own_files: list, tiny_model: Path, tmp_path: Path
) -> None:
    condition = "os.environ['RANK'] == '1' and len(calls) > 5"
    launcher = (*TORCHRUN, limited_script(tmp_path / "limited.py", condition)[1])
    flags = ["--model_name_or_path", tiny_model, *own_files, *FLAGS, "--output_dir", tmp_path / "out"]
    ended = launch(*flags, launcher=launcher, env={"ACCELERATE_USE_CPU": "true"})
    assert ended.returncode == 1
    assert ended.stderr.count("run_glue_no_trainer.py: error: out of memory") == 1
    assert "half the batch is --per_device_train_batch_size 4 --gradient_accumulation_steps 2" in ended.stderr


@pytest.mark.parametrize(
    ("mode", "accumulation", "own"),
    [("reduce-overhead", 2, True), ("max-autotune", 2, True), ("reduce-overhead", 1, False), ("default", 2, False)],
)
def test_cuda_graphs_accumulate_into_gradients_that_are_there(mode: str, accumulation: int, own: bool) -> None:
    """What they do with them is for tests/test_graphs.py and benchmarks/works.py, on a GPU."""
    accelerator = SimpleNamespace(state=SimpleNamespace(dynamo_plugin=SimpleNamespace(mode=mode)))
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert preallocate_gradients(accelerator, model, accumulation) == own
    assert (model.weight.grad is not None) == own
    assert model.bias.grad is None


def test_gradients_are_freed_after_each_step_but_with_cuda_graphs(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run either way."""
    flags = [*own_files, *FLAGS, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]
    run(*flags, "--output_dir", tmp_path / "freed")
    monkeypatch.setattr(TorchDynamoPlugin, "__post_init__", in_graphs(TorchDynamoPlugin.__post_init__))
    run(*flags, "--output_dir", tmp_path / "kept")
    assert log_lines(tmp_path / "kept") == log_lines(tmp_path / "freed")


def in_graphs(plain: Callable) -> Callable:
    def post_init(self: TorchDynamoPlugin) -> None:
        plain(self)
        self.mode = "reduce-overhead"

    return post_init


@pytest.mark.parametrize("way", ["flex_attention", "chunk_size_feed_forward"])
def test_a_model_that_transformers_refuses_to_run_is_one_line(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, way: str
) -> None:
    flags = [*own_files, "--max_train_steps", 1]
    if way == "flex_attention":  # with dropout
        flags += ["--attn_implementation", way]
    else:
        shutil.copytree(tiny_model, tmp_path / "model")
        config = json.loads((tiny_model / "config.json").read_text()) | {way: 7}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        flags += ["--model_name_or_path", tmp_path / "model"]
    with pytest.raises(SystemExit) as exit_:
        run(*flags)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "transformers refuses to run the model: " in said
    assert ("dropout" if way == "flex_attention" else "chunk size 7") in said


def test_an_error_of_ones_own_code_keeps_its_traceback(
    run: Callable, own_files: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object, **__: object) -> None:
        raise ValueError("mine")

    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    with pytest.raises(ValueError, match="mine"):
        run(*own_files, "--max_train_steps", 1)


def test_one_row_alone_has_no_half(own_files: list, capsys: pytest.CaptureFixture) -> None:
    rows = ["--per_device_train_batch_size", "1", "--per_device_eval_batch_size", "1"]
    args = script.parse_args(["--model_name_or_path", "bert-base-cased", *own_files, *rows])
    fresh_accelerate()
    Accelerator(cpu=True)
    with pytest.raises(SystemExit) as exit_:
        stop_for_memory(MemoryError("none left"), args)
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert "There is no smaller batch than one row." in said
    assert "half" not in said
