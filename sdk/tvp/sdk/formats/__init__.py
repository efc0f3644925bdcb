"""The files of a bundle: one module reads and writes each of them.

manifest: the facts about a task and its base. layout: the order of the text that a model reads.
golden: PyTorch's answers that travel with a bundle. archive: a bundle as one `.tvp` file.
moments: which features are usual of the pictures that a bundle was made for.
integrity: sizes and digests of files. graph: what a graph reads and runs.
tokenizer: the tokenizers of a base. temporary: files that are there whole or not at all. strict_json: JSON that every
reader takes.
"""
