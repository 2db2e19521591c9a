"""What holds for every test: one thread, no network, no caches but empty ones."""

import os
import socket
import tempfile
from pathlib import Path

# Before anything imports the hub's client, which reads them once.
_EMPTY_CACHE = tempfile.TemporaryDirectory(prefix="dalle2-tests-")
os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = _EMPTY_CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
import torch  # noqa: E402

pytest.register_assert_rewrite("training_rig")

if "OMP_NUM_THREADS" not in os.environ:
    # Small tensors on many threads mostly wait, and sums in another order differ in the last digit.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails at once instead of making a test slow or lucky."""
    connect = socket.socket.connect

    def refuse_strangers(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise OSError(f"tests use no network, but something wanted {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse_strangers)


@pytest.fixture(autouse=True)
def same_seed() -> None:
    """Tests pass their own generators; what slips through is at least the same each time."""
    torch.manual_seed(0)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, for what writes to ./generations or ./trained_models."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def micro_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of tiny parts with random weights, 16 px and then 32 px. Tests don't write to it."""
    from dalle_2 import (
        CLIP,
        CLIPEncoder,
        DALLe2,
        Decoder,
        DecoderUNet,
        Prior,
        Tokenizer,
        Upsampler,
        save,
    )  # fmt: skip
    from dalle_2.models.clip import CLIPConfig
    from dalle_2.models.decoder import DecoderConfig
    from dalle_2.models.prior import PriorConfig
    from dalle_2.models.upsampler import UpsamplerConfig

    tower = {"width": 16, "depth": 1, "heads": 2}
    text = tower | {"vocab_size": 300, "context_length": 48}
    unet = {
        "channels": 16, "multiples": (1,), "blocks": 1, "attention": (0,), "head_channels": 16,
        "patch": 4, "z_dim": 16, "t_dim": 32,
    }  # fmt: skip
    large = unet | {"attention": (), "middle_attention": False, "low_res_channels": 3}
    tokenizer = Tokenizer.train(["a red circle above a blue square"], 280, 48)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vision = tower | {"image_size": 16, "patch": 8}
        clip = CLIP.from_config(CLIPConfig.model_validate({"vision": vision, "text": text, "embed_dim": 16}))
        parts = [
            Prior.from_config(PriorConfig(dim=16, width=32, depth=1, heads=2, steps=3)),
            Decoder.from_config(DecoderConfig.model_validate({"image_size": 16, "steps": 3, "unet": unet})),
            Upsampler.from_config(
                UpsamplerConfig.model_validate(
                    {"image_size": 32, "low_res_size": 16, "steps": 2, "unet": large}
                )
            ),
        ]
        # New networks answer zero to everything; with noise in their silent layers each input counts.
        for parameter in (parameter for part in parts for parameter in part.parameters()):
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    assert isinstance(parts[1].network, DecoderUNet)
    encoder = CLIPEncoder(clip.eval(), tokenizer=tokenizer)
    pipeline = DALLe2(parts[0], parts[1], encoder, upsampler_paths=parts[2:], device="cpu")
    return save(pipeline, tmp_path_factory.mktemp("pipelines") / "micro", training={"minutes": 0})
