"""Collects the weights, keeps those of the best evaluation, and saves the model."""

import contextlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PreTrainedTokenizerBase as Tokenizer

from no_trainer.evaluation import Predictions
from no_trainer.folder import BEST, allow_reading, remove
from no_trainer.glue import LOWER_IS_BETTER, Task
from no_trainer.launch import say, together
from no_trainer.models import save_model
from no_trainer.run import Run


def whole_weights(run: Run, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights by their names in the bare model; sharded ones on the main process only."""
    weights = run.accelerator.get_state_dict(model) or {}
    if run.accelerator.device.type == "xla":
        weights = {name: weight.cpu() for name, weight in weights.items()}
    # torch.compile adds a prefix
    return {name.replace("_orig_mod.", ""): weight for name, weight in weights.items()}


def note_best(run: Run, model: torch.nn.Module, task: Task, latest: dict[str, Predictions]) -> None:
    """Note whether the latest evaluation is the best; --load_best_model_at_end keeps its weights.

    The predictions that are kept are those of the model that will be saved in the end.
    """
    progress, name = run.progress, f"eval_{task.best_metric}"
    best_is_saved = run.args.load_best_model_at_end
    new, old = progress.results[name], progress.best.get(name)
    lower_is_better = task.best_metric.removesuffix("_mm") in LOWER_IS_BETTER
    better = old is None or (new < old if lower_is_better else new > old)
    if not best_is_saved:
        run.predictions = latest
    if not better:
        progress.waited += 1
        return
    progress.waited = 0
    if best_is_saved:
        weights, aside = whole_weights(run, model), Path(run.args.output_dir) / ".best.partial"
        once = {weight.data_ptr(): name for name, weight in weights.items()}  # tied weights only once
        weights = {name: weights[name] for name in once.values()}

        def write() -> None:
            aside.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
            run.accelerator.save(weights, aside, safe_serialization=True)
            if run.accelerator.is_main_process:
                aside.replace(aside.with_name(BEST))

        if not together(run.accelerator, write, aside, needed=progress.step < run.max_steps):
            return  # the best before stays the best: the new weights could not be written
        run.predictions = latest
    progress.best = progress.results


def load_best(run: Run, model: torch.nn.Module, task: Task) -> None:
    """Load the weights of the best evaluation; if they are gone, keep those of the last step."""
    best = run.progress.best
    run.accelerator.wait_for_everyone()
    try:
        weights = load_file(Path(run.args.output_dir) / BEST)
    except (OSError, SafetensorError) as error:  # somebody may have removed the file
        say(f"warning: the best weights are lost ({error}): those of the last step are saved")
        run.progress.best, run.predictions = {}, {}
        return
    score = f"{task.best_metric} {best[f'eval_{task.best_metric}']:.4f}"
    say(f"the best model is that of step {best['step']}: {score}")
    bare = run.accelerator.unwrap_model(model, keep_torch_compile=False)
    whole = contextlib.nullcontext()
    if hasattr(next(bare.parameters()), "ds_id"):  # sharded by DeepSpeed's ZeRO-3
        import deepspeed  # Accelerate's GatheredParameters only works if the model was made sharded

        whole = deepspeed.zero.GatheredParameters(list(bare.parameters()), modifier_rank=0)
    # not strict: tied weights are saved only once
    options = StateDictOptions(full_state_dict=True, strict=False)
    with whole:
        set_model_state_dict(bare, weights, options=options)
    run.has_best = True


def save_files(run: Run, model: torch.nn.Module, tokenizer: Tokenizer) -> list[str]:
    """Write the model and the tokenizer to --output_dir, each file atomically; returns their names."""
    folder, weights = Path(run.args.output_dir), whole_weights(run, model)
    aside, names = folder / ".model.partial", []

    def write() -> None:
        if not run.accelerator.is_main_process:
            return
        remove(aside)
        aside.mkdir(parents=True)  # somebody may have removed --output_dir
        save_model(run.accelerator.unwrap_model(model, keep_torch_compile=False), weights, aside)
        tokenizer.save_pretrained(aside)
        names.extend(sorted(file.name for file in aside.iterdir()))
        for name in names:
            allow_reading(aside / name)
            os.replace(aside / name, folder / name)
        aside.rmdir()

    together(run.accelerator, write, aside)
    return names
