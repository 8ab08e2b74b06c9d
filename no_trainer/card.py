"""The model card, from card.jinja beside this file, and the training curve."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from no_trainer.glue import Task
from no_trainer.launch import hardware
from no_trainer.messages import own_command
from no_trainer.run import Run, numbers_in

HUB_NAMES = {"pearson": "pearsonr", "macro_f1": "f1"}  # metrics that the hub knows by another name


def write_card(
    run: Run, model: torch.nn.Module, task: Task, results: dict[str, Any], lines: list[dict[str, Any]]
) -> None:
    """README.md in --output_dir: what the model is, its scores, how to use it, how it was made."""
    args, folder, base = run.args, Path(run.args.output_dir), run.args.model_name_or_path
    scores = {
        key.removeprefix("eval_"): value for key, value in numbers_in(results).items() if key.startswith("eval_")
    }
    hub_data = None if Path(args.dataset_name or "").exists() else args.dataset_name
    hub_data = "nyu-mll/glue" if args.task_name else hub_data
    files = [Path(file).name for file in args.train_file or []]
    data = f"GLUE {args.task_name}" if args.task_name else hub_data or " ".join(files) or Path(args.dataset_name).name
    metadata = ModelCardData(
        model_name=(run.repository or folder.absolute().name).split("/")[-1],
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=None if Path(base).exists() else base,
        datasets=[hub_data] if hub_data else None,
        metrics=sorted({HUB_NAMES.get(metric, metric) for metric in task.metrics}),
        tags=["text-classification", "accelerate"],
        eval_results=measured(scores, hub_data or "own-data", data, args.task_name) or None,
    )
    first, second = "The parcel came a day early.", "The parcel was late."
    home = re.escape(os.path.expanduser("~"))  # which a card that is published need not tell
    card = ModelCard.from_template(
        metadata,
        str(Path(__file__).with_name("card.jinja")),
        origin=Path(base).name if Path(base).exists() else f"[{base}](https://huggingface.co/{base})",
        data=data,
        reads=" + ".join(task.text_columns),
        answers=", ".join(task.labels or ["a number"]),
        baseline="the commonest class" if task.labels else "the mean",
        scores=markdown_table(
            [{"metric": k, "score": v, "baseline": results.get(f"baseline_{k}")} for k, v in scores.items()]
        ),
        has_pipeline=hasattr(model, "save_pretrained"),
        model=json.dumps(run.repository or args.output_dir),
        question=json.dumps(first if len(task.text_columns) == 1 else {"text": first, "text_pair": second}),
        curve="![Loss and score by step](training_curve.png)" * (folder / "training_curve.png").exists(),
        evaluations=markdown_table(evaluations(lines)),
        table=run.table,
        command=re.sub(rf"{home}(?=/)", "~", own_command()),
        settings=markdown_table(settings(run, task, results)),
    )
    card.save(folder / "README.md")


def measured(scores: dict[str, float], dataset_type: str, dataset_name: str, config: str | None) -> list[EvalResult]:
    """The scores as the hub reads them: https://huggingface.co/docs/hub/model-cards."""
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_config=config,
            dataset_split="validation_mismatched" if metric.endswith("_mm") else "validation",
            metric_type=HUB_NAMES.get(metric.removesuffix("_mm"), metric.removesuffix("_mm")),
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in scores.items()
        if "loss" not in metric
    ]


def evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations in log.jsonl, each with the training loss before it."""
    found, loss = [], None
    for line in lines:
        loss = line.get("loss", loss)
        if "eval_loss" in line:
            found.append({"epoch": line["epoch"], "step": line["step"], "training loss": loss} | line)
    return found


def settings(run: Run, task: Task, results: dict[str, Any]) -> list[dict[str, Any]]:
    """How the model was made."""
    known = ("seed", "global_batch_size", "schedule", "weight_decay", "max_grad_norm", "train_runtime")
    made = {name: results.get(name) for name in known} | {
        "max_length": task.max_length,
        "optimizer": "AdamW, betas 0.9 and 0.999, epsilon 1e-8",
        "mixed precision": run.accelerator.mixed_precision,
        "run on": hardware(run.accelerator),
        "versions": ", ".join(f"{module} {version}" for module, version in results["versions"].items()),
    }
    return [{"setting": name, "value": value} for name, value in made.items()]


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """A table with the keys of the rows as its header."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    header = [[*rows[0]], ["---"] * len(rows[0])] if rows else []
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in [*header, *(row.values() for row in rows)])


def draw_curve(file: Path, lines: list[dict[str, Any]], metric: str, baseline: float | None) -> None:
    """The losses and the task's metric by optimizer step, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:  # it is not there, or was built for another NumPy
        return
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for axis, name in ((losses, "loss"), (losses, "eval_loss"), (scores, f"eval_{metric}")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axis.plot(*np.transpose(points), marker=".", label=name)
        axis.set_xlabel("step")
    if baseline is not None:
        scores.axhline(baseline, linestyle=":", color="gray", label="baseline")
    losses.legend()
    scores.legend()
    figure.savefig(file)
