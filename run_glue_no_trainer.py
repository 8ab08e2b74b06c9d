#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402  (the flags are read before the imports that take seconds)
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "torch>=2.11,<2.14",
#   "transformers>=5.17,<6",
#   "datasets>=5.0,<6",
#   "evaluate>=0.4.6,<0.5",
#   "accelerate>=1.15,<2",
#   "tokenizers>=0.22",
#   "safetensors>=0.8",
#   "numpy>=2.0",
#   "scikit-learn>=1.7",
#   "scipy>=1.15",
#   "tqdm>=4.67",
#   "pyarrow>=21",
#   "filelock>=4.0",
#   "xxhash>=3.2",
#   "pyyaml>=6.0",
#   "huggingface_hub>=1.5,<3",
#   "jinja2>=3.1",
#   "sentencepiece>=0.2",
#   "protobuf>=5.26",
# ]
# ///
"""Fine-tune a sequence-classification model on a GLUE task or on your own files.

    python run_glue_no_trainer.py --model_name_or_path MODEL --task_name mrpc --output_dir out
    accelerate launch run_glue_no_trainer.py --model_name_or_path MODEL --train_file train.csv ...

This file has what you may want to change, in the order in which it runs: flags, encoding, model,
`main` with the training loop, scores. What you can leave alone is in the folder no_trainer/.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

if not importlib.util.find_spec("no_trainer"):
    print("run_glue_no_trainer.py: error: needs the folder no_trainer/ of its project beside it", file=sys.stderr)
    sys.exit(2)

from no_trainer.arguments import AMOUNT, COUNT, POSITIVE, SWITCH, Parser, before_imports, number, read_arguments

# --- Flags that the training reads. The others are in no_trainer/arguments.py.


def build_parser() -> Parser:
    """All flags. One of your own is one line: add("--name", type=AMOUNT, default=0.1, help="...")."""
    parser = Parser("Fine-tune a sequence-classification model on a GLUE task or on your own files.")
    parser.model.add_argument("--model_name_or_path", metavar="MODEL", help="hub id or local folder (required)")
    add = parser.training.add_argument
    add("--per_device_train_batch_size", type=POSITIVE, default=8, help="rows per device and forward pass")
    add("--per_device_eval_batch_size", type=POSITIVE, default=8, help="the same in evaluation")
    add("--gradient_accumulation_steps", type=POSITIVE, default=1, help="batches per optimizer step")
    add("--num_train_epochs", type=COUNT, default=3, help="passes over the data; 0 evaluates only")
    add("--max_train_steps", type=POSITIVE, help="stop after N optimizer steps, not after epochs")
    add("--max_length", type=number(int, 4), help="cut longer texts at N tokens (default: 128)")
    add("--pad_to_max_length", **SWITCH, help="pad every text to --max_length")
    add("--no_group_by_length", **SWITCH, help="do not batch texts of similar length together")
    add("--learning_rate", type=AMOUNT, default=5e-5, help="peak of the schedule, for AdamW")
    add("--weight_decay", type=AMOUNT, default=0.0, help="weight decay, but not of biases and normalisation layers")
    add("--max_grad_norm", type=AMOUNT, default=1.0, help="clip gradients to this norm; 0: do not clip")
    schedules = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
    add("--lr_scheduler_type", choices=schedules, default="linear", help="shape of the learning-rate schedule")
    one_of = parser.training.add_mutually_exclusive_group().add_argument
    one_of("--num_warmup_steps", type=COUNT, help="steps in which the learning rate rises from 0")
    one_of("--warmup_ratio", type=number(float, 0, 1), default=0.1, help="the same as a share of all steps")
    add("--load_best_model_at_end", **SWITCH, help="save the best model, not the last")
    add("--metric_for_best_model", metavar="NAME", help="loss or a metric (default: the task's first)")
    add("--early_stopping_patience", type=POSITIVE, help="stop after N evaluations without improvement")
    add("--mixed_precision", choices=["no", "fp16", "bf16", "fp8"], help="(default: `accelerate launch`'s, or no)")
    add("--seed", type=number(int, 0, 2**31), default=42, help="seed of head, data order and dropout")
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    return read_arguments(build_parser(), argv)


if __name__ == "__main__":
    ARGS = before_imports(parse_args)  # --help and mistakes need not wait for the imports below

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoConfig, get_scheduler
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from no_trainer.batches import GlobalBatchSampler, make_collate, make_eval_loaders, make_loader, tokenize
from no_trainer.checkpoints import fixed_settings, leave, open_run, save_checkpoint, steps_between_checkpoints
from no_trainer.classes import in_models_order
from no_trainer.evaluation import Predictions, agree, predict, score_line
from no_trainer.glue import NUMBER, SEVERAL, Task, suffix
from no_trainer.labels import numbers
from no_trainer.launch import hardware, one_first, progress_bar, say, start_accelerator, tune_cpu
from no_trainer.memory import fit_batches, preallocate_gradients
from no_trainer.metrics import compute_metrics, score_classes, with_baseline
from no_trainer.models import fit_length, from_pretrained, load_weights, name_model, reads_padding
from no_trainer.results import after_training, finish, save_mistakes, save_results, share_model, write_predictions
from no_trainer.review import review
from no_trainer.run import Run, log, log_losses, out_of_patience, plan_schedule, read_losses
from no_trainer.signals import guarded
from no_trainer.tasks import by_purpose, load_data
from no_trainer.tokens import check_tokens, fit_tokenizer, load_tokenizer
from no_trainer.weights import load_best, note_best

# --- Encoding: what the model sees of a row.


def make_encode(tokenizer: Tokenizer, task: Task) -> Callable[[dict[str, list]], dict[str, list]]:
    """Returns `encode(rows)`, from lists of the text columns and `label` to the model's inputs and `labels`.

    The result is cached. It is made again if you change this function, but not one in another file.
    """
    class_ids = {value: index for index, value in enumerate(task.values or [])}
    # token types only for pairs, and if the tokenizer uses them; padding makes the attention mask
    typed = len(task.text_columns) == 2 and any(tokenizer("a", "b").get("token_type_ids", []))
    options: dict[str, Any] = {"max_length": task.max_length, "return_attention_mask": False}
    options["return_token_type_ids"] = typed

    def encode(rows: dict[str, list]) -> dict[str, list]:
        texts = [rows[column] for column in task.text_columns]
        if len(texts) > 2:  # a tokenizer takes two
            texts = [[f" {task.separator} ".join(parts) for parts in zip(*texts, strict=True)]]
        inputs = dict(tokenizer(*texts, truncation=True, **options))
        if "label" in rows:
            inputs["labels"] = [encode_label(label) for label in rows["label"]]
        return inputs

    def encode_label(label: Any) -> int | float | list[float]:
        if task.problem_type == SEVERAL:
            return [float(value in label) for value in class_ids]
        return class_ids[label] if class_ids else float(label)

    return encode


# --- Model: the model with its head, and which weights are decayed.


def load_model(args: argparse.Namespace, task: Task) -> tuple[Model, Tokenizer, Task]:
    """The model with a head for the task, its tokenizer, and the task with what depends on the
    model: the order of the classes, and a max_length that it can read.
    """
    config = from_pretrained(AutoConfig, args)
    task = in_models_order(task, config, new_head=args.ignore_mismatched_sizes)
    tokenizer = load_tokenizer(args, config, pairs=len(task.text_columns) == 2)
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: index for index, label in enumerate(task.labels)}
    else:
        config.num_labels = 1
    config.problem_type = task.problem_type  # decides which loss `model(**batch).loss` is
    config.pad_token_id = tokenizer.pad_token_id
    model, new = load_weights(args, config)  # new: the names of the weights that start at random
    for name, parameter in model.named_parameters():
        if task.labels is None and name in new and parameter.shape == (1,):
            torch.nn.init.constant_(parameter, task.mean)  # a new regression head starts at the mean label
    # the head of an encoder-decoder needs as many end tokens in each row: they are no separators
    own = None if config.is_encoder_decoder else tokenizer.sep_token or tokenizer.eos_token
    task = replace(task, max_length=fit_length(task.max_length, model), separator=own or task.separator)
    # read again when the saved model evaluates or predicts
    columns = {"text_columns": task.text_columns, "label_column": task.label_column}
    model.config.glue_no_trainer = columns | {"max_length": task.max_length}
    return model, fit_tokenizer(tokenizer, model, task.max_length), task


def parameter_groups(model: Model, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: no weight decay on biases and on weights of normalisation layers."""
    not_decayed = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("bias") or "Norm" in type(module).__name__
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in not_decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in not_decayed], "weight_decay": 0.0},
    ]


