"""What deletion cost, won back: masked training towards the original's outputs."""

from onnx_obd.recovery.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from onnx_obd.recovery.composed import Composer
from onnx_obd.recovery.trainable import trainable_weights
from onnx_obd.recovery.training import LEARNING_RATES, MINIBATCH, Recipe, State, Training

__all__ = [
    "LEARNING_RATES",
    "MINIBATCH",
    "Checkpoint",
    "Composer",
    "Recipe",
    "State",
    "Training",
    "load_checkpoint",
    "save_checkpoint",
    "trainable_weights",
]
