"""How much the server takes on, and what it does when somebody does not wait."""

import asyncio
import json
import socket
import threading

import httpx
import openai
import pytest
from served_engine import FakeEngine

STREAMS = 32


def held(reply="abcdefgh", held_from=1, **options):
    """An engine whose texts wait for the test."""
    engine = FakeEngine(lambda _: reply, **options)
    engine.held_from = held_from
    return engine


def release(engine):
    """Lets all texts go on."""
    engine.held_from = None
    engine.go.release(10_000)


def in_background(call):
    """Calls in a thread; the result is in the list when `join` returns."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def test_parallel_streams_of_the_async_client(serve):
    engine = FakeEngine(lambda prompt: f"<{prompt}>")
    server = serve(engine, max_requests=8)

    async def ask(client, number):
        text = ""
        stream = await client.completions.create(model="fake", prompt=f"é{number}", stream=True, max_tokens=100)
        async for chunk in stream:
            text += chunk.choices[0].text
        return text

    async def ask_all():
        async with server.client(kind=openai.AsyncOpenAI) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(STREAMS)))

    assert asyncio.run(ask_all()) == [f"<é{number}>" for number in range(STREAMS)]
    assert server.metric("tmac_texts_total") == STREAMS
    assert server.metric("tmac_texts_running") == 0


def test_streams_run_at_the_same_time(serve):
    """Each text waits until all of them have begun: one after the other, none would end."""
    server = serve(held(held_from=2))
    threads = [in_background(lambda: server.complete(stream=True).text) for _ in range(STREAMS)]
    server.engine.await_requests(STREAMS)
    server.until(lambda: server.metric("tmac_texts_running") == STREAMS)
    release(server.engine)
    for thread, results in threads:
        thread.join()
        assert results[0].endswith("data: [DONE]\n\n")


def test_who_waits_gets_its_turn(serve):
    server = serve(held(), max_requests=2)
    threads = [in_background(lambda: server.complete().json()["choices"][0]["text"]) for _ in range(6)]
    server.until(lambda: server.metric("tmac_texts_waiting") == 4)
    assert server.metric("tmac_texts_running") == 2
    assert len(server.engine.requests) == 2
    release(server.engine)
    for thread, results in threads:
        thread.join()
        assert results == ["abcdefgh"]
    assert len(server.engine.requests) == 6


def test_a_full_queue(serve):
    server = serve(held(), max_requests=1, max_queued=1)
    threads = [in_background(server.complete) for _ in range(2)]
    server.until(lambda: server.metric("tmac_texts_waiting") == 1)
    response = server.complete()
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"] == {
        "message": "the queue is full: 1 texts wait; try again later",
        "type": "rate_limit_error",
        "param": None,
        "code": "queue_full",
    }
    assert server.http.get("/health").status_code == 200
    with server.client() as client, pytest.raises(openai.RateLimitError):
        client.completions.create(model="fake", prompt="x", stream=True)
    release(server.engine)
    for thread, results in threads:
        thread.join()
        assert results[0].status_code == 200
    assert server.complete().status_code == 200


def test_all_texts_of_a_request_or_none(serve):
    server = serve(max_requests=1, max_queued=3)
    assert server.complete(n=5).status_code == 400
    assert server.engine.requests == []
    assert len(server.complete(n=4).json()["choices"]) == 4


def test_a_timeout(serve):
    server = serve(held(held_from=3), request_timeout=0.3)
    response = server.complete()
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    assert response.headers["x-should-retry"] == "false"
    assert server.engine.requests[0].cancelled.wait(10)
    with server.client() as client, pytest.raises(openai.InternalServerError, match="longer than"):
        client.completions.create(model="fake", prompt="x")


def test_a_timeout_in_the_queue(serve):
    server = serve(held(), max_requests=1, request_timeout=0.3)
    threads = [in_background(server.complete) for _ in range(3)]
    for thread, results in threads:
        thread.join()
        assert results[0].status_code == 504
    server.until(lambda: server.metric("tmac_texts_waiting") == server.metric("tmac_texts_running") == 0)
    assert len(server.engine.requests) <= 3


def test_a_timeout_of_a_stream(serve):
    server = serve(held(held_from=3), request_timeout=0.5)
    *events, last = server.complete(stream=True).text.split("\n\n")[:-1]
    assert [json.loads(event[6:])["choices"][0]["text"] for event in events] == ["a", "b"]
    assert json.loads(last[6:])["error"]["code"] == "timeout"
    assert server.engine.requests[0].cancelled.wait(10)


def test_a_stream_without_text_is_kept_open(serve):
    server = serve(held(held_from=2), ping_seconds=0.05)
    with server.http.stream("POST", "/v1/completions", json={"model": "fake", "prompt": "x", "stream": True}) as stream:
        lines = stream.iter_lines()
        seen = [next(lines) for _ in range(7)]
        release(server.engine)
        seen += list(lines)
    assert ": still here" in seen
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in seen if line.startswith("data: {")]
    assert "".join(texts) == "abcdefgh"
    with server.client() as client:
        release(server.engine)
        chunks = list(client.completions.create(model="fake", prompt="x", stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == "abcdefgh"


def raw_request(server, body, path="/v1/completions"):
    """A connection on which a request has been sent."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", server.port), 30)
    connection.sendall(head.encode() + b"\r\n" + data)
    return connection


