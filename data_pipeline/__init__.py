"""From data on disk to packed batches, in this order:

    sources -> documents -> tokenizer -> plan -> mixture -> pipeline

All state of the pipeline is the number of the step: the global batch of step N is a pure function of
(config, seed, N). TensorFlow is imported only when data is read (`pipeline`, `tfds_source`, a `folder` in a bucket);
documents, the tokenizer and the code of media come without it, because inference uses them too.
"""
