"""The KakaoTalk channel and the server that stands for Kakao, as processes that can be killed.

    with StandIn(folder) as kakao, Channel(folder, house.nats_url, kakao, "tshop") as channel:
        kakao.behave(status=503, times=3)
        kakao.messages                    # what phones show
        channel.kill(); channel.start()
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import urllib.error
import urllib.request

from gaekju_house import Process, eventually, free_ports
from stubs import ROOT

CLIENTS = ROOT / "clients"


def client_environment(**more):
    """What a Python program of clients/ runs with."""
    paths = [CLIENTS / "python", CLIENTS / "kakao"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "XDG_CACHE_HOME": str(ROOT / "build" / "clients"),
            "PYTHONDONTWRITEBYTECODE": "1", **more}


def _http(url, body=None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


class _Program:
    """One process that comes and goes, with one log."""

    def __init__(self, folder, name):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / f"{name}.log"
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def logs(self):
        """For the report of a failure."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}" for log in self.folder.glob("*.log"))

    def start(self):
        assert self.process is None, "it is running"
        self.process = Process(self.argv(), self.log, env=client_environment())
        eventually(self._up, f"{self.log.name} serves", 30)

    def _up(self):
        if not self.process.alive():
            raise RuntimeError(f"ended with {self.process.popen.returncode}:\n{self.process.log_tail()}")
        try:
            return self.up()
        except OSError:
            return False

    def kill(self):
        if self.process is not None:
            self.process.end(signal.SIGKILL)
            self.process = None

    def stop(self):
        process, self.process = self.process, None
        return process.end(signal.SIGTERM)


class StandIn(_Program):
    def __init__(self, folder):
        super().__init__(folder, "stand-in")
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"

    def argv(self):
        return [sys.executable, "-m", "kakao.stand_in", f"--listen=127.0.0.1:{self.port}",
                f"--messages={self.folder}/messages.jsonl"]

    def up(self):
        return _http(f"{self.url}/requests")[0] == 200

    def behave(self, **behavior):
        assert _http(f"{self.url}/behave", behavior)[0] == 200

    @property
    def messages(self):
        return _http(f"{self.url}/messages")[1]

    @property
    def requests(self):
        """(key, status) of every request since it was started."""
        return [(request["key"], request["status"]) for request in _http(f"{self.url}/requests")[1]]

    def texts(self):
        return [message["message"] for message in self.messages]


class Channel(_Program):
    def __init__(self, folder, nats_url, kakao, storefront="tshop", flags=()):
        super().__init__(folder, "channel")
        self.nats_url, self.kakao, self.storefront, self.flags = nats_url, kakao, storefront, list(flags)
        self.database = self.folder / "kakao.db"
        self.port = free_ports(1)[0]

    def argv(self, command="run"):
        return [sys.executable, "-m", "kakao", command, f"--database={self.database}", f"--nats={self.nats_url}",
                f"--storefront={self.storefront}", f"--endpoint={self.kakao.url}", "--retry-seconds-min=0.05", "--ack-wait-seconds=1",
                "--retry-seconds-max=0.5", f"--health=127.0.0.1:{self.port}", *self.flags]

    def up(self):
        return _http(f"http://127.0.0.1:{self.port}/live")[0] == 200

    @property
    def ready(self):
        return _http(f"http://127.0.0.1:{self.port}/ready")[0] == 200

    @property
    def status(self):
        return _http(f"http://127.0.0.1:{self.port}/status")[1]

    def command(self, *arguments):
        """Runs `python -m kakao <arguments>` on the same database; returns what it printed."""
        argv = [sys.executable, "-m", "kakao", *arguments, f"--database={self.database}"]
        return subprocess.run(argv, env=client_environment(), check=True, capture_output=True, text=True, timeout=60).stdout

    def rows(self):
        """What it keeps, by notice id."""
        rows = [json.loads(line) for line in self.command("list", "--limit=100000").splitlines()]
        return {row["notice_id"]: row for row in rows}
