"""A stand-in for the Hugging Face Hub on the loopback: the part of its API that pushing a model and reading it back
take. Xet is left out, so a client that has it must be told not to use it (`Hub.environment`)."""

import base64
import hashlib
import json
import re
import tempfile
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple, TypedDict
from urllib.parse import unquote, urlsplit

REPO, REVISION = r"(?P<repo>[^/]+(?:/[^/]+)?)", r"(?P<revision>[^/]+)"
ROUTES = {
    "whoami": r"GET /api/whoami-v2",
    "create": r"POST /api/repos/create",
    "yaml": r"POST /api/validate-yaml",
    "preupload": rf"POST /api/models/{REPO}/preupload/{REVISION}",
    "commit": rf"POST /api/models/{REPO}/commit/{REVISION}",
    "tree": rf"GET /api/models/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?",
    "info": rf"GET /api/models/{REPO}(?:/revision/{REVISION})?",
    "batch": rf"POST /{REPO}\.git/info/lfs/objects/batch",
    "upload": r"PUT /lfs/(?P<oid>[0-9a-f]{64})",
    "verify": rf"POST /{REPO}\.git/info/lfs/objects/verify",
    "resolve": rf"(?:GET|HEAD) /{REPO}/resolve/{REVISION}/(?P<path>.+)",
}
READING = ("info", "tree", "resolve")
# What the Hub's own .gitattributes sends to LFS, as far as a run writes it.
LARGE = re.compile(r".*(\.(safetensors|bin|pt|pth|pkl|model|h5|onnx|npy|npz|arrow|parquet|zip|gz)|tfevents[^/]*)")


class Request(NamedTuple):
    kind: str  # a name in ROUTES; empty where the stand-in has nothing to answer
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class Repo(TypedDict):
    private: bool
    files: dict[str, bytes]
    commits: list[tuple[str, list[str]]]  # the summary, and the paths that it wrote or deleted


class Answer(Exception):
    """Raised where a request is refused, returned where it is not."""

    def __init__(self, status: int, body: object = b"", **headers: str) -> None:
        self.status, self.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def refusal(status: int, message: str, code: str = "") -> Answer:
    return Answer(status, {"error": message}, X_Error_Message=message, X_Error_Code=code)


