"""The head, the order of its classes, and which parameters decay."""

import json
import os
import platform
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, fresh_accelerate, write_csv
from packaging import version
from transformers import AutoConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

import run_glue_no_trainer as script
from no_trainer.glue import Task
from no_trainer.launch import dropout
from no_trainer.tasks import load_data


def arguments(folder: Path, *flags: str) -> Namespace:
    return script.parse_args(["--model_name_or_path", str(folder), "--task_name", "rte", *flags])


def classes(*names: str) -> Task:
    return Task(["accuracy"], ["a"], list(range(len(names))), list(names))


@pytest.fixture
def known_labels(tiny_model: Path, tmp_path: Path) -> Path:
    """A model that was trained on MNLI's classes in an order and case of its own."""
    names = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
    config = AutoConfig.from_pretrained(tiny_model, num_labels=3)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    for file in tiny_model.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_models_own_order_of_classes_is_kept(known_labels: Path) -> None:
    given = classes("entailment", "neutral", "contradiction")
    model, _, task = script.load_model(arguments(known_labels), given)
    assert given.values == [0, 1, 2]
    assert task.values == [2, 1, 0]
    assert model.config.id2label == {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}


def test_other_class_names_replace_the_models_with_a_warning(
    known_labels: Path, capsys: pytest.CaptureFixture
) -> None:
    model, _, task = script.load_model(arguments(known_labels), classes("a", "b", "c"))
    assert task.values == [0, 1, 2]
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert "(CONTRADICTION, NEUTRAL, ENTAILMENT) are not the data's (a, b, c)" in capsys.readouterr().out


