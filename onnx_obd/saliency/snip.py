from onnx_obd.saliency.registry import criterion


@criterion("snip")
def snip(weight, gradient):
    """s = |w · ∂L/∂w|: how much the loss depends on the weight's being there (Lee, Ajanthan, Torr 2019, equation 6).

    It needs labels: without them the loss is the divergence from the original, whose gradient is zero there.
    """
    return (weight * gradient).abs()
