"""The model of Kosmos-2 (arXiv 2306.14824) as released: sinusoidal positions, and ids for grounding."""

from configs import kosmos1


def get_config():
    config = kosmos1.get_config()
    config.name = "kosmos2"
    config.model.text.positions = "sinusoidal"
    config.model.text.vocab_size = 65_037  # 6 tags of grounding and 32 x 32 places in an image more than KOSMOS-1
    config.data.tokenizer.kosmos2_tags = True
    return config
