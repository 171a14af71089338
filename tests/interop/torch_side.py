"""The same random weights in JAX and in our PyTorch module, and batches for both."""

import numpy as np
import torch

from kosmos_jax.interop import weights
from kosmos_jax.interop.torch_files import kosmos_torch

torch.set_num_threads(1)


def state_dict(params, convolution=False):
    """Our parameters as the state dict of kosmos_torch.Kosmos; see `weights.torch_names`."""

    def array(place):
        return np.asarray(params[place.path] if place.layer is None else params[place.path][place.layer])

    places = weights.torch_names(params, convolution)
    return {name: torch.from_numpy(place.to_torch(array(place)).copy()) for name, place in places.items()}


def torch_model(config, params):
    model = kosmos_torch.Kosmos(config.to_dict())
    model.load_state_dict(state_dict(params))
    return model.eval()


def interleaved_rows(config, seed=0, length=32):
    """Four rows: an image; two images and padding on the right; padding on the left and an image; text alone.

    Returns:
      int32[4, T] tokens, segments, positions and slots, and media: float32[N, H, W, 3], normalised images.
    """
    rng, q, size = np.random.default_rng(seed), config.perception.image.tokens, config.perception.image.shape[0]
    tokens = rng.integers(4, config.text.vocab_size, (4, length)).astype(np.int32)
    slots = np.full((4, length), -1, np.int32)
    for image, (row, start) in enumerate([(0, 5), (1, 1), (1, 3 + q), (2, 12)]):
        slots[row, start : start + q] = image * q + np.arange(q)
    segments = np.ones((4, length), np.int32)
    segments[1, -6:] = segments[2, :9] = 0
    tokens[segments == 0] = 1
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
    return tokens, segments, positions, slots, {"image": rng.standard_normal((4, size, size, 3)).astype(np.float32)}


def to_torch(tokens, segments, slots, media=None):
    """int64 and channels first: tokens, slots, media, mask."""
    ids = [torch.from_numpy(np.asarray(x)).long() for x in (tokens, slots, segments)]
    media = {name: torch.from_numpy(items.transpose(0, 3, 1, 2).copy()) for name, items in (media or {}).items()}
    return ids[0], ids[1], media, ids[2]


def difference(ours, theirs, real):
    """Largest difference at real tokens, as a share of the largest number there."""
    ours, theirs = np.asarray(ours)[real], np.asarray(theirs)[real]
    worst = np.abs(ours - theirs).max() / np.abs(ours).max()
    print(f"max diff {worst:.1e} of the scale")
    return worst
