"""OpenAI's dVAE: names, shapes and counts as published, what the numbers mean, and files that would run code.

No public class of diffusers or transformers is this dVAE, so that no parity is claimed: it is compared with what is
reckoned here from the published names. The files are made of modules of the published structure.
"""

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.errors import CheckpointError, UsageError
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.models.dvae import DVAE, DVAEConfig, map_pixels, unmap_pixels
from dalle_2.pipelines.dvae import load_dvae
from dalle_2.weights.dvae_names import dvae_pairs
from dalle_2.weights.layout import expected

TINY = DVAEConfig(width=8, blocks=2, start=4, codes=24)
COUNTS = {"encoder": 53_786_240, "decoder": 43_829_766}
KERNELS = {"encoder": (3, 3, 3, 1), "decoder": (1, 3, 3, 3)}


# The published structure, as modules that only hold tensors


class Conv2d(nn.Module):
    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.device, self.use_float16 = torch.device("cpu"), True
        self.w = nn.Parameter(torch.randn(after, before, kernel, kernel) / (before * kernel**2) ** 0.5, False)
        self.b = nn.Parameter(0.1 * torch.randn(after), False)


class Block(nn.Module):
    def __init__(self, before: int, after: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        widths = [before, *[after // 4] * 3, after]
        self.id_path = Conv2d(before, after, 1) if before != after else nn.Identity()
        path: dict[str, nn.Module] = {}
        for n in range(4):
            path |= {f"relu_{n + 1}": nn.ReLU(), f"conv_{n + 1}": Conv2d(widths[n], widths[n + 1], kernels[n])}
        self.res_path = nn.Sequential(OrderedDict(path))


class Network(nn.Module):
    def __init__(self, config: DVAEConfig, part: str) -> None:
        super().__init__()
        encodes = part == "encoder"
        widths = [config.width * 2**n for n in range(config.groups)][:: 1 if encodes else -1]
        width = config.width if encodes else config.start
        made: dict[str, nn.Module] = {"input": Conv2d(3, width, 7) if encodes else Conv2d(config.codes, width, 1)}
        for n, after in enumerate(widths):
            group: dict[str, nn.Module] = {}
            for k in range(config.blocks):
                group[f"block_{k + 1}"] = Block(width, after, KERNELS[part])
                width = after
            if n + 1 < config.groups:
                group |= {"pool": nn.MaxPool2d(2)} if encodes else {"upsample": nn.Upsample(scale_factor=2)}
            made[f"group_{n + 1}"] = nn.Sequential(OrderedDict(group))
        out = Conv2d(width, config.codes if encodes else 6, 1)
        made["output"] = nn.Sequential(OrderedDict({"relu": nn.ReLU(), "conv": out}))
        self.blocks = nn.Sequential(OrderedDict(made))


def reckoned(state: dict[str, Tensor], x: Tensor, part: str, config: DVAEConfig) -> Tensor:
    """What the part says, by the names of its tensors."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.w"], state[f"{name}.b"], padding=state[f"{name}.w"].shape[-1] // 2)

    x = conv("blocks.input", x)
    for n in range(config.groups):
        for k in range(config.blocks):
            block = f"blocks.group_{n + 1}.block_{k + 1}"
            y = x
            for c in range(4):
                y = conv(f"{block}.res_path.conv_{c + 1}", y.relu())
            x = (conv(f"{block}.id_path", x) if f"{block}.id_path.w" in state else x) + y / 64
        if n + 1 < config.groups:
            x = F.max_pool2d(x, 2) if part == "encoder" else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return conv("blocks.output.conv", x.relu())


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes are those of OpenAI's package, as far as a pickle can tell."""
    for name in ("dall_e", "dall_e.networks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for kind in (Conv2d, Block, Network):
        monkeypatch.setattr(kind, "__module__", "dall_e.networks")
        monkeypatch.setattr(sys.modules["dall_e.networks"], kind.__name__, kind, raising=False)


def write(folder: Path, *, archive: bool = True) -> dict[str, dict[str, Tensor]]:
    """Both files, tiny, and what is in them."""
    states = {}
    for part in COUNTS:
        module = Network(TINY, part)
        states[part] = module.state_dict()
        torch.save(module, folder / f"{part}.pkl", _use_new_zipfile_serialization=archive)
    return states


@pytest.mark.parametrize("part", COUNTS)
def test_published_networks_have_the_published_tensors(part: str) -> None:
    with torch.device("meta"):
        ours, theirs = DVAE().get_submodule(part), Network(DVAEConfig(), part)
    assert sum(parameter.numel() for parameter in ours.parameters()) == COUNTS[part]
    own = {name: value.shape for name, value in ours.state_dict().items()}
    pairs = [pair for pair in dvae_pairs(4, 2) if pair.ours in own]
    assert expected(pairs, own) == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@torch.no_grad()
def test_the_numbers_mean_what_they_mean_there(tmp_path: Path, archive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    states = write(tmp_path, archive=archive)
    for name in ("dall_e", "dall_e.networks"):
        monkeypatch.delitem(sys.modules, name)
    ours = load_dvae(tmp_path, device="cpu", config=TINY)
    pictures = torch.rand(2, 3, 32, 16) * 2 - 1
    logits = reckoned(states["encoder"], 0.8 * (pictures + 1) / 2 + 0.1, "encoder", TINY)
    assert torch.allclose(ours.encoder(map_pixels(pictures)), logits, atol=1e-5)
    codes = ours.encode(pictures)
    assert codes.shape == (2, 4, 2)
    assert torch.equal(codes, logits.argmax(1))
    chosen = F.one_hot(codes, TINY.codes).permute(0, 3, 1, 2).float()
    middle = reckoned(states["decoder"], chosen, "decoder", TINY)[:, :3].sigmoid()
    wanted = ((middle - 0.1) / 0.8).clamp(0, 1) * 2 - 1
    assert torch.allclose(ours.decode(codes), wanted, atol=1e-5)


def test_pixels_go_there_and_back() -> None:
    x = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2)
    assert (float(map_pixels(x).min()), float(map_pixels(x).max())) == pytest.approx((0.1, 0.9))
    assert torch.allclose(unmap_pixels(map_pixels(x)), x, atol=1e-6)
    assert float(unmap_pixels(torch.ones(1, 3, 1, 1)).max()) == 1.0


def test_it_goes_into_a_file_of_ours_and_back(tmp_path: Path) -> None:
    model = DVAE(TINY).eval()
    save_model(model, tmp_path / "dvae.safetensors")
    again = load_model(tmp_path / "dvae.safetensors", "dvae")
    codes = torch.arange(8).reshape(1, 2, 4)
    assert isinstance(again, DVAE)
    assert torch.equal(again.decode(codes), model.decode(codes))


def test_what_does_not_fit_is_refused() -> None:
    model = DVAE(TINY)
    with pytest.raises(UsageError, match="divisible by 8, got 12 x 16"):
        model.encode(torch.zeros(1, 3, 12, 16))
    with pytest.raises(UsageError, match=r"0 ... 23, got 0 ... 24"):
        model.decode(torch.tensor([[[0, 24]]]))


# Files that are not what they should be


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, archive: bool) -> None:
    write(tmp_path, archive=archive)
    witness = tmp_path / "ran"
    hostile = Network(TINY, "encoder")
    hostile.blocks.evil = Evil(witness)  # type: ignore[assignment]
    torch.save(hostile, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=archive)
    with pytest.raises(CheckpointError, match="refused because it names .*, and loading that could run code"):
        load_dvae(tmp_path, config=TINY)
    assert not witness.exists()
    torch.load(tmp_path / "encoder.pkl", weights_only=False)  # it would have
    assert witness.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "os system", "torch load", "torch.nn.modulesque X", "functools partial", "torch.hub load"]
)
def test_no_other_name_is_known(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    code = f"c{module}\n{attribute}\n(S'1'\ntR.".encode()
    system = pickle.dumps({"little_endian": True}, 2)
    row = b"".join([pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), system, code])
    (tmp_path / "encoder.pkl").write_bytes(row)
    with pytest.raises(CheckpointError, match=f"it names {module}.{attribute}"):
        load_dvae(tmp_path, config=TINY)


@pytest.mark.usefixtures("there")
def test_damaged_missing_and_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no weight file .*encoder.pkl"):
        load_dvae(tmp_path)
    write(tmp_path)
    with pytest.raises(CheckpointError, match=r"blocks.input.w is \(8, 3, 7, 7\) instead of \(256, 3, 7, 7\)"):
        load_dvae(tmp_path)
    content = (tmp_path / "decoder.pkl").read_bytes()
    (tmp_path / "decoder.pkl").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated, damaged or no module"):
        load_dvae(tmp_path, config=TINY)
    torch.save({"w": torch.ones(2)}, tmp_path / "decoder.pkl")
    with pytest.raises(CheckpointError, match="truncated, damaged or no module"):
        load_dvae(tmp_path, config=TINY)
