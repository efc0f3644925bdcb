"""Tiny real models: how they are made, taught and measured; their weights lie in the folders beside."""
