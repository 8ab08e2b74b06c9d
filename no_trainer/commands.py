"""Commands that are printed so that people can paste them into a shell, whatever the names in them."""

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

TOKEN = "$HF_TOKEN"  # what stands in a command for the secret: the shell puts it in


def join(words: Sequence[str]) -> str:
    """A command line that the shell of this system reads as these words, in one line."""
    return " ".join(map(quote, words))


def quote(word: str) -> str:
    """A word as a shell takes it literally; control characters are written as escapes, which bash and zsh read."""
    if word == TOKEN:
        return word
    if os.name == "nt":
        return quote_windows(word)
    if word.isprintable():
        return shlex.quote(word)
    escaped = (c if c.isprintable() and c not in "'\\" else hexadecimal(c) for c in word)
    return f"$'{''.join(escaped)}'"


def quote_windows(word: str) -> str:
    """The same for PowerShell and cmd.exe."""
    if re.fullmatch(r"[\w@+=:./\\-]+", word):
        return word
    if re.search(r"[$`]", word):  # which PowerShell obeys in double quotes; cmd.exe knows no single ones
        return "'" + word.replace("'", "''") + "'"
    doubled = re.sub(r'(\\*)"', r'\1\1\\"', word)  # backslashes before a quote
    return '"' + re.sub(r"(\\+)$", r"\1\1", doubled) + '"'


def hexadecimal(character: str) -> str:
    """The bytes of a character in a file's name as a shell's escapes."""
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def literal(value: str | dict[str, str]) -> str:
    """A text, or a mapping of them, as Python and JSON read it."""
    return json.dumps(value, ensure_ascii=False)


def without_token(words: Sequence[str], instead: str = "TOKEN") -> list[str]:
    """A command line with something else in the place of --hub_token's value."""
    shown: list[str] = []
    for word in words:
        if word.startswith("--hub_token="):
            shown += ["--hub_token", instead]
        else:
            shown.append(instead if shown and shown[-1] == "--hub_token" else word)
    return shown


def own_words() -> list[str]:
    """The command line of this process, without secrets; what its launcher was told, if it has one, nobody asks."""
    flags = sys.argv[1:]
    typed = sys.orig_argv if sys.orig_argv[len(sys.orig_argv) - len(flags) :] == flags else ["python", *sys.argv]
    return without_token(typed, TOKEN)


def own_command() -> str:
    """The command line of this process as it can be published: without secrets, and `~` for the home folder."""
    home, shown = f"{Path.home()}/", []
    for word in own_words():
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and equals and value.startswith(home):
            shown += [flag, value]  # after a `=` a shell leaves ~ as it is
        else:
            shown.append(word)
    return " ".join(f"~/{quote(word[len(home) :])}" if word.startswith(home) else quote(word) for word in shown)


def resume_command(*flags: str) -> str:
    """The command line that goes on from the latest checkpoint of this run, with other `flags` at its end."""
    kept, before = [], ""
    for word in own_words():
        name = word.partition("=")[0]
        dropped = name in ("--resume_from_checkpoint", "--overwrite_output_dir")
        dropped = dropped or before == "--resume_from_checkpoint"
        dropped = dropped or (before == "--overwrite_output_dir" and word.lower() in ("true", "false"))
        kept += [] if dropped else [word]
        before = word
    return join([*kept, *flags, "--resume_from_checkpoint", "latest"])
