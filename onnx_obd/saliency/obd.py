from onnx_obd.saliency.registry import criterion

DAMPING = 1.0
"""Added to every curvature, as a fraction of the mean over its tensor. A neuron that is silent on all samples passes no
curvature, so all weights into it would look free, and deleting its negative ones wakes it up."""


@criterion("obd")
def obd(weight, h):
    """s = ½ · (h + μ · mean(h)) · w²: the rise of the loss if the weight is deleted, to second order, damped.

    With μ = 0 it is the paper's saliency (Le Cun, Denker, Solla 1989, equation 5); μ is ``DAMPING``.
    """
    return 0.5 * (h + DAMPING * h.mean()) * weight.square()
