"""`gaekju up` from outside: starts, restarts what is killed, stops, and leaves nothing behind."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import psycopg
import pytest

from gaekju_house import WITHOUT_FSYNC, eventually, free_ports, gaekju_binary, postgres_bin
from stubs import CONTEXTS, ROOT

SECONDS_TO_START = 90
SHOPS = sorted(path.stem for path in (ROOT / "storefronts").glob("*.textproto"))
ORDER = json.dumps({
    "storefront": "fashion", "customer_id": "cust1", "customer_name": "jang", "delivery_address": "seoul",
    "lines": [{"product_id": "TV", "quantity": 1}]})


def gaekju(*args, check=True, timeout=120):
    """Runs the binary; returns what it printed on stdout (stderr too when it failed and may)."""
    done = subprocess.run([gaekju_binary(), *map(str, args)], capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    if check:
        assert done.returncode == 0, f"{args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout
    return done


def quick_postgres():
    """A folder of programs for --postgres_directory: PostgreSQL's own, without waiting for the disk."""
    folder = pathlib.Path(f"/tmp/gaekju-quick-postgres.{os.getuid()}")
    folder.mkdir(mode=0o755, exist_ok=True)
    settings = " ".join(f"-c {name}={value}" for name, value in WITHOUT_FSYNC.items())
    for name, more in (("initdb", "--no-sync"), ("postgres", settings)):
        script = folder / f".{name}.{os.getpid()}"
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] || set -- "$@" {more}\nexec {postgres_bin() / name} "$@"\n')
        script.chmod(0o755)
        script.rename(folder / name)
    return folder


class Up:
    """A running `gaekju up`."""

    def __init__(self, data, *flags, durable=False):
        """`durable`: as it is sold, for what the disk has a part in."""
        self.data = pathlib.Path(data)
        flags = [*flags, *([] if durable else [f"--postgres_directory={quick_postgres()}"])]
        self.log = pathlib.Path(f"{data}.out")
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                [gaekju_binary(), "up", f"--data={data}", "--port_base=0", *flags], stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)

    def output(self):
        return self.log.read_text(errors="replace")

    def state(self):
        return json.loads((self.data / "up.json").read_text())

    def wait_ready(self):
        def ready():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output()}"
            try:
                state = self.state()
                return state["ready"] and state["pid"] == self.process.pid
            except FileNotFoundError:
                return False
        deadline = time.monotonic() + SECONDS_TO_START
        while not ready():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)
        return self

    def end(self, signal_number=signal.SIGINT, timeout=60):
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(timeout)

    def call(self, method, request, *flags):
        text = request if isinstance(request, str) else json.dumps(request)
        return gaekju("call", f"--data={self.data}", method, text, *flags)

    def place(self):
        return self.call("order.PlaceOrder", ORDER, "--pick=order.order_id").strip()

    def order(self, order_id):
        return json.loads(self.call("order.GetOrder", {"order_id": order_id}))["order"]

    def completed(self, order_id):
        return self.order(order_id)["state"] == "STATE_COMPLETED"

    def connect(self, context):
        return psycopg.connect(self.state()["contexts"][context]["dsn"], autocommit=True, connect_timeout=5)


