from onnx_obd.saliency.registry import criterion


@criterion("factored")
def factored(weight, h, h_of_output, h_of_input):
    """s = ½ · h̄_r · h̄_k / h̄ · w²: curvature as a product of an output's and an input's, its two means over their own.

    The diagonal form of the Kronecker factorisation (Martens, Grosse 2015): exact where the squared inputs of a node
    and the curvature of its outputs are uncorrelated.
    """
    return 0.5 * h_of_output * h_of_input / h.mean().clamp_min(1e-30) * weight.square()
