"""Threads that share a pipeline draw what each draws alone, from its first use on."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import karlo_rig
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dalle_2
from dalle_2.config import parse
from dalle_2.models import turns
from dalle_2.models.dalle2 import finite
from dalle_2.models.glide import Glide, GlideConfig, GlideModel
from dalle_2.models.modes import evaluating
from dalle_2.models.once import Once
from dalle_2.models.rest import at_work, lay_down, resting, widened
from dalle_2.pipelines.glide import PUBLISHED
from dalle_2.text.glide_tokenizer import GlideTokenizer

THREADS = 4
PROMPTS = ["a red fox", "green", "a blue square"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads take turns often, so that what can go wrong does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What each call gives in a thread of its own, all beginning at once."""
    ready, answers = threading.Barrier(len(calls)), [None] * len(calls)

    def run(k: int) -> None:
        try:
            ready.wait()
            answers[k] = calls[k]()
        except BaseException as error:
            answers[k] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=[k], daemon=True) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "threads wait for each other"
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def drawing(pipeline: Any, k: int) -> Callable[[], Tensor]:
    return lambda: pipeline.generate([PROMPTS[k % len(PROMPTS)]], 2, seeds=[k])


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    home = tmp_path_factory.mktemp("karlo")
    karlo_rig.build(home)
    return home


@pytest.mark.parametrize(
    ("folder", "dtype", "low_memory", "times"),
    [
        ("karlo", "fp32", False, 1), ("karlo", "bf16", True, 1),
        ("micro_pipeline", "fp32", False, 3), ("micro_pipeline", "fp32", True, 2),
    ],
)  # fmt: skip
def test_each_draws_what_it_draws_alone(
    folder: str, dtype: str, low_memory: bool, times: int, request: pytest.FixtureRequest
) -> None:
    """times: pipelines that are used for the first time; those in low memory are always as at first."""
    home = request.getfixturevalue(folder)
    alone, *shared = (dalle_2.load(home, device="cpu", dtype=dtype, low_memory=low_memory) for _ in range(times + 1))
    wanted = [drawing(alone, k)() for k in range(THREADS)]
    for pipeline in shared:
        pictures = together(*(drawing(pipeline, k) for k in range(THREADS)))
        assert all(torch.equal(a, b) for a, b in zip(pictures, wanted, strict=True))


def test_in_low_memory_all_rests_again_when_the_last_has_drawn(karlo: Path) -> None:
    pipeline = dalle_2.load(karlo, device="cpu", dtype="fp32", low_memory=True)
    together(*(drawing(pipeline, k) for k in range(THREADS)))
    encoder: Any = pipeline.clip_encoder
    models: list[nn.Module] = [pipeline.decoder, *pipeline.upsamplers, encoder.model.text, encoder.model.vision]
    assert all(weight.is_meta for model in models for weight in model.parameters())


def test_whatever_is_asked_for_first_is_there_once(karlo: Path) -> None:
    """Parts, CLIP and what hangs on it are made by one thread and shared by all."""
    pipeline = dalle_2.load(karlo, device="cpu", dtype="fp32")
    picture = Image.new("RGB", (16, 16), "red")
    asked: list[Callable[[], Any]] = [
        lambda: pipeline.clip_encoder,
        lambda: pipeline.prior,
        lambda: pipeline.decoder,
        lambda: pipeline.upsamplers[0],
        lambda: pipeline._encode_text(["red"]),
        lambda: pipeline.encode_images([picture]),
    ]
    answers = together(*asked, *asked)
    half = len(asked)
    assert all(a is b for a, b in zip(answers[:4], answers[half : half + 4], strict=True))
    for a, b in zip(answers[4:half], answers[half + 4 :], strict=True):
        assert torch.equal(a, b)
    assert not any(weight.is_meta for part in answers[1:4] for weight in part.parameters())


