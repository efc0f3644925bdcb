"""The files of a bundle: one module reads and writes each of them.

manifest: what a task and its base say about themselves. layout: the order of what a model reads.
golden: PyTorch's answers that travel with a bundle. archive: a bundle as one `.tvp` file.
integrity: sizes and digests of files. external_data: the files that a graph reads its weights from.
tokenizer: the tokenizers of a base.
"""
