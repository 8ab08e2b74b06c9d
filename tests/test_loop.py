"""The training loop: what a step is, on any cut, and going on from a checkpoint."""

import json
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import log_lines, prepared, rows_of, sentences, weights, without_dropout, write_csv
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

import run_glue_no_trainer as script


@pytest.fixture
def no_dropout(tiny_model: Path, tmp_path: Path) -> Path:
    return without_dropout(tiny_model, tmp_path / "no_dropout")


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in log_lines(folder) if "loss" in line}


def test_losses_do_not_depend_on_accumulation(
    run: Callable, own_files: list, no_dropout: Path, tmp_path: Path
) -> None:
    """61 rows in global batches of 8: eight steps an epoch, the last one filled up; three epochs."""
    common = [*own_files, "--model_name_or_path", no_dropout, "--logging_steps", 1, "--learning_rate", 1e-3]
    cuts = {(8, 1): tmp_path / "whole", (4, 2): tmp_path / "halves", (1, 8): tmp_path / "eighths"}
    results = {}
    for (size, steps), folder in cuts.items():
        cut = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps]
        results[size] = run(*common, *cut, "--output_dir", folder)
    whole, *others = (losses(folder) for folder in cuts.values())
    assert list(whole) == list(range(1, 25))
    for other in others:
        assert other == pytest.approx(whole, abs=1e-5)
    assert results[8]["eval_accuracy"] == results[4]["eval_accuracy"] == results[1]["eval_accuracy"]
    assert {results[size]["global_batch_size"] for size in results} == {8}


def test_the_loop_is_adamw_with_a_linear_schedule(
    run: Callable, own_files: list, no_dropout: Path, tmp_path: Path
) -> None:
    """The logged losses against a dozen lines of plain PyTorch over the same rows."""
    flags = [*own_files, "--model_name_or_path", no_dropout, "--logging_steps", 1, "--learning_rate", 1e-3]
    flags += ["--weight_decay", 0.1, "--num_warmup_steps", 3, "--max_train_steps", 10, "--max_grad_norm", 0.5]
    run(*flags, "--output_dir", tmp_path / "out")

    model, tokenizer, data, sampler = prepared("--model_name_or_path", no_dropout, *flags)
    optimizer = torch.optim.AdamW(script.parameter_groups(model, 0.1), lr=1e-3)
    expected = {}
    for step in range(10):
        sampler.start(*divmod(step, 8))
        rows = next(iter(sampler))
        loss = model(**tokenizer.pad(rows_of(data, rows), return_tensors="pt")).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        rate = 1e-3 * (step / 3 if step < 3 else (10 - step) / 7)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        expected[step + 1] = (loss.item(), rate, norm.item())
    lines = [line for line in log_lines(tmp_path / "out") if "loss" in line]
    logged = {line["step"]: (line["loss"], line["learning_rate"], line["grad_norm"]) for line in lines}
    assert logged.keys() == expected.keys()
    for step, values in expected.items():
        assert logged[step] == pytest.approx(values, abs=1e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        (["--lr_scheduler_type", "constant"], [1, 1, 1, 1]),
        ([], [0, 1, 2 / 3, 1 / 3]),  # a tenth, at least a step, is warm-up
        (["--warmup_ratio", 1], [0, 1 / 3, 2 / 3, 1]),  # the last one is not
        (["--lr_scheduler_type", "polynomial", "--num_warmup_steps", 4], [0, 0.25, 0.5, 0.75]),
        (["--num_warmup_steps", 0], [1, 0.75, 0.5, 0.25]),
        (
            ["--lr_scheduler_type", "cosine", "--num_warmup_steps", 0],
            [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)],
        ),
        (["--lr_scheduler_type", "constant_with_warmup", "--warmup_ratio", 0.5], [0, 0.5, 1, 1]),
        (["--warmup_ratio", 0.3], [0, 0.5, 1, 0.5]),
    ],
)
def test_schedules(run: Callable, own_files: list, tmp_path: Path, flags: list, rates: list) -> None:
    common = [*own_files, "--max_train_steps", 4, "--logging_steps", 1, "--learning_rate", 1e-3]
    run(*common, "--output_dir", tmp_path, *flags)
    logged = [line["learning_rate"] for line in log_lines(tmp_path) if "loss" in line]
    assert logged == pytest.approx([1e-3 * rate for rate in rates])


