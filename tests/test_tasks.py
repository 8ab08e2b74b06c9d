"""From flags to splits: which columns and rows are read, which are held out, what is refused."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas
import pytest
from accelerate import PartialState
from conftest import load, refused, sentences, table, write_csv
from datasets import ClassLabel, Dataset, Features, Value
from transformers import pipeline

import run_glue_no_trainer as script
from no_trainer.tasks import load_data


def test_the_columns_that_pandas_adds_are_no_text(tmp_path: Path) -> None:
    """`to_csv` and, after a shuffle, `to_parquet` write the index."""
    rows = pandas.DataFrame({"text": ["x", "y", "z"], "label": ["a", "b", "a"]}).sample(frac=1, random_state=0)
    rows.to_csv(tmp_path / "t.csv")
    rows.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        splits, task = load(tmp_path / name)
        assert task.text_columns == ["text"]
        assert splits["train"]["text"][:] == list(rows["text"])


@pytest.mark.parametrize(
    ("train", "valid", "named"),
    [
        ("text,label\na,1\nb,1\n", None, "only one class, '1'"),
        ("text,kind\na,1\n", None, "the train data has no column 'label'; its columns are text, kind"),
        ("label\n1\n2\n", None, "no text column besides 'label'"),
        ("text,label\n", None, "t.csv has no rows"),
        ("", None, "t.csv has no rows"),
        ("text,label\na,x\nb,\n", None, "t.csv, line 3 (row 2 of the train data) has no label"),
        (
            "text,label\na,x\nb,y\n",
            "text,label\na,x\nb,z\n",
            "v.csv, line 3 (row 2 of the validation data) has the label 'z'",
        ),
        ("text,label\na,1\nb,2\n", "text,label\na,one\n", "the label 'one'; the training labels are whole numbers"),
        ("text,label\na,x\nb,y\n", "", "v.csv has no rows"),
        ("text,label\na,x\nb,y\n", "words,label\na,x\n", "the validation data has no column 'text'"),
    ],
)
def test_unusable_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, train: str, valid: str | None, named: str
) -> None:
    (tmp_path / "t.csv").write_text(train)
    (tmp_path / "v.csv").write_text(valid if valid is not None else train)
    assert named in refused(capsys, tmp_path / "t.csv", tmp_path / "v.csv")


def test_empty_texts_are_kept_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("", "a"), ("x", "b"), ("", "b")])
    assert load(file)[0]["train"]["text"][:] == ["", "x", ""]
    assert "warning: 2 of 3 rows of the train data have an empty text" in capsys.readouterr().out


def test_max_samples_take_the_first_rows(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {i}", i % 2) for i in range(9)])
    splits, _ = load(file, max_train_samples=4, max_eval_samples=100)
    assert splits["train"]["text"][:] == ["row 0", "row 1", "row 2", "row 3"]
    assert len(splits["validation"]) == 9


def test_the_first_rows_of_a_sorted_file_have_but_one_class(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {row}", "ab"[row > 20]) for row in range(40)])
    load(file, max_train_samples=10)
    assert (
        "warning: --max_train_samples leaves no row of b in the train data; if the file is sorted"
        in capsys.readouterr().out
    )
    load(file, max_train_samples=30)
    assert "leaves no row" not in capsys.readouterr().out
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {row}", "abc"[row // 20]) for row in range(60)])
    load(file, max_train_samples=40)
    assert "leaves no row of c in the train data;" in capsys.readouterr().out


def test_the_mean_is_that_of_the_training_labels(tiny_model: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [["good", 1.5], ["bad", 2.5], ["fine", 5.0]] * 4)
    args = script.parse_args(["--model_name_or_path", str(tiny_model), "--train_file", str(file)])
    assert load_data(args)[1].mean == 3.0


def test_a_data_set_of_the_hubs_layout_with_other_columns(tmp_path: Path) -> None:
    features = Features({"review": Value("string"), "stars": ClassLabel(names=["bad", "good"])})
    for split in ("train", "test"):
        data = Dataset.from_dict({"review": ["a", "b"] * 10, "stars": [0, 1] * 10}, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    flags = ["--model_name_or_path", "m", "--dataset_name", str(tmp_path), "--label_column_name", "stars"]
    splits, task = load_data(script.parse_args(flags))
    assert {name: len(data) for name, data in splits.items()} == {"train": 18, "validation": 2}
    assert (task.labels, task.text_columns) == (["bad", "good"], ["review"])
    predict = [*flags, "--do_predict", "--output_dir", str(tmp_path / "out")]
    assert load_data(script.parse_args(predict))[0]["test"].column_names == ["review", "label"]  # to be scored


def test_a_data_set_with_other_validation_splits_keeps_all_of_its_training_rows(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    rows = {"text": [text for text, _ in sentences(20)], "label": ["ab"[label] for _, label in sentences(20)]}
    names = ("train", "validation_matched", "validation_mismatched")
    for name in names:
        Dataset.from_dict(rows).to_parquet(folder / f"{name}.parquet")
    splits = "".join(f"  - split: {name}\n    path: {name}.parquet\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    results = run("--dataset_name", folder, "--max_train_steps", 1)
    assert {"eval_accuracy", "eval_accuracy_mm"} <= results.keys()
    assert "held out" not in capsys.readouterr().out


def test_a_task_without_validation_rows_holds_some_out(
    run: Callable, made_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "glue").mkdir()
    (file,) = (made_glue / "rte").glob("train*")
    shutil.copy(file, tmp_path / "glue" / "train.parquet")
    configs = "- config_name: rte\n  data_files:\n  - split: train\n    path: train.parquet\n"
    (tmp_path / "glue" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    results = run("--dataset_name", tmp_path / "glue", "--task_name", "rte", "--max_train_steps", 1)
    assert "eval_accuracy" in results
    assert "rows of 12 are held out" in capsys.readouterr().out


def test_a_tenth_is_held_out_by_label(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """90 rows of one class, 20 of another and one alone: 9 and 2 are held out, whatever the order of the file."""
    rows = [(f"row {i}", "often" if i % 11 < 9 else "rare") for i in range(110)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [*rows, ("row 110", "alone")])
    splits, _ = load_data(script.parse_args(["--model_name_or_path", "m", "--train_file", str(file)]))
    assert Counter(splits["validation"]["label"]) == {"often": 9, "rare": 2}
    texts = [*splits["train"]["text"], *splits["validation"]["text"]]
    assert sorted(texts) == sorted(f"row {i}" for i in range(111))
    out = capsys.readouterr().out
    assert "no validation data is given: 11 rows of 111 are held out, stratified by label" in out
    assert "warning: fewer than ten rows of the training data have the label alone" in out
    again, _ = load_data(script.parse_args(["--model_name_or_path", "m", "--train_file", str(file)]))
    assert again["validation"]["text"][:] == splits["validation"]["text"][:]


# --- five kinds of own data, to the pipeline's answer


def shards(folder: Path, rows: list[dict]) -> list:
    (folder / "shards").mkdir()
    for number in range(3):
        text = "\n".join(json.dumps(row) for row in rows[number::3])
        (folder / "shards" / f"{number}.jsonl").write_text("\ufeff" * (number == 1) + text + "\n\n", encoding="utf-8")
    return ["--train_file", folder / "shards" / "*.jsonl"]


def pairs(folder: Path, rows: list[dict]) -> list:
    written = [(row["text"], 'x, "y"\nz', row["label"]) for row in rows]
    file = write_csv(folder / "t.csv", ["sentence1", "sentence2", "label"], written)
    file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    return ["--train_file", file]


def tsv(folder: Path, rows: list[dict]) -> list:
    (folder / "t.tsv").write_text("label\ttext\n" + "".join(f"{row['label']}\t{row['text']}\n" for row in rows))
    return ["--train_file", folder / "t.tsv"]


def other_names(folder: Path, rows: list[dict]) -> list:
    made = {"data": [{"id": 7, "body": row["text"], "verdict": row["label"]} for row in rows]}
    (folder / "t.json").write_text(json.dumps(made))
    return ["--train_file", folder / "t.json", "--text_column_names", "body", "--label_column_name", "verdict"]


def parquet(folder: Path, rows: list[dict]) -> list:
    scores = [row | {"label": 4.0 * (row["label"] == "positive") + 0.5} for row in rows]
    Dataset.from_list(scores).to_parquet(folder / "t.parquet")
    return ["--train_file", folder / "t.parquet", "--learning_rate", 1e-2, "--num_train_epochs", 16]


@pytest.mark.parametrize("kind", [pairs, tsv, other_names, parquet, shards])
def test_own_data_from_file_to_answer(run: Callable, tmp_path: Path, kind: Callable) -> None:
    rows = [{"text": text, "label": ("negative", "positive")[label]} for text, label in sentences(81)]
    flags = ["--learning_rate", 3e-3, "--num_train_epochs", 6, *kind(tmp_path, rows), "--output_dir", tmp_path / "out"]
    results = run(*flags)
    ask = pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    if kind is parquet:
        assert results["eval_pearson"] > 0.9
        assert ask("good " * 5)[0]["score"] > ask("awful " * 5)[0]["score"] + 1.5
        return
    assert results["eval_accuracy"] == 1.0
    question = {"text": "good nice great", "text_pair": 'x, "y"\nz'} if kind is pairs else "good nice great"
    answer = ask(question)
    assert (answer[0] if isinstance(answer, list) else answer)["label"] == "positive"


def test_the_held_out_rows_are_the_same_for_every_seed(tmp_path: Path) -> None:
    rows = [(f"row {number}", "abc"[number % 3]) for number in range(90)]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    held = []
    for seed in ("1", "2"):
        flags = ["--model_name_or_path", "m", "--train_file", str(file), "--seed", seed]
        held.append(load_data(script.parse_args(flags))[0]["validation"]["text"][:])
    assert held[0] == held[1]
    assert len(held[0]) == 9


def test_each_row_is_held_out_in_one_fold(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {n}", "abc"[n % 3]) for n in range(31)])
    args = script.parse_args(["--model_name_or_path", "m", "--train_file", str(file)])
    held = [load_data(args, fold, folds=4)[0]["validation"]["text"][:] for fold in range(4)]
    assert sorted(sum(held, [])) == sorted(f"row {n}" for n in range(31))


# --- what a trained model remembers


@pytest.fixture
def mail(run: Callable, tmp_path: Path) -> Path:
    """A model that was trained on the column `Message`, beside which there was none."""
    rows = [(text, ("ham", "spam")[label]) for text, label in sentences(61)]
    file = write_csv(tmp_path / "mail.csv", ["Message", "label"], rows)
    run("--train_file", file, "--learning_rate", 3e-3, "--num_train_epochs", 6, "--max_length", 20, "--output_dir",
        tmp_path / "mail")  # fmt: skip
    return tmp_path / "mail"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder"])
def test_predicting_reads_the_columns_that_the_model_learned_from(
    run: Callable, mail: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    rows = {"Date": ["Mon 1 January", "late in May"] * 12, "Message": [text for text, _ in sentences(24)]}
    data, file = Dataset.from_dict(rows), tmp_path / f"new.{kind}"
    flags = ["--test_file", file]
    if kind == "csv":
        data.to_csv(file)
    elif kind == "jsonl":
        data.to_json(file)
    elif kind == "parquet":
        data.to_parquet(file)
    else:
        (tmp_path / "new").mkdir()
        labels = ["ham", "spam"] * 12
        for split in ("train", "test"):
            data.add_column("label", labels).to_parquet(tmp_path / "new" / f"{split}.parquet")
        flags = ["--dataset_name", tmp_path / "new"]
    flags += ["--model_name_or_path", mail, "--num_train_epochs", 0, "--do_predict", "--output_dir", tmp_path / "out"]
    capsys.readouterr()
    run(*flags)
    assert "text: Message, cut at 20 tokens" in capsys.readouterr().out
    answers = [row["prediction"] for row in table(tmp_path / "out" / "predict_results.csv")]
    assert answers == [("ham", "spam")[label] for _, label in sentences(24)]


def test_a_column_that_the_model_learned_from_and_that_is_missing_is_an_error(
    run: Callable, mail: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write_csv(tmp_path / "new.csv", ["Date", "Text"], [("today", text) for text, _ in sentences(9)])
    flags = ["--model_name_or_path", mail, "--num_train_epochs", 0, "--do_predict", "--test_file", file]
    with pytest.raises(SystemExit) as exit_:
        run(*flags, "--output_dir", tmp_path / "out")
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert (
        "the model was trained on the column Message, but the data has no 'Message'; its columns are Date, Text"
        in said
    )
    run(*flags, "--text_column_names", "Text", "--output_dir", tmp_path / "out")
    assert len(table(tmp_path / "out" / "predict_results.csv")) == 9


def test_training_goes_on_with_the_same_columns(
    run: Callable, mail: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [("some day", text, ("ham", "spam")[label]) for text, label in sentences(30)]
    file = write_csv(tmp_path / "more.csv", ["Date", "Message", "label"], rows)
    run("--model_name_or_path", mail, "--train_file", file, "--max_train_steps", 1)
    assert "text: Message, cut at 20 tokens" in capsys.readouterr().out


# --- data sets by name


def hub_folder(folder: Path, splits: dict[str, str], files: dict[str, str], config: str = "default") -> Path:
    """A folder in the hub's layout: the file of each split, and what the files hold."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    lines = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits.items())
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{lines}---\n")
    return folder


