"""Items of media in a body: data URLs, base64, and files of named hosts; of bounded size before they are decoded."""

import base64
import binascii
import http.client
import io
import ipaddress
import socket
import ssl
import time
import urllib.parse
from dataclasses import dataclass

from PIL import Image

from data_pipeline.media.image import FORMATS
from kosmos_jax.errors import UserError

SECONDS, REDIRECTS = 10.0, 3
TRANSLATED = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16")  # NAT64, 6to4


@dataclass(frozen=True)
class Limits:
    """What a request may bring.

    Attributes:
      body: bytes of the request.
      item: bytes of an item's file.
      items: how many.
      text: characters of all texts.
      pixels: of an image; as RGB they take three bytes each, and some more on the way.
      hosts: names of hosts from which files are fetched; none by default.
    """

    body: int = 32 * 2**20
    item: int = 16 * 2**20
    items: int = 32
    text: int = 10**6
    pixels: int = 2**25
    hosts: frozenset[str] = frozenset()


def from_url(url, kind: str, limits: Limits) -> bytes:
    """The file of an item.

    Args:
      url: "data:image/png;base64,...", or https://NAMED_HOST/....
      kind: "image" or "audio".
      limits: see `Limits`.

    Raises:
      UserError: it is neither, too large, or cannot be fetched.
    """
    if not isinstance(url, str):
        raise UserError(f"the url of an {kind} must be a text")
    if url.startswith("data:"):
        head, comma, data = url.partition(",")
        if not comma or not head.endswith(";base64") or not head.startswith(f"data:{kind}/"):
            raise UserError(f"a data URL of an {kind} begins with data:{kind}/...;base64,")
        return from_base64(data, kind, limits)
    return fetch(url, kind, limits)


def from_base64(data, kind: str, limits: Limits) -> bytes:
    """The file of an item from base64; see `from_url`."""
    if not isinstance(data, str):
        raise UserError(f"the data of an {kind} must be a text in base64")
    if len(data) > limits.item * 4 / 3 + 4:
        raise UserError(f"an {kind} has more than {limits.item:,} bytes")
    try:
        file = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the data of an {kind} is no base64") from error
    return _of_bounded_size(file, kind, limits)


def _of_bounded_size(file: bytes, kind: str, limits: Limits) -> bytes:
    """The file, unless it is an image with too many pixels: a small file may have many."""
    if kind != "image":
        return file
    try:
        width, height = Image.open(io.BytesIO(file), formats=FORMATS).size  # reads the header alone
    except Exception:  # what is no image, the decoder explains
        return file
    if width * height > limits.pixels:
        raise UserError(f"an image has {width} x {height} pixels; at most {limits.pixels:,} are read")
    return file


def fetch(url: str, kind: str, limits: Limits) -> bytes:
    """A file of a named host, over redirects between such hosts; see `from_url`.

    The name is resolved once, every address has to be a public one, and that very address is dialled: what a second
    look at DNS would say does not matter.
    """
    end = time.monotonic() + SECONDS
    for _ in range(REDIRECTS + 1):
        parts = _parsed(url, kind)
        if parts.scheme not in ("http", "https") or not limits.hosts:
            raise UserError(f"this server fetches no {kind} from addresses; send it as a data URL")
        if parts.hostname not in limits.hosts:
            raise UserError(f"this server fetches no files of {parts.hostname}")
        try:
            answer, data = _get(parts, limits.item, end)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(f"an {kind} cannot be fetched from {parts.hostname}: {type(error).__name__}") from error
        if answer.status in (301, 302, 303, 307, 308):
            there = _parsed(answer.headers.get("Location", ""), kind)
            url = urllib.parse.urljoin(url, there.geturl())
            continue
        if answer.status != 200:
            raise UserError(f"an {kind} cannot be fetched from {parts.hostname}: status {answer.status}")
        if data is None:
            raise UserError(f"an {kind} of {parts.hostname} has more than {limits.item:,} bytes")
        return _of_bounded_size(data, kind, limits)
    raise UserError(f"an {kind} cannot be fetched: more than {REDIRECTS} redirects")


def _parsed(url: str, kind: str) -> urllib.parse.SplitResult:
    try:
        return urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"the url of an {kind} is none: {error}") from error


def public_address(host: str, port: int) -> str:
    """The first address of a host.

    Raises:
      UserError: one of its addresses is not public.
      OSError: it has none.
    """
    found = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        # Gateways send some addresses of IPv6 on to the one of IPv4 in them: that may be inside.
        translated = parsed.version == 6 and any(parsed in network for network in TRANSLATED)
        if not parsed.is_global or parsed.is_multicast or translated:
            raise UserError(f"{host} is no public host")
    return found[0]


def _get(parts, most: int, end: float):
    """(response, its bytes or None where they are too many)."""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = public_address(parts.hostname, port)

    def left():
        if (seconds := end - time.monotonic()) <= 0:
            raise TimeoutError
        return seconds

    sock = socket.create_connection((address, port), timeout=left())
    try:
        if secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = sock
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        connection.request("GET", target, headers={"User-Agent": "kosmos_jax", "Accept": "image/*,audio/*"})
        answer, data = connection.getresponse(), b""
        while len(data) <= most and answer.status == 200:
            sock.settimeout(left())
            if not (more := answer.read(65_536)):
                return answer, data
            data += more
        return answer, None
    finally:
        sock.close()
