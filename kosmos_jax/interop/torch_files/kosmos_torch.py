"""KOSMOS-1 in plain PyTorch: the model that kosmos_jax trains, in one file without other dependencies.

    model = load("exported")
    model.generate(tokens, slots, {"image": normalize(images), "audio": samples})

Shapes are written as a suffix of a tensor's name, one letter for each dimension:

    B  rows of the batch          N  items of one modality in the batch, all rows together
    T  tokens that are read now   Q  vectors of one item in the decoder's stream
    S  tokens read so far         P  vectors that an encoder gives for one item
    D  model width                H  heads
    K  width of a head            V  vocabulary

Read from the end: `Kosmos` is the complete model; `Decoder`, encoders and connectors are its parts. There are no
buffers: tables of positions are computed when they are needed, so nothing but weights is ever stored or moved. Initial
values are PyTorch's and not those of training: this file is for weights that were trained.
"""

import json
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

XPOS_SCALE_BASE = 512
# The order in which the vectors of a batch lie in one table; others come after these, by name.
MODALITIES = ("image", "audio")
# Of CLIP's training images, per colour channel, on a scale of 0 to 1.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# fairseq counts positions from padding_idx + 1, and padding_idx is 1.
SINUSOID_OFFSET = 2


def normalize(images_NHWC):
    """uint8[N, H, W, 3], squashed to the model's size by a bicubic filter -> float32[N, 3, H, W]."""
    mean, std = (torch.tensor(numbers, device=images_NHWC.device) for numbers in (PIXEL_MEAN, PIXEL_STD))
    return ((images_NHWC.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


class Cache:
    """Keys and values of what was read, by layer; transformers' `DynamicCache` has the same two methods."""

    def __init__(self):
        self.layers = {}

    def update(self, k_BHTK, v_BHTK, layer: int):
        """Puts T more tokens behind those of layer number `layer`; returns all of its: float[B, H, S, K], twice."""
        if layer in self.layers:
            old_k, old_v = self.layers[layer]
            k_BHTK, v_BHTK = torch.cat([old_k, k_BHTK], dim=2), torch.cat([old_v, v_BHTK], dim=2)
        self.layers[layer] = k_BHTK, v_BHTK
        return k_BHTK, v_BHTK

    def get_seq_length(self) -> int:
        """S, before the next update."""
        return self.layers[0][0].shape[2] if self.layers else 0


def causal_mask(segments_BS, queries: int):
    """bool[B, T, S]: the last T tokens of S may look at those of the same document that are not in the future.

    Padding, segment 0, looks at padding: the result is never used, and no row of the softmax is empty.
    """
    places = torch.arange(segments_BS.shape[1], device=segments_BS.device)
    past_TS = places[None] <= places[-queries:, None]
    return past_TS & (segments_BS[:, -queries:, None] == segments_BS[:, None])


def sinusoids(positions_BT, width: int):
    """float32[B, T, D]: fairseq's table, the sines of all frequencies and then the cosines."""
    half = width // 2
    # In float64, as in training; on the CPU, since not every device has it.
    frequency = torch.exp(torch.arange(half, dtype=torch.float64, device="cpu") * -(math.log(10000.0) / (half - 1)))
    angle = (positions_BT + SINUSOID_OFFSET).float()[..., None] * frequency.to(positions_BT.device, torch.float32)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def xpos_tables(positions_BT, head_width: int):
    """xPos: cosine and sine for queries, then for keys, scaled so that distance damps: float32[B, 1, T, K / 2] each."""
    pair = torch.arange(0, head_width, 2, dtype=torch.float64, device="cpu")
    theta = 10000.0 ** (-pair / head_width)
    zeta = (pair + 0.4 * head_width) / (1.4 * head_width)
    theta, log_zeta = (x.to(positions_BT.device, torch.float32) for x in (theta, zeta.log()))
    position = positions_BT.float()[:, None, :, None]
    angle, scale = position * theta, torch.exp(position / XPOS_SCALE_BASE * log_zeta)
    return angle.cos() * scale, angle.sin() * scale, angle.cos() / scale, angle.sin() / scale


def xpos_limit(dtype) -> int:
    """Positions from 0 before keys, up to 3.5^(n / 512) times as large at position n, leave the range of `dtype`."""
    return int(XPOS_SCALE_BASE * math.log(torch.finfo(dtype).max / 32) / math.log(3.5))


def rotate(x_BHTK, cos, sin):
    """Turns each adjacent pair (x_2i, x_2i+1) by its angle, in float32 (the scale spans orders of magnitude)."""
    even, odd = x_BHTK[..., 0::2].float(), x_BHTK[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x_BHTK.dtype)


class Attention(nn.Module):
    """Multi-head attention; `inner_norm` is sub-LN's LayerNorm between the heads and the output."""

    def __init__(self, width, heads, bias=True, key_bias=True, inner_norm=False, dropout=0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(width, width, bias=bias and (key_bias or name != "key")))
        self.inner_norm = nn.LayerNorm(width) if inner_norm else nn.Identity()

    def split(self, x_BTD):
        """float[B, H, T, K]"""
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x_BTD, context_BSD, mask_BTS=None, xpos=None, cache=None, layer=0):
        """Attention of `x` over `context`: float[B, T, D].

        Args:
          mask_BTS: bool[B, T, S], True where a query may look; None for everywhere.
          xpos: see `xpos_tables`; None for no rotation.
          cache, layer: `Cache`, or transformers', and this layer's number in it; keys are kept rotated.
        """
        q = self.split(self.query(x_BTD))
        k, v = self.split(self.key(context_BSD)), self.split(self.value(context_BSD))
        if xpos is not None:
            q, k = rotate(q, *xpos[:2]), rotate(k, *xpos[2:])
        if cache is not None:
            k, v = cache.update(k, v, layer)
        mask = None if mask_BTS is None else mask_BTS[:, None]
        heads_BHTK = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out(self.inner_norm(heads_BHTK.transpose(1, 2).flatten(2)))


class DecoderLayer(nn.Module):
    """Pre-LN with two more LayerNorms inside (sub-LN): Magneto, arXiv 2210.06423."""

    def __init__(self, config):
        super().__init__()
        width, ffn = config["width"], config["ffn"]
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, config["heads"], inner_norm=True, dropout=config["attention_dropout"])
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.ffn_inner_norm = nn.LayerNorm(ffn)
        self.dropout = nn.Dropout(config["dropout"])

    def forward(self, x_BTD, mask_BTS, xpos, cache, layer):
        normed_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed_BTD, normed_BTD, mask_BTS, xpos, cache, layer))
        return x_BTD + self.dropout(self.fc2(self.ffn_inner_norm(F.gelu(self.fc1(self.ffn_norm(x_BTD))))))


