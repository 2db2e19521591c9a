"""The script of Karlo's own table, end to end: random weights, made-up pictures, every figure reckoned here again."""

import json
from pathlib import Path
from types import ModuleType

import karlo_rig
import numpy as np
import pytest
import torch
from PIL import Image
from test_clip_encoding import stored
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.data.shapes import Shapes
from dalle_2.errors import CheckpointError, DataError, UsageError
from dalle_2.images import from_pil, open_image
from dalle_2.models.clip_encoding import CLIPEncoder

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class Coarse(nn.Module):
    """In Inception's place: what a picture looks like from afar."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        assert images.dtype == torch.uint8
        return F.adaptive_avg_pool2d(images.float() / 255, (1, 2)).flatten(1)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import karlo_table

    return karlo_table


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A Karlo, a CLIP, a network of features, and five pictures captioned as COCO's are, one of them twice."""
    karlo_rig.build(tmp_path / "karlo", vision=False)
    stored(tmp_path / "clip")
    torch.jit.script(Coarse()).save(tmp_path / "inception.pt")
    shapes, pictures, captions = Shapes(64, length=5, seed=3), [], []
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        Image.fromarray(shapes[i].image).resize((320, 280)).save(tmp_path / "pictures" / f"{i}.png")
        pictures.append({"id": 90 - i, "file_name": f"{i}.png"})
        captions.append({"image_id": 90 - i, "caption": f"{shapes.caption(i)} "})
    captions.append({"image_id": 90, "caption": "the second caption of the first"})
    (tmp_path / "coco.json").write_text(json.dumps({"images": pictures, "annotations": captions}))
    return tmp_path


def called(script: ModuleType, home: Path, *more: str) -> list[dict[str, object]]:
    script.main([
        "--coco", f"{home}/coco.json", "--pictures", f"{home}/pictures", "--inception", f"{home}/inception.pt",
        "--clip", f"{home}/clip", "--pipeline", f"{home}/karlo", "--out", f"{home}/out", "--device", "cpu", *more,
    ])  # fmt: skip
    return json.loads((home / "out" / "table.json").read_text())["rows"]


def test_one_command_gives_the_table(script: ModuleType, home: Path) -> None:
    few, many = called(script, home, "--steps", "2,25", "--n", "4")
    names = ("set", "decoder's steps", "pictures", "as published", "FID as published")
    assert [few[name] for name in names] == ["COCO", 2, 4, "–", "–"]
    assert [many[name] for name in names] == ["COCO", 25, 4, 0.3192, 15.24]
    drawn = sorted((home / "out").glob("*-2-steps/*.png"))
    assert len(drawn) == 4

    captions = [json.loads(Image.open(path).info["dalle2"])["prompt"] for path in drawn]
    annotations = json.loads((home / "coco.json").read_text())["annotations"]
    known = {item["caption"].strip(): i for i, item in enumerate(annotations)}
    numbers = [known[caption] for caption in captions]
    assert max(numbers) < 5  # the first of two captions
    true = [from_pil(open_image(home / "pictures" / f"{i}.png"), 256) for i in numbers]
    features = [
        np.stack([((x + 1) / 2).mean(1).reshape(3, 2, -1).mean(-1).flatten().numpy() for x in pictures])
        for pictures in (true, [from_pil(open_image(path)) for path in drawn])
    ]
    (m, s), (n, t) = ((x.mean(0), np.cov(x.T)) for x in features)
    root = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    assert float(str(few["FID"])) == pytest.approx(((m - n) ** 2).sum() + np.trace(s + t) - 2 * root, abs=0.01)

    encoder = CLIPEncoder(home / "clip")
    z_img, z_txt = encoder.encode_images([open_image(path) for path in drawn]), encoder.encode_text(captions)
    assert float(str(few["CLIP score"])) == pytest.approx(float((z_img * z_txt).sum(1).mean()), abs=1e-4)


def test_it_goes_on_where_it_stopped(script: ModuleType, home: Path) -> None:
    called(script, home, "--steps", "2", "--n", "2")
    before = {path: path.stat().st_mtime_ns for path in (home / "out").glob("*/*.png")}
    called(script, home, "--steps", "2", "--n", "3")
    after = {path: path.stat().st_mtime_ns for path in (home / "out").glob("*/*.png")}
    assert len(before) == 2
    assert len(after) == 3
    assert before.items() <= after.items()


def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(script: ModuleType, home: Path) -> None:
    with pytest.raises(UsageError, match="either --coco with --pictures, or --folder"):
        script.main(["--inception", "x.pt"])
    (home / "inception.pt").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match="TorchScript"):
        called(script, home)
    (home / "coco.json").write_text("[]")
    with pytest.raises(DataError, match="COCO's captions"):
        called(script, home)
    assert not (home / "out").exists()
