"""`dalle2 evaluate`: a pipeline that draws the truth scores everything, one that mixes it up nothing."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dalle_2
from dalle_2 import DALLe2
from dalle_2.cli.evaluate import chosen
from dalle_2.cli.main import main
from dalle_2.data.dataset import to_image_tensor
from dalle_2.data.render import render
from dalle_2.data.shapes import fixed_scenes
from dalle_2.errors import UsageError
from dalle_2.evaluation.evaluate import QUESTIONS, SOURCES, Embeddings, Question, Settings, evaluate, sheet, table
from dalle_2.evaluation.exact_match import ATTRIBUTES, Verdict
from dalle_2.evaluation.failures import failures

N = 12


class Painter(DALLe2):
    """Draws the scene it is asked for, or the one `shift` places further on; its CLIP finds all alike."""

    def __init__(self, question: Question, *, shift: int = 0, size: int = 256) -> None:
        self.scenes = [scene for scene, _ in fixed_scenes(question.split, N, objects=question.objects)]
        self.shift, self.picture_size, self.calls = shift, size, []

    def generate(self, prompts: Sequence[str], steps: int | None = None, **settings: Any) -> Tensor:  # type: ignore[override]
        self.calls.append(settings | {"steps": steps, "prompts": list(prompts)})
        return self.drawn(settings["seeds"])

    def drawn(self, seeds: Sequence[int]) -> Tensor:
        rows = [(seed - Settings().seed + self.shift) % N for seed in seeds]
        return to_image_tensor(np.stack([render(self.scenes[row], self.picture_size) for row in rows]))

    def _encode_text(self, prompts: list[str]) -> Tensor:
        return torch.tensor([[3.0, 4.0]]).repeat(len(prompts), 1)

    def _encode_images(self, images: list[Image.Image]) -> Tensor:
        return torch.tensor([[3.0, -4.0]]).repeat(len(images), 1)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_the_truth_scores_everything(question: Question) -> None:
    done: list[int] = []
    result = evaluate(Painter(question), question, Settings(n=N, batch=5), on_pictures=done.append)
    for name, rate in result.rates.items():
        assert rate.value in (None, float(name != "unreadable")), name
    assert result.rates["exact"].n == N
    assert result.clip_similarity == pytest.approx((9 - 16) / 25)
    assert done == [5, 5, 2]
    assert len(result.pictures) == len(result.captions) == N


def test_scenes_in_another_order_score_nothing() -> None:
    result = evaluate(Painter(QUESTIONS[0], shift=1), QUESTIONS[0], Settings(n=N))
    assert result.rates["exact"].value <= 1 / N
    assert result.rates["count"].value == 1


def test_small_pictures_are_enlarged_before_they_are_read() -> None:
    result = evaluate(Painter(QUESTIONS[3], size=128), QUESTIONS[3], Settings(n=N))
    assert result.rates["exact"].value == 1
    assert {picture.size for picture in result.pictures} == {(256, 256)}


def test_pictures_are_asked_for_with_their_own_seeds_and_settings() -> None:
    painter = Painter(QUESTIONS[0])
    settings = Settings(n=3, batch=2, steps=7, guidance=2.0, sampler="unipc", candidates=5)
    evaluate(painter, QUESTIONS[0], settings)
    captions = [statement.text for _, statement in fixed_scenes("seen", 3)]
    first = Settings().seed
    assert [call["seeds"] for call in painter.calls] == [[first, first + 1], [first + 2]]
    assert [call["prompts"] for call in painter.calls] == [captions[:2], captions[2:]]
    assert {(call["steps"], call["guidance"], call["candidates"]) for call in painter.calls} == {(7, 2.0, 5)}
    assert all(call["use_prior"] for call in painter.calls)
    assert all(call["sampler"] == {"decoder": "unipc"} for call in painter.calls)
    evaluate(painter, QUESTIONS[0], Settings(n=1, embeddings="text"))
    assert not painter.calls[-1]["use_prior"]


def test_the_upper_bound_starts_from_true_pictures() -> None:
    class Honest(Painter):
        upsamplers = ("one",)  # type: ignore[assignment]

        def _encode_images(self, images: list[Image.Image]) -> Tensor:
            self.calls.append(np.stack([np.asarray(image) for image in images]))
            return super()._encode_images(images)

        def decode(self, z_img: Tensor, steps: int | None = None, **settings: Any) -> Tensor:  # type: ignore[override]
            self.calls.append(("decode", steps, len(z_img)))
            return self.drawn(settings["seeds"])

        def upscale(self, pictures: Tensor, z_img: Tensor, steps: int | None = None, **_: Any) -> Tensor:  # type: ignore[override]
            self.calls.append(("upscale", steps, len(z_img)))
            return pictures

    painter = Honest(QUESTIONS[0])
    result = evaluate(painter, QUESTIONS[0], Settings(n=2, steps=5, embeddings="image"))
    assert (painter.calls[0] == np.stack([render(scene, 256) for scene in painter.scenes[:2]])).all()
    assert painter.calls[1:3] == [("decode", 5, 2), ("upscale", 5, 2)]
    assert result.rates["exact"].value == 1


# Reports


def test_the_table_and_the_json_say_the_same() -> None:
    results = [
        evaluate(Painter(question, shift=shift), question, Settings(n=N))
        for question, shift in ((QUESTIONS[0], 0), (QUESTIONS[1], 3))
    ]
    head, rule, first, second = table(results).splitlines()
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[:2] == ["a", str(N)]
    assert cells[2].startswith("100.0 (7")  # 12 of 12: 75.8 % to 100 % at 95 %
    assert len(cells) == head.count("|") - 1 == rule.count("|") - 1
    assert second.split("|")[3].strip().startswith(f"{100 * results[1].rates['exact'].value:.1f} (")
    written = json.loads(json.dumps(results[0].as_json()))
    assert written["question"] == {"name": "a", "split": "seen", "objects": 2}
    assert written["rates"]["exact"] == results[0].rates["exact"]._asdict()
    assert [row["exact"] for row in written["pictures"]] == [True] * N
    assert [row["caption"] for row in written["pictures"]] == results[0].captions


def verdicts(*, unreadable: Sequence[str] = (), **wrong: int) -> list[Verdict]:
    """Ten readable pictures, in some of which something is wrong, and some that can't be read."""
    right = dict.fromkeys(ATTRIBUTES, True)
    read = [right | {name: k >= count for name, count in wrong.items()} for k in range(10)]
    lost = [dict.fromkeys(ATTRIBUTES, False) | {"size": None, "reason": reason} for reason in unreadable]
    return [Verdict(**values) for values in read + lost]


