"""A private house: PostgreSQL, nats-server and one `gaekju serve` per context, on loopback, in a temporary folder.

    with Cluster(folder) as cluster, House(cluster, storefronts=[...]) as house:
        house.start()
        house.kill("store")             # kill -9, and it stays down
        house.start("store")            # again, on the same port; waits until it serves
        house.freeze("payment")         # SIGSTOP: slow without end
        house.thaw("payment")
        with house.locked("payment", "payment"):   # its turns wait inside PostgreSQL
            ...
        house.wipe_bus()                # nats-server comes back with nothing in its store

The harness starts the processes itself instead of `gaekju up`, whose supervisor would bring a context back that a test wants down.
Everything waits on conditions. Start and stop processes from the main thread only: they die with the thread that made them.
"""

import contextlib
import fcntl
import os
import pathlib
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc
import psycopg

from stubs import CLIENTS, CONTEXTS, ROOT

SECONDS_TO_START = float(os.environ.get("GAEKJU_TEST_START_SECONDS", "30"))
SECONDS_TO_CONVERGE = float(os.environ.get("GAEKJU_TEST_CONVERGE_SECONDS", "45"))  # several of --ack_wait, on a loaded machine

# The shop that is sold, and variants of it that only tests open.
STOREFRONTS = [
    ROOT / "storefronts" / "fashion.textproto",
    *sorted((pathlib.Path(__file__).parent / "storefronts").glob("*.textproto")),
]


# The table that a context's turns touch first.
TABLE = {"assignment": "assignments", "cart": "carts", "catalog": "products", "delivery": "deliveries", "notification": "notices",
         "order": "orders", "payment": "payments", "store": "acceptances", "view": "order_views"}


def gaekju_binary():
    """GAEKJU_BIN (or GAEKJU_BINARY), or the binary of build/$GAEKJU_BUILD (release, else dev)."""
    named = os.environ.get("GAEKJU_BIN") or os.environ.get("GAEKJU_BINARY")
    if named:
        return pathlib.Path(named).resolve()
    wanted = os.environ.get("GAEKJU_BUILD")
    for build in [wanted] if wanted else ["release", "dev"]:
        binary = ROOT / "build" / build / "app" / "gaekju"
        if binary.exists():
            return binary
    raise FileNotFoundError("no gaekju binary: build it (./dev build), or set GAEKJU_BIN")


class TimedOut(AssertionError):
    """A condition did not come true in time."""


def eventually(condition, what, timeout=SECONDS_TO_CONVERGE, every=0.02):
    """Polls until `condition()` is true (or returns something true) and returns that. RPC errors count as "not yet"."""
    deadline = time.monotonic() + timeout
    last = None
    while True:
        try:
            last = condition()
            if last:
                return last
        except (grpc.RpcError, AssertionError, psycopg.OperationalError, LookupError) as error:
            last = error
        if time.monotonic() > deadline:
            raise TimedOut(f"not within {timeout:.0f} s: {what}; at last: {last!r}")
        time.sleep(every)


