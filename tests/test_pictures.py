"""Pictures for the card: drawn where matplotlib is, and readable."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from no_trainer.pictures import draw_confusion, draw_curve


@pytest.mark.parametrize("classes", [2, 30])
def test_a_confusion_matrix(tmp_path: Path, classes: int) -> None:
    """Dark where a class is always right; whatever the classes are called."""
    names = ["$a_b$", "x" * 90, *(f"class {n}" for n in range(28))][:classes]
    draw_confusion(tmp_path / "m.png", names, (10 * np.eye(classes, dtype=int)).tolist())
    picture = np.asarray(Image.open(tmp_path / "m.png").convert("L"))
    assert picture.shape[0] > 250
    assert (picture < 90).mean() > 0.1 / classes


def test_too_many_classes_are_not_drawn(tmp_path: Path) -> None:
    draw_confusion(tmp_path / "m.png", [str(n) for n in range(31)], np.eye(31, dtype=int).tolist())
    draw_confusion(tmp_path / "m.png", ["a", "b"], None)
    assert not (tmp_path / "m.png").exists()


def test_classes_that_the_font_cannot_write_are_not_drawn_as_boxes(tmp_path: Path) -> None:
    with pytest.raises(UserWarning, match="Glyph .* missing"):
        draw_confusion(tmp_path / "m.png", ["\U0001f98a", "b"], [[1, 0], [0, 1]])
    assert not (tmp_path / "m.png").exists()


def test_a_curve(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_loss": 0.6, "eval_accuracy": 0.9}]
    draw_curve(tmp_path / "c.png", lines, "accuracy", 0.5)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
