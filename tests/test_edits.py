"""The patches in examples/edits: each applies, stays small, and does what it says."""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from conftest import (
    ROOT,
    TORCHRUN,
    fresh_accelerate,
    log_lines,
    prepared,
    rows_of,
    sentences,
    without_dropout,
    write_csv,
)
from datasets import Dataset
from safetensors.torch import load_file
from test_loop import CountSyncs
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.models.bert.modeling_bert import BertIntermediate

import run_glue_no_trainer as script
from no_trainer.batches import GlobalBatchSampler, tokenize
from no_trainer.glue import Task

EDITS = ROOT / "examples" / "edits"
NAMES = sorted(patch.stem for patch in EDITS.glob("*.patch"))
IN_MAIN = [name for name in NAMES if name not in ("several_seeds", "cross_validation")]  # which are around it
STEP = ["--max_train_steps", 1, "--num_warmup_steps", 0, "--logging_steps", 1, "--max_grad_norm", 0]


def apply(name: str, folder: Path, *tool: str) -> Path:
    """The script in `folder`, with the patch applied to it."""
    folder.mkdir()
    file = Path(shutil.copy(ROOT / "run_glue_no_trainer.py", folder))
    patch = (EDITS / f"{name}.patch").read_text(encoding="utf-8")
    command = tool or ("git", "apply", "-")
    ended = subprocess.run(command, input=patch, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "fuzz" not in ended.stdout
    return file


def apply_two(first: str, second: str, folder: Path) -> Path:
    """The script in `folder`, with both patches applied to it, as people do it."""
    file = apply(first, folder)
    command = ["patch", "--no-backup-if-mismatch", file, EDITS / f"{second}.patch"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    return file


def parts(name: str) -> tuple[list[str], list[str], int]:
    """A patch's reason, the lines that it adds, and the number of its hunks."""
    lines = (EDITS / f"{name}.patch").read_text(encoding="utf-8").splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("diff --git"))
    added = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]
    return lines[:begin], added, sum(line.startswith("@@") for line in lines)


def test_there_are_twenty() -> None:
    assert len(NAMES) >= 20


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_is_small_and_clean(name: str, tmp_path: Path) -> None:
    reason, added, hunks = parts(name)
    assert len(reason) == 2
    assert all(60 < len(line) < 120 for line in reason)
    assert len(added) <= 15
    assert hunks <= 3
    assert not [line for line in added if ".cuda(" in line]
    file = apply(name, tmp_path / "git")
    assert file.read_bytes() == apply(name, tmp_path / "patch", "patch", "-p1").read_bytes()
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(file)]
        ended = subprocess.run(ruff, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout


def test_the_table_is_right() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \| (\d+) \|.*\|$", (EDITS / "README.md").read_text(), re.MULTILINE)
    measured = {name: (len(added), hunks) for name in NAMES for _, added, hunks in [parts(name)]}
    assert {name: (int(lines), int(hunks)) for name, lines, hunks in rows} == measured


@pytest.fixture
def run_edited(tiny_model: Path, tmp_path: Path) -> Callable[..., dict]:
    """Run the script, changed by the patch of this name, with these flags on the tiny model; returns its results."""
    loaded: dict[str, ModuleType] = {}

    def go(name: str, *flags: object) -> dict:
        if name not in loaded:
            file = apply(name, tmp_path / f"edited_{name}")
            spec = importlib.util.spec_from_file_location(f"edited_{name}", file)
            loaded[name] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded[name])
        edited = loaded[name]
        fresh_accelerate()
        return edited.main(edited.parse_args(["--model_name_or_path", str(tiny_model), *map(str, flags)]))

    return go


@pytest.fixture
def no_dropout(tiny_model: Path, tmp_path: Path) -> Path:
    return without_dropout(tiny_model, tmp_path / "no_dropout")


