#!/usr/bin/env python3
"""kill -9 of every process, a wiped bus and one of a moment ago, under load; then the books are read. Ends with 'N lost, N doubled, N stuck'.

    tests/chaos/chaos.py [--seconds 45] [--seed N] [--buyers 32] [--only rollback]

Each context and nats-server is killed at least once, all of them together once, PostgreSQL crashed once, the whole JetStream store
deleted once, and put back as it was some orders before (a power cut) at least twice; then more of the same at random, sometimes two at a time, until the time is up. The seed decides victims,
how long they stay down, and what buyers do. Exit code 0: nothing was lost, doubled or stuck, the ledger sums to zero, stock adds up and
views equal their sources.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parents[1] / "acceptance")]

import oracle
from gaekju_house import Cluster, House, ROOT, eventually
from shop import Shop
from stubs import CONTEXTS

STOCK = 10_000_000
# The shop that is sold, and one that takes from stock.
STOREFRONTS = [ROOT / "storefronts" / "fashion.textproto", ROOT / "bench" / "storefronts" / "bench.textproto"]


class Load:
    """buyers.py, and how far it has come."""

    def __init__(self, house, products, seed, buyers, out):
        self.out = out
        self.placed = self.cancelled = self.failed = 0
        self._process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).parent / "buyers.py"),
             "--address", f"127.0.0.1:{house.ports['order']}", "--products", ",".join(products), "--seed", str(seed),
             "--buyers", str(buyers), "--out", str(out)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self):
        for line in self._process.stdout:
            self.placed, self.cancelled, self.failed = map(int, line.split())

    def wait_for(self, orders, timeout=30):
        """Waits until so many more orders are placed."""
        goal = self.placed + orders
        eventually(lambda: self.placed >= goal, f"{orders} more orders are placed", timeout)

    def stop(self, timeout=90):
        """No new orders; every buyer gets its last answers."""
        self._process.stdin.write("stop\n")
        self._process.stdin.flush()
        self._process.wait(timeout)

    def kill(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def answers(self):
        with open(self.out) as lines:
            return [json.loads(line) for line in lines]


EVERYTHING = "everything"
WIPE = "the JetStream store"
FREEZE = "a frozen context"
POSTGRES = "PostgreSQL"
ROLLBACK = "the newest messages"
VICTIMS = [*CONTEXTS, "nats", WIPE, ROLLBACK, ROLLBACK, EVERYTHING, POSTGRES, FREEZE]


def last(seconds):
    """How long a fault lasts is part of the fault: this waits for nothing else."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, "the fault has lasted", seconds + 10)


def roll_back(house, load, random_, say):
    """nats-server comes back with its store of a moment ago. What is lost had not reached the contexts that were away by then; and when
    the rest come back that had published it, the others have published again. Every second time the server's consumers keep what they
    know, and only the messages are those of before."""
    store, kept = house.folder / "jetstream", house.folder / "jetstream.kept"
    only_messages = random_.random() < 0.5
    rest = [name for name in CONTEXTS if name not in ("order", "payment", "catalog")]  # an order is taken without these
    random_.shuffle(rest)
    deaf = rest[:random_.randrange(len(rest))]
    late = [name for name in rest if name not in deaf and random_.random() < 0.7]
    load.wait_for(random_.randrange(5, 50))
    with house.frozen("nats"):
        shutil.copytree(store, kept)
    for name in deaf:
        house.kill(name)
    load.wait_for(random_.randrange(5, 100))
    for name in (*late, "nats"):
        house.kill(name)
    say(f"the newest messages are lost{', consumers are ahead' if only_messages else ''}; not heard by {', '.join(deaf) or 'nobody'}, "
        f"looked at late by {', '.join(late) or 'nobody'}")
    if only_messages:
        for messages in kept.rglob("msgs"):
            shutil.rmtree(store / messages.relative_to(kept))
            shutil.copytree(messages, store / messages.relative_to(kept))
        shutil.rmtree(kept)
    else:
        shutil.rmtree(store)
        kept.rename(store)
    house.start("nats")
    load.wait_for(random_.randrange(5, 100))
    back = [*late, *deaf]
    for name in random_.sample(back, len(back)):
        house.launch(name)
    for name in back:
        house.wait_ready(name)


