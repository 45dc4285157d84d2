"""A hub in a thread: the part of its protocol that pushing and pulling of models use.

A repository is a list of commits, each a mapping of paths to bytes. Large files arrive by LFS
(batch, PUT, verify) before the commit that names them by their checksum, as NDJSON.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"


class Hub:
    """What is stored, and what was asked."""

    def __init__(self):
        self.repos = {}  # name -> {"private": bool, "commits": [(id, {path: bytes})], "tags": {}}
        self.large = {}  # SHA-256 -> bytes
        self.asked = []  # (method, path) of every request
        self.refuses = {}  # part of a path -> status that it answers
        self.messages = []
        self.then = {}  # part of a path -> what is called after its answer, once
        self.address = self.storage = ""

    def commit(self, repo, files, message="by hand"):
        """Adds a commit to the repository, with the files before and these; returns its id."""
        stored = self.repos.setdefault(repo, {"private": False, "commits": [], "tags": {}})
        before = stored["commits"][-1][1] if stored["commits"] else {}
        text = f"{repo}{len(stored['commits'])}{sorted(files)}{message}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        stored["commits"].append((sha, {**before, **files}))
        self.messages.append(message)
        return sha

    def find(self, repo, revision):
        """(id, files) of a revision; None: there is none."""
        stored = self.repos[repo]
        named = {sha: (sha, files) for sha, files in stored["commits"]}
        if stored["commits"]:
            named["main"] = stored["commits"][-1]
        for tag, sha in stored["tags"].items():
            named[tag] = named[sha]
        return named.get(revision)

    def files(self, repo):
        return self.repos[repo]["commits"][-1][1] if self.repos[repo]["commits"] else {}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, code, message):
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        body = self.body()
        for part, status in self.hub.refuses.items():
            if part in f"{self.command} {path}":
                self.fail(status, "", "not today")
                return
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                action(self, *match.groups(), body)
                for part in [part for part in self.hub.then if part in path]:
                    self.hub.then.pop(part)()
                return
        self.fail(404, "", f"no route {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def may_see(self, repo):
        """Whether the repository is there for this token; otherwise the answer is given."""
        stored = self.hub.repos.get(repo)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if stored is None or (stored["private"] and not known):
            self.fail(404 if known else 401, "RepoNotFound", "Repository not found")
            return False
        return True

    def create(self, body):
        asked = json.loads(body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
            return
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repos:
            self.answer(409, {"error": "You already created this model repo", "url": repo})
            return
        private = asked.get("visibility") == "private"
        self.hub.repos[repo] = {"private": private, "commits": [], "tags": {}}
        self.answer(200, {"url": f"{self.hub.address}/{repo}"})

    def validate(self, body):
        content = json.loads(body)["content"]
        if not content.startswith("---\n") or "license: mine" in content:
            errors = [{"message": '"license" must be one of those that are known'}]
            self.answer(400, {"errors": errors, "warnings": []})
            return
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, repo, _, body):
        if not self.may_see(repo):
            return
        files = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(".safetensors")
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer(200, {"files": files})

    def batch(self, repo, body):
        if not self.may_see(repo):
            return
        objects = []
        for item in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.storage}/lfs/{item['oid']}"},
                "verify": {"href": f"{self.hub.address}/verify"},
            }
            objects.append(item if item["oid"] in self.hub.large else {**item, "actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid, body):
        if hashlib.sha256(body).hexdigest() != oid:
            self.fail(400, "", "another checksum")
            return
        self.hub.large[oid] = body
        self.answer(200)

    def verify(self, body):
        item = json.loads(body)
        known = len(self.hub.large.get(item["oid"], b"")) == item["size"]
        self.answer(200 if known else 404, {})

    def commit(self, repo, _, body):
        if not self.may_see(repo):
            return
        files, message = {}, ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.large:
                        self.fail(400, "", "a large file that was not sent")
                        return
                    files[value["path"]] = self.hub.large[value["oid"]]
        sha = self.hub.commit(repo, files, message)
        url = f"{self.hub.address}/{repo}/commit/{sha}"
        self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def info(self, repo, revision, _):
        if not self.may_see(repo):
            return
        commit = self.hub.find(repo, revision or "main")
        if commit is None:
            self.fail(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = [{"rfilename": name} for name in commit[1]]
        self.answer(200, {"id": repo, "modelId": repo, "sha": commit[0], "siblings": siblings})

    def resolve(self, repo, revision, name, _):
        if not self.may_see(repo):
            return
        commit = self.hub.find(repo, revision)
        if commit is None:
            self.fail(404, "RevisionNotFound", "Invalid rev id")
            return
        sha, files = commit
        if name not in files:
            self.fail(404, "EntryNotFound", "Entry not found")
            return
        content = files[name]
        oid = hashlib.sha256(content).hexdigest()
        if oid not in self.hub.large:
            etag = hashlib.sha1(content).hexdigest()
            self.answer(200, content, X_Repo_Commit=sha, ETag=f'"{etag}"')
            return
        linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content))}
        location = f"{self.hub.storage}/lfs/{oid}"
        self.answer(302, X_Repo_Commit=sha, Location=location, **linked)

    def large_file(self, oid, _):
        self.answer(200, self.hub.large[oid], ETag=f'"{oid}"')


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate),
    (("POST",), f"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), "/lfs/([0-9a-f]{64})", Handler.put),
    (("GET", "HEAD"), "/lfs/([0-9a-f]{64})", Handler.large_file),
    (("POST",), "/verify", Handler.verify),
    (("POST",), f"/api/models/{REPO}/commit/(.+)", Handler.commit),
    (("GET",), f"/api/models/{REPO}(?:/revision/(.+))?", Handler.info),
    (("GET", "HEAD"), f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def serving():
    """A hub that answers at `hub.address` while the context is open."""
    hub = Hub()
    handler = type("OfThisHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"  # another host, as it is there
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