class Hub:
    """`with Hub() as hub:` serves at `hub.url` until the block ends. Repos belong to `hub.user`; anyone else's are
    forbidden. `hub.log` has every request in the order of arrival, `hub.repos` what has been pushed."""

    def __init__(self, token: str = "hf_a_token_of_the_tests") -> None:
        self.token, self.user = token, "someone"
        self.log: list[Request] = []
        self.repos: dict[str, Repo] = {}
        self.held, self.go = threading.Event(), threading.Event()
        # False sends every file within the commit: then a client that has Xet never comes to need it.
        self.lfs = True
        self._large: dict[str, bytes] = {}
        self._failures: dict[str, tuple[int | str, float]] = {}
        self._lock = threading.Lock()
        self._home = tempfile.TemporaryDirectory(prefix="hf_home_")
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                hub._serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        # The default poll of half a second is how long shutdown would take.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()
        self._home.cleanup()

    def environment(self) -> dict[str, str]:
        """What makes a new process take this for the Hub, and no token or proxy of the machine's."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": self._home.name,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "",
            "HUGGING_FACE_HUB_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def fail(self, kind: str, how: int | str, times: float = float("inf")) -> None:
        """Answer the next `times` requests of this kind with a status; with "close", which ends the connection without
        an answer; or with "hold", which sets `hub.held` and waits for `hub.go` before the ordinary answer. The client
        gives up at once on 403, 501 and 507. It tries 408, 429, 500, 502, 503, 504 and a closed connection again for
        "preupload", "batch", "upload" and "verify", and for "commit" if it has Xet; five times,
        which takes 5 s after a status and 23 s after a closed connection."""
        assert kind in ROUTES
        assert isinstance(how, int) or how in ("close", "hold")
        self._failures[kind] = (how, times)

    def _is_lfs(self, path: str, size: int) -> bool:
        return self.lfs and size > 0 and (size >= 10_000_000 or bool(LARGE.fullmatch(path)))

    def _oid(self, path: str, content: bytes) -> str:
        """What the client compares with its own file, to leave out what has not changed."""
        if self._is_lfs(path, len(content)):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length", 0))
        body = handler.rfile.read(length)
        if len(body) < length:  # the client was killed
            return
        path = unquote(urlsplit(handler.path).path)
        matches = {kind: re.fullmatch(route, f"{handler.command} {path}") for kind, route in ROUTES.items()}
        kind, found = next(((kind, match) for kind, match in matches.items() if match), ("", None))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(kind, handler.command, handler.path, headers, body)
        with self._lock:
            self.log.append(request)
            how, times = self._failures.get(kind, (0, 0))
            if times:
                self._failures[kind] = (how, times - 1)
        if times and how == "close":
            return
        if times and how == "hold":
            self.held.set()
            self.go.wait()
        try:
            if times and isinstance(how, int):
                # Else a client that tries again waits longer each time; with this, one second.
                message = HTTPStatus(how).phrase
                raise Answer(how, {"error": message}, X_Error_Message=message, Retry_After="0")
            if not found:
                raise refusal(404, "Not Found")
            with self._lock:
                answer = self._answer(request, **found.groupdict())
        except Answer as refused:
            answer = refused
        handler.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer.body)

    def _answer(self, request: Request, repo: str = "", revision: str | None = "main", **rest: str) -> Answer:
        given = request.headers.get("authorization")
        if request.kind == "upload":
            if given:
                raise refusal(400, "the address to upload to has its own signature, and takes no token")
            if hashlib.sha256(request.body).hexdigest() != rest["oid"]:
                raise refusal(400, "what was uploaded is not what was promised")
            self._large[rest["oid"]] = request.body
            return Answer(200)
        if given not in (None, f"Bearer {self.token}"):
            raise refusal(401, "Invalid credentials in Authorization header")
        if not given and request.kind not in ("yaml", *READING):
            raise refusal(401, "Invalid username or password.")
        if repo:
            known = self.repos.get(repo)
            if known is None or (known["private"] and not given):
                raise refusal(404 if given else 401, "Repository not found", "RepoNotFound")
            if revision not in (None, "main", self._head(repo)):
                raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return getattr(self, f"_{request.kind}")(request, repo, **rest)
        return getattr(self, f"_{request.kind}")(request)

    def _head(self, repo: str) -> str:
        return hashlib.sha1(f"{repo} {len(self.repos[repo]['commits'])}".encode()).hexdigest()

    def _whoami(self, request: Request) -> Answer:
        return Answer(200, {"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}})

    def _create(self, request: Request) -> Answer:
        asked = json.loads(request.body)
        owner = asked.get("organization") or self.user
        if owner != self.user:
            raise refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        repo = f"{owner}/{asked['name']}"
        url = {"url": f"{self.url}/{repo}", "name": repo}
        if repo in self.repos:
            raise Answer(409, {"error": "You already created this model repo", **url})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[repo] = {"private": private, "files": {}, "commits": []}
        return Answer(200, url)

    def _yaml(self, request: Request) -> Answer:
        card = json.loads(request.body)["content"]
        if not card.startswith("---\n"):
            warning = {"message": "empty or missing yaml metadata in repo card"}
            return Answer(200, {"errors": [], "warnings": [warning]})
        return Answer(200, {"errors": [], "warnings": []})

    def _preupload(self, request: Request, repo: str) -> Answer:
        there = self.repos[repo]["files"]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if self._is_lfs(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": self._oid(file["path"], there[file["path"]]) if file["path"] in there else None,
            }
            for file in json.loads(request.body)["files"]
        ]
        return Answer(200, {"files": files})

    def _batch(self, request: Request, repo: str) -> Answer:
        objects = json.loads(request.body)["objects"]
        for asked in objects:
            if asked["oid"] not in self._large:
                verify = f"{self.url}/{repo}.git/info/lfs/objects/verify"
                asked["actions"] = {
                    "upload": {"href": f"{self.url}/lfs/{asked['oid']}"},
                    "verify": {"href": verify},
                }
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _verify(self, request: Request, repo: str) -> Answer:
        asked = json.loads(request.body)
        if len(self._large.get(asked["oid"], b"")) != asked["size"]:
            raise refusal(404, "nothing of this name and size was uploaded")
        return Answer(200)

    def _commit(self, request: Request, repo: str) -> Answer:
        header, *changes = [json.loads(line) for line in request.body.splitlines()]
        files = dict(self.repos[repo]["files"])
        paths = []
        for key, value in ((change["key"], change["value"]) for change in changes):
            path = value["path"]
            folder = path.rstrip("/") + "/"
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(folder))]
            if key == "file":
                files[path] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self._large:
                    raise refusal(400, f"Your push was rejected because {path} points to an object never uploaded")
                files[path] = self._large[value["oid"]]
            elif not gone:
                raise refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                for name in gone:
                    del files[name]
            paths += gone if key.startswith("deleted") else [path]
        self.repos[repo]["files"] = files
        self.repos[repo]["commits"].append((header["value"]["summary"], sorted(paths)))
        head = self._head(repo)
        return Answer(200, {"success": True, "commitOid": head, "commitUrl": f"{self.url}/{repo}/commit/{head}"})

    def _info(self, request: Request, repo: str) -> Answer:
        names = [{"rfilename": name} for name in sorted(self.repos[repo]["files"])]
        about = {"id": repo, "private": self.repos[repo]["private"], "sha": self._head(repo), "siblings": names}
        return Answer(200, about)

    def _tree(self, request: Request, repo: str, path: str | None) -> Answer:
        files = {
            name: content
            for name, content in self.repos[repo]["files"].items()
            if not path or name.startswith(f"{path}/")
        }
        if path and not files:
            raise refusal(404, f"{path} does not exist", "EntryNotFound")
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": self._oid(name, content)}
            for name, content in sorted(files.items())
        ]
        return Answer(200, tree)

    def _resolve(self, request: Request, repo: str, path: str) -> Answer:
        head = self._head(repo)
        if path not in self.repos[repo]["files"]:
            raise Answer(404, b"Entry not found", X_Error_Code="EntryNotFound", X_Repo_Commit=head)
        content = self.repos[repo]["files"][path]
        return Answer(200, content, X_Repo_Commit=head, ETag=f'"{self._oid(path, content)}"')
