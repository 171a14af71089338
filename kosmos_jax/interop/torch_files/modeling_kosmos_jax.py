"""transformers' side of KOSMOS-1: `generate`, losses, saving and loading around the model of kosmos_torch.py."""

from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_kosmos_jax import KosmosJaxConfig
from .kosmos_torch import Kosmos, last_token


class KosmosJaxForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Text and images in, text out; `KosmosJaxProcessor` makes the inputs.

    The images of a batch lie in one flat `pixel_values`, and `image_slots` says which of their vectors stands where.
    So rows may have none or several, and `generate` repeats rows for its beams without repeating images.
    """

    config_class = KosmosJaxConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer", "VisionLayer", "XConnector", "Perceiver"]

    def __init__(self, config):
        super().__init__(config)
        self.model = Kosmos({"text": config.text, "vision": config.vision, "connector": config.connector})
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embedding

    def set_input_embeddings(self, embedding):
        self.model.embedding = embedding

    def forward(
        self,
        input_ids,
        image_slots=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        segment_ids=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
        cache=None,
        **kwargs,
    ):
        """Scores of the token after each.

        Args:
          input_ids: int64[B, T]; `<image>` where image vectors will stand.
          image_slots: int64[B, T], -1 for text, otherwise n * Q + q: the q-th vector of the batch's n-th image.
          pixel_values: float[N, 3, H, W], the images of all rows in one buffer; or vectors from `model.encode_images`.
          attention_mask: int64[B, S], 0 for padding on either side; S counts the tokens in `past_key_values` too.
          position_ids, segment_ids: for rows that hold several documents, see kosmos_torch.py.
          past_key_values: transformers' `DynamicCache`, which takes up the T tokens; `use_cache` makes one.
          cache: what transformers calls `past_key_values` since 5.24.
          labels: int64[B, T], the tokens themselves, -100 where nothing is to be predicted; shifted here.
          logits_to_keep: only the last so many; 1 is the row's last token, even with padding behind it. 0 for all.

        Returns:
          `CausalLMOutputWithPast` with float[B, T, V] logits.
        """
        cache = past_key_values if cache is None else cache
        cache = DynamicCache() if use_cache and cache is None else cache
        hidden = self.model.read(
            input_ids, image_slots, pixel_values, attention_mask, position_ids, segment_ids, cache=cache
        )
        if logits_to_keep == 1:
            hidden = last_token(hidden, attention_mask)
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.model.logits(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(
        self,
        input_ids,
        image_slots=None,
        pixel_values=None,
        attention_mask=None,
        past_key_values=None,
        logits_to_keep=1,
        cache=None,
        **kwargs,
    ):
        """The tokens that the cache does not hold, and the images if one of them may stand there.

        Positions follow from the mask. Whatever transformers counts is for rows without padding.
        """
        cache = past_key_values if cache is None else cache
        past = 0 if cache is None else int(cache.get_seq_length())
        if image_slots is not None:
            if past < image_slots.shape[1]:
                image_slots = F.pad(image_slots, (0, input_ids.shape[1] - image_slots.shape[1]), value=-1)[:, past:]
            else:
                image_slots = pixel_values = None
        return dict(
            input_ids=input_ids[:, past:],
            image_slots=image_slots,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            past_key_values=cache,
            logits_to_keep=logits_to_keep,
        )

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """Repeats each row for its beams or samples. Images stay: the slots of all of a row's copies point at them."""
        pixel_values = kwargs.pop("pixel_values", None)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, {**kwargs, "pixel_values": pixel_values}
