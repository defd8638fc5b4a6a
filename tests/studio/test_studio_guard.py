"""What the page's server refuses at its door: bodies beyond the limit, said or sent, other hosts, pages of others."""

import asyncio

import pytest
from fastapi import FastAPI, Request

from ifsq.studio.guard import Guard

MOST = 1000
application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


@application.post("/upload")
async def upload(request: Request) -> dict[str, int]:
    async with request.form() as form:
        return {"bytes": len(await form["file"].read())}


def form(size):
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    return head + b"z" * size + b"\r\n--x--\r\n"


def ask(body=b"", hosts=("127.0.0.1",), kind="http", chunk=100, **headers):
    """Status and text of the answer to a request; of a websocket what it is told."""
    told = {"host": "127.0.0.1:8501", "content_type": "multipart/form-data; boundary=x", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in told.items()]
    scope = {"type": kind, "method": "POST", "path": "/upload", "raw_path": b"/upload", "query_string": b""}
    scope |= {"headers": raw, "root_path": "", "scheme": "http", "http_version": "1.1"}
    parts = [body[at : at + chunk] for at in range(0, max(len(body), 1), chunk)]
    coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    coming[-1]["more_body"] = False
    sent = []

    async def receive():
        return coming.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(application, hosts, MOST)(scope, receive, send))
    if kind == "websocket":
        return sent
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode().strip(), len(coming)


def test_what_is_within_the_limit_comes_through():
    status, text, _ = ask(form(500), content_length=str(len(form(500))))
    assert (status, text) == (200, '{"bytes":500}')


def test_a_length_beyond_the_limit_is_refused_before_the_body_is_read():
    status, text, left = ask(form(5000), content_length=str(len(form(5000))))
    assert (status, text) == (413, f"{len(form(5000))} bytes, expected at most 1000")
    assert left == len(range(0, len(form(5000)), 100))


@pytest.mark.parametrize("length", ["-1", "many", "1e3", "", "9" * 5000])
def test_a_length_that_is_none_is_refused(length):
    status, text, _ = ask(form(5), content_length=length)
    assert (status, text) == (413, f"{length[:20]} bytes, expected at most 1000".strip())


def test_a_body_that_says_nothing_of_its_length_is_counted():
    status, text, left = ask(form(5000))
    assert (status, text) == (413, "more than 1000 bytes")
    assert left > 30  # and not read to its end


@pytest.mark.parametrize(
    ("headers", "hosts", "status"),
    [
        ({"host": "evil.example:8501"}, ("127.0.0.1",), 400),
        ({"host": ""}, ("127.0.0.1",), 400),
        ({"host": "LOCALHOST:8501"}, ("localhost",), 200),
        ({"host": "[::1]:8501"}, ("::1",), 200),
        ({"host": "["}, ("127.0.0.1",), 400),
        ({"host": "studio.example"}, None, 200),
        ({"host": "studio.example", "origin": "http://["}, None, 403),
        ({"origin": "http://evil.example"}, ("127.0.0.1",), 403),
        ({"origin": "null"}, ("127.0.0.1",), 403),
        ({"origin": "http://127.0.0.1:9000"}, ("127.0.0.1",), 403),
        ({"origin": "http://127.0.0.1:8501"}, ("127.0.0.1",), 200),
    ],
)
def test_other_hosts_and_pages_of_others_are_refused(headers, hosts, status):
    assert ask(form(5), hosts, **headers)[0] == status


def test_so_are_their_websockets():
    assert ask(kind="websocket", origin="http://evil.example") == [
        {"type": "websocket.close", "code": 1008, "reason": "sent by a page of another origin"}
    ]
