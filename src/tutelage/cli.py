"""The command `tutelage`: finds the stage, gives it its config, and turns how it ended into words and an exit
code.

A recipe is imported only once it is chosen, and imports torch only in `run`: help and mistakes answer at
once."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from tutelage import dist
from tutelage.allocation import keep_memory
from tutelage.commands import COMMANDS
from tutelage.config import dump, help_text, load
from tutelage.errors import Interrupted, UserError, no_place, no_room

INTRO = """tutelage raises a language model through its whole education.

usage: tutelage COMMAND [--config FILE.yaml] [--flag value ...]
"""


class Vocabulary(Mapping[str, set[str]]):
    """The keys of every stage, found only when asked for: it takes importing all recipes."""

    def __getitem__(self, name: str) -> set[str]:
        return {field.name for field in fields(COMMANDS[name].load()[1])}

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user must change something, 128 + n stopped by signal
    n."""
    words = sys.argv[1:] if argv is None else argv
    try:
        _run(words)
        sys.stdout.flush()
    except UserError as error:
        if dist.first_to_fail():
            alone = dist.world_size() > 1 and not error.told_by_all
            print(f"error{f' on rank {dist.rank()}' if alone else ''}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as interruption:
        sys.exit(interruption.exit_code)
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the flush at exit would complain again
        sys.exit(141)
    except Exception as error:
        if not dist.first_to_fail():  # but in the wake of another process, which has said why
            sys.exit(1)
        if why := no_room(error):
            name = getattr(error, "filename", None)
            print(f"error: {f'{name}: ' if name else ''}{why}; make room and try again", file=sys.stderr)
            sys.exit(2)
        if why := no_place(error):
            print(f"error: {why}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        sys.exit(1)


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """The name of the command that `words` begin with, and the words after it."""
    for count in (3, 2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            _refuse_below(name, words[count:])
            return name, words[count:]
    depth = 2 if _below(words[:2]) else 1
    if below := _below(words[:depth]):
        given = f"{' '.join(words[:depth])}: what of it"
        if len(words) > depth and not words[depth].startswith("-"):
            given = f"there is no `tutelage {' '.join(words[: depth + 1])}`"
        raise UserError(f"{given}; choose from: " + ", ".join(f"tutelage {name}" for name in below))
    nearest = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "`tutelage --help` lists them"
    raise UserError(f"{words[0]}: no such command, {hint}")


def _refuse_below(name: str, rest: list[str]) -> None:
    """Refuse a word that is no command below `name` where it can be nothing else."""
    below = _below([name])
    if below and rest and not rest[0].startswith("-") and COMMANDS[name].positional is None:
        choices = ", ".join(f"tutelage {other}" for other in [name, *below])
        raise UserError(f"there is no `tutelage {name} {rest[0]}`; choose from: {choices}")


def configure(words: list[str]) -> tuple[str, Any]:
    """The name of the command that `words` begin with, and its resolved config."""
    name, rest = find_command(words)
    command = COMMANDS[name]
    return name, load(name, command.load()[1], rest, known=Vocabulary(), positional=command.positional)


def _run(words: list[str]) -> None:
    flags = words[: words.index("--")] if "--" in words else words
    asked = not words or any(word in ("--help", "-h") for word in flags)
    if asked and (not words or words[0].startswith("-") or _group(words)) and not _is_command(flags):
        print(_overview(words))
        return
    if asked:
        name, _ = find_command(words)
        module, config_class = COMMANDS[name].load()
        print(help_text(name, config_class, module.__doc__ or ""), end="")
        for other in _below([name]):
            print(f"see also: tutelage {other}: {COMMANDS[other].help}")
        return
    keep_memory()
    if dist.launched() > 1:
        dist.start()  # before anything can fail: of the processes that find a mistake one is to tell it
    print_only = {"--print_config", "--print-config"}.intersection(flags)
    name, config = configure([word for word in words if word not in print_only])
    command = COMMANDS[name]
    if dist.world_size() > 1 and not command.parallel:
        raise UserError(f"{name} runs in one process; start it without torchrun")
    if not print_only:
        getattr(command.load()[0], command.run)(config)
    elif dist.rank() == 0:
        print(dump(config), end="")
    dist.stop()


def _below(words: list[str]) -> list[str]:
    """The commands of the group that `words` name: of `data` all that begin with it."""
    return [name for name in COMMANDS if name.startswith(" ".join(words) + " ")]


def _is_command(words: list[str]) -> bool:
    """Whether words alone name a command, which may have others below it."""
    return " ".join(word for word in words if not word.startswith("-")) in COMMANDS


def _group(words: list[str]) -> list[str]:
    """The group that `words` ask about: `tutelage data`, `tutelage data build`, but not `tutelage sft`."""
    plain = [word for word in words if not word.startswith("-")]
    return plain if plain and _below(plain) else []


def _overview(words: list[str]) -> str:
    """One line for every command, or for those of the group that `words` name."""
    group = "".join(f"{word} " for word in _group(words))
    width = max(map(len, COMMANDS))
    lines = [
        f"  tutelage {name:<{width}}  {COMMANDS[name].help}" for name in COMMANDS if name.startswith(group)
    ]
    closing = "`tutelage COMMAND --help` explains a command, `--print_config` shows what it would run with."
    return "\n".join([INTRO, *lines, "", closing])
