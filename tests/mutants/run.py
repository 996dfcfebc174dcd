#!/usr/bin/env python3
"""Shows that `gaekju check`, the simulator or a test of the shell notices every seeded defect of flow/mutants.inc.

    tests/mutants/run.py                     # all; ends with 'N of N killed'
    tests/mutants/run.py --only refund_of_zero [--only ...]
    tests/mutants/run.py --list              # the defects, and what each does wrong
    tests/mutants/run.py --markdown FILE     # writes the table there too

Each defect first meets the checker, on the five shops and on those of tests/mutants/storefronts, the smallest first; one that it
proves all the same then meets the simulator, with all five shops together. Without a defect, all of them are proved and no seed is
violated: that is looked at first. The shell (runtime/) is run by neither: a defect in it meets the test that OF_SHELL names, which
passes without it, over a PostgreSQL of its own. Exit code 1 when a defect survives. As many run at once as there are cores.

Built by the preset `mutants` (./dev mutants does that).
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import table  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "mutants"
SHOPS = sorted((ROOT / "storefronts").glob("*.textproto"))
OF_TESTS = sorted((ROOT / "tests" / "mutants" / "storefronts").glob("*.textproto"))
# Who has to notice a defect of the shell: the program and its test.
OF_SHELL = {
    "acked_before_commit": ("turn_loop_test", "TurnLoopTest.NobodyIsToldBeforeTheCommit"),
    "answered_before_commit": ("turn_loop_test", "TurnLoopTest.NobodyIsToldBeforeTheCommit"),
    "rerun_is_a_new_request": ("turn_loop_test", "TurnLoopTest.ACommitThatHappenedAndWasNotAnsweredIsNotDoneAgain"),
    "rows_not_locked": ("turn_store_test", "TurnStoreTest.ALoadedRowIsLocked"),
    "commit_not_flushed": ("turn_store_test", "TurnStoreTest.CommitIsSynchronousWhateverTheServersDefault"),
    "cursor_ahead_of_the_bus": ("relay_test", "RelayTest.TheCursorIsNeverAheadOfTheBus"),
    "pruned_before_published": ("relay_test", "RelayTest.WhatIsNotPublishedIsNotPruned"),
    "unprocessed_message_acked": ("intake_test", "IntakeTest.WhatIsNotProcessedComesAgain"),
    "lost_dead_letter_acked": ("intake_test", "IntakeTest.DeadLetterThatCannotBeStoredComesAgain"),
}
# What nothing may be wrong with is looked at with more seeds than find any defect.
SEEDS = 400


@dataclasses.dataclass
class Kill:
    by: str  # "check", "simulator" or "test"
    where: str  # a storefront, a seed, or the test's name
    how: str
    states: int
    seconds: float

    def __str__(self):
        states = f", {self.states} states" if self.states else ""
        return f"{self.by}: {self.where}: {self.how}{states}, {self.seconds:.2f} s"


def environment_of(mutant, **more):
    environment = {key: value for key, value in os.environ.items() if key != "GAEKJU_MUTANT"}
    return environment | more | ({"GAEKJU_MUTANT": mutant} if mutant else {})


def run(program, mutant, args, seconds_max):
    """(Kill or None, the lines of a run in which nothing was found)."""
    started = time.monotonic()
    environment = environment_of(mutant)
    try:
        done = subprocess.run([BUILD / "tests" / "mutants" / program, *map(str, args)], cwd=ROOT, env=environment, capture_output=True, text=True,
                              timeout=seconds_max)
        out, err, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as expired:
        # Nothing is found by being slow.
        out, err, code = (expired.stdout or b"").decode(), "", 0
    seconds = time.monotonic() - started
    lines = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
    last = lines[-1] if lines else {}
    by = "check" if program == "mutants_check" else "simulator"
    where = pathlib.Path(last["file"]).stem if "file" in last else f"seed {last.get('seed')}"
    if code == 1:
        how = f"{last['hazard']}: {last['sentence']}" if last.get("hazard") else last["sentence"]
        return Kill(by, where, how, int(last.get("states", 0)), seconds), lines
    if code < 0:
        said = [line for line in err.splitlines() if line.strip()]
        return Kill(by, where, f"stops itself: {said[-1] if said else f'signal {-code}'}", 0, seconds), lines
    if code != 0:
        sys.exit(f"{program} {mutant}: exit code {code}: {err}")
    return None, lines


def shell_test(mutant, program, test):
    """Kill or None: one test, or several as "A:B"; what the test leaves behind when it dies goes with its folder."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # PostgreSQL may run as another user
        done = subprocess.run([BUILD / "runtime" / program, f"--gtest_filter={test}"], cwd=ROOT, text=True, capture_output=True,
                              env=environment_of(mutant, TMPDIR=folder), timeout=300)
    if f"[  PASSED  ] {len(test.split(':'))} test" in done.stdout and done.returncode == 0:
        return None
    if f"[ RUN      ] {test.split(':')[0]}" not in done.stdout:
        sys.exit(f"{program} has no {test}: {done.stdout}{done.stderr}")
    said = re.findall(r"Failure\n((?:(?!\[).+\n)+)", done.stdout)
    how = " ".join(said[0].split()) if said else f"exit code {done.returncode}"
    return Kill("test", test, how, 0, time.monotonic() - started)