def test_a_run_of_one_step_learns(run: Callable, own_files: list, tmp_path: Path) -> None:
    run(*own_files, "--max_train_steps", 1, "--output_dir", tmp_path)
    assert log_lines(tmp_path)[0]["learning_rate"] == 5e-5


def test_a_data_set_smaller_than_a_global_batch(run: Callable, own_files: list) -> None:
    results = run(*own_files, "--max_train_samples", 5, "--per_device_train_batch_size", 16)
    assert results["step"] == 3
    assert math.isfinite(results["train_loss"])


def test_max_train_steps_wins_over_epochs(run: Callable, own_files: list, tmp_path: Path) -> None:
    results = run(*own_files, "--max_train_steps", 11, "--num_train_epochs", 1, "--output_dir", tmp_path)
    assert (results["step"], results["epoch"]) == (11, 1 + 3 / 8)
    evaluations = [(line["step"], line["epoch"]) for line in log_lines(tmp_path) if "eval_accuracy" in line]
    assert evaluations == [(8, 1.0), (11, 1.375)]


@pytest.mark.parametrize("stopped_at", ["step_3", "step_8", "epoch_0", "step_13", "step_16"])
def test_resuming_ends_in_the_same_bytes(run: Callable, own_files: list, tmp_path: Path, stopped_at: str) -> None:
    """Dropout on, accumulation on; in the middle of an epoch, and before and after an evaluation."""
    common = [*own_files, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]
    common += ["--num_train_epochs", 2, "--learning_rate", 1e-3, "--logging_steps", 2]
    run(*common, "--output_dir", tmp_path / "whole")
    every = "epoch" if stopped_at.startswith("epoch") else stopped_at.removeprefix("step_")
    folder = tmp_path / "resumed"
    run(*common, "--output_dir", folder, "--checkpointing_steps", every)
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"step": 99}\n{"half a li')  # what a killed run may leave behind
    results = run(*common, "--output_dir", folder, "--resume_from_checkpoint", folder / stopped_at)
    weights = [(path / "model.safetensors").read_bytes() for path in (tmp_path / "whole", folder)]
    assert weights[0] == weights[1]
    assert log_lines(folder) == log_lines(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "all_results.json").read_text())
    timed = {"train_runtime", "train_samples_per_second"}
    assert {k: v for k, v in results.items() if k not in timed} == {k: v for k, v in whole.items() if k not in timed}


def test_dropout_is_on_in_training(run: Callable, own_files: list, no_dropout: Path, tmp_path: Path) -> None:
    flags = [*own_files, "--max_train_steps", 1, "--logging_steps", 1]
    run(*flags, "--output_dir", tmp_path / "with")
    run(*flags, "--output_dir", tmp_path / "without", "--model_name_or_path", no_dropout)
    assert losses(tmp_path / "with") != losses(tmp_path / "without")


def test_the_seed_decides(run: Callable, own_files: list, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*own_files, "--max_train_steps", 3, "--seed", seed, "--output_dir", tmp_path / folder)
    a, b, c = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in "abc")
    assert a == b != c