def strike(house, victim, load, random_, say):
    """Hurts the victim, leaves it so for up to a second, and brings it back."""
    down_s = random_.choice([0, 0.05, 0.2, 0.5, 1.0])
    if victim == WIPE:
        say("delete the whole JetStream store")
        house.wipe_bus()
    elif victim == ROLLBACK:
        roll_back(house, load, random_, say)
    elif victim == POSTGRES:
        say(f"crash PostgreSQL, down {down_s:.2f} s")
        house.cluster.crash()
        last(down_s)
        house.cluster.start()
    elif victim == FREEZE:
        context = random_.choice(CONTEXTS)
        say(f"freeze {context} for {3 * down_s:.2f} s")
        with house.frozen(context):
            last(3 * down_s)
    else:
        victims = [*CONTEXTS, "nats"] if victim == EVERYTHING else [victim]
        if victim != EVERYTHING and random_.random() < 0.3:
            victims.append(random_.choice([it for it in (*CONTEXTS, "nats") if it != victim]))
        say(f"kill -9 {', '.join(victims)}, down {down_s:.2f} s")
        for name in victims:
            house.kill(name)
        last(down_s)
        for name in random_.sample(victims, len(victims)):
            house.launch(name)
        for name in victims:
            house.wait_ready(name)


def run(cluster, folder, seconds=45, seed=None, buyers=32, say=print, all_victims=VICTIMS):
    """Returns the verdict of the oracle."""
    seed = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    random_ = random.Random(seed)
    say(f"seed {seed}")
    with House(cluster, folder / "house", storefronts=STOREFRONTS) as house:
        house.start()
        shop = Shop(house, "fashion")
        products = [shop.product(product_id=f"p{number}", price=1_000 * (number + 1), count=STOCK) for number in range(20)]
        load = Load(house, products, seed, buyers, folder / "answers.jsonl")
        try:
            load.wait_for(50)
            started = time.monotonic()
            victims = list(all_victims)
            random_.shuffle(victims)
            strikes = 0
            while victims or time.monotonic() - started < seconds:
                victim = victims.pop() if victims else random_.choice(all_victims)
                before = load.placed
                strike(house, victim, load, random_, say)
                strikes += 1
                load.wait_for(random_.randrange(20, 200))
                say(f"  {load.placed - before} orders meanwhile, {load.placed} in all")
            load.stop()
        finally:
            load.kill()
        say(f"{strikes} strikes; {load.placed} orders acknowledged, {load.cancelled} cancels, {load.failed} refusals; settling")
        house.heal()
        settling = time.monotonic()
        oracle.settle(house)
        say(f"settled after {time.monotonic() - settling:.1f} s")

        answers = load.answers()
        verdict = oracle.judge(
            house,
            acknowledged=[(it["customer_id"], it["request_id"], it["order_id"]) for it in answers if it["what"] == "placed"],
            cancelled={it["order_id"] for it in answers if it["what"] == "cancelled"},
            kept={it["order_id"] for it in answers if it["what"] == "placed"}
            - {it["order_id"] for it in answers if it["what"] == "cancelling"},
            initial_stock={product: STOCK for product in products})
        verdict.wrong += [f"refused: {it}" for it in answers if it["what"] == "refused"]
        if not verdict.good():
            say(verdict.explain())
            say(house.logs(8))
        say(f"seed {seed}, {strikes} strikes, {verdict.orders} orders, {len(verdict.wrong)} wrong")
        return verdict


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45, help="how long to strike (default 45)")
    parser.add_argument("--seed", type=int, help="repeat a run's choices (default: a new one, printed)")
    parser.add_argument("--buyers", type=int, default=32, help="orders at a time (default 32)")
    parser.add_argument("--only", choices=["rollback"], help="strike this only")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and answers")
    args = parser.parse_args()
    started = time.monotonic()

    def say(text):
        print(f"[{time.monotonic() - started:6.1f}] {text}", flush=True)

    folder = pathlib.Path(tempfile.mkdtemp(prefix="gaekju-chaos-"))
    try:
        with Cluster(folder / "pg") as cluster:
            verdict = run(cluster, folder, args.seconds, args.seed, args.buyers, say, [ROLLBACK] if args.only else VICTIMS)
    finally:
        if args.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(verdict, flush=True)
    return 0 if verdict.good() else 1


if __name__ == "__main__":
    sys.exit(main())