def test_the_worst_failures_are_named_first() -> None:
    reasons = ["noise", "no shape fits a region: the best is a star", "no shape fits a region: the best is a heart"]
    said = failures(verdicts(unreadable=reasons, colour=2, relation=7, shape=1, count=4, exact=9)).splitlines()
    assert said == [
        "- 3 of 13 pictures could not be read, most often because: no shape fits a region (2), noise (1)",
        "- least often right in pictures that could be read: relation (30.0 % of 10), count (60.0 % of 10), "
        "colour (80.0 % of 10)",
    ]
    assert failures(verdicts()) == "Nothing failed."
    assert len(failures(verdicts(unreadable=["noise"])).splitlines()) == 1
    assert len(failures(verdicts(size=1)).splitlines()) == 1


def test_failures_have_a_red_frame() -> None:
    def reddish(shift: int) -> int:
        result = evaluate(Painter(QUESTIONS[0], shift=shift), QUESTIONS[0], Settings(n=4))
        for k in range(4):
            result.pictures[k] = Image.new("RGB", (256, 256), "white")
        pixels = np.asarray(sheet(result)).astype(int)
        return int(((pixels[..., 0] > 150) & (pixels[..., 1:].max(-1) < 100)).sum())

    assert reddish(0) == 0
    assert reddish(1) > 4 * 128


