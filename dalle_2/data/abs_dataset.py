"""What every data set is: captioned pictures by number."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import Dataset


class Example(NamedTuple):
    """A picture, uint8 RGB with the channels last, and its caption."""

    image: UInt8[np.ndarray, "h w 3"]
    caption: str


class AbsDataset(Dataset[Example], ABC):
    """Captioned square pictures, `size` pixels a side, read by index 0 .. len - 1."""

    name: str
    size: int

    @abstractmethod
    def __len__(self) -> int:
        """How many examples there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Example number `index`; IndexError outside 0 .. len - 1."""

    def caption(self, index: int) -> str:
        """The caption of example `index` alone; a data set that need not read the picture for it says so itself."""
        return self[index].caption
