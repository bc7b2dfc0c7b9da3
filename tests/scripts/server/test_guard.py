"""What every request passes first: Host, Origin, token, the size of the body, and its line in the log."""

from __future__ import annotations

import asyncio

import pytest

from scripts.server import middleware

MODELS = "/v1/models"
PAGE = "http://localhost:3000"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000", "a.localhost"]
)
def test_local_names_are_served(client, host):
    assert client.get(MODELS, host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "192.168.0.7", "", "[::2]", "127.0.0.1.evil"]
)
def test_a_name_that_was_rebound_to_this_address_is_refused(client, make_client, host):
    answer = client.get(MODELS, host=host)
    assert answer.status == 403 and answer.json["error"]["code"] == "host_not_allowed"
    wide = make_client(hosts=["evil.example"], any_address=True)
    assert (wide.get(MODELS, host=host).status == 200) == (host in ("evil.example", "192.168.0.7", "[::2]"))


def test_a_page_of_another_origin_can_neither_ask_nor_read(client, make_client):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:3000", f"{PAGE}.evil"):
        refused = client.post("/v1/completions", {"prompt": "x"}, origin=origin, content_type="text/plain")
        assert refused.status == 403 and "access-control-allow-origin" not in refused.headers
    assert client.get(MODELS, origin="http://127.0.0.1:8000").status == 200  # the page itself
    allowed = make_client(origins=[PAGE])
    assert allowed.get(MODELS, origin=PAGE).headers["access-control-allow-origin"] == PAGE
    assert allowed.get("/nothing", origin=PAGE).headers["access-control-allow-origin"] == PAGE  # errors are read too
    assert allowed.get(MODELS, origin="http://evil.example").status == 403


def test_a_browsers_preflight_is_answered_before_it_has_a_token(make_client):
    client = make_client(origins=[PAGE], token="secret")
    asked = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization,content-type",
        "access_control_request_private_network": "true",
    }
    answer = client.send("OPTIONS", "/v1/chat/completions", b"", asked | {"origin": PAGE})
    assert answer.status == 204 and answer.body == b"" and answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    other = client.send("OPTIONS", "/v1/chat/completions", b"", asked | {"origin": "http://evil.example"})
    assert other.status == 403 and "access-control-allow-origin" not in other.headers


def test_a_token_is_required_if_there_is_one_and_any_is_accepted_if_not(client, make_client):
    assert client.get(MODELS, authorization="Bearer anything").status == 200
    guarded = make_client(token="secret", open_paths=["/"])
    assert guarded.get(MODELS, authorization="Bearer secret").status == 200 == guarded.get("/").status
    for wrong in ("Bearer secre", "Bearer secret2", "secret", "Basic secret", "Bearer s\u00e9cret", ""):
        answer = guarded.get(MODELS, authorization=wrong)
        assert answer.status == 401 and answer.json["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("announced", ["2000", "99999999999999999999999", "-1", "x"])
def test_a_body_that_is_announced_as_too_large_is_not_read(make_client, announced):
    client, read = make_client(max_body=1000), []
    parts = (read.append(1) or b"x" * 100 for _ in range(100))
    answer = asyncio.run(client.request("POST", "/v1/completions", parts, {"content_length": announced}))
    assert answer.status == 413 and answer.json["error"]["type"] == "invalid_request_error" and not read


def test_a_body_that_grows_too_large_is_not_read_to_its_end(make_client):
    client, read = make_client(max_body=1000), []
    parts = (read.append(1) or b" " * 100 for _ in range(100))
    answer = asyncio.run(client.request("POST", "/v1/completions", parts))
    assert answer.status == 413 and len(read) == 11 and answer.headers["connection"] == "close"


def test_a_body_that_does_not_arrive_in_time_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)
    receive = asyncio.Queue().get  # nothing comes

    async def ask():
        answers = []

        async def send(message):
            answers.append(message)

        headers = [(name.encode(), value.encode()) for name, value in client.headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/tokenize", "headers": headers, "query_string": b""}
        await asyncio.wait_for(client.app(scope, receive, send), 5)
        return answers

    start, _ = asyncio.run(ask())
    assert start["status"] == 408 and (b"connection", b"close") in start["headers"]


def test_the_log_has_one_line_for_each_request_and_none_of_its_text(client, log):
    client.post("/v1/completions", {"prompt": "a secret", "max_tokens": 3})
    client.post("/v1/completions", {"prompt": "a secret", "max_tokens": 3, "stream": True})
    client.get("/no\nsuch?key=secret")
    client.post("/v1/completions", {"prompt": "a secret", "stop": 3})
    lines = log.getvalue().splitlines()
    assert len(lines) == 4 and "secret" not in log.getvalue()
    assert all(line.startswith("POST /v1/completions 200 ") and line.endswith(" ms 11 tokens") for line in lines[:2])
    assert lines[2].startswith("GET /no\\nsuch 404 ") and " 400 " in lines[3]
    assert all(line.endswith(" ms") for line in lines[2:])  # no tokens were read or written


def test_no_other_site_may_frame_or_sniff_an_answer(client):
    for answer in (client.get("/"), client.get("/page.js"), client.get(MODELS), client.get("/nothing")):
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/page.css").status == 200
    for path in ("/../serve.py", "/page/index.html", "/%2e%2e/serve.py", "//etc/passwd", "/README.md"):
        assert client.get(path).status == 404