class Checkpointing(nn.Module):
    """A tower whose layers may be computed again in the backward pass; transformers sets the flag where it finds it."""

    gradient_checkpointing = False

    def run(self, layer, x, *args, once=False):
        """layer(x, *args), `once` if it fills a cache; not reentrant, or a layer after frozen ones is not trained."""
        if self.gradient_checkpointing and self.training and not once:
            return checkpoint(layer, x, *args, use_reentrant=False)
        return layer(x, *args)


class Decoder(Checkpointing):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config["layers"]))
        self.final_norm = nn.LayerNorm(config["width"])

    def forward(self, x_BTD, mask_BTS, positions_BT, cache=None):
        """float[B, T, D], embedded tokens -> float[B, T, D] after the final LayerNorm."""
        head_width = self.config["width"] // self.config["heads"]
        xpos = None if self.config["positions"] == "sinusoidal" else xpos_tables(positions_BT, head_width)
        for i, layer in enumerate(self.layers):
            x_BTD = self.run(layer, x_BTD, mask_BTS, xpos, cache, i, once=cache is not None)
        return self.final_norm(x_BTD)


class EncoderLayer(nn.Module):
    """Pre-LN, of CLIP and of Whisper."""

    def __init__(self, config, quick_gelu=False, key_bias=True):
        super().__init__()
        width, ffn = config["width"], config["ffn"]
        self.quick_gelu = quick_gelu
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, config["heads"], key_bias=key_bias)
        self.norm2 = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x_NPD):
        normed_NPD = self.norm1(x_NPD)
        x_NPD = x_NPD + self.attention(normed_NPD, normed_NPD)
        hidden = self.fc1(self.norm2(x_NPD))
        return x_NPD + self.fc2(hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden))


