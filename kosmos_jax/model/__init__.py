"""KOSMOS-1 as pure model code: nothing here knows of meshes, batches on disk or optimizers.

Shapes are written as a suffix of the array's name, one letter for each dimension:

    B  rows of the batch          N  images of the batch, all rows together
    T  tokens in a row            Q  image tokens ("soft tokens") of one image
    S  keys to attend to          P  patches of one image, the class token included
    D  model width                L  layers
    H  heads                      V  vocabulary
    K  width of a head            F  hidden width of a feed-forward network

Read in this order: `positions`, `attention`, `decoder`, `vision`, `connector`, `kosmos`.
"""

from kosmos_jax.model.kosmos import STACKS, Kosmos, abstract_model, merge_images, parameters, with_parameters

__all__ = ["STACKS", "Kosmos", "abstract_model", "merge_images", "parameters", "with_parameters"]
