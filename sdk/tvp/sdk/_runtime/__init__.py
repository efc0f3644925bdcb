"""onnxruntime and tokenizers: what opens and runs the graphs of a base."""
