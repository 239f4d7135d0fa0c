from onnx_obd.saliency.registry import criterion


@criterion("wanda")
def wanda(weight, input_norm):
    """s = |w| · ‖x‖₂, x being the input that the weight multiplies, over all samples (Sun et al. 2024, equation 1).

    The paper ranks within each output; here the scores are ranked as --scope says.
    """
    return weight.abs() * input_norm
