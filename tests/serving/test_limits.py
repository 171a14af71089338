"""What strangers may send: files of other hosts, and bodies that make no sense."""

import http.server
import json
import os
import socket
import threading

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kosmos_jax.errors import UserError
from kosmos_jax.serving import media
from tests.serving.test_server import idle

ALLOWED = media.Limits(hosts=frozenset({"pictures.example", "other.example"}), item=1000)
PUBLIC = "93.184.216.34"


def resolver(addresses):
    """A getaddrinfo that knows some names, and counts how often it is asked."""
    asked = []

    def getaddrinfo(host, port, **_):
        asked.append(host)
        found = addresses[host]
        found = found.pop(0) if isinstance(found, list) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found.split()]

    return getaddrinfo, asked


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1%eth0", "0.0.0.0", "224.0.0.1"]
    + [f"{PUBLIC} 192.168.1.1", "100.64.0.1", "fd00::1", "64:ff9b::7f00:1", "2002:7f00:1::"],
)
def test_a_name_that_leads_inside_is_refused(monkeypatch, address):
    monkeypatch.setattr(socket, "getaddrinfo", resolver({"pictures.example": address})[0])
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it was dialled"))
    with pytest.raises(UserError, match="is no public host"):
        media.fetch("http://pictures.example/a.png", "image", ALLOWED)


def test_a_host_that_nobody_named_is_refused(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it was looked up"))
    for url in (
        "http://evil.example/",
        "http://pictures.example.evil.example/",
        "http://pictures.example@evil.example/",
    ):
        with pytest.raises(UserError, match="fetches no files of"):
            media.fetch(url, "image", ALLOWED)
    for url in ("ftp://pictures.example/a", "gopher://x", "//pictures.example/a"):
        with pytest.raises(UserError, match="fetches no image"):
            media.fetch(url, "image", ALLOWED)
    for limits in (ALLOWED, media.Limits()):
        with pytest.raises(UserError, match="the url of an image is none"):
            media.fetch("http://[::1", "image", limits)


@pytest.fixture
def web(monkeypatch):
    """A server on this machine that stands for the public one; yields its pages and the addresses that were dialled."""
    pages, dialled = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, data = pages[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def create_connection(address, timeout):
        dialled.append(address[0])
        sock = socket.socket()
        sock.settimeout(timeout)
        sock.connect(("127.0.0.1", server.server_port))
        return sock

    monkeypatch.setattr(socket, "create_connection", create_connection)
    yield pages, dialled
    server.shutdown()


def test_the_address_that_was_looked_at_is_the_one_dialled(monkeypatch, web):
    pages, dialled = web
    pages["/a.png?x=1"] = (200, {}, b"bytes")
    # A second look at DNS would lead inside.
    getaddrinfo, asked = resolver({"pictures.example": [PUBLIC, "127.0.0.1"]})
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert media.fetch("http://pictures.example/a.png?x=1", "image", ALLOWED) == b"bytes"
    assert dialled == [PUBLIC] and asked == ["pictures.example"]


def test_each_redirect_is_looked_at(monkeypatch, web):
    pages, dialled = web
    pages["/ok"] = (302, {"Location": "http://other.example/file"}, b"")
    pages["/file"] = (200, {}, b"bytes")
    pages["/metadata"] = (302, {"Location": "http://169.254.169.254/latest"}, b"")
    pages["/inside"] = (301, {"Location": "http://other.example/file"}, b"")
    pages["/round"] = (302, {"Location": "/round"}, b"")
    pages["/nowhere"] = (302, {"Location": "http://[::1"}, b"")
    pages["/large"] = (200, {}, b"x" * 2000)
    pages["/gone"] = (404, {}, b"")
    names = {"pictures.example": PUBLIC, "other.example": PUBLIC}
    monkeypatch.setattr(socket, "getaddrinfo", resolver(names)[0])
    assert media.fetch("http://pictures.example/ok", "image", ALLOWED) == b"bytes"
    for path, words in (
        ("metadata", "fetches no files of 169.254.169.254"),
        ("round", "more than 3 redirects"),
        ("nowhere", "the url of an image is none"),
        ("large", "more than 1,000 bytes"),
        ("gone", "status 404"),
    ):
        with pytest.raises(UserError, match=words):
            media.fetch(f"http://pictures.example/{path}", "image", ALLOWED)
    names["other.example"] = "10.1.2.3"
    with pytest.raises(UserError, match="other.example is no public host"):
        media.fetch("http://pictures.example/inside", "image", ALLOWED)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["prompt", "messages", "max_tokens", "n", "temperature", "top_p", "top_k", "stop", "seed", "logprobs", "stream"]
    + ["echo", "logit_bias", "structured_outputs", "stream_options", "top_logprobs", "tools", "model", "min_tokens"]
    + ["stop_token_ids", "allowed_token_ids", "use_beam_search", "length_penalty", "tokens", "input", "instructions"]
)
PARTS = st.fixed_dictionaries(
    dict(type=st.sampled_from(["text", "image_url", "input_image", "input_audio", "input_text"])),
    optional=dict(
        text=VALUES,
        image_url=VALUES | st.fixed_dictionaries(dict(url=st.text() | st.sampled_from(["data:image/png;base64,AAAA"]))),
        input_audio=VALUES | st.fixed_dictionaries(dict(data=st.text("ABC=", max_size=8))),
    ),
)
MESSAGES = st.fixed_dictionaries(dict(role=st.sampled_from(["user", "assistant", "system", "x"]))).flatmap(
    lambda message: st.fixed_dictionaries(dict(role=st.just(message["role"]), content=VALUES | st.lists(PARTS)))
)
BODIES = st.dictionaries(NAMES, VALUES, max_size=5) | st.fixed_dictionaries(
    {},
    optional=dict(messages=st.lists(MESSAGES, max_size=3), input=st.lists(MESSAGES, max_size=3), n=st.integers(0, 5)),
)
PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize"]


# KOSMOS_BODIES=10000 sends so many, and others each time.
BODIES_OF_A_TEST = int(os.environ.get("KOSMOS_BODIES", 0))


def hammered(url, examples):
    """Sends so many bodies that make little sense; each has an answer that is no fault of the server."""
    statuses = {}

    @given(st.sampled_from(PATHS), BODIES, st.booleans())
    @settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=not BODIES_OF_A_TEST,
    )
    def send(path, body, sensible):
        if sensible:
            body = dict(prompt="x", messages=[dict(role="user", content="x")][: path != "/v1/completions"]) | body
            body.pop("messages" if path == "/v1/completions" else "prompt", None)
            body.setdefault("max_tokens", 2)
        content = json.dumps(body).encode()
        answer = client.post(path, content=content)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (path, body, answer.text)

    with httpx.Client(base_url=url, timeout=60) as client:
        send()
        wrong = [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"prompt": NaN}', b'{"a": 1e999}']
        for content in [*wrong, b'{"\\ud800": 1}']:
            for path in PATHS:
                assert client.post(path, content=content).status_code in (400, 413)
        assert client.get("/health").status_code == 200
    return statuses


def test_bodies_that_make_no_sense_are_no_fault_of_the_server(server):
    print(hammered(server.url, 150))
    assert idle(server)
