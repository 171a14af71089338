"""From a config and a stream of batches to trained weights."""
