"""Draws the pictures of the card, if matplotlib is installed."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

MOST = 30  # more classes than this make a confusion matrix unreadable


def make_figure(width: float, height: float) -> Any:
    """An empty figure, in inches; None if matplotlib is not installed, or was built for another NumPy."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


def draw_curve(file: Path, lines: list[dict[str, Any]], metric: str, baseline: float | None) -> bool:
    """Plot the losses and the metric in `lines` of log.jsonl by step; returns whether it could."""
    if not (figure := make_figure(9, 3.2)):
        return False
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
    return True


def draw_confusion(file: Path, labels: list[str], matrix: list[list[int]] | None) -> bool:
    """Plot true by predicted classes, coloured by share; returns whether it could.

    Raises:
        UserWarning: the font lacks a character of a class, such as a Chinese one.
    """
    if not matrix or len(labels) > MOST:
        return False
    side = 2.5 + 0.45 * len(labels)
    if not (figure := make_figure(side, side)):
        return False
    counts = np.array(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in labels]
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", parse_math=False)
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    for true, predicted in np.ndindex(*counts.shape):
        if counts[true, predicted]:
            color = "white" if shares[true, predicted] > 0.5 else "black"
            number = f"{counts[true, predicted]}"
            axis.text(predicted, true, number, ha="center", va="center", color=color, size=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph .* missing")  # names drawn as boxes would say nothing
        figure.savefig(file)
    return True
