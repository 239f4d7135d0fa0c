from onnx_obd.saliency.registry import criterion


@criterion("per_input")
def per_input(weight, h_of_input):
    """s = ½ · h̄_k · w², h̄_k the mean curvature of the weights of input k."""
    return 0.5 * h_of_input * weight.square()