def shell_is_sound():
    """What is found where nothing is wrong, or None."""
    for program in sorted({program for program, _ in OF_SHELL.values()}):
        tests = sorted({test for of, test in OF_SHELL.values() if of == program})
        if (found := shell_test("", program, ":".join(tests))) is not None:
            return found
    return None


def look(mutant, options):
    if mutant in OF_SHELL:
        return shell_test(mutant, *OF_SHELL[mutant]), []
    found, lines = run("mutants_check", mutant, [f"--seconds={options.check_seconds}", *OF_CHECK], 60 + 8 * options.check_seconds)
    unfinished = [pathlib.Path(line["file"]).stem for line in lines if line.get("verdict") == "unfinished"]
    if found is None and not options.no_simulator:
        found, _ = run("mutants_simulate", mutant, [f"--seeds=1-{options.seeds}", f"--seconds={options.simulate_seconds}", *SHOPS],
                       60 + 2 * options.simulate_seconds)
    return found, unfinished


def by_size(file):
    return len(file.read_text())


OF_CHECK = sorted(SHOPS, key=by_size) + sorted(OF_TESTS, key=by_size)


def shortened(text, size):
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "…", text)
    return text if len(text) <= size else text[:size - 1] + "…"


def markdown(names, sentences, kills):
    lines = ["| defect | what is wrong | killed by | how | states | seconds |", "| --- | --- | --- | --- | ---: | ---: |"]
    for name in names:
        kill = kills[name]
        cells = ["**nobody**", "", "", ""] if kill is None else [
            f"{kill.by}, {kill.where}", shortened(kill.how, 120).replace("|", "\\|"), str(kill.states or ""), f"{kill.seconds:.2f}"]
        lines.append(f"| `{name}` | {sentences[name]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this defect only (repeatable)")
    parser.add_argument("--list", action="store_true", help="tell the defects, and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many run at once (default: as many as there are cores)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of the simulator, at most (default: %(default)s)")
    parser.add_argument("--check-seconds", type=float, default=10, help="for each storefront, at most (default: %(default)s)")
    parser.add_argument("--simulate-seconds", type=float, default=30, help="for each defect, at most (default: %(default)s)")
    parser.add_argument("--no-simulator", action="store_true", help="the checker alone")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there too")
    options = parser.parse_args()

    sentences = table.table(ROOT)
    if options.list:
        for name, sentence in sentences.items():
            print(f"{name}\n    {sentence}")
        return 0
    for name in options.only or []:
        if name not in sentences:
            parser.error(f"there is no defect {name}; --list tells them")
    names = options.only or list(sentences)

    started = time.monotonic()
    kills = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        sound = pool.submit(look, "", options)
        shell = pool.submit(shell_is_sound)
        asked = {pool.submit(look, name, options): name for name in names}
        found, unfinished = sound.result()
        found = found or shell.result()
        if found is not None or unfinished:
            pool.shutdown(cancel_futures=True)
            print(f"without any defect: {found or 'not proved: ' + ', '.join(unfinished)}")
            return 1
        print(f"without any defect: nothing, in {time.monotonic() - started:.1f} s", flush=True)
        width = max(map(len, names))
        for future in concurrent.futures.as_completed(asked):
            name = asked[future]
            kills[name], unfinished = future.result()
            left = f" (unfinished: {', '.join(unfinished)})" if unfinished else ""
            print(f"{name:{width}}  {shortened(str(kills[name]), 150) if kills[name] else 'SURVIVES: ' + sentences[name]}{left}", flush=True)
    if options.markdown:
        pathlib.Path(options.markdown).write_text(markdown(names, sentences, kills))
    killed = sum(kill is not None for kill in kills.values())
    by = {who: sum(kill is not None and kill.by == who for kill in kills.values()) for who in ("check", "simulator", "test")}
    print(f"{time.monotonic() - started:.0f} s; by check {by['check']}, by the simulator {by['simulator']}, by a test of the shell {by['test']}")
    print(f"{killed} of {len(names)} killed")
    return 0 if killed == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
