"""The lowest floor: errors, settings, paths, and what is known of the machine."""

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from dalle_2 import config, errors, machine, paths
from dalle_2.config import Settings, override, parse, read_toml


class Level(Settings):
    width: int = Field(64, ge=1)
    attention: bool = False


class Decoder(Settings):
    steps: int = Field(50, ge=1)
    target: Literal["eps", "x_0", "v"] = "x_0"
    rate: float = 1e-4
    name: str = "decoder"
    clip: float | None = 1.0
    levels: tuple[Level, ...] = (Level(), Level(width=128))


class Run(Settings):
    seed: int = 0
    decoder: Decoder = Decoder()
    prior: Level | None = None


class TestErrors:
    def test_exit_statuses(self) -> None:
        usage = {errors.UsageError, errors.ConfigError}
        others = {errors.CheckpointError, errors.DataError, errors.HubError, errors.MissingExtra}
        assert {cls.exit_status for cls in usage} == {2}
        assert {cls.exit_status for cls in others} == {1}
        assert all(issubclass(cls, errors.Dalle2Error) for cls in usage | others)
        assert issubclass(errors.ConfigError, ValueError)

    def test_missing_extra_says_what_to_install(self) -> None:
        error = errors.MissingExtra("openclip", "open_clip_torch", "loading OpenCLIP models")
        assert str(error).startswith("loading OpenCLIP models needs open_clip_torch")
        assert "pip install 'dalle_2[openclip]'" in str(error)
        assert "\n" not in str(error)

    def test_missing_extra_survives_pickling(self) -> None:
        error = pickle.loads(pickle.dumps(errors.MissingExtra("s3", "s3fs", "reading s3://bucket")))
        assert (error.extra, error.package, error.purpose) == ("s3", "s3fs", "reading s3://bucket")
        assert "s3fs" in str(error)


class TestParse:
    def test_round_trip(self) -> None:
        run = parse(Run, {"seed": 3, "decoder": {"steps": 7, "levels": [{"width": 2}]}})
        assert run.decoder.levels == (Level(width=2),)
        assert parse(Run, run.model_dump()) == run
        assert Run.model_validate_json(run.model_dump_json()) == run

    def test_settings_are_frozen(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            Run().seed = 1

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"sed": 1}, "unknown key 'sed'; did you mean 'seed'?"),
            ({"decoder": {"step": 1}}, "unknown key 'decoder.step'; did you mean 'steps'?"),
            ({"decoder": {"levels": [{}, {"widht": 1}]}}, "'decoder.levels.1.widht'; did you mean 'width'?"),
            ({"prior": {"atention": True}}, "unknown key 'prior.atention'; did you mean 'attention'?"),
            ({"zzz": 1}, "unknown key 'zzz'; known are seed, decoder, prior"),
            ({"decoder": {"steps": 0}}, "'decoder.steps' should be greater than or equal to 1, got 0"),
            ({"decoder": {"target": "y"}}, "'decoder.target' should be 'eps', 'x_0' or 'v', got 'y'"),
            ({"decoder": {"rate": float("nan")}}, "'decoder.rate' should be a finite number, got nan"),
        ],
    )
    def test_refuses(self, values: dict[str, object], message: str) -> None:
        with pytest.raises(errors.ConfigError) as caught:
            parse(Run, values, where="run.toml")
        assert message in str(caught.value)
        assert str(caught.value).startswith("run.toml: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Decoder(stepz=3), "unknown key 'stepz'; did you mean 'steps'?"),
            (lambda: Decoder(steps=0), "'steps' should be greater than or equal to 1, got 0"),
            (lambda: Run(decoder={"levels": [{"widht": 1}]}), "unknown key 'decoder.levels.0.widht'; did you mean"),
        ],
    )
    def test_a_class_itself_refuses_in_the_same_words(self, make: Callable[[], Settings], message: str) -> None:
        with pytest.raises(errors.ConfigError) as caught:
            make()
        assert str(caught.value).startswith(message)

    def test_names_every_fault_at_once(self) -> None:
        with pytest.raises(errors.ConfigError, match=r"'seeed'.*'decoder\.steps'|'decoder\.steps'.*'seeed'"):
            parse(Run, {"seeed": 1, "decoder": {"steps": -1}})

    def test_a_missing_value_and_a_rule_of_the_class_itself(self) -> None:
        class Pair(Settings):
            low: int
            high: int = 5

            @model_validator(mode="after")
            def _ordered(self) -> "Pair":
                if self.low > self.high:
                    raise errors.ConfigError(f"low {self.low} must not exceed high {self.high}")
                return self

        with pytest.raises(errors.ConfigError, match="^'low' is missing$"):
            parse(Pair, {})
        with pytest.raises(errors.ConfigError, match="^low 9 must not exceed high 5$"):
            parse(Pair, {"low": 9})

        class Pairs(Settings):
            first: Pair

        with pytest.raises(errors.ConfigError, match="^'first': low 9 must not exceed high 5$"):
            parse(Pairs, {"first": {"low": 9}})


