"""A whole training: the stages of a recipe in order, each going on where it stopped, then a pipeline folder."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.dataset import Recognisable, Resizable, Watched, data_fingerprint, load_dataset, skip_report
from dalle_2.data.embeddings import EmbeddingStore
from dalle_2.data.skipped import SkipReport
from dalle_2.errors import CheckpointError, Dalle2Error, UsageError
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
from dalle_2.training.ledger import Ledger
from dalle_2.training.outlook import SHORT, Outlook, Placed
from dalle_2.training.progress import Counting, Reporter, Silent, Telling, relay_to, warnings_told
from dalle_2.training.recipe import Recipe, UpsamplerStage
from dalle_2.training.small_pictures import small_pictures
from dalle_2.training.stages import ASIDE, STAGES, UPSAMPLERS
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
        self.ledger = Ledger(recipe, self.run, self._pictures)
        self._read: list[AbsDataset] = []
        # A folder of a million pictures is listed once, and what it holds is known by that list until the end.
        self._listed: dict[str, Resizable] = {}
        self.at = ""  # the stage that a training is at

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

        Warns of a folder whose pictures changed meanwhile. Raises what `check` does, UsageError for a stage whose
        predecessor has not run, and for a run folder that holds another recipe's work or is another training's at this
        moment; CheckpointError for files of finished stages that are damaged.
        """
        wanted = self.check(stages)
        if wanted and not self.ledger.is_done(wanted[0]):
            self._check_can_run(wanted[0])  # what can't even begin leaves no folder behind
        with alone(self.run):
            with alone(self.run, LANE_LOCK, LANE_PATIENCE):
                clear_leftovers(self.run, alone=True)
            clear_leftovers(self.out)
            atomic_write_text(self.run / PLAN, json.dumps({"stages": countable(self.recipe)}))
            self._look_out(wanted)
            pipeline = self._train(wanted)
            self._check_came_to_its_end(wanted)
            self._mention_changes()
            return pipeline

    def _check_came_to_its_end(self, wanted: Sequence[str]) -> None:
        """Raises Dalle2Error for a stage that was asked for and trained, and isn't there."""
        lacking = [stage for stage in wanted if not self.ledger.is_done(stage)]
        if lacking:
            raise Dalle2Error(
                f"{lacking[0]} was trained, but {self.run / lacking[0]} does not hold it any more: something else has "
                "changed that folder; the same command goes on from what is there"
            )

    def _mention_changes(self) -> None:
        """Warns if the folder is not what it was when it was listed."""
        for listed in self._listed.values():
            if isinstance(listed, Watched) and (change := listed.changed()) is not None:
                warnings.warn(
                    f"{change} while this training ran, which took them as it listed them, or their neighbours: train "
                    f"in another --out to learn from what is there now",
                    stacklevel=3,
                )
                return

    def _look_out(self, wanted: Sequence[str]) -> None:
        """From now on the reporter says where the whole training stands."""
        stages = countable(self.recipe)
        missing = [stage for stage in stages if stage in wanted and not self.ledger.is_done(stage)]
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
            self._stage("clip")
            wanted = wanted[1:]
        aside = self._aside(wanted)
        with self._beside(aside, wanted) if aside else nullcontext():
            for stage in wanted:
                if stage not in aside:
                    self._stage(stage)
        return self._assemble() if all(self.ledger.is_done(stage) for stage in self.recipe.stages) else None

    # Lanes

    def _aside(self, wanted: Sequence[str]) -> list[str]:
        """Which of these stages train in a process of their own: none unless both lanes have something to do."""
        if self.lanes == 1 or not self.ledger.clip_is_there():
            return []
        missing = [stage for stage in wanted if not self.ledger.is_done(stage)]
        aside = [stage for stage in missing if stage in ASIDE]
        return aside if len(aside) < len(missing) else []

    @contextmanager
    def _beside(self, aside: Sequence[str], wanted: Sequence[str]) -> Iterator[None]:
        """Trains the stages `aside` while the block trains the others of `wanted`."""
        # What can't go on says so now, not after the embedding, or the other lane's hour.
        for stage in (*aside, next(stage for stage in wanted if stage not in aside and not self.ledger.is_done(stage))):
            self._check_can_run(stage)
        _ = self.store  # embedded once, before both lanes read it
        hear = relay_to(self.reporter.another())
        with (
            half_of_the_threads() as rest,
            beside(_train_aside, self.recipe, self.out, self.device, tuple(aside), rest, self._listed, hear=hear),
        ):
            yield

    # Stages

    def _stage(self, stage: str) -> None:
        if stage == "clip" and self.recipe.clip.encoder:
            return
        if self.ledger.clip_is_there() and self.ledger.is_done(stage):
            self.say(f"{stage}: done before, in {self.ledger.file(stage)}")
            return
        self._check_can_run(stage)
        self.at = stage
        self.ledger.begin(stage)
        identity = self.ledger.identity(stage)
        run: dict[str, Callable[[], None]] = {
            "clip": self._clip, "prior": self._prior, "prior_ar": self._prior_ar, "draft": self._draft,
            "decoder": self._decoder, "decoder_inpaint": self._inpaint,
            **{name: partial(self._upsampler, name) for name in UPSAMPLERS},
        }  # fmt: skip
        run[stage]()
        self.ledger.end(stage, identity)

    def _check_can_run(self, stage: str) -> None:
        """Refuses a stage that lacks what it stands on, or whose run was begun with other settings."""
        if stage != "clip" and not self.ledger.clip_is_there():
            raise UsageError(f"the {stage} needs CLIP first: run `dalle2 train clip` with the same recipe and folder")
        base = self.ledger.base(stage)
        if base is not None and not self.ledger.is_done(base):
            raise UsageError(f"{stage} goes on from the {base}: run `dalle2 train {base}` with the same recipe first")
        self.ledger.check_begun(stage)
        if stage == "clip":
            self.ledger.check_nothing_stands_on_clip()

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
        draft = self.ledger.file("draft") if self.recipe.draft else None
        train_decoder(stage, self.ground, dataset, self.run / "decoder", draft=draft)

    def _inpaint(self) -> None:
        stage = self.recipe.decoder_inpaint
        assert stage is not None
        dataset = self._reading(self.recipe.decoder.config.image_size)
        decoder, weights = self.recipe.decoder, self.ledger.file("decoder")
        train_inpaint(
            stage, self.ground, dataset, self.run / "decoder_inpaint", decoder=weights, of=decoder.of,
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
        return CLIPEncoder(self.recipe.clip.encoder or self.ledger.file("clip"), device=self.device)

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
                self.encoder, dataset, self.run, count=len(dataset), encoder_id=self.ledger.encoder_id(),
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

    def _pictures(self) -> str | None:
        """The fingerprint of the folder as it was listed at the start, None for pictures that are drawn here."""
        return None if self.recipe.data.source == PROCEDURAL else data_fingerprint(self._dataset(ANY_SIZE))

    def _clip_size(self) -> int:
        return int(self.encoder.model.image_size)

    # The end

    def _assemble(self) -> Path:
        """The pipeline folder of the trained parts; one that holds them already stays as it is, card and all."""
        self._note_seen()
        origins = self._origins()
        training = {"recipe": self.recipe.model_dump(mode="json"), "stages": origins}
        if self._holds(training):
            return self.out
        upsamplers = [self.ledger.file(name) for name in UPSAMPLERS if name in self.recipe.stages]
        encoder = self.encoder
        if isinstance(encoder.model, CLIP):
            encoder = CLIPEncoder(encoder.model.without_side_tasks(), tokenizer=encoder.tokenizer)
        beside = {AUTOREGRESSIVE: "prior_ar", PAINTER: "decoder_inpaint"}
        others = {role: self.ledger.file(name) for role, name in beside.items() if name in self.recipe.stages}
        prior, decoder = self.ledger.file("prior"), self.ledger.file("decoder")
        pipeline = DALLe2(prior, decoder, encoder, upsampler_paths=upsamplers, alternatives=others)
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
            if self.ledger.file(stage).exists():
                self.ledger.check_sound(stage, anew=True)  # it goes into the pipeline now
                checkpoint = load_checkpoint(self.ledger.file(stage))
                # Heads for CLIP's side tasks are left behind, see `CLIP.without_side_tasks`.
                weights = sum(x.numel() for name, x in checkpoint.tensors.items() if not name.startswith("side."))
                digest = sha256(self.ledger.file(stage))
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
    tell: Callable[[Any], None],
    recipe: Recipe,
    out: Path,
    device: str,
    stages: Sequence[str],
    threads: int,
    listed: dict[str, Resizable],
) -> None:
    """Some stages of a training, in a process of their own; whatever else there is to say, the other lane says.

    listed: the folders as the other lane has listed them, so that both have one list.
    """
    torch.set_num_threads(threads)
    training = Training(recipe, out, reporter=Telling(tell), device=device, say=lambda line: None)
    training._listed = listed
    with warnings_told(tell), alone(training.run, LANE_LOCK, LANE_PATIENCE):
        for stage in stages:
            training._stage(stage)
