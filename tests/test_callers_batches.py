"""Batches of the caller's own: noised ones in `train`, other batch sizes after a resume, wrong ones in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from training_rig import (
    BATCH,
    DIM,
    MODELS,
    Pairs,
    assert_same,
    decoder,
    prior,
    trainer,
    upsampler,
    user_batch,
    weights,
)

from dalle_2 import DDIMSampler
from dalle_2.errors import UsageError
from dalle_2.training import state


class Rows(Dataset[dict[str, Tensor]]):
    """64 rows, and which of them were asked for."""

    def __init__(self) -> None:
        self.pairs, self.asked = Pairs(rows=64), list[int]()

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.asked.append(index)
        return self.pairs[index]


# Other batch sizes


@pytest.mark.parametrize(("first", "then"), [(4, 8), (8, 16), (8, 4), (8, 8)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_epochs_are_passes_whatever_the_batch_size(first: int, then: int, shuffle: bool, tmp_path: Path) -> None:
    trainer(tmp_path, dataloader=DataLoader(Rows(), batch_size=first, shuffle=shuffle)).train(1)
    run = trainer(tmp_path, dataloader=DataLoader(Rows(), batch_size=then, shuffle=shuffle))
    run.resume()
    run.train(2)
    assert (run.images, run.passes.done, run.passes.rows) == (128, 2, 0)
    run.train(2)
    assert run.images == 128


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_that_was_left_in_the_middle_of_a_batch_gives_each_row_once(shuffle: bool, tmp_path: Path) -> None:
    seen: list[bytes] = []

    def part(size: int, images: int | None) -> Any:
        run = trainer(tmp_path, dataloader=DataLoader(Rows(), batch_size=size, shuffle=shuffle))
        noised = run.model.noised

        def spied(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            seen.extend(row.numpy().tobytes() for row in batch["z_img"])
            return noised(batch, generator)

        run.model.noised = spied
        run.resume()
        run.fit(images) if images else run.train(1)
        return run

    part(4, 20)
    run = part(16, None)
    assert run.images == 64
    assert sorted(seen) == sorted(row.numpy().tobytes() for row in Rows().pairs.columns["z_img"])


def test_steps_of_the_callers_own_are_no_part_of_a_resumed_pass(tmp_path: Path) -> None:
    for loader in (lambda: DataLoader(Rows(), batch_size=8), None):
        run = trainer(tmp_path / str(loader), dataloader=loader() if loader else None)
        for _ in range(3):
            run.train_step(user_batch("prior"))
        run.save()
        again = trainer(tmp_path / str(loader), dataloader=loader() if loader else None)
        again.resume()
        again.train(1)
        assert again.images == 3 * 6 + (64 if loader else 4 * BATCH)  # of 30 rows in batches of 8


# Noised batches


class Noised(Dataset[dict[str, Any]]):
    """The contract's noised rows, with a timestep as a number or as a row of one."""

    def __init__(self, kind: str, column: bool) -> None:
        self.batch = user_batch(kind, 12)
        if column:
            self.batch["t"] = self.batch["t"][:, None]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value[index] for name, value in self.batch.items()}


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("kind", ["prior", "decoder"])
def test_the_contracts_noised_batches_train(kind: str, column: bool, tmp_path: Path) -> None:
    build = {"prior": prior, "decoder": decoder}[kind]
    loader = DataLoader(Noised(kind, column), batch_size=6)
    run = trainer(tmp_path, kind, model=build(), dataloader=loader, preview_every=6)
    run.sampler = DDIMSampler(run.model.noise_scheduler)
    run.train(1)
    whole, by_hand = user_batch(kind, 12), trainer(tmp_path / "by-hand", kind, model=build())
    for start in (0, 6):
        by_hand.train_step({name: value[start : start + 6] for name, value in whole.items()})
    assert_same(weights(run.model), weights(by_hand.model))
    assert (tmp_path / "samples").exists() == (kind == "decoder")  # its clean pictures are x_0


@pytest.mark.parametrize("kind", MODELS)
def test_arrays_of_numpy_are_batches(kind: str, tmp_path: Path) -> None:
    """Of their own dtype, which is float64 unless somebody cares; and whole bytes of pictures, channels last."""
    clean = Pairs(16 if kind == "upsampler" else 8).batch(range(8))
    arrays = {name: value.numpy() for name, value in clean.items()}
    arrays |= {name: arrays[name].astype(np.float64) for name in ("z_img", "z_txt")} | {"index": 3}
    pixels = ((clean["image"] + 1) * 127.5).round().to(torch.uint8)
    arrays["image"] = pixels.permute(0, 2, 3, 1).numpy()
    clean["image"] = pixels.float() / 127.5 - 1
    runs = [trainer(tmp_path / name, kind, dataloader=[batch]) for name, batch in (("a", arrays), ("b", clean))]
    for run in runs:
        run.train(1)
    assert_same(weights(runs[0].model), weights(runs[1].model))


# One sentence each

CLEAN = {"z_img": (4, DIM), "z_txt": (4, DIM), "image": (4, 3, 8, 8), "tokens": (4, 6)}