class TestOverride:
    @pytest.mark.parametrize(
        ("key", "text", "value"),
        [
            ("decoder.steps", "20", 20),
            ("decoder.rate", "3e-4", 3e-4),
            ("decoder.target", "v", "v"),
            ("decoder.name", "123", "123"),
            ("decoder.name", "a = b", "a = b"),
            ("decoder.clip", "none", None),
            ("decoder.clip", "0.5", 0.5),
            ("decoder.levels.1.attention", "true", True),
            ("decoder.levels.0.width", "7", 7),
            ("prior.width", "9", 9),
        ],
    )
    def test_dotted_keys(self, key: str, text: str, value: object) -> None:
        found: object = override(Run(), {key: text})
        for part in key.split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part)  # type: ignore[index]
        assert found == value
        assert type(found) is type(value)

    def test_leaves_the_rest_and_the_original_alone(self) -> None:
        run = Run(seed=4)
        changed = override(run, {"decoder.levels.0.width": 7})
        assert (changed.seed, changed.decoder.levels[1].width) == (4, 128)
        assert run.decoder.levels[0].width == 64

    def test_takes_a_whole_list(self) -> None:
        assert override(Run(), {"decoder.levels": "[{width = 3}]"}).decoder.levels == (Level(width=3),)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("decoder.step", "1", "unknown key 'decoder.step'; did you mean 'steps'?"),
            ("decodr.steps", "1", "unknown key 'decodr'; did you mean 'decoder'?"),
            ("decoder.levels.5.width", "1", "unknown key 'decoder.levels.5'"),
            ("decoder.steps.more", "1", "'decoder.steps'"),
            ("decoder.steps", "many", "'decoder.steps' should be a valid integer"),
            ("decoder.steps", "0", "'decoder.steps' should be greater than or equal to 1"),
            ("seed", "none", "'seed' should be a valid integer"),
            ("", "1", "unknown key ''"),
        ],
    )
    def test_refuses(self, key: str, value: str, message: str) -> None:
        with pytest.raises(errors.ConfigError) as caught:
            override(Run(), {key: value})
        assert message in str(caught.value)


