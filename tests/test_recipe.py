"""Recipes: the table, how a command line changes it, and what is refused before any training begins."""

from pathlib import Path

import pytest

from dalle_2.config import override, parse
from dalle_2.errors import ConfigError, UsageError
from dalle_2.presets import PRESETS, flattened, preset, resolve
from dalle_2.published import DEFAULT_CLIP
from dalle_2.training.card import training_card
from dalle_2.training.differences import LENGTH, SHOWN, differing, without
from dalle_2.training.expectation import expectation
from dalle_2.training.recipe import Recipe
from dalle_2.training.stage import trainer_settings
from dalle_2.training.stages import STAGES
from dalle_2.training.train import Training


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_back_from_its_own_json(name: str) -> None:
    recipe = preset(name)
    assert recipe.name == name
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert parse(Recipe, recipe.model_dump()) == recipe


def test_a_decoder_draws_in_one_step_only_what_a_draft_has_drawn_before(tmp_path: Path) -> None:
    assert preset("shapes-tiny").draft is not None
    for recipe in (preset("my-pictures"), resolve([], data=tmp_path), resolve(["shapes-micro"], data=tmp_path)):
        assert recipe.draft is None
        assert recipe.decoder.config.steps >= 10
        assert recipe.decoder.run.images >= 2_000
    with pytest.raises(UsageError, match="one step is enough only on a draft: set decoder.config.steps to about 20"):
        resolve(["shapes-tiny"], changes=["draft=none"])
    alone, drafted = resolve(["shapes-tiny"], data=tmp_path), preset("shapes-tiny")
    assert alone.decoder.run.images > 10 * drafted.decoder.run.images


def test_the_micro_preset_is_the_tiny_one_made_small() -> None:
    tiny, micro = preset("shapes-tiny"), preset("shapes-micro")
    assert micro.data == tiny.data
    assert micro.stages == ("clip", "prior", "draft", "decoder", "upsampler")
    assert {*tiny.stages} - {*micro.stages} == {"prior_ar"}
    for stage in micro.stages:
        assert getattr(micro, stage).run.images < getattr(tiny, stage).run.images / 3


def test_what_a_command_line_means(tmp_path: Path) -> None:
    assert resolve([]) == preset("shapes-tiny")
    assert resolve(["shapes-micro"]) == preset("shapes-micro")
    folder = resolve([], data=tmp_path)
    assert (folder.name, folder.data.source, folder.embeddings) == (tmp_path.name, f"folder:{tmp_path}", None)
    assert folder.decoder == preset("my-pictures").decoder
    address = resolve([], data="s3://bucket/my_cats")
    assert (address.name, address.data.source) == ("my_cats", "folder:s3://bucket/my_cats")
    assert resolve(["shapes-micro"], data=tmp_path).decoder.config.unet == preset("shapes-micro").decoder.config.unet


def test_changes_come_last() -> None:
    changes = ["decoder.run.images=7", "decoder.config.unet.multiples=[1, 2]", "decoder.config.unet.attention=[]"]
    recipe = resolve(["shapes-tiny"], changes=[*changes, "name=other", "upsampler=none"], scale=2)
    assert (recipe.name, recipe.upsampler) == ("other", None)
    assert recipe.decoder.run.images == 7
    assert recipe.decoder.config.unet.multiples == (1, 2)
    assert recipe.prior.run.images == 2 * preset("shapes-tiny").prior.run.images
    with_options = resolve([], changes=["data.options.seed=3"])
    assert with_options.data.options == {"seed": 3}