# --- The training.


@guarded
def main(args: argparse.Namespace | None = None) -> dict[str, Any]:
    """Fine-tune, evaluate and save; returns what is written to all_results.json."""
    args = args or parse_args(sys.argv[1:])  # on a TPU `accelerate launch` calls `main()`
    accelerator = start_accelerator(args)
    if accelerator.device.type == "cpu":
        tune_cpu()

    # Data and model. One process of each machine fills the cache first; all draw the same new head
    set_seed(args.seed)
    splits, task = one_first(accelerator, lambda: load_data(args))
    model, tokenizer, task = load_model(args, task)
    encode, processes = make_encode(tokenizer, task), args.preprocessing_num_workers
    data = one_first(accelerator, lambda: tokenize(splits, encode, tokenizer, task, processes))
    check_tokens(data, model, tokenizer)
    table = review(splits, data, task, model, accelerator.mixed_precision)
    train_data, eval_data, test_data = by_purpose(data)
    task = with_baseline(task, judge, train_data, eval_data, args.metric_for_best_model)

    # Steps. The size of the global batch is fixed; how it is split may change to fit the memory
    batch_size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    global_batch = batch_size * accelerator.num_processes * accumulation
    lengths = None if args.no_group_by_length else np.minimum(numbers(train_data, "length"), task.max_length)
    sampler = GlobalBatchSampler(len(train_data), global_batch, batch_size, args.seed, lengths)
    max_steps = args.max_train_steps or args.num_train_epochs * sampler.steps_per_epoch

    # Optimizer. With fp16, a fused AdamW would skip steps itself, and Accelerate could not tell
    fused = accelerator.device.type != "xla" and accelerator.scaler is None
    groups = parameter_groups(model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, fused=fused)
    model_name = name_model(model)  # for the check of a checkpoint; `prepare` may shard the weights
    # for TPU, where each new length is compiled, and for models whose output depends on padding
    one_length = args.pad_to_max_length or accelerator.device.type == "xla" or reads_padding(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    final_model = model  # the model that is evaluated and saved; with EMA, the averaged one

    # Data loaders. If a batch does not fit the memory, it is halved and accumulated twice as often
    collate = make_collate(tokenizer, accelerator, model, task.max_length if one_length else None)
    sampler.batch_size, eval_size = fit_batches(args, accelerator, model, collate, train_data, eval_data | test_data)
    accumulation = global_batch // (sampler.batch_size * accelerator.num_processes)
    accelerator.gradient_accumulation_steps = accumulation
    keep_gradients = preallocate_gradients(accelerator, model, accumulation)  # for CUDA graphs: zeroed, not freed
    workers = args.dataloader_num_workers
    train_loader = make_loader(accelerator, train_data, collate, workers, batch_sampler=sampler)
    eval_loaders = make_eval_loaders(accelerator, eval_data, collate, workers, eval_size)
    test_loaders = make_eval_loaders(accelerator, test_data, collate, workers, eval_size)

    # Schedule. It does not go through `prepare`, which would make it step once per process
    warmup_steps, planned_steps = plan_schedule(args, max_steps)
    lr_scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps, planned_steps)
    accelerator.register_for_checkpointing(lr_scheduler)

    # The run, from its start or from a checkpoint
    set_seed(args.seed, device_specific=True)  # dropout differs between processes
    settings = fixed_settings(args, task, global_batch, warmup_steps, max_steps, train_data, eval_data, model_name)
    run = open_run(args, accelerator, model, settings, sampler.steps_per_epoch, max_steps, table)
    progress = run.progress
    checkpoint_steps = steps_between_checkpoints(args)  # 0: none, or one after each epoch
    if progress.step < max_steps:
        say(f"training for {max_steps} steps of {global_batch} rows, on {hardware(accelerator)}")
    bar = progress_bar("Training", total=max_steps, initial=progress.step)

    # The training loop, an epoch at a time
    while run.goes_on():
        if out_of_patience(run, task):
            break
        model.train()
        sampler.start(progress.epoch, progress.batch)  # after a resume, in the middle of an epoch
        run.start_clock()
        mean_loss = 0.0
        for batch in train_loader:
            if progress.step == max_steps:
                break
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                mean_loss += loss.detach() / accumulation
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    max_norm = args.max_grad_norm or math.inf
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=not keep_gradients)
            if not accelerator.sync_gradients:
                continue  # the global batch is not complete

            # the loss stays on the device until the next log line, so that no step waits for it
            run.unread.append((optimizer.param_groups[0]["lr"], mean_loss, grad_norm))
            mean_loss, progress.batch = 0.0, progress.batch + 1
            if accelerator.optimizer_step_was_skipped:
                continue  # by the fp16 loss scaler: it moves neither the schedule nor the count
            lr_scheduler.step()
            progress.step += 1
            bar.update()

            if progress.step % args.logging_steps == 0 or progress.step == max_steps:
                log_losses(run, bar)
            if checkpoint_steps and progress.step % checkpoint_steps == 0:
                save_checkpoint(run, model, f"step_{progress.step}")
            if run.stop_signal():
                leave(run, model)

        read_losses(run)  # stops the run if one is not finite, and names its step
        scores, predictions = evaluate_model(run, final_model, task, eval_loaders)
        progress.results = scores | run.position()
        epoch = run.end_epoch()
        log(run, progress.results)
        say(score_line(progress.results))
        note_best(run, final_model, task, predictions)
        if args.checkpointing_steps == "epoch":
            save_checkpoint(run, model, f"epoch_{epoch}")
        if args.push_to_hub:
            share_model(run, final_model, tokenizer, task, f"Training in progress, epoch {epoch + 1}")

    bar.close()
    if progress.results.get("step") != progress.step:  # nothing was trained, or nothing was left to train
        scores, run.predictions = evaluate_model(run, final_model, task, eval_loaders)
        progress.results = scores | run.position()
    if args.load_best_model_at_end and progress.best:
        load_best(run, final_model, task)
    if not run.predictions:  # the last evaluation was before a resume
        _, run.predictions = evaluate_model(run, final_model, task, eval_loaders)
    results = save_results(run, final_model, tokenizer, task)
    save_mistakes(run, task, splits, probabilities)
    for name, loader in test_loaders.items():
        results |= after_training(run, name, predict_split, run, final_model, task, name, loader, splits)
    return finish(run, final_model, task, results)


