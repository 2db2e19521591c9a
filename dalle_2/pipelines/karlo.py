"""Karlo in the layout of diffusers' UnCLIP, a folder of parts -> a `DALLe2` of our own modules.

The parts are configurations of `Prior`, `Decoder`, `Upsampler` and `CLIP`. Two things are arranged otherwise there:
the projections of text and image embeddings are a part of their own, here they belong to the decoder's network; and
the last step of super-resolution has a network of its own, here that is the upsampler's second one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dalle_2 import __version__
from dalle_2.cached import WEIGHT_FILES, parts_of, weights_in
from dalle_2.config import Settings, parse
from dalle_2.copies import place
from dalle_2.errors import CheckpointError, ConfigError
from dalle_2.json_file import read_object
from dalle_2.models.clip import CLIP, CLIPConfig
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.decoder import Decoder, DecoderConfig
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.islands import dtypes
from dalle_2.models.layers.text_transformer import TextConfig
from dalle_2.models.placement import Placement, choose_device, choose_dtype
from dalle_2.models.prior import Prior, PriorConfig
from dalle_2.models.rest import Shelved, at_work, whole
from dalle_2.models.stages import StageDefaults
from dalle_2.models.turns import MadeOnce
from dalle_2.models.unfilled import empty_of
from dalle_2.models.upsampler import Upsampler, UpsamplerConfig
from dalle_2.pipelines import karlo_settings as settings
from dalle_2.pipelines.find import FOREIGN as INDEX
from dalle_2.pipelines.karlo_types import checked
from dalle_2.pipelines.manifest import sha256
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.weights.checkpoint import like, read_tensors
from dalle_2.weights.foreign import check, converted, unchanged
from dalle_2.weights.hf_clip import clip_pairs, convert_config, convert_tensors, without_constants
from dalle_2.weights.karlo_names import TEXT, prior_pairs, text_pairs, time_pairs, unet_pairs
from dalle_2.weights.kept import Form, kept
from dalle_2.weights.layout import Pair

S = TypeVar("S", bound=Settings)

CLASSES = {
    "prior": "PriorTransformer",
    "decoder": "UNet2DConditionModel",
    "text_proj": "UnCLIPTextProjModel",
    "super_res_first": "UNet2DModel",
    "super_res_last": "UNet2DModel",
    "text_encoder": "CLIPTextModelWithProjection",
    "image_encoder": "CLIPVisionModelWithProjection",
    "prior_scheduler": "UnCLIPScheduler",
    "decoder_scheduler": "UnCLIPScheduler",
    "super_res_scheduler": "UnCLIPScheduler",
}
TOWERS = {"text": "text_encoder", "vision": "image_encoder"}
NOT_NEEDED = ("prior", "prior_scheduler", "image_encoder")
SAMPLER = "ddpm"
AT_ONCE = 32  # tensors converted before their file's pages are let go


def load_karlo(folder: Path, placement: Placement | None = None) -> DALLe2:
    """A pipeline of the folder's parts, which are checked when a run is planned and read when they first work.

    Raises CheckpointError for a folder that lacks a part or has one of an unknown class; when a run is planned for a
    part that is damaged, lacks tensors, or has settings that are not known here.
    """
    parts = KarloParts(folder, placement)
    parts.check()
    return pipeline_of(parts, fingerprint=sha256(folder / INDEX))


def pipeline_of(parts: "KarloParts", *, fingerprint: str = "") -> DALLe2:
    """The pipeline of some parts, sampled as Karlo is."""
    return DALLe2(
        Shelved(parts.prior, parts.prior_weights) if parts.has("prior") else None,
        Shelved(parts.decoder, parts.decoder_weights) if parts.has("decoder") else None,
        parts.encoder,
        upsampler_paths=[Shelved(parts.upsampler, parts.upsampler_weights)] if parts.has("super_res_first") else [],
        device=parts.device,
        dtype=parts.dtype,
        low_memory=parts.placement.low_memory,
        compiled=parts.placement.compiled,
        defaults=StageDefaults(sampler={"prior": SAMPLER, "decoder": SAMPLER, "upsampler": SAMPLER}),
        name=parts.folder.name,
        fingerprint=fingerprint,
    )


class KarloParts:
    """The parts of a folder as ours. What they share, the text encoder, is read once, and is in float32.

    `prior`, `decoder` and `upsampler` are built without their weights, which the functions beside them read.
    """

    pictures = "feature_extractor"  # the part that says how pictures are brought to the image encoder

    def __init__(self, folder: Path, placement: Placement | None = None) -> None:
        self.folder, self.placement = folder, placement or Placement()
        self.device = choose_device(self.placement.device)
        self.dtype = choose_dtype(self.placement.dtype, self.device, large=True)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or another process: what was made of the files is made of them anew."""
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(type(self), name, None), MadeOnce)
        }

    def check(self) -> None:
        """Raises CheckpointError for what `load_karlo` refuses."""
        self.check_parts([name for name in CLASSES if name not in NOT_NEEDED], CLASSES)

    def check_parts(self, needed: Iterable[str], classes: Mapping[str, str]) -> None:
        """Raises CheckpointError for a part that isn't there, and for one of another class than the one known."""
        lacking = [name for name in needed if not self.has(name)]
        if lacking or not (self.folder / "tokenizer").is_dir():
            named = ", ".join(lacking or ["tokenizer"])
            raise CheckpointError(f"{self.folder} lacks {named}: the pipeline is not whole")
        for name, named in self.index.items():
            if name in classes and (not isinstance(named, list) or _last(named) != classes[name]):
                raise CheckpointError(
                    f"{self.folder / INDEX} says that {name} is a {_last(named)!r}, and only a {classes[name]} is known"
                )

    def has(self, name: str) -> bool:
        """Whether the folder has a part of that name."""
        return (self.folder / name).is_dir()

    @MadeOnce
    def index(self) -> dict[str, Any]:
        """Which class each part is of."""
        return read_json(self.folder / INDEX)

    def encoder(self) -> CLIPEncoder:
        """Texts, and pictures where the folder has an image encoder, to raw embeddings."""
        return CLIPEncoder(self.clip, tokenizer=self.tokenizer)

    @MadeOnce
    def tokenizer(self) -> Tokenizer:
        """CLIP's, in rows as long as the text encoder reads."""
        return Tokenizer.from_clip_folder(self.folder / "tokenizer", context_length=self.text.context_length)

    @MadeOnce
    def clip(self) -> CLIP:
        """Both towers, or the one for texts."""
        towers = {name: self._tower(name) for name in TOWERS if getattr(self.clip_config, name) is not None}
        weights = sum(map(len, towers.values()))
        model = empty_of(lambda: CLIP(self.clip_config), weights, self.folder).eval().requires_grad_(False)
        scale = torch.tensor(log(self.clip_config.logit_scale), dtype=torch.float32, device=self.device)
        model.log_scale = nn.Parameter(scale, requires_grad=False)
        for name, folder in TOWERS.items():
            if (tower := getattr(model, name)) is not None:
                depth = getattr(self.clip_config, name).depth
                check(nn.ModuleDict({name: tower}), clip_pairs(depth, depth), towers[name], self.folder / folder)
                part = Shelved(partial(getattr, model, name), partial(self._tower_weights, name))
                part.resting(self.device, kept=not self.placement.low_memory)
        return model

    def _tower_weights(self, name: str, tower: nn.Module) -> dict[str, Tensor]:
        """A tower's weights by its own names."""
        made, own = convert_tensors(self._tower(name)), tower.state_dict()
        return {inner: like(made[f"{name}.{inner}"].float(), value) for inner, value in own.items()}

    def _tower(self, name: str) -> dict[str, Tensor]:
        """A tower's tensors, by their own names."""
        return without_constants(self.tensors(TOWERS[name]))

    def _text(self) -> dict[str, Tensor]:
        """The text encoder's weights: those that it has, so that they are shared, else the files'."""
        tower = whole(self.clip.text)
        return self._tower_weights("text", tower) if tower.positions.is_meta else tower.state_dict()

    @MadeOnce
    def clip_config(self) -> CLIPConfig:
        """The towers' settings, from the encoders' config.json."""
        text, vision = self.config("text_encoder"), None
        preprocessing = None
        if self.has("image_encoder"):
            vision = self.config("image_encoder")
            path = self.folder / self.pictures / "preprocessor_config.json"
            preprocessing = checked("preprocessor", read_json(path), path) if path.exists() else None
        values = convert_config(
            {
                "model_type": "clip", "text_config": text, "vision_config": vision or {},
                "projection_dim": text.get("projection_dim", 512),
            },
            preprocessing,
        )  # fmt: skip
        values |= {"normalised": False} | ({} if vision else {"vision": None})
        return _parsed(CLIPConfig, values, f"{self.folder / 'text_encoder'} and image_encoder")

    def _weights(self, tensors: Mapping[str, Tensor]) -> int:
        """How many a part has that reads captions, of these and of the text encoder's."""
        return len(tensors) + len(self.clip.text.state_dict())

    @property
    def text(self) -> TextConfig:
        """The text encoder's settings, which prior and decoder read captions by."""
        return self.clip_config.text

    @MadeOnce
    def empty(self) -> tuple[int, ...]:
        """The tokens of the empty caption, which stands for none."""
        return tuple(self.tokenizer([""])[0].tolist())

    @MadeOnce
    def null_text(self) -> Float[Tensor, "d"]:
        """The embedding of the empty caption."""
        with at_work(self.clip.text):
            tokens = torch.tensor([self.empty], dtype=torch.long, device=next(self.clip.text.parameters()).device)
            return self.clip.encode_text(tokens)[0].cpu()

    def prior(self) -> Prior:
        """The prior."""
        tensors = self.tensors("prior")
        mean, std = settings.whitening(tensors, self.folder / "prior")
        values = settings.prior(self.config("prior"), self.config("prior_scheduler"), self.text, self.empty, mean, std)
        config = _parsed(PriorConfig, values, self.folder / "prior")
        model = empty_of(partial(Prior.from_config, config), self._weights(tensors), self.folder / "prior")
        check(model, self._prior_pairs(config), tensors, self.folder / "prior")
        return model

    def prior_weights(self, model: Prior) -> dict[str, Tensor]:
        """Its weights."""
        further = {"null_text": self.null_text, **self._captions()}
        return self._converted("prior", model, self._prior_pairs(model.config), further)

    def decoder(self) -> Decoder:
        """The decoder, with what the folder has beside it."""
        project = self.config("text_proj")
        values = settings.decoder(
            self.config("decoder"), project, self.config("decoder_scheduler"), self.text, self.clip_config.embed_dim,
            self.empty,
        )  # fmt: skip
        config = _parsed(DecoderConfig, values, self.folder / "decoder")
        tensors = self.tensors("decoder")
        model = empty_of(partial(Decoder.from_config, config), self._weights(tensors), self.folder / "decoder")
        check(model, self._decoder_pairs(config.unet), tensors, self.folder / "decoder")
        return model

    def decoder_weights(self, model: Decoder) -> dict[str, Tensor]:
        """Its weights."""
        further = {"network.pool_text.weight": self._text()["projection.weight"], **self._captions()}
        return self._converted("decoder", model, self._decoder_pairs(model.config.unet), further)

    def upsampler(self) -> Upsampler:
        """Super-resolution, with the network of its last step, which rests by itself."""
        first, last = self.config("super_res_first"), self.config("super_res_last")
        small = self.config("decoder").get("sample_size")
        values = settings.upsampler(first, last, self.config("super_res_scheduler"), small)
        config = _parsed(UpsamplerConfig, values, self.folder / "super_res_first")
        tensors = {part: self.tensors(part) for part in ("super_res_first", "super_res_last")}
        weights = sum(map(len, tensors.values()))
        model = empty_of(partial(Upsampler.from_config, config), weights, self.folder / "super_res_first")
        networks: dict[str, Any] = {"super_res_first": _first(model), "super_res_last": model.last}
        for part, network in networks.items():
            check(network, self._upsampler_pairs(part, config.unet), tensors[part], self.folder / part)
        read = partial(self._network_weights, "super_res_last", config.unet, dtype=torch.float32)
        Shelved(partial(getattr, model, "last"), read).resting(self.device, kept=not self.placement.low_memory)
        networks["super_res_last"].network.remakes = self.placement.low_memory
        return model

    def upsampler_weights(self, model: Upsampler) -> dict[str, Tensor]:
        """Its weights but those of the network of its last step."""
        return self._network_weights("super_res_first", model.config.unet, _first(model))

    def _network_weights(
        self, part: str, unet: DecoderUNetConfig, network: nn.Module, dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        return self._converted(part, network, self._upsampler_pairs(part, unet), dtype=dtype)

    def _converted(
        self, part: str, model: nn.Module, pairs: list[Pair], further: Mapping[str, Tensor] | None = None, *,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """A part's weights: those that change in nothing mapped from its files, the others from a copy that is kept, or
        in memory."""
        dtype, own = dtype or self.dtype, model.state_dict()
        wanted, on_cpu = dtypes(model, dtype), self.device.type == "cpu"
        made = converted(model, [], {}, wanted, further, mapped=True)
        pairs = [pair for pair in pairs if pair.ours in own]
        as_they_lie = [pair for pair in pairs if wanted[pair.ours] == dtype]
        lying = unchanged(as_they_lie, self.tensors(part), dtype, maps=on_cpu)
        changed = [pair for pair in pairs if pair.ours not in lying]
        pieces = partial(self._pieces, part, model, changed, wanted)
        forms = {pair.ours: Form.of(own[pair.ours], wanted[pair.ours]) for pair in changed}
        name, home = f"{part}-{str(dtype).removeprefix('torch.')}", place(self.folder) if on_cpu else None
        settings = json.dumps([__version__, self.config(part)], sort_keys=True)
        copy = kept(home, name, self.files(part), forms, pieces, settings) if home else None
        if copy is None:
            copy = {name: value for piece in pieces() for name, value in piece.items()}
        return made | lying | copy

    def _pieces(
        self, part: str, model: nn.Module, pairs: Sequence[Pair], wanted: Mapping[str, torch.dtype]
    ) -> Iterator[dict[str, Tensor]]:
        """Weights that change, one at a time. The file is opened anew every so many: the pages that were read are this
        process's memory until it is closed."""
        for first in range(0, len(pairs), AT_ONCE):
            tensors = self.tensors(part)
            for pair in pairs[first : first + AT_ONCE]:
                yield converted(model, [pair], tensors, wanted, mapped=False)

    def _prior_pairs(self, config: PriorConfig) -> list[Pair]:
        return prior_pairs(config.depth)

    def _decoder_pairs(self, unet: DecoderUNetConfig) -> list[Pair]:
        network = unet_pairs("network", len(unet.multiples), unet.blocks, unet.attention, unet.middle_attention)
        return [*time_pairs("time"), *network, *text_pairs("network", unet.context_tokens, unet.context_width)]

    def _upsampler_pairs(self, part: str, unet: DecoderUNetConfig) -> list[Pair]:
        return [*time_pairs("time"), *unet_pairs("network", len(unet.multiples), unet.blocks, (), False)]

    def _captions(self) -> dict[str, Tensor]:
        """The text encoder under the names that prior and decoder have for it; shared, not copied."""
        text = self._text().items()
        return {f"caption.{name}": value for name, value in text if not name.startswith("projection")}

    def config(self, part: str) -> dict[str, Any]:
        """A part's settings, each of them of a type and a size that can be. Raises CheckpointError."""
        path = self.folder / part / ("scheduler_config.json" if part.endswith("scheduler") else "config.json")
        return checked(part, read_json(path), path)

    def tensors(self, part: str) -> dict[str, Tensor]:
        """A part's tensors, the decoder's with those of what lies beside it. Raises CheckpointError."""
        beside = {}
        if part == "decoder":
            beside = {f"{TEXT}.{name}": value for name, value in self._read("text_proj").items()}
        return self._read(part) | beside

    def files(self, part: str) -> list[Path]:
        """The files that `tensors` reads."""
        return [*self._files(part), *(self._files("text_proj") if part == "decoder" else [])]

    def _read(self, part: str) -> dict[str, Tensor]:
        return {name: tensor for file in self._files(part) for name, tensor in read_tensors(file).items()}

    def _files(self, part: str) -> list[Path]:
        """One file or several."""
        found = weights_in(self.folder / part)
        if found is None:
            raise CheckpointError(f"{self.folder / part} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")
        return [found.parent / name for name in parts_of(found)]


def _first(model: Upsampler) -> nn.Module:
    """The network of super-resolution's other steps, under our names."""
    return nn.ModuleDict({"time": model.time, "network": model.network})


def _parsed(cls: type[S], values: Mapping[str, Any], part: Path | str) -> S:
    try:
        return parse(cls, values)
    except ConfigError as error:
        raise CheckpointError(f"the settings in {part} don't fit together: {error}") from None


def _last(named: object) -> object:
    return named[-1] if isinstance(named, list) and named else named


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    return read_object(path, f"there is no {path}: the pipeline is not whole")
