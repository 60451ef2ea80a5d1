"""Who may ask: keys, hosts, and pages of other origins."""

import openai
import pytest
from served_engine import FakeEngine

from tmac.serve import is_loopback

KEY = "a-kéy"
ORIGIN = "https://example.org"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type",
}


def status(server, path="/v1/models", **headers):
    return server.http.get(path, headers=headers).status_code


def test_a_key(serve):
    server = serve(api_key="secret-key")
    with server.client(api_key="secret-key") as client:
        assert client.models.list().data
    for wrong in ("other", "secret-key2", "secret"):
        assert status(server, Authorization=f"Bearer {wrong}") == 401
    assert status(server, Authorization="Basic secret-key") == 401
    assert status(server, Authorization="Bearer") == 401
    assert status(server) == 401
    assert status(server, Authorization="bearer  secret-key") == 200
    with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as found:
        client.completions.create(model="fake", prompt="x")
    assert found.value.code == "invalid_api_key"
    assert server.engine.requests == []


def test_what_a_key_protects(serve):
    server = serve(api_key="secret-key")
    assert [status(server, path) for path in ("/metrics", "/v1/models", "/nothing")] == [401, 401, 401]
    assert server.http.get("/health").json() == {"status": "ok"}
    response = server.complete()
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["message"] == "an API key is needed: Authorization: Bearer KEY"


def test_a_key_that_is_not_ascii(serve):
    server = serve(api_key=KEY)
    assert server.http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}".encode()}).status_code == 200


def test_without_a_key_none_is_asked_for(plain):
    assert status(plain) == 200
    assert status(plain, Authorization="Bearer anything") == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("rebound.example.org", 403),
        ("localhost.example.org", 403),
        ("", 403),
    ],
)
def test_hosts(serve, host, expected):
    server = serve(hosts=("localhost", "127.0.0.1", "::1"))
    assert status(server, Host=host) == expected


def test_any_host(plain):
    assert status(plain, Host="example.org") == 200


def test_other_origins_may_not_ask(plain):
    response = plain.http.options("/v1/completions", headers=PREFLIGHT)
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers
    assert "access-control-allow-origin" not in plain.http.get("/v1/models", headers={"Origin": ORIGIN}).headers


def test_origins_that_may(serve):
    server = serve(cors_origins=(ORIGIN,), api_key="secret-key")
    response = server.http.options("/v1/completions", headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    refused = server.http.options("/v1/completions", headers={**PREFLIGHT, "Origin": "https://other.example.org"})
    assert "access-control-allow-origin" not in refused.headers
    error = server.http.get("/v1/models", headers={"Origin": ORIGIN})
    assert error.status_code == 401
    assert error.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("example.org", False),
    ],
)
def test_what_only_this_machine_reaches(host, expected):
    assert is_loopback(host) is expected


def test_the_fake_engine_is_what_the_server_takes():
    assert FakeEngine().submit([1], max_new_tokens=1, stop=()).text == "after \x01"