@pytest.fixture(scope="module")
def sure_model(tiny_model: Path, own_files: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout that answers own_files rightly."""
    folder = tmp_path_factory.mktemp("sure")
    fresh_accelerate()
    flags = [*own_files, "--model_name_or_path", str(without_dropout(tiny_model, folder / "start"))]
    flags += ["--learning_rate", "3e-3", "--num_train_epochs", "6", "--output_dir", str(folder / "model")]
    assert script.main(script.parse_args(flags))["eval_accuracy"] == 1.0
    return folder / "model"


@pytest.fixture
def teacher(sure_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that takes each class for the other: the sure model, with their names exchanged."""
    shutil.copytree(sure_model, tmp_path / "teacher")
    config = json.loads((sure_model / "config.json").read_text())
    config |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("TEACHER", str(tmp_path / "teacher"))
    return tmp_path / "teacher"


def first_batch(*flags: object) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model and the batch that a run with these flags starts with."""
    model, tokenizer, data, sampler = prepared(*flags)
    rows = rows_of(data, next(iter(sampler)))
    return model, dict(tokenizer.pad(rows, pad_to_multiple_of=8, return_tensors="pt"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def first_line(folder: Path) -> dict[str, float]:
    return log_lines(folder)[0]


@pytest.mark.parametrize("name", IN_MAIN)
@pytest.mark.usefixtures("teacher")
def test_accumulation_bf16_and_going_on_from_a_checkpoint(
    run_edited: Callable, own_files: list, tmp_path: Path, name: str
) -> None:
    """A run that goes on, before and after the evaluation of an epoch, ends in the same bytes."""
    flags = [*own_files, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]
    flags += ["--mixed_precision", "bf16", "--max_train_steps", 10, "--learning_rate", 1e-3]
    results = run_edited(name, *flags, "--output_dir", tmp_path / "whole", "--checkpointing_steps", 7)
    assert math.isfinite(results["train_loss"])
    run_edited(name, *flags, "--output_dir", tmp_path / "epochs", "--checkpointing_steps", "epoch")
    for checkpoint in (tmp_path / "whole" / "step_7", tmp_path / "epochs" / "epoch_0"):
        resumed = tmp_path / f"from_{checkpoint.name}"
        run_edited(name, *flags, "--output_dir", resumed, "--resume_from_checkpoint", checkpoint)
        assert (resumed / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


# AveragedModel asks a number that it keeps on the host
@pytest.mark.parametrize("name", [name for name in IN_MAIN if name != "ema"])
@pytest.mark.usefixtures("teacher")
def test_a_step_does_not_wait_for_the_device(run_edited: Callable, own_files: list, name: str) -> None:
    counts = []
    for steps in (2, 2, 7):
        with CountSyncs() as counter:
            run_edited(name, *own_files, "--max_train_steps", steps, "--logging_steps", 100)
        counts.append(counter.count)
    assert counts[1] == counts[2]  # the first run also fills caches


def test_freeze_encoder(run_edited: Callable, own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    run_edited("freeze_encoder", *own_files, "--learning_rate", 1e-2, "--max_train_steps", 3, "--output_dir", tmp_path)
    start = first_batch(*own_files, "--model_name_or_path", tiny_model)[0].state_dict()
    moved = {name for name, weight in weights(tmp_path).items() if not torch.equal(weight, start[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_label_smoothing(
    run: Callable, run_edited: Callable, own_files: list, sure_model: Path, tmp_path: Path
) -> None:
    flags = [*own_files, *STEP, "--model_name_or_path", sure_model]
    run(*flags, "--output_dir", tmp_path / "plain")
    run_edited("label_smoothing", *flags, "--output_dir", tmp_path / "smooth")
    model, batch = first_batch(*own_files, "--model_name_or_path", sure_model)
    logs = model(**batch).logits.log_softmax(-1)
    true = F.one_hot(batch["labels"], 2)
    expected = -((0.9 * true + 0.1 / 2) * logs).sum(-1).mean().item()
    assert first_line(tmp_path / "smooth")["loss"] == pytest.approx(expected, abs=1e-5)
    assert first_line(tmp_path / "smooth")["loss"] > first_line(tmp_path / "plain")["loss"] + 0.01


def test_focal_loss(run: Callable, run_edited: Callable, no_dropout: Path, tmp_path: Path) -> None:
    """Thirty rows of one class, twenty of the other: one counts for 50 / 2 / 30, the other for 50 / 2 / 20."""
    rows = [row for row in sentences(200) if row[1] == 0][:30] + [row for row in sentences(200) if row[1] == 1][:20]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], [(text, "ab"[label]) for text, label in rows])
    files = ["--train_file", train, "--validation_file", train, "--model_name_or_path", no_dropout]
    run(*files, *STEP, "--output_dir", tmp_path / "plain")
    run_edited("focal_loss", *files, *STEP, "--output_dir", tmp_path / "focal")
    model, batch = first_batch(*files)
    probability = model(**batch).logits.softmax(-1)[range(8), batch["labels"]]
    weight = torch.tensor([50 / 2 / 30, 50 / 2 / 20])[batch["labels"]]
    assert {0, 1} == set(batch["labels"].tolist())
    expected = (weight * (1 - probability) ** 2 * -probability.log()).mean().item()
    assert first_line(tmp_path / "focal")["loss"] == pytest.approx(expected, abs=1e-5)
    assert first_line(tmp_path / "focal")["loss"] < first_line(tmp_path / "plain")["loss"]


def test_layerwise_lr_decay(run_edited: Callable, own_files: list, no_dropout: Path, tmp_path: Path) -> None:
    """AdamW's first step is as long as the learning rate, wherever there is a gradient: here it shows each one's."""
    flags = [*own_files, *STEP, "--model_name_or_path", no_dropout, "--checkpointing_steps", 1]
    run_edited("layerwise_lr_decay", *flags, "--learning_rate", 1e-3, "--output_dir", tmp_path)
    model, _ = first_batch(*own_files, "--model_name_or_path", no_dropout)
    ends = weights(tmp_path)
    below = {"embeddings": 3, "layer.0": 2, "layer.1": 1, "pooler": 0, "classifier": 0}
    for name, start in model.state_dict().items():
        if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding
            (depth,) = [depth for part, depth in below.items() if part in name]
            assert (ends[name] - start).abs().max().item() == pytest.approx(1e-3 * 0.9**depth, rel=0.03), name
    groups = torch.load(tmp_path / "step_1" / "optimizer.bin")["param_groups"]
    indices = sorted(index for group in groups for index in group["params"])
    assert indices == list(range(len(list(model.parameters()))))
    assert first_line(tmp_path)["learning_rate"] == 1e-3


def test_r_drop_without_dropout_is_the_plain_loss(
    run: Callable, run_edited: Callable, own_files: list, no_dropout: Path, tmp_path: Path
) -> None:
    flags = [*own_files, "--model_name_or_path", no_dropout, "--max_train_steps", 3, "--logging_steps", 1]
    run(*flags, "--output_dir", tmp_path / "plain")
    run_edited("r_drop", *flags, "--output_dir", tmp_path / "r_drop")
    plain, same = ([line["loss"] for line in log_lines(tmp_path / name)[:3]] for name in ("plain", "r_drop"))
    assert same == pytest.approx(plain, abs=1e-5)


def test_r_drop(run_edited: Callable, own_files: list, sure_model: Path, tmp_path: Path) -> None:
    shutil.copytree(sure_model, tmp_path / "start")
    config = json.loads((sure_model / "config.json").read_text()) | {"hidden_dropout_prob": 0.2}
    (tmp_path / "start" / "config.json").write_text(json.dumps(config))
    flags = [*own_files, "--model_name_or_path", tmp_path / "start"]
    run_edited("r_drop", *flags, *STEP, "--output_dir", tmp_path / "out")
    model, batch = first_batch(*flags)
    set_seed(42)
    output = model.train()(**{name: torch.cat([value, value]) for name, value in batch.items()})
    one, two = output.logits[:8].softmax(-1), output.logits[8:].softmax(-1)
    divergence = ((one - two) * (one.log() - two.log())).sum(-1).mean() / 2
    assert divergence.item() > 1e-4
    expected = (F.cross_entropy(output.logits, batch["labels"].repeat(2)) + divergence).item()
    assert first_line(tmp_path / "out")["loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cuts", [1, 2])
def test_fgm(
    run: Callable, run_edited: Callable, own_files: list, no_dropout: Path, tmp_path: Path, cuts: int
) -> None:
    """Each device batch is attacked along its own gradient; at a learning rate of 0, nothing of that is left."""
    flags = [*own_files, *STEP, "--model_name_or_path", no_dropout, "--learning_rate", 0]
    flags += ["--per_device_train_batch_size", 8 // cuts, "--gradient_accumulation_steps", cuts]
    run(*flags, "--output_dir", tmp_path / "plain")
    run_edited("fgm", *flags, "--output_dir", tmp_path / "fgm")
    assert (tmp_path / "fgm" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()

    model, batch = first_batch(*own_files, "--model_name_or_path", no_dropout)
    words = model.bert.embeddings.word_embeddings.weight
    total = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for piece in ({name: value.chunk(cuts)[k] for name, value in batch.items()} for k in range(cuts)):
        clean = torch.autograd.grad(model(**piece).loss, list(model.parameters()))
        (at,) = (k for k, parameter in enumerate(model.parameters()) if parameter is words)
        start = words.detach().clone()
        words.data += clean[at] / clean[at].norm()
        attacked = torch.autograd.grad(model(**piece).loss, list(model.parameters()))
        words.data = start
        total = [sum(each) for each in zip(total, clean, attacked, strict=True)]
    expected = torch.nn.utils.get_total_norm([gradient / cuts for gradient in total]).item()
    assert first_line(tmp_path / "fgm")["grad_norm"] == pytest.approx(expected, rel=1e-4)
    assert first_line(tmp_path / "fgm")["grad_norm"] > 1.5 * first_line(tmp_path / "plain")["grad_norm"]


def evaluated(run: Callable, own_files: list, folder: Path) -> float:
    """The loss of the saved model."""
    return run(*own_files, "--model_name_or_path", folder, "--num_train_epochs", 0)["eval_loss"]


def test_ema(run: Callable, run_edited: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, "--learning_rate", 1e-2, "--max_train_steps", 11, "--checkpointing_steps", 1]
    results = run_edited("ema", *flags, "--output_dir", tmp_path)
    average = weights(tmp_path / "step_1")
    for step in range(2, 12):
        latest = weights(tmp_path / f"step_{step}")
        average = {name: 0.99 * average[name] + 0.01 * latest[name] for name in average}
    saved = weights(tmp_path)
    assert max((saved[name] - average[name]).abs().max() for name in average) < 1e-6
    assert max((saved[name] - latest[name]).abs().max() for name in average) > 1e-2
    assert results["eval_loss"] == pytest.approx(evaluated(run, own_files, tmp_path), abs=1e-6)


def test_schedule_free(run: Callable, run_edited: Callable, own_files: list, tmp_path: Path) -> None:
    """A checkpoint holds y, at which gradients are taken, and z; what is evaluated and saved is their x."""
    flags = [*own_files, "--learning_rate", 1e-2, "--max_train_steps", 11, "--checkpointing_steps", 11]
    results = run_edited("schedule_free", *flags, "--logging_steps", 1, "--output_dir", tmp_path)
    assert {line["learning_rate"] for line in log_lines(tmp_path) if "loss" in line} == {1e-2}
    saved, y = weights(tmp_path), weights(tmp_path / "step_11")
    optimizer = torch.load(tmp_path / "step_11" / "optimizer.bin")
    model, _ = first_batch(*own_files, "--model_name_or_path", tmp_path)
    ordered = [p for group in script.parameter_groups(model, 0.0) for p in group["params"]]
    index_of = {id(parameter): index for index, parameter in enumerate(ordered)}
    for name, parameter in model.named_parameters():
        z = optimizer["state"][index_of[id(parameter)]]["z"]
        x = (y[name] - (1 - 0.9) * z) / 0.9
        assert torch.allclose(saved[name], x, atol=1e-6), name
    assert max((saved[name] - y[name]).abs().max() for name in y) > 1e-3
    assert results["eval_loss"] == pytest.approx(evaluated(run, own_files, tmp_path), abs=1e-6)


@pytest.mark.usefixtures("teacher")
def test_distillation(run_edited: Callable, own_files: list, tmp_path: Path) -> None:
    """The teacher takes each class for the other, and counts them in another order: so does the student."""
    flags = [*own_files, "--learning_rate", 3e-3, "--num_train_epochs", 6]
    results = run_edited("distillation", *flags, "--output_dir", tmp_path / "student")
    assert results["eval_accuracy"] == 0.0


def test_distillations_loss(
    run_edited: Callable, own_files: list, no_dropout: Path, teacher: Path, tmp_path: Path
) -> None:
    flags = [*own_files, "--model_name_or_path", no_dropout]
    run_edited("distillation", *flags, *STEP, "--output_dir", tmp_path / "student")
    model, batch = first_batch(*flags)
    output = model(**batch)
    taught = AutoModelForSequenceClassification.from_pretrained(teacher)(**batch).logits.flip(-1) / 2
    goal, soft = taught.softmax(-1), (output.logits / 2).softmax(-1)
    expected = 0.1 * output.loss + 0.9 * 4 * (goal * (goal / soft).log()).sum(-1).mean()
    assert first_line(tmp_path / "student")["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_lora(
    run: Callable,
    run_edited: Callable,
    own_files: list,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    flags = [*own_files, "--learning_rate", 1e-2, "--max_train_steps", 3, "--checkpointing_steps", 3]
    results = run_edited("lora", *flags, "--output_dir", tmp_path)
    start = first_batch(*own_files, "--model_name_or_path", tiny_model)[0].state_dict()
    trained, merged, learned = weights(tmp_path / "step_3"), weights(tmp_path), 0
    for name, weight in trained.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
        if "lora_" in name or ".modules_to_save" in name:
            learned += weight.numel()
        else:
            assert torch.equal(weight, start[plain]), name
    total = sum(weight.numel() for weight in trained.values())
    assert f"LoRA trains {learned:,} of {total:,} parameters ({learned / total:.2%})" in capsys.readouterr().out

    assert merged.keys() == start.keys()
    for name, weight in start.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (trained.get(f"{path}.lora_{letter}.default.weight") for letter in "AB")
        if name.startswith("classifier"):
            assert torch.equal(
                merged[name], trained[f"base_model.model.{name}".replace("r.", "r.modules_to_save.default.")]
            )
            assert not torch.equal(merged[name], weight)
        elif a is not None:
            assert torch.allclose(merged[name], weight + 2 * b @ a, atol=1e-6)
            assert not torch.equal(merged[name], weight)
        else:
            assert torch.equal(merged[name], weight), name
    assert not list(tmp_path.glob("adapter*"))
    assert pipeline("text-classification", str(tmp_path))("good")[0]["label"] in ("positive", "negative")
    assert results["eval_loss"] == pytest.approx(evaluated(run, own_files, tmp_path), abs=1e-5)


def start(file: Path, *flags: object, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess:
    """Run an edited script as a process of its own."""
    command = [str(part) for part in (*launcher, file, *flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(sys.executable,), TORCHRUN], ids=["one_process", "two_processes"])
def test_several_seeds(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    file = apply("several_seeds", tmp_path / "edited")
    out = tmp_path / "out"
    flags = [*own_files, "--model_name_or_path", tiny_model, "--learning_rate", 3e-3, "--max_train_steps", 4]
    ended = start(file, *flags, "--output_dir", out, launcher=launcher)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in out.iterdir()) == [f"seed_{seed}" for seed in (1, 2, 3, 4, 5)]
    results = [json.loads((out / f"seed_{seed}" / "all_results.json").read_text()) for seed in (1, 2, 3, 4, 5)]
    assert [result["seed"] for result in results] == [1, 2, 3, 4, 5]
    for name in ("eval_accuracy", "eval_macro_f1", "eval_f1", "eval_loss"):
        values = [result[name] for result in results]
        spread = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} (5 seeds)"
        assert f"{name}: {spread}" in ended.stdout
    if launcher != TORCHRUN:  # whose global batch is of two processes
        run(*flags, "--seed", 3, "--output_dir", tmp_path / "alone")
        alone, third = ((path / "model.safetensors").read_bytes() for path in (tmp_path / "alone", out / "seed_3"))
        assert alone == third


def test_evaluate_every(
    run: Callable, run_edited: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second step here, with dropout: the same weights as without it."""
    patch = (EDITS / "evaluate_every.patch").read_text(encoding="utf-8")
    (tmp_path / "evaluate_every.patch").write_text(patch.replace("% 100 ==", "% 2 =="))
    flags = [*own_files, "--max_train_steps", 10, "--logging_steps", 5, "--learning_rate", 1e-3, "--output_dir"]
    run(*flags, tmp_path / "plain")
    monkeypatch.setattr(sys.modules[__name__], "EDITS", tmp_path)
    run_edited("evaluate_every", *flags, tmp_path / "edited")
    seen = [line["step"] for line in log_lines(tmp_path / "edited") if "eval_accuracy" in line]
    assert seen == [2, 4, 6, 8, 8, 10]  # step 8 is also the end of the first epoch
    plain, edited = (tmp_path / name / "model.safetensors" for name in ("plain", "edited"))
    assert plain.read_bytes() == edited.read_bytes()


IMBALANCED = [row for row in sentences(200) if row[1] == 0][:40] + [row for row in sentences(200) if row[1] == 1][:10]


@pytest.fixture
def imbalanced(no_dropout: Path, tmp_path: Path) -> list:
    """Forty rows of one class, ten of the other."""
    train = write_csv(tmp_path / "train.csv", ["text", "label"], [(text, "ab"[label]) for text, label in IMBALANCED])
    return ["--train_file", train, "--validation_file", train, "--model_name_or_path", no_dropout]


def test_class_weights(run: Callable, run_edited: Callable, imbalanced: list, tmp_path: Path) -> None:
    """A row of the larger class counts for 50 / 2 / 40, one of the smaller for 50 / 2 / 10."""
    run_edited("class_weights", *imbalanced, *STEP, "--output_dir", tmp_path / "out")
    model, batch = first_batch(*imbalanced)
    weight = torch.tensor([50 / 2 / 40, 50 / 2 / 10])[batch["labels"]]
    expected = (weight * F.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")).mean().item()
    assert first_line(tmp_path / "out")["loss"] == pytest.approx(expected, abs=1e-5)
    cut = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4, "--output_dir", tmp_path / "cut"]
    run_edited("class_weights", *imbalanced, *STEP, *cut)
    assert first_line(tmp_path / "cut")["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["focal_loss", "class_weights", "oversampling"])
def test_what_counts_the_training_rows_predicts_without_them(
    run: Callable, run_edited: Callable, own_files: list, tmp_path: Path, name: str
) -> None:
    run(*own_files, "--max_train_steps", 2, "--output_dir", tmp_path / "model")
    new = write_csv(tmp_path / "new.csv", ["text"], [[text] for text, _ in sentences(9)])
    flags = ["--model_name_or_path", tmp_path / "model", "--num_train_epochs", 0, "--do_predict", "--test_file", new]
    run_edited(name, *flags, "--output_dir", tmp_path / "out")
    assert len((tmp_path / "out" / "predict_results.csv").read_text().splitlines()) == 10


def test_oversampling(run_edited: Callable, imbalanced: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 epochs of 56 rows, half are of the class that has a fifth of the data; each epoch is another draw."""
    drawn = []
    batches_of = GlobalBatchSampler.global_batches
    monkeypatch.setattr(
        GlobalBatchSampler, "global_batches", lambda self: drawn.append(batches_of(self)) or batches_of(self)
    )
    run_edited("oversampling", *imbalanced, "--num_train_epochs", 30, "--output_dir", tmp_path / "out")
    assert [rows.shape for rows in drawn] == [(7, 8)] * 30
    labels = np.array([label for _, label in IMBALANCED])
    assert np.mean([labels[rows].mean() for rows in drawn]) == pytest.approx(0.5, abs=0.05)  # four standard errors
    assert not np.array_equal(np.sort(drawn[0].ravel()), np.sort(drawn[1].ravel()))


def test_mean_pooling(
    run: Callable,
    run_edited: Callable,
    own_files: list,
    no_dropout: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """A model of one's own: trained on the mean, saved by its own names, read again by the script that knows it."""
    flags = [*own_files, "--model_name_or_path", no_dropout, "--learning_rate", 1e-3]
    results = run_edited("mean_pooling", *flags, "--num_train_epochs", 2, "--output_dir", tmp_path / "out")
    said = capsys.readouterr().out
    saved = weights(tmp_path / "out")
    assert {"head.weight", "head.bias", "encoder.embeddings.word_embeddings.weight"} <= saved.keys()
    assert "to ask it" not in said
    assert "pipeline(" not in (tmp_path / "out" / "README.md").read_text()

    encoder = AutoModel.from_pretrained(no_dropout)
    own = {name.removeprefix("encoder."): weight for name, weight in saved.items() if "encoder." in name}
    encoder.load_state_dict({name: own[name] for name in encoder.state_dict()})
    tokenizer, losses = AutoTokenizer.from_pretrained(tmp_path / "out"), []
    for text, label in sentences(23, seed=1):
        hidden = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)
        logits = F.linear(hidden, saved["head.weight"], saved["head.bias"])
        losses.append(F.cross_entropy(logits, torch.tensor([label])).item())
    assert results["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-5)

    again = [*own_files, "--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0]
    assert run_edited("mean_pooling", *again)["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
    with pytest.raises(SystemExit) as exit_:
        run(*again)
    assert exit_.value.code == 2
    assert "holds a MeanPooling: use the script that defines this class" in capsys.readouterr().err


@pytest.mark.slow
def test_cross_validation(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """Each of the 61 rows is validated on once."""
    file = apply("cross_validation", tmp_path / "edited")
    flags = [*own_files[:2], "--model_name_or_path", tiny_model, "--learning_rate", 3e-3, "--max_train_steps", 4]
    ended = start(file, *flags, "--output_dir", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    results = [json.loads((tmp_path / "out" / f"fold_{k}" / "all_results.json").read_text()) for k in range(5)]
    held = [int(rows) for rows in re.findall(r"(\d+) rows of 61 are held out", ended.stdout)]
    assert len(held) == 5
    assert sum(held) == 61
    assert len({result["validation_data"] for result in results}) == 5
    values = [result["eval_accuracy"] for result in results]
    assert f"eval_accuracy: {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} (5 folds)" in ended.stdout
    ended = start(file, *flags, "--validation_file", own_files[3], "--output_dir", tmp_path / "fixed")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "cross-validation takes a --train_file and no --validation_file" in ended.stderr


def test_gradual_unfreezing(run_edited: Callable, own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """Eight steps an epoch: after one the encoder is where it was; the rates are those of the schedule, times 20."""
    flags = [*own_files, "--num_train_epochs", 2, "--learning_rate", 1e-3, "--num_warmup_steps", 0]
    flags += ["--logging_steps", 1, "--checkpointing_steps", "epoch", "--weight_decay", 0.1]
    run_edited("gradual_unfreezing", *flags, "--output_dir", tmp_path)
    start = first_batch(*own_files, "--model_name_or_path", tiny_model)[0].state_dict()
    for folder, moves in ((tmp_path / "epoch_0", False), (tmp_path, True)):
        ends = weights(folder)
        words = "bert.embeddings.word_embeddings.weight"
        assert torch.equal(ends[words], start[words]) != moves
        assert not torch.equal(ends["classifier.weight"], start["classifier.weight"])
    rates = [line["learning_rate"] for line in log_lines(tmp_path) if "loss" in line]
    assert rates == pytest.approx([1e-3 * (20 if step < 8 else 1) * (16 - step) / 16 for step in range(16)])


def test_head_and_tail(run_edited: Callable, own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    run_edited(
        "head_and_tail", *own_files, "--max_train_steps", 1, "--max_length", 8, "--output_dir", tmp_path / "out"
    )
    edited = sys.modules["edited_head_and_tail"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    task = Task(["accuracy"], ["text"], ["a", "b"], ["a", "b"], max_length=8)
    words = ["good", "bad", "fine", "poor", "great", "awful", "nice", "dull", "good", "bad"]
    rows = {"text": [" ".join(words), "good bad"], "label": ["a", "b"]}
    whole, short = (tokenizer(text)["input_ids"] for text in rows["text"])
    assert len(whole) == 12
    assert edited.make_encode(tokenizer, task)(rows)["input_ids"] == [whole[:2] + whole[-6:], short]
    data = tokenize({"train": Dataset.from_dict(rows)}, edited.make_encode(tokenizer, task), tokenizer, task)["train"]
    assert data["length"][:] == [12, 4]


def test_gradient_checkpointing(
    run: Callable, run_edited: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is on: the second pass of a layer draws what the first one drew. Each layer passes twice in a step.

    The steps are 4, and one before them that tries whether the batch fits the memory.
    """
    calls = []
    forward = BertIntermediate.forward
    monkeypatch.setattr(BertIntermediate, "forward", lambda *args: calls.append(1) or forward(*args))
    flags = [*own_files, "--max_train_steps", 4, "--logging_steps", 1, "--learning_rate", 1e-3]
    counts = []
    for name, go in (("plain", run), ("edited", lambda *flags: run_edited("gradient_checkpointing", *flags))):
        calls.clear()
        go(*flags, "--output_dir", tmp_path / name)
        counts.append(len(calls))
    assert counts[1] - counts[0] == (4 + 1) * 2
    plain, edited = (log_lines(tmp_path / name) for name in ("plain", "edited"))
    assert [line["loss"] for line in edited[:4]] == pytest.approx([line["loss"] for line in plain[:4]], abs=1e-6)


def test_focal_loss_and_oversampling_go_together(imbalanced: list, tiny_model: Path, tmp_path: Path) -> None:
    """Also in the second epoch: what is drawn does not depend on the names that a loss uses."""
    file = apply_two("focal_loss", "oversampling", tmp_path / "edited")
    ended = start(file, *imbalanced, "--model_name_or_path", tiny_model, "--num_train_epochs", 2)
    assert ended.returncode == 0, ended.stderr
    assert "epoch 2, step 14" in ended.stdout


def test_unfreezing_keeps_the_rates_of_the_layers(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    file = apply_two("layerwise_lr_decay", "gradual_unfreezing", tmp_path / "edited")
    flags = [*own_files, "--model_name_or_path", tiny_model, "--num_train_epochs", 2, "--learning_rate", 1e-3]
    flags += ["--lr_scheduler_type", "constant", "--checkpointing_steps", 4, "--output_dir", tmp_path / "out"]
    ended = start(file, *flags)
    assert ended.returncode == 0, ended.stderr
    rates = []
    for step in (4, 12):  # in the first epoch and in the second
        saved = torch.load(tmp_path / "out" / f"step_{step}" / "optimizer.bin", weights_only=True)
        rates.append([group["lr"] for group in saved["param_groups"]])
    assert len(set(rates[1])) > 2
    assert max(rates[1]) == pytest.approx(1e-3)
    assert rates[0] == pytest.approx([20 * rate for rate in rates[1]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["several_seeds", "cross_validation"])
def test_several_runs_go_on_with_one_command(name: str, tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """Stopped in the second of five, without a word about checkpoints: those that have ended are not trained again."""
    file, out = apply(name, tmp_path / "edited"), tmp_path / "out"
    flags = [*own_files[:2], "--model_name_or_path", tiny_model, "--logging_steps", 1, "--output_dir", out]
    command = [sys.executable, file, *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([str(word) for word in command], env=environment, stdout=subprocess.PIPE, text=True)
    for line in run.stdout:
        if line.startswith("step 2 of") and len(list(out.iterdir())) == 2:
            run.send_signal(signal.SIGTERM)
            break
    rest = run.stdout.read()
    assert run.wait(timeout=60) == 143, rest
    first = weights(min(out.iterdir()))
    ended = start(file, *flags, "--resume_from_checkpoint", "latest")
    assert ended.returncode == 0, ended.stderr
    assert "eval_accuracy: " in ended.stdout
    assert len(list(out.iterdir())) == 5
    again = weights(min(out.iterdir()))
    assert all(torch.equal(again[name], first[name]) for name in first)
