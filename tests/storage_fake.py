"""As much of Google Cloud Storage's JSON API as gcsfs, google-cloud-storage and TensorStore ask for, on this machine.

https://cloud.google.com/storage/docs/json_api/v1: objects with generations, preconditions, ranges, folders by
delimiter, uploads in one piece, in two parts and resumable, copies, batches of deletions. No bucket has real folders.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

STAMP = "2026-01-01T00:00:00.000Z"
OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")


class Refused(Exception):
    """An answer that is an error: (status, message)."""


class Storage:
    """Buckets in memory.

    Attributes:
      buckets: name -> object's name -> (bytes, generation).
      refuse: function (method, path) -> HTTP status or None, asked before each request; an upload's path ends in the
        object's name.
      asked: how many requests came.
    """

    def __init__(self, *buckets: str):
        self.buckets = {name: {} for name in buckets}
        self.refuse, self.asked = lambda method, path: None, 0
        self._lock, self._generations, self._uploads = threading.RLock(), itertools.count(1), {}

    def answer(self, method: str, target: str, headers, body: bytes) -> tuple[int, dict, bytes]:
        """(status, headers, body) for a request."""
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        if path.startswith("/upload/"):
            path += "/" + (query.get("name") or _first(rb'"name": ?"([^"]+)"', body[:2000]))
        with self._lock:
            self.asked += 1
            try:
                if status := self.refuse(method, path):
                    raise Refused(status, "refused by the test")
                return self._answer(method, url.path, query, headers, body)
            except Refused as error:
                status, message = error.args
                described = {"error": {"code": status, "message": message}}
                return status, {"Content-Type": "application/json"}, json.dumps(described).encode()

    def _answer(self, method, path, query, headers, body):
        if path == "/batch/storage/v1":
            return self._batch(headers, body)
        if path.startswith("/upload/") and "upload_id" in query:
            return self._resume(query["upload_id"], headers, body)
        if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            return self._upload(self._bucket(match[1]), match[1], query, headers, body)
        if match := COPY.fullmatch(path):
            data, _ = self._object(match[1], match[2], query)
            found = self._store(unquote(match[3]), unquote(match[4]), data, query)
            return _json({"done": True, "resource": found} if "rewriteTo" in path else found)
        if match := MOVE.fullmatch(path):
            data, _ = self._object(match[1], match[2], query)
            found = self._store(match[1], unquote(match[3]), data, query)
            del self._bucket(match[1])[unquote(match[2])]
            return _json(found)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            self._bucket(match[1])
            return _json({"kind": "storage#bucket", "name": match[1], "id": match[1], "location": "NOWHERE"})
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            return _json(self._listed(match[1], query))
        if match := OBJECT.fullmatch(path):
            data, generation = self._object(match[1], match[2], query)
            if method == "DELETE":
                del self._bucket(match[1])[unquote(match[2])]
                return 204, {}, b""
            if query.get("alt") == "media":
                return _media(data, generation, headers)
            return _json(_described(match[1], unquote(match[2]), data, generation))
        raise Refused(501, f"{method} {path} is not understood here")

    def _bucket(self, name: str) -> dict:
        if name not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        return self.buckets[name]

    def _object(self, bucket: str, name: str, query) -> tuple[bytes, int]:
        found = self._bucket(bucket).get(unquote(name))
        self._check(found, query)
        if found is None:
            raise Refused(404, f"No such object: {bucket}/{unquote(name)}")
        return found

    def _check(self, found, query) -> None:
        """https://cloud.google.com/storage/docs/request-preconditions"""
        generation = found[1] if found else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if int(query.get("ifGenerationNotMatch", -1)) == generation:
            raise Refused(304, "")

    def _store(self, bucket: str, name: str, data: bytes, query) -> dict:
        self._check(self._bucket(bucket).get(name), query)
        self.buckets[bucket][name] = data, next(self._generations)
        return _described(bucket, name, *self.buckets[bucket][name])

    def _listed(self, bucket: str, query) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        items, folders = [], []
        for name, (data, generation) in sorted(self._bucket(bucket).items()):
            rest = name.removeprefix(prefix)
            if not name.startswith(prefix) or not start <= name < end:
                continue
            if delimiter and delimiter in rest:
                folder = prefix + rest.split(delimiter)[0] + delimiter
                folders += [folder] if folder not in folders else []
            else:
                items.append(_described(bucket, name, data, generation))
        both = sorted([(item["name"], item) for item in items] + [(folder, None) for folder in folders])
        first, most = int(query.get("pageToken", 0)), int(query.get("maxResults", 1000))
        page = both[first : first + most]
        answer = {"kind": "storage#objects", "items": [item for _, item in page if item]}
        answer["prefixes"] = [name for name, item in page if not item]
        return answer | ({"nextPageToken": str(first + most)} if first + most < len(both) else {})

    def _upload(self, _, bucket, query, headers, body):
        kind = query.get("uploadType", "media")
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            number = str(len(self._uploads))
            self._uploads[number] = [bucket, name, query, b""]
            place = f"http://{headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return 200, {"Location": place}, b""
        if kind == "media":
            return _json(self._store(bucket, query["name"], body, query))
        boundary = re.search(r"boundary=['\"]?([^'\";]+)", headers["Content-Type"])[1].encode()
        described, data = re.split(rb"\r?\n?--" + re.escape(boundary) + rb"(?:--)?\r?\n?", body)[1:3]
        name = query.get("name") or json.loads(re.split(rb"\r?\n\r?\n", described, maxsplit=1)[1])["name"]
        return _json(self._store(bucket, name, re.split(rb"\r?\n\r?\n", data, maxsplit=1)[1], query))

    def _resume(self, number: str, headers, body):
        upload = self._uploads[number]
        bucket, name, query, data = upload
        first, last, total = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", headers["Content-Range"]).groups()
        if first is not None:
            upload[3] = data = data[: int(first)] + body
        if total != "*" and len(data) == int(total):
            return _json(self._store(bucket, name, data, query))
        return 308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {}, b""

    def _batch(self, headers, body):
        answers = []
        for method, target in re.findall(rb"\n([A-Z]+) (\S+) HTTP/1.1", body):
            status, _, answer = self.answer(method.decode(), target.decode(), headers, b"")
            answers.append(f"\nContent-Type: application/http\n\nHTTP/1.1 {status} said\n\n{answer.decode()}\n")
        text = "--batch" + "--batch".join(answers) + "--batch--"
        return 200, {"Content-Type": "multipart/mixed; boundary=batch"}, text.encode()


