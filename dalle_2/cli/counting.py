"""A bar on stderr for work whose pieces are counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yields what is told how many more pieces are done."""
    from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn

    from dalle_2.bars import bars, named

    with bars(named(), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), disable=quiet) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
