"""Orders per second of Gaekju and of the plain services in micro/, measured in turn on the same machine.

    bench/peers/run [--rounds 3] [--seconds 8] [--only gaekju|micro] [--perf]

Each round runs every configuration once, so that a slow minute of the machine hits all of them; the result is the median. Every
counted order is verified in the databases. The last lines are for machines:

    ratio_to_best_peer=…  hot_ratio=…  mean_turn=…

bench/README.md says what is compared, and what is unfair in which direction.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "acceptance"), str(HERE)]

from cpu import Meter, busy_cores
from gaekju_house import Cluster, House, Process, eventually, free_ports, gaekju_binary
from stubs import CONTEXTS

BIN = ROOT / "build" / "bench"
# The same PostgreSQL for both, with all of its durability: fsync, synchronous_commit and full_page_writes stay on.
POSTGRES = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}


def build_peers():
    """Builds micro and its load generator with Go, when their sources changed."""
    BIN.mkdir(parents=True, exist_ok=True)
    for name in ("micro", "load"):
        sources = [*(HERE / name).rglob("*.go"), HERE / name / "go.mod"]
        if not (BIN / name).exists() or (BIN / name).stat().st_mtime < max(it.stat().st_mtime for it in sources):
            print(f"building {name} with Go …", flush=True)
            subprocess.run(["go", "build", "-o", str(BIN / name), "."], cwd=HERE / name, check=True)


class Result:
    def __init__(self, line, meter, turns=None):
        self.line = line
        self.orders_per_s = float(re.search(r"orders_per_s=([\d.]+)", line).group(1))
        self.finished = int(re.search(r"finished=(\d+)", line).group(1))
        self.meter = meter
        self.turns = turns or {}

    @property
    def cpu_ms_per_order(self):
        """Of everything we started: services, PostgreSQL, nats-server and the load generator with its warm-up and verification."""
        return 1000 * sum(self.meter.cores.values()) * self.meter.seconds / max(1, self.finished)


def micro(cluster, folder, seconds, clients, items):
    """Six processes, one transaction a message, no outbox."""
    database = f"items{items}_micro"
    cluster.drop(database)
    cluster.create(database)
    with cluster.connect(database) as connection:
        connection.execute((HERE / "schema.sql").read_text())
        connection.execute("CHECKPOINT")
    nats_port, order_port, stock_port, payment_port = free_ports(4)
    processes = {}

    def launch(name, *argv):
        processes[name] = Process(argv, folder / f"micro-{name}.log")

    try:
        launch("nats", "nats-server", "-js", "-sd", folder / "micro-jetstream", "-a", "127.0.0.1", "-p", nats_port)
        _wait_port(nats_port)
        common = ["-dsn", cluster.dsn(database), "-nats", f"nats://127.0.0.1:{nats_port}", "-pool", 16, "-workers", 16]
        launch("stock", BIN / "micro", "-role", "stock", "-addr", f"127.0.0.1:{stock_port}", *common)
        launch("payment", BIN / "micro", "-role", "payment", "-addr", f"127.0.0.1:{payment_port}", *common)
        _wait_port(stock_port)
        _wait_port(payment_port)
        launch("order", BIN / "micro", "-role", "order", "-addr", f"127.0.0.1:{order_port}", *common,
               "-stock", f"127.0.0.1:{stock_port}", "-payment", f"127.0.0.1:{payment_port}")
        for role in ("store", "delivery", "view"):
            launch(role, BIN / "micro", "-role", role, *common)
        _wait_port(order_port)
        argv = [BIN / "load", "-url", f"http://127.0.0.1:{order_port}/orders", "-dsn", cluster.dsn(database),
                "-c", clients, "-t", seconds, "-items", items]
        return _measure(argv, {**{name: it.pid for name, it in processes.items()}, "postgres": cluster.pid})
    finally:
        for process in reversed(processes.values()):
            process.end(signal.SIGTERM)
        shutil.rmtree(folder / "micro-jetstream", ignore_errors=True)
        cluster.drop(database)


def gaekju(cluster, folder, seconds, clients, products, perf=None):
    """Six contexts, the release build; `gaekju load` over gRPC."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=folder))
    with House(cluster, folder, storefronts=[ROOT / "bench" / "storefronts" / "bench.textproto"]) as house:
        house.start()
        (folder / "up.json").write_text(json.dumps(house.up_json()))
        with cluster.connect("postgres") as connection:
            connection.execute("CHECKPOINT")
        argv = [gaekju_binary(), "load", f"--data={folder}", "--storefront=bench", f"--products={products}",
                f"--clients={clients}", f"--seconds={seconds}"]
        pids = {**{name: it.pid for name, it in house.processes.items()}, "postgres": cluster.pid}
        recorder = None
        if perf and shutil.which("perf"):
            recorder = subprocess.Popen(["perf", "record", "-q", "-a", "-F", "299", "-o", str(perf)],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = {context: _turns(house, context) for context in CONTEXTS}
        result = _measure(argv, pids)
        after = {context: _turns(house, context) for context in CONTEXTS}
        if recorder:
            recorder.send_signal(signal.SIGINT)
            recorder.wait()
        result.turns = {context: [b - a for a, b in zip(before[context], after[context])] for context in CONTEXTS}
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _turns(house, context):
    """(requests decided, turns) of a context so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{house.metrics_ports[context]}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return [sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                if re.match(rf"gaekju_turn_size_{what}[ {{]", line)) for what in ("sum", "count")]


def _measure(argv, pids):
    process = subprocess.Popen([str(arg) for arg in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Meter({**pids, "load": process.pid}) as meter:
        out, err = process.communicate(timeout=300)
    lines = [line for line in out.splitlines() if "orders_per_s=" in line]
    if process.returncode or not lines:
        raise SystemExit(f"{' '.join(map(str, argv))}\nended with {process.returncode}:\n{out}\n{err}")
    return Result(lines[-1], meter)


def _wait_port(port):
    import socket

    def open_():
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            return False
    eventually(open_, f"port {port} is open", 20)


def perf_report(perf):
    """Where the samples fell, by process and symbol."""
    done = subprocess.run(["perf", "report", "-i", str(perf), "--stdio", "--no-children", "-s", "comm,sym", "-g", "none"],
                          capture_output=True, text=True)
    rows = [line.strip() for line in done.stdout.splitlines() if re.match(r"\s+\d+\.\d+%", line)]
    print("where the samples fell (perf, whole machine):")
    for row in rows[:30]:
        print("  " + row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of all configurations (default 3)")
    parser.add_argument("--seconds", type=float, default=8, help="of orders in each measurement (default 8)")
    parser.add_argument("--clients", type=int, default=512, help="orders at a time on gaekju (default 512)")
    parser.add_argument("--micro-clients", type=int, default=128, help="orders at a time on micro (default 128, its best)")
    parser.add_argument("--only", choices=["gaekju", "micro"], help="only one side")
    parser.add_argument("--perf", action="store_true", help="one more run under `perf record`, and the top symbols")
    parser.add_argument("--max-busy", type=float, default=0.3, help="wait (90 s at most) until others use fewer cores")
    args = parser.parse_args()

    runs = {}
    if args.only != "gaekju":
        build_peers()
        runs["micro 1000 items"] = lambda *at: micro(*at, args.seconds, args.micro_clients, 1000)
        runs["micro 1 item"] = lambda *at: micro(*at, args.seconds, args.micro_clients, 1)
    if args.only != "micro":
        for products in (1000, 10000, 1):
            name = f"gaekju {products} product{'s' if products > 1 else ''}"
            runs[name] = lambda *at, n=products: gaekju(*at, args.seconds, args.clients, n)
    results = {name: [] for name in runs}

    folder = pathlib.Path(tempfile.mkdtemp(prefix="gaekju-bench-"))
    ours = "" if args.only == "micro" else f"; {gaekju_binary()}"
    print(f"{os.cpu_count()} cores; {args.rounds} rounds of {args.seconds:.0f} s{ours}", flush=True)
    try:
        with Cluster(folder / "pg", POSTGRES) as cluster:
            for number in range(args.rounds):
                for name, one in runs.items():
                    quiet = _wait_quiet(args.max_busy)
                    result = one(cluster, folder)
                    results[name].append(result)
                    print(f"round {number + 1}  {name:22s} {result.line}{'' if quiet else '  NOT QUIET'}", flush=True)
                    print(f"         {result.meter}", flush=True)
            if args.perf and args.only != "micro":
                gaekju(cluster, folder, args.seconds, args.clients, 1000, perf=folder / "perf.data")
                perf_report(folder / "perf.data")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(results)


def _wait_quiet(most):
    deadline = time.monotonic() + 90
    while busy_cores(0.7) > most:
        if time.monotonic() > deadline:
            return False
    return True


def report(results):
    median = {}
    print()
    for name, many in results.items():
        rates = [result.orders_per_s for result in many]
        median[name] = statistics.median(rates)
        cpu = statistics.median(result.cpu_ms_per_order for result in many)
        print(f"{name:22s} {median[name]:6.0f} orders/s (median of {len(rates)}; {min(rates):.0f}–{max(rates):.0f}), "
              f"{cpu:.2f} ms of CPU an order")
    ours = results.get("gaekju 1000 products")
    if ours:
        print("\nwhere the CPU goes (cores, mean of the runs over 1000 products):")
        names = sorted({name for result in ours for name in result.meter.cores})
        rows = sorted(((statistics.mean(it.meter.cores.get(name, 0) for it in ours), name) for name in names), reverse=True)
        for cores, name in rows:
            if cores >= 0.005:
                print(f"  {cores:5.2f}  {name}")
        print("\nmean turn size:")
        requests = turns = 0
        for context in CONTEXTS:
            r, t = (sum(it.turns[context][i] for it in ours) for i in (0, 1))
            requests, turns = requests + r, turns + t
            print(f"  {r / t if t else 0:6.1f}  {context}")
    print()
    if ours and "micro 1000 items" in median:
        best = max(median["micro 1000 items"], median["micro 1 item"])
        print(f"ratio_to_best_peer={median['gaekju 1000 products'] / best:.2f}")
        cpu = [statistics.median(it.cpu_ms_per_order for it in results[name]) for name in ("micro 1000 items", "gaekju 1000 products")]
        print(f"cpu_ratio_to_best_peer={cpu[0] / cpu[1]:.2f}")
    if ours:
        print(f"hot_ratio={median['gaekju 1 product'] / median['gaekju 10000 products']:.2f}")
        print(f"mean_turn={requests / turns if turns else 0:.1f}")


if __name__ == "__main__":
    main()