class Clip(Checkpointing):
    """CLIP's vision transformer; LayerNorm on all tokens at the end, then unit length for each."""

    def __init__(self, config, shape):
        super().__init__()
        width, self.size, self.patch_size = config["width"], shape[0], config["patch_size"]
        patches = (self.size // self.patch_size) ** 2
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(patches + 1, width) * width**-0.5)
        self.patch = nn.Linear(3 * self.patch_size**2, width, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        quick = config["activation"] == "quick_gelu"
        self.layers = nn.ModuleList(EncoderLayer(config, quick_gelu=quick) for _ in range(config["layers"]))
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pixels_NCHW):
        """float[N, 3, H, W], normalised -> float[N, P, d], unit vectors, the class token's first."""
        n, size = len(pixels_NCHW), self.patch_size
        if pixels_NCHW.shape[1:] != (3, self.size, self.size) or not pixels_NCHW.is_floating_point():
            found, expected = f"{pixels_NCHW.dtype}{list(pixels_NCHW.shape)}", f"float[N, 3, {self.size}, {self.size}]"
            raise ValueError(f"images are {found}, and this model reads {expected}, normalised")
        tiles = pixels_NCHW.to(self.positions.dtype).unflatten(3, (-1, size)).unflatten(2, (-1, size))
        x_NPD = self.patch(torch.einsum("nchpwq->nhwpqc", tiles).reshape(n, len(self.positions) - 1, 3 * size**2))
        x_NPD = torch.cat([self.class_token.to(x_NPD.dtype).expand(n, 1, -1), x_NPD], dim=1)
        x_NPD = self.ln_pre(x_NPD + self.positions)
        for layer in self.layers:
            x_NPD = self.run(layer, x_NPD)
        x_NPD = self.ln_post(x_NPD)
        return F.normalize(x_NPD.float(), dim=-1).to(x_NPD.dtype)


