"""Pretrained models: loading, the head and the order of its classes, which parameters decay, the longest text."""

import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import fresh_accelerate, write_csv
from packaging import version
from safetensors.torch import load_file, save_file
from test_architectures import make
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import run_glue_no_trainer as script
from no_trainer.glue import Task


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
    assert f"--trust_remote_code runs the Python code of {tmp_path}" in capsys.readouterr().out


def test_asking_for_a_slow_tokenizer_that_is_no_more_is_answered(
    tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """transformers 5 ignores `use_fast`; a flag that does nothing should say so."""
    script.load_model(arguments(tiny_model), classes("a", "b"))
    assert "slow" not in capsys.readouterr().out
    script.load_model(arguments(tiny_model, "--use_slow_tokenizer"), classes("a", "b"))
    assert "--use_slow_tokenizer changes nothing" in capsys.readouterr().out


def test_a_new_head_for_regression_starts_at_the_mean(tiny_model: Path, tmp_path: Path) -> None:
    task = Task(["mse"], ["a"], None, None, mean=2.5)
    model, tokenizer, _ = script.load_model(arguments(tiny_model), task)
    assert model.classifier.bias.tolist() == [2.5]
    torch.nn.init.constant_(model.classifier.bias, 7.0)  # as if trained
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert script.load_model(arguments(tmp_path), task)[0].classifier.bias.tolist() == [7.0]


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


@pytest.mark.parametrize(("kind", "most"), [("bert", 64), ("roberta", 63), ("gpt2", 64), ("xlnet", 90), ("t5", 90)])
def test_max_length_is_what_the_model_has_positions_for(
    run: Callable,
    own_files: list,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    kind: str,
    most: int,
) -> None:
    """RoBERTa counts its positions from the padding's on; XLNet and T5 have no last one."""
    model = make(kind, tiny_model, tmp_path / "model")
    flags = ["--model_name_or_path", model, "--max_length", 90, "--pad_to_max_length", "--max_train_steps", 1]
    run(*own_files, *flags)
    out = capsys.readouterr().out
    assert f"cut at {most} tokens" in out
    assert out.count("--max_length 90 is more than the model can read") == (most < 90)


def copy(model: Path, folder: Path, **config: object) -> Path:
    """A copy of the model, with these entries in its configuration."""
    shutil.copytree(model, folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    return folder


def refused(folder: Path, capsys: pytest.CaptureFixture, *flags: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        script.load_model(arguments(folder, *flags), classes("a", "b"))
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_weights_of_another_family_are_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """All but a few would be drawn at random, without a word."""
    said = refused(copy(tiny_model, tmp_path / "m", model_type="distilbert"), capsys)
    assert re.search(
        r"\d+ of the \d+ weights below the head are not in its files, or not as its type, distilbert, has", said
    )
    assert "distilbert.embeddings.LayerNorm.bias" in said or "distilbert.transformer.layer.0" in said


@pytest.mark.parametrize("flags", [[], ["--ignore_mismatched_sizes"]])
def test_weights_of_another_shape_are_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list
) -> None:
    """And are not called a head, whatever the flag for heads says."""
    said = refused(copy(tiny_model, tmp_path / "m", intermediate_size=48), capsys, *flags)
    assert "intermediate.dense.weight ((64, 32) there, (48, 32) here)" in said
    assert "head of another size" not in said


def test_a_layer_that_the_files_do_not_have_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    said = refused(copy(tiny_model, tmp_path / "m", num_hidden_layers=3), capsys)
    assert "bert.encoder.layer.2" in said


def test_a_base_model_without_a_pooler_is_taken_and_told(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = load_file(copy(tiny_model, tmp_path / "m") / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    script.load_model(arguments(tmp_path / "m"), classes("a", "b"))
    out = capsys.readouterr().out
    assert "the model comes without a pooler: bert.pooler.dense.bias, bert.pooler.dense.weight start at random" in out


def test_the_printed_command_converts_a_pickle_and_nothing_else(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In a moment, without a head of its own, beside the tokenizer; a pickle that runs code is not run."""
    model = copy(tiny_model, tmp_path / "it's a model")
    weights = load_file(model / "model.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    command = refused(model, capsys).split("without running any: ")[1].strip()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], check=True, env=environment, capture_output=True)
    converted = load_file(model / "model.safetensors")
    assert all(torch.equal(weights[name], converted[name]) for name in weights)
    assert converted.keys() == weights.keys()
    script.load_model(arguments(model), classes("a", "b"))


def test_a_broken_config_beside_an_old_pickle_is_not_called_a_pickle(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = copy(tiny_model, tmp_path / "m")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "config.json").write_text("{")
    said = refused(model, capsys)
    assert "pickle" not in said
    assert "config.json" in said


def test_a_checkpoint_and_an_adapter_are_told_as_what_they_are(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(*own_files, "--max_train_steps", 1, "--checkpointing_steps", 1, "--output_dir", tmp_path / "out")
    capsys.readouterr()
    said = refused(tmp_path / "out" / "step_1", capsys)
    assert (
        "is a checkpoint, not a model: finish its run with --resume_from_checkpoint, then give its --output_dir"
        in said
    )
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "is an adapter of PEFT: merge it with merge_and_unload()" in refused(tmp_path / "adapter", capsys)


@pytest.mark.parametrize(
    ("kind", "changes"), [("deberta-v2", {"position_biased_input": False}), ("t5", {}), ("xlnet", {})]
)
def test_models_without_places_read_texts_of_any_length(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str, changes: dict
) -> None:
    """Whatever the tokenizer was made for."""
    model = make(kind, tiny_model, tmp_path / "model", **changes)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(model)
    rows = [("good bad " * 60, "ab"[number % 2]) for number in range(20)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    run("--train_file", file, "--model_name_or_path", model, "--max_length", 100, "--max_train_steps", 1)
    out = capsys.readouterr().out
    assert "cut at 100 tokens" in out
    assert "is more than the model can read" not in out


def test_a_model_that_returns_tuples_by_its_configuration(
    run: Callable, tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    assert run("--model_name_or_path", model, *own_files, "--max_train_steps", 1)["step"] == 1


def test_weights_without_a_place_in_the_model_are_told(
    run: Callable, tiny_model: Path, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A configuration with fewer layers than the files have drops the others."""
    model = shutil.copytree(tiny_model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    run("--model_name_or_path", model, *own_files, "--max_train_steps", 1)
    assert "have no place in the model that its config.json describes" in capsys.readouterr().out


def test_a_run_without_a_model_yet_says_how_to_get_one(
    run: Callable, three_checkpoints: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("config.json", "model.safetensors", "all_results.json"):
        (tmp_path / "out" / name).unlink()
    file = write_csv(tmp_path / "t.csv", ["text"], [["good"]])
    flags = ["--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0, "--do_predict", "--test_file", file]
    with pytest.raises(SystemExit):
        run(*flags, "--output_dir", tmp_path / "answers")
    assert "is a run that has not ended: finish it with --resume_from_checkpoint latest" in capsys.readouterr().err
