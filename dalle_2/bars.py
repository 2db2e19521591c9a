"""Progress bars on the standard error, drawn by rich: names and lines beside them go as `terminal.shown` has them."""

import os
import sys
from typing import Any

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import Progress, ProgressColumn, TaskID, TextColumn

from dalle_2.terminal import PlainStream, beneath, on_one_line


class Bars(Progress):
    """rich's bars. What is printed in the meantime appears above them."""

    def start(self) -> None:
        """Draws from now on. rich then has streams of its own in place of the standard ones: they get ours on top."""
        super().start()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, FileProxy):
                setattr(sys, name, PlainStream(stream))

    def add_task(self, description: str, *arguments: Any, **fields: Any) -> TaskID:
        """As rich's, with a name that says nothing but letters."""
        return super().add_task(on_one_line(description), *arguments, **fields)


def bars(*columns: ProgressColumn, console: Console | None = None, disable: bool = False) -> Bars:
    """Bars of these columns, on the standard error unless another console is given."""
    return Bars(*columns, console=console or _standard_error(), disable=disable)


def named(width: int = 0) -> TextColumn:
    """The column of a task's name, in which brackets are brackets."""
    return TextColumn(f"{{task.description:<{width}}}" if width else "{task.description}", markup=False)


def _standard_error() -> Console:
    """Without colours where somebody wants none; codes that only move the cursor stay."""
    return Console(file=beneath(sys.stderr), color_system=None if os.environ.get("NO_COLOR") else "auto")
