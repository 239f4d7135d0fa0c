from onnx_obd.saliency.registry import criterion


@criterion("taylor")
def taylor(weight, squared_gradient):
    """s = w² · mean over samples of (∂L/∂w)²: the first-order change of each sample's loss, squared.

    Source: Molchanov et al. 2019, equation 8. It needs labels, as SNIP does.
    """
    return weight.square() * squared_gradient