def free_ports(count):
    """Ports that are free now, and below the range from which the kernel picks ports for outgoing connections, so that a port
    stays free while its process is down. `gaekju up` chooses from 20000 on, and binds them seconds later: not from there."""
    low = 10000
    high = min(20000, int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    ports = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(low, high)
        if not _reserve(port):  # first of all: to try somebody else's would take it from them for a moment
            continue
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


_reserved = set()
_reservations = None  # a file with a byte for each port: whoever has it locked has the port, for as long as they live


def _reserve(port):
    """Keeps other test processes of this machine from a port that ours have not bound yet, or not again."""
    global _reservations
    if _reservations is None:
        _reservations = open(f"/tmp/gaekju-test-ports.{os.getuid()}", "ab")  # wherever TMPDIR is: there is one loopback for all
    try:
        fcntl.lockf(_reservations, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    fresh = port not in _reserved
    _reserved.add(port)
    return fresh


class Process:
    """A child process with its log. Dies with the test session, whatever happens to that."""

    def __init__(self, argv, log, user=None, env=None, stdin=subprocess.DEVNULL):
        self.argv = [str(arg) for arg in argv]
        self.log = pathlib.Path(log)
        wrapper = ["setpriv", "--pdeathsig", "KILL"]
        if user:
            wrapper += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self._out = open(self.log, "ab")
        self._out.write(f"\n--- {' '.join(self.argv)}\n".encode())
        self._out.flush()
        self.popen = subprocess.Popen(
            [*wrapper, *self.argv], stdin=stdin, stdout=self._out, stderr=subprocess.STDOUT, cwd="/",
            env=env, start_new_session=True)

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def stopped(self):
        """Whether every thread stands still."""
        states = [(task / "stat").read_text().rsplit(")", 1)[1].split()[0] for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir()]
        return all(state == "T" for state in states)

    def send(self, signal_number):
        self.popen.send_signal(signal_number)

    def end(self, signal_number, timeout=20):
        """Sends a signal, waits for the end and returns the exit code. SIGKILL when it does not end."""
        if self.alive():
            self.send(signal_number)
            if signal_number != signal.SIGKILL:
                self.send(signal.SIGCONT)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise TimedOut(f"{self.argv[0]} {self.argv[1:3]} did not end within {timeout} s of signal {signal_number}")
        finally:
            self._out.close()

    def connected_to(self, port):
        """Whether it has a connection to that port of loopback."""
        mine = set()
        with contextlib.suppress(OSError):
            for file in os.scandir(f"/proc/{self.pid}/fd"):
                with contextlib.suppress(OSError):
                    mine.add(os.readlink(file).removeprefix("socket:[").rstrip("]"))
        wanted = f"0100007F:{port:04X}"
        for row in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, _, remote, state, *rest = row.split()
            if remote == wanted and state == "01" and rest[5] in mine:
                return True
        return False

    def log_tail(self, lines=25):
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


def postgres_bin():
    for folder in [os.environ.get("GAEKJU_PG_BIN"), *sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]:
        if folder and (pathlib.Path(folder) / "initdb").exists():
            return pathlib.Path(folder)
    found = shutil.which("initdb")
    if found:
        return pathlib.Path(found).parent
    raise FileNotFoundError("no PostgreSQL server programs: install postgresql, or set GAEKJU_PG_BIN")


# For a cluster that survives its own crash and those of its clients, but not the machine's: what was written is with the kernel. Nothing
# here pulls the machine's plug, and a house's databases come and go without waiting for the disk.
WITHOUT_FSYNC = {"fsync": "off", "full_page_writes": "off"}


class Cluster:
    """A PostgreSQL of our own, with the durability of production unless told. Houses make databases in it."""

    def __init__(self, folder, settings=None):
        """`settings`: of postgresql.conf, more than or other than ours; WITHOUT_FSYNC where that is enough."""
        self.folder = pathlib.Path(folder)
        self.port = free_ports(1)[0]
        self._settings = settings or {}
        self._bin = postgres_bin()
        self._user = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._user = "postgres"
        self._process = None
        self._kept = {}  # database -> a connection that nobody uses just now
        self._lent = {}  # how the names of some databases begin -> for which contexts there were some before, and have to be now
        self._free = []  # (how such names begin, for which contexts there are some)

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / "data"
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            for parent in self.folder.parents:  # pytest makes its folders private to us
                if parent == pathlib.Path("/tmp"):
                    break
                with contextlib.suppress(PermissionError):
                    parent.chmod(parent.stat().st_mode | 0o011)
        initdb = [self._bin / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C",
                  "--no-sync"]
        if self._user:
            initdb = ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups", *initdb]
        subprocess.run([str(arg) for arg in initdb], check=True, stdout=subprocess.DEVNULL, cwd="/")
        self._argv = [self._bin / "postgres", "-D", data]
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "",
            "max_connections": 400, "shared_buffers": "128MB", "max_wal_size": "4GB", "autovacuum": "off",
            **self._settings,
        }
        for name, value in settings.items():
            self._argv += ["-c", f"{name}={value}"]
        self.start()
        return self

    def start(self):
        self._process = Process(self._argv, self.folder.parent / f"{self.folder.name}.log", user=self._user)
        eventually(lambda: self.connect("postgres").close() or True, "PostgreSQL answers", SECONDS_TO_START)

    def crash(self):
        """All of PostgreSQL ends at once, without a checkpoint; the next start recovers from the write-ahead log."""
        self._process.end(signal.SIGQUIT)

    def __exit__(self, *_):
        if self._process:
            self._process.end(signal.SIGQUIT)  # without a last checkpoint: nobody starts it again

    def dsn(self, database):
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self):
        return self._process.pid

    def connect(self, database, **options):
        return psycopg.connect(self.dsn(database), **{"autocommit": True, "connect_timeout": 5, **options})

    def ask(self, database, sql, parameters=None):
        """The rows of a query, bytea as bytes, over a connection that is kept: a new one costs PostgreSQL a process."""
        for kept in (self._kept.pop(database, None), None):
            try:
                connection = kept or self.connect(database)
                found = connection.execute(sql, parameters, binary=True).fetchall()
            except psycopg.OperationalError:
                if kept is None:
                    raise
            else:
                self._kept[database] = connection
                return found

    def lend(self, contexts):
        """An empty database for each context; returns how their names begin, before "_" and the context. Those that an earlier house
        gave back are emptied and lent again: to make one costs more than most tests do with it."""
        name, made = self._free.pop() if self._free else (f"t{random.SystemRandom().getrandbits(40):010x}", set())
        self.create(*(f"{name}_{context}" for context in contexts if context not in made))
        self._lent[name] = made, set(contexts)
        return name

    def take_back(self, name):
        """From a house whose processes have all ended."""
        made, used = self._lent.pop(name)
        for context in used:
            with self.connect(f"{name}_{context}") as connection:
                # Of those that were killed in the middle of something, PostgreSQL's side may still be at it.
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                                   " WHERE datname = current_database() AND pid <> pg_backend_pid()")
                connection.execute("SET client_min_messages = error")
                connection.execute("DROP SCHEMA public CASCADE")
                connection.execute("CREATE SCHEMA public")
        self._free.append((name, made | used))

    def create(self, *databases):
        # Copying the template's files takes checkpoints, and less work otherwise: right where checkpoints wait for no disk.
        strategy = "STRATEGY FILE_COPY" if self._settings.get("fsync") == "off" else ""
        with self.connect("postgres") as connection:
            for database in databases:
                connection.execute(f'CREATE DATABASE "{database}" {strategy}')

    def drop(self, *databases):
        with self.connect("postgres") as connection:
            for database in databases:
                connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