def test_a_scale_stretches_every_stage() -> None:
    more = {"decoder_inpaint.run.images": 1000, "prior_ar.run.images": 2000}
    tiny = override(preset("shapes-1024"), more)
    assert tiny.stages == STAGES
    for factor in (2.0, 0.25):
        for stage in STAGES:
            before, after = getattr(tiny, stage).run, getattr(tiny.scaled(factor), stage).run
            assert after.images == round(before.images * factor)
            assert after.warmup == round(before.warmup * min(1, factor))
    shortest = tiny.scaled(1e-9).prior.run
    assert (shortest.images, shortest.warmup) == (shortest.batch, 0)
    assert trainer_settings(shortest, 0).lr_schedule.warmup == 0
    for scale in (0.0, -1.0):
        with pytest.raises(UsageError, match=f"scale must be above 0, got {scale}"):
            resolve([], scale=scale)


def test_a_toml_file_starts_from_a_preset_or_from_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "shapes-micro"\nname = "mine"\n[decoder.run]\nimages = 10\n[data.options]\nseed = 4\n')
    recipe = resolve([str(path)])
    assert (recipe.name, recipe.decoder.run.images, recipe.data.options) == ("mine", 10, {"seed": 4})
    assert recipe.prior == preset("shapes-micro").prior
    path.write_text('name = "bare"\n[prior.run]\nimages = 5\n')
    bare = resolve([str(path)])
    assert (bare.name, bare.prior.run.images) == ("bare", 5)
    assert bare.decoder == Recipe(name="x").decoder


