"""Ends a run: saves the model first, then the results, and last what may fail."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import datasets
import evaluate
import huggingface_hub
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase as Tokenizer

from no_trainer.card import pipeline_options, write_card
from no_trainer.commands import literal, quote
from no_trainer.folder import BEST, is_card
from no_trainer.glue import Task
from no_trainer.hub import finish_upload, upload
from no_trainer.launch import optional, say
from no_trainer.messages import many, show, stop
from no_trainer.metrics import plain, score_rows
from no_trainer.pictures import draw_confusion, draw_curve
from no_trainer.predictions import write_answers, write_mistakes
from no_trainer.run import Run, end_trackers, read_log
from no_trainer.weights import save_files

SHOWN = 20  # most classes in the summary


def all_results(run: Run, task: Task, last: bool) -> dict[str, Any]:
    """The run's scores, baselines, times and settings; `last`: with the best model's scores."""
    args, progress = run.args, run.progress
    results: dict[str, Any] = progress.results | task.baseline
    if progress.best:
        if args.load_best_model_at_end and last:
            results |= {n: value for n, value in progress.best.items() if n.startswith("eval_")}
        results |= {f"best_{name}": progress.best[name] for name in ("step", "epoch")}
        results[f"best_{task.best_metric}"] = progress.best[f"eval_{task.best_metric}"]
    if progress.step:
        rows = progress.step * progress.settings["global_batch_size"]
        seconds = time.perf_counter() - run.begun
        losses = [loss for _, loss, _ in progress.recent]  # since the last line of the log
        total, count = progress.loss_total + sum(losses), progress.loss_count + len(losses)
        results["train_loss"] = total / max(count, 1)
        results["train_runtime"] = round(seconds, 3)
        results["train_samples_per_second"] = round(rows / seconds, 2)
    libraries = (torch, transformers, accelerate, datasets, evaluate)
    versions = {library.__name__: library.__version__ for library in libraries}
    return results | progress.settings | {"versions": versions}


def share_model(run: Run, model: torch.nn.Module, tokenizer: Tokenizer, task: Task, message: str) -> None:
    """Save the model as it is now, with its card, and start to upload both."""
    finish_upload(run)  # an earlier upload may still read the files that change here
    run.files |= set(save_files(run, model, tokenizer))
    if run.accelerator.is_main_process:
        describe_model(run, model, task, all_results(run, task, last=False))
        upload(run, message)


def save_results(run: Run, model: torch.nn.Module, tokenizer: Tokenizer, task: Task) -> dict[str, Any]:
    """Save the model, if it was trained, then all_results.json; returns the results."""
    finish_upload(run)
    results = all_results(run, task, last=True)
    if run.args.output_dir and run.progress.step:  # otherwise nothing was trained
        run.files |= set(save_files(run, model, tokenizer))
    if run.args.output_dir and run.accelerator.is_main_process:
        file = Path(run.args.output_dir) / "all_results.json"
        try:
            write_results(file, results)
        except OSError as error:
            stop(f"{file} could not be written: {error}; the model is saved.", code=1)
        run.files.add(file.name)
        if run.progress.step and run.args.load_best_model_at_end:
            (Path(run.args.output_dir) / BEST).unlink(missing_ok=True)  # it is in the saved model now
    run.saved = bool(run.args.output_dir and run.progress.step)
    return results


def write_results(file: Path, results: dict[str, Any]) -> None:
    """Write all_results.json atomically."""
    aside = file.with_name(f".{file.name}.partial")
    written = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    aside.write_text(written, encoding="utf-8", errors="backslashreplace")
    aside.replace(file)


def describe_model(run: Run, model: torch.nn.Module, task: Task, results: dict[str, Any]) -> None:
    """Write the card, with pictures if matplotlib is there; a failure does not stop the run."""
    folder, metric = Path(run.args.output_dir), task.metrics[0]
    baseline, matrix = task.baseline.get(f"baseline_{metric}"), results.get("eval_confusion_matrix")
    lines = optional("log.jsonl cannot be read", read_log, folder) or []
    curve, confusion = folder / "training_curve.png", folder / "confusion_matrix.png"
    card = folder / "README.md"
    if optional("no picture of the curve", draw_curve, curve, lines, metric, baseline):
        run.files.add(curve.name)
    if optional("no picture of the confusion matrix", draw_confusion, confusion, task.labels, matrix):
        run.files.add(confusion.name)
    if card.is_symlink() or (card.exists() and not is_card(card)):
        what = "a link" if card.is_symlink() else "not a model card"
        say(f"warning: {show(str(card))} is {what} and stays as it is; no card written")
        return
    bare = run.accelerator.unwrap_model(model, keep_torch_compile=False)
    if optional("no card", write_card, run, bare, task, results, lines):
        run.files.add(card.name)


def save_mistakes(
    run: Run, task: Task, splits: dict[str, Dataset], to_probabilities: Callable[[Task, torch.Tensor], torch.Tensor]
) -> None:
    """Write the validation predictions, worst first, and note the first three mistakes."""
    if not run.args.output_dir or not run.accelerator.is_main_process:
        return
    for name, (logits, labels) in run.predictions.items():
        answers = (splits[name], logits, labels, to_probabilities(task, logits))
        failed = "the validation predictions could not be written"
        run.mistakes += optional(failed, write_mistakes, run, task, name, *answers) or []


def after_training(run: Run, name: str, work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """The result of `work` for the split `name`; if it fails when the model is saved, a warning and nothing.

    Of several processes, one that goes on alone would wait for the others: there a failure ends the run.
    """
    if not run.saved or run.accelerator.num_processes > 1:
        return work(*args)
    return optional(f"the {name} data could not be predicted", work, *args) or {}


def write_predictions(
    run: Run,
    task: Task,
    name: str,
    split: Dataset,
    logits: torch.Tensor,
    probabilities: torch.Tensor,
    scores: dict[str, Any],
) -> dict[str, Any]:
    """Write the answers for a split; returns its `scores`, if any, as `test_<metric>`."""
    if not logits.isfinite().all():
        stop(f"the model's answers for the {name} data are not finite: its weights are broken.", code=1)
    ending = name.removeprefix("test") if name.startswith("test") else f"_{name}"  # such as ax
    found = {f"test_{metric}{ending}": value for metric, value in plain(scores).items()}
    if run.accelerator.is_main_process:
        try:
            write_answers(run, task, name, split, logits, probabilities)
        except OSError as error:
            if not run.progress.step:
                stop(f"the predictions could not be written: {error}.", code=1)
            say(f"warning: the predictions could not be written: {error}; the model is saved")
    return found


def finish(run: Run, model: torch.nn.Module, task: Task, results: dict[str, Any]) -> dict[str, Any]:
    """Write the card, upload, print the summary and close the trackers; returns the results."""
    if run.args.output_dir and run.accelerator.is_main_process:
        if any(name.startswith("test_") for name in results):
            file = Path(run.args.output_dir) / "all_results.json"
            optional("the test scores could not be added", write_results, file, results)
        if run.progress.step:
            describe_model(run, model, task, results)
        if run.args.push_to_hub:
            upload(run, "End of training")
            finish_upload(run)
    say(summary(run, run.accelerator.unwrap_model(model), task, results))
    optional("a tracker could not be closed", end_trackers, run)
    return results


def summary(run: Run, model: torch.nn.Module, task: Task, results: dict[str, Any]) -> str:
    """The scores, the worst class, where the model is and the next command; then the classes and
    the worst mistakes, as many as fit on a screen.
    """
    args, classes = run.args, results.get("eval_per_class", {})
    columns, rows = shutil.get_terminal_size((100, 40)) if sys.stdout.isatty() else (100, 40)
    lines = score_lines(results)
    f1 = {label: scores["f1"] for label, scores in classes.items() if scores["support"]}
    worst = min(sorted(f1), key=f1.get, default=None)
    if worst is not None and f1[worst] < 1:
        lines.append(f"the worst class is {short(worst, 40)}, with an f1 of {f1[worst]:.4f}")
    if "train_runtime" in results:
        minutes, seconds = divmod(round(results["train_runtime"]), 60)
        steps = f"{many(results['step'], 'step')} in {minutes} min {seconds} s"
        rate = f"{results['train_samples_per_second']:g} rows a second"
        lines.append(f"{steps}, {rate}, evaluations included")
    if args.output_dir:
        there = ["model"] * bool(results["step"]) + ["checkpoints"] * bool(args.checkpointing_steps)
        there += ["predictions"] * args.do_predict
        saved = ", ".join(there) + " and " * bool(there)
        lines.append(f"{saved}results are in {show(args.output_dir)}")
    else:
        lines.append("nothing is saved without an --output_dir")
    if run.repository:
        lines.append(f"the model is at {huggingface_hub.constants.ENDPOINT}/{run.repository}")
    if args.output_dir and results["step"] and "training_curve.png" not in run.files:
        lines.append("the card has no pictures: pip install matplotlib")
    if args.output_dir and results["step"] and hasattr(model, "save_pretrained"):
        question = {"text": "...", "text_pair": "..."} if len(task.text_columns) == 2 else "..."
        model_name, options = literal(args.output_dir), pipeline_options(task)
        ask = f'print(pipeline("text-classification", {model_name}, truncation=True)({literal(question)}{options}))'
        lines.append(f"to ask it: python -c {quote(f'from transformers import pipeline; {ask}')}")
    if classes:
        lines += class_lines(classes, min(SHOWN, max(5, rows - len(lines) - 8)))
    if run.mistakes:
        lines.append("the worst mistakes, first in validation_predictions.csv:")
        lines += [f"  {short(line, columns - 2)}" for line in run.mistakes[:3]]
    return "\n".join(lines)


def short(text: str, columns: int) -> str:
    """A text in one line of at most `columns` characters."""
    shown = show(" ".join(text.split()))
    return shown if len(shown) <= columns else f"{shown[: columns - 3]}..."


def score_lines(results: dict[str, Any]) -> list[str]:
    """A table of the scores, with their baselines if they have one."""
    rows = score_rows(results)
    lines = [f"{'':24}{'score':>10}{'baseline':>10}"] if rows else []
    for row in rows:
        baseline = "" if row["baseline"] is None else f"{row['baseline']:>10.4f}"
        lines.append(f"{row['metric']:24}{row['score']:>10.4f}{baseline}")
    return lines


def class_lines(classes: dict[str, dict[str, float]], most: int) -> list[str]:
    """Precision, recall, F1 and rows of each class, or of the `most` with the lowest F1."""
    worst = sorted(classes, key=lambda label: classes[label]["f1"])[:most]
    chosen = classes if len(classes) <= most else worst
    title = "class" if len(classes) <= most else f"the {most} worst of {len(classes)}"
    lines = [f"{title:24}{'precision':>10}{'recall':>10}{'f1':>10}{'rows':>10}"]
    for label in chosen:
        scores = "".join(f"{classes[label][name]:>10.4f}" for name in ("precision", "recall", "f1"))
        lines.append(f"{short(label, 23):24}{scores}{classes[label]['support']:>10,}")
    return lines
