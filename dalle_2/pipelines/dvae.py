"""OpenAI's encoder.pkl and decoder.pkl -> a `DVAE`."""

from pathlib import Path

import torch

from dalle_2.models.dvae import DVAE, DVAEConfig
from dalle_2.models.placement import choose_device
from dalle_2.models.unfilled import empty
from dalle_2.weights.dvae_names import dvae_pairs
from dalle_2.weights.foreign import fill
from dalle_2.weights.pickled_module import module_tensors

FILES = {"encoder": "encoder.pkl", "decoder": "decoder.pkl"}
PACKAGES = ("dall_e",)  # whose classes the published files are built of


@torch.inference_mode(False)
def load_dvae(
    folder: str | Path, *, device: str | torch.device = "auto", config: DVAEConfig | None = None
) -> DVAE:
    """The dVAE of a folder that holds both files, in float32; no code in them is run.

    config: of weights of another size. Raises CheckpointError for a file that is missing, damaged or of another
    network, and for one that could run code.
    """
    config = config or DVAEConfig()
    model = empty(lambda: DVAE(config))
    pairs = dvae_pairs(config.groups, config.blocks)
    for part, name in FILES.items():
        path = Path(folder) / name
        fill(model.get_submodule(part), pairs, module_tensors(path, PACKAGES), path)
    return model.to(choose_device(device)).eval().requires_grad_(False)