def test_glide_s_networks_are_read_once() -> None:
    read: list[str] = []

    def slowly() -> GlideModel:
        read.append("decoder")
        time.sleep(0.01)
        return small

    config = PUBLISHED["decoder"]
    with torch.device("meta"):
        small = GlideModel(
            parse(GlideConfig, {**config, "unet": config["unet"] | {"multiples": (1,), "attention": ()}})
        )
    glide = Glide(object.__new__(GlideTokenizer), {"decoder": slowly}, device="cpu")
    small.to = lambda *_: small  # type: ignore[method-assign, assignment]
    assert together(*[lambda: glide.part("decoder")] * THREADS) == [small] * THREADS
    assert read == ["decoder"]


def test_who_lays_down_a_part_takes_it_from_nobody_else() -> None:
    layer, weights = nn.Linear(2, 2), nn.Linear(2, 2).state_dict()
    layer = resting(layer.to("meta"), CPU, lambda: weights)
    here, gone = threading.Event(), threading.Event()

    def long() -> bool:
        with at_work(layer):
            here.set()
            gone.wait(10)
            return torch.equal(layer.weight, weights["weight"])

    def short() -> None:
        here.wait(10)
        with at_work(layer):
            lay_down(layer)
        gone.set()

    assert together(long, short)[0]
    assert layer.weight.is_meta


def test_a_part_that_can_not_be_read_leaves_nobody_at_work() -> None:
    def fails() -> dict[str, Tensor]:
        raise ZeroDivisionError

    layer = resting(nn.Linear(2, 2).to("meta"), CPU, fails)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), at_work(layer):
            pass
    assert turns.nobody_at(layer)


def test_a_model_in_training_is_evaluated_until_the_last_has_left() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Dropout().eval())
    begun, inside, left = (threading.Event() for _ in range(3))

    def first() -> None:
        with evaluating(model):
            begun.set()
            inside.wait(10)
        left.set()

    def second() -> bool:
        begun.wait(10)
        with evaluating(model):
            inside.set()
            left.wait(10)
            return any(module.training for module in model.modules())

    assert together(first, second)[1] is False
    assert [module.training for module in model] == [True, True, False]
    assert model.training


def test_in_float32_a_thread_has_the_part_alone() -> None:
    """Those that overflow together wait for each other without waiting for ever; others wait until they have ended."""
    layer, dtypes = nn.Linear(2, 2).bfloat16(), list[torch.dtype]()
    inside: list[int] = []

    def draw() -> Tensor:
        inside.append(1)
        wide = layer.weight.dtype == torch.float32
        assert not wide or len(inside) == 1
        dtypes.append(layer.weight.dtype)
        time.sleep(0.01)
        assert layer.weight.dtype == dtypes[0] or wide
        inside.pop()
        return torch.ones(1) if wide else torch.full((1,), torch.inf)

    def overflows() -> Tensor:
        with at_work(layer):  # as an edit is, round all that it draws
            return finite("prior", layer, draw, CPU, torch.bfloat16)

    assert all(map(torch.equal, together(*[overflows] * 4), [torch.ones(1)] * 4))
    assert sorted(map(str, dtypes)) == ["torch.bfloat16"] * 4 + ["torch.float32"] * 4
    assert layer.weight.dtype == torch.bfloat16


def test_parts_in_each_other_s_way_end() -> None:
    """Two threads are at work with two parts, and each wants another of them alone."""
    parts = [nn.Linear(2, 2), nn.Linear(2, 2)]
    both = threading.Barrier(2)

    def wants(k: int) -> bool:
        with at_work(*parts):
            both.wait(10)
            with widened(parts[k]):
                return True

    assert together(lambda: wants(0), lambda: wants(1)) == [True, True]


def test_a_denoiser_s_memory_answers_each_with_its_own() -> None:
    function = Once(lambda x: x)
    given = [torch.tensor(float(k)) for k in range(THREADS)]
    answers = together(*(lambda x=x: [function(x) for _ in range(5_000)] for x in given))  # type: ignore[misc]
    for found, wanted in zip(answers, given, strict=True):
        assert all(value is wanted for value in found)