def clean(kind: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    size = 16 if kind == "upsampler" else 8
    batch = Pairs(size).batch(range(4))
    return batch | {name: torch.rand(shape) for name, shape in shapes.items()}


def refused(run: Any, call: Any, words: str) -> None:
    before = weights(run.model)
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert_same(weights(run.model), before)
    assert run.steps == 0


@pytest.mark.parametrize(
    ("kind", "name", "shape", "takes"),
    [
        ("prior", "z_txt", (4, 16), r"\(4, 8\)"),
        ("prior", "z_img", (4, 1, DIM), r"\(4, 8\)"),
        ("prior", "z_txt", (2, DIM), r"\(4, 8\)"),
        ("autoregressive_prior", "z_txt", (4, 16), r"\(4, 8\)"),
        ("autoregressive_prior", "z_img", (1, DIM), r"\(4, 8\)"),
        ("draft", "z_img", (4, 16), r"\(4, 8\)"),
        ("draft", "image", (4, 3, 16, 16), r"\(4, 3, 8, 8\)"),
        ("decoder", "z_img", (4, 16), r"\(4, 8\)"),
        ("decoder", "image", (4, 8, 8, 3), r"\(4, 3, 8, 8\)"),
        ("decoder", "image", (4, 1, 8, 8), r"\(4, 3, 8, 8\)"),
        ("decoder", "image", (1, 3, 8, 8), r"\(4, 3, 8, 8\)"),
        ("upsampler", "z_img", (4, 16), r"\(4, 8\)"),
        ("upsampler", "image", (4, 3, 8, 8), "squares of at least 16 px"),
        ("upsampler", "image", (4, 3, 16, 24), "squares of at least 16 px"),
        ("clip", "image", (4, 3, 16, 16), r"\(4, 3, 8, 8\)"),
        ("clip", "tokens", (4,), r"\(4, any\)"),
    ],
)
def test_clean_batches_of_other_shapes(
    kind: str, name: str, shape: tuple[int, ...], takes: str, tmp_path: Path
) -> None:
    batch = clean(kind, **{name: shape})
    order = ["image" if kind in ("clip", "draft", "decoder", "upsampler") else "z_img"]
    order = [other for other in (*order, *batch) if other != name or shape[0] == 4]
    batch = {key: batch[key] for key in dict.fromkeys((*order, *batch))}
    run = trainer(tmp_path, kind, dataloader=[batch])
    refused(run, lambda: run.train(1), rf"{name} of the batch has shape .*, but the {kind} takes {takes} by its sett")


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("prior", "eps", (1, DIM)), ("prior", "eps", (6, 1)), ("prior", "z_t", (6, 4)), ("prior", "t", (1,)),
        ("prior", "t", (6, 2)), ("decoder", "x_0", (1, 3, 8, 8)), ("decoder", "x_0", (6, 1, 8, 8)),
        ("decoder", "x_t", (6, 3, 4, 4)), ("decoder", "t", ()),
    ],
)  # fmt: skip
def test_noised_batches_of_other_shapes(kind: str, name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Some of them would be repeated to the others' shape without a word."""
    run, batch = trainer(tmp_path, kind), user_batch(kind)
    words = rf"{name} of the batch has shape|the batch lacks {name}"
    refused(run, lambda: run.train_step(batch | {name: torch.zeros(shape)}), words)


def test_an_upsamplers_small_picture_must_fit_the_large_one(tmp_path: Path) -> None:
    noised = upsampler().noised(Pairs(16).batch(range(4)), torch.Generator().manual_seed(0))
    run = trainer(tmp_path, "upsampler")
    small = noised | {"low_res": noised["low_res"][..., :4, :4]}
    refused(run, lambda: run.train_step(small), "low_res of the batch has shape .* a side of 8 px under this x_t")
    run.train_step(noised)


@pytest.mark.parametrize("kind", ["clip", "draft", "decoder", "upsampler"])
def test_pictures_of_0_to_255_are_refused(kind: str, tmp_path: Path) -> None:
    batch = clean(kind)
    run = trainer(tmp_path, kind, dataloader=[batch | {"image": (batch["image"] + 1) * 127.5}])
    refused(run, lambda: run.train(1), r"image of the batch must hold pictures in \[-1, 1\], got numbers from .* to 2")


def test_broken_timesteps_and_batches_that_are_none(tmp_path: Path) -> None:
    run, batch = trainer(tmp_path), user_batch("prior")
    refused(run, lambda: run.train_step(batch | {"t": batch["t"] + 0.5}), "t must hold whole numbers, got .*5: one t")
    refused(run, lambda: run.train_step([batch]), "a batch must be a dict of tensors, got a list")
    refused(run, lambda: run.train_step({"z_t": "x"}), "a batch must hold tensors, got z_t")
    run.train_step(batch | {"t": batch["t"].float()})


def test_models_of_others_get_what_they_want(tmp_path: Path) -> None:
    """A loss of one's own may take any batch."""

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def noised(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return batch

        def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"loss": (self.scale * batch["image"]).square().mean()}

    run = trainer(tmp_path, "prior", model=Mine(), dataloader=[{"image": torch.full((2, 1), 200.0)}])
    run.train(1)
    assert state.load_state(tmp_path)["config"] is None
