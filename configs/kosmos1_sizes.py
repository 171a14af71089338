"""KOSMOS-1 smaller and larger: `--config configs/kosmos1_sizes.py:7b`.

Decoders have the shapes of GPT-3 (arXiv 2005.14165, table 2.1), the largest that of OPT-30B (arXiv 2205.01068); vision
towers those of CLIP with published weights: OpenAI's B/16 and L/14, OpenCLIP's H/14 and bigG/14. Peak learning rates
are GPT-3's, which for 1.3B is the paper's own 2e-4. The smallest decoder is ours: most of it is the vocabulary.
"""

from typing import NamedTuple

from configs import kosmos1


class Tower(NamedTuple):
    patch_size: int
    width: int
    layers: int
    heads: int
    ffn: int
    activation: str


B16 = Tower(16, 768, 12, 12, 3072, "quick_gelu")
L14 = Tower(14, 1024, 24, 16, 4096, "quick_gelu")
H14 = Tower(14, 1280, 32, 16, 5120, "gelu")
BIGG14 = Tower(14, 1664, 48, 16, 8192, "gelu")


class Size(NamedTuple):
    width: int
    layers: int
    heads: int
    vision: Tower
    learning_rate: float


SIZES = {
    "0.1b": Size(512, 8, 8, B16, 6e-4),
    "0.4b": Size(768, 12, 12, L14, 6e-4),
    "1.6b": Size(2048, 24, 32, L14, 2e-4),
    "7b": Size(4096, 32, 32, H14, 1.2e-4),
    "30b": Size(7168, 48, 56, BIGG14, 1e-4),
}


def get_config(size: str):
    if size not in SIZES:
        raise ValueError(f"size {size!r} is none of {', '.join(SIZES)}")
    shape, config = SIZES[size], kosmos1.get_config()
    config.name = f"kosmos1_{size}"
    config.model.text.update(width=shape.width, layers=shape.layers, heads=shape.heads, ffn=4 * shape.width)
    config.model.perception.image.encoder.update(shape.vision._asdict())
    config.model.perception.image.connector.heads = shape.heads
    config.training.optimizer.learning_rate = shape.learning_rate
    return config
