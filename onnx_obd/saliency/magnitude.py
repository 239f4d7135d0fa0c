from onnx_obd.saliency.registry import criterion


@criterion("magnitude")
def magnitude(weight):
    """s = |w|: the control that any use of second derivatives must beat (Han et al. 2015)."""
    return weight.abs()
