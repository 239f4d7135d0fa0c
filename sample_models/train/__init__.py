"""Trains the networks in sample_models/ and writes them with their calibration data.

One module for each network, named as its file, with three functions: `load` (the data, split into a part to train on
and a part to test on), `train` (the trained network as an ONNX model) and `write_samples` (the folders and files beside
the model).
"""
