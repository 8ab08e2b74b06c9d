"""CUDA graphs: of a compiled model, and of a whole training step in the edit examples/edits/cuda_graphs.patch."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from no_trainer.launch import say
from no_trainer.messages import stop

Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], tuple[torch.Tensor, ...]]


def compiler_records(accelerator: Accelerator) -> bool:
    """Whether the compiler makes CUDA graphs of the model, one for each length of the batches."""
    return accelerator.state.dynamo_plugin.mode in ("reduce-overhead", "max-autotune")


def allocate_gradients(model: torch.nn.Module) -> None:
    """Give each parameter that learns a gradient of zeros."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


def recorded(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: AcceleratedOptimizer
) -> Callable[[Step], Step]:
    """A decorator: the training step as CUDA graphs, one for each shape of batch.

    With gradient accumulation there are two for each shape: the last batch of an optimizer step has its own. The
    first batch of a shape runs as usual, the second is recorded, and later ones launch the recording as a whole,
    on their own inputs. What the step returns must be tensors on the device. A Python value in it stays what it
    was when it was recorded; so the optimizer's learning rate is replaced by a tensor. With accumulation, the
    model's gradients are allocated, since all graphs add to the same ones.

    Where the step cannot be recorded, it stays as it is, and a line says why.

    Raises:
        SystemExit: 2, from the step, if something in it cannot be recorded, such as a question to the device.
    """
    obstacles = {
        "there is no CUDA device": accelerator.device.type != "cuda",
        "there are several processes": accelerator.num_processes > 1,
        "fp16 asks the device after each step whether to skip it": accelerator.mixed_precision == "fp16",
        "fp8 was not tried": accelerator.mixed_precision == "fp8",
        "the compiler records the model": compiler_records(accelerator),
    }
    if why := next((obstacle for obstacle, is_there in obstacles.items() if is_there), None):
        say(f"the training step is not recorded as a CUDA graph: {why}")
        return lambda train_step: train_step
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=accelerator.device)
    if accelerator.gradient_accumulation_steps > 1:
        allocate_gradients(model)
    warmed_up, graphs = set(), {}  # by kind of batch
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(train_step: Step, inputs: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, tuple[torch.Tensor, ...]]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                outputs = train_step(inputs)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            stop(f"the training step cannot be recorded as a CUDA graph; train without this edit: {error}")
        return graph, inputs, tuple(tensor.detach() for tensor in outputs)

    def in_graphs(train_step: Step) -> Step:
        def step(batch: Batch) -> tuple[torch.Tensor, ...]:
            kind = (accelerator.sync_gradients, *((name, tensor.shape) for name, tensor in batch.items()))
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                if kind not in warmed_up:  # it also sets up what must not be recorded, such as the optimizer's state
                    warmed_up.add(kind)
                    outputs = tuple(tensor.detach() for tensor in train_step(batch))
                else:
                    if kind not in graphs:
                        graphs[kind] = record(train_step, {name: tensor.clone() for name, tensor in batch.items()})
                    graph, inputs, results = graphs[kind]
                    for name, tensor in batch.items():
                        inputs[name].copy_(tensor)
                    graph.replay()
                    outputs = tuple(tensor.clone() for tensor in results)  # the next replay overwrites them
            torch.cuda.current_stream().wait_stream(stream)
            return outputs

        return step

    return in_graphs
