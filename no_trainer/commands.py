"""Printed commands that people can paste into a shell, whatever names they contain."""

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence

HIDDEN = "HIDDEN"  # in place of other secrets
SECRET = r"(?i:[\w-]*(?:token|key|secret|password))"  # a name whose value is one; not tokenizer_name
TOKEN = "\0"  # in place of the secret: no word of a command line has this character


def join(words: Sequence[str]) -> str:
    """The command line, in one line, that this system's shell reads as these words."""
    return " ".join(map(quote, words))


def quote(word: str) -> str:
    """The word, quoted for the shell; control characters become escapes that bash and zsh read."""
    if word == TOKEN:  # the shell fills it in
        return "$env:HF_TOKEN" if os.name == "nt" else "$HF_TOKEN"
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
    # PowerShell expands $ and ` between double quotes; cmd.exe does not know single quotes
    if re.search(r"[$`]", word):
        return "'" + word.replace("'", "''") + "'"
    doubled = re.sub(r'(\\*)"', r'\1\1\\"', word)  # backslashes before a quote
    return '"' + re.sub(r"(\\+)$", r"\1\1", doubled) + '"'


def written(names: Sequence[str]) -> str:
    """Names of columns in one list; one that has a comma itself stands in double quotes. See `names_in`."""
    return ", ".join(f'"{name}"' if "," in name else name for name in names)


def names_in(text: str) -> list[str]:
    """The names in a list that is written with commas, as `written` writes it."""
    found = re.findall(r'(?:^|,)\s*(?:"([^"]*,[^"]*)"\s*(?=,|$)|([^,]*))', text)
    return [(quoted or plain).strip() for quoted, plain in found]


def hexadecimal(character: str) -> str:
    """The bytes of a character in a file name, as escapes of the shell."""
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def literal(value: str | dict[str, str]) -> str:
    """A string, or a dictionary of strings, as both Python and JSON read it, with escapes for control characters."""
    written = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in written)


def without_secrets(words: Sequence[str], instead: str = "TOKEN") -> list[str]:
    """A command line without secrets: the value of --hub_token becomes `instead`, those of others HIDDEN.

    Others are what another program before this script may take: --some_api_key VALUE, A_TOKEN=VALUE, and
    the code of `python -c` that has such an assignment.
    """
    shown: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        before = shown[-1] if shown else ""
        if flag == "--hub_token" and equals:
            shown += ["--hub_token", instead]
        elif before == "--hub_token":
            shown.append(instead)
        elif re.fullmatch(SECRET, flag) and equals:
            shown.append(f"{flag}={HIDDEN}")
        elif before.startswith("-") and re.fullmatch(SECRET, before):
            shown.append(HIDDEN)
        else:
            shown.append(HIDDEN if before == "-c" and re.search(SECRET + r"\W*=", word) else word)
    return shown


def without_values(message: str) -> str:
    """A message about a command line, without the values of flags that sound like secrets."""
    return re.sub(rf"(--?{SECRET})([= ])(?!-)\S+", rf"\1\2{HIDDEN}", message)


def own_words(argv: Sequence[str] | None = None) -> list[str]:
    """The command line that starts this run, without secrets and without a launcher before it.

    argv: the flags that were read. If they are not this process's own, another program has called `main`.
    """
    flags, typed = sys.argv[1:], sys.orig_argv
    if argv and not (flags and set(flags) <= set(argv)):  # a notebook, for instance
        return without_secrets(["python", "run_glue_no_trainer.py", *argv], TOKEN)
    if typed[len(typed) - len(flags) :] != flags:
        typed = ["python", *sys.argv]
    return without_secrets(typed, TOKEN)


def own_command(argv: Sequence[str] | None = None) -> str:
    """The command line of this run to be published: no secrets, and `~` for the home folder."""
    home, shown = f"{os.path.expanduser('~')}{os.sep}", []
    for word in own_words(argv):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and equals and value.startswith(home):
            shown += [flag, value]  # a shell does not expand ~ after `=`
        else:
            shown.append(word)
    quoted = [f"~/{quote(w[len(home) :])}" if w.startswith(home) else quote(w) for w in shown]
    return " ".join(quoted)


def resume_command(*flags: str, argv: Sequence[str] | None = None) -> str:
    """The command line that resumes this run at its latest checkpoint, with `flags` added."""
    kept, before = [], ""
    for word in own_words(argv):
        name = word.partition("=")[0]
        dropped = name in ("--resume_from_checkpoint", "--overwrite_output_dir")
        dropped = dropped or before == "--resume_from_checkpoint"
        dropped = dropped or (before == "--overwrite_output_dir" and word.lower() in ("true", "false"))
        kept += [] if dropped else [word]
        before = word
    return join([*kept, *flags, "--resume_from_checkpoint", "latest"])
