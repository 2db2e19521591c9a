"""Tiny models, tiny data, a trainer of both and what compares two, importable by child processes that tests kill."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dalle_2.data.dataset import Batches
from dalle_2.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle_2.models.clip import CLIP, CLIPConfig
from dalle_2.models.decoder import Decoder, DecoderConfig
from dalle_2.models.draft import Draft, DraftConfig
from dalle_2.models.prior import Prior, PriorConfig
from dalle_2.models.upsampler import Upsampler, UpsamplerConfig
from dalle_2.training.progress import Report, Silent
from dalle_2.training.trainer import DALLe2Trainer, TrainerSettings

if TYPE_CHECKING:
    import pytest

M = TypeVar("M", bound=nn.Module)

DIM, T, ROWS, BATCH = 8, 50, 30, 8
UNET = {
    "channels": 8, "multiples": (1, 2), "blocks": 1, "attention": (1,), "head_channels": 8, "z_dim": DIM, "t_dim": 16
}  # fmt: skip
TOWER = {"width": 16, "depth": 1, "heads": 2}


def prior(**changes: Any) -> Prior:
    values = {"T": T, "dim": DIM, "width": 16, "depth": 1, "heads": 2, **changes}
    return _seeded(lambda: Prior.from_config(PriorConfig.model_validate(values)))


def autoregressive_prior(**changes: Any) -> AutoregressivePrior:
    values = {"dim": DIM, "width": 16, "depth": 1, "heads": 2, "buckets": 16, "dot_buckets": 4, **changes}
    return _seeded(lambda: AutoregressivePrior.from_config(AutoregressivePriorConfig.model_validate(values)))


def decoder(unet: dict[str, Any] | None = None, **changes: Any) -> Decoder:
    values = {"T": T, "image_size": 8, "unet": {**UNET, "patch": 2, **(unet or {})}, **changes}
    return _seeded(lambda: Decoder.from_config(DecoderConfig.model_validate(values)))


def draft(**changes: Any) -> Draft:
    values = {"image_size": 8, "z_dim": DIM, "width": 16, "depth": 1, "channels": 8, **changes}
    return _seeded(lambda: Draft.from_config(DraftConfig.model_validate(values)))


def drafting(**changes: Any) -> Decoder:
    """A decoder that works on a draft."""
    return decoder({"low_res_channels": 3, "carry": True}, draft=draft().config.model_dump(), **changes)


def upsampler(unet: dict[str, Any] | None = None, **changes: Any) -> Upsampler:
    network = {**UNET, "attention": (), "middle_attention": False, "low_res_channels": 3, **(unet or {})}
    values = {"T": T, "image_size": 16, "low_res_size": 8, "unet": network, **changes}
    return _seeded(lambda: Upsampler.from_config(UpsamplerConfig.model_validate(values)))


def clip(**changes: Any) -> CLIP:
    values = {
        "vision": {**TOWER, "image_size": 8, "patch": 4},
        "text": {**TOWER, "vocab_size": 20, "context_length": 6},
        "embed_dim": DIM, "centred": True, "phrases": 16, "thumbnail": 8, **changes,
    }  # fmt: skip
    return _seeded(lambda: CLIP.from_config(CLIPConfig.model_validate(values)))


MODELS = {
    "prior": prior,
    "autoregressive_prior": autoregressive_prior,
    "decoder": lambda **changes: decoder({"dropout": 0.3}, z_noise=0.1, **changes),
    "draft": lambda: draft(z_noise=0.1),
    "upsampler": upsampler,
    "clip": clip,
}


def awake(model: M) -> M:
    """New networks answer zero to everything; with noise in their silent layers each input counts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


class Pairs(Dataset[dict[str, Tensor]]):
    """Clean pairs for any stage: embeddings, pictures, tokens."""

    def __init__(self, size: int = 8, rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(5)
        z = torch.randn(2, rows, DIM, generator=generator)
        tokens = torch.randint(3, 20, (rows, 6), generator=generator)
        tokens[:, 0], tokens[:, -1] = 1, 2
        image = torch.rand(rows, 3, size, size, generator=generator) * 2 - 1
        self.columns = {"z_img": z[0], "z_txt": z[1], "image": image, "tokens": tokens}

    def __len__(self) -> int:
        return len(self.columns["z_img"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {name: column[list(indices)] for name, column in self.columns.items()}


def trainer(
    folder: str | Path,
    kind: str = "prior",
    *,
    model: nn.Module | None = None,
    dataloader: Any = None,
    lr: float = 1e-2,
    log_interval: int = 10**6,
    **settings: Any,
) -> DALLe2Trainer:
    """A trainer of the tiny model of that kind; in float32, with an average, and saving only at the end."""
    model = MODELS[kind]() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    loader = Batches(Pairs(16 if kind == "upsampler" else 8), BATCH, seed=1) if dataloader is None else dataloader
    chosen = TrainerSettings(**{"dtype": "fp32", "ema_halflife": 20.0, "save_every": 1e6, **settings})
    return DALLe2Trainer(model, kind, optimizer, None, None, loader, False, folder, log_interval, settings=chosen)


class Announcing(Silent):
    """Leaves a file `started` once the first step is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def step(self, report: Report) -> None:
        (self.folder / "started").touch()


def train_on(folder: str, images: int, save_every: float) -> None:
    """What a child process runs: goes on where the folder's state ends."""
    torch.set_num_threads(1)
    Path(folder).mkdir(exist_ok=True)
    run = trainer(folder, save_every=save_every)
    run.reporter = Announcing(Path(folder))
    run.resume()
    try:
        run.fit(images)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def user_batch(kind: str, rows: int = 6) -> dict[str, torch.Tensor]:
    """A noised batch with exactly the names of the user's list."""
    names = {"prior": ("z_t", "z_txt", "t", "eps"), "decoder": ("x_t", "z_img", "t", "x_0")}[kind]
    noised = MODELS[kind]().noised(Pairs().batch(range(rows)), torch.Generator().manual_seed(0))
    return {name: noised[name] for name in names}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, through nested containers."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def assert_same_run(a: DALLe2Trainer, b: DALLe2Trainer) -> None:
    assert_same(a._state() | {"seconds": 0}, b._state() | {"seconds": 0})


def all_finite(values: Any) -> bool:
    if isinstance(values, dict):
        return all(map(all_finite, values.values()))
    return not isinstance(values, torch.Tensor) or bool(values.isfinite().all())


def broken(model: nn.Module, at: set[int], monkeypatch: "pytest.MonkeyPatch") -> None:
    """Makes the loss NaN in some calls."""
    loss, calls = model.loss, []

    def sometimes(batch: Any) -> Any:
        calls.append(None)
        parts = loss(batch)
        return parts | {"loss": parts["loss"] * (math.nan if len(calls) in at else 1.0)}

    monkeypatch.setattr(model, "loss", sometimes)


def _seeded(build: Callable[[], M]) -> M:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))
