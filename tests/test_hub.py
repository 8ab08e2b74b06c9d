"""Pushing to the Hub: what arrives there, what a failure costs, and where the token goes."""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from conftest import TORCHRUN, launch
from hub import Hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from packaging import version

REPO = "someone/model"
TENSORBOARD = ["--with_tracking", "--report_to", "tensorboard"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as serving:
        yield serving


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The real client, in this process: what `hub.environment` says, which was read when the client was imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "step_2").mkdir(parents=True)
    (tmp_path / "folder" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (tmp_path / "folder" / "model.safetensors").write_bytes(random.Random(0).randbytes(300_000))
    (tmp_path / "folder" / "step_2" / "optimizer.bin").write_bytes(b"not to be pushed")
    return tmp_path / "folder"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_the_stand_in_takes_what_the_client_pushes(hub: Hub, api: HfApi, folder: Path) -> None:
    assert api.whoami()["name"] == hub.user
    for _ in range(2):
        assert api.create_repo("model", private=True, exist_ok=True).repo_id == REPO
    for summary, card in (("first", "# A model\n"), ("second", "# A better model\n"), ("nothing new", None)):
        if card:
            (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{card}")
        api.upload_folder(repo_id=REPO, folder_path=folder, commit_message=summary, ignore_patterns=["step_*"])
    second = ["README.md"]
    if version.parse(huggingface_hub.__version__) < version.parse("1.20"):  # which names what has not changed as well
        second += ["model.safetensors"]
    commits = [("first", ["README.md", "model.safetensors"]), ("second", second)]
    assert hub.repos == {REPO: {"private": True, "files": contents(folder), "commits": commits}}
    assert [request.kind for request in hub.log].count("upload") == 1
    for request in hub.log:
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        assert hub.token not in f"{request.path} {headers} {request.body!r}"


def test_a_client_with_xet_pushes_in_one_commit_too(
    hub: Hub, api: HfApi, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hf_xet, `upload_folder` is other code; it is the one that users run."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    hub.lfs = False
    api.create_repo(REPO)
    hub.fail("commit", 507, times=1)
    with pytest.raises(HfHubHTTPError, match="507 Insufficient Storage"):
        api.upload_folder(repo_id=REPO, folder_path=folder, ignore_patterns=["step_*"])
    api.upload_folder(repo_id=REPO, folder_path=folder, ignore_patterns=["step_*"], commit_message="whole")
    commits = [("whole", ["README.md", "model.safetensors"])]
    assert hub.repos == {REPO: {"private": False, "files": contents(folder), "commits": commits}}


def test_a_process_of_its_own_reads_the_stand_in(hub: Hub, api: HfApi, folder: Path) -> None:
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=folder, ignore_patterns=["step_*"])
    code = f"import huggingface_hub as hub; print(hub.snapshot_download({REPO!r}, token={hub.token!r}))"
    code += f"; print(hub.hf_hub_download({REPO!r}, 'README.md', token={hub.token!r}))"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | hub.environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    snapshot, card = map(Path, ended.stdout.splitlines())
    assert contents(snapshot) == contents(folder)
    assert card.read_bytes() == (folder / "README.md").read_bytes()


def test_the_stand_in_refuses_another_token_and_another_owner(hub: Hub, api: HfApi) -> None:
    stranger = HfApi(endpoint=hub.url, token="hf_another")
    for call in (stranger.whoami, lambda: stranger.create_repo(REPO, exist_ok=True)):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert error.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match=r"403 Forbidden: You don't have the rights .* namespace \"other\""):
        api.create_repo("other/model", exist_ok=True)
    assert not hub.repos


def test_the_stand_in_fails_as_it_is_told_and_at_once(hub: Hub, api: HfApi, folder: Path) -> None:
    api.create_repo(REPO)
    started = time.monotonic()
    hub.fail("commit", 507, times=1)
    with pytest.raises(HfHubHTTPError, match="507 Insufficient Storage"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.fail("commit", "close", times=1)
    with pytest.raises(Exception, match="disconnected without sending a response"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.fail("upload", 501)
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors'") as error:
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert isinstance(error.value.__cause__, HfHubHTTPError)
    assert time.monotonic() - started < 2
    assert not hub.repos[REPO]["commits"]
    hub.fail("commit", "hold")
    hub.fail("upload", 501, times=0)
    pushed = api.upload_folder(repo_id=REPO, folder_path=folder, run_as_future=True)
    assert hub.held.wait(60)
    assert not pushed.done()
    hub.go.set()
    assert pushed.result(60).oid == api.model_info(REPO).sha


def push(hub: Hub, model: Path, *flags: object, **options: Any) -> subprocess.CompletedProcess:
    """Two epochs of eight steps, with a checkpoint in each, pushed to the stand-in."""
    flags = (
        "--model_name_or_path",
        model,
        "--push_to_hub",
        "--checkpointing_steps",
        6,
        "--num_train_epochs",
        2,
        *flags,
    )
    return launch(*flags, env=hub.environment() | {"HF_TOKEN": hub.token, "ACCELERATE_USE_CPU": "true"}, **options)


@pytest.mark.slow
def test_every_epoch_is_pushed_and_checkpoints_are_not(
    hub: Hub, tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    for private in (out / "notes.txt", out / "mine" / "data.json", out / "holiday.png", out / "service_account.json"):
        private.write_text("not for everybody")
    flags = [*own_files, "--output_dir", out, "--checkpointing_steps", "epoch"]
    ended = push(hub, tiny_model, *flags, "--hub_private_repo", *TENSORBOARD)
    assert ended.returncode == 0, ended.stderr
    repo = hub.repos["someone/out"]
    assert f"the model is at {hub.url}/someone/out" in ended.stdout
    assert repo["private"]
    assert [summary for summary, _ in repo["commits"]] == [
        "Training in progress, epoch 1",
        "Training in progress, epoch 2",
        "End of training",
    ]
    everything = {"README.md", "config.json", "log.jsonl", "model.safetensors", "tokenizer.json"}
    everything |= {"tokenizer_config.json", "training_curve.png", "confusion_matrix.png"}
    assert set(repo["commits"][0][1]) == everything
    assert set(repo["files"]) == everything | {"all_results.json"}
    assert all((out / name).read_bytes() == content for name, content in repo["files"].items())
    assert 'pipeline("text-classification", "someone/out"' in repo["files"]["README.md"].decode()
    hub.repos.clear()  # now with nothing left to train
    ended = push(hub, tiny_model, *flags, "--resume_from_checkpoint", "latest")
    assert ended.returncode == 0, ended.stderr
    assert set(hub.repos["someone/out"]["files"]) == everything | {"all_results.json"}


@pytest.mark.slow
def test_the_token_is_in_no_body_file_or_message(hub: Hub, tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--hub_model_id", "someone/else", "--hub_token", hub.token, "--with_tracking"]
    ended = push(hub, tiny_model, *own_files, "--output_dir", out, *flags, launcher=TORCHRUN)
    assert ended.returncode == 0, ended.stderr
    assert len(hub.repos["someone/else"]["commits"]) == 3  # one of the processes pushes
    assert "--hub_token $HF_TOKEN" in (out / "README.md").read_text()
    assert hub.token not in ended.stdout + ended.stderr
    assert {"events", "run"} <= {file.name.split(".")[0].split("-")[0] for file in out.rglob("*")}  # two trackers'
    assert not [file for file in out.rglob("*") if file.is_file() and hub.token.encode() in file.read_bytes()]
    assert any(request.headers.get("authorization") == f"Bearer {hub.token}" for request in hub.log)
    for request in hub.log:
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        assert hub.token not in f"{request.path} {headers} {request.body!r}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["commit", "upload"])
def test_a_failed_upload_ends_nothing_and_says_how_to_repeat_it(
    hub: Hub, tiny_model: Path, own_files: list, tmp_path: Path, kind: str
) -> None:
    hub.fail(kind, 507)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("not for everybody")
    ended = push(hub, tiny_model, *own_files, "--output_dir", out)
    assert ended.returncode == 0, ended.stderr
    assert (out / "all_results.json").exists()
    assert not hub.repos["someone/out"]["commits"]
    warnings = [line for line in ended.stdout.splitlines() if "the upload to someone/out failed: " in line]
    assert len(warnings) == 3
    assert all("507" in line for line in warnings)
    hub.fail(kind, 507, times=0)
    command = re.findall("to upload it: (.+)", ended.stdout)[-1]
    program = Path(sys.executable).parent
    environment = os.environ | hub.environment() | {"HF_TOKEN": hub.token, "PATH": f"{program}:{os.environ['PATH']}"}
    again = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, timeout=120)
    assert again.returncode == 0, again.stderr
    whole = {"README.md", "all_results.json", "config.json", "log.jsonl", "model.safetensors", "tokenizer.json"}
    assert set(hub.repos["someone/out"]["files"]) == whole | {
        "tokenizer_config.json",
        "training_curve.png",
        "confusion_matrix.png",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [("create", 2), ("commit", 0)])
def test_a_hub_that_never_answers_is_not_waited_for_for_ever(
    hub: Hub, tiny_model: Path, own_files: list, tmp_path: Path, kind: str, code: int
) -> None:
    hub.fail(kind, "hold")
    short = "import sys; import run_glue_no_trainer as script, no_trainer.hub; no_trainer.hub.HUB_TIMEOUT = 0.5; "
    short += "script.main(script.parse_args(sys.argv[2:]))"
    flags = [*own_files, "--output_dir", tmp_path / "out"]
    ended = push(hub, tiny_model, *flags, launcher=(sys.executable, "-c", short))
    assert ended.returncode == code, ended.stderr
    assert "timed out" in (ended.stderr if code else ended.stdout)
    assert (tmp_path / "out" / "all_results.json").exists() == (code == 0)


@pytest.mark.slow
def test_a_token_that_the_hub_does_not_know_is_an_error_before_training(
    hub: Hub, tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    ended = push(hub, tiny_model, *own_files, "--output_dir", tmp_path / "out", "--hub_token", "hf_of_somebody_else")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "error: --push_to_hub: the repository out could not be made: " in line
    assert "401" in line
    assert "step 4" not in ended.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "why"), [("not a name", "Repo id must"), ("out", "offline mode")])
def test_a_repository_that_cannot_be_made(
    run: Callable, own_files: list, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, why: str
) -> None:
    """The tests are offline, unless they say otherwise."""
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--output_dir", tmp_path / "out", "--push_to_hub", "--hub_model_id", name)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert f"error: --push_to_hub: the repository {name} could not be made: " in said
    assert why in said
    assert not (tmp_path / "out").exists()
