"""A tiny model, made data, and a way to run the script in this process or in its own."""

import csv
import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_home_")  # a cache of the tests' own
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": os.path.join(os.environ["HF_HOME"], "trackio")}
os.environ["OMP_NUM_THREADS"] = "1"  # the same sums on every machine, and two tests at a time

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import set_seed
from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

import run_glue_no_trainer as script
from no_trainer import glue
from no_trainer.batches import GlobalBatchSampler, tokenize
from no_trainer.glue import Task
from no_trainer.labels import numbers
from no_trainer.tasks import load_data

ROOT = Path(__file__).parents[1]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
GLUE = Path(os.environ.get("GLUE_FOLDER", ROOT.parent / "shared" / "glue"))
TRAIN = ["--learning_rate", 3e-3, "--num_train_epochs", 6]  # of a run that learns what `sentences` makes
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def glue_folder() -> Path:
    if not GLUE.is_dir():
        pytest.skip(f"there is no copy of nyu-mll/glue at {GLUE}; GLUE_FOLDER can name another place")
    return GLUE


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers × 32 with dropout, and a tokenizer that knows letters and a few words."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = string.ascii_lowercase + string.digits + "?.,!'-"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    words += ["good", "bad", "fine", "poor", "great", "awful", "nice", "dull"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.bert.save_pretrained(folder)
    return folder


def without_dropout(model: Path, folder: Path) -> Path:
    """A copy of the model in which dropout is off."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sentences(rows: int, seed: int = 0) -> list[tuple[str, int]]:
    """Texts of 1 to 12 words; the class is whether praise outnumbers blame."""
    pick = random.Random(seed)
    praise, blame = ["good", "fine", "great", "nice"], ["bad", "poor", "awful", "dull"]
    made = []
    for _ in range(rows):
        label = pick.randrange(2)
        made.append((" ".join(pick.choices((blame, praise)[label], k=pick.randint(1, 12))), label))
    return made


def write_csv(file: Path, header: list[str], rows: list) -> Path:
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows(rows)
    return file


@pytest.fixture(scope="session")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """--train_file and --validation_file: 61 and 23 rows of sentences in two classes."""
    folder = tmp_path_factory.mktemp("own")
    names = ("negative", "positive")
    train = write_csv(folder / "train.csv", ["text", "label"], [(text, names[y]) for text, y in sentences(61)])
    valid = write_csv(folder / "valid.csv", ["text", "label"], [(text, names[y]) for text, y in sentences(23, seed=1)])
    return ["--train_file", str(train), "--validation_file", str(valid)]


@pytest.fixture(scope="session")
def made_glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks in the layout of nyu-mll/glue, 12 rows a split, 11 in the test splits, which have no labels."""
    root = tmp_path_factory.mktemp("made_glue")
    nli = ["entailment", "neutral", "contradiction"]
    two = ["entailment", "not_entailment"]
    names = {"mnli": nli, "ax": nli, "qnli": two, "rte": two} | dict.fromkeys(["mrpc", "qqp"], ["no", "yes"])
    yaml = "---\nconfigs:\n"
    for task in [*glue.GLUE, "ax"]:
        columns = glue.GLUE.get(task, ["premise", "hypothesis"])
        label = (
            Value("float32") if task == "stsb" else ClassLabel(names=names.get(task, ["unacceptable", "acceptable"]))
        )
        features = Features({name: Value("string") for name in columns} | {"label": label, "idx": Value("int32")})
        splits = {"train": 12, "validation": 12, "test": 11}
        if task == "mnli":
            splits = {"train": 12} | {
                f"{split}_{kind}matched": 11 for split in ("validation", "test") for kind in ("", "mis")
            }
        yaml += f"- config_name: {task}\n  data_files:\n"
        (root / task).mkdir()
        for split, rows in ({"test": 11} if task == "ax" else splits).items():
            texts = [text for text, _ in sentences(rows)]
            labels = [-1] * rows if split.startswith("test") else [row % 2 for row in range(rows)]
            data = dict.fromkeys(columns, texts) | {"label": labels, "idx": range(rows)}
            Dataset.from_dict(data, features=features).to_parquet(root / task / f"{split}-00000-of-00001.parquet")
            yaml += f"  - split: {split}\n    path: {task}/{split}-*\n"
    (root / "README.md").write_text(yaml + "---\n")
    return root