# --- Scores.


def evaluate_model(
    run: Run, model: torch.nn.Module, task: Task, eval_loaders: dict[str, DataLoader]
) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """`eval_loss` and `eval_<metric>` of each validation split on every process, and the predictions.

    MNLI's second split ends in _mm. Tables, such as the confusion matrix, are in all_results.json only.
    """
    results: dict[str, Any] = {}
    predictions: dict[str, Predictions] = {}
    for split, loader in eval_loaders.items():
        logits, labels = predictions[split] = predict(run, model, loader, "Evaluating")
        if run.accelerator.is_main_process:
            values = judge(task, logits, labels)
            results |= {f"eval_{metric}{suffix(split)}": value for metric, value in values.items()}
    return agree(results), predictions


def predict_split(
    run: Run, model: torch.nn.Module, task: Task, name: str, loader: DataLoader, splits: dict[str, Any]
) -> dict[str, Any]:
    """Write the answers for a test split; returns its scores, `test_<metric>`, if it has labels."""
    logits, labels = predict(run, model, loader, "Predicting")
    scores = {} if labels is None else judge(task, logits, labels)
    return write_predictions(run, task, name, splits[name], logits, probabilities(task, logits), scores)


def judge(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """The task's metrics, the loss and the scores of each class.

    logits: [rows, classes]; labels: [rows], class ids or numbers, or [rows, classes], 0 and 1.
    """
    if task.problem_type == NUMBER:
        answers, loss = logits.squeeze(-1), F.mse_loss(logits.squeeze(-1), labels)
    elif task.problem_type == SEVERAL:
        answers = logits > 0  # a probability over 0.5
        loss = F.binary_cross_entropy_with_logits(logits, labels)
    else:
        answers, loss = logits.argmax(-1), F.cross_entropy(logits, labels)
    predicted, true = answers.numpy(), labels.numpy()
    scores = compute_metrics(task, predicted, true) | {"loss": loss.item()}
    return scores | score_classes(task, predicted, true)


def probabilities(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """[rows, classes]: a sigmoid where a row may have several classes, otherwise a softmax."""
    return logits.sigmoid() if task.problem_type == SEVERAL else logits.softmax(-1)


if __name__ == "__main__":
    main(ARGS)
