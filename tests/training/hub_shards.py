"""`python tests/training/hub_shards.py SHARDS FLAG ...`: toto pretrain with these flags and a Hub on this machine.

Its data set user/shards is the folder SHARDS, and nothing else is there. It answers what huggingface_hub asks to list
and read it.
"""

import hashlib
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

API = "/api/datasets/user/shards"


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, Path] = {}

    def log_message(self, *_args):
        pass

    def reply(self, status: int, content: bytes, **headers) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def entry(self, name: str) -> dict:
        content = self.files[name].read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        read = re.fullmatch(r"/datasets/user/shards/resolve/main/(.*)", path)
        tree = re.fullmatch(rf"{API}/tree/main/?(.*)", path)
        if read and read[1] in self.files:
            self.reply(200, self.files[read[1]].read_bytes(), ETag=f'"{self.entry(read[1])["oid"]}"', X_Repo_Commit="a")
        elif tree:
            start = f"{tree[1]}/" if tree[1] else ""
            inside = [name for name in self.files if name.startswith(start)]
            if "recursive=false" in self.path:
                inside = [name for name in inside if "/" not in name[len(start) :]]
            self.reply(200, json.dumps([self.entry(name) for name in inside]).encode())
        elif path == API:
            facts = {"_id": "1", "id": "user/shards", "sha": "a", "private": False, "tags": [], "siblings": []}
            self.reply(200, json.dumps(facts | {"downloads": 0, "likes": 0}).encode())
        else:
            self.reply(404, b"{}", X_Error_Code="EntryNotFound" if read or tree else "RepoNotFound")

    do_HEAD = do_GET


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    Hub.files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
    os.environ.pop("HF_HUB_OFFLINE", None)

    from toto_cli import run
    from training.pretrain import main

    run(main, sys.argv[2:])