def log_mel(samples_NS, bins: int):
    """int16[N, S] at 16 kHz, or float from -1 to 1 -> float32[N, bins, S / 160], as Whisper reads it.

    log10 of the power on Slaney's mel scale, at most 8 below the loudest place of the clip, scaled by (x + 4) / 4.
    """
    x_NS = samples_NS.float() if samples_NS.is_floating_point() else samples_NS.float() / 32768
    device, mels = x_NS.device, torch.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), bins + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, 200 * mels / 3, 1000 * torch.exp((mels - 15) * math.log(6.4) / 27))
    frequency = torch.linspace(0, 8000, 201, dtype=torch.float64)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0) * 2 / (edges[2:] - edges[:-2])
    frames = F.pad(x_NS[:, None], (200, 200), mode="reflect")[:, 0].unfold(1, 400, 160)[:, :-1]
    power = torch.fft.rfft(frames * torch.hann_window(400, device=device)).abs() ** 2
    log = (power @ filters.to(device, torch.float32)).clamp(min=1e-10).log10()
    return ((torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4).transpose(1, 2)


class Whisper(Checkpointing):
    """Whisper's encoder for clips of one length; positions are computed."""

    def __init__(self, config, shape):
        super().__init__()
        self.samples, self.bins, width = shape[0], config["mel_bins"], config["width"]
        self.conv1 = nn.Conv1d(self.bins, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(EncoderLayer(config, key_bias=False) for _ in range(config["layers"]))
        self.ln_post = nn.LayerNorm(width)

    def forward(self, samples_NS):
        """int16[N, S], or float from -1 to 1, at 16 kHz, silence after a clip's end -> float[N, P, d]."""
        if samples_NS.shape[1:] != (self.samples,):
            raise ValueError(f"clips are {list(samples_NS.shape)}, and this model reads [N, {self.samples}]")
        x_NdT = log_mel(samples_NS, self.bins).to(self.conv1.weight.dtype)
        x_NPd = F.gelu(self.conv2(F.gelu(self.conv1(x_NdT)))).transpose(1, 2)
        half = x_NPd.shape[2] // 2
        rates = torch.exp(torch.arange(half, device="cpu") * -(math.log(10_000) / (half - 1)))
        angle = torch.arange(x_NPd.shape[1], device="cpu").float()[:, None] * rates
        x_NPd = x_NPd + torch.cat([angle.sin(), angle.cos()], dim=1).to(x_NPd)
        for layer in self.layers:
            x_NPd = self.run(layer, x_NPd)
        return self.ln_post(x_NPd)


class XConnector(nn.Module):
    """The connector of the released Kosmos models: learned queries attend to [features; queries], once."""

    def __init__(self, config, tokens, encoder_width, width):
        super().__init__()
        self.dense = nn.Linear(encoder_width, width)
        self.queries = nn.Parameter(torch.randn(tokens, width))
        self.attention = Attention(width, config["heads"], dropout=config["dropout"])

    def forward(self, features_NPd):
        """float[N, P, d] -> float[N, Q, D]."""
        features_NPD = self.dense(features_NPd)
        queries_NQD = self.queries.to(features_NPD.dtype).expand(len(features_NPD), -1, -1)
        return self.attention(queries_NQD, torch.cat([features_NPD, queries_NQD], dim=1))


class PerceiverLayer(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.features_norm = nn.LayerNorm(width)
        self.queries_norm = nn.LayerNorm(width)
        self.attention = Attention(width, config["heads"], bias=False, dropout=config["dropout"])
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x_NQD, features_NPD):
        queries_NQD = self.queries_norm(x_NQD)
        context = torch.cat([self.features_norm(features_NPD), queries_NQD], dim=1)
        x_NQD = x_NQD + self.attention(queries_NQD, context)
        return x_NQD + self.fc2(F.gelu(self.fc1(self.ffn_norm(x_NQD))))


class Perceiver(nn.Module):
    """Flamingo's resampler (arXiv 2204.14198, A.1.1) after a linear map to the decoder's width."""

    def __init__(self, config, tokens, encoder_width, width):
        super().__init__()
        self.dense = nn.Linear(encoder_width, width)
        self.queries = nn.Parameter(torch.randn(tokens, width))
        self.layers = nn.ModuleList(PerceiverLayer(config, width) for _ in range(config["layers"]))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, features_NPd):
        """float[N, P, d] -> float[N, Q, D]."""
        features_NPD = self.dense(features_NPd)
        x_NQD = self.queries.to(features_NPD.dtype).expand(len(features_NPD), -1, -1)
        for layer in self.layers:
            x_NQD = layer(x_NQD, features_NPD)
        return self.final_norm(x_NQD)


ENCODERS = {"clip": Clip, "whisper": Whisper}
CONNECTORS = {"xconnector": XConnector, "perceiver": Perceiver}


class Perception(nn.Module):
    """One modality: an encoder, then a connector."""

    def __init__(self, config, width):
        super().__init__()
        encoder, connector = config["encoder"], config["connector"]
        self.encoder = ENCODERS[encoder["kind"]](encoder, config["shape"])
        self.connector = CONNECTORS[connector["kind"]](connector, config["tokens"], encoder["width"], width)

    def forward(self, items):
        """What the encoder reads -> float[N, Q, D]; vectors that this made before pass as they are."""
        if items.shape[1:] == self.connector.queries.shape:
            return items
        return self.connector(self.encoder(items))


class Kosmos(nn.Module):
    """Tokens and media to scores; `config` is a dictionary with the sections "text" and "perception"."""

    def __init__(self, config):
        super().__init__()
        self.config, text = config, config["text"]
        self.embedding = nn.Embedding(text["vocab_size"], text["width"])
        order = {name: place for place, name in enumerate(MODALITIES)}
        self.modalities = sorted(config["perception"], key=lambda name: (order.get(name, len(order)), name))
        for name in self.modalities:
            setattr(self, name, Perception(config["perception"][name], text["width"]))
        self.dropout = nn.Dropout(text["dropout"])
        self.decoder = Decoder(text)

    def encode(self, media):
        """The same media as float[N, Q, D] each, as the decoder's stream wants them, to be given again and again."""
        return {name: getattr(self, name)(items) for name, items in media.items()}

    def embed(self, tokens, slots_BT, media, positions_BT):
        """Vectors of tokens and items in one stream, scaled by sqrt(D) (the items too), with positions added."""
        width = self.config["text"]["width"]
        media = {name: items for name, items in (media or {}).items() if items is not None and len(items)}
        if unknown := media.keys() - set(self.modalities):
            raise ValueError(f"media are {sorted(unknown)}, and this model reads {self.modalities}")
        x_BTD = tokens if tokens.ndim == 3 else self.embedding(tokens)
        if slots_BT is not None and (slots_BT.shape != x_BTD.shape[:2] or slots_BT.dtype == torch.bool):
            raise ValueError(f"slots are {slots_BT.dtype}{list(slots_BT.shape)}, tokens int{list(x_BTD.shape[:2])}")
        if media and slots_BT is None:
            raise ValueError("there are media and no slots that say where they stand")
        elif media:
            vectors = self.encode({name: media[name] for name in self.modalities if name in media})
            vectors_MD = torch.cat([vectors_NQD.flatten(0, 1) for vectors_NQD in vectors.values()])
            picked_BTD = vectors_MD[slots_BT.clamp(min=0)]
            # No write into the embeddings: they may be leaves that need gradients, as for LoRA.
            x_BTD = torch.where((slots_BT >= 0)[..., None], picked_BTD.to(x_BTD.dtype), x_BTD)
        elif slots_BT is not None and (slots_BT >= 0).any():
            raise ValueError("slots ask for media and there are none; give media, or slots of -1")
        x_BTD = x_BTD * math.sqrt(width)
        if self.config["text"]["positions"] != "xpos":
            x_BTD = x_BTD + sinusoids(positions_BT, width).to(x_BTD.dtype)
        return self.dropout(x_BTD)

    def read(
        self, tokens, slots=None, media=None, attention_mask=None, position_ids=None, segment_ids=None, cache=None
    ):
        """Hidden states after the final LayerNorm; `logits` turns them into scores.

        Args:
          tokens: int[B, T], or their vectors of `embedding`, float[B, T, D]; what is in an item's slot does not matter.
          slots: int[B, T], -1 for text, otherwise the number of a vector: those of the batch's first image, Q of them,
            then of its second, after all images those of the sounds. None for text.
          media: by modality, what its encoder reads ("image": float[N, 3, H, W], see `normalize`), or what `encode`
            made of it.
          attention_mask: int[B, S], 1 for a token and 0 for padding, wherever it stands, for all that was read before
            (see `cache`) and the T tokens. None for no padding.
          position_ids: int[B, T]; None counts each document's own tokens from 0.
          segment_ids: int[B, S] in place of `attention_mask` when rows hold several documents that do not see each
            other: 1, 2, ... by document.
          cache: `Cache` or transformers' `DynamicCache`; takes up the T tokens.

        Returns:
          float[B, T, D].
        """
        rows, count = tokens.shape[:2]
        length = count + (0 if cache is None else int(cache.get_seq_length()))
        segments_BS = attention_mask if segment_ids is None else segment_ids
        if segments_BS is None:
            segments_BS = tokens.new_ones(rows, length)
        if segments_BS.shape != (rows, length):
            raise ValueError(f"a mask of {tuple(segments_BS.shape)} for {rows} rows of {length} tokens, cache included")
        mask_BTS = causal_mask(segments_BS, count)
        # A token sees those before it in its document and itself: that counts its position, through any padding.
        positions_BT = mask_BTS.sum(-1) - 1 if position_ids is None else position_ids
        x_BTD = self.embed(tokens, slots, media, positions_BT)
        most = math.inf if self.config["text"]["positions"] == "sinusoidal" else xpos_limit(x_BTD.dtype)
        # Positions counted here are below the length; to look at others a device has to be waited for.
        if (length > most or position_ids is not None) and (positions_BT.abs() >= most).any():
            farthest = positions_BT.abs().max()
            raise ValueError(f"position {farthest}; with xPos in {x_BTD.dtype} the last one is {most - 1}")
        return self.decoder(x_BTD, mask_BTS, positions_BT, cache)

    def logits(self, hidden):
        """float[..., D] -> float[..., V]."""
        return F.linear(hidden, self.embedding.weight)

    def forward(self, *args, **kwargs):
        """As `read`, but the scores of the token after each: float[B, T, V]."""
        return self.logits(self.read(*args, **kwargs))

    @torch.no_grad()
    def generate(
        self, tokens, slots=None, media=None, attention_mask=None, max_new_tokens=64, *, eos=2, pad=1, forbidden=()
    ):
        """The most likely tokens, int[B, G]: `eos` ends a row, `pad` fills it after that, `forbidden` ids never come.

        The other arguments are those of `read`; padding may stand on either side.
        """
        mask = tokens.new_ones(tokens.shape[:2]) if attention_mask is None else attention_mask
        cache, chosen_BG = Cache(), tokens.new_empty(len(tokens), 0, dtype=torch.long)
        ended_B = tokens.new_zeros(len(tokens), dtype=torch.bool)
        while chosen_BG.shape[1] < max_new_tokens and not ended_B.all():
            last_B1D = last_token(self.read(tokens, slots, media, mask, cache=cache), mask)
            logits_BV = self.logits(last_B1D[:, 0]).float()
            logits_BV[:, list(forbidden)] = -torch.inf
            tokens, slots, media = torch.where(ended_B, pad, logits_BV.argmax(-1))[:, None], None, None
            chosen_BG, mask = torch.cat([chosen_BG, tokens], dim=1), torch.cat([mask, torch.ones_like(tokens)], dim=1)
            ended_B = ended_B | (tokens[:, 0] == eos)
        return chosen_BG


def last_token(hidden_BTD, attention_mask=None):
    """float[B, 1, D]: the hidden state of each row's last token, before any padding on the right."""
    if attention_mask is None:
        return hidden_BTD[:, -1:]
    real_BT = attention_mask[:, -hidden_BTD.shape[1] :] > 0
    last_B = (real_BT * torch.arange(real_BT.shape[1], device=real_BT.device)).argmax(1)
    return hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B][:, None]


def load(directory) -> Kosmos:
    """The model of an export (`kosmos export --to torch`), in the dtype of its weights, ready for inference."""
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = Kosmos(json.loads(Path(directory, "config.json").read_text())["model"])
    files = Path(directory).glob("model*.safetensors")
    model.load_state_dict({name: tensor for file in files for name, tensor in load_file(file).items()}, assign=True)
    return model.eval()
