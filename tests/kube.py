"""As much of Kubernetes as a submitted job needs: an API on 127.0.0.1, a scheduler, and pods that are processes here.

    with cluster(folder, {"sdlora": volume}, NODES, os.environ) as kube:
        subprocess.run([...], env={**os.environ, "HOME": str(folder)})
        kube.jobs

The API refuses what Kubernetes' own refuses of such jobs: unknown keys, cards without a limit, mounts of no volume. The
scheduler places a pod on the first node whose description has room for it, and whose taints it tolerates. A pod is its
container's command, started in an empty folder; a volume is mounted where it lies, so its path must be that.
"""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

Object = dict[str, Any]
# what the plugin's own client asks for, and nothing else
JOBS, PODS, SECRETS = (
    re.compile(rf"/{api}/namespaces/(?P<space>[^/]+)/{kind}(?:/(?P<name>[^/]+))?(?:/(?P<part>status|log))?")
    for api, kind in (("apis/batch/v1", "jobs"), ("api/v1", "pods"), ("api/v1", "secrets"))
)
SUFFIXES = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|Ki|Mi|Gi)?")


def quantity(text: str) -> float:
    """A number with one of Kubernetes' suffixes."""
    found = QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    return float(found[1]) * SUFFIXES[found[2] or ""]


def check(value: Any, kind: str, place: str = "") -> None:
    """Refuse keys that Kubernetes does not know, as its API does with strict validation.

    Args:
        value: What is submitted, as JSON.
        kind: Its type, as the client's models name it.
        place: Where it stands.

    Raises:
        ValueError: If it has an unknown key.
    """
    from kubernetes import client  # 0.4 s, which every worker would take

    if found := re.fullmatch(r"list\[(.*)\]", kind):
        for number, part in enumerate(value):
            check(part, found[1], f"{place}[{number}]")
    elif found := re.fullmatch(r"dict\((.*), (.*)\)", kind):
        for name, part in value.items():
            check(part, found[2], f"{place}.{name}")
    elif kind.startswith("V1"):
        model = getattr(client, kind)
        types = {there: model.openapi_types[name] for name, there in model.attribute_map.items()}
        for name, part in value.items():
            if name not in types:
                raise ValueError(f"{place}.{name}: unknown field of {kind}")
            check(part, types[name], f"{place}.{name}")


