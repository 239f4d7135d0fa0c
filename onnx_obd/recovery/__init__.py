"""What deletion cost, won back: masked training towards the original's outputs."""

from onnx_obd.recovery.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from onnx_obd.recovery.trainable import trainable_weights
from onnx_obd.recovery.training import Recipe, State, Training

__all__ = ["Checkpoint", "Recipe", "State", "Training", "load_checkpoint", "save_checkpoint", "trainable_weights"]
