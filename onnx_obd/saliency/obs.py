from onnx_obd.saliency.registry import criterion


@criterion("obs")
def obs(weight, h_of_surgeon):
    """s = w² / (2 · [H⁻¹]_qq): the rise of the loss if the others of the weight's output make up for its deletion.

    ``h_of_surgeon`` is 1 / [H⁻¹]_qq, the Hessian of an output's weights being its curvature times the Gram matrix of
    the inputs (see ``surgery/surgeon.py``). Source: Hassibi, Stork 1993, equation 5.
    """
    return 0.5 * h_of_surgeon * weight.square()