@dataclass
class Job:
    """A submitted job and its one pod."""

    body: Object
    node: str | None
    process: "subprocess.Popen[bytes] | None" = None
    said: Path = Path(os.devnull)

    @property
    def pod(self) -> Object:
        return self.body["spec"]["template"]["spec"]  # type: ignore[no-any-return]

    @property
    def container(self) -> Object:
        return self.pod["containers"][0]  # type: ignore[no-any-return]

    @property
    def limits(self) -> dict[str, str]:
        return self.container["resources"]["limits"]  # type: ignore[no-any-return]

    @property
    def command(self) -> str:
        return str(self.container["args"][-1])

    @property
    def code(self) -> int | None:
        """How the container ended; None while it runs."""
        return None if self.process is None else self.process.poll()

    def lose_node(self) -> None:
        """The pod ends as it does when its machine goes away."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)

    def read(self, kind: str) -> Object:
        """The job, or its pod, with its status, as the API tells it."""
        ended = self.code
        if kind == "job":
            counted = {} if ended is None else {"failed" if ended else "succeeded": 1}
            return {**self.body, "status": counted or {"active": 1}}
        state = {"running": {}} if ended is None else {"terminated": {"exitCode": ended}}
        status = {"name": "snakemake", "image": "-", "imageID": "-", "ready": False, "restartCount": 0, "state": state}
        name = self.body["metadata"]["name"]
        labels = {"job-name": name}
        return {"metadata": {"name": f"{name}-pod", "labels": labels}, "status": {"containerStatuses": [status]}}


@dataclass
class Cluster:
    """What the API knows, and what was asked of it.

    Attributes:
        jobs: Every job that was ever submitted, in order.
        secrets: Those that are there now.
        asked: Resource and verb of everything that was asked, as a role names them.
    """

    folder: Path
    volumes: Mapping[str, Path]
    nodes: list[Object]
    environment: Mapping[str, str]  # of the pods, in the place of an image's
    jobs: list[Job] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    secrets: dict[str, Object] = field(default_factory=dict)
    asked: set[tuple[str, str]] = field(default_factory=set)

    def find(self, name: str) -> Job:
        """A job that is there now."""
        (job,) = [job for job in self.jobs if job.body["metadata"]["name"] == name and name not in self.deleted]
        return job

    def submit(self, body: Object) -> Job:
        """Check, place and start a job.

        Raises:
            ValueError: For what Kubernetes would refuse.
        """
        check(body, "V1Job", "job")
        job = Job(body, None)
        self._check_container(job)
        job.node = next((node["metadata"]["name"] for node in self.nodes if fits(job, node)), None)
        if job.node is None:
            raise ValueError(f"no node for {job.container['resources']}")  # there, it would wait for ever
        workdir = self.folder / f"pod{len(self.jobs)}"
        workdir.mkdir()
        job.said = workdir.with_suffix(".log")
        with job.said.open("wb") as said:
            words = [*job.container["command"], *job.container["args"]]
            job.process = subprocess.Popen(
                words, cwd=workdir, env=self.environment, stdout=said, stderr=said, start_new_session=True
            )
        self.jobs.append(job)
        return job

    def _check_container(self, job: Job) -> None:
        resources = job.container["resources"]
        asked, limits = resources["requests"], resources.get("limits", {})
        for name in {*asked, *limits}:
            if "/" in name and asked.get(name) != limits.get(name):
                raise ValueError(f"{name}: limit must be set for non overcommitable resources")
            if name in limits and quantity(limits[name]) < quantity(asked.get(name, "0")):
                raise ValueError(f"{name}: must be less than or equal to its limit")
        volumes = {volume["name"]: volume for volume in job.pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in job.container["volumeMounts"]}
        if len(mounts) != len(job.container["volumeMounts"]):
            raise ValueError("mountPath: must be unique")
        for path, volume in mounts.items():
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                if self.volumes.get(claim) != Path(path):
                    raise ValueError(f"here, the claim {claim} cannot be mounted at {path}")


def fits(job: Job, node: Object) -> bool:
    """Whether an empty node of this description takes a pod."""
    there, marks = node["status"]["allocatable"], node["spec"].get("taints", [])
    asked = job.container["resources"]["requests"]
    room = all(quantity(asked[name]) <= quantity(there.get(name, "0")) for name in asked)
    wanted = (job.pod.get("nodeSelector") or {}).items()
    return (
        room
        and wanted <= node["metadata"]["labels"].items()
        and all(any(_tolerates(one, mark) for one in job.pod.get("tolerations") or []) for mark in marks)
    )


def _tolerates(one: Object, mark: Object) -> bool:
    same = one["operator"] == "Exists" or one.get("value", "") == mark.get("value", "")
    return one["key"] == mark["key"] and same and one.get("effect") in (None, mark["effect"])


class Api(BaseHTTPRequestHandler):
    """Answers the client of the executor."""

    cluster: Cluster

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, code: int, value: Object | bytes) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(value, bytes) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> Object:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return json.loads(text or b"{}")  # type: ignore[no-any-return]

    def _note(self, verb: str) -> None:
        """Remember what a role would have to allow."""
        for pattern, kind in ((JOBS, "jobs"), (PODS, "pods"), (SECRETS, "secrets")):
            if found := pattern.fullmatch(urlparse(self.path).path):
                resource = f"{kind}/{found['part']}" if found["part"] else kind
                self.cluster.asked.add((resource, "list" if verb == "get" and not found["name"] else verb))

    def do_POST(self) -> None:
        body, path = self._body(), urlparse(self.path).path
        self._note("create")
        try:
            if SECRETS.fullmatch(path):
                check(body, "V1Secret", "secret")
                self.cluster.secrets[body["metadata"]["name"]] = body
                return self._answer(201, body)
            if JOBS.fullmatch(path):
                return self._answer(201, self.cluster.submit(body).read("job"))
        except (ValueError, KeyError) as error:
            return self._answer(422, {"kind": "Status", "message": str(error)})
        return self._answer(404, {})

    def do_GET(self) -> None:
        self._note("get")
        asked = urlparse(self.path)
        if found := JOBS.fullmatch(asked.path):
            return self._answer(200, self.cluster.find(found["name"]).read("job"))
        if found := PODS.fullmatch(asked.path):
            if found["part"] == "log":
                if parse_qs(asked.query).get("previous") == ["True"]:
                    return self._answer(400, {"message": "previous terminated container not found"})
                return self._answer(200, self.cluster.find(found["name"].removesuffix("-pod")).said.read_bytes())
            (name,) = re.findall("job-name=(.*)", parse_qs(asked.query)["labelSelector"][0])
            return self._answer(200, {"kind": "PodList", "items": [self.cluster.find(name).read("pod")]})
        return self._answer(404, {})

    def do_DELETE(self) -> None:
        self._body()
        self._note("delete")
        path = urlparse(self.path).path
        if found := SECRETS.fullmatch(path):
            del self.cluster.secrets[found["name"]]
        elif found := JOBS.fullmatch(path):
            self.cluster.deleted.add(found["name"])
        elif not PODS.fullmatch(path):
            return self._answer(404, {})
        return self._answer(200, {"kind": "Status", "status": "Success"})


@contextmanager
def cluster(
    folder: Path, volumes: Mapping[str, Path], nodes: list[Object], environment: Mapping[str, str]
) -> Iterator[Cluster]:
    """Start the API.

    Args:
        folder: Empty. As somebody's home it has the file by which clients find the API; what pods say lies there, too.
        volumes: Where each claim's volume lies.
        nodes: Descriptions, as `kubectl get nodes -o json` has them under `items`.
        environment: What pods start with, in the place of an image's own.
    """
    found = Cluster(folder, volumes, nodes, environment)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Api,), {"cluster": found}))
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "me", "user": {"token": "-"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }  # fmt: skip
    (folder / ".kube").mkdir()
    (folder / ".kube/config").write_text(json.dumps(config), "utf-8")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        for job in found.jobs:
            if job.code is None:
                job.lose_node()
