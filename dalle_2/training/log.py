"""What a run leaves to read: `log.jsonl` always, TensorBoard events where it is installed, sample grids as pictures."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from dalle_2.metadata import png
from dalle_2.paths import atomic_write_bytes


class TrainingLog:
    """Values and pictures by the number of images seen. Nothing is created before the first entry.

    A run that was killed and resumed has the steps since its last saved state twice; the later lines count.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._board: Any = None

    def write(self, images: int, values: dict[str, float]) -> None:
        """One line, and one point on each curve."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # JSON has no NaN.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"images": images, **finite}) + "\n")
        for name, value in values.items():
            if self._writer() is not None:
                self._writer().add_scalar(name, value, images)

    def picture(self, images: int, picture: Image.Image) -> None:
        """A sample grid, as `samples/IMAGES.png`."""
        atomic_write_bytes(self.folder / "samples" / f"{images:09d}.png", png(picture))

    def flush(self) -> None:
        """Brings what TensorBoard still holds back to the disk."""
        if self._board is not None:
            self._board.flush()

    def _writer(self) -> Any:
        """TensorBoard's writer, or None without the extra `train`."""
        if self._board is None and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        return self._board
