"""The files of answers: of new rows, with their scores where they are labelled, and the worst mistakes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAIN, sentences, table, write_csv
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file, save_file
from sklearn.metrics import classification_report, confusion_matrix
from transformers import pipeline

import run_glue_no_trainer as script
from no_trainer.evaluation import predict
from no_trainer.glue import Task
from no_trainer.predictions import joined, named, spelled, write


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
    assert [row["prediction"] for row in first] == [row["prediction"] for row in second]
    header = ["row", "text", "prediction", "probability", "probability_negative", "probability_positive"]
    assert list(second[0]) == header
    assert [(row["row"], row["text"]) for row in second[:2]] == [
        (str(number), text) for number, (text, _) in enumerate(sentences(37, seed=2)[:2], 1)
    ]
    answers = pipeline("text-classification", str(trained), device="cpu")([text for text, _ in sentences(37, seed=2)])
    for row, answer in zip(second, answers, strict=True):
        assert row["prediction"] == answer["label"]
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
    assert list(rows[0]) == ["row", "text", "prediction"]
    truth = [label + 0.5 for _, label in sentences(37, seed=2)]
    assert np.corrcoef([float(row["prediction"]) for row in rows], truth)[0, 1] > 0.8


@pytest.mark.parametrize("trained", [True, False])
def test_predictions_that_cannot_be_written_leave_the_model(
    run: Callable, own_files: list, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch, trained: bool,
) -> None:  # fmt: skip
    """A folder of that name appears meanwhile; one that is there before is refused. Where nothing else was asked for,
    the run has failed."""
    save = script.save_results
    get_in_the_way = (tmp_path / "out" / "predict_results.csv").mkdir
    monkeypatch.setattr(script, "save_results", lambda *args: (save(*args), get_in_the_way())[0])
    epochs = [] if trained else ["--num_train_epochs", 0]
    code = 0
    try:
        run(*own_files, *epochs, "--do_predict", "--test_file", unlabelled, "--output_dir", tmp_path / "out")
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert "the predictions could not be written: " in (said.out if trained else said.err)
    assert code == (0 if trained else 1)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "all_results.json" in left
    assert {"model.safetensors", "README.md"} <= left or not trained


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


def test_labelled_rows_are_scored(run: Callable, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With two wrong labels; in results, summary and card, for a file and for a data set's test split."""
    rows = [(text, ("negative", "positive")[label]) for text, label in sentences(40, seed=2)]
    rows[3], rows[5] = (
        (text, {"negative": "positive", "positive": "negative"}[label]) for text, label in (rows[3], rows[5])
    )
    file = write_csv(tmp_path / "test.csv", ["id", "text", "label"], [(n, *row) for n, row in enumerate(rows)])
    only = ["--model_name_or_path", trained, "--num_train_epochs", 0, "--do_predict", "--test_file", file]
    results = run(*only, "--output_dir", tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["test_accuracy"] == saved["test_accuracy"] == 38 / 40
    assert saved["test_per_class"]["positive"]["support"] == sum(label == "positive" for _, label in rows)
    out = capsys.readouterr().out
    assert re.search(r"^test_accuracy +0\.9500$", out, re.MULTILINE), out
    written = table(tmp_path / "out" / "predict_results.csv")
    assert [row["label"] for row in written] == [label for _, label in rows]
    assert sum(row["label"] != row["prediction"] for row in written) == 2


def test_a_trained_runs_card_has_the_test_scores(run: Callable, own_files: list, tmp_path: Path) -> None:
    results = run(*own_files, *TRAIN, "--do_predict", "--test_file", own_files[3], "--output_dir", tmp_path / "out")
    assert results["test_accuracy"] == results["eval_accuracy"] == 1.0
    assert "| test_accuracy | 1 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("label", "why"),
    [("", "1 of its 2 rows have no label"), ("unheard of", "the model does not know all of its labels")],
)
def test_rows_with_labels_that_say_nothing_are_predicted_all_the_same(
    run: Callable, trained: Path, tmp_path: Path, label: str, why: str, capsys: pytest.CaptureFixture
) -> None:
    file = write_csv(tmp_path / "test.csv", ["text", "label"], [("good", "positive"), ("bad", label)])
    only = ["--model_name_or_path", trained, "--num_train_epochs", 0, "--do_predict", "--test_file", file]
    results = run(*only, "--output_dir", tmp_path / "out")
    assert not [name for name in results if name.startswith("test_")]
    assert f"the test data is not scored: {why}" in capsys.readouterr().out
    assert [row["prediction"] for row in table(tmp_path / "out" / "predict_results.csv")] == ["positive", "negative"]


