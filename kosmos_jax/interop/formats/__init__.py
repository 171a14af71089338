"""Foreign formats, one file each: names, config in both directions, and what it refuses."""

from collections.abc import Callable

from kosmos_jax.interop.formats import clip, kosmos2, ours, whisper
from kosmos_jax.interop.formats.base import ExportFormat, Opened, Source

# What `kosmos export --to` writes.
EXPORTS: dict[str, ExportFormat] = {
    "hf-kosmos2": kosmos2.EXPORT,
    "hf-remote-code": ours.REMOTE_CODE_EXPORT,
    "torch": ours.TORCH_EXPORT,
}
# What `kosmos import --from` reads; UserError where what lies there is plainly of another kind.
IMPORTS: dict[str, Callable[[Source], Opened]] = {
    "hf-kosmos2": kosmos2.opened,
    "clip": clip.opened,
    "whisper": whisper.opened,
    "hf-remote-code": ours.remote_code,
    "torch": ours.torch,
}
# Those that hold one encoder, and the modality that it is for.
ENCODER_FORMATS = {"clip": "image", "whisper": "audio"}