class TestToml:
    def test_reads(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text("seed = 3\n[decoder]\nsteps = 7\n")
        assert parse(Run, read_toml(tmp_path / "run.toml")).decoder.steps == 7

    def test_names_the_line_of_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text("seed = 3\nsteps ==\n")
        with pytest.raises(errors.ConfigError, match=r"run\.toml is not a TOML file: .*line 2"):
            read_toml(tmp_path / "run.toml")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(errors.ConfigError, match=r"can't read the settings file .*none\.toml: No such file"):
            read_toml(tmp_path / "none.toml")


class TestAtomicPath:
    def test_writes_and_leaves_nothing_beside(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "model.safetensors"
        with paths.atomic_path(target) as temporary:
            assert temporary.suffix == ".safetensors"
            assert temporary.parent == target.parent
            temporary.write_bytes(b"new")
            assert not target.exists()
        assert [path.name for path in target.parent.iterdir()] == ["model.safetensors"]
        assert target.read_bytes() == b"new"

    @pytest.mark.parametrize("fault", [RuntimeError("boom"), KeyboardInterrupt()])
    def test_a_fault_keeps_the_old_content(self, tmp_path: Path, fault: BaseException) -> None:
        target = tmp_path / "model.bin"
        target.write_bytes(b"old")
        with pytest.raises(type(fault)), paths.atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise fault
        assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
        assert target.read_bytes() == b"old"

    def test_forgetting_to_write_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), paths.atomic_path(tmp_path / "never"):
            pass

    @pytest.mark.parametrize(
        "fault",
        [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("io: No space left on device (28)")],
    )
    def test_a_full_disk_is_named_whoever_met_it(self, tmp_path: Path, fault: Exception) -> None:
        with pytest.raises(OSError, match="model") as caught, paths.atomic_path(tmp_path / "model"):
            raise fault
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(tmp_path / "model")
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
    def test_a_disk_that_is_really_full(self, tmp_path: Path) -> None:
        with (
            pytest.raises(OSError, match="model") as caught,
            paths.atomic_path(tmp_path / "model") as temporary,
        ):
            temporary.symlink_to("/dev/full")
            with temporary.open("wb", buffering=0) as stream:
                stream.write(b"x")
        assert paths.is_disk_full(caught.value)
        assert not list(tmp_path.iterdir())

    def test_a_link_keeps_pointing(self, tmp_path: Path) -> None:
        (tmp_path / "real").write_text("old")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        paths.atomic_write_text(tmp_path / "link", "é\n")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_bytes() == "é\n".encode()

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        paths.atomic_write_bytes(tmp_path / "ours", b"")
        (tmp_path / "theirs").write_bytes(b"")
        with paths.atomic_path(tmp_path / "private") as temporary:
            temporary.touch(0o600)
        assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "theirs").stat().st_mode}


class TestPlaces:
    def test_shipped_pipelines_lie_in_the_package(self) -> None:
        assert paths.shipped_pipelines() == Path(config.__file__).parent / "training" / "trained_models"

    @pytest.mark.parametrize(
        "variables",
        [{}, {"HF_HOME": "/h"}, {"HF_HUB_CACHE": "/c"}, {"XDG_CACHE_HOME": "/x"}, {"HF_HOME": "~/h"}],
    )
    def test_hub_cache_follows_the_hubs_own_rules(
        self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import importlib

        from huggingface_hub import constants

        for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            assert str(paths.hub_cache()) == importlib.reload(constants).HF_HUB_CACHE
        finally:
            monkeypatch.undo()
            importlib.reload(constants)


class TestMachine:
    @pytest.mark.parametrize(
        ("device", "flags", "capability", "dtype"),
        [
            ("cpu", ("avx2",), None, "float32"),
            ("cpu", ("avx512f", "avx512_vnni"), None, "float32"),
            ("cpu", ("avx512_bf16",), None, "bfloat16"),
            ("cpu", ("amx_tile", "amx_bf16"), None, "bfloat16"),
            ("cuda", (), (6, 1), "float32"),
            ("cuda", (), (7, 5), "float16"),
            ("cuda:1", (), (9, 0), "bfloat16"),
            ("cuda", ("amx_bf16",), None, "float32"),
            ("mps", (), None, "float32"),
        ],
    )
    def test_default_dtype(
        self, device: str, flags: tuple[str, ...], capability: tuple[int, int] | None, dtype: str
    ) -> None:
        training = machine.default_dtype(device, flags=flags, capability=capability, trains="transformer")
        assert training == dtype
        drawing = machine.default_dtype(device, flags=flags, capability=capability, trains="convolutions")
        assert drawing == ("float32" if flags == ("avx512_bf16",) else dtype)
        sampling = machine.default_dtype(device, flags=flags, capability=capability)
        assert sampling == ("float32" if device == "cpu" else dtype)

    def test_usable_cpus_respects_a_quota(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "_cgroup_limit", lambda: (50_000, 100_000))
        assert (machine.cpu_quota(), machine.usable_cpus()) == (1, 1)
        monkeypatch.setattr(machine, "_cgroup_limit", lambda: (0, 0))
        assert machine.cpu_quota() is None
        assert 1 <= machine.usable_cpus() <= (os.cpu_count() or 1)
