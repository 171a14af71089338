"""The server as its clients see it."""

import base64
import io
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from PIL import Image

from kosmos_jax.errors import UserError
from kosmos_jax.inference.command import pools_of
from tests.inference.compiles import compiled
from tests.serving.conftest import as_url, started


def post(server, path, **body):
    return httpx.post(server.url + path, json=body, timeout=60)


def idle(server, seconds=10):
    """Whether all slots are free and nobody waits, within some seconds."""
    end, engine = time.monotonic() + seconds, server.worker.engine
    while time.monotonic() < end:
        if not engine.busy and not any(map(engine.taken, engine.pools)) and server.worker.count == 0:
            return True
        time.sleep(0.02)
    return False


def test_a_completion_is_what_the_generator_writes(client, generator):
    found = client.completions.create(model="tiny", prompt="The digit is", max_tokens=9, temperature=0)
    (choice,) = found.choices
    assert choice.text == generator.generate("The digit is", max_new_tokens=9)
    assert found.usage.completion_tokens == 9 and choice.finish_reason == "length"
    several = client.completions.create(
        model="tiny", prompt=["The digit is", "plus"], max_tokens=5, temperature=0.9, seed=4, n=2
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    for i, prompt in enumerate(["The digit is", "plus"]):
        expected = generator.generate(prompt, max_new_tokens=5, temperature=0.9, seed=4, n=2)
        assert [choice.text for choice in several.choices[2 * i : 2 * i + 2]] == expected


def test_images_and_texts_of_a_message_are_read_in_order(client, generator, pictures):
    one, two = pictures
    image = lambda picture: dict(type="image_url", image_url=dict(url=as_url(picture)))  # noqa: E731
    text = lambda words: dict(type="text", text=words)  # noqa: E731
    content = [text("see <image> "), image(one), text(" plus "), image(two), text(" equals")]
    found = client.chat.completions.create(
        model="tiny", messages=[dict(role="user", content=content)], max_tokens=6, temperature=0
    )
    expected = generator.generate(["see <image> ", one, " plus ", two, " equals"], max_new_tokens=6)
    assert found.choices[0].message.content == expected
    swapped = [content[0], content[3], content[2], content[1], content[4]]
    logprobs = dict(logprobs=True, top_logprobs=3, max_completion_tokens=2, temperature=0, model="tiny")
    a, b = (
        client.chat.completions.create(messages=[dict(role="user", content=c)], **logprobs) for c in (content, swapped)
    )
    assert a.choices[0].logprobs.content[0].logprob != b.choices[0].logprobs.content[0].logprob


def test_a_stream_has_the_same_text_and_log_probabilities_and_its_usage(client):
    asked = dict(model="tiny", prompt="The digit is", max_tokens=20, temperature=2.0, seed=7, logprobs=2)
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options=dict(include_usage=True)))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    told = [value for chunk in chunks if chunk.choices for value in chunk.choices[0].logprobs.token_logprobs]
    assert told == whole.choices[0].logprobs.token_logprobs
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len([chunk for chunk in chunks if chunk.choices]) > 2
    messages = [dict(role="user", content="The digit is")]
    asked = dict(model="tiny", messages=messages, max_tokens=20, temperature=2.0, seed=7, n=2)
    whole = client.chat.completions.create(**asked)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_stop_string_never_leaks_into_a_stream(client):
    asked = dict(model="tiny", prompt="The digit is", max_tokens=30, temperature=3.0, seed=4)
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    chunks = list(client.completions.create(**asked, stop=[stop, "never"], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.partition(stop)[0]
    assert chunks[-1].choices[0].finish_reason == "stop"
    with_it = client.completions.create(**asked, stop=stop, extra_body=dict(include_stop_str_in_output=True))
    assert with_it.choices[0].text == whole.partition(stop)[0] + stop


def test_echo_tells_each_token_of_the_prompt_once(server, generator, tokenizer):
    ids = [*tokenizer.encode("The digit is seven"), tokenizer.eos]
    body = dict(model="tiny", prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0)
    told = post(server, "/v1/completions", **body).json()["choices"][0]["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == len(ids) + 1
    assert told["token_logprobs"][0] is None and told["tokens"][len(ids) - 1] == "</s>"
    expected = generator.score_each([""], [[ids]])[0][0].logprobs
    assert told["token_logprobs"][1:-1] == pytest.approx(expected[1:], abs=1e-5)
    for word, value, top in list(zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True))[1:]:
        assert top[word] == value
    with_start = post(server, "/v1/completions", **body | dict(prompt=[[tokenizer.bos, *ids]])).json()["choices"][0]
    assert with_start["logprobs"]["tokens"] == ["<s>", *told["tokens"]]
    assert with_start["logprobs"]["token_logprobs"][2:] == told["token_logprobs"][1:]
    assert with_start["logprobs"]["token_logprobs"][1] == pytest.approx(expected[0], abs=1e-5)
    for nothing in ("", []):
        empty = post(server, "/v1/completions", **body | dict(prompt=nothing, max_tokens=1))
        assert empty.status_code == (200 if nothing == "" else 400), empty.text
    long = post(server, "/v1/completions", prompt="x", structured_outputs=dict(choice=["a" * 5000, "b"]))
    assert long.status_code == 400 and "more than any slot" in long.json()["error"]["message"]
    zero = post(server, "/v1/completions", **body | dict(max_tokens=0)).json()["choices"][0]
    assert len(zero["logprobs"]["tokens"]) == len(ids)


def test_an_echoed_text_is_the_prompt_with_its_continuation(server, tokenizer):
    body = dict(
        prompt="The digit is", max_tokens=9, temperature=3, seed=4, echo=True, logprobs=0, return_token_ids=True
    )
    choice = post(server, "/v1/completions", **body).json()["choices"][0]
    ids = [*choice["prompt_token_ids"], *choice["token_ids"]]
    assert choice["text"] == tokenizer.decode(ids)
    told = choice["logprobs"]
    starts = [*told["text_offset"], len(choice["text"])]
    pieces = [choice["text"][a:b] for a, b in zip(starts, starts[1:], strict=False)]
    begins = [True, *(word == "\n" for word in told["tokens"])]  # where a text or a line begins, there is no space
    expected = [word[begin and word[0] == " " :] for word, begin in zip(told["tokens"], begins, strict=False)]
    assert pieces == expected


def test_a_stop_id_is_told_as_itself(server):
    asked = dict(prompt="The digit is", max_tokens=6, temperature=0, logprobs=0, return_token_ids=True)
    free = post(server, "/v1/completions", **asked).json()["choices"][0]
    ended = post(server, "/v1/completions", **asked, stop_token_ids=free["token_ids"][:1]).json()["choices"][0]
    assert ended["token_ids"] == [] and ended["finish_reason"] == "stop"
    assert ended["logprobs"]["tokens"] == free["logprobs"]["tokens"][:1]


def test_what_asks_for_nothing_is_accepted(server):
    nothing = dict(
        user="me", best_of=1, frequency_penalty=0, presence_penalty=0.0, logit_bias={}, suffix=None, tools=[]
    )
    nothing |= dict(metadata={}, response_format=dict(type="text"), guided_json=None, n=1, stop=None, store=False)
    assert post(server, "/v1/completions", prompt="x", max_tokens=2, **nothing).status_code == 200


def test_an_answer_has_the_tokens_that_fit_where_none_are_given(server):
    messages = [dict(role="user", content="x")]
    for n in (1, 2, 4):
        asked = dict(messages=messages, n=n, ignore_eos=True)
        answer = post(server, "/v1/chat/completions", **asked).json()
        most = answer["usage"]["completion_tokens"] // n
        assert most == server.worker.engine.room(answer["usage"]["prompt_tokens"], n)
        assert post(server, "/v1/chat/completions", **asked, max_tokens=most).status_code == 200
        assert post(server, "/v1/chat/completions", **asked, max_tokens=most + 1).status_code == 400


def test_an_answer_that_had_no_room_is_incomplete(client):
    answer = client.responses.create(model="tiny", input="x", max_output_tokens=3, extra_body=dict(ignore_eos=True))
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_ids_come_in_streams_and_dialogues_too(server, client):
    asked = dict(model="tiny", messages=[dict(role="user", content="x")], max_tokens=9, temperature=0)
    whole = post(server, "/v1/chat/completions", **asked, return_token_ids=True).json()["choices"][0]
    stream = client.chat.completions.create(**asked, stream=True, extra_body=dict(return_token_ids=True))
    pieces = [piece.choices[0] for piece in stream]
    assert sum((getattr(piece, "token_ids", []) for piece in pieces), []) == whole["token_ids"] != []


def test_media_are_counted_before_any_is_looked_at(server, monkeypatch):
    monkeypatch.setattr("kosmos_jax.serving.media.from_url", lambda *_: pytest.fail("it was looked at"))
    content = [dict(type="image_url", image_url=dict(url="data:image/png;base64,AAAA"))] * 33
    answer = post(server, "/v1/chat/completions", messages=[dict(role="user", content=content)])
    assert answer.status_code == 400 and "32 items of media; this one has 33" in answer.json()["error"]["message"]


def test_options_of_vllm_do_what_they_say(server, generator, tokenizer):
    body = dict(model="tiny", prompt="The digit is", max_tokens=6)
    found = post(server, "/v1/completions", **body, use_beam_search=True, n=3, length_penalty=0.5).json()["choices"]
    expected = generator.complete(["The digit is"], max_new_tokens=6, beams=3, n=3, length_penalty=0.5)[0]
    assert [choice["text"] for choice in found] == [completion.text for completion in expected]
    choice = dict(structured_outputs=dict(choice=["seven", "four"]), temperature=0)
    assert post(server, "/v1/completions", **body, **choice).json()["choices"][0]["text"] in ("seven", "four")
    allowed = post(server, "/v1/completions", **body, allowed_token_ids=[9, 20], logprobs=5, return_token_ids=True)
    assert set(allowed.json()["choices"][0]["token_ids"]) <= {9, 20}
    json.loads(allowed.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    biased = dict(logit_bias={"20": 100.0}, temperature=0, return_token_ids=True)
    assert set(post(server, "/v1/completions", **body, **biased).json()["choices"][0]["token_ids"]) == {20}


@pytest.mark.parametrize(
    "path, change, status, words",
    [
        ("completions", dict(prompt=None), 400, "prompt must be a text"),
        ("completions", dict(prompt=[[10**6]]), 400, "has the id 1000000"),
        ("completions", dict(max_tokens=0), 400, "max_tokens must be"),
        ("completions", dict(max_tokens=500), 400, "more than any slot"),
        ("completions", dict(temperature=-1), 400, "temperature is -1"),
        ("completions", dict(temperature="hot"), 400, "temperature is 'hot'"),
        ("completions", dict(logprobs=99), 400, "top_logprobs is 99"),
        ("completions", dict(guided_choice=["a"]), 400, "guided_choice is not known"),
        ("completions", dict(structured_outputs=dict(json="{}")), 400, "structured_outputs knows choice alone"),
        ("completions", dict(response_format=dict(type="json_object")), 400, "response_format is not supported"),
        ("completions", dict(frequency_penalty=1), 400, "frequency_penalty is not supported"),
        ("completions", dict(model="other"), 404, "there is no model 'other'"),
        ("completions", dict(n=9), 400, "9 branches"),
        ("completions", dict(stop=3), 400, "stop is 3"),
        ("completions", dict(prompt=["x"] * 65), 400, "65 prompts; at most 64"),
        ("completions", dict(prompt="x" * (10**6 + 1)), 400, "1,000,001"),
        ("completions", dict(best_of=2), 400, "best_of is not supported"),
        ("completions", dict(logit_bias={"20": 1e300}), 400, "bias is a number from"),
        ("completions", dict(logit_bias={"20": 10**400}), 400, "logit_bias is an object"),
        (
            "completions",
            dict(structured_outputs=dict(choice=["seven", "four"]), no_repeat_ngram_size=1),
            400,
            "choice and no_repeat_ngram",
        ),
        ("completions", dict(allowed_token_ids=[], min_tokens=1), 400, "no id that may come"),
        ("responses", dict(n=2), 400, "n is not there"),
        ("responses", dict(input=5, instructions="x"), 400, "input must be a text"),
        ("responses", dict(stream=True), 400, "stream is not there"),
        ("responses", dict(messages=[]), 400, "messages is not known"),
        ("responses", dict(previous_response_id="resp-1"), 400, "previous_response_id is not known"),
        ("embeddings", {}, 405, "POST /v1/embeddings: Method Not Allowed"),
        ("chat/completions", dict(messages=[]), 400, "messages must be a list"),
        ("chat/completions", dict(messages=[dict(role="tool", content="x")]), 400, "role is 'tool'"),
        ("chat/completions", dict(tools=[dict(type="function")]), 400, "tools is not supported"),
        ("chat/completions", dict(messages=[dict(role="user", content=[dict(type="video")])]), 400, "'video'"),
    ],
)
def test_what_cannot_be_answered_is_told(server, path, change, status, words):
    inputs = dict(completions=dict(prompt="x"), responses=dict(input="x", max_output_tokens=4))
    body = dict(model="tiny") | inputs.get(path, dict(messages=[dict(role="user", content="x")]))
    body |= dict(max_tokens=4) if path != "responses" else {}
    answer = post(server, f"/v1/{path}", **body | change)
    assert answer.status_code == status and words in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize(
    "url, words",
    [
        ("data:image/png;base64,!!!", "no base64"),
        ("data:image/png;base64,AAAA", "no image format"),
        ("data:text/html;base64,AAAA", "begins with data:image/"),
        ("https://example.org/a.png", "fetches no image"),
        ("file:///etc/passwd", "fetches no image"),
        ("http://[::1", "the url of an image is none"),
        (7, "must be a text"),
    ],
)
def test_an_image_that_cannot_be_read_is_told_without_its_bytes(server, url, words):
    content = [dict(type="image_url", image_url=dict(url=url))]
    answer = post(server, "/v1/chat/completions", messages=[dict(role="user", content=content)])
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize("side", [12_000, 6000])
def test_a_huge_image_is_refused_before_it_is_decoded(server, side, monkeypatch):
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [dict(type="image_url", image_url=dict(url=url))]
    answer = post(server, "/v1/chat/completions", messages=[dict(role="user", content=content)])
    assert answer.status_code == 400 and f"{side} x {side} pixels" in answer.json()["error"]["message"]
    assert url[100:140] not in answer.text
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_body_that_is_too_large_is_refused(server):
    answer = httpx.post(f"{server.url}/v1/completions", content=b"x" * (33 * 2**20), timeout=60)
    assert answer.status_code == 413


def sent(server, asked, part=1.0):
    """A socket that sent a request, or a part of its body."""
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    sock.sendall(head + body[: int(part * len(body))])
    return sock


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot(server, stream, monkeypatch):
    engine, asked = server.worker.engine, dict(prompt="x", max_tokens=120, ignore_eos=True, stream=stream)
    decode = engine.device.decode
    monkeypatch.setattr(engine.device, "decode", lambda *a: (time.sleep(0.05), decode(*a))[1])
    before = engine.written
    sockets = [sent(server, asked) for _ in range(3)]
    while engine.written < before + 3 * 4:  # each slot is writing
        time.sleep(0.01)
    for sock in sockets:
        sock.close()
    assert idle(server)
    assert engine.written - before < 3 * 60
    for sock in [sent(server, asked) for _ in range(8)]:  # in slots, in the queue, or not even read
        sock.close()
    assert idle(server)


def test_a_body_that_does_not_come_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr("kosmos_jax.serving.app.BODY_SECONDS", 0.2)
    sock = sent(server, dict(prompt="x" * 100), part=0.5)
    assert sock.recv(100).startswith(b"HTTP/1.1 408")
    sock.close()


def test_nothing_is_compiled_once_the_server_is_ready(server, pictures):
    chat = dict(messages=[dict(role="user", content=[dict(type="image_url", image_url=dict(url=as_url(pictures[0])))])])
    with compiled() as programs:
        for change in (
            *(dict(logprobs=top) for top in (None, 0, 5)),
            dict(n=2, temperature=0.7, top_k=5, min_p=0.1, repetition_penalty=1.2),
            dict(use_beam_search=True, n=3),
            dict(structured_outputs=dict(choice=["four", "seven", "nine"])),
            dict(echo=True, logprobs=1),
            dict(
                prompt="A handwritten four, and a handwritten nine.", no_repeat_ngram_size=2, stop=["q"], min_tokens=2
            ),
        ):
            answer = post(server, "/v1/completions", **dict(prompt="The digit is", max_tokens=5) | change)
            assert answer.status_code == 200, answer.text
        assert post(server, "/v1/chat/completions", **chat, logprobs=True, max_tokens=5).status_code == 200
    assert programs == []


def test_the_clients_own_retries_outlast_a_full_queue(server):
    client, worker = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3), server.worker
    with worker._lock:
        worker._count += worker.most  # so many are there

    def leave():
        with worker._lock:
            worker._count -= worker.most

    threading.Timer(0.5, leave).start()
    assert client.completions.create(model="tiny", prompt="x", max_tokens=2).choices[0].finish_reason == "length"


def test_a_stream_that_cannot_be_finished_says_so(spare, monkeypatch):
    running, device, left = started(spare), spare.engine.device, iter([True, True])
    try:
        decode = device.decode
        monkeypatch.setattr(device, "decode", lambda *a: decode(*a) if next(left, False) else 1 / 0)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        asked = dict(model="tiny", prompt="x", max_tokens=90, temperature=0, extra_body=dict(ignore_eos=True))
        with pytest.raises(openai.APIError, match="ZeroDivisionError"):
            for piece in client.completions.create(**asked, stream=True):
                assert piece.choices[0].finish_reason is None
    finally:
        running.stop()
        spare.engine.cancel_all()


def test_more_requests_than_wait_are_told_to_come_again(spare):
    running = started(spare, most=1)
    try:
        queued = running.worker
        body = dict(prompt="x", max_tokens=100, ignore_eos=True, model="tiny")
        with queued._lock:
            queued._count += 1  # somebody is there
        answer = post(running, "/v1/completions", **body)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        with queued._lock:
            queued._count -= 1
        assert post(running, "/v1/completions", **body).status_code == 200
    finally:
        running.stop()


def test_a_key_is_asked_for(spare):
    running = started(spare, key="secret")
    try:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="secret", max_retries=0)
        assert client.models.list().data[0].id == "tiny"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0).models.list()
        assert httpx.get(f"{running.url}/metrics").status_code == 401
        assert httpx.get(f"{running.url}/health").status_code == 200
    finally:
        running.stop()