def fresh_accelerate() -> None:
    """Forget the last run's process group and settings, as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """However a run ends, the handlers of signals are afterwards those of before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.fixture
def run(tiny_model: Path) -> Callable[..., dict]:
    """Run the script's `main` with these flags on the tiny model; returns its results."""

    def go(*flags: object) -> dict:
        fresh_accelerate()
        return script.main(script.parse_args(["--model_name_or_path", str(tiny_model), *map(str, flags)]))

    return go


@pytest.fixture
def trained(run: Callable, own_files: list, tmp_path: Path) -> Path:
    """A run of --train_file and --validation_file that has learned them."""
    run(*own_files, *TRAIN, "--output_dir", tmp_path / "trained")
    return tmp_path / "trained"


@pytest.fixture
def three_checkpoints(run: Callable, own_files: list, tmp_path: Path) -> list:
    """Flags of a run of 6 steps that left step_2, step_4 and step_6 in tmp_path / "out"."""
    flags = [*own_files, "--max_train_steps", 6, "--learning_rate", 1e-3, "--logging_steps", 1]
    flags += ["--checkpointing_steps", 2, "--output_dir", tmp_path / "out"]
    run(*flags)
    return flags


def prepared(*flags: object) -> tuple[torch.nn.Module, Tokenizer, Dataset, GlobalBatchSampler]:
    """The model as a run with these flags starts with it, its tokenizer, the tokenized rows, and their order."""
    args = script.parse_args([str(flag) for flag in flags])
    splits, task = load_data(args)
    set_seed(42)
    model, tokenizer, task = script.load_model(args, task)
    encode = script.make_encode(tokenizer, task)
    data = tokenize({"train": splits["train"]}, encode, tokenizer, task)["train"]
    return model, tokenizer, data, GlobalBatchSampler(len(data), 8, 8, 42, numbers(data, "length"))


def rows_of(data: Dataset, rows: list[int]) -> dict[str, list]:
    """What the model's inputs are made of."""
    return data.remove_columns("length")[rows]


def load(train: Path, valid: Path | None = None, **changes: object) -> tuple[dict[str, Dataset], Task]:
    """The splits and the task of these files, read with the flags that are `changes`."""
    flags = ["--model_name_or_path", "m", "--train_file", str(train), "--validation_file", str(valid or train)]
    args = script.parse_args(flags)
    return load_data(Namespace(**(vars(args) | changes)))


def refused(capsys: pytest.CaptureFixture, train: Path, valid: Path | None = None) -> str:
    """What is said of files that `load` refuses."""
    with pytest.raises(SystemExit) as exit_:
        load(train, valid)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def launch(
    *flags: object, launcher: tuple[str, ...] = (sys.executable,), env: dict | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess:
    """Run the script as a process of its own, or as several under `launcher`."""
    command = [*launcher, str(ROOT / "run_glue_no_trainer.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | (env or {}), timeout=300)


def usage_error(capsys: pytest.CaptureFixture, *flags: object) -> str:
    """The one line that wrong flags end in."""
    with pytest.raises(SystemExit) as exit_:
        script.parse_args([str(flag) for flag in flags])
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("run_glue_no_trainer.py: error: ")
    return lines[0]


def log_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    """The bytes of the weights that a run has left."""
    return (folder / "model.safetensors").read_bytes()


def table(file: Path, delimiter: str = ",") -> list[dict]:
    """The rows of a .csv or .tsv file by the names in its header."""
    with open(file, newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL))
