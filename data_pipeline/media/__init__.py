"""The host side of each modality: from the bytes of a file to the array that travels to the device.

A modality is a module (or any object) with

    SUFFIXES                     of files that people name in prompts: (".png", ...)
    FORMS                        what `read` takes, in words
    AUGMENT                      options of training's transform with the values that change nothing: dict(rotate=0.0)
    decode(data, where)          bytes -> decoded; MediaError names `where`
    read(value, where)           what people hold (an array, an object of a library) -> decoded, or None: not mine
    item(decoded, shape, draws=None, **augment)
                                 -> the array of a batch. Without draws as at inference; with float64[DRAWS], uniform in
                                 [0, 1), as in training: a pure function of its arguments.
    stored(data, decoded, shape, **augment)
                                 -> the bytes of a file that gives items of this shape as well and is read faster
    problems(augment)            -> messages on options of a source that cannot be, each "key is value; ..."
"""

import importlib

# Uniform numbers that decide an item's augmentation.
DRAWS = 4
# A name and the module, which is imported when the modality is used; another modality adds its own entry.
MEDIA = {"image": "data_pipeline.media.image", "audio": "data_pipeline.media.audio"}


def host(name: str):
    """The host side of a modality.

    Raises:
      KeyError: `MEDIA` has no such name.
    """
    side = MEDIA[name]
    return importlib.import_module(side) if isinstance(side, str) else side
