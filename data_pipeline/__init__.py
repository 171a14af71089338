"""From corpora to packed batches, in this order:

    readers -> documents -> prepare (filters, tokenizer) -> shards        once
    shards -> plan -> mixture -> pipeline                                 in every run

All state of a run's data is the number of the step: the global batch of step N is a pure function of
(config, seed, N). TensorFlow is imported only when it reads data (`pipeline`, `readers/tfds.py`); documents, the
tokenizer and the code of media come without it, because inference uses them too.
"""
