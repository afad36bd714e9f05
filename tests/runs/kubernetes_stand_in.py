"""A stand-in for Kubernetes and its Dask operator, whose pods are processes of this machine."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

from reelmill.flows.server import free_port
from tests.runs.dask_processes import DaskProcesses, kill

DASK = "/apis/kubernetes.dask.org/v1/namespaces/films"
CORE = "/api/v1/namespaces/films"
LISTS = ("daskclusters", "daskworkergroups", "daskautoscalers", "pods", "services")


class Kubernetes(DaskProcesses):
    """An API server, of which there is what the operator's client asks for.

    Attributes:
        config: the file that says where the server is, for clients.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._resources: dict[str, Any] = {}
        self._pods: list[subprocess.Popen[bytes]] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.config = folder / "config.yaml"
        server = f"http://127.0.0.1:{self._server.server_port}"
        here = {"cluster": "here", "user": "me", "namespace": "films"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": server}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": here}],
        }
        self.config.write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        super().__exit__(*error)

    def existing(self, kind: str) -> list[Any]:
        """The resources of a kind."""
        return self._list(f"{DASK}/{kind}") or []

    def running(self) -> list[int]:
        """The processes of pods."""
        return [pod.pid for pod in self._pods if pod.poll() is None]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """What the API server answers: a status, and JSON."""
        if path == "/version":
            return 200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/api/v1":
            kinds = [
                {
                    "kind": kind,
                    "name": f"{kind.lower()}s",
                    "singularName": kind.lower(),
                    "namespaced": True,
                    "verbs": ["get", "list"],
                }
                for kind in ("Pod", "Service")
            ]
            return 200, {"kind": "APIResourceList", "groupVersion": "v1", "resources": kinds}
        if path == "/apis":
            return 200, {"kind": "APIGroupList", "groups": []}
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            body["metadata"]["namespace"] = "films"
            self._resources[path] = body
            self._operate(path.split("/")[-2], body)
            return 201, body
        if method == "GET" and (found := self._list(path)) is not None:
            return 200, {"kind": "List", "items": found, "metadata": {}}
        if path not in self._resources:
            return 404, {"kind": "Status", "code": 404, "reason": "NotFound", "message": path}
        if method == "PATCH":
            self._resources[path]["spec"].update(body["spec"])
        if method == "DELETE":
            if self._resources.pop(path)["kind"] == "DaskCluster":
                # All the rest is the cluster's.
                self._resources.clear()
                for pod in self._pods:
                    kill(pod)
            return 200, {"kind": "Status", "status": "Success"}
        return 200, self._resources[path]

    def _list(self, path: str) -> list[Any] | None:
        if path.split("/")[-1] not in LISTS:
            return None
        return [one for name, one in self._resources.items() if name.startswith(f"{path}/")]

    def _operate(self, kind: str, resource: Any) -> None:
        """What the operator does about a new resource."""
        name, spec = resource["metadata"]["name"], resource["spec"]
        if kind == "daskclusters":
            resource["status"] = {"phase": "Running"}
            self._scheduler_pod(name, spec["scheduler"])
            self._worker_pods(f"{name}-default", spec["worker"])
        elif kind == "daskworkergroups":
            self._worker_pods(name, spec["worker"])

    def _scheduler_pod(self, cluster: str, spec: Any) -> None:
        [container] = spec["spec"]["containers"]
        dashboard = free_port()
        here = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dashboard-address": f"127.0.0.1:{dashboard}",
        }
        self._pod(f"{cluster}-scheduler", container, here)
        labels = {"dask.org/cluster-name": cluster, "dask.org/component": "scheduler"}
        about = {"name": f"{cluster}-scheduler", "namespace": "films", "labels": labels}
        ready = [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]
        self._resources[f"{CORE}/pods/{cluster}-scheduler"] = {
            "kind": "Pod",
            "metadata": about,
            "spec": spec["spec"],
            "status": {"phase": "Running", "conditions": ready},
        }
        ports = [
            {"name": "tcp-comm", "port": self.port},
            {"name": "http-dashboard", "port": dashboard},
        ]
        self._resources[f"{CORE}/services/{cluster}-scheduler"] = {
            "kind": "Service",
            "metadata": about,
            "spec": {"type": "LoadBalancer", "ports": ports, "selector": labels},
            "status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}},
        }

    def _worker_pods(self, group: str, worker: Any) -> None:
        [container] = worker["spec"]["containers"]
        here = {"--host": "127.0.0.1", "--dashboard-address": "127.0.0.1:0"}
        for number in range(worker["replicas"]):
            name = f"{group}-worker-{number}"
            environ = {"DASK_WORKER_NAME": name, "DASK_SCHEDULER_ADDRESS": self.address}
            self._pod(name, container, here, WORKER=name, **environ)

    def _pod(self, name: str, container: Any, here: Mapping[str, str], **environ: str) -> None:
        """Run a container's command; a pod has addresses of its own, a process has not."""
        words = [
            re.sub(r"\$\((\w+)\)", lambda variable: environ[variable[1]], word)
            for word in container["args"]
        ]
        command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
        for option, value in here.items():
            if option in command:
                command[command.index(option) + 1] = value
            else:
                command += [option, value]
        given = {variable["name"]: variable["value"] for variable in container["env"] or ()}
        self._pods.append(self._start(name, command, {**given, **environ}))


def _handler(kubernetes: Kubernetes) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, answer = kubernetes.answer(
                self.command, urlsplit(self.path).path.rstrip("/"), body
            )
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler
