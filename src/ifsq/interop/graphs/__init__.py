"""A trained tokenizer as graphs that run where this package is not: ONNX files and programs of `torch.export`."""
