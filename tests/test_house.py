"""What stands beside the script."""

import ast
import csv
import graphlib
import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import run_glue_no_trainer as script
from no_trainer.arguments import read_config

QUICKSTART = ROOT / "configs" / "quickstart"


DOCS = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
PAGES += ["configs/README.md", "examples/edits/README.md", "tests/README.md", "benchmarks/README.md"]


def blocks(page: str = "README.md", kind: str = "sh") -> list[str]:
    return re.findall(rf"```{kind}\n(.+?)\n```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    """The commands in a page's blocks, each in one line."""
    return [line for block in blocks(page) for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]


def test_the_readmes_second_block_is_what_ci_runs() -> None:
    line = blocks()[1]
    assert "\n" not in line
    assert line in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readmes_first_block_is_one_command() -> None:
    first, *rest = blocks()[0].splitlines()
    assert first.startswith("pip install -r requirements.txt ")
    assert all(line.endswith("\\") for line in [first, *rest][:-1])
    assert "pipeline('text-classification', 'quickstart_model'" in rest[-1]


def test_the_readmes_torch_without_cuda_is_one_that_the_requirements_take() -> None:
    most = re.search(r"^torch\S*(<[\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert f'pip install "torch{most}" --index-url' in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1800


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("benchmarks")])
def test_no_command_is_wider_than_100_columns(page: str) -> None:
    assert not [line for block in blocks(page) for line in block.splitlines() if len(line) > 100]


@pytest.mark.parametrize("page", DOCS)
def test_a_page_opens_with_what_it_is_for(page: str) -> None:
    head, empty, first = (ROOT / page).read_text(encoding="utf-8").splitlines()[:3]
    assert head.startswith("# ")
    assert not empty
    assert re.match(r"[A-Z]", first), "a sentence"


@pytest.mark.parametrize(
    ("page", "least"), [("README.md", 12), ("docs/launching.md", 5), ("docs/from-huggingface.md", 2)]
)
def test_every_command_parses(page: str, least: int) -> None:
    """Every flag is one of the script's, with a value that it takes."""
    parser = script.build_parser()
    ours = [line for line in commands(page) if "run_glue_no_trainer.py --" in line]
    assert len(ours) >= least
    for command in ours:
        flags = command.split("run_glue_no_trainer.py ", 1)[1].split(" && ")[0]
        parser.parse_args(re.sub(r'"\$\([^)]*\)"', "folder", flags).split())


def test_every_command_is_of_a_kind_that_a_test_runs() -> None:
    """The script's by test_readme.py or, with a launcher, test_launch.py; patches below; the others as named."""
    kinds = {
        r"(\w+=\S+ )*(srun |mpirun -n 2 )?(accelerate launch|torchrun|python)( \S+)* run_glue_no_trainer.py -": "",
        r"pip install -r \S*requirements.txt": ".ci/run",
        r"accelerate config$": "asks questions",
        r"(cp|mv|patch|git diff) ": "test_the_patches_of_the_pages_apply",
        r"python -m pytest ": "pytest itself",
        r"python benchmarks/\w+.py ": "test_benchmarks.py",
        r"pip wheel |python -m zipfile |git tag ": "a release; test_ways_in.py installs the package",
        r"python -m venv xla|xla/bin/": "test_launch.py, where that environment is",
        r"#|export |\[ -e ": "the job for SLURM",
    }
    strange = [(page, line) for page in PAGES for line in commands(page) if not re.match("|".join(kinds), line)]
    assert not strange


