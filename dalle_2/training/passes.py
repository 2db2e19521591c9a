"""How far a dataloader was read, counted in rows, so that a resumed run may take batches of another size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dalle_2.errors import DataError, UsageError
from dalle_2.training.batches import Batch, as_batch, rows_of


@dataclass
class Passes:
    """Whole passes over a dataloader that are done, and the rows read of the current one.

    Steps that a caller makes with batches of his own are no part of it. A dataloader with `at(images)`, as `Batches`,
    is endless and goes on at that image; any other, as PyTorch's DataLoader, is begun again and read as far as it was.
    seed: the order of a DataLoader that shuffles without a generator of its own follows from it and the pass.
    """

    seed: int
    done: int = 0
    rows: int = 0

    def endless(self, dataloader: Any) -> Iterator[Batch]:
        """Batches from here on, pass after pass."""
        if is_stream(dataloader):
            yield from self._streamed(dataloader)
        while True:
            yield from self.rest(dataloader)

    def rest(self, dataloader: Any) -> Iterator[Batch]:
        """What the current pass has left. Raises DataError for a pass that gives nothing, UsageError for no dataloader.

        A batch that was read in part, because batches had another size, gives the rest of its rows.
        """
        if dataloader is None:
            raise UsageError("this trainer has no dataloader: give it one, or call train_step with batches of your own")
        length = batches_a_pass(dataloader)
        read = self.rows if length else 0  # one that can't say how long it is begins anew
        self.rows = read
        torch.manual_seed(((self.seed << 40) + self.done) % 2**63)
        index = 0
        for index, given in enumerate(dataloader, 1):
            batch = as_batch(given)
            size = rows_of(batch)
            if read >= size:
                read -= size
                continue
            batch, size, read = {name: value[read:] for name, value in batch.items()}, size - read, 0
            self._advance(size, last=index == length)
            yield batch
        if not index:
            raise DataError("the dataloader ended after 0 images: each pass must give batches")
        if self.rows:
            self._advance(0, last=True)

    def until_pass(self, dataloader: Any, end: int) -> Iterator[Batch]:
        """What is left of a stream's passes until `end` of them are done."""
        if self.done < end:
            for batch in self._streamed(dataloader):
                yield batch
                if self.done >= end:
                    return

    def finished(self, dataloader: Any) -> int:
        """How many passes are done. Raises UsageError after a start where a dataloader can't say how long it is."""
        if (self.done or self.rows) and not is_stream(dataloader) and not batches_a_pass(dataloader):
            raise UsageError("epochs of a dataloader without a length can't be counted on: call fit(images) instead")
        return self.done

    def _streamed(self, dataloader: Any) -> Iterator[Batch]:
        length = int(dataloader.length)
        for given in dataloader.at(self.done * length + self.rows):
            batch = as_batch(given)
            more, self.rows = divmod(self.rows + rows_of(batch), length)
            self.done += more
            yield batch

    def _advance(self, rows: int, *, last: bool) -> None:
        self.done, self.rows = (self.done + 1, 0) if last else (self.done, self.rows + rows)

    def guess(self, images: int, steps: int, dataloader: Any) -> None:
        """Where a run was whose state doesn't say: as if all of its steps had been on batches of this dataloader."""
        if is_stream(dataloader):
            self.done, self.rows = divmod(images, int(dataloader.length))
        elif length := batches_a_pass(dataloader):
            self.done, taken = divmod(steps, length)
            self.rows = taken * (getattr(dataloader, "batch_size", None) or round(images / max(steps, 1)))
        else:
            self.done, self.rows = 0, images  # nobody can say how many passes that were


def is_stream(dataloader: Any) -> bool:
    """Whether a dataloader is endless and can begin anywhere."""
    return hasattr(dataloader, "at")


def batches_a_pass(dataloader: Any) -> int | None:
    """How often a dataloader yields; None where it can't say."""
    try:
        return len(dataloader)
    except TypeError:
        return None
