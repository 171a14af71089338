"""KOSMOS-1 as pure model code: nothing here knows of meshes, batches on disk or optimizers.

Shapes are written as a suffix of the array's name, one letter for each dimension:

    B  rows of the batch          N  items of one modality in the batch, all rows together
    T  tokens in a row            Q  vectors of one item in the decoder's stream
    S  keys to attend to          P  vectors that an encoder gives for one item (of an image: its patches)
    D  model width                M  vectors of all items of all modalities
    H  heads                      L  layers
    K  width of a head            V  vocabulary
    d  width of an encoder        F  hidden width of a feed-forward network

Read in this order: `positions`, `attention`, `decoder`, `perception`, `merging`, `kosmos`.
"""

from kosmos_jax.model.kosmos import Kosmos, abstract_model, parameters, stacks, with_parameters

__all__ = ["Kosmos", "abstract_model", "parameters", "stacks", "with_parameters"]