def left_behind(data):
    """Processes that have something to do with the directory."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            directory = os.readlink(process / "cwd")
        except OSError:
            continue
        if int(process.name) != os.getpid() and (str(data) in command or directory.startswith(str(data))):
            found.append(f"{process.name} {command}")
    return found


def fresh_directory():
    # Not in pytest's own: PostgreSQL's user has to be able to enter.
    return pathlib.Path(tempfile.mkdtemp(prefix="gaekju-up-"))


def clear(data):
    for path in (data, pathlib.Path(f"{data}.out")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def used():
    """A directory in which it has run before and was stopped, one way or another."""
    data = fresh_directory()
    up = Up(data).wait_ready()
    assert up.end() == 0, up.output()
    yield data
    clear(data)


@pytest.fixture(scope="module")
def running():
    data = fresh_directory()
    up = Up(data, durable=True).wait_ready()
    yield up
    up.end(signal.SIGKILL)
    eventually(lambda: not left_behind(data), "nothing is left behind", 20)
    clear(data)


def test_the_commands_it_prints_work_as_they_are(running):
    eventually(lambda: "Ctrl-C stops everything" in running.output(), "it says how to call it", 30)
    commands = [line.strip() for line in running.output().splitlines() if line.startswith("  ") and " call" in line or "grpcurl" in line]
    orders, others = [it for it in commands if it.startswith("ORDER=")], [it for it in commands if not it.startswith("ORDER=")]
    assert len(orders) == len(SHOPS) and len(others) == 2, running.output()
    people = {shop: subprocess.Popen(["bash", "-c", "set -e\n" + "\nsleep 1\n".join([order, *others])], stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True, cwd=ROOT) for shop, order in zip(SHOPS, orders)}
    for (shop, person), order in zip(people.items(), orders):
        assert f'"storefront":"{shop}"' in order
        told, _ = person.communicate(timeout=60)
        assert person.returncode == 0, f"{order}\n{told}"
        assert f'"storefront": "{shop}"' in told and '"cancelTime"' in told, told
        if shop == "fashion":
            assert '"deliveryState": "STATE_STARTED"' in told


def test_the_demo_products_are_on_sale(running):
    products = json.loads(running.call("catalog.ListProducts", {}))["products"]
    prices = {it["productId"]: (int(it["unitPrice"]["minorUnits"]), int(it["availableCount"]) + int(it.get("reservedCount", 0)))
              for it in products}
    assert prices["TV"] == (10000, 1000000) and prices["CLOCK"] == (50000, 5000000)
    items = json.loads(running.call("store.ListItems", {"storefront": "fashion"}))["items"]
    assert {"TV", "MASK", "NOTEBOOK", "TABLE", "CLOCK"} <= {it["productId"] for it in items}
    for shop in SHOPS:  # each says what it is shown with, and the documents' product 1 is one of it
        items = json.loads(running.call("store.ListItems", {"storefront": shop}))["items"]
        assert f"{shop}-1" in {it["productId"] for it in items}
        assert re.search(rf"\] {shop}: on sale: .*{shop}-1", running.output()), running.output()
    dealers = json.loads(running.call("assignment.ListDealers", {"storefront": "tshop"}))["dealers"]
    assert {it["agencyName"] for it in dealers} == {f"대리점_{n}" for n in range(10)}


def test_what_is_there_already_stays_as_it_is(running):
    stock = json.loads(running.call("catalog.GetProduct", {"product_id": "MASK"}))["product"]
    assert "fashion: on sale: TV, MASK" in gaekju("seed", f"--data={running.data}", "fashion")
    assert json.loads(running.call("catalog.GetProduct", {"product_id": "MASK"}))["product"] == stock
    done = gaekju("seed", f"--data={running.data}", "nowhere", check=False)
    assert done.returncode == 2 and "there is no storefront 'nowhere'" in done.stderr and "fashion" in done.stderr


def test_a_demo_with_a_mistake_is_told_with_its_place(running, tmp_path):
    (tmp_path / "pens.textproto").write_text('id: "pens"')
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "pens.textproto").write_text('call {\n  call: "catalog.MakeProduct"\n}\n')
    done = gaekju("seed", f"--data={running.data}", f"--storefronts={tmp_path}", check=False)
    assert done.returncode == 1 and re.search(r"demo/pens\.textproto:2:3: catalog has no method 'MakeProduct'", done.stderr), done.stderr
    (tmp_path / "demo" / "pens.textproto").write_text(
        '\ncall { call: "catalog.CreateProduct" request { [type.googleapis.com/gaekju.catalog.v1.CreateProductRequest] {} } }')
    done = gaekju("seed", f"--data={running.data}", f"--storefronts={tmp_path}", check=False)
    assert done.returncode == 1 and "pens.textproto:2:1: catalog.CreateProduct: INVALID_ARGUMENT" in done.stderr, done.stderr


@pytest.mark.parametrize("victim", [*CONTEXTS, "nats", "postgres"])
def test_what_is_killed_runs_again(running, victim):
    def entry():
        state = running.state()
        return state[victim] if victim in ("nats", "postgres") else state["contexts"][victim]

    before = entry()["pid"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: entry()["pid"] not in (0, before) and entry().get("ready", True), f"{victim} runs again", 30)
    order_id = eventually(lambda: _placed(running), f"an order is taken after {victim} was killed", 30)
    eventually(lambda: running.completed(order_id), "and completed", 60)
    assert "ended with signal 9" in running.output()


def _placed(up):
    done = gaekju("call", f"--data={up.data}", "order.PlaceOrder", ORDER, "--pick=order.order_id", check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def test_a_load_is_verified(running):
    out = gaekju("load", f"--data={running.data}", "--storefront=fashion", "--orders=500", "--clients=32", "--warmup=50",
                 "--products=20", "--cancel_ratio=0.2", "--decline_ratio=0.1", "--json")
    result = json.loads(out)
    assert result["verified"] == "yes" and result["failed"] == 0
    assert result["acked"] + result["declined"] == 500 and result["finished"] == result["acked"]
    assert result["declined"] > 10


def test_a_load_mixes_the_shops_and_is_verified(running):
    out = gaekju("load", f"--data={running.data}", "--storefront=all", "--orders=1000", "--clients=64", "--warmup=50",
                 "--products=20", "--cancel_ratio=0.2", "--decline_ratio=0.1", "--json", timeout=300)
    result = json.loads(out)
    assert result["verified"] == "yes" and result["failed"] == result["rejected"] == 0, out
    assert result["finished"] == result["acked"] and result["acked"] + result["declined"] == 1000, out
    # Two of the five wait for people, but for those that were cancelled; three ask for money at once.
    assert 200 < result["waiting"] < 450 and 20 < result["declined"] < 100, out


def test_a_load_without_enough_stock_is_refused_and_verified(running):
    out = gaekju("load", f"--data={running.data}", "--storefront=mealkit,tshop", "--orders=400", "--clients=64", "--warmup=0",
                 "--products=4", "--stock=50", "--json", timeout=300)
    result = json.loads(out)
    assert result["verified"] == "yes" and result["failed"] == 0, out
    assert result["waiting"] == 200 and result["rejected"] == 200, out


def test_an_audit_finds_nothing_wrong(running):
    assert "violations=0" in gaekju("audit", f"--data={running.data}")


def test_a_second_one_on_the_same_data_says_which_pid_runs_it(running):
    done = gaekju("up", f"--data={running.data}", "--port_base=0", check=False)
    assert done.returncode == 1
    assert f"pid {running.process.pid}" in done.stderr and "--data" in done.stderr
    assert running.process.poll() is None


def test_a_port_that_is_taken_is_named(running):
    with socket.socket() as taken:
        # Below the ports that the kernel gives to outgoing connections, one of which could be the first context's.
        port = free_ports(1)[0]
        taken.bind(("127.0.0.1", port))
        taken.listen()
        data = fresh_directory()
        # The second context's port.
        done = gaekju("up", f"--data={data}", f"--port_base={port - 1}", check=False)
        clear(data)
    assert done.returncode == 1
    assert f"port {port} of payment is taken by pid {os.getpid()}" in done.stderr and "--port_base" in done.stderr


@pytest.mark.parametrize("args, says", [
    (["--postgres_directory=/nonexistent"], "apt-get install postgresql"),
    (["--storefronts=/nonexistent"], "--storefronts"),
    (["--orders=3"], "has no flag --orders"),
    (["--dat=3"], "did you mean --data"),
    (["--listen=127.0.0.1:1"], "gaekju serve"),
    (["extra"], "extra"),
])
def test_what_is_missing_or_wrong_is_said(args, says):
    data = fresh_directory()
    done = gaekju("up", f"--data={data}", *args, check=False)
    clear(data)
    assert done.returncode in (1, 2) and says in done.stderr, done.stderr


def test_a_bad_storefront_ends_it_with_the_place_of_the_mistake():
    data, storefronts = fresh_directory(), fresh_directory()
    (storefronts / "bad.textproto").write_text('id: "bad"\nplace { step { id: "pay" cal: "payment.Capture" } }\n')
    done = gaekju("up", f"--data={data}", "--port_base=0", f"--postgres_directory={quick_postgres()}",
                  f"--storefronts={storefronts}", check=False)
    assert done.returncode == 1 and "bad.textproto:2:" in done.stderr, done.stderr
    assert not left_behind(data)
    clear(data)
    clear(storefronts)


def test_ctrl_c_stops_all_of_it_and_the_data_stays(used):
    data = used
    try:
        up = Up(data).wait_ready()
        order_id = up.place()
        eventually(lambda: up.completed(order_id), "the order is completed", 30)
        ports = {name: it["port"] for name, it in up.state()["contexts"].items()}
        assert up.end(signal.SIGINT) == 0, up.output()
        assert not left_behind(data)
        assert not (data / "up.json").exists()
        assert "database system is shut down" in (data / "log" / "postgres.log").read_text()

        up = Up(data).wait_ready()
        assert up.order(order_id)["state"] == "STATE_COMPLETED"
        assert ports == {name: it["port"] for name, it in up.state()["contexts"].items()}
        assert up.end(signal.SIGTERM) == 0
    finally:
        up.end(signal.SIGKILL)


def test_nothing_outlives_a_killed_supervisor_and_the_next_one_goes_on(used):
    data = used
    try:
        up = Up(data).wait_ready()
        order_id = up.place()
        up.end(signal.SIGKILL)
        eventually(lambda: not left_behind(data), "nothing is left behind", 20)

        # As after a power cut: a pid file whose number is by now that of another process of PostgreSQL's user.
        owner = ["setpriv", "--reuid=postgres", "--clear-groups", "--regid=postgres"] if os.geteuid() == 0 else []
        other = subprocess.Popen([*owner, "sleep", "300"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        (data / "postgres" / "postmaster.pid").write_text(f"{other.pid}\n{data}/postgres\n{int(time.time())}\n1\n\n\n")
        try:
            up = Up(data).wait_ready()
        finally:
            other.kill()
            other.wait()
        eventually(lambda: up.completed(order_id), "the order goes on", 60)
        assert up.end(signal.SIGINT) == 0
    finally:
        up.end(signal.SIGKILL)


def test_it_can_be_stopped_while_it_starts():
    data = fresh_directory()
    up = Up(data)
    try:
        eventually(lambda: "making a PostgreSQL cluster" in up.output(), "it has begun", 30)
        assert up.end(signal.SIGINT) == 0, up.output()
        assert not left_behind(data)
    finally:
        up.end(signal.SIGKILL)
        clear(data)


def test_an_audit_sees_what_is_wrong(running):
    """Seen red: each line breaks one invariant, and is put back."""
    def audit():
        done = gaekju("audit", f"--data={running.data}", "--settle=0s", check=False)
        return done.returncode, done.stdout

    order_id = running.place()
    eventually(lambda: running.completed(order_id), "the order is completed", 30)
    eventually(lambda: audit()[0] == 0, "nothing is wrong before", 30)
    cases = [
        ("payment", f"DELETE FROM payments WHERE order_id = '{order_id}'", r"invariant 2: .*payment's step|invariant 3"),
        ("payment", f"DELETE FROM ledger_entries WHERE key LIKE '{order_id}%debit'", r"invariant 3: .*ledger"),
        ("delivery", f"DELETE FROM deliveries WHERE key LIKE '{order_id}%'", r"invariant 2: .*delivery's step"),
        ("view", f"DELETE FROM order_views WHERE key = '{order_id}'", r"invariant 6: the view of order"),
        ("order", f"DELETE FROM orders WHERE key = '{order_id}'", r"invariant 5: .*does not exist"),
    ]
    for context, statement, expected in cases:
        table = re.search(r"FROM (\w+)", statement).group(1)
        with running.connect(context) as connection:
            connection.execute("SET session_replication_role = replica")  # the ledger's guard
            connection.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM {table}")
            assert connection.execute(statement).rowcount >= 1, statement
            code, out = audit()
            connection.execute(f"INSERT INTO {table} SELECT * FROM kept ON CONFLICT DO NOTHING")
        assert code == 1 and re.search(expected, out), f"{statement}\n{out}"
    assert audit()[0] == 0


def test_a_roll_out_under_load_fails_nothing_and_leaves_nothing_to_time_out(running):
    """Each context is ended with SIGTERM and comes back: callers repeat what was refused, and no message is lost."""
    load = subprocess.Popen(
        [gaekju_binary(), "load", f"--data={running.data}", "--storefront=fashion", "--seconds=10", "--clients=32", "--warmup=50", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    for context in CONTEXTS:
        before = running.state()["contexts"][context]["pid"]
        os.kill(before, signal.SIGTERM)
        eventually(lambda: running.state()["contexts"][context]["pid"] not in (0, before)
                   and running.state()["contexts"][context]["ready"], f"{context} serves again", 30)
    out, err = load.communicate(timeout=120)
    assert load.returncode == 0, err
    result = json.loads(out)
    assert result["failed"] == 0 and result["finished"] == result["acked"] and result["verified"] == "yes"
    assert time.monotonic() - started < 30, err
