"""What stands beside the script."""

import ast
import csv
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import run_glue_no_trainer as script
from no_trainer.arguments import read_config

QUICKSTART = ROOT / "configs" / "quickstart"


def blocks(page: str = "README.md", kind: str = "sh") -> list[str]:
    return re.findall(rf"```{kind}\n(.+?)\n```", (ROOT / page).read_text(), re.DOTALL)


def test_the_readmes_second_line_is_what_ci_runs() -> None:
    line = blocks()[1]
    assert "\n" not in line
    assert line in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize(("page", "least"), [("README.md", 6), ("configs/README.md", 2)])
def test_every_command_parses(page: str, least: int) -> None:
    """Every flag is one of the script's, with a value that it takes."""
    parser = script.build_parser()
    commands = [line for block in blocks(page) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    commands = [line for line in commands if "run_glue_no_trainer.py --" in line]
    assert len(commands) >= least
    for command in commands:
        flags = command.split("run_glue_no_trainer.py ", 1)[1].split(" && ")[0]
        parser.parse_args(re.sub(r'"\$\([^)]*\)"', "folder", flags).split())


def test_the_job_for_kubernetes_runs_the_script() -> None:
    (job,) = blocks("configs/README.md", "yaml")
    (container,) = yaml.safe_load(job)["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "run_glue_no_trainer.py"]
    assert script.build_parser().parse_args(container["args"]).resume_from_checkpoint == "latest"


def test_the_readme_names_every_flag() -> None:
    text = (ROOT / "README.md").read_text()
    flags = [option for option in script.build_parser()._option_string_actions if option.startswith("--")]
    assert not [flag for flag in flags if flag not in text and flag != "--help"]


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


def test_every_function_is_typed_and_the_code_is_clean() -> None:
    for command in (["check"], ["format", "--check"]):
        ended = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout


def test_the_training_loop_fits_on_one_screen() -> None:
    tree = ast.parse((ROOT / "run_glue_no_trainer.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    (loop,) = [node for node in main.body if isinstance(node, ast.While)]
    assert loop.end_lineno - loop.lineno < 50
