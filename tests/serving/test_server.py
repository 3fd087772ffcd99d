"""The server as a client meets it: addresses, keys, broken requests, clients that hang up, many
clients at once, ports.
"""

from __future__ import annotations

import ast
import asyncio
import html
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from gptcli.cli.sample import OPTIONS
from gptcli.errors import UsageError
from gptcli.runs.svg import PALETTE, THEME
from gptcli.sampling.params import sampling_params
from gptcli.serving import server as module
from gptcli.serving.fields import FIELDS
from gptcli.serving.requests import ServedModel
from gptcli.serving.scheduler import Scheduler
from gptcli.serving.server import application, is_loopback, listen, page, require_server


def test_models_are_listed(client: TestClient, served: list[ServedModel]) -> None:
    [one] = client.get("/v1/models").json()["data"]
    assert (one["id"], one["object"], one["max_model_len"]) == ("run", "model", 96)
    assert client.get("/v1/models/run").json() == one
    assert client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("POST", "/v1/chat/completions", 404, "do not chat: use /v1/completions"),
        ("GET", "/nothing", 404, "there is no /nothing here"),
        ("GET", "/" + "x" * 9999, 404, "xxx… here"),
        ("GET", "/v1/completions", 405, "does not take GET"),
        ("POST", "/v1/models", 405, "does not take POST"),
    ],
)
def test_other_addresses(
    client: TestClient, method: str, path: str, status: int, says: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


BODIES: list[tuple[bytes, str]] = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"prompt=a", "not valid JSON"),
    (b"\xff\xfe", "not valid UTF-8"),
    (b"[1]", "must be a JSON object"),
    (b"null", "must be a JSON object"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"temperature": NaN}', "from 0 to 100"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "a whole number of more than 4,300 digits"),
]