def test_settings_are_named_in_words() -> None:
    assert set(SOURCES) == set(get_args(Embeddings))
    assert Settings(n=5, seed=3).described == "5 scenes a row, seed 3, image embeddings by the prior"
    text = Settings(embeddings="image", steps=7, guidance=2.0, sampler="heun").described
    assert text.endswith("of true pictures (an upper bound), steps 7, guidance 2, decoder sampler heun")


# Refusals and the command


def test_what_makes_no_sense_is_refused() -> None:
    for settings, words in (({"n": 0}, "got 0 and 20"), ({"batch": 0}, "got 500 and 0")):
        with pytest.raises(UsageError, match=words):
            Settings(**settings)
    for wish in ({"prior": "ar"}, {"candidates": 4}):
        with pytest.raises(UsageError, match="are for embeddings by the prior, got 'image'"):
            Settings(embeddings="image", **wish)
    with pytest.raises(UsageError, match="unknown split 'nowhere'"):
        evaluate(Painter(QUESTIONS[0]), Question("x", "nowhere", 2), Settings(n=1))
    assert [question.name for question in chosen("b, one object", QUESTIONS)] == ["b", "one object"]
    assert chosen("", QUESTIONS) == list(QUESTIONS)
    with pytest.raises(UsageError, match="no split 'd': there are a, b, c, one object"):
        chosen("a,d", QUESTIONS)


def test_the_command_leaves_a_report(micro_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    arguments = ["--pipeline", str(micro_pipeline), "--n", "2", "--splits", "a,one object", "--device", "cpu"]
    arguments += ["--seed", "5", "--steps", "1", "--candidates", "3", "--out", str(out), "--quiet"]
    assert main(["evaluate", *arguments]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "one-object.png", "report.json", "report.md"]
    report = json.loads((out / "report.json").read_text())
    assert report["settings"] == {
        "n": 2, "seed": 5, "embeddings": "prior", "steps": 1, "guidance": None, "sampler": None, "prior": None,
        "candidates": 3, "batch": 20,
    }  # fmt: skip
    assert [result["question"]["name"] for result in report["results"]] == ["a", "one object"]
    assert len(report["fingerprint"]) == 64
    assert capsys.readouterr().out == (out / "report.md").read_text()


def test_the_card_gets_the_figures_once(micro_pipeline: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(micro_pipeline, tmp_path / "mine")), tmp_path / "report"
    (folder / "README.md").write_text("# Mine\n\nMy words.\n\n## Figures and failures\n\nold\n\n## Licence\n\nfree\n")
    arguments = ["--pipeline", str(folder), "--splits", "a", "--device", "cpu", "--steps", "1", "--quiet", "--card"]
    for n in ("2", "3"):
        assert main(["evaluate", *arguments, "--n", n, "--embeddings", "text", "--out", str(out)]) == 0
    card = (folder / "README.md").read_text()
    assert card.startswith("# Mine\n\nMy words.\n\n## Licence\n\nfree\n\n## Figures and failures\n\n")
    assert "old" not in card
    assert f"3 scenes a row, seed {Settings().seed}, image embeddings replaced by text embeddings, steps 1" in card
    assert (out / "report.md").read_text() in card
    assert "\n- 3 of 3 pictures could not be read, most often because: " in card
    assert dalle_2.load(folder, device="cpu").decoder is not None
    (folder / "README.md").unlink()
    assert main(["evaluate", *arguments, "--n", "1", "--out", str(out)]) == 0
    assert "| decoder | decoder.safetensors |" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pipeline", "some/pipeline", "--card"], "--card writes into a pipeline's folder, and 'some/pipeline' is"),
        (["--n", "0"], "n must be at least 1 scene, got 0"),
        (["--embeddings", "clip"], "embeddings must be prior, text or image, got 'clip'"),
        (["--splits", "d"], "no split 'd'"),
        (["--sampler", "huen"], "no sampler 'huen': did you mean 'heun'?"),
        (["--pipeline", "no-such-pipeline"], "no-such-pipeline"),
        (["--out", __file__], "is a file: name a folder for the results"),
    ],
)
def test_wrong_usage_is_one_sentence(
    arguments: list[str], words: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(workdir.iterdir())