def test_a_client_that_leaves_its_stream(serve):
    server = serve(held(held_from=3))
    connection = raw_request(server, {"model": "fake", "prompt": "x", "stream": True})
    received = b""
    while received.count(b"data: ") < 2:
        received += connection.recv(1000)
    connection.close()
    assert server.engine.requests[0].cancelled.wait(10)
    server.until(lambda: server.metric("tmac_texts_running") == 0)
    assert server.metric("tmac_clients_left_total") == 1
    assert 'tmac_texts_total{finish_reason="cancelled"} 1' in server.http.get("/metrics").text


def test_a_client_that_leaves_before_its_answer(serve):
    server = serve(held())
    connection = raw_request(server, {"model": "fake", "prompt": "x", "n": 3})
    requests = server.engine.await_requests(3)
    connection.close()
    assert all(request.cancelled.wait(10) for request in requests)
    server.until(lambda: server.metric("tmac_clients_left_total") == 1)


def test_a_client_that_leaves_the_queue(serve):
    server = serve(held(), max_requests=1)
    first = raw_request(server, {"model": "fake", "prompt": "first"})
    server.engine.await_requests(1)
    second = raw_request(server, {"model": "fake", "prompt": "second", "stream": True})
    server.until(lambda: server.metric("tmac_texts_waiting") == 1)
    second.close()
    server.until(lambda: server.metric("tmac_texts_waiting") == 0)
    release(server.engine)
    assert b"200 OK" in first.recv(1000)
    first.close()
    assert len(server.engine.requests) == 1


def test_prompts_that_are_scored_take_places(serve):
    server = serve(max_requests=1, max_queued=1)
    server.engine.scoring_held = True
    fields = {"model": "fake", "prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0}
    first, second = raw_request(server, fields), raw_request(server, fields)
    server.until(lambda: server.metric("tmac_texts_running") == server.metric("tmac_texts_waiting") == 1)
    assert server.complete(echo=True, logprobs=1).status_code == 429
    second.close()
    server.until(lambda: server.metric("tmac_texts_waiting") == 0)
    assert server.engine.scoring_held
    first.close()
    server.until(lambda: not server.engine.scoring_held)  # who scores has been told
    server.until(lambda: server.metric("tmac_texts_running") == 0)
    assert server.complete(echo=True, logprobs=1).status_code == 200


def test_the_openai_client_closes_a_stream(serve):
    server = serve(held(held_from=3))
    with server.client() as client:
        stream = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}], stream=True)
        next(iter(stream))
        stream.close()
        assert server.engine.requests[0].cancelled.wait(10)