@pytest.mark.parametrize(("body", "says"), BODIES, ids=lambda one: repr(one)[:20])
def test_bodies_that_are_no_request(client: TestClient, body: bytes, says: str) -> None:
    answer = client.post(
        "/v1/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert says in message
    assert "copy the file" not in message


def test_long_prompts_and_bodies(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = client.post("/v1/completions", json={"prompt": "a word " * 150_000})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "tokens or more and max_tokens is 16, but" in error["message"], "it is not encoded"
    assert "shorten the prompt to 80" in error["message"]
    assert error["code"] == "context_length_exceeded"
    monkeypatch.setattr(module, "MAX_BODY", 1 << 20)
    answer = client.post("/v1/completions", json={"prompt": "a" * (1 << 20)})
    assert answer.status_code == 413
    assert "larger than 1 MB" in answer.json()["error"]["message"]


def test_a_form_is_not_json(client: TestClient) -> None:
    """The page of another site can send these without asking."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = client.post("/v1/completions", content="{}", headers={"Content-Type": kind})
        assert answer.status_code == 415
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_on_this_machine_only_by_its_name(served: list[ServedModel], scheduler: Scheduler) -> None:
    """A name of another site that leads here is refused, unless a key or another host is used."""
    app = application(served, scheduler)
    for name in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"):
        assert TestClient(app, base_url=f"http://{name}").get("/v1/models").status_code == 200
    for path in ("/", "/v1/models"):
        assert TestClient(app, base_url="http://evil.example").get(path).status_code == 403
    opened = application(served, scheduler, local_only=False, api_key="k")
    headers = {"Authorization": "Bearer k"}
    there = TestClient(opened, base_url="http://10.0.0.1:8000", headers=headers)
    assert there.get("/v1/models").status_code == 200


def test_key(served: list[ServedModel], scheduler: Scheduler) -> None:
    app = application(served, scheduler, api_key="geheim ü")
    there = TestClient(app, base_url="http://localhost")
    assert there.get("/").status_code == 200  # the page asks for the key
    for given, says in (
        ({}, "a key is needed"),
        ({"Authorization": "Bearer other"}, "the key is wrong"),
        ({"Authorization": "geheim"}, "a key is needed"),
    ):
        answer = there.get("/v1/models", headers=given)
        assert answer.status_code == 401
        assert says in answer.json()["error"]["message"]
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    right = {b"Authorization": "Bearer geheim ü".encode()}
    assert there.get("/v1/models", headers=right).status_code == 200


def test_full_queue_is_503_and_says_when_to_try_again(served: list[ServedModel]) -> None:
    idle = Scheduler([served[0].loaded], batch_size=1, max_waiting=0)
    answer = TestClient(application(served, idle), base_url="http://localhost").post(
        "/v1/completions", json={"prompt": "a"}
    )
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["error"]["code"] == "queue_full"
    assert answer.json()["error"]["type"] == "server_error"


def test_an_unexpected_error_is_an_answer(served: list[ServedModel]) -> None:
    broken: Any = object()
    answer = TestClient(application(served, broken), base_url="http://localhost").post(
        "/v1/completions", json={"prompt": "a"}
    )
    assert answer.status_code == 500
    assert "AttributeError" in answer.json()["error"]["message"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_hangs_up_frees_its_rows(served: list[ServedModel], streams: bool) -> None:
    """Spoken in ASGI: after the request, the connection is lost before anything is decoded."""
    scheduler = Scheduler([served[0].loaded], batch_size=2)  # not started
    body = json.dumps({"prompt": "a", "n": 3, "max_tokens": 50, "stream": streams}).encode()
    messages = [{"type": "http.request", "body": body}]
    waited = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        while not scheduler.waiting:
            await asyncio.sleep(0)
        waited.append(scheduler.waiting)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions", "root_path": "",
        "query_string": b"", "scheme": "http", "server": ("localhost", 80), "client": ("::1", 1),
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
    }  # fmt: skip
    asyncio.run(application(served, scheduler)(scope, receive, send))
    assert waited == [3]
    scheduler._admit(scheduler.loops[0], scheduler.queues[0])
    assert scheduler.waiting == len(scheduler.loops[0].running) == 0


def test_many_clients_at_once(served: list[ServedModel], scheduler: Scheduler) -> None:
    """200 requests through four rows: each gets the text that it gets alone."""
    app = application(served, scheduler)
    bodies = [{"prompt": "ab "[: n % 3], "seed": n % 7, "max_tokens": n % 5} for n in range(200)]

    async def ask() -> list[str]:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as many:
            answers = await asyncio.gather(
                *(many.post("/v1/completions", json=body) for body in bodies)
            )
        return [answer.json()["choices"][0]["text"] for answer in answers]

    texts = asyncio.run(ask())
    alone: dict[str, str] = {}
    for body, text in zip(bodies, texts, strict=True):
        name = json.dumps(body)
        assert alone.setdefault(name, text) == text
    assert len({*texts}) > 20


def test_a_port_in_use_is_one_message() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            listen("127.0.0.1", port)
        assert caught.value.field == "port"
    for host in ("no.such.host.invalid", "256.1.1.1", "a" * 99):
        with pytest.raises(UsageError, match="no such host"):
            listen(host, 0)
    with pytest.raises(UsageError, match="cannot listen on 192"):
        listen("192.0.2.1", 0)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com")))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_server()
    monkeypatch.setattr(module, "_is_installed", lambda name: name != "uvicorn")
    with pytest.raises(UsageError, match="uvicorn is not installed") as caught:
        require_server()
    assert "gptcli[serve]" in str(caught.value.hint)


class Elements(HTMLParser):
    """Elements of a page with their attributes, and the text of its labels."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_is_one_file_whose_fields_have_names(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.text == page()
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "/*LIGHT*/" not in answer.text
    assert "--c0: #0b62c4" in answer.text
    elements = Elements(answer.text).found
    assert not [one for one in elements if "src" in one[1]]
    assert [one[1]["href"] for one in elements if "href" in one[1]] == ["data:,"]
    assert "http" not in answer.text.replace("http-equiv", "")
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len({*ids})
    labelled = {attrs.get("for") for tag, attrs in elements if tag == "label"}
    for tag, attrs in elements:
        if tag in ("input", "select", "textarea") and attrs.get("type") != "checkbox":
            named = attrs.get("aria-label") or attrs.get("id") in labelled
            assert named or attrs.get("id") == "between", attrs


def test_the_page_begins_with_the_defaults_of_the_command() -> None:
    text = page()
    assert "/*DEFAULTS*/" not in text
    defaults = json.loads(found[1]) if (found := re.search("DEFAULTS = (.*);", text)) else {}
    of_command = {name: OPTIONS[name].shown.split(",")[0] for name in defaults if name != "top_p"}
    assert {name: str(defaults[name]) for name in of_command} == {
        name: f"{float(shown)}" if name == "temperature" else shown
        for name, shown in of_command.items()
    }
    assert {*of_command} == {"temperature", "top_k", "max_tokens"}
    params = sampling_params({"greedy": False})
    assert (params.temperature, params.top_k) == (defaults["temperature"], defaults["top_k"])
    assert defaults["top_p"] == 1  # all tokens, as without --top-p


def test_the_page_calls_its_settings_by_their_labels_in_errors() -> None:
    text = page()
    names = dict(
        re.findall(r'(\w+): "([^"]+)"', text.partition("const NAMES = {")[2].partition("}")[0])
    )
    labels = dict(re.findall(r'<label for="(\w+)">([^<]+)</label>', text))
    assert {*names} >= {"max_tokens", "top_k", "top_p"}
    for field, name in names.items():
        assert field in FIELDS
        assert labels[field].partition(" (")[0] == name


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""
DRIVE = r"""
const answers = [];
fetch = async (path, options) => {
  if (path === "v1/models")
    return {ok: true, json: async () =>
      ({data: [{id: "m", max_model_len: 96, tokenizer_sha256: "0"}]})};
  answers.push(JSON.parse(options.body));
  if (answers.length === 2)
    return {ok: false, status: 400,
      json: async () => ({error: {message: "max_tokens is 96: lower max_tokens"}})};
  const logprobs = {tokens: ["b", "c"], token_logprobs: [-1, -2], text_offset: [2, 3],
    top_logprobs: [{b: -1}, {c: -2}]};
  const logprobsOfPrompt = {tokens: ["a "], token_logprobs: [null], text_offset: [0],
    top_logprobs: [null]};
  const usage = {prompt_tokens: 1, completion_tokens: 2, truncated_prompt_tokens: 1234};
  const chunks = [{choices: [{text: "a ", logprobs: logprobsOfPrompt}], usage},
    {choices: [{text: "bc", logprobs, finish_reason: "length"}], usage}];
  const text = [...chunks.map(one => JSON.stringify(one)), "[DONE]"]
    .map(data => `data: ${data}\n\n`).join("");
  return {ok: true, body: new ReadableStream({start(stream) {
    stream.enqueue(new TextEncoder().encode(text));
    stream.close();
  }})};
};
(async () => {
  await start();
  $("prompt").value = "x a ";
  $("echo").checked = true;
  const before = codeOf("curl");
  await submit();
  const [one] = outputs, code = codeOf("curl"), python = codeOf("python");
  one.show(1);
  const card = $("card").getBoundingClientRect();
  const token = one.text.querySelectorAll(".token")[1].getBoundingClientRect();
  const covers = card.left < token.right && card.right > token.left && card.top < token.bottom &&
    card.bottom > token.top;
  const told = {sent: answers[0], before, code, python, covers, remark: one.remark.textContent,
    facts: one.facts.textContent, generated: one.generated};
  await submit();
  told.problem = outputs[0].problem.textContent;
  document.body.textContent = JSON.stringify(told);
})();
"""


@pytest.mark.skipif(not BROWSER, reason="needs chromium")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """Its request, its code, and what it says, with answers made here."""
    file = tmp_path / "page.html"
    first, sign, rest = page().rpartition("start();\n</script>")
    assert sign
    file.write_text(f"{first}{DRIVE}</script>{rest}", "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"]
    dom = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    told = json.loads(html.unescape(dom.partition("<body>")[2].partition("</body>")[0]))
    sent = told["sent"]
    assert {*sent} <= {*FIELDS}
    assert (sent["top_k"], sent["top_p"], sent["temperature"]) == (40, 1, 1)
    assert (sent["max_tokens"], sent["truncate_prompt_tokens"]) == (48, -1)
    assert told["remark"] == (
        "The prompt has 1,235 tokens and the context 96: the model reads the last 1."
    )
    assert told["facts"].startswith("1 token read, 2 written")
    assert told["generated"] == "bc"
    assert told["covers"] is False
    assert told["problem"] == "Max tokens is 96: lower Max tokens"
    assert "seed" not in told["before"]
    body = json.loads(told["code"].partition("-d '")[2].rpartition("'")[0])
    assert body["seed"] == sent["seed"]
    assert {name: sent[name] for name in body} == body
    calls = [node for node in ast.walk(ast.parse(told["python"])) if isinstance(node, ast.Call)]
    [create] = [one for one in calls if ast.unparse(one.func).endswith("create")]
    given = {one.arg: ast.literal_eval(one.value) for one in create.keywords}
    assert given["extra_body"] == {"top_k": 40, "truncate_prompt_tokens": -1}
    assert given["seed"] == sent["seed"]


def luminance(color: tuple[float, ...]) -> float:
    """Relative luminance of WCAG 2, of a color with parts from 0 to 255."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (each / 255 for each in color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("shade", [0, 1], ids=["light", "dark"])
def test_text_on_the_colors_of_tokens_has_enough_contrast(shade: int) -> None:
    text = page()
    probable = re.search(r"--c2\) \$\{Math\.round\((\d+) - ", text)
    surprising = re.search(r"--c1\) \$\{Math\.round\((\d+) \+ (\d+) \* \(surprise - \.5\)", text)
    assert probable is not None
    assert surprising is not None
    strongest = {2: int(probable[1]), 1: int(surprising[1]) + int(surprising[2]) / 2}
    ink, back = (bytes.fromhex(THEME[name][shade][1:]) for name in ("ink", "back"))
    for number, percent in strongest.items():
        color = bytes.fromhex(PALETTE[number][shade][1:])
        mixed = [a + (b - a) * percent / 100 for a, b in zip(back, color, strict=True)]
        dark, light = sorted([luminance(tuple(ink)), luminance(tuple(mixed))])
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # level AA


@pytest.fixture
def address(served: list[ServedModel]) -> Iterator[str]:
    """A real server in a thread of this process."""
    import uvicorn

    scheduler = Scheduler([served[0].loaded], batch_size=2)
    scheduler.start()
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(application(served, scheduler), log_config=None, lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    host, port = listening.getsockname()
    yield f"{host}:{port}"
    running.should_exit = True
    thread.join()
    scheduler.close()


def test_over_a_socket(address: str) -> None:
    """A request as curl sends it, a client that hangs up in a stream, noise, and another request."""
    host, port = address.split(":")
    body = json.dumps({"prompt": "a", "max_tokens": 90, "stream": True, "n": 2}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(request)
        assert leaving.recv(15) == b"HTTP/1.1 200 OK"
    with socket.create_connection((host, int(port))) as noise:
        noise.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
        assert noise.recv(12) == b"HTTP/1.1 400"
    answer = httpx2.post(f"http://{address}/v1/completions", json={"prompt": "a", "seed": 1})
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("told", ["length", "chunks", "asks first"])
def test_a_body_that_is_too_large_gets_an_answer_over_a_socket(address: str, told: str) -> None:
    """A connection that is closed on bytes that were sent is reset, and its answer lost."""
    size = module.MAX_BODY + (1 << 20)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\n".encode()
    head += b"Content-Type: application/json\r\nConnection: close\r\n"
    length = b"Content-Length: %d\r\n" % size
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        if told == "asks first":
            client.sendall(head + length + b"Expect: 100-continue\r\n\r\n")
        elif told == "length":
            client.sendall(head + length + b"\r\n" + b"x" * size)
        else:
            client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(size >> 20):
                client.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
            client.sendall(b"0\r\n\r\n")
        answer = b""
        while b"larger than" not in answer and (part := client.recv(1 << 16)):
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 16 MB" in answer
