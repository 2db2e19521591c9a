"""A whole training: the stages of a recipe in order, each going on where it stopped, then a pipeline folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from dalle_2.config import Settings, parse
from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.dataset import Recognisable, Resizable, data_fingerprint, load_dataset, skip_report
from dalle_2.data.embeddings import EmbeddingStore
from dalle_2.data.skipped import SkipReport
from dalle_2.errors import CheckpointError, ConfigError, UsageError
from dalle_2.models.clip import CLIP
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.parts import AUTOREGRESSIVE, PAINTER
from dalle_2.paths import at_home, atomic_write_text, clear_leftovers
from dalle_2.pipelines.find import PLAN
from dalle_2.pipelines.folder import save
from dalle_2.pipelines.manifest import read_manifest, sha256
from dalle_2.pipelines.seen import note_seen
from dalle_2.training.alone import LANE_LOCK, LANE_PATIENCE, alone
from dalle_2.training.beside import beside
from dalle_2.training.card import training_card
from dalle_2.training.dry_run import countable, rough_cost
from dalle_2.training.embed import embed
from dalle_2.training.ground import Ground
from dalle_2.training.identity import SAMPLING
from dalle_2.training.outlook import SHORT, Outlook, Placed
from dalle_2.training.placeless import placeless, without_place
from dalle_2.training.progress import Counting, Reporter, Silent, Telling, relay_to, warnings_told
from dalle_2.training.recipe import Recipe, UpsamplerStage
from dalle_2.training.small_pictures import small_pictures
from dalle_2.training.stages import ASIDE, BASES, STAGES, UPSAMPLERS
from dalle_2.training.train_autoregressive_prior import train_autoregressive_prior
from dalle_2.training.train_clip import train_clip
from dalle_2.training.train_decoder import train_decoder
from dalle_2.training.train_draft import train_draft
from dalle_2.training.train_inpaint import train_inpaint
from dalle_2.training.train_prior import train_prior
from dalle_2.training.train_upsampler import train_upsampler
from dalle_2.weights.checkpoint import load_checkpoint

PROCEDURAL = "shapes"
PROCEDURAL_LENGTH = 100_000_000
SHOWN = ("save_every", "preview_every", "log_interval")  # settings of a run that its result does not follow from
LENGTH = ("images", "warmup")  # and those that may grow between two starts
FREE = SHOWN + LENGTH + SAMPLING
ANY_SIZE = 16  # what a folder holds doesn't depend on the size its pictures are read at


class Training:
    """One recipe in one folder: `OUT/run` holds what training needs to go on, `OUT` itself becomes the pipeline.

    lanes: 2 trains prior and upsamplers in a process of their own, beside draft and decoder, each lane on half of the
    threads. A script that asks for it needs the guard `if __name__ == "__main__"`.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: str | Path,
        *,
        reporter: Reporter | None = None,
        device: str = "cpu",
        say: Callable[[str], None] = print,
        lanes: int = 1,
    ) -> None:
        if lanes not in (1, 2):
            raise UsageError(f"lanes must be 1 or 2, got {lanes}: 2 trains two stages at once")
        if recipe.data.source == PROCEDURAL and recipe.embeddings is None:
            raise UsageError(f"{PROCEDURAL} never ends: say how many pairs to embed, for example embeddings=20000")
        recipe.check_device(device)
        self.recipe, self.out, self.device, self.say, self.lanes = recipe, at_home(out), device, say, lanes
        self.run = self.out / "run"
        self.reporter: Reporter = reporter or Silent()
        self._read: list[AbsDataset] = []
        self._listed: dict[str, Resizable] = {}  # a folder of a million pictures is listed once

    @property
    def skipped(self) -> SkipReport | None:
        """The pictures that could not be used so far, by all stages together; None where there is none."""
        reports = [report for report in map(skip_report, self._read) if report is not None]
        items = {item.name: item for report in reports for item in report.skipped}
        return SkipReport(reports[0].found, tuple(items.values())) if items else None

    def check(self, stages: Sequence[str] = STAGES) -> list[str]:
        """The stages of the recipe that `train` would go through. Begins nothing.

        Raises UsageError for a stage that the recipe lacks, and DataError for data that can't be read.
        """
        known = self.recipe.stages
        unknown = [stage for stage in stages if stage not in known]
        if unknown and tuple(stages) != STAGES:
            raise UsageError(f"this recipe has no stage {unknown[0]!r}: choose among {', '.join(known)}")
        self._dataset(ANY_SIZE)
        return [stage for stage in known if stage in stages]

    def train(self, stages: Sequence[str] = STAGES) -> Path | None:
        """Runs the named stages, skipping what is done; returns the pipeline folder once every stage is.

        Raises what `check` does, UsageError for a stage whose predecessor has not run, and for a run folder that holds
        another recipe's work or is another training's at this moment.
        """
        wanted = self.check(stages)
        if wanted and not self._is_done(wanted[0]):
            self._check_can_run(wanted[0])  # what can't even begin leaves no folder behind
        with alone(self.run):
            with alone(self.run, LANE_LOCK, LANE_PATIENCE):
                clear_leftovers(self.run, alone=True)
            clear_leftovers(self.out)
            atomic_write_text(self.run / PLAN, json.dumps({"stages": countable(self.recipe)}))
            self._look_out(wanted)
            return self._train(wanted)

    def _look_out(self, wanted: Sequence[str]) -> None:
        """From now on the reporter says where the whole training stands."""
        stages = countable(self.recipe)
        missing = [stage for stage in stages if stage in wanted and not self._is_done(stage)]
        if isinstance(self.reporter, Silent | Telling) or not missing:
            return
        # Models for a graphics card may be too large to be built here only to be counted.
        costs = {stage: rough_cost(self.recipe, stage) for stage in missing} if self.device == "cpu" else {}
        aside = [stage for stage in missing if stage in ASIDE] if self.lanes == 2 else []
        self.say(SHORT)
        if {*missing} & {*UPSAMPLERS} and (small := small_pictures(self.recipe, self._dataset(ANY_SIZE))):
            self.say(f"note: {small}")
        self.reporter = Placed(self.reporter, Outlook(stages, costs, aside), self.say, str(self.run))

    def _train(self, wanted: list[str]) -> Path | None:
        if wanted[:1] == ["clip"]:
            self._stage(wanted.pop(0))
        aside = self._aside(wanted)
        with self._beside(aside, wanted) if aside else nullcontext():
            for stage in wanted:
                if stage not in aside:
                    self._stage(stage)
        return self._assemble() if all(self._is_done(stage) for stage in self.recipe.stages) else None

    # Lanes

    def _aside(self, wanted: Sequence[str]) -> list[str]:
        """Which of these stages train in a process of their own: none unless both lanes have something to do."""
        if self.lanes == 1 or not self._clip_is_there():
            return []
        missing = [stage for stage in wanted if not self._is_done(stage)]
        aside = [stage for stage in missing if stage in ASIDE]
        return aside if len(aside) < len(missing) else []

    @contextmanager
    def _beside(self, aside: Sequence[str], wanted: Sequence[str]) -> Iterator[None]:
        """Trains the stages `aside` while the block trains the others of `wanted`."""
        # What can't go on says so now, not after the embedding, or the other lane's hour.
        for stage in (*aside, next(stage for stage in wanted if stage not in aside and not self._is_done(stage))):
            self._check_can_run(stage)
        _ = self.store  # embedded once, before both lanes read it
        hear = relay_to(self.reporter.another())
        with (
            half_of_the_threads() as rest,
            beside(_train_aside, self.recipe, self.out, self.device, tuple(aside), rest, hear=hear),
        ):
            yield

    # Stages

    def _stage(self, stage: str) -> None:
        if stage == "clip" and self.recipe.clip.encoder:
            return
        if self._clip_is_there() and self._is_done(stage):
            self.say(f"{stage}: done before, in {self._file(stage)}")
            return
        self._check_can_run(stage)
        identity = self._identity(stage)
        if not self._begun(stage).exists():
            atomic_write_text(self._begun(stage), json.dumps(identity, indent=2))
        run: dict[str, Callable[[], None]] = {
            "clip": self._clip, "prior": self._prior, "prior_ar": self._prior_ar, "draft": self._draft,
            "decoder": self._decoder, "decoder_inpaint": self._inpaint,
            **{name: partial(self._upsampler, name) for name in UPSAMPLERS},
        }  # fmt: skip
        run[stage]()
        atomic_write_text(self.run / stage / "done.json", json.dumps(identity, indent=2))

    def _check_can_run(self, stage: str) -> None:
        """Refuses a stage that lacks what it stands on, or whose run was begun with other settings."""
        if stage != "clip" and not self._clip_is_there():
            raise UsageError(f"the {stage} needs CLIP first: run `dalle2 train clip` with the same recipe and folder")
        base = self._base(stage)
        if base is not None and not self._is_done(base):
            raise UsageError(f"{stage} goes on from the {base}: run `dalle2 train {base}` with the same recipe first")
        self._check_begun(stage)
        if stage == "clip":
            self._check_nothing_stands_on_clip()

    def _clip(self) -> None:
        stage = self.recipe.clip
        assert stage.config.vision is not None  # which the recipe has checked
        dataset = self._reading(stage.config.vision.image_size, self.recipe.data.clip_options, endless=True)
        train_clip(
            stage, dataset, self.run / "clip", shuffle=self.recipe.data.shuffle,
            seed=self.recipe.seed, reporter=self.reporter, device=self.device,
        )  # fmt: skip

    def _prior(self) -> None:
        train_prior(self.recipe.prior, self.ground, self.run / "prior")

    def _prior_ar(self) -> None:
        assert self.recipe.prior_ar is not None
        train_autoregressive_prior(self.recipe.prior_ar, self.ground, self.run / "prior_ar")

    def _draft(self) -> None:
        stage = self.recipe.draft
        assert stage is not None
        dataset = self._reading(stage.config.image_size)
        train_draft(stage, self.ground, dataset, self.run / "draft")

    def _decoder(self) -> None:
        stage = self.recipe.decoder
        dataset = self._reading(stage.config.image_size)
        draft = self._file("draft") if self.recipe.draft else None
        train_decoder(stage, self.ground, dataset, self.run / "decoder", draft=draft)

    def _inpaint(self) -> None:
        stage = self.recipe.decoder_inpaint
        assert stage is not None
        dataset = self._reading(self.recipe.decoder.config.image_size)
        decoder = self.recipe.decoder
        train_inpaint(
            stage, self.ground, dataset, self.run / "decoder_inpaint", decoder=self._file("decoder"), of=decoder.of,
            frozen=decoder.caption == "clip",
        )  # fmt: skip

    def _upsampler(self, name: str) -> None:
        stage: UpsamplerStage = getattr(self.recipe, name)
        dataset = self._reading(stage.config.image_size)
        train_upsampler(stage, self.ground, dataset, self.run / name)

    # What the stages stand on

    @cached_property
    def encoder(self) -> CLIPEncoder:
        """The trained CLIP: of this run, or the one the recipe names."""
        return CLIPEncoder(self.recipe.clip.encoder or self._file("clip"), device=self.device)

    @cached_property
    def ground(self) -> Ground:
        """What the stages after CLIP stand on."""
        captioned = self._dataset(self._clip_size())
        recipe = self.recipe
        return Ground(self.encoder, captioned, self.store, recipe.directions, recipe.seed, self.reporter, self.device)

    @cached_property
    def store(self) -> EmbeddingStore:
        """The embeddings, computed once."""
        dataset = self._reading(self._clip_size())
        watch = Counting(self.reporter, "embeddings")
        try:
            return embed(
                self.encoder, dataset, self.run, count=len(dataset), encoder_id=self._encoder_id(),
                on_begin=watch.begin, on_progress=watch.advance,
            )  # fmt: skip
        finally:
            self.reporter.close()
            if self.skipped:  # every picture was opened by now, and most of the training is still to come
                self.say(str(self.skipped))

    def _reading(self, size: int, options: dict[str, Any] | None = None, *, endless: bool = False) -> AbsDataset:
        """A data set whose pictures will be read, so that what can't be is known at the end."""
        self._read.append(self._dataset(size, options, endless=endless))
        return self._read[-1]

    def _dataset(self, size: int, options: dict[str, Any] | None = None, *, endless: bool = False) -> AbsDataset:
        data = self.recipe.data
        options = {**data.options, **(options or {})}
        if data.source == PROCEDURAL:
            options["length"] = PROCEDURAL_LENGTH if endless else self.recipe.embeddings
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in self._listed:
            dataset = load_dataset(data.source, size, options=options)
            if not isinstance(dataset, Resizable):
                return dataset
            self._listed[key] = dataset
        return self._listed[key].at_size(size)

    def _clip_size(self) -> int:
        return int(self.encoder.model.image_size)

    def _clip_is_there(self) -> bool:
        return bool(self.recipe.clip.encoder) or self._file("clip").exists()

    def _encoder_id(self) -> str:
        if self.recipe.clip.encoder:
            return self.recipe.clip.encoder
        return hashlib.sha256(self._file("clip").read_bytes()).hexdigest()

    def _file(self, stage: str) -> Path:
        return self.run / stage / f"{stage}.safetensors"

    # What was done before

    def _identity(self, stage: str) -> dict[str, Any]:
        """Everything a stage's result follows from; of a folder also what lies in it."""
        settings: Settings = getattr(self.recipe, stage)
        data: dict[str, Any] = self.recipe.data.model_dump(mode="json")
        if self.recipe.data.source != PROCEDURAL:
            data["pictures"] = data_fingerprint(self._dataset(ANY_SIZE))
        identity = {
            "settings": settings.model_dump(mode="json"), "data": without_place(data),
            "seed": self.recipe.seed, "embeddings": self.recipe.embeddings if stage != "clip" else None,
            "clip": self._encoder_id() if stage != "clip" else None,
            "directions": self.recipe.directions if stage != "clip" else None,
        }  # fmt: skip
        if (base := self._base(stage)) is not None:
            identity[base] = sha256(self._file(base)) if self._file(base).exists() else None
            identity[f"{base}_begun"] = self._base_begun(base)
        return identity

    def _base(self, stage: str) -> str | None:
        """The stage that one goes on from, if the recipe has it."""
        base = BASES.get(stage)
        return base if base in self.recipe.stages else None

    def _base_begun(self, base: str) -> dict[str, Any] | None:
        """What every length of a run shares: a stage may go on from one that was trained longer."""
        path = self._begun(base)
        return without(placeless(json.loads(path.read_text())), FREE) if path.exists() else None

    def _begun(self, stage: str) -> Path:
        return self.run / stage / "begun.json"

    def _check_begun(self, stage: str) -> None:
        """A run that has begun goes on with the settings it began with; only its length may grow, and how the model is
        sampled may change."""
        path = self._begun(stage)
        if not path.exists():
            return
        # A decoder's draft is frozen beside it and may have grown; an inpainting decoder would stay the old one's.
        digest = {"draft": None} if self._base(stage) == "draft" else {}
        before, now = ({**without(one, FREE), **digest} for one in (self._written(path, stage), self._identity(stage)))
        changed = dict.fromkeys(in_the_recipe(name, stage) for name in differing(before, now))
        if changed:
            raise UsageError(
                f"{path.parent} was begun with another {', '.join(changed)}: "
                "delete that folder to start the stage anew, or choose another --out"
            )

    def _is_done(self, stage: str) -> bool:
        """Whether the stage has run to its end, with these settings and on this CLIP."""
        path = self.run / stage / "done.json"
        if stage == "clip" and self.recipe.clip.encoder:
            return True
        if not (path.exists() and self._file(stage).exists() and self._clip_is_there()):
            return False
        done, wanted = self._written(path, stage), self._identity(stage)
        return without(done, SHOWN) == without(wanted, SHOWN)

    def _written(self, path: Path, stage: str) -> dict[str, Any]:
        """A stage's identity as it was written; settings that are newer than it have their defaults."""
        identity: dict[str, Any] = placeless(json.loads(path.read_text()))
        with suppress(ConfigError):  # one that is gone shows as a difference
            settings = parse(type(getattr(self.recipe, stage)), identity["settings"])
            identity["settings"] = settings.model_dump(mode="json")
        known = self._identity(stage)["directions"]
        return {"directions": known, **identity}  # which earlier releases didn't write

    def _check_nothing_stands_on_clip(self) -> None:
        """A CLIP that is trained on would pull the ground from under the stages that were trained with it."""
        later = [stage for stage in STAGES[1:] if (self.run / stage).exists()]
        if later:
            raise UsageError(
                f"{self.run} holds stages that were trained with the CLIP you are about to change "
                f"({', '.join(later)}): choose another --out, or delete those folders to train them anew"
            )

    # The end

    def _assemble(self) -> Path:
        """The pipeline folder of the trained parts; one that holds them already stays as it is, card and all."""
        self._note_seen()
        origins = self._origins()
        training = {"recipe": self.recipe.model_dump(mode="json"), "stages": origins}
        if self._holds(training):
            return self.out
        upsamplers = [self._file(name) for name in UPSAMPLERS if name in self.recipe.stages]
        encoder = self.encoder
        if isinstance(encoder.model, CLIP):
            encoder = CLIPEncoder(encoder.model.without_side_tasks(), tokenizer=encoder.tokenizer)
        beside = {AUTOREGRESSIVE: "prior_ar", PAINTER: "decoder_inpaint"}
        others = {role: self._file(name) for role, name in beside.items() if name in self.recipe.stages}
        pipeline = DALLe2(
            self._file("prior"), self._file("decoder"), encoder, upsampler_paths=upsamplers, alternatives=others
        )
        card, named = training_card(self.recipe, origins), self.recipe.clip.encoder
        return save(pipeline, self.out, name=self.recipe.name, training=training, card=card, clip=named)

    def _note_seen(self) -> None:
        """Leaves word beside the pipeline which pictures it has seen, so that it isn't measured on them unawares."""
        dataset = self._dataset(ANY_SIZE)
        if isinstance(dataset, Recognisable):
            note_seen(self.out, data_fingerprint(dataset), (dataset.digest(index) for index in range(len(dataset))))

    def _holds(self, training: dict[str, Any]) -> bool:
        """Whether the folder's pipeline comes of this very training and is whole."""
        try:
            manifest = read_manifest(self.out)
        except CheckpointError:
            return False
        files = {self.out / part.file: part.sha256 for part in manifest.parts.values() if part.file}
        whole = all(path.is_file() and sha256(path) == digest for path, digest in files.items())
        return whole and manifest.training == training

    def _origins(self) -> dict[str, dict[str, Any]]:
        """What each stage's weight file says of its making, and its digest, which no two trainings share."""
        origins = {}
        for stage in STAGES:
            if self._file(stage).exists():
                checkpoint = load_checkpoint(self._file(stage))
                # Heads for CLIP's side tasks are left behind, see `CLIP.without_side_tasks`.
                weights = sum(x.numel() for name, x in checkpoint.tensors.items() if not name.startswith("side."))
                digest = sha256(self._file(stage))
                origins[stage] = {**checkpoint.provenance, "parameters": weights, "sha256": digest}
        return origins


