"""The program: it listens, answers over a socket, and ends with status 0 when it is asked to, streams included."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from scripts import serve
from scripts.server.models import names_of
from tests.programs import finish, one_line, run, start


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_several_checkpoints_until_it_is_asked_to_stop(trained, better, stop, monkeypatch, caplog):
    port, found, threads = free_port(), {}, set(threading.enumerate())
    monkeypatch.setattr(serve, "GRACE", 0.1)
    monkeypatch.setattr(serve, "leave", lambda: found.update(left=True))  # it would end this process

    def ask():
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(200):
                try:
                    found["models"] = json.load(urllib.request.urlopen(f"{address}/v1/models", timeout=5))["data"]
                    break
                except urllib.error.URLError:
                    time.sleep(0.02)
            body = json.dumps({"prompt": "Listen", "max_tokens": 25, "stream": True}).encode()
            with urllib.request.urlopen(f"{address}/v1/completions", body, timeout=5) as answer:
                found["first"] = answer.readline()
            found["half a body"] = socket.create_connection(("127.0.0.1", port), timeout=5)
            found["half a body"].sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            time.sleep(0.1)  # the server waits for the rest
        finally:
            os.kill(os.getpid(), stop)

    thread = threading.Thread(target=ask)
    thread.start()
    ended = run("serve", f"checkpoint=[{trained},{better}]", f"port={port}", "device=cpu")
    thread.join()
    with found["half a body"] as cut_off:
        assert cut_off.recv(100).startswith(b"HTTP/1.1 503 ")
    assert ended.status == 0 and found["left"], ended.err
    assert [model["id"] for model in found["models"]] == ["run", "run-2"] and found["first"].startswith(b"data: {")
    assert not {thread.name for thread in set(threading.enumerate()) - threads}
    lines = ended.err.splitlines()
    assert lines[0] == f"serving run, run-2 at http://127.0.0.1:{port} (Ctrl-C to stop)"
    assert lines[1].startswith("GET /v1/models 200 ") and "Traceback" not in ended.err
    assert not [record for record in caplog.records if record.exc_info]  # also of the client that was cut off


SLOW_MODEL = """
import sys, time
from conf import cli
from model.gpt import GPT
from scripts import serve
from scripts.server import texts

def wait(*arguments, **options):
    print("computing", file=sys.stderr, flush=True)
    time.sleep(100)

GPT.hidden = texts.spelled = wait
cli.run(serve.main, serve.ServeConfig, name="serve")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/next_words", {"prompt": "Listen", "stream": True}),
        ("/v1/completions", {"prompt": "Listen"}),
        ("/v1/surprisal", {"text": "Listen"}),
        ("/tokenize", {"prompt": "Listen" * 2000}),  # in a thread
    ],
)
def test_an_interrupt_waits_neither_for_a_forward_pass_nor_for_a_thread(trained, path, body):
    port = free_port()
    process = start("-c", SLOW_MODEL, f"checkpoint={trained}", f"port={port}", "device=cpu")
    assert process.stderr and process.stderr.readline().startswith("serving")
    sent = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port)) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent)}\r\n\r\n"
        client.sendall(head.encode() + sent)
        assert process.stderr.readline() == "computing\n"
        process.send_signal(signal.SIGINT)
        ended = finish(process, timeout=20)  # the work takes 100 s
    assert ended.status == 0 and "Traceback" not in ended.err, ended.err


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["host=0.0.0.0"], "host=0.0.0.0 can be reached from other machines, so it needs a secret: token=..."),
        (["host=example.org"], "it needs a secret"),
        (["port=70000"], "port=70000 must be 0 to 65535"),
        (["token=é"], "token= must be printable ASCII"),
        (["token=a "], "token= must be printable ASCII"),
        (["origins=localhost:3000"], "write scheme, host and port, such as http://localhost:3000"),
        (["host=203.0.113.1", "token=x"], "host=203.0.113.1 port=8000: Cannot assign requested address"),
    ],
)
def test_what_it_refuses_before_it_loads_anything(tmp_path, arguments, part):
    assert part in one_line(run("serve", f"checkpoint={tmp_path}", *arguments))


def test_a_port_that_is_taken_and_a_checkpoint_that_does_not_exist_are_said_in_one_line(tmp_path, trained):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = one_line(run("serve", f"checkpoint={trained}", f"port={port}"))
        assert f"port={port}: Address already in use; choose another" in line
    assert str(tmp_path / "none") in one_line(run("serve", f"checkpoint={tmp_path / 'none'}", "port=0"))
    assert "checkpoint is required" in one_line(run("serve"))


def test_names_of_checkpoints_are_those_of_their_folders_and_differ():
    paths = ["out/notes", "out/notes/best", "out/notes/step_00000002", "other/notes", "third/notes", "x/gpt-2"]
    expected = ["notes", "notes-best", "notes-step_00000002", "notes-2", "notes-3", "gpt-2"]
    assert names_of([Path(path) for path in paths]) == expected
