"""What a run leaves: the best model, the results, the predictions, and a summary for people."""

import contextlib
import csv
import json
import math
import shlex
import time
import zipfile
from pathlib import Path
from typing import Any

import accelerate
import datasets
import evaluate
import torch
import transformers
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PreTrainedTokenizerBase as Tokenizer

from no_trainer.card import draw_curve, write_card
from no_trainer.folder import BEST
from no_trainer.glue import IN_WORDS, TEST_FILES, Task
from no_trainer.hub import finish_upload, upload
from no_trainer.launch import say, together
from no_trainer.messages import stop
from no_trainer.models import save_model
from no_trainer.run import Run, end_trackers, numbers_in


def note_best(run: Run, model: torch.nn.Module, task: Task) -> None:
    """Note whether the latest evaluation is the best so far; if so, keep its weights for --load_best_model_at_end."""
    progress, name = run.progress, f"eval_{task.best_metric}"
    sign = -1 if task.best_metric.startswith(("loss", "mse")) else 1
    if sign * progress.results[name] <= sign * progress.best.get(name, -sign * math.inf):
        progress.waited += 1
        return
    progress.best, progress.waited = progress.results, 0
    if run.args.load_best_model_at_end:
        weights, aside = whole_weights(run, model), Path(run.args.output_dir) / ".best.partial"
        once = {weight.data_ptr(): name for name, weight in weights.items()}  # tied weights have several names
        weights = {name: weights[name] for name in once.values()}
        together(run.accelerator, lambda: run.accelerator.save(weights, aside, safe_serialization=True), aside)
        if run.accelerator.is_main_process:
            aside.replace(Path(run.args.output_dir) / BEST)


def whole_weights(run: Run, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights by their names in the bare model; where each process has a share of them, only the first has all."""
    weights = run.accelerator.get_state_dict(model) or {}
    if run.accelerator.device.type == "xla":
        weights = {name: weight.cpu() for name, weight in weights.items()}
    return {name.replace("_orig_mod.", ""): weight for name, weight in weights.items()}  # torch.compile's addition


def load_best(run: Run, model: torch.nn.Module, task: Task) -> None:
    """Give the model the weights of the best evaluation."""
    best = run.progress.best
    say(f"the best model is that of step {best['step']}: {task.best_metric} {best[f'eval_{task.best_metric}']:.4f}")
    run.accelerator.wait_for_everyone()
    weights = load_file(Path(run.args.output_dir) / BEST)
    bare = run.accelerator.unwrap_model(model, keep_torch_compile=False)
    whole = contextlib.nullcontext()
    if hasattr(next(bare.parameters()), "ds_id"):  # DeepSpeed's ZeRO-3: each process has a share of each weight
        import deepspeed  # Accelerate's own GatheredParameters does nothing unless the model was also made in shares

        whole = deepspeed.zero.GatheredParameters(list(bare.parameters()), modifier_rank=0)
    with whole:  # not strict: tied weights are saved once
        set_model_state_dict(bare, weights, options=StateDictOptions(full_state_dict=True, strict=False))


def all_results(run: Run, task: Task, last: bool) -> dict[str, Any]:
    """What is known about the run: scores (at the `last` those of the best model), baselines, times, settings."""
    args, progress = run.args, run.progress
    results: dict[str, Any] = progress.results | task.baseline
    if progress.best:
        if args.load_best_model_at_end and last:
            results |= {name: value for name, value in progress.best.items() if name.startswith("eval_")}
        results |= {f"best_{name}": progress.best[name] for name in ("step", "epoch")}
        results[f"best_{task.best_metric}"] = progress.best[f"eval_{task.best_metric}"]
    if progress.step:
        rows, seconds = progress.step * progress.settings["global_batch_size"], time.perf_counter() - run.begun
        losses = [loss for _, loss, _ in progress.recent]  # since the last line of the log
        results["train_loss"] = (progress.loss_total + sum(losses)) / max(progress.loss_count + len(losses), 1)
        results |= {"train_runtime": round(seconds, 3), "train_samples_per_second": round(rows / seconds, 2)}
    versions = {m.__name__: m.__version__ for m in (torch, transformers, accelerate, datasets, evaluate)}
    return results | progress.settings | {"versions": versions}


def share_model(
    run: Run, model: torch.nn.Module, tokenizer: Tokenizer, task: Task, message: str, last: bool = False
) -> dict[str, Any]:
    """Save the model, at the `last` the results too, which it returns; with --push_to_hub upload it in a thread."""
    finish_upload(run)  # it reads the files that are about to be written
    results = keep_model(run, model, tokenizer, task, last)
    if run.args.push_to_hub and run.accelerator.is_main_process:
        upload(run, message)
    return results


def keep_model(run: Run, model: torch.nn.Module, tokenizer: Tokenizer, task: Task, last: bool) -> dict[str, Any]:
    """Save what was trained and its card, and at the `last` all_results.json, in --output_dir; returns the results."""
    results, folder = all_results(run, task, last), Path(run.args.output_dir or "")
    main_process, weights = run.accelerator.is_main_process, whole_weights(run, model)

    def write() -> None:
        if main_process and run.progress.step:  # else the model is where it was
            bare = run.accelerator.unwrap_model(model, keep_torch_compile=False)
            save_model(bare, weights, folder)
            tokenizer.save_pretrained(folder)
            log_lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
            draw_curve(
                folder / "training_curve.png",
                log_lines,
                task.metrics[0],
                task.baseline.get(f"baseline_{task.metrics[0]}"),
            )
            write_card(run, bare, task, results, log_lines)
        if main_process and last:
            text = json.dumps(results, indent=2, ensure_ascii=False)
            (folder / "all_results.json").write_text(text + "\n", encoding="utf-8")

    if run.args.output_dir:
        together(run.accelerator, write, folder / "model.safetensors")
        if main_process and last:
            (folder / BEST).unlink(missing_ok=True)  # it is the model now
    return results


def write_predictions(run: Run, task: Task, name: str, logits: torch.Tensor, probabilities: torch.Tensor) -> None:
    """The answers to the rows of a split, as a table of their own or as GLUE's server takes them.

    `logits` and `probabilities`: [rows, classes].
    """
    args, folder = run.args, Path(run.args.output_dir)
    if not run.accelerator.is_main_process:
        return
    if args.task_name:
        part = {"test_mismatched": "mnli_mm", "ax": "ax"}.get(name, args.task_name)
        file, rows = folder / "glue" / f"{TEST_FILES[part]}.tsv", server_rows(task, part, logits)
    else:
        file, rows = (
            folder / f"predict_results{name.removeprefix('test')}.csv",
            table_rows(task, logits, probabilities),
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if args.task_name else ",", lineterminator="\n")
            writer.writerows(rows)
    except OSError as error:
        stop(f"the predictions could not be written, the model is saved: {error}.", code=1)
    say(f"{len(rows) - 1} predictions are in {file}")
    if args.task_name:
        pack_submission(folder / "glue")


def table_rows(task: Task, logits: torch.Tensor, probabilities: torch.Tensor) -> list[list]:
    """predict_results.csv: the answer to each row, its probability and every class's; the header first."""
    if not task.labels:
        return [["label"], *([value] for value in logits[:, 0].tolist())]
    header = ["label", "probability", *(f"probability_{label}" for label in task.labels)]
    chosen, shares = logits.argmax(-1).tolist(), probabilities.tolist()
    return [header, *([task.labels[k], row[k], *row] for k, row in zip(chosen, shares, strict=True))]


def server_rows(task: Task, part: str, logits: torch.Tensor) -> list[list]:
    """The file of GLUE's server for this part of the benchmark; the header first."""
    header = ["index", "prediction"]
    if task.labels is None:
        return [header, *([i, f"{min(max(value, 0), 5):.3f}"] for i, value in enumerate(logits[:, 0].tolist()))]
    answers = task.words if part in IN_WORDS else task.values
    return [header, *([index, answers[k]] for index, k in enumerate(logits.argmax(-1).tolist()))]


def pack_submission(folder: Path) -> None:
    """submission.zip, as GLUE's server takes it, once the files of all tasks are there."""
    files = [folder / f"{name}.tsv" for name in TEST_FILES.values()]
    if all(file.exists() for file in files):
        with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)


