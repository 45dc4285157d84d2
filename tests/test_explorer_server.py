"""The server of the explorer, asked over HTTP in ways that it allows, and in others."""

import http.client
import json
import re
import socket
import threading
import time
from importlib.resources import files

import pytest

from mvkit.apps import explorer_server
from mvkit.apps.explorer_server import LARGEST, Content, ExplorerServer
from mvkit.errors import RequestError

PAGE = Content("text/html; charset=utf-8", b"<!doctype html><p>here")


def answered(question):
    if "fault" in question:
        raise RequestError("explore: <b>no</b>")
    if "bug" in question:
        raise KeyError("bug")
    return {"echo": question}


@pytest.fixture
def server():
    with ExplorerServer(0, {"": PAGE}, {"answer": answered}) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(server, path=None, body=None, method=None, headers=None, drop=()):
    """What the server says: a response of http.client, and its text."""
    host = f"127.0.0.1:{server.server_port}"
    sent = {"Host": host}
    if body is not None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    sent |= headers or {}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    path = f"/{server.secret}/" if path is None else path
    method = method or ("GET" if body is None else "POST")
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in sent.items():
        for item in value if isinstance(value, list) else [value]:
            if name not in drop:
                connection.putheader(name, item)
    connection.endheaders(body)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response, text


def refused(server, **options):
    """The status and the reason of a request that is refused."""
    response, text = asked(server, **options)
    assert "here" not in text.replace("nothing is here", "")
    assert server.secret not in text + str(response.headers)
    return response.status, json.loads(text)["error"]


def question(server):
    return f"/{server.secret}/answer"


def test_the_page_and_answers_are_there_for_whoever_has_the_address(server):
    assert server.address == f"http://127.0.0.1:{server.server_port}/{server.secret}/"
    assert len(server.secret) >= 32
    response, text = asked(server)
    assert (response.status, text) == (200, "<!doctype html><p>here")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    response, text = asked(server, path=question(server), body={"a": "ü"})
    assert json.loads(text) == {"echo": {"a": "ü"}}
    own = f"http://127.0.0.1:{server.server_port}"
    assert asked(server, headers={"Origin": own})[0].status == 200
    for host in ("localhost", "LOCALHOST"):
        name = f"{host}:{server.server_port}"
        assert asked(server, headers={"Host": name})[0].status == 200
        both = {"Host": name, "Origin": f"http://{name.lower()}"}
        assert asked(server, headers=both)[0].status == 200


def test_secrets_are_new_each_time(server):
    with ExplorerServer(0, {"": PAGE}, {}) as other:
        assert other.secret != server.secret


@pytest.mark.parametrize(
    "host",
    [
        "evil.com:PORT",
        "localhost.evil.com:PORT",
        "localhost",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.2:PORT",
        "0.0.0.0:PORT",
        "[::1]:PORT",
        "127.0.0.1:PORT, evil.com",
        "user@127.0.0.1:PORT",
        "",
    ],
)
def test_other_hosts_are_refused(server, host):
    host = host.replace("PORT", str(server.server_port))
    status, reason = refused(server, headers={"Host": host})
    assert (status, reason) == (403, "asked for by another name than that of this machine")
    options = {"path": question(server), "body": {}, "headers": {"Host": host}}
    assert refused(server, **options)[0] == 403


def test_no_host_or_two_are_refused(server):
    assert refused(server, drop=["Host"])[0] == 403
    host = f"127.0.0.1:{server.server_port}"
    assert refused(server, headers={"Host": [host, host]})[0] == 403
    assert refused(server, headers={"Host": [host, "evil.com"]})[0] == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.com",
        "https://127.0.0.1:PORT",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "http://localhost:PORT",  # another than the Host of the request
        "http://127.0.0.1:PORT.evil.com",
        "null",
        "",
    ],
)
def test_other_origins_are_refused(server, origin):
    origin = origin.replace("PORT", str(server.server_port))
    options = {"path": question(server), "body": {}, "headers": {"Origin": origin}}
    status, reason = refused(server, **options)
    assert (status, reason) == (403, "asked for by another page than that of the explorer")
    assert refused(server, headers={"Origin": origin})[0] == 403


def test_without_the_secret_nothing_is_there(server):
    secret = server.secret
    paths = [
        "/",
        "//",
        "/answer",
        "/model.json",
        "/favicon.ico",
        f"/{secret[:-1]}/",
        f"/{secret}x/",
    ]
    paths += [f"/{secret}", f"/x/{secret}/", f"/{secret.swapcase()}/", "*"]
    paths += [f"http://127.0.0.1:{server.server_port}/{secret}/", f"/?{secret}/", f"/%00{secret}/"]
    for path in paths:
        assert refused(server, path=path)[0] == 404, path
        if path.startswith("/"):
            assert refused(server, path=f"{path}answer", body={})[0] == 404, path