def test_nested_tables_become_dotted_keys() -> None:
    assert flattened({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == [("a.b", 1), ("a.c.d", [2]), ("e", 3)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("decoder.run.image=5", "unknown key 'decoder.run.image'; did you mean 'images'"),
        ("decodr.run.images=5", "unknown key 'decodr'; did you mean 'decoder'"),
        ("decoder.run.images=0", "'decoder.run.images'.*got 0"),
        ("decoder.run.images=many", "'decoder.run.images'.*got 'many'"),
        ("decoder.run.images", "--set takes key=value, got 'decoder.run.images'"),
        ("prior.config.heads=7", "width 256 must be a multiple of heads 7"),
        ("decoder.config.image_size=32", "the decoder draws 32 px, but the upsampler takes 64 px"),
        ("decoder.config.image_size=60", "image_size 60 must be divisible by 16"),
        ("prior.config.T=20", "^'prior': config.steps must be at most config.T = 20, got 25$"),
        ("decoder.config.steps=1001", "^'decoder': config.steps must be at most config.T = 1000, got 1001$"),
        ("draft.config.image_size=32", "the decoder draws 64 px, but its draft 32 px: make"),
        ("upsampler.config.T=3", "^'upsampler': config.steps must be at most config.T = 3, got 4$"),
        ("clip.run.batch=1", "^'clip': CLIP learns to tell the pairs .*: run.batch must be at least 2, got 1$"),
        ("clip.run.accumulate=2", "^'clip': parts of a batch would lack .* run.accumulate must be 1, got 2$"),
        ("decoder.config.unet.out_channels=6", "unet.out_channels must be 3 without learned_variance, got 6$"),
        ("decoder.config.unet.low_res_channels=3", "unet.low_res_channels must be 0 without a draft, got 3$"),
        ("upsampler.config.unet.out_channels=1", "^'upsampler': config.unet.out_channels must be 3 .* got 1$"),
        ("upsampler.config.unet.low_res_channels=0", "config.unet.low_res_channels must be 3 in this stage, got 0$"),
        ("upsampler.config.bsr.jpeg=2", "'upsampler.config.bsr.jpeg'.*less than or equal to 1, got 2"),
    ],
)
def test_a_wrong_change_is_refused(change: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(["shapes-tiny"], changes=[change])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("upsampler=none", "^upsampler_2 goes on from the pictures of upsampler, and that is off: set both or none$"),
        ("upsampler_2.config.low_res_size=128", "the upsampler makes 256 px, but the second one takes 128 px: make"),
        ("upsampler_2.config.crop=100", "crop 100 must be divisible by 8 and by the scale 4"),
        ("upsampler_2.config.T=3", "^'upsampler_2': config.steps must be at most config.T = 3, got 4$"),
        ("upsampler_3.run.images=4", "unknown key 'upsampler_3'; did you mean 'upsampler_2'"),
    ],
)
def test_a_wrong_change_of_the_second_upsampler_is_refused(change: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(["shapes-1024"], changes=[change])


def test_wrong_names_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no preset is called 'shape-tiny': did you mean 'shapes-tiny'"):
        resolve(["shape-tiny"])
    with pytest.raises(UsageError, match="no preset is called 'zzz': there are shapes-tiny, .* or give a TOML file"):
        resolve(["zzz"])
    with pytest.raises(ConfigError, match=r"can't read the settings file nowhere\.toml: No such file"):
        resolve(["nowhere.toml"])
    path = tmp_path / "mine.toml"
    path.write_text("name = 'x'\nsede = 1\n")
    with pytest.raises(ConfigError, match=r"mine\.toml: unknown key 'sede'; did you mean 'seed'"):
        resolve([str(path)])
    path.write_text("preset = 'shapes-tiny'\n[prior.run]\nimage = 1\n")
    with pytest.raises(ConfigError, match="unknown key 'prior.run.image'; did you mean 'images'"):
        resolve([str(path)])


def test_an_endless_set_needs_a_number_of_embeddings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shapes never ends: say how many pairs to embed, .* embeddings=20000"):
        Training(override(preset("shapes-tiny"), {"embeddings": None}), tmp_path)


def test_half_precision_on_a_cpu_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    half = override(preset("shapes-tiny"), {"decoder.run.dtype": "fp16"})
    with pytest.raises(UsageError, match=r"^decoder\.run\.dtype is fp16, which needs a GPU: on a CPU choose bf16"):
        Training(half, tmp_path)
    Training(half, tmp_path, device="cuda")
    Training(override(half, {"decoder.run.dtype": "bf16"}), tmp_path)
    known = {"clip.encoder": DEFAULT_CLIP, "clip.run.dtype": "fp16", "clip.run.batch": 1}  # which is not trained
    Training(override(preset("shapes-tiny"), known), tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_stages_that_can_not_run_are_refused(tmp_path: Path) -> None:
    training = Training(override(preset("shapes-tiny"), {"upsampler": None}), tmp_path)
    with pytest.raises(UsageError, match="no stage 'upsampler': choose among clip, prior, prior_ar, draft, decoder$"):
        training.train(["upsampler"])
    with pytest.raises(UsageError, match="the prior needs CLIP first: run `dalle2 train clip`"):
        training.train(["prior"])
    assert not list(tmp_path.rglob("*"))


def test_a_draft_has_a_stage_of_its_own() -> None:
    with pytest.raises(UsageError, match="'decoder': a draft is trained in a stage of its own: set `draft`"):
        override(preset("shapes-tiny"), {"decoder.config.unet.low_res_channels": 3, "decoder.config.draft": {}})


def test_only_lengths_may_change_in_the_middle() -> None:
    settings = preset("shapes-tiny").prior.model_dump(mode="json")
    identity = {"settings": settings, "seed": 0}
    longer = preset("shapes-tiny").scaled(3).prior.model_dump(mode="json")
    free = SHOWN + LENGTH
    assert without(identity, free) == without({"settings": longer, "seed": 0}, free)
    other = {"settings": settings | {"run": settings["run"] | {"lr": 0.5, "batch": 1}}, "seed": 1}
    names = differing(without(identity, free), without(other, free))
    assert names == ["seed", "settings.run.batch", "settings.run.lr"]
    assert differing({"a": 1}, {"b": {"c": 2}}) == ["a", "b"]


def test_two_upsamplers_in_a_row_meet_and_see_a_quarter_of_the_side() -> None:
    recipe = preset("shapes-1024")
    first, second = recipe.upsampler.config, recipe.upsampler_2.config
    assert (first.image_size, second.low_res_size, second.image_size) == (256, 256, 1024)
    assert (second.crop, second.degradation) == (1024 // 4, "bsr")
    assert (second.unet.attention, second.unet.middle_attention) == ((), False)
    assert {name: getattr(recipe, name) for name in STAGES[:5]} == {
        name: getattr(preset("shapes-micro"), name) for name in STAGES[:5]
    }


def test_a_folder_keeps_the_second_upsampler_of_its_recipe(tmp_path: Path) -> None:
    assert resolve(["shapes-1024"], data=tmp_path).stages == ("clip", "prior", "decoder", "upsampler", "upsampler_2")


def test_a_second_upsampler_may_be_set_on_any_recipe() -> None:
    unet = ["channels=16", "patch=4", "low_res_channels=3", "attention=[]", "middle_attention=false"]
    sizes = ["image_size=512", "low_res_size=256", "crop=128"]
    changes = [f"upsampler_2.config.{one}" for one in (*(f"unet.{one}" for one in unet), *sizes)]
    assert resolve(["shapes-micro"], changes=changes).upsampler_2.config.scale == 2


def test_a_card_names_both_upsamplers_and_what_the_second_learned_from() -> None:
    words = "The small pictures of upsampler_2 went through blurs, resizes, noise and JPEG in shuffled order (BSR)."
    card = training_card(preset("shapes-1024"), {})
    assert "prior, decoder and two upsamplers." in card
    assert words in card
    assert "BSR" not in training_card(preset("shapes-micro"), {})


def test_what_to_expect_is_said_before() -> None:
    tiny = preset("shapes-1024")
    text = expectation(tiny, Path("out"))
    assert "a CLIP of its own is trained first" in text
    assert all(f"{stage}: {getattr(tiny, stage).run.images:,} images" in text for stage in tiny.stages)
    folder = preset("my-pictures")
    assert "expect pictures that resemble yours" in expectation(folder, Path("out"))
    known = expectation(override(folder, {"clip.encoder": DEFAULT_CLIP}), Path("out"))
    assert f"understood by {DEFAULT_CLIP}" in known
    assert "clip: " not in known


def test_a_card_says_how_the_embedding_of_a_picture_is_chosen() -> None:
    """A folder has no draft to look at, so the first embedding that is drawn goes on."""
    words = "the prior draws 48 embeddings, of which the best is kept: each is"
    assert words in training_card(preset("shapes-tiny"), {})
    assert "the prior draws" not in training_card(preset("my-pictures"), {})


def test_presets_have_both_priors_and_one_an_inpainting_decoder() -> None:
    full, tiny = preset("shapes-full"), preset("shapes-tiny")
    assert "prior_ar" in tiny.stages
    assert {*full.stages} - {*tiny.stages} == {"decoder_inpaint"}
    assert (full.prior, full.draft, full.decoder) == (tiny.prior, tiny.draft, tiny.decoder)


def test_a_small_preset_trains_what_the_paper_has() -> None:
    recipe, micro = preset("shapes-paper"), preset("shapes-micro")
    assert recipe.stages == ("clip", "prior", "prior_ar", "decoder", "decoder_inpaint", "upsampler")
    assert (recipe.clip, recipe.data, recipe.embeddings) == (micro.clip, micro.data, micro.embeddings)
    prior, decoder, upsampler = recipe.prior.config, recipe.decoder.config, recipe.upsampler.config
    assert {stage.caption for stage in (recipe.prior, recipe.prior_ar, recipe.decoder)} == {"own"}
    assert min(stage.text.depth for stage in (recipe.prior, recipe.prior_ar, recipe.decoder)) > 0
    assert (prior.target, prior.drop, prior.candidates, prior.refine) == ("x_0", 0.1, 2, 0)
    assert (recipe.prior_ar.config.drop, recipe.prior_ar.config.candidates) == (0.1, 2)
    assert (decoder.drop, decoder.caption_drop, decoder.steps > 1) == (0.1, 0.5, True)
    assert (decoder.learned_variance, decoder.unet.out_channels) == (True, 6)
    assert (upsampler.unet.z_dim, upsampler.noise_levels > upsampler.noise_level > 0) == (0, True)
