"""The package's numbers don't hang on what PyTorch keeps for everybody: default dtype, default device, autocast."""

import ast
from pathlib import Path

import pytest

import dalle_2

HOME = Path(dalle_2.__file__).parent
# Parameters that are made to be learned, which follow PyTorch's defaults as those of its own layers do.
LEARNED = {
    ("models/autoregressive_prior.py", "torch.zeros(config.dim)"),
    ("models/autoregressive_prior.py", "torch.zeros(text_width)"),
    ("models/clip.py", "torch.tensor(math.log(config.logit_scale))"),
    ("models/decoder_unet.py", "torch.zeros(config.z_dim)"),
    ("models/layers/init.py", "torch.empty(shape)"),
    ("models/preconditioning.py", "torch.zeros(KNOTS)"),
    ("models/prior.py", "torch.zeros(config.dim)"),
}
# What is moved to a module's device with it, where the module says so.
BUFFERS = {"models/autoregressive_prior.py", "models/clip_loading.py"}
MADE = {
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn",
    "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
WHOLE = {"arange", "randint", "randperm"}  # give whole numbers unless they are asked for others


def made_tensors() -> list[tuple[str, int, str, set[str], str]]:
    """Every tensor that the package makes out of nothing: file, line, call, what the call states, the call in words."""
    found = []
    for path in sorted(HOME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in MADE}:
                name = ast.unparse(node.func).removeprefix("torch.")
                stated = {str(keyword.arg) for keyword in node.keywords}
                found.append((path.relative_to(HOME).as_posix(), node.lineno, name, stated, ast.unparse(node)))
    return found


def test_every_tensor_made_out_of_nothing_states_where_it_lies() -> None:
    silent = [
        f"{path}:{line} {call}"
        for path, line, _, stated, call in made_tensors()
        if "device" not in stated and (path, call) not in LEARNED and path not in BUFFERS
    ]
    assert silent == []


def test_every_tensor_made_out_of_nothing_states_its_dtype() -> None:
    silent = [
        f"{path}:{line} {call}"
        for path, line, name, stated, call in made_tensors()
        if "dtype" not in stated and name not in WHOLE and (path, call) not in LEARNED
    ]
    assert silent == []


def test_the_finder_finds() -> None:
    assert len(made_tensors()) > 40
    with pytest.raises(AssertionError):
        assert [call for *_, call in made_tensors() if "randn" in call] == []
