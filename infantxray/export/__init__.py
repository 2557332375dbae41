"""Export of a stage-two model: ONNX, StableHLO, PyTorch weights, model card and reader page."""
