"""Optimal Brain Damage (Le Cun, Denker, Solla 1989), section 3, done again with onnx-obd."""