@pytest.mark.parametrize("page", ["README.md", "examples/edits/README.md", "CONTRIBUTING.md"])
def test_the_patches_of_the_pages_apply(page: str, tmp_path: Path) -> None:
    (block,) = [block for block in blocks(page) if re.search("^patch ", block, re.MULTILINE)]
    shutil.copy(ROOT / "run_glue_no_trainer.py", tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for command in ("git init -q", "git add run_glue_no_trainer.py"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    ended = subprocess.run(["bash", "-ec", block], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "fuzz" not in ended.stdout
    assert (tmp_path / "run_glue_no_trainer.py").read_bytes() == (ROOT / "run_glue_no_trainer.py").read_bytes()
    if page == "CONTRIBUTING.md":  # a patch is made again
        made, there = ((tmp_path / name).read_text() for name in ("new.patch", "examples/edits/label_smoothing.patch"))
        assert made[made.index("\n--- ") :] == there[there.index("\n--- ") :]


def test_the_job_for_kubernetes_runs_the_script() -> None:
    (job,) = blocks("docs/launching.md", "yaml")
    (container,) = yaml.safe_load(job)["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "run_glue_no_trainer.py"]
    assert script.build_parser().parse_args(container["args"]).resume_from_checkpoint == "latest"


def test_the_page_of_flags_has_all_of_them_and_their_defaults() -> None:
    text = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(--\w+)` \| *`?([^|`]*)`? *\|", text, re.MULTILINE)
    actions = {name: action.default for name, action in script.build_parser()._option_string_actions.items()}
    actions |= {"--label_column_name": "label", "--max_length": 128}  # unless the model remembers others
    shown = {name: "off" if value is False else "" if value is None else str(value) for name, value in actions.items()}
    written = {name: default.strip() for name, default in rows}
    assert len(written) == len(rows)
    assert written == {name: shown[name] for name in shown if name not in ("-h", "--help", "--config")}
    assert "`--config FILE.yaml`" in text


@pytest.mark.parametrize("page", ["README.md", *DOCS])
def test_the_pages_name_no_flag_that_is_not_there(page: str) -> None:
    ours = set(script.build_parser()._option_string_actions)
    others = {"--index-url", "--logdir", "--multi_gpu", "--num_processes", "--model", "--signal", "--max_restarts"}
    others |= {"--text_column_delimiter", "--max_seq_length", "--output"}  # of which it says that they are not there
    others |= {"--smoothing"}  # a flag of one's own
    named = re.findall(
        r"`[^`\n]*`", re.sub(r"```.+?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    )
    flags = {flag for code in named for flag in re.findall(r"--[a-z][\w-]+", code)}
    assert not flags - ours - others


def test_the_pictures_are_small_and_the_terminal_is_not_squeezed() -> None:
    pictures = [*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")]
    assert {picture.stem for picture in pictures} == {"card", "confusion_matrix", "run", "training_curve"}
    assert all(picture.stat().st_size < 200_000 for picture in pictures)
    lines = re.findall(r"<text[^>]*>(.*)</text>", (ROOT / "docs" / "run.svg").read_text(encoding="utf-8"))
    assert len(lines) > 20
    assert all(len(html.unescape(line)) <= 80 for line in lines)


def test_the_quick_start_data() -> None:
    splits = {}
    for split, least in (("train", 300), ("validation", 75), ("test", 25)):
        with open(QUICKSTART / f"{split}.csv", newline="", encoding="utf-8") as rows:
            splits[split] = [(row["text"], row["label"]) for row in csv.DictReader(rows)]
        assert len(splits[split]) >= least
        assert {label for _, label in splits[split]} == {"account", "advice", "billing", "defect", "delivery"}
    texts = [text.lower() for rows in splits.values() for text, _ in rows]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    "recipe",
    [QUICKSTART / "recipe.yaml", *sorted((ROOT / "configs" / "recipes").iterdir())],
    ids=lambda file: file.stem,
)
def test_the_recipes_parse(recipe: Path) -> None:
    flags = read_config(str(recipe), script.build_parser())
    written = yaml.safe_load(recipe.read_text())
    assert len(flags) == len(written)
    args = script.build_parser().parse_args(flags)
    assert args.train_file == ["configs/quickstart/train.csv"] or args.task_name == recipe.stem
    assert args.learning_rate == float(written["learning_rate"])


def test_the_script_needs_what_requirements_name() -> None:
    files = [ROOT / "run_glue_no_trainer.py", *(ROOT / "no_trainer").glob("*.py")]
    imported = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"\S+ +# .+", line) for line in lines), "each line has its reason"
    listed = {re.split(r"[><=~]", line)[0] for line in lines}
    packages = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    needed = {packages.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"no_trainer"}}
    assert needed - listed == {"deepspeed", "matplotlib"}  # in a run that DeepSpeed started; where it is installed
    # loaded by transformers for some tokenizers, and by huggingface_hub for the card
    assert listed - needed == {"sentencepiece", "protobuf", "jinja2"}


def test_every_module_has_a_file_of_tests() -> None:
    modules = [file.stem for file in (ROOT / "no_trainer").glob("*.py") if file.stem != "__init__"]
    assert modules
    assert not [module for module in modules if not (ROOT / "tests" / f"test_{module}.py").exists()]


def test_no_module_imports_the_script_and_no_import_comes_back() -> None:
    """The modules have an order in which each needs those before it alone; imports inside functions count as well."""
    needs: dict[str, set[str]] = {}
    for file in (ROOT / "no_trainer").glob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        assert not [name for name in imported if name.split(".")[0] == "run_glue_no_trainer"], file.name
        needs[file.stem] = {name.split(".")[1] for name in imported if name.startswith("no_trainer.")}
    needs = {module: names & needs.keys() for module, names in needs.items()}
    assert needs["results"] >= {"run", "hub"}, "or this shows nothing"
    order = list(graphlib.TopologicalSorter(needs).static_order())  # a CycleError names the cycle
    assert all(order.index(name) < order.index(module) for module, names in needs.items() for name in names)

    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    floors = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)  # the top one first
    assert sorted(floors) == sorted(needs.keys() - {"__init__"})
    upwards = [
        (module, name) for module in floors for name in needs[module] if floors.index(name) < floors.index(module)
    ]
    assert not upwards, "a module imports from a floor above it in CONTRIBUTING.md"


def test_every_function_is_typed_and_the_code_is_clean() -> None:
    for command in (["check"], ["format", "--check"]):
        ended = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout


def test_the_script_stays_small_and_the_training_loop_fits_on_one_screen() -> None:
    text = (ROOT / "run_glue_no_trainer.py").read_text()
    main = next(node for node in ast.parse(text).body if getattr(node, "name", "") == "main")
    (loop,) = [node for node in main.body if isinstance(node, ast.While)]
    assert loop.end_lineno - loop.lineno < 50
    assert loop.lineno < 260
    assert main.end_lineno - main.lineno < 130
    assert len(text.splitlines()) <= 420


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "no_trainer").glob("*.py")))
def test_each_module_is_small_and_has_tests_of_its_name(module: str) -> None:
    assert len((ROOT / "no_trainer" / f"{module}.py").read_text().splitlines()) <= 250
    assert module == "__init__" or (ROOT / "tests" / f"test_{module}.py").is_file()