def rows_of(*flags: object) -> dict[str, list]:
    splits, _ = load_data(script.parse_args(["--model_name_or_path", "m", *map(str, flags)]))
    return {name: data["text"][:] for name, data in splits.items()}


CELLS = ["NA", "null", "None", "n/a", "nan", "007", "1e5", "", "2020-01-01", " x "]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_cells_in_a_folder_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    if kind == "csv":
        write_csv(tmp_path / "t.csv", ["text", "label"], [(cell, "ab"[row % 2]) for row, cell in enumerate(CELLS)])
    else:
        lines = [json.dumps({"text": cell, "label": "ab"[row % 2]}) for row, cell in enumerate(CELLS)]
        (tmp_path / "t.jsonl").write_text("\n".join(lines))
    text = (tmp_path / f"t.{kind}").read_text()
    plain = tmp_path / "plain"
    plain.mkdir()
    for split in ("train", "validation"):
        (plain / f"{split}.{kind}").write_text(text)
    named = {"train": f"a.{kind}", "validation": f"b.{kind}"}
    described = hub_folder(tmp_path / "described", named, dict.fromkeys(named.values(), text))
    for folder in (plain, described):
        assert rows_of("--dataset_name", folder) == {"train": CELLS, "validation": CELLS}


def test_a_configuration_of_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    lines = []
    for name in ("small", "large"):
        for split in ("train", "validation"):
            write_csv(
                folder / f"{name}_{split}.csv", ["text", "label"], [(f"{name} {n}", "ab"[n % 2]) for n in range(4)]
            )
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {name}_{split}.csv" for split in ("train", "validation")]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *lines, "---", ""]))
    for name in ("small", "large"):
        found = rows_of("--dataset_name", folder, "--dataset_config_name", name)
        assert found["train"] == [f"{name} {n}" for n in range(4)]


