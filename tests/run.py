#!/usr/bin/env python3
"""Runs test suites that ./dev has built, and ends with one plain line: N passed, N failed[, N skipped].

    tests/run.py unit buf acceptance -- -k FA_03     # what follows -- goes to pytest
    tests/run.py --scenarios FA-03                   # 'ID pass|fail' a line

A suite is a function of this file that returns a Tally. Each C++ test case, each pytest test and each script counts as one.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
CONTRACT = ROOT / "tests" / "contract"
STARTED = time.monotonic() - int(os.environ.get("GAEKJU_DEV_SECONDS", "0"))  # ./dev's clock goes on
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "gaekju"


@dataclasses.dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __iadd__(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        return self

    def __str__(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def say(text):
    seconds = int(time.monotonic() - STARTED)
    print(f"[{seconds // 60:02}:{seconds % 60:02}] {text}", file=sys.stderr, flush=True)


def left_out(suite, why):
    """A suite that cannot run here: said aloud, counted as one skipped; a failure in CI, where everything has to run."""
    say(f"{suite}: LEFT OUT: {why}")
    LEFT_OUT.append(f"{suite}: {why}")
    return Tally(failed=1) if os.environ.get("CI") == "true" else Tally(skipped=1)


LEFT_OUT = []
FAILURES = []  # 'test: the line that says why', told once more at the end


@contextlib.contextmanager
def passing_folder():
    """Where everything that is started here keeps what nobody needs afterwards: in memory, where there is room, since nothing pulls the
    machine's plug. Ours alone, because a user's folder of pytest loses, at the start of the next session, the permissions that
    PostgreSQL, which runs as another user, needs on the way to its data."""
    memory, free = pathlib.Path("/dev/shm"), 0
    with contextlib.suppress(OSError):
        shown = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        of_it = os.statvfs(memory)
        if not of_it.f_flag & os.ST_NOEXEC:
            free = min(of_it.f_bavail * of_it.f_frsize, int(shown["MemAvailable"].split()[0]) * 1024)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gaekju-test.", dir=memory if free > 4 << 30 else None))
    folder.chmod(0o711)
    os.environ["TMPDIR"], before = str(folder), os.environ.get("TMPDIR")
    tempfile.tempdir = None  # asks again
    try:
        yield
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
        tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)


def run(*command, **options):
    """Runs a command with its output shown; True when it succeeds."""
    return subprocess.run([str(part) for part in command], cwd=options.pop("cwd", ROOT), **options).returncode == 0


def one(good):
    return Tally(passed=int(good), failed=int(not good))


# ---------------------------------------------------------------- C++ unit tests


def ctest(preset, label="unit"):
    """Runs the tests of one preset that have the label, and counts their GoogleTest cases."""
    build = BUILD / preset
    cases = build / f"gtest-{label}"
    shutil.rmtree(cases, ignore_errors=True)
    junit = build / f"ctest-{label}.xml"
    junit.unlink(missing_ok=True)
    # Those of integration wait for PostgreSQL and NATS most of the time.
    parallel = os.cpu_count() * (2 if label == "integration" else 1)
    run("ctest", "--test-dir", build, "--label-regex", f"^{label}$", "--parallel", parallel, "--output-on-failure",
        "--no-tests=error", "--output-junit", junit, env={**os.environ, "GTEST_OUTPUT": f"xml:{cases}/"})
    if not junit.exists():
        return Tally(failed=1)

    tally = Tally()
    for test in ElementTree.parse(junit).getroot().iter("testcase"):
        good = test.get("status") == "run"
        report = cases / f"{test.get('name')}.xml"
        if not report.exists():  # a script, or a crash before the end
            tally += one(good)
            if not good:
                FAILURES.append(f"{preset}: {test.get('name')}")
            continue
        suites = ElementTree.parse(report).getroot()
        counted = list(suites.iter("testcase"))
        wrong = [case for case in counted if case.find("failure") is not None]
        FAILURES.extend(f"{preset}: {case.get('classname')}.{case.get('name')}: "
                        + " ".join((case.find("failure").get("message") or "").split())[:600] for case in wrong)
        failed = len(wrong)
        skipped = sum(case.find("skipped") is not None or case.get("status") == "notrun" for case in counted)
        if not good and not failed:
            failed = 1  # a sanitizer's report at exit
            FAILURES.append(f"{preset}: {test.get('name')} ended badly after its tests")
        tally += Tally(max(0, len(counted) - failed - skipped), failed, skipped)
    return tally


# ---------------------------------------------------------------- format, purity, contracts


def clang_format(_):
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "--", "*.h", "*.cc"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout.split()
    files = [file for file in listed if (ROOT / file).exists()]
    return one(not files or run("clang-format-14", "--dry-run", "-Werror", "--ferror-limit=3", *files))


def purity(_):
    tally = one(run(sys.executable, "tests/build/purity.py", ".", "--files", BUILD / "dev" / "pure_files.txt"))
    tally += one(run(sys.executable, "tests/build/purity.py", "--self-test"))
    tally += one(run(sys.executable, "tests/build/neutral.py", "."))
    tally += one(run(sys.executable, "tests/build/neutral.py", "--self-test"))
    return tally


def contracts(_):
    checker = CONTRACT / "check_contracts.py"
    tally = one(run(sys.executable, checker, BUILD / "dev" / "gaekju.binpb"))
    tally += one(run(sys.executable, checker, "--self-test"))
    return tally


def version(*command):
    """(major, minor) that a tool prints, or None when it is not installed."""
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"(\d+)\.(\d+)", out)
    return found and (int(found.group(1)), int(found.group(2)))


def tool_folder(kind, *pins):
    """A folder outside the checkout, of its own for each state of the files that pin a tool."""
    digest = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()[:16]
    folder = CACHE / f"{kind}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def buf(_):
    node = version("node", "--version")
    if not node or node < (20, 0) or not shutil.which("npm"):
        return left_out("buf", "needs Node 20 or newer with npm")
    folder = tool_folder("buf", CONTRACT / "package.json")
    program = folder / "node_modules" / ".bin" / "buf"
    if not program.exists():
        say("buf: npm install …")
        shutil.copy(CONTRACT / "package.json", folder)
        # No lock file: package.json names an exact version, and so does buf for its one program per platform.
        if not run("npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error",
                   cwd=folder):
            return one(False)

    new = buf_workspace("new")
    shutil.copytree(ROOT / "proto", new / "proto", dirs_exist_ok=True)
    say("buf lint")
    tally = one(run(program, "lint", cwd=new))

    base, what = breaking_base()
    if base is None:
        say(f"buf breaking: LEFT OUT: {what}")
        LEFT_OUT.append(f"buf breaking: {what}")
        tally += Tally(skipped=1)
        return tally
    say(f"buf breaking against {what}")
    old = buf_workspace("old")
    archive = subprocess.run(["git", "archive", base, "proto"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", old], input=archive, check=True)
    tally += one(run(program, "breaking", "--against", old, cwd=new))
    return tally


def buf_workspace(name):
    """A folder with proto/ beside googleapis/, which buf would otherwise fetch from its registry."""
    folder = BUILD / "buf" / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "googleapis" / "google").mkdir(parents=True)
    shutil.copy(CONTRACT / "buf.yaml", folder)
    import google.api  # of googleapis-common-protos
    packages = pathlib.Path(google.api.__path__[0]).parent
    for package in ("api", "rpc"):
        shutil.copytree(packages / package, folder / "googleapis" / "google" / package,
                        ignore=lambda path, names: [n for n in names if not n.endswith(".proto") and "." in n])
    return folder


def breaking_base():
    """The commit to compare with, and its name: what is landed on main, or what stood before the change at hand."""

    def git(*args):
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "HEAD")
    if not head:
        return None, "not a git checkout with a commit, so there is nothing to compare with"
    for ref in ("origin/main", "main"):
        commit = git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        if commit and (commit != head or git("status", "--porcelain", "--", "proto")):
            break
    else:
        commit = git("rev-parse", "--verify", "--quiet", "HEAD~^{commit}")  # main itself is looked at
    last = commit and git("rev-list", "-1", commit, "--", "proto")
    if not last or not git("ls-tree", last, "proto"):
        return None, "no earlier commit on main contains proto/"
    return last, git("log", "-1", "--format=%h %s", last)


# ---------------------------------------------------------------- whole processes, by pytest

WORKERS = 5  # these tests mostly wait


class Counter:
    """A pytest plugin that counts, and tells each scenario id once its last test has ended."""

    def __init__(self, scenarios=False):
        self.tally = Tally()
        self.scenarios = scenarios
        self._open = {}    # scenario id -> tests that have not ended
        self._failed = set()
        self.results = {}  # scenario id -> whether it passed

    @staticmethod
    def scenario(nodeid):
        found = re.search(r"(?<![A-Z0-9])([A-Z]{2})[-_](\d{2})(?!\d)", nodeid.split("::", 1)[-1].upper())
        return f"{found.group(1)}-{found.group(2)}" if found else None

    def _collected(self, nodeids):
        for name in filter(None, map(self.scenario, nodeids)):
            self._open[name] = self._open.get(name, 0) + 1

    def pytest_collection_finish(self, session):
        self._collected(item.nodeid for item in session.items)

    # With several workers: each collects everything.
    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids):
        if not self._open:
            self._collected(ids)

    def pytest_runtest_logreport(self, report):
        name = self.scenario(report.nodeid)
        if report.failed or (report.skipped and name):  # a scenario that did not run has not passed
            self._failed.add(name)
            if self.scenarios:
                print(f"{report.nodeid}\n{report.longreprtext}", file=sys.stderr, flush=True)
        if not self.scenarios:
            if report.failed:
                self.tally.failed += 1
                crash = getattr(report.longrepr, "reprcrash", None)
                why = f"{crash.path}:{crash.lineno}: {crash.message}" if crash else report.longreprtext.strip()[-300:]
                FAILURES.append(f"{report.nodeid} ({report.when}): {why.splitlines()[0][:600] if why else ''}")
            elif report.skipped:
                self.tally.skipped += 1
            elif report.when == "call":
                self.tally.passed += 1
        if report.when == "teardown" and name:
            self._open[name] -= 1
            if self._open[name] == 0:
                good = name not in self._failed
                self.results[name] = good
                if self.scenarios:
                    print(f"{name} {'pass' if good else 'fail'}", flush=True)
                    self.tally += one(good)

    def table(self):
        """Each scenario's result, a shop a line: 'FA  01 02 03 …', those that failed marked."""
        lines = []
        for shop in sorted({name[:2] for name in self.results}):
            steps = sorted(name for name in self.results if name.startswith(shop))
            good = sum(self.results[name] for name in steps)
            lines.append(f"{shop}  {good} of {len(steps)} pass:  " + "  ".join(
                f"{name} {'pass' if self.results[name] else 'FAIL'}" for name in steps))
        return "\n".join(lines)

    def pytest_collectreport(self, report):
        if report.failed:
            self.tally.failed += 1
            print(report.longreprtext, file=sys.stderr)