@contextmanager
def half_of_the_threads() -> Iterator[int]:
    """Computes on half of the threads while the block runs; gives how many are left."""
    threads = torch.get_num_threads()
    rest = max(1, threads // 2)
    torch.set_num_threads(max(1, threads - rest))
    try:
        yield rest
    finally:
        torch.set_num_threads(threads)


def _train_aside(
    tell: Callable[[Any], None], recipe: Recipe, out: Path, device: str, stages: Sequence[str], threads: int
) -> None:
    """Some stages of a training, in a process of their own; whatever else there is to say, the other lane says."""
    torch.set_num_threads(threads)
    training = Training(recipe, out, reporter=Telling(tell), device=device, say=lambda line: None)
    with warnings_told(tell), alone(training.run, LANE_LOCK, LANE_PATIENCE):
        for stage in stages:
            training._stage(stage)


def without(identity: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An identity without some settings of its run and of its model."""
    settings = dict(identity["settings"])
    for part in {"run", "config"} & {*settings}:
        settings[part] = {name: value for name, value in settings[part].items() if name not in names}
    return {**identity, "settings": settings}


def in_the_recipe(name: str, stage: str) -> str:
    """What the recipe calls a part of a stage's identity, which also holds how the stage it goes on from was begun."""
    base = BASES.get(stage, "")
    of_base = name.removeprefix(f"{base}_begun.")
    stage = stage if of_base == name else base
    return f"{stage}.{of_base.removeprefix('settings.')}" if of_base.startswith("settings.") else of_base


def differing(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[str]:
    """The dotted names of the values in which two nested dicts differ."""
    names: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += differing(old, new, f"{path}{key}.")
        elif old != new:
            names.append(f"{path}{key}")
    return names