def test_glues_hidden_labels_stay_hidden(run: Callable, made_glue: Path, tmp_path: Path) -> None:
    flags = ["--dataset_name", made_glue, "--task_name", "rte", "--max_train_steps", 1, "--do_predict"]
    assert not [name for name in run(*flags, "--output_dir", tmp_path / "out") if name.startswith("test_")]


@pytest.mark.parametrize("best", [False, True])
def test_the_worst_mistakes_come_first(
    run: Callable, tmp_path: Path, best: bool, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten wrong labels among 400; the predictions of the last evaluation, or of the best one, serve: no other pass."""
    rows = [(f"{text} {n}", ("negative", "positive")[label]) for n, (text, label) in enumerate(sentences(400))]
    turned = {"negative": "positive", "positive": "negative"}
    wrong = [(text, turned[label]) if n % 40 == 7 else (text, label) for n, (text, label) in enumerate(rows)]
    train = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    valid = write_csv(tmp_path / "v.csv", ["text", "label"], wrong)
    passes = []
    monkeypatch.setattr(script, "predict", lambda *args: passes.append(args[-1]) or predict(*args))
    flags = ["--train_file", train, "--validation_file", valid, "--learning_rate", 3e-3, "--num_train_epochs", 3]
    flags += ["--load_best_model_at_end", "--metric_for_best_model", "loss"] if best else []
    run(*flags, "--output_dir", tmp_path / "out")
    assert passes == ["Evaluating"] * 3
    written = table(tmp_path / "out" / "validation_predictions.csv")
    assert list(written[0]) == ["row", "text", "label", "prediction", "probability", "loss"]
    losses = [float(row["loss"]) for row in written]
    assert losses == sorted(losses, reverse=True)
    assert len(written) == 400
    assert sum(int(row["row"]) % 40 == 8 for row in written[:10]) >= 8
    for row in written[:20]:
        assert (row["text"], row["label"]) == wrong[int(row["row"]) - 1]
    assert "the worst mistakes, first in validation_predictions.csv:\n  row " in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert np.mean(losses) == pytest.approx(results["eval_loss"], abs=1e-5)
    names = ["negative", "positive"]
    true, said = ([row[name] for row in written] for name in ("label", "prediction"))
    report = classification_report(true, said, output_dict=True)
    for name in names:
        for ours, theirs in (
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "f1-score"),
            ("support", "support"),
        ):
            assert results["eval_per_class"][name][ours] == pytest.approx(report[name][theirs])
    assert results["eval_confusion_matrix"] == confusion_matrix(true, said, labels=names).tolist()


def test_after_a_resume_the_mistakes_are_those_of_the_best_model(
    run: Callable, own_files: list, tmp_path: Path
) -> None:
    flags = [*own_files, "--learning_rate", 5e-2, "--num_train_epochs", 5, "--load_best_model_at_end"]
    flags += ["--metric_for_best_model", "loss", "--checkpointing_steps", "epoch"]
    results = run(*flags, "--output_dir", tmp_path / "out")
    assert results["best_epoch"] < 5, "or this shows nothing"
    before = (tmp_path / "out" / "validation_predictions.csv").read_bytes()
    run(*flags, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", tmp_path / "out" / "epoch_4")
    assert (tmp_path / "out" / "validation_predictions.csv").read_bytes() == before


def test_both_of_mnlis_sets_have_their_classes_and_mistakes(run: Callable, made_glue: Path, tmp_path: Path) -> None:
    flags = ["--dataset_name", made_glue, "--task_name", "mnli", "--max_train_steps", 1]
    results = run(*flags, "--output_dir", tmp_path)
    for suffix in ("", "_mm"):
        assert set(results[f"eval_per_class{suffix}"]) == {"entailment", "neutral", "contradiction"}
        assert sum(map(sum, results[f"eval_confusion_matrix{suffix}"])) == 11
        assert len(table(tmp_path / f"validation_predictions{suffix}.csv")) == 11


def test_the_mistakes_of_regression_are_the_distances(run: Callable, tmp_path: Path) -> None:
    rows = [(text, f"{label + 0.5}") for text, label in sentences(61)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    flags = ["--train_file", file, "--validation_file", file, "--max_train_steps", 4]
    results = run(*flags, "--output_dir", tmp_path / "out")
    assert "eval_per_class" not in results
    written = table(tmp_path / "out" / "validation_predictions.csv")
    assert list(written[0]) == ["row", "text", "label", "prediction", "loss"]
    for row in written:
        assert float(row["loss"]) == pytest.approx(abs(float(row["label"]) - float(row["prediction"])), abs=1e-5)


def test_the_summary_of_many_classes_has_the_twenty_worst(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [(f"{text} {n % 77}", f"intent {n % 77}") for n, (text, _) in enumerate(sentences(231))]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    run("--train_file", file, "--validation_file", file, "--max_train_steps", 2, "--output_dir", tmp_path / "out")
    out = capsys.readouterr().out
    assert "the 20 worst of 77" in out
    assert len(re.findall(r"^intent \d+ +[\d.]+ +[\d.]+ +[\d.]+ +3$", out, re.MULTILINE)) == 20
    assert not (tmp_path / "out" / "confusion_matrix.png").exists()
    assert (tmp_path / "out" / "README.md").read_text().count("| intent ") == 77


def test_predictions_appear_whole_or_not_at_all(
    run: Callable, trained: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> list:
        raise OSError("no more")

    monkeypatch.setattr("no_trainer.predictions.sure", fails)
    only = ["--model_name_or_path", trained, "--num_train_epochs", 0, "--do_predict", "--test_file", unlabelled]
    with pytest.raises(SystemExit) as exit_:
        run(*only, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 1
    assert not list((tmp_path / "out").glob("*predict*")) + list((tmp_path / "out").glob(".*"))


def test_the_order_of_several_labels_means_nothing() -> None:
    """A row that names its classes in another order than the model has them is no mistake."""
    task = Task([], ["text"], ["a", "b", "c"], ["a", "b", "c"], several=True)
    assert spelled(task, [["c", "a"], ["a", "c"]]) == ["a|c", "a|c"]
    assert named(task, torch.tensor([[1.0, -1.0, 1.0]])) == ["a|c"]


@pytest.mark.parametrize("label", ["nan", "inf", "1_0", "\u0663", "2e18"])
def test_a_label_that_is_no_number_to_learn_is_not_scored(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, label: str
) -> None:
    """Python reads all of them as numbers; the predictions are written."""
    train = write_csv(tmp_path / "t.csv", ["text", "label"], [(text, f"{n + 0.5}") for text, n in sentences(61)])
    test = write_csv(tmp_path / "test.csv", ["text", "label"], [("good", "1.5"), ("bad", label)])
    flags = ["--max_train_steps", 1, "--do_predict", "--test_file", test, "--output_dir", tmp_path / "out"]
    results = run("--train_file", train, *flags)
    assert not [name for name in results if name.startswith("test_")]
    assert "the test data is not scored" in capsys.readouterr().out
    assert len(table(tmp_path / "out" / "predict_results.csv")) == 2


def test_true_and_false_are_scored(run: Callable, tmp_path: Path) -> None:
    rows = [{"text": text, "label": bool(label)} for text, label in sentences(61)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--max_train_steps", 1, "--do_predict", "--test_file", tmp_path / "t.jsonl"]
    results = run("--train_file", tmp_path / "t.jsonl", *flags, "--output_dir", tmp_path / "out")
    assert "test_accuracy" in results


def test_no_two_columns_of_the_answers_have_one_name(run: Callable, tmp_path: Path) -> None:
    """A text column may be called as one of ours is."""
    rows = [(text, "ab"[label]) for text, label in sentences(61)]
    train = write_csv(tmp_path / "t.csv", ["probability", "label"], rows)
    flags = ["--text_column_names", "probability", "--max_train_steps", 1, "--output_dir", tmp_path / "out"]
    run("--train_file", train, *flags, "--do_predict", "--test_file", train)
    for name in ("predict_results", "validation_predictions"):
        header = (tmp_path / "out" / f"{name}.csv").read_text().splitlines()[0].split(",")
        assert header[1] == "probability (text)"
        assert len(set(header)) == len(header)


def test_a_bar_in_a_class_name_is_not_the_bar_between_two() -> None:
    assert joined(["a", "b"]) == "a|b"
    assert joined(["a|b"]) == r"a\|b"


def test_answers_that_are_no_numbers_are_an_error(
    run: Callable, trained: Path, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = load_file(trained / "model.safetensors")
    weights["classifier.weight"].fill_(float("nan"))
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    flags = ["--model_name_or_path", trained, "--num_train_epochs", 0, "--do_predict", "--test_file", unlabelled]
    with pytest.raises(SystemExit) as exit_:
        run(*flags, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 1
    assert "answers for the test data are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out" / "predict_results.csv").exists()


def test_a_class_with_spaces_around_it_is_scored(run: Callable, trained: Path, tmp_path: Path) -> None:
    """As it is for evaluation; a file is predicted with the labels as it has them."""
    config = json.loads((trained / "config.json").read_text())
    config |= {"id2label": {"0": " negative", "1": "positive"}, "label2id": {" negative": 0, "positive": 1}}
    (trained / "config.json").write_text(json.dumps(config))
    test = write_csv(tmp_path / "test.csv", ["text", "label"], [("bad", " negative"), ("good", "positive")])
    flags = ["--model_name_or_path", trained, "--num_train_epochs", 0, "--do_predict", "--test_file", test]
    assert "test_accuracy" in run(*flags, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("a worker was killed")])
def test_a_prediction_that_fails_after_training_is_a_warning(
    run: Callable,
    own_files: list,
    unlabelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: Exception,
) -> None:
    """The model, its results and its card are there all the same."""
    plain = script.predict

    def fails(run: object, model: object, loader: object, what: str) -> object:
        if what == "Predicting":
            raise error
        return plain(run, model, loader, what)

    monkeypatch.setattr(script, "predict", fails)
    run(
        *own_files, "--max_train_steps", 2, "--do_predict", "--test_file", unlabelled, "--output_dir", tmp_path / "out"
    )
    assert f"warning: the test data could not be predicted: {type(error).__name__}: {error}" in capsys.readouterr().out
    assert {"model.safetensors", "all_results.json", "README.md"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


def test_a_surrogate_in_a_class_name_is_written_as_an_escape(tmp_path: Path) -> None:
    write(tmp_path / "table.csv", [["probability_\ud83d"]], ",")
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == "probability_\\ud83d\n"


def test_the_rows_of_held_out_mistakes_are_those_of_the_training_file(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """So that a wrong label can be found and mended there; texts are numbered here."""
    rows = [(f"{text} {number}", label) for number, (text, label) in enumerate(sentences(61), 1)]
    train = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    run("--train_file", train, "--max_train_steps", 1, "--output_dir", tmp_path / "out")
    written = table(tmp_path / "out" / "validation_predictions.csv")
    assert len(written) == 6
    assert all(row["text"].endswith(f" {row['row']}") for row in written)
    worst = next(row for row in written if row["label"] != row["prediction"])
    assert f"  row {worst['row']}: " in capsys.readouterr().out


def test_rows_keep_their_numbers_where_others_are_left_out(run: Callable, tmp_path: Path) -> None:
    """Rows without a label, -1 of a ClassLabel, come before them in both files."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    rows = {"text": [f"good {n}" for n in range(1, 61)], "label": [-1 if n % 5 == 0 else n % 2 for n in range(60)]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    for name, more in (("held_out", []), ("given", ["--validation_file", tmp_path / "t.parquet"])):
        flags = ["--train_file", tmp_path / "t.parquet", *more, "--max_train_steps", 1]
        run(*flags, "--output_dir", tmp_path / name)
        written = table(tmp_path / name / "validation_predictions.csv")
        assert written
        assert all(row["text"] == f"good {row['row']}" for row in written)
