"""Pushing to the Hub: what arrives there, what a failure costs, and where the token goes."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub import Hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

REPO = "someone/model"


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
    commits = [("first", ["README.md", "model.safetensors"]), ("second", ["README.md"])]
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
