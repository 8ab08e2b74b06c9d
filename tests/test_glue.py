"""The tables of GLUE: its columns in a local folder, and the files for its server."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import table
from datasets import ClassLabel, Dataset, Features, Value

import run_glue_no_trainer as script
from no_trainer.glue import GLUE, TEST_FILES
from no_trainer.tasks import load_data


@pytest.mark.parametrize("task", GLUE)
def test_glue_from_a_local_folder(tmp_path: Path, task: str) -> None:
    """The layout and schema of nyu-mll/glue, with unlabelled test rows, for all nine tasks."""
    names = {"mnli": ["entailment", "neutral", "contradiction"]}.get(task, ["no", "yes"])
    label = Value("float32") if task == "stsb" else ClassLabel(names=names)
    columns = GLUE[task]
    features = Features({column: Value("string") for column in columns} | {"label": label, "idx": Value("int32")})
    validation = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    (tmp_path / task).mkdir()
    yaml = f"---\nconfigs:\n- config_name: {task}\n  data_files:\n"
    for split in ["train", *validation, "test"]:
        rows = {column: ["a", "b", "c"] for column in columns}
        rows |= {"label": [-1] * 3 if split == "test" else [0, 1, 0], "idx": [0, 1, 2]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / task / f"{split}-00000-of-00001.parquet")
        yaml += f"  - split: {split}\n    path: {task}/{split}-*\n"
    (tmp_path / "README.md").write_text(yaml + "---\n")
    flags = ["--model_name_or_path", "m", "--task_name", task, "--dataset_name", str(tmp_path)]
    splits, found = load_data(script.parse_args(flags))
    assert list(splits) == ["train", *validation]
    assert found.labels == (None if task == "stsb" else names)
    assert found.text_columns == columns


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


def test_some_of_the_rows_are_no_submission(
    run: Callable, made_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "glue").mkdir()
    for name in TEST_FILES.values():
        (tmp_path / "glue" / f"{name}.tsv").touch()
    flags = ["--dataset_name", made_glue, "--task_name", "rte", "--max_train_steps", 1, "--do_predict"]
    run(*flags, "--max_predict_samples", 2, "--output_dir", tmp_path)
    assert "RTE.tsv has the first rows only; the server takes all" in capsys.readouterr().out
    assert len(table(tmp_path / "glue" / "RTE.tsv", "\t")) == 2
    assert not (tmp_path / "glue" / "submission.zip").exists()