def test_secrets_are_compared_in_constant_time(server, monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(explorer_server.hmac, "compare_digest", compare)
    asked(server)
    asked(server, path="/guess/")
    secret = server.secret.encode()
    assert compared == [(secret, secret), (b"guess", secret)]


def test_files_are_those_of_the_page_alone(server):
    up = "../../../../../../etc/passwd"
    names = [up, f"static/{up}", "model.safetensors", "%2e%2e/%2e%2e/etc/passwd", "answer", "?x"]
    for name in names:
        assert refused(server, path=f"/{server.secret}/{name}") == (404, "no such file")
    other = f"/{server.secret}/other"
    assert refused(server, path=other, body={}) == (404, "no such question")


def test_long_questions_are_refused(server):
    body = b'{"a": "' + b"x" * LARGEST + b'"}'
    status, reason = refused(server, path=question(server), body=body)
    assert (status, reason) == (413, f"{len(body)} bytes; expected {LARGEST} at most")
    said = {"Content-Length": str(10**30)}
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        head = f"POST {question(server)} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
        head += (
            f"Content-Type: application/json\r\nContent-Length: {said['Content-Length']}\r\n\r\n"
        )
        connection.sendall(head.encode())
        connection.shutdown(socket.SHUT_WR)
        assert b" 413 " in connection.recv(100)
    assert asked(server)[0].status == 200


@pytest.mark.parametrize("length", [None, "x", "-1", "1.5", "²"])
def test_questions_of_unknown_length_are_refused(server, length):
    headers = {} if length is None else {"Content-Length": length.encode()}
    drop = ["Content-Length"] if length is None else []
    options = {"path": question(server), "body": {}, "headers": headers, "drop": drop}
    assert refused(server, **options) == (411, "expected a Content-Length")
    chunked = {"Transfer-Encoding": "chunked"}
    assert refused(server, path=question(server), body={}, headers=chunked)[0] == 411


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is no number of JSON"),
        (b"[1]", "got list; expected an object in JSON"),
        (b"5", "got int; expected an object in JSON"),
        (b"null", "got NoneType; expected an object in JSON"),
    ],
)
def test_what_is_no_json_is_refused(server, body, reason):
    status, said = refused(server, path=question(server), body=body)
    assert status == 400
    assert reason in said


def test_forms_of_other_pages_are_refused(server):
    """A form or a script elsewhere may send text without being asked first, but no JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {"Content-Type": kind}
        assert refused(server, path=question(server), body={}, headers=headers)[0] == 415


def test_other_methods_are_refused(server):
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"):
        assert refused(server, method=method)[0] == 501


def test_errors_are_said_in_words(server, capsys):
    path = question(server)
    assert refused(server, path=path, body={"fault": 1}) == (400, "explore: <b>no</b>")
    assert not capsys.readouterr().err
    said = "the explorer failed: KeyError: 'bug'"
    assert refused(server, path=path, body={"bug": 1}) == (500, said)
    assert "Traceback" in capsys.readouterr().err
    assert asked(server, path=path, body={})[0].status == 200


def test_every_answer_keeps_the_address_to_itself(server):
    answers = [
        asked(server)[0],
        asked(server, path="/")[0],
        asked(server, headers={"Host": "evil.com"})[0],
        asked(server, path=question(server), body={})[0],
        asked(server, method="PUT")[0],
    ]
    for response in answers:
        headers = response.headers
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        policy = dict(
            part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "Python" not in headers["Server"]


def test_nothing_is_logged(server, capfd):
    asked(server)
    asked(server, path="/x")
    asked(server, method="PUT")
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_it_listens_at_the_loopback_address_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as elsewhere:  # what listens on every address answers here too
        assert elsewhere.connect_ex(("127.0.0.2", server.server_port)) != 0


def test_models_are_asked_one_question_at_a_time():
    inside = []
    most = []

    def slow(question):
        inside.append(question)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return {}

    with ExplorerServer(0, {"": PAGE}, {"answer": slow}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        askers = []
        for _ in range(5):
            options = {"path": f"/{server.secret}/answer", "body": {}}
            askers.append(threading.Thread(target=asked, args=(server,), kwargs=options))
        for asker in askers:
            asker.start()
        assert asked(server)[0].status == 200  # files are read meanwhile
        for asker in askers:
            asker.join()
        server.shutdown()
    assert most == [1] * 5


def test_clients_that_go_away_are_let_go(server, capfd):
    for sent in (b"", b"GET", b"POST /x HTTP/1.1\r\nContent-Length: 10\r\n\r\n123", b"\0\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(sent)
    assert asked(server)[0].status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_the_pages_files_point_nowhere_and_write_no_html():
    folder = files("mvkit.apps").joinpath("templates")
    scripts = ("explorer.js", "drawing.js", "features.js")
    html = folder.joinpath("explorer.html").read_text("utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|style\.css|explorer\.(?:css|js))""", html)
    assert not re.findall(r"\son\w+=|\sstyle=|<style|javascript:", html)
    for name in scripts:
        text = folder.joinpath(name).read_text("utf-8")
        words = (
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|DOMParser"
        )
        assert not re.findall(words, text), name
        addresses = set(re.findall(r"https?://[^\"']+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name  # a name, which nobody asks for
        assert len(text.splitlines()) < 400, name
        assert max(map(len, text.splitlines())) < 110, name
    style = folder.joinpath("explorer.css").read_text("utf-8")
    assert "url(" not in style
    assert "@import" not in style
