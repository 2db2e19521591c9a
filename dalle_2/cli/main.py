"""The front door: `dalle2 COMMAND`.

It knows the commands' names only, loads the one that is called, and says in one sentence what went wrong.
"""

import errno
import importlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dalle_2.cli.home import knowing_home
from dalle_2.cli.stopwatch import begin
from dalle_2.cli.streams import show_what_can_be_shown
from dalle_2.errors import Dalle2Error, UsageError
from dalle_2.paths import disk_error
from dalle_2.terminal import STANDARD_OUTPUT, let_go_of_output, plain_streams
from dalle_2.threads import wait_asleep
from dalle_2.training.interrupt import TERMINATED, Stop, Terminated, unwound_on_signals

# A command lives in cli/NAME.py, "_" for "-": a function NAME with typer's annotations, or a typer.Typer called `app`.
COMMANDS = {
    "generate": "Make pictures from prompts.",
    "train": "Train a pipeline, or one stage of it.",
    "evaluate": "Measure how well a pipeline follows its prompts.",
    "variations": "Draw other pictures of the same content.",
    "interpolate": "Draw the way between two pictures, or two captions.",
    "text-diff": "Change a picture by the difference of two captions.",
    "inpaint": "Paint into a part of a picture.",
    "outpaint": "Continue a picture beyond its borders.",
    "image-to-image": "Draw over a picture.",
    "reconstruct": "Draw a picture from the first directions of its embedding.",
    "rerank": "Put pictures in the order in which they fit a caption.",
    "probe": "Write a word on a picture and ask CLIP what it shows.",
    "upscale": "Enlarge a picture with a pipeline's upsampler.",
    "show": "Read back how a picture was made.",
    "models": "List, fetch and convert the weights that can be used.",
    "doctor": "Examine this machine and its packages, and name known traps.",
}

# By what the system says; a quota is a disk's end, too.
DISK = {
    errno.ENOSPC: "the disk is full while writing {}: free some space or write elsewhere",
    errno.EFBIG: "{} would be larger than a file may be here: raise the limit (ulimit -f), or write to another disk",
    errno.EIO: "the disk failed while reading or writing {}: look at the system's log, and write elsewhere",
}
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class LazyGroup(TyperGroup):
    """A group whose help needs none of its commands loaded."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS:
            return _load(cmd_name)
        close = get_close_matches(cmd_name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"no command {cmd_name!r}: {hint}")

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


# Plain help: drawing boxes would take longer than everything else here together.
app = typer.Typer(cls=LazyGroup, add_completion=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from dalle_2 import __version__

        typer.echo(f"dalle_2 {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An open DALL·E 2: train it, make pictures with it, measure it.

    dalle2 COMMAND --help explains one command; --debug may stand anywhere.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C, 143 after SIGTERM.

    A training that was stopped has saved its state, and after SIGTERM returns 0.
    """
    wait_asleep()  # before anything loads torch
    begin(with_process=argv is None)
    arguments, debug = _take_debug(sys.argv[1:] if argv is None else argv)
    show_what_can_be_shown()
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    with plain_streams():
        return _run(arguments or ["--help"], debug)


def _run(arguments: list[str], debug: bool) -> int:
    came: Stop = lambda: None  # noqa: E731
    try:
        with unwound_on_signals() as came:
            # Without typer's own handling, so that every error has one form and one place; and without its thinning out
            # of codes in what goes to a file, where they are written out as on a terminal.
            status = typer.main.get_command(app).main(arguments, "dalle2", standalone_mode=False, color=True)
            sys.stdout.flush()
    except Terminated as end:
        status = end.code
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        let_go_of_output()
        return 1
    except Exception as error:
        if getattr(error, "filename", None) == STANDARD_OUTPUT:
            let_go_of_output()
        if debug:
            traceback.print_exc()
        number = came()
        if number is None:
            sentence, status = _verdict(error)
            _say(sentence)
        else:  # of which a library made this error
            status = 128 + number
    if status == INTERRUPTED:  # typer itself may have turned the interrupt into this status
        _say("interrupted")
    if status == TERMINATED:
        _say("terminated")
    return status if isinstance(status, int) else 0


def _take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Removes --debug wherever it stands before a bare "--"."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [argument for argument in argv[:end] if argument != "--debug"]
    return [*options, *argv[end:]], len(options) < end


def _verdict(error: Any) -> tuple[str, int]:
    """One sentence and the exit status for any error."""
    if isinstance(error, Dalle2Error):
        return str(error), error.exit_status
    if (said := disk_error(error)) is not None:
        name = getattr(error, "filename", None) or said.filename or "a file"
        return DISK.get(said.errno or 0, DISK[errno.ENOSPC]).format(name), 1
    if _is_out_of_memory(error):
        return f"there is too little memory, {_first_line(error)}: ask for less at once, or see --low-memory", 1
    if _is_typers(error):
        return f"{_typers_words(error)}: {_command_path(error)} --help lists what it takes", 2
    if type(error).__module__.startswith("pydantic"):
        from pydantic import ValidationError

        from dalle_2.config import describe

        if isinstance(error, ValidationError):
            return describe(error), UsageError.exit_status
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"torch.compile failed, {_first_line(error)}: draw without --compile, or see --debug for all it says", 1
    if isinstance(error, ImportError):
        return f"can't import {error.name or 'a package'} ({error}): dalle2 doctor says what is installed", 1
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}", 1
    return f"{_first_line(error)} (--debug shows where)", 1


def _is_out_of_memory(error: Any) -> bool:
    """Python's own, and PyTorch's of a graphics card and of a processor, which is a RuntimeError as any other."""
    known = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in known)
    )


def _is_typers(error: Any) -> bool:
    """typer's usage errors; their class moved between versions, their two attributes did not."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _typers_words(error: Any) -> str:
    """What typer says of a wrong value, with the value: where pydantic found it, the sentence leaves that out."""
    if getattr(error, "possibilities", None):
        error.possibilities = _alike(error.option_name, error.possibilities)
    words = str(error.format_message()).rstrip(".").replace("Value error, ", "")
    found: list[Any] = getattr(error.__cause__, "errors", list)()
    got = repr(found[0]["input"]) if found else ""
    return words if got in words else f"{words}, got {got}"


def _alike(option: str, known: Sequence[str]) -> list[str]:
    """Options of a name like that one's; typer's own likeness counts the dashes, which all of them have."""
    names = {name.lstrip("-"): name for name in known}
    return [names[near] for near in get_close_matches(option.lstrip("-"), names)]


def _command_path(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "dalle2"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _load(name: str) -> Any:
    file = name.replace("-", "_")
    module = importlib.import_module(f"dalle_2.cli.{file}")
    return typer.main.get_command(knowing_home(getattr(module, "app", None) or _alone(name, getattr(module, file))))


def _alone(name: str, function: Callable[..., Any]) -> typer.Typer:
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name)(function)
    return alone


def _say(sentence: str) -> None:
    print(f"dalle2: {' '.join(sentence.split())}", file=sys.stderr)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """A warning as a sentence; where in the source it arose is of no use to a person at a prompt."""
    if not issubclass(category, DeprecationWarning | FutureWarning):
        _say(f"warning: {message}")
