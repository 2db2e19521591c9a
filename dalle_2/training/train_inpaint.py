"""The stage of the inpainting decoder: the trained decoder, taught to see what is kept of a picture."""

from pathlib import Path

from torch import Tensor

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.embeddings import EmbeddedImages
from dalle_2.errors import UsageError
from dalle_2.models.checkpoints import load_model
from dalle_2.models.decoder import KNOWN, Decoder
from dalle_2.models.layers.text_transformer import TextConfig
from dalle_2.training.ground import Ground
from dalle_2.training.reading import reader_config, with_reader
from dalle_2.training.recipe import InpaintStage, Sight


def train_inpaint(
    stage: InpaintStage,
    ground: Ground,
    dataset: AbsDataset,
    folder: Path,
    *,
    decoder: Path,
    of: Sight = "image",
    frozen: bool = False,
) -> Path:
    """Trains on from the weights in the file `decoder`; leaves its own in `folder`. Raises as `painter_of` does.

    of: whose embeddings the decoder was trained on. frozen: whether its text transformer is CLIP's, which stays.
    """
    trained = load_model(decoder, "decoder")
    assert isinstance(trained, Decoder)
    text = reader_config(stage.caption, stage.text, ground)
    reader = stage.caption if trained.config.caption is None else None  # a decoder that reads keeps its own
    model = ground.built(lambda: with_reader(painter_of(trained, text, drop=stage.drop), reader, ground))
    if model.caption is not None and frozen:
        model.caption.requires_grad_(False)
    tokens = ground.tokens if model.caption is not None else None
    return ground.run(model, stage.run, EmbeddedImages(ground.store, dataset, tokens, of=of), folder)


def painter_of(decoder: Decoder, text: TextConfig | None = None, *, drop: float | None = None) -> Decoder:
    """A decoder with the weights of another that also sees known pixels; at first it takes no notice of them.

    The new input channels begin at zero, as GLIDE's (section 3.2). text: how it reads captions, where the other reads
    none. drop: the share of rows that lose their embedding, which says nothing of what is kept.

    Raises UsageError for a decoder that fills holes already, and for one of the first format, with a map of its
    embedding among its input channels.
    """
    old = decoder.config
    if decoder.fills_holes or old.unet.z_map_channels:
        raise UsageError("an inpainting decoder is made from a plain one: this fills holes, or is of the first format")
    caption = old.caption or text
    sizes = {"known_channels": KNOWN, "text_dim": caption.width if caption else 0}
    dropped = old.drop if drop is None else drop
    changes = {"unet": old.unet.model_copy(update=sizes), "caption": caption, "drop": dropped}
    model = Decoder.from_config(old.model_copy(update=changes))
    weights = decoder.state_dict()
    weights["network.conv_in.weight"] = _widened(
        weights["network.conv_in.weight"], model.network.conv_in.weight.shape[1]
    )
    model.load_state_dict({**model.state_dict(), **weights})
    if model.draft is not None:
        model.draft.requires_grad_(False)
    return model


def _widened(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weights for more input channels; the new ones, which come last, count for nothing."""
    wide = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    wide[:, : weight.shape[1]] = weight
    return wide
