"""Weights to and from PyTorch: `export` and `importing` are the two verbs, `names` the map between them."""
