"""Evaluating and predicting without training, the files that come of it, and the best model."""

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import log_lines, sentences, write_csv
from safetensors.torch import load_file
from transformers import pipeline

import run_glue_no_trainer as script
from no_trainer.folder import checkpoints
from no_trainer.glue import GLUE
from no_trainer.results import all_results, keep_model
from no_trainer.tasks import load_data

TRAIN = ["--learning_rate", 3e-3, "--num_train_epochs", 6]


def table(file: Path, delimiter: str = ",") -> list[dict]:
    with open(file, newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL))


@pytest.fixture
def trained(run: Callable, own_files: list, tmp_path: Path) -> Path:
    run(*own_files, *TRAIN, "--output_dir", tmp_path / "trained")
    return tmp_path / "trained"


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "test.csv", ["text"], [[text] for text, _ in sentences(37, seed=2)])


def test_predictions_of_own_data(
    run: Callable, own_files: list, trained: Path, unlabelled: Path, tmp_path: Path
) -> None:
    """With the training, after it, and by transformers' own pipeline: the same answers in the order of the file."""
    run(*own_files, *TRAIN, "--do_predict", "--test_file", unlabelled, "--output_dir", tmp_path / "a")
    only = ["--num_train_epochs", 0, "--do_predict", "--test_file", unlabelled, "--output_dir", tmp_path / "b"]
    run("--model_name_or_path", trained, *only)
    first, second = (table(tmp_path / name / "predict_results.csv") for name in "ab")
    assert [row["label"] for row in first] == [row["label"] for row in second]
    assert list(second[0]) == ["label", "probability", "probability_negative", "probability_positive"]
    answers = pipeline("text-classification", str(trained), device="cpu")([text for text, _ in sentences(37, seed=2)])
    for row, answer in zip(second, answers, strict=True):
        assert row["label"] == answer["label"]
        assert float(row["probability"]) == pytest.approx(answer["score"], abs=1e-5)
        assert float(row[f"probability_{answer['label']}"]) == float(row["probability"])
        assert float(row["probability_negative"]) + float(row["probability_positive"]) == pytest.approx(1)


def test_the_first_rows_only(run: Callable, trained: Path, unlabelled: Path, tmp_path: Path) -> None:
    flags = ["--num_train_epochs", 0, "--do_predict", "--test_file", unlabelled, "--max_predict_samples", 5]
    run("--model_name_or_path", trained, *flags, "--output_dir", tmp_path / "out")
    assert len(table(tmp_path / "out" / "predict_results.csv")) == 5


def test_predicted_numbers(run: Callable, unlabelled: Path, tmp_path: Path) -> None:
    train = write_csv(
        tmp_path / "t.csv", ["text", "label"], [(text, f"{label + 0.5}") for text, label in sentences(61)]
    )
    flags = ["--train_file", train, "--learning_rate", 1e-2, "--num_train_epochs", 8, "--output_dir", tmp_path / "out"]
    run(*flags, "--do_predict", "--test_file", unlabelled)
    rows = table(tmp_path / "out" / "predict_results.csv")
    assert list(rows[0]) == ["label"]
    truth = [label + 0.5 for _, label in sentences(37, seed=2)]
    assert np.corrcoef([float(row["label"]) for row in rows], truth)[0, 1] > 0.8


@pytest.mark.parametrize("kind", ["names", "other case", "numbers"])
def test_evaluating_a_trained_model_needs_no_training_data(
    run: Callable, own_files: list, trained: Path, tmp_path: Path, kind: str
) -> None:
    names = {"names": ("negative", "positive"), "other case": ("Negative", "POSITIVE"), "numbers": (0, 1)}[kind]
    rows = [(text, names[label]) for text, label in sentences(23, seed=1)]
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], rows)
    flags = ["--model_name_or_path", trained, "--validation_file", valid, "--num_train_epochs", 0]
    results = run(*flags, "--output_dir", tmp_path / "out")
    assert results["eval_accuracy"] == json.loads((trained / "all_results.json").read_text())["eval_accuracy"] == 1.0
    assert results["baseline_accuracy"] == pytest.approx(13 / 23)
    assert not (tmp_path / "out" / "model.safetensors").exists()  # it is where it was


