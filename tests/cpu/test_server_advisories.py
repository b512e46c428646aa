"""Faults that other servers of models had, a class a test: harmless inputs that show the guard is there.

The numbers are those of published advisories (CVE, GHSA).
"""

from __future__ import annotations

import ast
import hmac
import json
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import httpx2
import psutil
import pytest
from served import bundled, client, listening, serving

import isobit
from isobit import api
from isobit.engine import chat, conversation
from isobit.errors import IsobitError, TemplateError
from isobit.server.app import all_routes
from isobit.server.errors import clean
from isobit.server.settings import Limits

PROMPT = "import os"
SERVER = Path(isobit.__file__).parent / "server"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def http():
    return client()


@pytest.fixture(autouse=True)
def alive(http):
    """Whatever a test has sent: the server answers as before."""
    yield
    body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    reply = http.post("/v1/completions", json=body)
    assert reply.status_code == 200 and reply.json()["choices"][0]["text"] == answer()
    pool = bundled().engine.pool
    assert pool.free == pool.count


def answer():
    return bundled().generate([PROMPT], isobit.SamplingParams(max_tokens=4))[0].text


def refused(reply, *statuses):
    assert reply.status_code in (statuses or (400,)), reply.text
    assert reply.json()["error"]["message"]


def complete(http, **body):
    return http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 1} | body)


def talk(http, **body):
    return http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1} | body)


def test_01_what_multiplies_work_is_bounded(http):  # CVE-2026-34756, CVE-2024-8939
    for body in (
        {"n": 10**6},
        {"best_of": 10**6},
        {"logprobs": 10**6},
        {"stop": ["x"] * 1000},
        {"prompt": ["x"] * 5000},
        {"prompt": ["x"] * 1000, "n": 100},
    ):
        refused(complete(http, **body))
    refused(talk(http, n=10**6))
    refused(talk(http, logprobs=True, top_logprobs=10**6))


def test_02_an_empty_prompt_ends_nothing(http):  # CVE-2024-8768
    for prompt in ("", [], [[]], [""], None):
        refused(complete(http, prompt=prompt))
    refused(talk(http, messages=[]))
    refused(talk(http, messages=[{"role": "user", "content": ""}]))


def test_03_text_does_not_become_a_token_that_steers(http):  # CVE-2026-44222
    for text in ("<|endoftext|>", "a <|endoftext|><|pad|> b", [{"type": "text", "text": "<|pad|>"}]):
        body = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "<|endoftext|>"}]}
        tokens = http.post("/tokenize", json=body).json()["tokens"]
        assert not any(bundled().tokenizer.is_special(id) for id in tokens)
        read = "".join(part if isinstance(part, str) else part["text"] for part in text) if text else ""
        assert bundled().tokenizer.decode(tokens, skip_special=False) == read + "<|endoftext|>"
    refused(complete(http, prompt=[10**6]))
    refused(complete(http, prompt=[-1]))


def test_03_a_templates_own_tokens_steer():
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|pad|>{% endfor %}"
    ids = conversation.encode(bundled().tokenizer, template, [{"role": "user", "content": "x<|pad|>"}])
    text = bundled().tokenizer.encode("x", False)
    assert (ids[0], ids[1], ids[-1]) == (0, text[0], 1) and ids.count(1) == 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(((("}}},
        {"type": "no such type"},
        {"type": ["object", 7]},
        {"$ref": "#/nowhere"},
    ],
)
def test_04_a_schema_that_cannot_be_read_is_refused(http, parameters):  # CVE-2025-48944
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    refused(talk(http, tools=[tool], tool_choice="required"))
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": parameters}}
    refused(talk(http, response_format=schema))


def test_05_templates_are_not_steered_by_requests(http):  # CVE-2025-62426, CVE-2025-61620
    for variables in ({"tokenize": True}, {"messages": []}, {"add_generation_prompt": 1}, {"chat_template": "x"}):
        refused(talk(http, chat_template_kwargs=variables))
    refused(talk(http, chat_template="{{ 1 }}"))


def test_06_headers_are_bounded():  # CVE-2025-48956
    with listening(serving(limits=Limits(header=4096))) as address:
        try:
            status = httpx2.get(f"{address}/version", headers={"X-Long": "a" * 100_000}, timeout=60).status_code
        except httpx2.HTTPError:  # the connection was closed
            status = 431
        assert status in (400, 431)
        assert httpx2.get(f"{address}/version", timeout=60).status_code == 200
    many = {f"X-{number}": "a" * 100 for number in range(50)}
    refused(client(serving(limits=Limits(header=4096))).get("/version", headers=many), 431)


def test_07_keys_are_compared_in_constant_time(monkeypatch):  # CVE-2025-59425
    compared = []
    real = hmac.compare_digest

    def compare(a, b):
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    http = client(serving(keys=("first", "second", "third")))
    for key in ("first", "x", "third", ""):
        http.get("/version", headers={"Authorization": f"Bearer {key}"})
    assert compared == [(32, 32)] * 12, "digests of one length, all of them, whatever fits"


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_08_nothing_of_a_client_is_unpickled(http):  # CVE-2025-62164
    refused(complete(http, prompt_embeds="gASVAAAA"))
    refused(talk(http, prompt_embeds="gASVAAAA"))
    for path in SERVER.rglob("*.py"):
        assert not {"pickle", "cloudpickle", "torch", "marshal", "shelve"} & {*imported(path)}, path


def test_09_code_of_a_checkpoint_is_never_run(tmp_path):  # CVE-2026-22807
    folder = tmp_path / "model"
    shutil.copytree(api.find("bundled"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            isobit.LLM(str(folder)).generate([PROMPT], isobit.SamplingParams(max_tokens=1))
    except IsobitError:
        pass
    assert not (tmp_path / "ran").exists()


def test_10_errors_tell_nothing_of_the_machine(http):  # CVE-2026-22778, CVE-2026-22773
    told = "cannot read <_io.BytesIO object at 0x7fe2c0a81b20> of /home/me/models/a/config.json, see /v1/models"
    assert clean(told) == "cannot read <_io.BytesIO object at (address)> of (path), see /v1/models"
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]
    reply = talk(http, messages=[{"role": "user", "content": image}])
    refused(reply)
    assert "0x" not in reply.text and str(Path.home()) not in reply.text


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "file:///etc/passwd", "http://localhost:1\\@a.example/"]
)
def test_11_nothing_is_fetched_for_a_client(http, url):  # CVE-2026-24779, GHSA-3f6c-7fw2-ppm4
    for kind in ("image_url", "audio_url", "video_url"):
        refused(talk(http, messages=[{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]))


def test_12_no_media_is_decoded(http):  # CVE-2026-5497, CVE-2026-9540
    url = "data:video/jpeg;base64," + "/9j/" * 1000
    refused(talk(http, messages=[{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]))


def gguf(tensors, dimensions):
    """A GGUF file of one tensor without its data."""
    name = b"blk.0.attn_q.weight"
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, 0) + struct.pack("<Q", len(name)) + name
    return head + struct.pack("<I", len(dimensions)) + struct.pack(f"<{len(dimensions)}Q", *dimensions) + bytes(12)


@pytest.mark.parametrize("tensors", [1, 2**62])
@pytest.mark.parametrize("dimensions", [[2**33, 2**33], [2**63, 2], [0, 0], [2**64 - 1]])
def test_13_and_18_sizes_in_foreign_files_do_not_overflow(tmp_path, tensors, dimensions):
    # CVE-2026-53923, CVE-2026-27940, CVE-2025-53630
    (tmp_path / "model.gguf").write_bytes(gguf(tensors, dimensions))
    for model in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(IsobitError):
            isobit.LLM(str(model))


def test_14_templates_run_in_a_sandbox_with_limits():  # CVE-2026-5760, CVE-2024-34359
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ 'a' * 100000000000 }}",
    ):
        with pytest.raises(TemplateError):
            chat.render(template, HELLO)


def test_15_one_socket_listens_and_it_is_that_of_http():  # CVE-2026-3059, -3060, -3989
    with listening(serving()) as address:
        here = [one.laddr for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN]
        assert [f"http://{one.ip}:{one.port}" for one in here] == [address]
    for path in SERVER.rglob("*.py"):
        assert not {"zmq", "multiprocessing", "xmlrpc"} & {name.partition(".")[0] for name in imported(path)}, path


def test_16_caches_are_bounded():  # GHSA-389x-67px-mjg3, GHSA-mgrm-fgjv-mhv8
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", []):
                name = ast.unparse(decorator)
                assert name not in ("cache", "functools.cache"), path
                assert "lru_cache" not in name or ("maxsize=" in name and "None" not in name), path


@pytest.mark.parametrize("value", [-1, -(2**31), 2**31, 2**63, 2**64, 10**30, 1.5, "1", True, [], {}])
@pytest.mark.parametrize("field", ["max_tokens", "n", "top_k", "logprobs", "seed", "priority", "best_of"])
def test_17_every_integer_has_its_range(http, field, value):  # CVE-2026-21869
    possible = {"top_k": [-1], "seed": [-1, -(2**31), 2**31, 2**63], "priority": [-1]}
    if value in possible.get(field, []):
        assert complete(http, **{field: value}).status_code == 200
    else:
        refused(complete(http, **{field: value}))


def test_17_nesting_has_an_end(http):
    for body in ("[" * 100_000, '{"prompt":' * 500 + "1" + "}" * 500, '{"tools":' + "[" * 5000 + "]" * 5000 + "}"):
        reply = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        refused(reply)


def test_19_and_21_models_are_not_made_or_managed_over_http(http):  # CVE-2026-7482, CVE-2025-63389 and others
    for path in ("/api/create", "/api/pull", "/api/blobs/sha256:0", "/api/delete", "/v1/load_lora_adapter", "/pause"):
        for method in ("GET", "POST", "DELETE", "PUT"):
            assert http.request(method, path).status_code == 404
    writes = {method for route in all_routes(serving()) for method in route.methods} - {"GET", "HEAD", "POST"}
    assert not writes


def test_20_names_are_no_paths(http):  # CVE-2024-37032, CVE-2024-45436, CVE-2026-7020, CVE-2025-44779
    for name in ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "%2e%2e/%2e%2e", "a%00b"):
        for path in (f"/v1/models/{name}", f"/page/{name}", f"/{name}"):
            reply = http.get(path)
            assert reply.status_code == 404 and "root:" not in reply.text


def test_21_names_of_others_do_not_reach_it(http):  # CVE-2024-28224, CVE-2025-51471
    assert http.get("/version", headers={"Host": "attacker.example:8000"}).status_code == 421
    reply = http.post("/v1/completions", json={"prompt": PROMPT}, headers={"Origin": "http://attacker.example"})
    assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers


def test_22_forms_and_ranges_are_not_read(http):  # CVE-2024-47874, CVE-2025-62727
    form = http.post("/v1/completions", files={"file": ("a", b"x" * 1000)})
    refused(form, 415)
    reply = http.get("/v1/models", headers={"Range": "bytes=" + ",".join(f"{n}-" for n in range(500))})
    assert reply.status_code == 200
    form = http.post(
        "/v1/completions", content=b"prompt=a", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    refused(form, 415)


# Bodies that are no JSON, or not strictly so

BODIES = [
    b"", b" ", b"null", b"1", b'"text"', b"[]", b"true", b"{", b"}", b"{]", b"{'prompt': 'a'}", b'{"prompt": "a",}',
    b'{"prompt": NaN}', b'{"temperature": Infinity, "prompt": "a"}', b'{"temperature": -Infinity, "prompt": "a"}',
    b'{"prompt": "\\ud800"}', b'{"prompt": "\\udc00\\ud800"}', b'{"prompt": "a", "stop": "\\ud834"}',
    b'{"prompt": "a", "\\ud800": 1}', b'{"prompt": "a\x00b"}', b'{"prompt": "\xff\xfe"}', b"\xef\xbb\xbf{}", b"\xff",
    b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"prompt": "a", "temperature": 1e999}', b'{"prompt": "a"} trailing', b'{"prompt": 01}', b'{"prompt": "\t"}',
    b'{"prompt": "a", "temperature": "hot"}', b'{"prompt": {"a": 1}}', b'{"prompt": [[1, "a"]]}',
    b'{"prompt": [1, "a"]}',
    b'{"prompt": [1.5]}', b'{"prompt": [true]}', b'{"prompt": [null]}', b'{"prompt": "a", "stop": [""]}',
    b'{"prompt": "a", "stop": [1]}', b'{"prompt": "a", "stream": "yes"}', b'{"prompt": "a", "logit_bias": []}',
    b'{"prompt": "a", "logit_bias": {"1": 1000}}', b'{"prompt": "a", "logit_bias": {"99999999": 1}}', b"\x00" * 100,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_what_is_no_request_is_refused_with_a_message(http, path, body):
    if path != "/v1/completions":
        body = body.replace(b'"prompt"', b'"messages"') if "chat" in path else body.replace(b'"prompt"', b'"tokens"')
    reply = http.post(path, content=body, headers={"Content-Type": "application/json"})
    if reply.status_code != 200:  # fields of another route are not known there
        refused(reply)
    else:
        assert path in ("/tokenize", "/detokenize")


def test_lines_of_the_log_are_the_servers_own(http, capsys):
    http.get('/v1/models/a%0A{"event":"forged"}%1b[31m')
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert all(json.loads(line)["event"] == "request" for line in lines) and "\x1b" not in "".join(lines)


def test_the_server_starts_without_the_network_of_others():
    code = "import sys; from isobit.cli.main import main; sys.exit(main(['serve', 'bundled', '--host', '0.0.0.0']))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 2 and "lets other machines ask, and there is no key" in found.stderr
