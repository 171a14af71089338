"""From a reader's documents to prepared shards, once: filtered, tokenized, media at the size that training wants.

    reader -> filters -> tokenizer -> shards -> ledger

Each shard of the reader is a job of its own, done or not done: whoever is killed and started again does what is
missing. `job.py` does one of them; `run.py` does all that are missing with a pool of processes, or one part of several;
`beam.py` with Apache Beam; `ledger.py` then writes the one file that a run reads.
"""
