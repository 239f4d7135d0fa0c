import torch

from onnx_obd.saliency.registry import criterion


@criterion("random")
def random(weight, generator):
    """s uniform in [0, 1), seeded: what any criterion must beat."""
    return torch.rand(weight.shape, generator=generator).to(weight)