def test_a_label_that_the_model_does_not_know_is_refused(
    run: Callable, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], [("good", "positive"), ("bad", "nasty")])
    with pytest.raises(SystemExit):
        run("--model_name_or_path", trained, "--validation_file", valid, "--num_train_epochs", 0)
    assert "row 2 of the validation data has the label 'nasty'" in capsys.readouterr().err


def test_the_files_for_glues_server(run: Callable, made_glue: Path, tmp_path: Path) -> None:
    """Names, header, order, words, and the archive when all are there."""
    folder = tmp_path / "out"
    for task in GLUE:
        assert not (folder / "glue" / "submission.zip").exists()
        flags = ["--dataset_name", made_glue, "--task_name", task, "--max_train_steps", 1, "--do_predict"]
        run(*flags, "--output_dir", folder, "--overwrite_output_dir")
    files = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
    assert {path.name for path in (folder / "glue").glob("*.tsv")} == {f"{name}.tsv" for name in files}
    words = {name: {"entailment", "neutral", "contradiction"} for name in ("MNLI-m", "MNLI-mm", "AX")}
    words |= {name: {"entailment", "not_entailment"} for name in ("QNLI", "RTE")}
    for name in files:
        rows = table(folder / "glue" / f"{name}.tsv", "\t")
        assert list(rows[0]) == ["index", "prediction"]
        assert [row["index"] for row in rows] == [str(index) for index in range(11)]
        if name == "STS-B":
            assert all(len(row["prediction"]) == 5 and 0 <= float(row["prediction"]) <= 5 for row in rows)
        else:
            assert {row["prediction"] for row in rows} <= words.get(name, {"0", "1"})
    with zipfile.ZipFile(folder / "glue" / "submission.zip") as archive:
        assert set(archive.namelist()) == {f"{name}.tsv" for name in files}