def test_a_head_of_another_size_is_an_error_that_names_the_flag(
    known_labels: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as exit_:
        script.load_model(arguments(known_labels), classes("a", "b"))
    assert exit_.value.code == 2
    assert "--ignore_mismatched_sizes starts a new head" in capsys.readouterr().err
    model, *_ = script.load_model(arguments(known_labels, "--ignore_mismatched_sizes"), classes("a", "b"))
    assert model.classifier.out_features == 2


def test_regression_has_one_output(tiny_model: Path) -> None:
    model, *_ = script.load_model(arguments(tiny_model), Task(["mse"], ["a"], None, None))
    assert (model.num_labels, model.config.problem_type) == (1, "regression")


def test_a_folder_without_a_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        script.load_model(arguments(tmp_path), classes("a", "b"))
    assert exit_.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_decay_spares_biases_and_normalisation_layers(tiny_model: Path, family: str) -> None:
    if family == "bert":
        model = BertForSequenceClassification(AutoConfig.from_pretrained(tiny_model))
        norms = {name for name, _ in model.named_parameters() if "LayerNorm" in name}
    else:
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForSequenceClassification(LlamaConfig(vocab_size=20, **shape))
        norms = {name for name, _ in model.named_parameters() if name.endswith("norm.weight")}
    assert norms
    decayed, spared = script.parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    biases = {name for name in names.values() if name.endswith("bias")}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {names[id(parameter)] for parameter in spared["params"]} == biases | norms
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(names.values()) - biases - norms


def test_frozen_parameters_are_left_out(tiny_model: Path) -> None:
    model, *_ = script.load_model(arguments(tiny_model), classes("a", "b"))
    model.bert.requires_grad_(False)
    groups = script.parameter_groups(model, 0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_weights_are_trained_in_float32(tiny_model: Path, tmp_path: Path) -> None:
    """transformers 5 would load half-precision weights as they are, and AdamW would then lose small updates."""
    model = BertForSequenceClassification(AutoConfig.from_pretrained(tiny_model)).half()
    model.save_pretrained(tmp_path)
    for file in tiny_model.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    fresh_accelerate()
    model, *_ = script.load_model(arguments(tmp_path), classes("a", "b"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("flags", "used"), [([], "eager"), (["--attn_implementation", "sdpa"], "sdpa")])
def test_attention_is_eager_on_the_cpu_unless_asked_otherwise(tiny_model: Path, flags: list, used: str) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator, where transformers chooses")
    fresh_accelerate()
    model, *_ = script.load_model(arguments(tiny_model, *flags), classes("a", "b"))
    assert model.config._attn_implementation == used


def test_a_revision_of_a_hub_model(tiny_model: Path, capsys: pytest.CaptureFixture) -> None:
    """From a cache laid out as the hub's client leaves it, with one branch that is not `main`."""
    cache = Path(os.environ["HF_HOME"]) / "hub" / "models--someone--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_model, cache / "snapshots" / commit, dirs_exist_ok=True)
    (cache / "refs").mkdir(exist_ok=True)
    (cache / "refs" / "dev").write_text(commit)
    task = ["--model_name_or_path", "someone/tiny", "--task_name", "rte"]
    model, *_ = script.load_model(script.parse_args([*task, "--model_revision", "dev"]), classes("a", "b"))
    assert model.config.hidden_size == 32
    with pytest.raises(SystemExit):
        script.load_model(script.parse_args(task), classes("a", "b"))
    assert "someone/tiny" in capsys.readouterr().err


def test_code_of_a_model_runs_only_when_trusted(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for file in tiny_model.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "own.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n\n\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own_bert'\n\n\n"
        "class OwnModel(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "own_bert"}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as exit_:
        script.load_model(arguments(tmp_path), classes("a", "b"))
    assert exit_.value.code == 2
    assert "trust_remote_code" in capsys.readouterr().err
    model, *_ = script.load_model(arguments(tmp_path, "--trust_remote_code"), classes("a", "b"))
    assert type(model).__name__ == "OwnModel"
    assert f"--trust_remote_code runs whatever Python code comes with {tmp_path}" in capsys.readouterr().out


def test_asking_for_a_slow_tokenizer_that_is_no_more_is_answered(
    tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """transformers 5 ignores `use_fast`; a flag that does nothing should say so."""
    script.load_model(arguments(tiny_model), classes("a", "b"))
    assert "slow" not in capsys.readouterr().out
    script.load_model(arguments(tiny_model, "--use_slow_tokenizer"), classes("a", "b"))
    assert "--use_slow_tokenizer changes nothing" in capsys.readouterr().out


def test_dropout_on_the_cpu_is_dropout() -> None:
    """Against the definition: a share p of zeros, the rest 1 / (1 - p) times as large, gradients likewise."""
    for p in (0.1, 0.5):
        x = torch.full((1000, 1001), 3.0, requires_grad=True)
        torch.manual_seed(0)
        y = dropout(x, p)
        y.sum().backward()
        kept = y != 0
        assert abs(kept.float().mean().item() - (1 - p)) < 0.002  # four standard deviations at a million draws
        assert torch.allclose(y[kept], torch.tensor(3 / (1 - p)))
        assert torch.equal(x.grad, y.detach() / 3)
        neighbours = (kept[:, :-1] == kept[:, 1:]).float().mean().item()  # bits of one draw are independent
        assert abs(neighbours - (p**2 + (1 - p) ** 2)) < 0.002
        torch.manual_seed(0)
        assert torch.equal(dropout(x, p), y)
    x = torch.ones(3, 5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert dropout(x, 1.0).count_nonzero() == 0
    assert dropout(x.bfloat16(), 0.5).dtype == torch.bfloat16
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)


def test_a_models_dropout_on_the_cpu_is_the_fast_one(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, own_files: list, run: object
) -> None:
    seen = []
    monkeypatch.setattr(torch.nn.functional, "dropout", torch.nn.functional.dropout)  # put back at the end
    monkeypatch.setattr("no_trainer.launch.dropout", lambda x, *args, **options: seen.append(x.shape) or x)
    run(*own_files, "--max_train_steps", 1)
    assert any(len(shape) == 4 for shape in seen)  # attention
    assert any(len(shape) == 3 for shape in seen)  # hidden states


def test_the_mean_is_that_of_the_training_labels(tiny_model: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [["good", 1.5], ["bad", 2.5], ["fine", 5.0]] * 4)
    args = script.parse_args(["--model_name_or_path", str(tiny_model), "--train_file", str(file)])
    assert load_data(args)[1].mean == 3.0


def test_a_new_head_for_regression_starts_at_the_mean(tiny_model: Path, tmp_path: Path) -> None:
    task = Task(["mse"], ["a"], None, None, mean=2.5)
    model, tokenizer, _ = script.load_model(arguments(tiny_model), task)
    assert model.classifier.bias.tolist() == [2.5]
    torch.nn.init.constant_(model.classifier.bias, 7.0)  # as if trained
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert script.load_model(arguments(tmp_path), task)[0].classifier.bias.tolist() == [7.0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc than glibc's")
def test_memory_that_a_step_frees_is_there_for_the_next_one() -> None:
    """Tensors of 1 to 47 MB, as in a step: their pages are asked for in the first few of them only."""
    code = """
import resource, torch
from no_trainer.launch import tune_cpu
tune_cpu()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step = [torch.ones(megabytes << 18) for megabytes in (1, 2, 3, 5, 8, 3, 2, 47)]
    step = None
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = sorted(map(int, ended.stdout.split()[10:]))
    assert sum(pages[:-1]) < 10_000  # of 150,000; the heap may have to grow once more


def on_this_cpu(code: str, **environment: str) -> str:
    """What `code` prints in a process of its own after `tune_cpu`."""
    code = f"import os, torch\nfrom no_trainer.launch import tune_cpu\ntune_cpu()\n{code}"
    environment = os.environ | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


PRODUCTS = """
x, w = torch.randn(500, 384, requires_grad=True), torch.randn(1536, 384, requires_grad=True)
y = torch.nn.functional.linear(x, w)
y.backward(y.detach())
exact = x.double() @ w.double().T
for made, right in ((y, exact), (x.grad, exact @ w.double()), (w.grad, exact.T @ x.double())):
    print(((made - right).norm() / right.norm()).item())
"""


def test_products_in_fp32_are_fp32s_whatever_makes_them() -> None:
    errors = [float(line) for line in on_this_cpu(PRODUCTS).splitlines()]
    assert len(errors) == 3
    assert max(errors) < 1e-6  # in bf16 3e-3


CPU = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""


@pytest.mark.skipif("AuthenticAMD" not in CPU or "avx512bw" not in CPU, reason="not AMD's CPU with AVX-512")
def test_on_amds_cpus_onednn_makes_the_products_and_keeps_those_of_32_shapes() -> None:
    code = """
x = torch.randn(500, 384)
for columns in (48, *range(100, 140), 48):
    x @ torch.randn(384, columns)
"""
    lines = [line for line in on_this_cpu(code, ONEDNN_VERBOSE="2").splitlines() if "500x384:384x48," in line]
    assert sum(",exec," in line for line in lines) == 2
    assert sum("create:cache_miss" in line for line in lines) == 2  # forty others came between
    assert all("src:f32" in line and "wei:f32" in line and "avx512_core," in line for line in lines)


def test_a_models_classes_may_be_called_by_numbers(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Numbers that are not in quotes: transformers hands them on as they are, or, before 5.20, refuses them."""
    shutil.copytree(tiny_model, tmp_path / "numbers")
    config = json.loads((tiny_model / "config.json").read_text()) | {"id2label": {"0": 0, "1": 1}}
    (tmp_path / "numbers" / "config.json").write_text(json.dumps(config))
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [["good", 1], ["bad", 0]] * 4)
    flags = ["--model_name_or_path", tmp_path / "numbers", "--validation_file", file, "--num_train_epochs", 0]
    if version.parse(transformers.__version__) >= version.parse("5.20"):
        assert "eval_accuracy" in run(*flags)
        return
    with pytest.raises(SystemExit) as refused:
        run(*flags)
    assert refused.value.code == 2
    assert "id2label" in capsys.readouterr().err
