"""Writes the model card from card.jinja, which is beside this file."""

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from no_trainer.commands import literal, own_command
from no_trainer.glue import SEVERAL, Task
from no_trainer.launch import hardware
from no_trainer.messages import show, show_lines
from no_trainer.metrics import ALWAYS, score_rows
from no_trainer.run import Run

HUB_NAMES = {"pearson": "pearsonr", "macro_f1": "f1", "micro_f1": "f1"}  # names on the hub
BASELINE = "The baseline always answers {} of the training data."
BASELINE_SEVERAL = (
    "A class is predicted if its probability is above 0.5. "
    "The baseline always gives the commoner answer for each class."
)
EXAMPLE = {"text": "The parcel came a day early.", "text_pair": "The parcel was late."}


def write_card(
    run: Run, model: torch.nn.Module, task: Task, results: dict[str, Any], lines: list[dict[str, Any]]
) -> Path:
    """Write README.md to --output_dir: the model, its scores, its use and its training."""
    args, folder, base = run.args, Path(run.args.output_dir), run.args.model_name_or_path
    scores = score_rows(results)
    hub_data = None if Path(args.dataset_name or "").exists() else args.dataset_name
    hub_data = "nyu-mll/glue" if args.task_name else hub_data
    files = [Path(file).name for file in args.train_file or []]
    data = hub_data or " ".join(files) or Path(args.dataset_name).name
    data = f"GLUE {args.task_name}" if args.task_name else data
    name = (run.repository or folder.absolute().name).split("/")[-1]
    on_hub = not Path(base).exists()
    metadata = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=base if on_hub else None,
        datasets=[hub_data] if hub_data else None,
        metrics=sorted({HUB_NAMES.get(metric, metric) for metric in task.metrics}),
        tags=["text-classification", "accelerate"],
        eval_results=hub_scores(scores, hub_data or "own-data", data, args.task_name) or None,
    )
    classes = [{"class": label} | row for label, row in results.get("eval_per_class", {}).items()]
    command = own_command(args.argv)
    card = ModelCard.from_template(
        metadata,
        str(Path(__file__).with_name("card.jinja")),
        title=text(name),
        origin=f"[{text(base)}](https://huggingface.co/{base})" if on_hub else text(Path(base).name),
        data=text(data),
        reads=" + ".join(map(text, task.text_columns)),
        answers=", ".join(map(text, task.labels or ["a number"])),
        baseline=BASELINE_SEVERAL if task.several else BASELINE.format(ALWAYS[task.problem_type]),
        scores=markdown_table(scores),
        classes=markdown_table(classes),
        confusion="confusion_matrix.png" in run.files,
        has_pipeline=hasattr(model, "save_pretrained"),
        model=literal(run.repository or args.output_dir),
        question=literal(example(task)),
        options=pipeline_options(task),
        curve="![Loss and score by step](training_curve.png)" * ("training_curve.png" in run.files),
        evaluations=markdown_table(evaluations(lines)),
        table=show_lines(run.table),
        command=show_lines(command),
        fence="`" * max(map(len, ["``", *re.findall("`+", run.table + command)])) + "`",
        settings=markdown_table(settings(run, task, results)),
    )
    file = folder / "README.md"
    file.write_text(str(card), encoding="utf-8", errors="backslashreplace")
    return file


def pipeline_options(task: Task) -> str:
    """What a pipeline is called with, besides a text, to tell all classes where a row may have several."""
    return ", top_k=None" * (task.problem_type == SEVERAL)


def example(task: Task) -> str | dict[str, str]:
    """The example input for a pipeline."""
    if len(task.text_columns) == 2:
        return EXAMPLE
    return f" {task.separator} ".join([EXAMPLE["text"]] * len(task.text_columns))


def text(value: Any) -> str:
    """A value in one line, escaped so that Markdown and HTML show it as it is."""
    escaped = re.sub(r"([\\`*{}\[\]#|~$])", r"\\\1", html.escape(show(str(value)), quote=False))
    return re.sub(r"(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])", r"\\_", escaped)  # harmless in a word


def hub_scores(rows: list[dict], dataset_type: str, dataset_name: str, config: str | None) -> list[EvalResult]:
    """The scores as the hub reads them: https://huggingface.co/docs/hub/model-cards."""
    found = []
    for row in rows:
        split = "test" if row["metric"].startswith("test_") else "validation"
        metric = row["metric"].removeprefix("test_")
        bare = metric.removesuffix("_mm")
        if bare != "loss":
            result = EvalResult(
                task_type="text-classification",
                dataset_type=dataset_type,
                dataset_name=dataset_name,
                dataset_config=config,
                dataset_split=split if bare == metric else f"{split}_mismatched",
                metric_type=HUB_NAMES.get(bare, bare),
                metric_name=metric,
                metric_value=round(row["score"], 4),
            )
            found.append(result)
    return found


def evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations in log.jsonl, each with the last training loss before it."""
    found, loss = [], None
    for line in lines:
        loss = line.get("loss", loss)
        if "eval_loss" in line:
            first = {"epoch": line["epoch"], "step": line["step"], "training loss": loss}
            found.append(first | line)
    return found


def settings(run: Run, task: Task, results: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings and versions with which the model was trained."""
    known = ("seed", "global_batch_size", "schedule", "weight_decay", "max_grad_norm", "train_runtime")
    made = {name: results.get(name) for name in known} | {
        "max_length": task.max_length,
        "optimizer": "AdamW, betas 0.9 and 0.999, epsilon 1e-8",
        "mixed precision": run.accelerator.mixed_precision,
        "run on": hardware(run.accelerator),
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }
    return [{"setting": name, "value": value} for name, value in made.items()]


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """A table with the keys of the rows as its header; an empty string without rows."""

    def line(cells: Iterable[Any]) -> str:
        written = ["" if c is None else f"{c:.4g}" if isinstance(c, float) else text(c) for c in cells]
        return f"| {' | '.join(written)} |"

    if not rows:
        return ""
    lines = [line(row.values()) for row in rows]
    return "\n".join([line(rows[0]), f"|{' --- |' * len(rows[0])}", *lines])
