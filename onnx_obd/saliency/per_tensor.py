from onnx_obd.saliency.registry import criterion


@criterion("per_tensor")
def per_tensor(weight, h):
    """s = ½ · mean(h) · w²: magnitude within a tensor, curvature between tensors."""
    return 0.5 * h.mean() * weight.square()