def pytest_suite(path, args, counter=None, workers=0):
    counter = counter or Counter()
    options = ["-p", "no:terminal"] if counter.scenarios else ["-ra", "--durations=5", "--tb=short"]
    if workers and not {"-n", "--pdb", "-x"} & set(args):
        options += ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    os.environ.setdefault("GAEKJU_BINARY", str(BUILD / "release" / "app" / "gaekju"))
    os.environ.setdefault("GAEKJU_DESCRIPTOR_SET", str(BUILD / "release" / "gaekju.binpb"))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pytest."))
    folder.chmod(0o711)
    status = pytest.main([str(path), "-p", "no:cacheprovider", f"--basetemp={folder}/t", *options, *args], plugins=[counter])
    if status != pytest.ExitCode.OK:
        logs = BUILD / "logs" / path.stem
        shutil.rmtree(logs, ignore_errors=True)
        for log in folder.rglob("*.log"):
            copy = logs / log.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, copy)
        say(f"logs of the processes: {logs}")
    shutil.rmtree(folder, ignore_errors=True)
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # also when there was no test to run
        say(f"{path.relative_to(ROOT)}: pytest ended with {pytest.ExitCode(status).name}")
        counter.tally.failed = max(1, counter.tally.failed)
    if counter.results and not counter.scenarios:
        print(counter.table(), flush=True)
    return counter.tally


