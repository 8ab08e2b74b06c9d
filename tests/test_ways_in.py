"""The ways in besides a shell: a notebook, a thread, a module, a read-only folder, a copy of the script."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, launch
from jupyter_client.manager import start_new_kernel

import run_glue_no_trainer as script


def test_a_thread(run: Callable, own_files: list, tmp_path: Path) -> None:
    """Signals come to the main thread alone: here there are no handlers to set."""
    results = []
    flags = ["--max_train_steps", 2, "--output_dir", tmp_path]
    thread = threading.Thread(target=lambda: results.append(run(*own_files, *flags)))
    thread.start()
    thread.join()
    assert results[0]["step"] == 2
    assert (tmp_path / "model.safetensors").exists()


def test_an_error_in_a_thread(own_files: list, capsys: pytest.CaptureFixture) -> None:
    codes = []

    def go() -> None:
        try:
            script.parse_args([*own_files])
        except SystemExit as ended:
            codes.append(ended.code)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert codes == [2]
    assert "--model_name_or_path is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_notebook(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """`%run`, in a real kernel; an interrupt is afterwards what it was before."""
    manager, client = start_new_kernel(cwd=str(tmp_path))
    said: list[str] = []

    def listen(message: dict) -> None:
        said.append(message["content"].get("text", "") + "\n".join(message["content"].get("traceback", [])))

    try:
        flags = f"--model_name_or_path {tiny_model} {' '.join(own_files)} --max_train_steps 2 --output_dir out"
        before = "import signal; handler = signal.getsignal(signal.SIGINT)"
        for code in (
            before,
            f"%run {ROOT / 'run_glue_no_trainer.py'} {flags}",
            "print('same', signal.getsignal(signal.SIGINT) is handler)",
            "from run_glue_no_trainer import main, parse_args",
            f"results = main(parse_args({[*flags.split()[:-1], 'called']}))",
            f"%run {ROOT / 'run_glue_no_trainer.py'} --task_name rte",
        ):
            client.execute_interactive(code, timeout=120, output_hook=listen)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    text = "".join(said)
    assert "model and results are in out" in text, text
    assert "same True" in text
    assert "error: --model_name_or_path is needed" in text
    assert (tmp_path / "out" / "all_results.json").exists()
    card = (tmp_path / "called" / "README.md").read_text()
    assert f"python run_glue_no_trainer.py --model_name_or_path {tiny_model}" in card
    assert "kernel" not in card


@pytest.mark.slow
def test_a_notebooks_processes(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from accelerate import notebook_launcher
def train():
    import run_glue_no_trainer as script
    flags = {["--model_name_or_path", str(tiny_model), *own_files, "--max_train_steps", "2", "--output_dir", "out"]}
    script.main(script.parse_args(flags))
notebook_launcher(train, num_processes=2)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    (tmp_path / "cell.py").write_text(code)
    command = [sys.executable, "cell.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert "training for 2 steps of 16 rows" in ended.stdout
    assert ended.stdout.count("model and results are in out") == 1


@pytest.mark.slow
def test_mpirun(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    if not shutil.which("mpirun"):
        pytest.skip("there is no mpirun")
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 2, "--output_dir", tmp_path / "out"]
    mpi = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ended = launch(*flags, launcher=mpi, env=address | {"ACCELERATE_USE_CPU": "true"})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("training for 2 steps of 16 rows") == 1


@pytest.mark.slow
def test_a_module_and_another_folder(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """`python -m` finds it on the path; a script is also started from elsewhere, and where it may not write."""
    read_only = tmp_path / "project"
    read_only.mkdir()
    shutil.copy(ROOT / "run_glue_no_trainer.py", read_only)
    shutil.copytree(ROOT / "no_trainer", read_only / "no_trainer", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (read_only, read_only / "no_trainer"):
        folder.chmod(0o555)
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 1, "--output_dir"]
    for number, start in enumerate((["-m", "run_glue_no_trainer"], [read_only / "run_glue_no_trainer.py"])):
        command = [sys.executable, *start, *flags, tmp_path / str(number)]
        environment = os.environ | {"PYTHONPATH": str(read_only)}
        ended = subprocess.run(
            [str(word) for word in command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / str(number) / "all_results.json").exists()
    read_only.chmod(0o755)
    (read_only / "no_trainer").chmod(0o755)


def test_a_copy_without_its_folder_says_what_it_needs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "run_glue_no_trainer.py", tmp_path / "mine.py")
    ended = subprocess.run([sys.executable, "mine.py", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "error: needs the folder no_trainer/" in line


@pytest.mark.slow
def test_pip_installs_what_a_copy_needs(own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """The package, without what it depends on, which is here; the copied script then runs in an empty folder."""
    source, here = tmp_path / "source", tmp_path / "here"
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "no_trainer", source / "no_trainer")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", source]
    subprocess.run([str(word) for word in pip], check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "site").iterdir() if "dist-info" not in path.name} == {"no_trainer"}
    assert (tmp_path / "site" / "no_trainer" / "card.jinja").exists()
    here.mkdir()
    shutil.copy(ROOT / "run_glue_no_trainer.py", here / "mine.py")
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 1, "--output_dir", "out"]
    command = [sys.executable, "mine.py", *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    ended = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (here / "out" / "README.md").exists()


def test_the_scripts_own_list_of_requirements_is_the_files() -> None:
    """PEP 723, for `uv run`."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", (ROOT / "run_glue_no_trainer.py").read_text(), re.M)[1]
    listed = re.findall(r'"([^"]+)",', block)
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == [line.split(" ")[0] for line in lines]
    assert 'requires-python = ">=3.10"' in block