def test_ax_with_a_model_of_its_own_order(run: Callable, made_glue: Path, tmp_path: Path) -> None:
    """The file has the words of the benchmark, whichever case and order the model has them in."""
    mnli = ["--dataset_name", made_glue, "--task_name", "mnli", "--max_train_steps", 2, "--learning_rate", 1e-2]
    run(*mnli, "--output_dir", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    flags = ["--model_name_or_path", tmp_path / "model", "--dataset_name", made_glue, "--task_name", "ax"]
    flags += ["--num_train_epochs", 0, "--do_predict"]
    run(*flags, "--output_dir", tmp_path / "a")
    upper = {index: name.upper() for index, name in config["id2label"].items()}
    config |= {"id2label": upper, "label2id": {name: int(index) for index, name in upper.items()}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    run(*flags, "--output_dir", tmp_path / "b")
    assert (tmp_path / "a" / "glue" / "AX.tsv").read_text() == (tmp_path / "b" / "glue" / "AX.tsv").read_text()
    assert {row["prediction"] for row in table(tmp_path / "b" / "glue" / "AX.tsv", "\t")} <= set(load_data(
        script.parse_args([str(flag) for flag in [*flags, "--output_dir", tmp_path / "c"]])
    )[1].words)  # fmt: skip


def test_predicting_a_published_tasks_test_split(run: Callable, glue_folder: Path, tmp_path: Path) -> None:
    flags = ["--dataset_name", glue_folder, "--task_name", "wnli", "--max_train_steps", 1, "--do_predict"]
    run(*flags, "--output_dir", tmp_path)
    assert len(table(tmp_path / "glue" / "WNLI.tsv", "\t")) == 146


# --- the best model


def evaluations(folder: Path, metric: str) -> list[float]:
    return [line[f"eval_{metric}"] for line in log_lines(folder) if f"eval_{metric}" in line]


SWINGING = ["--learning_rate", 5e-2, "--num_train_epochs", 5]  # too high: later epochs are worse than earlier ones


@pytest.mark.parametrize(("metric", "best"), [("loss", min), ("eval_macro_f1", max)])
def test_the_best_model_is_saved_with_its_scores(
    run: Callable, own_files: list, tmp_path: Path, metric: str, best: Callable
) -> None:
    flags = [*own_files, *SWINGING, "--load_best_model_at_end", "--metric_for_best_model", metric]
    results = run(*flags, "--output_dir", tmp_path / "out")
    name = metric.removeprefix("eval_")
    scores = evaluations(tmp_path / "out", name)
    assert scores.index(best(scores)) < 4, "the last epoch is not to be the best one"
    assert results[f"best_{name}"] == results[f"eval_{name}"] == best(scores)
    assert results["best_epoch"] == scores.index(best(scores)) + 1
    again = ["--model_name_or_path", tmp_path / "out", *own_files, "--num_train_epochs", 0]
    assert run(*again)[f"eval_{name}"] == pytest.approx(best(scores))
    assert not list(tmp_path.glob("out/*best*")) + list(tmp_path.glob("out/.*"))


def test_early_stopping(run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = [*own_files, *SWINGING, "--metric_for_best_model", "loss", "--early_stopping_patience", 1]
    results = run(*flags, "--num_train_epochs", 9, "--output_dir", tmp_path / "out")
    losses = evaluations(tmp_path / "out", "loss")
    assert len(losses) < 9
    assert losses[-1] >= min(losses[:-1])
    assert all(later < earlier for earlier, later in zip(losses[:-2], losses[1:-1], strict=True))
    assert "early stopping: loss was not better in 1 evaluations" in capsys.readouterr().out
    assert results["best_loss"] == min(losses)


def test_the_best_model_survives_a_resume(run: Callable, own_files: list, tmp_path: Path) -> None:
    flags = [*own_files, *SWINGING, "--load_best_model_at_end", "--metric_for_best_model", "loss"]
    flags += ["--early_stopping_patience", 2, "--checkpointing_steps", "epoch"]
    whole = run(*flags, "--output_dir", tmp_path / "whole")
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    last = checkpoints(tmp_path / "whole")[-1]
    resumed = run(*flags, "--output_dir", tmp_path / "elsewhere", "--resume_from_checkpoint", last)
    assert {k: v for k, v in resumed.items() if k.startswith(("best_", "eval_"))} == {
        k: v for k, v in whole.items() if k.startswith(("best_", "eval_"))
    }
    again = load_file(tmp_path / "elsewhere" / "model.safetensors")
    assert all(saved[name].equal(again[name]) for name in saved)


def test_an_unknown_metric_is_answered_with_those_there_are(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        run(*own_files, "--metric_for_best_model", "bleu", "--output_dir", tmp_path / "out")
    assert "--metric_for_best_model bleu: there are loss, accuracy, macro_f1, f1" in capsys.readouterr().err


def test_predictions_that_cannot_be_written_leave_the_model(
    run: Callable, own_files: list, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out" / "predict_results.csv").mkdir(parents=True)
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--do_predict", "--test_file", unlabelled, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 1
    assert "the predictions could not be written, the model is saved" in capsys.readouterr().err
    assert {"model.safetensors", "all_results.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_each_test_split_has_a_file_of_its_own(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, rows in {"train": 40, "test": 11, "test_hard": 5}.items():
        made = [{"text": text, "label": "ab"[label]} for text, label in sentences(rows)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, made)))
    splits = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("train", "test", "test_hard"))
    (tmp_path / "data" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"
    )
    run("--dataset_name", tmp_path / "data", "--max_train_steps", 2, "--do_predict", "--output_dir", tmp_path / "out")
    files = {path.name: len(table(path)) for path in (tmp_path / "out").glob("predict*")}
    assert files == {"predict_results.csv": 11, "predict_results_hard.csv": 5}


def test_the_best_scores_are_told_when_the_best_weights_are_saved(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: what is shared after an epoch has that epoch's weights."""
    runs, keep = [], keep_model
    monkeypatch.setattr(
        "no_trainer.results.keep_model",
        lambda run, model, tokenizer, task, last: runs.append((run, task)) or keep(run, model, tokenizer, task, last),
    )
    flags = [
        "--num_train_epochs",
        4,
        "--learning_rate",
        0.1,
        "--load_best_model_at_end",
        "--lr_scheduler_type",
        "constant",
    ]
    results = run(*own_files, *flags, "--metric_for_best_model", "loss", "--output_dir", tmp_path)
    evaluations = [line["eval_loss"] for line in log_lines(tmp_path) if "eval_loss" in line]
    assert min(evaluations) < evaluations[-1], "or this shows nothing"
    assert results["eval_loss"] == min(evaluations)
    assert all_results(*runs[-1], last=False)["eval_loss"] == evaluations[-1]
