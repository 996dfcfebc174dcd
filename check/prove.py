#!/usr/bin/env python3
"""Proves the storefronts with any number of faults, then within larger and larger bounds on counted ones, until enough states were seen.

    prove.py --gaekju build/release/app/gaekju [--states 100000000] [--memory_max 20000] [--threads 0] [FILE...]

Prints a table as it goes. Exit code 0: everything was proved, and there were enough states.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAULTS_MAX = 9  # 2 repetitions, 2 losses, 2 unreachable calls, 3 crashes, of which --faults lets so many happen; and a wipe
ROW = "{:<10} {:<22} {:>13} {:>14} {:>6} {:>9} {:>11} {:>8}  {}"


def check(options, file, *bounds):
    command = [options.gaekju, "check", "--json", f"--memory_max={options.memory_max}",
               f"--threads={options.threads}", *bounds, str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout.startswith("{"):
        sys.exit(f"prove: {' '.join(map(str, command))}: exit code {done.returncode}: {done.stdout}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, default=sorted((ROOT / "storefronts").glob("*.textproto")))
    parser.add_argument("--gaekju", default=ROOT / "build" / "release" / "app" / "gaekju")
    parser.add_argument("--states", type=int, default=100_000_000, help="enough")
    parser.add_argument("--memory_max", type=int, default=20_000, help="MiB of one exploration")
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    options = parser.parse_args()

    print(ROW.format("storefront", "faults", "states", "transitions", "depth", "seconds", "states/s", "MiB", "verdict"))
    total, seconds, memory, good = 0, 0.0, 0, True
    sizes = {file: 0 for file in options.files}
    bounds = [("any number, 2 cancels", []), ("any number, 3 cancels", ["--cancels=3"])]
    bounds += [(f"up to {n}, 2 cancels", [f"--faults={n}"]) for n in range(1, FAULTS_MAX + 1)]
    left = {file: list(bounds) for file in options.files}
    while total < options.states and any(left.values()):
        file = min((file for file in options.files if left[file]), key=sizes.get)  # the small ones first: they go deeper
        name, flags = left[file].pop(0)
        found = check(options, file, *flags)
        if found["verdict"] == "invalid":
            sys.exit(f"prove: {found['error']}")
        sizes[file] = found["states"]
        total += found["states"]
        seconds += found["seconds"]
        memory = max(memory, found["bytes"])
        good &= found["verdict"] == "proved"
        verdict = found["verdict"]
        if verdict == "violated":
            verdict += f": {found['hazard']}: {found['sentence']}"
        elif verdict == "unfinished":
            verdict += f": {found['ran_out']}"
        print(ROW.format(found["storefront"], name, found["states"], found["transitions"], found["depth"],
                         f"{found['seconds']:.2f}", found["states_per_second"], found["bytes"] >> 20, verdict),
              flush=True)
    print(f"{total} states in {seconds:.1f} s, {total / max(seconds, 1e-6):.0f} states/s, at most {memory >> 20} MiB: "
          f"{'all proved' if good else 'NOT all proved'}{'' if total >= options.states else ', and too few states'}")
    return 0 if good and total >= options.states else 1


if __name__ == "__main__":
    sys.exit(main())
