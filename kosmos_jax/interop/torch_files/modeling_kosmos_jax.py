"""transformers' side of KOSMOS-1: `generate`, losses, saving and loading around the model of kosmos_torch.py."""

import torch
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from .configuration_kosmos_jax import KosmosJaxConfig
from .kosmos_torch import Kosmos, last_token

# transformers 5.24 renamed it, and will not take the old name for ever.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class KosmosJaxForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Text, images and sound in, text out; `KosmosJaxProcessor` makes the inputs.

    The images of a batch lie in one flat `pixel_values`, its clips of sound in `audio_values`, and `image_slots` says
    which of their vectors stands where: first those of all images, then those of all clips. So rows may have none or
    several, and `generate` repeats rows for its beams without repeating images.

    Attention is PyTorch's `scaled_dot_product_attention` ("sdpa"), which keeps no attention weights.
    """

    config_class = KosmosJaxConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # `num_items_in_batch` of transformers' Trainer
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer", "EncoderLayer", "XConnector", "Perceiver"]

    def __init__(self, config):
        super().__init__(config)
        self.model = Kosmos({"text": config.text, "perception": config.perception})
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embedding

    def set_input_embeddings(self, embedding):
        self.model.embedding = embedding

    def get_output_embeddings(self):
        """The tied head as a linear layer; its weight is the embedding's."""
        head = torch.nn.Linear(*reversed(self.model.embedding.weight.shape), bias=False, device="meta")
        head.weight = self.model.embedding.weight
        return head

    def set_output_embeddings(self, head):
        self.model.embedding.weight = head.weight

    def get_image_features(self, pixel_values):
        """The two stages of reading images, float[N, 3, H, W].

        Returns:
          `pooler_output`, float[N, Q, D]: the image vectors, which `forward` takes for `pixel_values`.
          `last_hidden_state`, float[N, P, d]: what the encoder gives to the connector.
        """
        image = self.model.image
        features = image.encoder(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=image.connector(features))

    def forward(
        self,
        input_ids=None,
        image_slots=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        segment_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        output_hidden_states=None,
        output_attentions=None,
        return_dict=None,
        cache=None,
        num_items_in_batch=None,
        audio_values=None,
    ):
        """Scores of the token after each.

        Args:
          input_ids: int64[B, T]; `<image>` where image vectors will stand.
          image_slots: int64[B, T], -1 for text, otherwise the number of a vector; see `Kosmos.read`.
          pixel_values: float[N, 3, H, W], the images of all rows in one buffer; or their vectors, float[N, Q, D].
          audio_values: int16[N, S], the clips of all rows at 16 kHz; or their vectors.
          attention_mask: int64[B, S], 0 for padding on either side; S counts the tokens in `past_key_values` too.
          position_ids, segment_ids: for rows that hold several documents, see kosmos_torch.py.
          past_key_values: transformers' `DynamicCache`, which takes up the T tokens; `use_cache` makes one.
          cache: another name of `past_key_values`, that of transformers since 5.24.
          inputs_embeds: float[B, T, D] in place of `input_ids`: vectors of `get_input_embeddings()`, or others.
          labels: int64[B, T], the tokens themselves, -100 where nothing is to be predicted; shifted here.
          logits_to_keep: only the last so many; 1 is the row's last token, even with padding behind it. 0 for all. A
            tensor says which, as indices.
          output_hidden_states: whether to return those of the decoder.
          num_items_in_batch: the loss is the sum over the tokens divided by this; None for their mean.

        Returns:
          `CausalLMOutputWithPast`; its logits are float[B, T, V], its hidden states L + 1 times float[B, T, D]: what
          each layer reads, and what the head reads.

        Raises:
          ValueError: inputs do not fit together, or ask for what is not here: attention weights (see the class) and
            caches of a fixed length.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_attentions or self.config.output_attentions:
            raise ValueError("output_attentions=True: the model does not keep attention weights")
        cache = past_key_values if cache is None else cache
        cache = DynamicCache() if use_cache and cache is None else cache
        if isinstance(cache, StaticCache):
            raise ValueError("a StaticCache is of a fixed length; this model takes a DynamicCache, the default")
        tokens, states, hooks = input_ids if inputs_embeds is None else inputs_embeds, [], []
        if output_hidden_states or (output_hidden_states is None and self.config.output_hidden_states):
            keep = lambda layer, inputs: states.append(inputs[0])  # noqa: E731
            hooks = [layer.register_forward_pre_hook(keep) for layer in self.model.decoder.layers]
        try:
            hidden = self.model.read(
                tokens,
                image_slots,
                {"image": pixel_values, "audio": audio_values},
                attention_mask,
                position_ids,
                segment_ids,
                cache=cache,
            )
        finally:
            for hook in hooks:
                hook.remove()
        states = (*states, hidden) if hooks else None
        if isinstance(logits_to_keep, torch.Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep == 1:
            hidden = last_token(hidden, attention_mask)
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.model.logits(hidden)
        loss = None
        if labels is not None:
            options = dict(vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch)
            loss = self.loss_function(logits=logits, labels=labels, **options)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=states, **{CACHE: cache})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids,
        image_slots=None,
        pixel_values=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        logits_to_keep=1,
        cache=None,
        output_hidden_states=None,
        output_attentions=None,
        segment_ids=None,
        audio_values=None,
        **kwargs,
    ):
        """The tokens that the cache does not hold, and the media if an item of them may stand there.

        Positions follow from the mask. Whatever transformers counts is for rows without padding.
        """
        if segment_ids is not None:
            raise ValueError("generate continues rows of one document each, without segment_ids")
        cache = past_key_values if cache is None else cache
        past = 0 if cache is None else int(cache.get_seq_length())
        if inputs_embeds is not None:  # the prompt; `input_ids` are what came after it, or both
            new = attention_mask.shape[1] - inputs_embeds.shape[1]
            new_ids = input_ids[:, input_ids.shape[1] - new :]
            tokens = torch.cat([inputs_embeds, self.model.embedding(new_ids)], dim=1)
        else:
            tokens = input_ids
        if image_slots is not None:
            if past < image_slots.shape[1]:
                image_slots = F.pad(image_slots, (0, tokens.shape[1] - image_slots.shape[1]), value=-1)[:, past:]
            else:
                image_slots = pixel_values = audio_values = None
        return {
            "input_ids" if inputs_embeds is None else "inputs_embeds": tokens[:, past:],
            **dict(image_slots=image_slots, pixel_values=pixel_values, audio_values=audio_values),
            **dict(attention_mask=attention_mask),
            **dict(past_key_values=cache, logits_to_keep=logits_to_keep),
            **dict(output_hidden_states=output_hidden_states, output_attentions=output_attentions),
        }

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """Repeats each row for its beams or samples. Media stay: the slots of all of a row's copies point at them."""
        media = {name: kwargs.pop(name, None) for name in ("pixel_values", "audio_values")}
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, {**kwargs, **media}