def _first(pattern: bytes, text: bytes) -> str:
    return match[1].decode() if (match := re.search(pattern, text)) else ""


def _described(bucket: str, name: str, data: bytes, generation: int) -> dict:
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    return {
        "kind": "storage#object", "name": name, "bucket": bucket, "size": str(len(data)), "md5Hash": md5,
        "generation": str(generation), "metageneration": "1", "updated": STAMP, "timeCreated": STAMP,
        "contentType": "application/octet-stream",
    }  # fmt: skip


def _json(answer: dict) -> tuple[int, dict, bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def _media(data: bytes, generation: int, headers) -> tuple[int, dict, bytes]:
    told = {"Content-Type": "application/octet-stream", "X-Goog-Generation": str(generation)}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", ""))
    if not match:
        return 200, told, data
    first = int(match[1]) if match[1] else max(len(data) - int(match[2]), 0)
    end = min(int(match[2]) + 1, len(data)) if match[1] and match[2] else len(data)
    if first >= len(data):
        raise Refused(416, "The requested range cannot be satisfied.")
    return 206, told | {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}, data[first:end]


@contextlib.contextmanager
def served(storage: Storage) -> Iterator[str]:
    """The address of a server of `storage`: "http://127.0.0.1:PORT"."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, answer = storage.answer(self.command, self.path, self.headers, body)
            answer = b"" if status in (204, 304) else answer
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(answer))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_DELETE = _any

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128

        def handle_error(self, *_):
            pass  # clients that leave in the middle of a request

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def environment(address: str) -> dict[str, str]:
    """The variables with which all three libraries ask the server at an address, without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "FSSPEC_GCS": json.dumps({"token": "anon"}),
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks by gRPC what kind a bucket is of
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }
