"""Exports to the Hugging Face Hub, by huggingface_hub itself, to a server that keeps files as the
Hub does. What the Hub does with large files (LFS, Xet) is not tried here: this server takes all in
the commit itself."""

import base64
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from cluster.results.datasets import layouts
from jobs.export import __main__ as export
from tests.jobs.export.test_workflow import contents, planned, render
from tests.support.web_servers import serving

TOKEN = "hf_notAToken0123456789"


class Hub:
    """Datasets, by name, and how many commits there were."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits = 0
        self.endpoint = ""
        self.readers: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def say(self, content: object, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        named = {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body = self.read()
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.say({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            if name in self.hub.files:
                self.say({"error": "exists", "url": f"{self.hub.endpoint}/datasets/{name}"}, 409)
            else:
                assert asked.get("private") or asked.get("visibility") == "private"
                self.hub.files[name] = {".gitattributes": b""}
                self.say({"url": f"{self.hub.endpoint}/datasets/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        elif found := re.fullmatch("/api/datasets/(.+/.+)/preupload/main", path):
            files = json.loads(body)["files"]
            one = {"uploadMode": "regular", "shouldIgnore": False}
            self.say({"files": [{"path": file["path"], **one} for file in files]})
        elif found := re.fullmatch("/api/datasets/(.+/.+)/commit/main", path):
            if found[1] in self.hub.readers:
                self.say({"error": "Forbidden"}, 403)
                return
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    data = base64.b64decode(line["value"]["content"])
                    self.hub.files[found[1]][line["value"]["path"]] = data
            self.hub.commits += 1
            oid = f"{self.hub.commits:040x}"
            self.say({"commitUrl": f"{self.hub.endpoint}/datasets/{found[1]}/commit/{oid}",
                      "commitOid": oid, "success": True})  # fmt: skip
        else:
            self.say({"error": path}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch("/api/datasets/(.+?/[^/]+)/tree/main", path):
            files = self.hub.files.get(found[1])
            if files is None:
                self.say({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
                return
            self.say(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in files.items()
                ]
            )
        elif found := re.fullmatch("/datasets/(.+?/[^/]+)/resolve/main/(.+)", path):
            data = self.hub.files.get(found[1], {}).get(found[2])
            if data is None:
                self.say(b"", 404, **{"X-Error-Code": "EntryNotFound"})
                return
            oid = hashlib.sha1(data).hexdigest()
            own = {"ETag": f'"{oid}"', "X-Repo-Commit": "0" * 40}
            self.say(data, **own)
        else:
            self.say({"error": path}, 404)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    with serving(type("H", (Handler,), {"hub": hub})) as hub.endpoint:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def root(model, tmp_path_factory) -> str:
    root = str(tmp_path_factory.mktemp("rendered") / "out")
    render(root, planned(model))
    return root


def run(root: str, output: str, layout: str = "videofolder") -> int:
    return export.main([root, "--format", layout, "--output", output])


def test_an_export_on_the_hub_is_the_one_in_a_folder_in_few_commits(
    hub, root, tmp_path, capsys, caplog
):
    caplog.set_level(logging.DEBUG)
    assert run(root, "hf://datasets/owner/name") == 0
    assert run(root, str(tmp_path / "folder")) == 0
    there = {name: data for name, data in hub.files["owner/name"].items() if name[:4] != ".git"}
    assert there == contents(tmp_path / "folder")
    # What it is, the videos, the card, the metadata, and that all is there.
    assert hub.commits == 5
    said = capsys.readouterr()
    assert "read with: datasets.load_dataset('owner/name')" in said.out
    assert TOKEN not in said.out + said.err + caplog.text


def test_an_export_that_was_stopped_goes_on_and_a_finished_one_writes_nothing(hub, root, capsys):
    assert run(root, "hf://datasets/owner/name") == 0
    whole = dict(hub.files["owner/name"])
    del hub.files["owner/name"][layouts.SUCCESS_KEY], hub.files["owner/name"]["metadata.parquet"]
    before = hub.commits
    assert run(root, "hf://datasets/owner/name") == 0
    assert hub.files["owner/name"] == whole
    assert hub.commits == before + 2
    assert run(root, "hf://datasets/owner/name") == 0
    assert hub.commits == before + 2
    assert run(root, "hf://datasets/owner/name", "webdataset") == 2
    assert "belongs to another job" in capsys.readouterr().err
    assert hub.files["owner/name"] == whole


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("hf://owner/name", "names no dataset: write hf://datasets/OWNER/NAME"),
        ("hf://datasets/owner", "names no dataset: write hf://datasets/OWNER/NAME"),
        ("hf://datasets/owner/name/folder", "names no dataset"),
    ],
)
def test_what_names_no_dataset_is_refused(hub, root, capsys, output, says):
    assert run(root, output) == 2
    assert says in capsys.readouterr().err


def test_a_token_that_is_refused_is_said_and_not_repeated(hub, root, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert run(root, "hf://datasets/owner/name") == 2
    said = capsys.readouterr().err
    assert "was refused (status 401): give a token that may write there, in HF_TOKEN" in said
    assert "hf_another" not in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.files["owner/theirs"], hub.readers = {}, {"owner/theirs"}
    assert run(root, "hf://datasets/owner/theirs") == 1
    assert "was refused (status 403)" in capsys.readouterr().err


def test_the_hub_is_no_place_for_a_render(root, capsys):
    assert export.main(["hf://datasets/o/n", "--format", "parquet", "--output", "out"]) == 2
    assert "hf://... is not supported" in capsys.readouterr().err