def test_an_engine_that_fails_answers_and_says_so(spare, monkeypatch):
    running = started(spare)
    try:
        monkeypatch.setattr(spare.engine.device, "decode", lambda *_: 1 / 0)
        answer = post(running, "/v1/completions", prompt="x", max_tokens=4, model="tiny")
        assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]["message"]
        assert httpx.get(f"{running.url}/health").status_code == 500
        assert post(running, "/v1/completions", prompt="x", model="tiny").status_code == 500
    finally:
        running.stop()
        spare.engine.cancel_all()


def test_a_server_that_closes_finishes_what_it_has(spare):
    running = started(spare)
    answers = []
    body = dict(prompt="x", max_tokens=100, ignore_eos=True, model="tiny", temperature=0)
    thread = threading.Thread(target=lambda: answers.append(post(running, "/v1/completions", **body)))
    thread.start()
    while not running.worker.count:
        time.sleep(0.001)
    running.worker.close()
    assert post(running, "/v1/completions", **body).status_code == 503
    thread.join(30)
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 100
    running.stop()


def test_tokens_models_and_metrics(server, tokenizer, client):
    tokens = post(server, "/tokenize", prompt="The digit is").json()["tokens"]
    assert tokens == [tokenizer.bos, *tokenizer.encode("The digit is")]
    assert post(server, "/detokenize", tokens=tokens).json()["prompt"] == "The digit is"
    info = httpx.get(f"{server.url}/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<s>", "</s>", "<pad>")
    assert client.models.list().data[0].id == "tiny"
    text = httpx.get(f"{server.url}/metrics").text
    assert 'kosmos_slots_taken{branches="1",length="128"} 0.0' in text and "kosmos_first_token_seconds_count" in text
    answer = client.responses.create(model="tiny", input="The digit is", max_output_tokens=5, temperature=0)
    assert answer.output_text and answer.usage.output_tokens == 5
    assert httpx.get(f"{server.url}/").status_code == 200


def test_seeded_requests_are_reproducible_beside_unseeded_ones(client):
    asked = dict(model="tiny", prompt="The digit is", max_tokens=12, temperature=2.0)
    first = client.completions.create(**asked, seed=2**40).choices[0].text
    free = {client.completions.create(**asked).choices[0].text for _ in range(4)}
    assert len(free) > 1
    assert client.completions.create(**asked, seed=2**40).choices[0].text == first


def test_slots_are_written_as_lengths_and_counts():
    assert pools_of("256x8,768x2x4") == {(256, 1): 8, (768, 4): 2}
    for wrong in ("", "256", "256x0", "ax2", "256x8,", "256x8x2x2"):
        with pytest.raises(UserError, match="write LENGTHxSLOTS"):
            pools_of(wrong)