def test_a_body_that_is_too_large(serve):
    server = serve(max_body_bytes=1000)
    for content in (b'{"a": "' + b"x" * 1000, iter([b"x" * 600, b"x" * 600])):
        response = server.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
    assert server.complete("x" * 900).status_code == 200


def test_a_body_that_is_far_too_large_is_not_read(serve):
    server = serve(max_body_bytes=1000)
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\nContent-Length: {10**12}\r\n\r\n".encode())
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode() + b"x" * 5000)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")


def read_all(connection):
    parts = []
    while part := connection.recv(10_000):
        parts.append(part)
    return b"".join(parts)


def test_a_body_that_does_not_come(serve):
    server = serve(body_timeout=0.2)
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000,
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_http(plain, data):
    with socket.create_connection(("127.0.0.1", plain.port), 30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    assert plain.complete().status_code == 200


def test_a_client_that_does_not_read(serve):
    """What is sent to it fills the buffers, and ends with its time; others are served meanwhile."""
    server = serve(FakeEngine(context_length=1 << 21), request_timeout=4)
    echoes = {"model": "fake", "prompt": "x" * (1 << 20), "stream": True, "echo": True, "max_tokens": 1, "n": 20}
    with raw_request(server, echoes):
        server.engine.await_requests(20)
        server.until(lambda: server.metric("tmac_texts_running") == 0)
        assert len(server.service.replies) == 1
        assert server.complete().status_code == 200
        server.until(lambda: not server.service.replies)
    assert server.complete().status_code == 200


def test_counters(serve):
    server = serve()
    server.complete("abc", max_tokens=2)
    server.chat(stream=True)
    server.http.get("/nothing")
    text = server.http.get("/metrics").text
    assert 'tmac_requests_total{endpoint="/v1/completions",status="200"} 1' in text
    assert 'tmac_requests_total{endpoint="/v1/chat/completions",status="200"} 1' in text
    assert 'tmac_requests_total{endpoint="other",status="404"} 1' in text
    assert 'tmac_texts_total{finish_reason="length"} 1' in text
    assert 'tmac_texts_total{finish_reason="stop"} 1' in text
    assert server.metric("tmac_prompt_tokens_total") == sum(len(r.prompt) for r in server.engine.requests)
    assert server.metric("tmac_generated_tokens_total") == 2 + len("after ") + len(server.engine.requests[1].prompt) + 1


def test_the_end_of_the_server_ends_its_streams(serve):
    server = serve(held(held_from=3))
    thread, results = in_background(lambda: server.complete(stream=True).text)
    server.engine.await_requests(1)
    server.server.should_exit = True
    thread.join()
    assert server.engine.requests[0].cancelled.wait(10)
    assert json.loads(results[0].split("\n\n")[-2][6:])["error"]["code"] == "unavailable"


def test_the_end_of_the_server_waits_for_streams_that_end(serve):
    server = serve(held(held_from=3))
    thread, results = in_background(lambda: server.complete(stream=True).text)
    server.engine.await_requests(1)
    server.server.should_exit = True
    server.until(lambda: not can_connect(server))
    release(server.engine)
    thread.join()
    assert results[0].endswith("data: [DONE]\n\n")


def can_connect(server):
    try:
        socket.create_connection(("127.0.0.1", server.port), 1).close()
    except OSError:
        return False
    return True


def test_no_content_in_the_log(serve, caplog):
    caplog.set_level("DEBUG")
    server = serve(FakeEngine(lambda _: "the secret answer"))
    server.complete("a secret question", stop="another secret", max_tokens=100)
    server.chat("a secret question", temperature=9)
    assert server.complete("a secret question", temperature="secret").status_code == 400
    assert "secret" not in caplog.text
    assert isinstance(server.http, httpx.Client)
