from onnx_obd.saliency.registry import criterion


@criterion("obd_undamped")
def obd_undamped(weight, h):
    """s = ½ · h · w²: the rise of the loss if the weight is deleted, to second order and without cross terms.

    Source: Le Cun, Denker, Solla 1989, equation 5.
    """
    return 0.5 * h * weight.square()
