"""A Hub on this machine for the tests of pushing: the requests of huggingface_hub that they make, kept in memory.

`python tests/loopback_hub.py` prints its address and serves until it is killed. Clients need HF_ENDPOINT=<address>,
HF_HUB_DISABLE_XET=1 and any HF_TOKEN. Models only; one branch, main; `/_files/<repo>` lists what a repository holds.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class File:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """What the real Hub gives as ETag: sha256 of a large file, git's sha1 of another."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    head: str = ""

    def commit(self, tree: dict[str, File]) -> str:
        self.head = hashlib.sha1(f"{self.head} {sorted((k, f.oid) for k, f in tree.items())}".encode()).hexdigest()
        self.commits[self.head] = tree
        return self.head

    def tree(self, revision: str) -> tuple[str, dict[str, File]]:
        """(commit, its files); KeyError for an unknown revision."""
        sha = self.head if revision == "main" else revision
        return sha, self.commits[sha]


REPOSITORIES: dict[str, Repository] = {}
LARGE: dict[str, bytes] = {}  # uploaded large files by sha256, before and after a commit names them
LOCK = Lock()
REPO = r"([^/]+/[^/]+)"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    # --- plumbing

    def log_message(self, *_args):
        pass

    def reply(self, status: int, payload=b"", **headers):
        if not isinstance(payload, bytes):
            payload = json.dumps(payload).encode()
        self.send_response(status)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Type": "application/json", "Content-Length": len(payload)} | names).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def refuse(self, status: int, code: str, **headers):
        self.reply(status, {"error": code}, X_Error_Code=code, X_Error_Message=code, **headers)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self):
        url = urlsplit(self.path)
        path, body = unquote(url.path), self.body()
        with LOCK:
            for method, pattern, handle in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    return handle(self, body, parse_qs(url.query), *match.groups())
        return self.refuse(404, "NoRoute")

    do_GET = do_HEAD = do_POST = do_PUT = route

    # --- what huggingface_hub asks

    def create(self, body, _query):
        wanted = json.loads(body)
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self.refuse(401, "Unauthorized")
        name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        url = {"url": f"http://{self.headers['Host']}/{name}"}
        if name in REPOSITORIES:
            return self.reply(409, {"error": "You already created this model repo"} | url)
        REPOSITORIES[name] = Repository(bool(wanted.get("private")) or wanted.get("visibility") == "private")
        REPOSITORIES[name].commit({".gitattributes": File(b"*.safetensors filter=lfs diff=lfs merge=lfs\n", False)})
        return self.reply(200, url)

    def valid_yaml(self, _body, _query):
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, body, _query, name, revision):
        if name not in REPOSITORIES:
            return self.refuse(404, "RepoNotFound")
        sha, tree = REPOSITORIES[name].tree(revision)
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": tree[file["path"]].oid if file["path"] in tree else None,
            }
            for file in json.loads(body)["files"]
        ]
        return self.reply(200, {"files": answers, "commitOid": sha})

    def large_batch(self, body, _query, _name):
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"http://{self.headers['Host']}/_large/{wanted['oid']}", "header": {}}}
            known = wanted["oid"] in LARGE
            objects.append({"oid": wanted["oid"], "size": wanted["size"]} | ({} if known else {"actions": upload}))
        self.reply(200, {"transfer": "basic", "objects": objects, "hash_algo": "sha256"})

    def put_large(self, body, _query, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "WrongHash")
        LARGE[oid] = body
        return self.reply(200)

    def commit(self, body, _query, name, revision):
        repository = REPOSITORIES[name]
        tree = dict(repository.tree(revision)[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                tree[value["path"]] = File(LARGE[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
            elif line["key"] != "header":
                return self.refuse(400, "UnknownOperation")
        sha = repository.commit(tree)
        url = f"http://{self.headers['Host']}/{name}/commit/{sha}"
        return self.reply(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def info(self, _body, _query, name, revision):
        try:
            sha, tree = REPOSITORIES[name].tree(revision or "main")
        except KeyError:
            return self.refuse(404, "RevisionNotFound" if name in REPOSITORIES else "RepoNotFound")
        siblings = [{"rfilename": path} for path in sorted(tree)]
        private = REPOSITORIES[name].private
        return self.reply(200, {"id": name, "sha": sha, "private": private, "tags": [], "siblings": siblings})

    def list_tree(self, _body, query, name, revision, folder):
        try:
            _, tree = REPOSITORIES[name].tree(revision)
        except KeyError:
            return self.refuse(404, "RevisionNotFound" if name in REPOSITORIES else "RepoNotFound")
        prefix = f"{folder}/" if folder else ""
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        found = [
            {"type": "file", "path": path, "size": len(file.content), "oid": file.oid}
            for path, file in sorted(tree.items())
            if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
        ]
        return self.reply(200, found) if found else self.refuse(404, "EntryNotFound")

    def download(self, _body, _query, name, revision, path):
        try:
            sha, tree = REPOSITORIES[name].tree(revision)
        except KeyError:
            return self.refuse(404, "RevisionNotFound" if name in REPOSITORIES else "RepoNotFound")
        if path not in tree:
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=sha)
        file = tree[path]
        return self.reply(
            200, file.content, X_Repo_Commit=sha, ETag=f'"{file.oid}"', Content_Type="application/octet-stream"
        )

    def files(self, _body, _query, name):
        sha, tree = REPOSITORIES[name].tree("main")
        answer = {"sha": sha, "commits": len(REPOSITORIES[name].commits), "private": REPOSITORIES[name].private}
        self.reply(200, answer | {"files": {path: len(file.content) for path, file in tree.items()}})


READ = ("GET", "HEAD")
ROUTES = [
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.valid_yaml),
    (("POST",), f"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    (("POST",), f"/{REPO}.git/info/lfs/objects/batch", Handler.large_batch),
    (("PUT",), "/_large/([0-9a-f]{64})", Handler.put_large),
    (("POST",), f"/api/models/{REPO}/commit/(.+)", Handler.commit),
    (READ, f"/api/models/{REPO}(?:/revision/(.+))?", Handler.info),
    (READ, f"/api/models/{REPO}/tree/([^/]+)(?:/(.+))?", Handler.list_tree),
    (READ, f"/{REPO}/resolve/([^/]+)/(.+)", Handler.download),
    (READ, f"/_files/{REPO}", Handler.files),
]


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
