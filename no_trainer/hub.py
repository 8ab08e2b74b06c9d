"""Sharing a model on the Hugging Face Hub."""

import argparse
import glob
from pathlib import Path

import huggingface_hub

from no_trainer.commands import join
from no_trainer.launch import say
from no_trainer.messages import stop, under_way
from no_trainer.run import Run

HUB_TIMEOUT = 120.0  # seconds without a byte; by default the client waits for ever


def make_repository(args: argparse.Namespace) -> str:
    """The repository to upload to, made before training so that a wrong token shows at once."""
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.get_session().timeout = HUB_TIMEOUT
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    private = args.hub_private_repo or None  # None: the account's default
    options = {"token": args.hub_token, "private": private, "exist_ok": True}
    try:
        return huggingface_hub.create_repo(name, **options).repo_id
    except (huggingface_hub.errors.HTTPError, OSError, ValueError) as error:
        stop(f"--push_to_hub: the repository {name} could not be made: {error}")


def upload(run: Run, message: str) -> None:
    """Start to upload this run's files and no others; until `finish_upload` they must not change."""
    begun = huggingface_hub.upload_folder(
        repo_id=run.repository,
        folder_path=run.args.output_dir,
        token=run.args.hub_token,
        allow_patterns=[glob.escape(name) for name in sorted(run.files)],
        commit_message=message,
        run_as_future=True,
    )
    run.uploads.append(begun)


def finish_upload(run: Run) -> None:
    """Wait for the uploads to end; a failed one is a warning and does not stop the run."""
    name, folder = run.repository, run.args.output_dir
    while run.uploads:
        with under_way(f"uploading to {name}"):
            error = run.uploads.pop().exception()
        if error is not None:
            files = [word for file in sorted(run.files) for word in ("--include", file)]
            private = ["--private"] * run.args.hub_private_repo
            again = join(["hf", "upload", name, folder, ".", *files, *private])
            why = str(error.__cause__ or error).partition("\n")[0]
            say(f"warning: the upload to {name} failed: {why}\nthe model is in {folder}; to upload it: {again}")