def finish(run: Run, model: torch.nn.Module, task: Task, results: dict[str, Any]) -> dict[str, Any]:
    """Sum the run up and close what it has open; returns the results."""
    finish_upload(run)
    say(summary(run, run.accelerator.unwrap_model(model), task, results))
    end_trackers(run)
    return results


def summary(run: Run, model: torch.nn.Module, task: Task, results: dict[str, Any]) -> str:
    """What a person wants to know at the end: scores beside the baseline, time, where everything is, what next."""
    args, lines = run.args, []
    scores = {
        key.removeprefix("eval_"): value for key, value in numbers_in(results).items() if key.startswith("eval_")
    }
    if scores:
        lines.append(f"{'':24}{'score':>10}{'baseline':>10}")
    for metric, value in scores.items():
        least = results.get(f"baseline_{metric}")
        lines.append(f"{metric:24}{value:>10.4f}" + (f"{least:>10.4f}" if least is not None else ""))
    if "train_runtime" in results:
        minutes, seconds = divmod(round(results["train_runtime"]), 60)
        rate = results["train_samples_per_second"]
        steps = f"{results['step']} step" + "s" * (results["step"] != 1)
        lines.append(f"{steps} in {minutes} min {seconds} s, {rate:g} rows a second, evaluations included")
    if not args.output_dir:
        return "\n".join([*lines, "nothing is saved without an --output_dir"])
    there = "model and " * bool(results["step"]) + "results" + ", checkpoints" * bool(args.checkpointing_steps)
    lines += [f"{there + ', predictions' * args.do_predict} are in {args.output_dir}"]
    if results["step"] and not (Path(args.output_dir) / "training_curve.png").exists():
        lines.append("no training_curve.png: pip install matplotlib brings one next time")
    if results["step"] and hasattr(model, "save_pretrained"):
        question = "..." if len(task.text_columns) == 1 else {"text": "...", "text_pair": "..."}
        ask = f'print(pipeline("text-classification", {json.dumps(args.output_dir)})({json.dumps(question)}))'
        lines.append(f"to ask it: python -c {shlex.quote(f'from transformers import pipeline; {ask}')}")
    return "\n".join(lines)