def test_a_configuration_is_for_data_sets_by_name(capsys: pytest.CaptureFixture) -> None:
    for flags in (["--task_name", "rte"], ["--train_file", __file__]):
        with pytest.raises(SystemExit):
            script.parse_args(["--model_name_or_path", "m", *flags, "--dataset_config_name", "x"])
        assert "--dataset_config_name needs a --dataset_name" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["dev", "val", "valid"])
def test_other_names_of_the_validation_split(tmp_path: Path, split: str, capsys: pytest.CaptureFixture) -> None:
    text = "text,label\nx,a\ny,b\n"
    folder = hub_folder(tmp_path / "d", {"train": "1.csv", split: "2.csv"}, {"1.csv": text, "2.csv": text})
    assert rows_of("--dataset_name", folder) == {"train": ["x", "y"], "validation": ["x", "y"]}
    assert "not used" not in capsys.readouterr().out


@pytest.mark.parametrize("others", [["validation_hard"], ["unsupervised", "dev"]])
def test_splits_that_are_not_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture, others: list[str]) -> None:
    text = "text,label\nx,a\ny,b\n"
    splits = {"train": "1.csv", "validation": "1.csv", "test": "1.csv"} | dict.fromkeys(others, "1.csv")
    folder = hub_folder(tmp_path / "d", splits, {"1.csv": text})
    assert rows_of("--dataset_name", folder).keys() == {"train", "validation"}
    said = f"{folder} has more than train, validation and test; not used: {', '.join(others)}\n"
    assert said in capsys.readouterr().out