def test_bf16_trains(run: Callable, own_files: list) -> None:
    results = run(*own_files, "--mixed_precision", "bf16", "--learning_rate", 3e-3, "--num_train_epochs", 6)
    assert results["eval_accuracy"] > results["baseline_accuracy"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_trains_on_a_gpu(run: Callable, own_files: list) -> None:
    assert run(*own_files, "--mixed_precision", "fp16", "--max_train_steps", 8)["step"] == 8


def test_a_step_that_the_scaler_skips_moves_neither_schedule_nor_count(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own scaler, on the CPU, with a first scale and losses that give infinite gradients at first."""
    rows = [(text, f"{10_000.5 + label}") for text, label in sentences(61)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    start = script.start_accelerator

    def with_scaler(args: object) -> Accelerator:
        accelerator = start(args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-16)
        return accelerator

    monkeypatch.setattr(script, "start_accelerator", with_scaler)
    flags = ["--train_file", file, "--validation_file", file, "--max_train_steps", 6, "--learning_rate", 1e-3]
    flags += ["--logging_steps", 1, "--max_grad_norm", 0, "--num_warmup_steps", 0]
    results = run(*flags, "--output_dir", tmp_path / "a", "--checkpointing_steps", 3)
    lines = [line for line in log_lines(tmp_path / "a") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3 * (6 - k) / 6 for k in range(6)])
    assert results["epoch"] > 6 / 8, "batches of skipped steps are not seen again"
    resumed = [*flags, "--output_dir", tmp_path / "a", "--resume_from_checkpoint", tmp_path / "a" / "step_3"]
    before = weights(tmp_path / "a")
    run(*resumed)
    assert weights(tmp_path / "a") == before, "the scale is in the checkpoint"


def test_it_learns(run: Callable, own_files: list) -> None:
    results = run(*own_files, "--learning_rate", 3e-3, "--num_train_epochs", 6)
    assert results["eval_accuracy"] == 1.0


def test_grouping_by_length_and_padding_flags(
    run: Callable, own_files: list, no_dropout: Path, tmp_path: Path
) -> None:
    """Padding changes nothing that is learned; the order of the rows does."""
    common = [*own_files, "--model_name_or_path", no_dropout, "--max_train_steps", 4, "--logging_steps", 1]
    run(*common, "--output_dir", tmp_path / "plain")
    run(*common, "--output_dir", tmp_path / "padded", "--pad_to_max_length", "--max_length", 32)
    run(*common, "--output_dir", tmp_path / "random", "--no_group_by_length")
    assert losses(tmp_path / "padded") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert losses(tmp_path / "random") != pytest.approx(losses(tmp_path / "plain"), abs=1e-3)


def test_models_are_not_changed_in_evaluation_only(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path
) -> None:
    run(*own_files, "--num_train_epochs", 6, "--learning_rate", 3e-3, "--output_dir", tmp_path / "trained")
    before = (tmp_path / "trained" / "model.safetensors").read_bytes()
    only = ["--model_name_or_path", tmp_path / "trained", "--num_train_epochs", 0, "--output_dir", tmp_path / "out"]
    results = run(*own_files, *only)
    assert (results["step"], results["eval_accuracy"]) == (0, 1.0)
    assert (tmp_path / "trained" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_tiny_model_has_dropout(tiny_model: Path) -> None:
    """Or the tests of resuming above would show less than they say."""
    assert AutoConfig.from_pretrained(tiny_model).hidden_dropout_prob == 0.1


class CountSyncs(TorchDispatchMode):
    """Counts reads of a tensor's value by the host (`.item()`, `float(...)`, `if tensor`) outside the model's forward.

    transformers itself reads the padding mask once in each forward, to see whether attention can do without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Callable, _types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += not any("masking_utils" in frame.filename for frame in traceback.extract_stack())
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five more steps between two lines of the log read nothing from the device; a line does."""
    counter, tolist = CountSyncs(), torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> list:  # on the CPU, it reads past the dispatcher
        counter.count += 1
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def syncs(steps: int, logging_steps: int) -> int:
        counter.count = 0
        with counter:
            run(*own_files, "--max_train_steps", steps, "--logging_steps", logging_steps)
        return counter.count

    assert syncs(7, 100) == syncs(2, 100)
    assert syncs(7, 1) > syncs(7, 100)


def test_workers_change_nothing_that_is_learned(run: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, "--max_train_steps", 9, "--logging_steps", 1]
    run(*flags, "--output_dir", tmp_path / "alone")
    workers = ["--dataloader_num_workers", 1, "--preprocessing_num_workers", 2]
    run(*flags, *workers, "--output_dir", tmp_path / "helped")
    assert log_lines(tmp_path / "alone") == log_lines(tmp_path / "helped")


def test_a_warm_up_longer_than_the_run_is_told(run: Callable, own_files: list, capsys: pytest.CaptureFixture) -> None:
    run(*own_files, "--max_train_steps", 2, "--num_warmup_steps", 2)
    said = "warning: --num_warmup_steps 2: the run has 2 steps and never reaches --learning_rate"
    assert said in capsys.readouterr().out
    run(*own_files, "--max_train_steps", 3, "--num_warmup_steps", 2)
    assert "never reaches" not in capsys.readouterr().out