def grpcurl(args):
    go = version("go", "version")
    if not go or go < (1, 26):
        return left_out("grpcurl", "needs Go 1.26 or newer")
    folder = tool_folder("grpcurl", CONTRACT / "go.mod", CONTRACT / "go.sum")
    program = folder / "grpcurl"
    if not program.exists():
        say("grpcurl: go build … (about a minute, once)")
        if not run("go", "build", "-trimpath", "-o", program, "github.com/fullstorydev/grpcurl/cmd/grpcurl", cwd=CONTRACT):
            return one(False)
    os.environ["GAEKJU_GRPCURL"] = str(program)
    return pytest_suite(CONTRACT / "test_grpcurl.py", args)


# ---------------------------------------------------------------- the simulator

SIMULATED_SEEDS, SIMULATED_SECONDS = 10_000, 600  # it takes a tenth of that; more where it only gets what others leave


def simulation(_):
    """Many days at the shops in virtual time; and that a seed replays byte for byte, in another process too."""
    program = BUILD / "release" / "app" / "gaekju"
    tally = Tally()
    for seed in (7, 77, 777):
        told = [subprocess.run([program, "simulate", f"--seed={seed}", "--trace"], cwd=ROOT, capture_output=True)
                for _ in range(2)]
        same = told[0].stdout == told[1].stdout and len(told[0].stdout) > 1000
        if not same:
            say(f"simulation: seed {seed} does not replay")
        tally += one(same and all(run.returncode == 0 for run in told))
    tally += one(run(program, "simulate", f"--seeds=1-{SIMULATED_SEEDS}", f"--seconds={SIMULATED_SECONDS}"))
    return tally