def test_rows_whose_label_is_said_to_be_none_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As SNLI has them: -1 of a ClassLabel."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    for split in ("train", "validation"):
        rows = {"text": [f"row {n}" for n in range(12)], "label": [-1 if n % 4 == 0 else n % 2 for n in range(12)]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    found = rows_of("--dataset_name", tmp_path)
    assert found["train"] == [f"row {n}" for n in range(12) if n % 4]
    out = capsys.readouterr().out
    for split in ("train", "validation"):
        assert f"3 rows of the {split} data left out: the label -1 means no label" in out


def test_a_cached_data_set_of_the_same_name_is_not_taken_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./imdb` once, read by another program, then `imdb` from elsewhere, without a network."""
    for name in ("imdb", "someone/reviews"):
        (tmp_path / name).mkdir(parents=True)
        for split in ("train", "validation"):
            Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"]}).to_parquet(
                tmp_path / name / f"{split}.parquet"
            )
    monkeypatch.chdir(tmp_path)
    datasets.load_dataset("imdb")
    monkeypatch.chdir("/")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        rows_of("--dataset_name", "imdb")
    assert exit_.value.code == 2
    assert "--dataset_name imdb: there is no such folder, and the hub does not answer" in capsys.readouterr().err
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    shutil.copytree(next(cache.glob("imdb")), cache / "someone___reviews", dirs_exist_ok=True)
    try:
        rows_of("--dataset_name", "someone/reviews")
    except SystemExit:  # the cache of another version of datasets
        return
    assert "the hub does not answer; someone/reviews is read from datasets' cache" in capsys.readouterr().out


# --- ratings, and more than two columns


def test_whole_numbers_may_be_numbers_to_predict(run: Callable, tmp_path: Path) -> None:
    """Stars from 1 to 5, as classes and, asked for, as numbers; also from a data set of classes."""
    rows = [(text, 1 + 2 * label + n % 2) for n, (text, label) in enumerate(sentences(60))]
    file = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    assert load(file)[1].labels == ["1", "2", "3", "4"]
    splits, task = load(file, do_regression=True)
    assert (task.labels, splits["train"]["label"][:4]) == (None, [float(stars) for _, stars in rows[:4]])
    results = run("--train_file", file, "--do_regression", "--max_train_steps", 2)
    assert "eval_pearson" in results
    (tmp_path / "named").mkdir()
    features = Features({"text": Value("string"), "label": ClassLabel(names=["1", "2", "3", "4"])})
    numbered = {"text": [text for text, _ in rows], "label": [stars - 1 for _, stars in rows]}
    Dataset.from_dict(numbered, features=features).to_parquet(tmp_path / "named" / "train.parquet")
    flags = ["--model_name_or_path", "m", "--dataset_name", str(tmp_path / "named"), "--do_regression"]
    assert load_data(script.parse_args(flags))[1].mean == pytest.approx(2.5, abs=0.3)


def test_words_are_no_numbers_to_predict(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("x", "1"), ("y", "many")])
    with pytest.raises(SystemExit):
        load(file, do_regression=True)
    assert "t.csv, line 3 (row 2 of the train data) has the label 'many'" in capsys.readouterr().err


def test_more_than_two_columns_are_read_as_one_text(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Only the third one tells the classes apart."""
    rows = [(f"title {n}", f"body {n}", text, "ab"[label]) for n, (text, label) in enumerate(sentences(80))]
    file = write_csv(tmp_path / "t.csv", ["title", "body", "note", "label"], rows)
    flags = ["--train_file", file, "--validation_file", file, "--text_column_names", "title,body,note"]
    flags += ["--learning_rate", 3e-3, "--num_train_epochs", 10, "--do_predict", "--test_file", file]
    results = run(*flags, "--output_dir", tmp_path / "out")
    assert results["eval_accuracy"] > 0.9
    assert "text: title + body + note" in capsys.readouterr().out
    first = table(tmp_path / "out" / "predict_results.csv")[0]
    assert (first["title"], first["note"]) == (rows[0][0], rows[0][2])
    joined = f"{rows[0][0]} [SEP] {rows[0][1]} [SEP] {rows[0][2]}"
    answer = pipeline("text-classification", str(tmp_path / "out"))(joined)[0]
    assert (answer["label"], answer["score"]) == (
        first["prediction"],
        pytest.approx(float(first["probability"]), abs=1e-5),
    )
    assert "[SEP]" in (tmp_path / "out" / "README.md").read_text()


def test_the_model_remembers_its_label_column(run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Evaluating and scoring need no --label_column_name again; a wrong one is told; new training takes `label`."""
    rows = [(text, ("ham", "spam")[label]) for text, label in sentences(61)]
    file = write_csv(tmp_path / "mail.csv", ["text", "team"], rows)
    model = tmp_path / "model"
    run("--train_file", file, "--label_column_name", "team", "--max_train_steps", 2, "--output_dir", model)
    use = ["--model_name_or_path", model, "--num_train_epochs", 0]
    predict = [*use, "--do_predict", "--test_file", file, "--output_dir", tmp_path / "out"]
    assert "eval_accuracy" in run(*use, "--validation_file", file)
    assert "test_accuracy" in run(*predict)
    capsys.readouterr()
    assert "test_accuracy" not in run(*predict, "--label_column_name", "taem")
    assert "warning: the test data has no column 'taem': it is predicted, but not scored" in capsys.readouterr().out
    other = write_csv(tmp_path / "other.csv", ["text", "team", "label"], [(*row, f"{row[1]}_new") for row in rows])
    run("--model_name_or_path", model, "--train_file", other, "--max_train_steps", 1)
    assert "ham_new" in capsys.readouterr().out


def test_labels_of_which_no_two_are_alike_are_of_another_column(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "id"], [(f"row {number}", f"k{number}") for number in range(40)])
    with pytest.raises(SystemExit):
        rows_of("--train_file", file, "--label_column_name", "id")
    said = (
        "no label occurs twice (such as k0), so these may be ids; --label_column_name names the column of the labels"
    )
    assert said in capsys.readouterr().err


def test_a_model_of_another_kind_is_not_evaluated_by_the_kind_of_the_files(
    run: Callable, own_files: list, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    config = json.loads((trained / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (trained / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        run(*own_files, "--model_name_or_path", trained, "--num_train_epochs", 0)
    said = "the labels are for single_label_classification, but the model was trained for multi_label"
    assert said in capsys.readouterr().err


def test_the_first_rows_of_sorted_validation_data_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    PartialState()
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [(f"row {row}", "ab"[row > 20]) for row in range(40)])
    load(file, max_eval_samples=10)
    assert "--max_eval_samples leaves no row of b in the validation data" in capsys.readouterr().out


def test_the_first_rows_of_sorted_numbers_are_the_lowest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [(f"row {row}", row / 2) for row in range(30)]
    load(write_csv(tmp_path / "t.csv", ["text", "label"], rows), max_train_samples=20)
    assert "--max_train_samples leaves no row of high numbers in the train data" in capsys.readouterr().out
    load(write_csv(tmp_path / "t.csv", ["text", "label"], rows[::-1]), max_train_samples=20)
    assert "--max_train_samples leaves no row of low numbers in the train data" in capsys.readouterr().out
    constant = [(text, max(number, 5.5)) for text, number in rows[::-1]]
    load(write_csv(tmp_path / "t.csv", ["text", "label"], constant), max_train_samples=18)
    assert "--max_train_samples leaves no row of low numbers in the train data" in capsys.readouterr().out
    load(write_csv(tmp_path / "t.csv", ["text", "label"], rows[::2] + rows[1::2]), max_train_samples=20)
    assert "leaves no row" not in capsys.readouterr().out


@pytest.mark.parametrize("predicts", [True, False])
def test_the_columns_are_those_of_the_training_data(tmp_path: Path, predicts: bool) -> None:
    """Whatever a data set lists first: its test split, whose labels are hidden, tells nothing of a column."""
    config = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for split, rows in (("test", 9), ("train", 60)):
        made = [(("sad", "glad")[label], text, label if split == "train" else -1) for text, label in sentences(rows)]
        columns = dict(zip(("mood", "text", "label"), map(list, zip(*made, strict=True)), strict=True))
        Dataset.from_dict(columns).to_parquet(tmp_path / f"{split}.parquet")
        config += f"  - {{split: {split}, path: {split}.parquet}}\n"
    (tmp_path / "README.md").write_text(f"{config}---\n")
    flags = ["--dataset_name", str(tmp_path), *(["--do_predict", "--output_dir", "out"] if predicts else [])]
    args = script.parse_args(["--model_name_or_path", "m", *flags])
    assert load_data(args)[1].text_columns == ["text"]


def test_a_class_label_that_is_read_as_text_is_read_by_its_name(tmp_path: Path) -> None:
    features = Features(text=Value("string"), topic=ClassLabel(names=["sports", "art"]), label=Value("string"))
    made = {"text": ["x", "y"] * 10, "topic": [0, 1] * 10, "label": ["a", "b"] * 10}
    Dataset.from_dict(made, features).to_parquet(tmp_path / "t.parquet")
    splits, _ = load(tmp_path / "t.parquet", text_column_names=["topic", "text"])
    assert splits["train"]["topic"][:2] == ["sports", "art"]


def test_numbers_from_a_saved_classifier_are_refused(
    run: Callable, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write_csv(tmp_path / "t.csv", ["text"], [["good"], ["bad"]])
    flags = ["--model_name_or_path", trained, "--num_train_epochs", 0, "--do_predict", "--test_file", file]
    with pytest.raises(SystemExit):
        run(*flags, "--do_regression", "--output_dir", tmp_path / "out")
    assert "--do_regression: the model predicts 2 classes, not numbers" in capsys.readouterr().err
