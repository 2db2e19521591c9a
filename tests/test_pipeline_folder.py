"""Pipeline folders: what is written is what is read, and everything that can be wrong with one is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import dalle_2
from dalle_2 import DALLe2
from dalle_2.errors import CheckpointError, HubError, UsageError
from dalle_2.models.checkpoints import save_model
from dalle_2.models.prior import Prior, PriorConfig
from dalle_2.models.stages import StageDefaults
from dalle_2.pipelines import find
from dalle_2.pipelines.card import with_figures
from dalle_2.pipelines.manifest import read_manifest, sha256

PROMPTS = ["a red circle", "a blue square"]
FILES = {
    "README.md", "pipeline.json", "tokenizer.json", "clip.safetensors",
    "prior.safetensors", "decoder.safetensors", "upsampler-32.safetensors",
}  # fmt: skip


@pytest.fixture
def folder(micro_pipeline: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(micro_pipeline, tmp_path / "micro")


def generated(folder: Path) -> torch.Tensor:
    return dalle_2.load(folder, device="cpu").generate(PROMPTS, seeds=0)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# There and back


def test_a_folder_holds_flat_files_and_names_them(micro_pipeline: Path) -> None:
    assert {path.name for path in micro_pipeline.iterdir()} == FILES
    manifest = read_manifest(micro_pipeline)
    assert manifest.name == "micro"
    assert manifest.training == {"minutes": 0}
    assert list(manifest.parts) == ["clip", "tokenizer", "prior", "decoder", "upsampler-32"]
    assert manifest.parts["decoder"].config["image_size"] == 16
    for part in manifest.parts.values():
        assert sha256(micro_pipeline / part.file) == part.sha256
    assert "| decoder | decoder.safetensors |" in (micro_pipeline / "README.md").read_text()


def test_saving_what_was_loaded_changes_nothing(micro_pipeline: Path, tmp_path: Path) -> None:
    loaded = dalle_2.load(micro_pipeline, device="cpu")
    again = dalle_2.save(loaded, tmp_path / "again", name="micro", training={"minutes": 0})
    for name in FILES:
        assert (again / name).read_bytes() == (micro_pipeline / name).read_bytes(), name
    assert torch.equal(generated(again), generated(micro_pipeline))


def test_weights_are_half_on_disk_and_float32_in_use(micro_pipeline: Path, tmp_path: Path) -> None:
    loaded = dalle_2.load(micro_pipeline, device="cpu")
    assert {p.dtype for p in loaded.decoder.parameters()} == {torch.float32}
    whole = dalle_2.save(loaded, tmp_path / "whole", dtype=None)
    sizes = [(folder / "decoder.safetensors").stat().st_size for folder in (micro_pipeline, whole)]
    assert sizes[0] < 0.7 * sizes[1]


def test_defaults_and_training_notes_come_back(micro_pipeline: Path, tmp_path: Path) -> None:
    loaded = dalle_2.load(micro_pipeline, device="cpu")
    loaded.defaults = StageDefaults(steps={"prior": 9}, guidance={"decoder": 2.0})
    dalle_2.save(loaded, tmp_path / "new", training={"minutes": 7.5})
    again = dalle_2.load(tmp_path / "new", device="cpu")
    assert again.settings()["prior"].steps == 9
    assert again.settings()["decoder"].guidance == 2.0
    assert again.name == "new"
    assert read_manifest(tmp_path / "new").training == {"minutes": 7.5}
    assert '"minutes": 7.5' in (tmp_path / "new" / "README.md").read_text()


def test_a_pipeline_without_prior_and_upsampler(micro_pipeline: Path, tmp_path: Path) -> None:
    loaded = dalle_2.load(micro_pipeline, device="cpu")
    loaded.prior, loaded.upsamplers = None, ()
    dalle_2.save(loaded, tmp_path / "bare")
    again = dalle_2.load(tmp_path / "bare", device="cpu")
    assert again.prior is None
    assert again.generate(PROMPTS, 1, seeds=0).shape == (2, 3, 16, 16)


def test_a_card_is_kept_unless_a_new_one_is_given(folder: Path) -> None:
    loaded = dalle_2.load(folder, device="cpu")
    (folder / "README.md").write_text("my own words")
    dalle_2.save(loaded, folder)
    assert (folder / "README.md").read_text() == "my own words"
    dalle_2.save(loaded, folder, card="# New\n")
    assert (folder / "README.md").read_text() == "# New\n"


def test_figures_stand_once_and_last_in_a_card() -> None:
    section = "## Figures and failures\n\n| a |\n\n- none\n"
    assert with_figures("", "| a |", "- none") == section
    assert with_figures("# Mine\n\nwords", "| a |", "- none") == f"# Mine\n\nwords\n\n{section}"
    older = "# Mine\n\n## Figures and failures\n\nold\n\n### more\n\nold too\n\n## Licence\n\nfree\n"
    once = with_figures(older, "| a |", "- none")
    assert once == f"# Mine\n\n## Licence\n\nfree\n\n{section}"
    assert with_figures(once, "| a |", "- none") == once
    assert with_figures("## Figures and failures of others", "| a |", "- none").startswith("## Figures and failures of")


def test_a_published_clip_is_named_instead_of_copied(micro_pipeline: Path, tmp_path: Path) -> None:
    loaded = dalle_2.load(micro_pipeline, device="cpu")
    dalle_2.save(loaded, tmp_path / "hub", clip="owner/some-clip")
    dalle_2.save(loaded, tmp_path / "openclip", clip="openclip:ViT-B-32/laion2b_s34b_b79k")
    assert not (tmp_path / "hub" / "clip.safetensors").exists()
    assert read_manifest(tmp_path / "openclip").parts["clip"].openclip == "ViT-B-32/laion2b_s34b_b79k"
    named = dalle_2.load(tmp_path / "hub", device="cpu")
    assert named.decoder.config.image_size == 16  # the other parts don't need it
    with pytest.raises(HubError, match="owner/some-clip"):
        named.generate(PROMPTS)


def test_an_encoder_of_another_kind_must_be_named(micro_pipeline: Path, tmp_path: Path) -> None:
    class Stub:
        dim = 16

        def encode_text(self, prompts: list[str]) -> torch.Tensor:
            return torch.ones(len(prompts), 16) / 4

        def encode_images(self, images: list) -> torch.Tensor:
            return torch.ones(len(images), 16) / 4

    loaded = dalle_2.load(micro_pipeline, device="cpu")
    loaded.clip_encoder = Stub()
    assert loaded.generate(PROMPTS, 1, seeds=0).shape == (2, 3, 32, 32)
    with pytest.raises(UsageError, match=r"CLIP \(Stub\) can't be copied .* clip='owner/name'"):
        dalle_2.save(loaded, tmp_path / "stub")


def test_a_full_disk_leaves_the_older_pipeline_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dalle_2.pipelines import folder as module

    before, loaded = generated(folder), dalle_2.load(folder, device="cpu")
    loaded.prior = Prior.from_config(PriorConfig(dim=16, width=32, depth=1, heads=2))

    def full(model: torch.nn.Module, path: Path, dtype: torch.dtype | None = None) -> None:
        if path.name.startswith("upsampler"):
            raise OSError(28, "No space left on device", str(path))
        save_model(model, path, dtype=dtype)

    monkeypatch.setattr(module, "save_model", full)
    with pytest.raises(CheckpointError, match="micro could not be written: No space left on device"):
        dalle_2.save(loaded, folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert torch.equal(generated(folder), before)


# Names


def test_names_mean_shipped_pipelines_then_trained_ones_then_folders(
    micro_pipeline: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "shipped_pipelines", lambda: workdir / "shipped")
    for place in ("shipped/tiny", "tiny", "trained_models/mine", "mine", "somewhere/else"):
        shutil.copytree(micro_pipeline, workdir / place)
    assert find.find_pipeline("tiny") == workdir / "shipped" / "tiny"
    assert find.find_pipeline("./tiny") == Path("tiny")
    assert find.find_pipeline("mine") == Path("trained_models/mine")
    assert find.find_pipeline("somewhere/else") == Path("somewhere/else")
    assert find.find_pipeline(workdir / "tiny" / "pipeline.json") == workdir / "tiny"
    with pytest.raises(UsageError, match="no pipeline 'tinny': did you mean tiny"):
        dalle_2.load("tinny")
    with pytest.raises(UsageError, match="no pipeline 'Q': known are mine, tiny"):
        dalle_2.load("Q")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trained_models/shapes-tinny", "no folder .*/shapes-tinny: did you mean trained_models/shapes-tiny"),
        ("./trained_models/Q", "no folder trained_models/Q: trained_models holds shapes-tiny$"),
        ("work/Q", "no folder work/Q: work holds no pipeline"),
        ("work/notes.txt", "work/notes.txt is a file: give the folder of a pipeline"),
    ],
)
def test_a_slip_in_a_path_is_not_looked_up_on_the_hub(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setattr(find, "_from_hub", lambda name: pytest.fail(f"{name} went to the hub"))
    for folder in ("trained_models/shapes-tiny", "work"):
        (workdir / folder).mkdir(parents=True)
    for file in ("trained_models/shapes-tiny/pipeline.json", "work/notes.txt"):
        (workdir / file).touch()
    with pytest.raises(UsageError, match=hint):
        find.find_pipeline(name)


def test_a_name_with_a_slash_is_a_hub_id_where_no_folder_is(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_from_hub", lambda name: Path("cache") / name)
    (workdir / "trained_models").mkdir()
    assert find.find_pipeline("someone/some-pipeline") == Path("cache/someone/some-pipeline")


def test_a_hub_id_without_network_names_all_that_was_tried(workdir: Path) -> None:
    with pytest.raises(HubError, match=r"someone/some-pipeline isn't in the hub cache .*") as caught:
        dalle_2.load("someone/some-pipeline")
    assert "give a folder" in str(caught.value)


# Damage


def test_a_folder_without_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no pipeline folder: it has no pipeline.json"):
        dalle_2.load(tmp_path)


@pytest.mark.parametrize("name", sorted(FILES - {"README.md", "pipeline.json"}))
def test_a_missing_part_is_named_before_anything_is_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        dalle_2.load(folder)


@pytest.mark.parametrize("name", sorted(FILES - {"README.md", "pipeline.json"}))
def test_a_truncated_part_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=rf"{name} is not the file that pipeline.json describes"):
        generated(folder)


def test_a_single_flipped_bit_is_noticed(folder: Path) -> None:
    content = bytearray((folder / "decoder.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "decoder.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"decoder.safetensors is not the file"):
        generated(folder)


def test_truncation_is_noticed_even_without_a_sum(folder: Path) -> None:
    parts = json.loads((folder / "pipeline.json").read_text())["parts"]
    edit(folder, parts={role: part | {"sha256": ""} for role, part in parts.items()})
    content = (folder / "prior.safetensors").read_bytes()
    (folder / "prior.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"prior.safetensors is truncated"):
        generated(folder)


def test_weights_of_another_shape_name_the_tensors(folder: Path) -> None:
    from dalle_2.weights.checkpoint import load_checkpoint, save_checkpoint

    path = folder / "prior.safetensors"
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, "prior", checkpoint.config | {"width": 64}, checkpoint.tensors)
    parts = json.loads((folder / "pipeline.json").read_text())["parts"]
    edit(folder, parts=parts | {"prior": parts["prior"] | {"sha256": sha256(path)}})
    with pytest.raises(CheckpointError, match=r"prior.safetensors don't fit Prior: of another shape"):
        generated(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99, and this release reads up to 1: upgrade"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"parts": {}}, "names no clip"),
        ({"parts": {"decoder": {"file": "../../etc/passwd"}}}, "parts.decoder.file"),
        ({"parts": {"decoder": {"kind": "decoder"}}}, "a part is in one place"),
    ],
)
def test_a_damaged_manifest_is_named(folder: Path, changes: dict, message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        dalle_2.load(folder)


def test_a_manifest_that_is_no_json(folder: Path) -> None:
    (folder / "pipeline.json").write_text('{"name": ')
    with pytest.raises(CheckpointError, match=r"pipeline.json can't be read as JSON"):
        dalle_2.load(folder)


def test_unknown_roles_are_left_alone(folder: Path) -> None:
    parts = json.loads((folder / "pipeline.json").read_text())["parts"]
    edit(folder, parts=parts | {"prior-autoregressive": parts["prior"]})
    assert isinstance(dalle_2.load(folder, device="cpu"), DALLe2)
