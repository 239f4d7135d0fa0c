from onnx_obd.saliency.registry import criterion


@criterion("per_output")
def per_output(weight, h_of_output):
    """s = ½ · h̄_r · w², h̄_r the mean curvature of the weights of output r: what noise there is in h averages out."""
    return 0.5 * h_of_output * weight.square()