class House:
    """Contexts, their databases and their bus. Not started until start()."""

    def __init__(self, cluster, folder, storefronts=(), flags=None, contexts=CONTEXTS):
        """`storefronts`: files that the order context serves. `flags`: context -> more flags for its process.
        `contexts`: those that there are, where a module needs only some of them."""
        self.cluster = cluster
        self.contexts = tuple(contexts)
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.storefronts = self.folder / "storefronts"
        self.storefronts.mkdir()
        for file in storefronts:
            shutil.copy(file, self.storefronts)
        self.flags = dict(flags or {})
        ports = free_ports(2 * len(self.contexts) + 2)
        self.ports = dict(zip(self.contexts, ports))
        self.metrics_ports = dict(zip(self.contexts, ports[len(self.contexts):]))
        self.nats_port, self.nats_http_port = ports[-2:]
        self.nats_url = f"nats://127.0.0.1:{self.nats_port}"
        self.processes = {}    # context -> Process, while it runs
        self.gateways = []     # whose facades call contexts, as order does
        self._missed = {}      # context that is down -> processes that were connected with it
        self._frozen = set()
        self.disturbed = False  # something was stopped or frozen since heal()
        self._channels = {}
        self.name = cluster.lend(self.contexts)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for channel in self._channels.values():
            channel.close()
        for name in [name for name in self.processes if name != "nats"] + ["nats"]:
            self.kill(name)
        self.cluster.take_back(self.name)

    # ------------------------------------------------------------------ processes
    def database(self, context):
        return f"{self.name}_{context}"

    def argv(self, context):
        peers = ",".join(f"{name}=127.0.0.1:{port}" for name, port in self.ports.items())
        return [
            gaekju_binary(), "serve", context,
            f"--listen=127.0.0.1:{self.ports[context]}",
            f"--metrics=127.0.0.1:{self.metrics_ports[context]}",
            f"--database={self.cluster.dsn(self.database(context))}",
            f"--nats={self.nats_url}",
            f"--peers={peers}",
            f"--storefronts={self.storefronts}",
            "--ack_wait=1s",  # when a message that died with its consumer comes again, which every other test waits for
            *self.flags.get(context, []),
        ]

    def launch(self, name):
        """Starts a process and does not wait for it."""
        assert name not in self.processes, f"{name} is running"
        if name == "nats":
            config = self.folder / "nats.conf"
            config.write_text(
                f'listen: "127.0.0.1:{self.nats_port}"\nhttp: "127.0.0.1:{self.nats_http_port}"\n'
                f'jetstream {{ store_dir: "{self.folder}/jetstream", max_file_store: 16G }}\n'
                "max_payload: 2MB\n")
            argv = ["nats-server", "-c", config]
        else:
            argv = self.argv(name)
        self.processes[name] = Process(argv, self.folder / f"{name}.log")

    def start(self, *names):
        """Starts what is named (everything that is down, without a name) and waits until it serves."""
        names = names or tuple(name for name in ("nats", *self.contexts) if name not in self.processes)
        for name in names:
            self.launch(name)
        for name in names:
            self.wait_ready(name)

    def wait_ready(self, name, timeout=SECONDS_TO_START):
        def ready():
            process = self.processes[name]
            if not process.alive():
                code = process.popen.returncode
                raise RuntimeError(f"{name} ended with {code} instead of serving:\n{process.log_tail()}")
            if name == "nats":
                with socket.create_connection(("127.0.0.1", self.nats_port), timeout=1):
                    return True
            return self.serving(name)

        def quietly():
            try:
                return ready()
            except OSError:
                return False

        eventually(quietly, f"{name} serves; its log:\n{self.processes[name].log_tail()}", timeout)
        for process in self._missed.pop(name, ()):
            # Until its channel has it again, whoever asks the caller is refused at once.
            eventually(lambda: not process.alive() or process.stopped() or process.connected_to(self.ports[name]),
                       f"{process.argv[1:3]} has found {name} again", timeout, every=0.05)

    def serving(self, context):
        """What the context's health service says."""
        answer = health_pb2_grpc.HealthStub(self.channel(context)).Check(
            health_pb2.HealthCheckRequest(), timeout=2)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def heal(self):
        """Everything runs and serves again, whatever a test did. Returns whether it had done something."""
        for name in list(self._frozen):
            self.thaw(name)
        for name in list(self.processes):
            if not self.processes[name].alive():
                self.processes.pop(name).end(signal.SIGKILL)
        down = [name for name in ("nats", *self.contexts) if name not in self.processes]
        for name in down:
            self.launch(name)
        for name in ("nats", *self.contexts):
            self.wait_ready(name)
        disturbed, self.disturbed = self.disturbed, False
        return disturbed

    def running(self, name):
        return name in self.processes and self.processes[name].alive()

    def whole(self):
        """Whether every process runs, none frozen."""
        return not self._frozen and all(self.running(name) for name in ("nats", *self.contexts))

    def stop(self, name):
        """SIGTERM; returns the exit code. It stays down."""
        self._goes(name)
        return self.processes.pop(name).end(signal.SIGTERM)

    def kill(self, name):
        """kill -9. It stays down."""
        self._goes(name)
        process = self.processes.pop(name, None)
        if process:
            process.end(signal.SIGKILL)

    def _goes(self, name):
        self.disturbed = True
        self._frozen.discard(name)
        if name in self.ports and name in self.processes:
            callers = [process for caller, process in self.processes.items() if caller.startswith("order")]
            callers += [gateway.processes["facade"] for gateway in self.gateways if "facade" in gateway.processes]
            self._missed.setdefault(name, set()).update(it for it in callers if it.connected_to(self.ports[name]))

    def restart(self, name):
        self.kill(name)
        self.start(name)

    def freeze(self, name):
        self.disturbed = True
        process = self.processes[name]
        process.send(signal.SIGSTOP)
        self._frozen.add(name)
        # The signal goes to one thread; until that one runs, the others go on.
        eventually(lambda: process.stopped(), f"every thread of {name} has stopped", every=0.001)

    def thaw(self, name):
        self._frozen.discard(name)
        if self.running(name):
            self.processes[name].send(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self, name):
        self.freeze(name)
        try:
            yield
        finally:
            self.thaw(name)

    @contextlib.contextmanager
    def down(self, name):
        """Killed for a while, then back and serving."""
        self.kill(name)
        try:
            yield
        finally:
            if name not in self.processes:
                self.start(name)

    @contextlib.contextmanager
    def killed(self, context, moment="in_turn"):
        """Around a flow: the context is killed with -9 in the middle of its part in it, and comes back.

        in_turn      while its turn has read or is about to read its rows, before COMMIT
        committed    after its COMMIT, and before anybody was told of it
        unanswered   frozen beforehand: it has what it was asked, and does not come to look at it
        unpublished  after its COMMIT, while the bus is frozen: what it has to say stands only in its outbox
        """
        if moment in ("in_turn", "committed"):
            with self.locked(context, TABLE[context], "ACCESS EXCLUSIVE" if moment == "in_turn" else "SHARE") as lock:
                yield
                lock.wait_for_waiter()
                if moment == "committed":  # all that the turn writes is with PostgreSQL, COMMIT included
                    self.freeze(context)
                else:
                    self.kill(context)
            if moment == "committed":
                eventually(lambda: lock.waiters() == 0, "it is committed")
            self.restart(context)
        elif moment == "unanswered":
            self.freeze(context)
            yield
            self.restart(context)
        elif moment == "unpublished":
            with self.frozen("nats"):
                yield
                self.kill(context)
                self.launch(context)
            self.wait_ready(context)
        else:
            raise ValueError(moment)

    def wipe_bus(self):
        """nats-server is killed, its store deleted, and it comes back empty."""
        self.kill("nats")
        shutil.rmtree(self.folder / "jetstream", ignore_errors=True)
        self.start("nats")

    # ------------------------------------------------------------------ looking in from outside
    def channel(self, context):
        if context not in self._channels:
            self._channels[context] = grpc.insecure_channel(f"127.0.0.1:{self.ports[context]}", options=[
                ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1),
            ])
        return self._channels[context]

    def client(self, context):
        return CLIENTS[context](self.channel(context))

    def connect(self, context, **options):
        return self.cluster.connect(self.database(context), **options)

    def ask(self, context, sql, parameters=None):
        """The rows of a query, bytea as bytes."""
        return self.cluster.ask(self.database(context), sql, parameters)

    @contextlib.contextmanager
    def locked(self, context, table, mode="ACCESS EXCLUSIVE"):
        """Nobody else can read or write the table: the context's turns that touch it wait inside PostgreSQL. With `mode` "SHARE" only
        those wait that write."""
        with self.connect(context, autocommit=False) as connection:
            connection.execute(f'LOCK TABLE "{table}" IN {mode} MODE')
            try:
                yield Lock(self, context, table)
            finally:
                connection.rollback()

    def metric(self, context, name, **labels):
        """Sum of a metric over the series that have these labels; 0 when there is none yet."""
        url = f"http://127.0.0.1:{self.metrics_ports[context]}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name
                   and all(f'{label}="{value}"' in line for label, value in labels.items()))

    def up_json(self):
        """What `gaekju up` would write about this house, for the tools that read it."""
        def pid(name):
            return self.processes[name].pid if self.running(name) else 0

        return {
            "pid": os.getpid(), "data": str(self.folder), "ready": True, "storefronts": str(self.storefronts),
            "postgres": {"pid": self.cluster.pid, "port": self.cluster.port, "dsn": self.cluster.dsn("postgres"), "log": ""},
            "nats": {"pid": pid("nats"), "port": self.nats_port, "url": self.nats_url,
                     "store": str(self.folder / "jetstream"), "log": str(self.folder / "nats.log")},
            "contexts": {context: {
                "pid": pid(context), "ready": True, "address": f"127.0.0.1:{self.ports[context]}",
                "port": self.ports[context], "metrics": f"127.0.0.1:{self.metrics_ports[context]}",
                "dsn": self.cluster.dsn(self.database(context)), "log": str(self.folder / f"{context}.log"), "starts": 1,
            } for context in self.contexts},
        }

    def logs(self, lines=25):
        """The end of every process's log, for a failing test's report."""
        parts = []
        for name in ("nats", *self.contexts):
            log = self.folder / f"{name}.log"
            if log.exists():
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
                parts.append(f"----- {name}{'' if self.running(name) else ' (down)'}\n{tail}")
        return "\n".join(parts)


class Lock:
    """A table that a test holds; says when the context has come to wait for it."""

    def __init__(self, house, context, table):
        self._house = house
        self._context = context
        self._table = table

    def waiters(self):
        """How many statements wait for it or another of the context's tables."""
        ((count,),) = self._house.ask(
            self._context, "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE NOT granted AND datname = current_database()")
        return count

    def wait_for_waiter(self):
        eventually(self.waiters, f"{self._context} waits for its table {self._table}")