def scenarios(prefix):
    prefix = prefix.lower().replace("-", "_")
    # With what stands around it in a test's name: "ts" alone is in "tests", too.
    select = ["-k", f"_{prefix}" if prefix[-1].isdigit() else f"_{prefix.rstrip('_')}_"] if prefix else []
    tally = pytest_suite(ROOT / "tests" / "acceptance", select, Counter(scenarios=True), WORKERS)
    return tally


SUITES = {
    "unit": lambda args: ctest("release"),
    "unit-dev": lambda args: ctest("dev"),
    "asan": lambda args: ctest("asan"),
    "tsan": lambda args: ctest("tsan"),
    "integration": lambda args: ctest("release", "integration"),
    "simulation": simulation,
    "format": clang_format,
    "purity": purity,
    "contracts": contracts,
    "buf": buf,
    "grpcurl": grpcurl,
    "acceptance": lambda args: pytest_suite(ROOT / "tests" / "acceptance", args, workers=WORKERS),
    "mutants": lambda args: one(run(sys.executable, "tests/mutants/run.py")),
    "chaos": lambda args: pytest_suite(ROOT / "tests" / "chaos", args),
}


def main(argv):
    os.chdir(ROOT)
    with passing_folder():
        return told(argv)


class Beside:
    """A suite that only computes, run at the lowest priority while others wait for processes of theirs; its output is kept till the end."""

    SUITES = ("simulation",)

    def __init__(self, name):
        self.name = name
        self._output = tempfile.TemporaryFile("w+")
        seconds = int(time.monotonic() - STARTED)
        self._process = subprocess.Popen(["nice", "-n", "19", sys.executable, __file__, name], stdin=subprocess.DEVNULL,
                                         stdout=self._output, stderr=subprocess.STDOUT,
                                         env={**os.environ, "GAEKJU_DEV_SECONDS": str(seconds)})

    def result(self):
        self._process.wait()
        self._output.seek(0)
        lines = self._output.read().splitlines()
        print("\n".join(lines[:-1]), file=sys.stderr, flush=True)
        found = re.fullmatch(r"(\d+) passed, (\d+) failed(?:, (\d+) skipped)?", lines[-1] if lines else "")
        if not found:
            FAILURES.append(f"{self.name}: ended with {self._process.returncode}: {lines[-1:]}")
            return Tally(failed=1)
        tally = Tally(*(int(number or 0) for number in found.groups()))
        if tally.failed:
            FAILURES.append(f"{self.name}: see its output above")
        return tally

    def stop(self):
        if self._process.poll() is None:
            self._process.terminate()


def told(argv):
    total = Tally()
    if argv[:1] == ["--scenarios"]:
        total = scenarios(argv[1] if len(argv) > 1 else "")
    else:
        split = argv.index("--") if "--" in argv else len(argv)
        names = argv[:split]
        with contextlib.ExitStack() as stack:
            beside = [Beside(name) for name in names if name in Beside.SUITES and "acceptance" in names]
            for suite in beside:
                stack.callback(suite.stop)
                say(f"{suite.name}: beside the others; told at the end")
            for name in names:
                if name in [suite.name for suite in beside]:
                    continue
                say(f"{name} …")
                started = time.monotonic()
                tally = SUITES[name](argv[split + 1:])
                say(f"{name}: {tally} in {time.monotonic() - started:.1f} s")
                total += tally
            for suite in beside:
                total += suite.result()
        for line in LEFT_OUT:
            say(f"LEFT OUT {line}")
        for line in FAILURES:
            say(f"FAILED {line}")
    sys.stderr.flush()
    print(total, flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
