#!/usr/bin/env python3
"""Buyers who do not give up: they place orders, cancel some, and ask again with the same request_id until they have an answer.

    buyers.py --address 127.0.0.1:50051 --storefronts fashion,bench --products p1,p2 --seed 7 --buyers 32 --out answers.jsonl

Run by chaos.py in a process of its own. Writes one JSON line per answer; prints one line ("placed cancelled failed") per 100 ms, so
that whoever runs it can wait for progress. Places no more after a line "stop" on stdin, and ends when every buyer has its answers.
"""

import argparse
import asyncio
import json
import pathlib
import random
import sys
import threading

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "acceptance")]

import grpc
import grpc.aio

from stubs import CLIENTS, order_service

# "Ask again": nothing was decided, or the connection broke before the answer.
UNKNOWN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
           grpc.StatusCode.UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED}


class Buyers:
    def __init__(self, args):
        self.args = args
        self.out = open(args.out, "w", buffering=1)
        self.stopping = threading.Event()
        self.placed = self.cancelled = self.failed = 0

    def tell(self, **answer):
        self.out.write(json.dumps(answer) + "\n")

    async def insist(self, call, request):
        """Asks until there is an answer; None when it is a refusal for good."""
        pause = 0.02
        while True:
            try:
                return await call(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                if error.code() not in UNKNOWN:
                    self.failed += 1
                    self.tell(what="refused", code=error.code().name, details=error.details())
                    return None
            await asyncio.sleep(pause)  # as the RetryInfo asks of a polite buyer
            pause = min(0.5, pause * 2)

    async def buyer(self, number, client):
        random_ = random.Random(f"{self.args.seed}/{number}")
        count = 0
        while not self.stopping.is_set():
            count += 1
            customer_id, request_id = f"buyer-{number}", f"r{count}"
            request = order_service.PlaceOrderRequest(
                storefront=random_.choice(self.args.storefronts.split(",")), request_id=request_id, customer_id=customer_id, delivery_address="seoul",
                payment_method="card")
            request.lines.add(product_id=random_.choice(self.args.products.split(",")), quantity=random_.randint(1, 3))
            answer = await self.insist(client.PlaceOrder, request)
            if answer is None:
                continue
            order_id = answer.order.order_id
            self.placed += 1
            self.tell(what="placed", customer_id=customer_id, request_id=request_id, order_id=order_id)
            if random_.random() < self.args.cancel_share:
                # Recorded before it is asked: from now on the order may end either way, and after the answer only one.
                self.tell(what="cancelling", order_id=order_id)
                if await self.insist(client.CancelOrder, order_service.CancelOrderRequest(order_id=order_id)):
                    self.cancelled += 1
                    self.tell(what="cancelled", order_id=order_id)

    async def run(self):
        threading.Thread(target=lambda: (sys.stdin.readline(), self.stopping.set()), daemon=True).start()
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50),
                   ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(self.args.address, options=options) as channel:
            client = CLIENTS["order"](channel)
            buyers = [asyncio.create_task(self.buyer(number, client)) for number in range(self.args.buyers)]
            while not all(task.done() for task in buyers):
                print(self.placed, self.cancelled, self.failed, flush=True)
                await asyncio.wait(buyers, timeout=0.1)
            await asyncio.gather(*buyers)
        print(self.placed, self.cancelled, self.failed, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--storefronts", default="fashion,bench")
    parser.add_argument("--products", required=True)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--buyers", type=int, default=32)
    parser.add_argument("--cancel-share", type=float, default=0.2)
    parser.add_argument("--out", required=True)
    asyncio.run(Buyers(parser.parse_args()).run())


if __name__ == "__main__":
    main()
