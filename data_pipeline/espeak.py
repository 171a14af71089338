"""eSpeak NG says words: the library and its voices come with the package espeakng-loader.

It runs in a process of its own, `python -m data_pipeline.espeak`. The library has one state for all threads, which goes
from each clip into the next, and its licence is the GPL; and a voice it does not have can end the process.
"""

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from data_pipeline.documents import DataError

# Of espeak-ng/speak_lib.h.
SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
RATE, PITCH, RANGE = 1, 3, 4


class Saying(NamedTuple):
    """What is said, and how.

    Attributes:
      text: English.
      voice: an accent and a variant, "en-us+f2".
      rate: words a minute; 175 is usual.
      pitch: 0 to 99; 50 is the voice's own.
      range: of the pitch, 0 to 99.
    """

    text: str
    voice: str
    rate: int
    pitch: int
    range: int


def say(sayings: Sequence[Saying]) -> tuple[int, list[bytes]]:
    """The sample rate in hertz, and each clip's samples: int16, one channel, the machine's byte order.

    The same list gives the same samples; a part of it need not, because a clip begins where the one before it ended.

    Raises:
      DataError: the package is not installed, or the library failed; the message has its last line.
    """
    command = [sys.executable, "-m", "data_pipeline.espeak"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(command, input=pickle.dumps(list(sayings)), capture_output=True, env=environment)
    if ended.returncode:
        *_, why = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {ended.returncode}"]
        hint = ": pip install 'kosmos_jax[speech]'" if "espeakng_loader" in why else ""
        raise DataError(f"eSpeak NG, which speaks the built-in digits, failed ({why}){hint}")
    return pickle.loads(ended.stdout)


def _say(sayings: list[Saying]) -> tuple[int, list[bytes]]:
    import espeakng_loader

    data = espeakng_loader.get_data_path()
    for voice in {saying.voice for saying in sayings}:
        if not os.path.isfile(
            os.path.join(data, "voices", "!v", voice.partition("+")[2])
        ):  # passed over by the library
            raise RuntimeError(f"there is no voice {voice}")
    library, heard = ctypes.CDLL(espeakng_loader.get_library_path()), []
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
    if rate <= 0:
        raise RuntimeError(f"espeak_Initialize returned {rate}")

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def hear(samples, n, events):
        if samples and n > 0:
            heard.append(ctypes.string_at(samples, 2 * n))
        return 0

    library.espeak_SetSynthCallback(hear)
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    library.espeak_Synth.argtypes = (
        *(ctypes.c_char_p, ctypes.c_size_t, number, ctypes.c_int),
        *(number, number, pointer, pointer),
    )
    clips = []
    for saying in sayings:
        heard.clear()
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of breath and roughness; by itself it takes the time of day
        if error := library.espeak_SetVoiceByName(saying.voice.encode()):
            raise RuntimeError(f"there is no voice {saying.voice}, error {error}")
        for parameter, value in ((RATE, saying.rate), (PITCH, saying.pitch), (RANGE, saying.range)):
            library.espeak_SetParameter(parameter, value, 0)
        text = saying.text.encode()
        if error := library.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8, None, None):
            raise RuntimeError(f"espeak_Synth returned {error} for {saying}")
        clips.append(b"".join(heard))
    return rate, clips


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(_say(pickle.load(sys.stdin.buffer))))
