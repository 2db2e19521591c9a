"""The stage of the decoder, on pictures and their embeddings."""

from pathlib import Path

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.embeddings import EmbeddedImages
from dalle_2.models.checkpoints import load_model
from dalle_2.models.decoder import Decoder, DecoderConfig
from dalle_2.models.draft import Draft
from dalle_2.training.ground import Ground
from dalle_2.training.preview import preview_of
from dalle_2.training.reading import reader_config, with_reader
from dalle_2.training.recipe import RGB, DecoderStage


def train_decoder(
    stage: DecoderStage, ground: Ground, dataset: AbsDataset, folder: Path, *, draft: Path | None = None
) -> Path:
    """Trains a decoder on `dataset`, whose pictures have its size; leaves `decoder.safetensors` in `folder`.

    draft: the weight file of a trained draft, which becomes part of the decoder and is not changed any more.
    """
    space = ground.space_of(stage.of)
    text = reader_config(stage.caption, stage.text, ground)
    sizes = {"z_dim": space.width, "text_dim": text.width if text else 0}
    unet = stage.config.unet.model_copy(update=sizes)
    config = stage.config.model_copy(update={"space": space, "unet": unet, "caption": text, "of": stage.of})
    model = ground.built(lambda: with_reader(untrained(config, draft), stage.caption, ground))
    images = EmbeddedImages(ground.store, dataset, ground.tokens if text else None, of=stage.of)
    return ground.run(model, stage.run, images, folder, preview=preview_of(images))


def untrained(config: DecoderConfig, draft: Path | None) -> Decoder:
    """The decoder of these settings, on a trained draft where there is one."""
    return Decoder.from_config(config) if draft is None else on_draft(config, draft)


def on_draft(config: DecoderConfig, path: Path) -> Decoder:
    """The untrained decoder that works on a trained draft."""
    draft = load_model(path)
    assert isinstance(draft, Draft)
    unet = config.unet.model_copy(update={"low_res_channels": RGB})
    # The decoder hands its draft whitened embeddings: one copy of the space is enough.
    own = draft.config.model_copy(update={"space": None})
    model = Decoder.from_config(config.model_copy(update={"unet": unet, "draft": own}))
    assert model.draft is not None
    model.draft.load_state_dict(draft.state_dict())
    model.draft.requires_grad_(False)
    return model
