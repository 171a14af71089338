"""Folders by path or by address: what a run writes and reads lies on a disk, or in a bucket of Google's.

`gs://` goes through gcsfs (kosmos_jax[gs]), and arrays through TensorStore. Left alone, etils would take TensorFlow's
client, which knows no other address of the service than Google's; gcsfs has STORAGE_EMULATOR_HOST for that, TensorStore
TENSORSTORE_GCS_HTTP_URL.
"""

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path

from kosmos_jax.errors import UserError

GS = "gs://"


def as_path(path, flag: str = ""):
    """The absolute pathlib.Path of a path, or the epath.Path of an address, which has the same methods.

    Args:
      path: "out/demo" or "gs://bucket/demo".
      flag: where it comes from, for messages.

    Raises:
      UserError: an address of another kind, or gcsfs is not installed.
    """
    said = f"{flag} {path}".lstrip()
    if "://" not in str(path):
        return Path(path).absolute()
    if not re.match(f"{GS}[^/]", str(path)):
        raise UserError(
            f"{said}: of addresses {GS}BUCKET/FOLDER alone is understood here; mount other buckets as folders, those "
            "of S3 by Mountpoint for Amazon S3 or s3fs-fuse"
        )
    from etils import epath
    from etils.epath import gpath

    os.environ.setdefault("EPATH_USE_TF", "false")
    with contextlib.suppress(AttributeError):
        gpath._is_tf_installed.cache_clear()  # etils reads the variable once, and has done so at its first path
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError(f"{said}: pip install 'kosmos_jax[gs]'") from error
    # What other processes and TensorStore write has to be seen.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(path)


def in_bucket(path) -> bool:
    return str(path).startswith(GS)


def storage_errors() -> tuple[type[Exception], ...]:
    """What disks and buckets raise, when they cannot be read or written."""
    if "gcsfs" not in sys.modules:
        return (OSError,)
    from aiohttp import ClientError
    from gcsfs.retry import HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return OSError, ClientError, HttpError, GoogleAPIError, GoogleAuthError


def remove_folder(folder) -> None:
    """Deletes a folder with all that is in it, as far as that can be done."""
    if not in_bucket(folder):
        return shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(*storage_errors()):
        folder.rmtree()
