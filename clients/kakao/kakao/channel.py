"""From the bus into the box, and from the box to Kakao. The two halves share nothing but the box."""

import asyncio
import random

from gaekju_client import contracts, service
from gaekju_client.cloudevents import NotAnEvent

contracts.load("gaekju/notification/v1/notification_events.proto")

from gaekju.notification.v1 import notification_events_pb2, notification_pb2  # noqa: E402, made by the line above

from kakao import bizmessage, box  # noqa: E402

NOTICE_SENT = notification_events_pb2.NoticeSent.DESCRIPTOR.full_name
RETRY_AFTER_SECONDS_MAX = 3600.0  # no Retry-After is believed beyond this


class Intake:
    """Stores the notices of one storefront to its buyers."""

    def __init__(self, notices, storefront, language, wake):
        self._box, self._storefront, self._language, self._wake = notices, storefront, language, wake

    async def handle(self, events):
        found = []
        for event in events:
            if event.type != NOTICE_SENT:
                continue  # a later release may say more on this subject
            try:
                notice = notification_events_pb2.NoticeSent.FromString(event.payload).notice
            except Exception as error:
                raise NotAnEvent(f"the payload is no {NOTICE_SENT}") from error
            if notice.storefront != self._storefront or notice.recipient == notification_pb2.RECIPIENT_SELLER:
                continue
            if not notice.notice_id:
                raise NotAnEvent("a notice without an id")
            found.append(box.Notice(
                notice_id=notice.notice_id, order_id=notice.order_id, customer_id=notice.customer_id, code=notice.code,
                text=getattr(notice.text, self._language) or notice.text.ko or notice.text.en,
                create_time=notice.create_time.ToNanoseconds() / 1e9))
        new = self._box.store(found) if found else 0
        for notice in found:
            service.log("debug", "a notice came", notice_id=notice.notice_id, code=notice.code)
        if new:
            service.log("info", "notices stored", new=new, known=len(found) - new)
            self._wake.set()


class Sender:
    """Sends what is due, several at once, those of one order one after the other."""

    def __init__(self, notices, endpoint, phones, wake, concurrency, refusals_max, retry_seconds_min, retry_seconds_max):
        self._box, self._endpoint, self._phones, self._wake = notices, endpoint, phones, wake
        self._concurrency, self._refusals_max = concurrency, refusals_max
        self._retry_seconds_min, self._retry_seconds_max = retry_seconds_min, retry_seconds_max
        self._in_flight = {}      # notice id -> task
        self._pause_until = 0.0   # Kakao asked us to wait

    async def run(self, stop):
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            self._wake.clear()
            pause = self._pause_until - loop.time()
            room = self._concurrency - len(self._in_flight)
            if pause <= 0 and room > 0:
                for notice in self._box.due(room, without=self._in_flight):
                    self._in_flight[notice.notice_id] = asyncio.ensure_future(self._send(notice))
            if len(self._in_flight) >= self._concurrency:
                seconds = 1.0  # an end wakes us
            elif pause > 0:
                seconds = pause
            else:
                due = self._box.next_due_seconds()  # those in flight are due too, and their end wakes us
                seconds = 1.0 if due is None or (due == 0 and self._in_flight) else min(max(due, 0.02), 1.0)
            await service.wait(self._wake, seconds)
        if self._in_flight:  # what was begun is finished: each has its timeout
            await asyncio.wait(self._in_flight.values())

    async def _send(self, notice):
        try:
            self._box.begin(notice)
            receipt = await asyncio.to_thread(
                self._endpoint.send, notice.idempotency_key, self._phones.get(notice.customer_id, notice.customer_id),
                notice.code or "NOTICE", notice.text)
            self._box.sent(notice, receipt)
            service.log("info", "sent", notice_id=notice.notice_id, code=notice.code, attempts=notice.attempts, receipt=receipt)
        except bizmessage.Declined as error:
            seconds = self._backoff(notice.attempts)
            dead = self._box.later(notice, seconds, str(error), refused=True, refusals_max=self._refusals_max)
            service.log("error" if dead else "warning", "refused; it is dead now" if dead else "refused; tried again",
                        notice_id=notice.notice_id, attempts=notice.attempts, why=str(error))
        except bizmessage.Unsure as error:
            seconds = self._backoff(notice.attempts)
            if error.retry_after is not None:
                asked = min(error.retry_after, RETRY_AFTER_SECONDS_MAX)
                seconds = max(seconds, asked)
                # All of us wait: the limit is the account's.
                self._pause_until = max(self._pause_until, asyncio.get_running_loop().time() + asked)
            self._box.later(notice, seconds, str(error))
            service.log("warning", "not known to be sent; tried again under the same key", notice_id=notice.notice_id,
                        attempts=notice.attempts, seconds=round(seconds, 2), why=str(error))
        finally:
            self._in_flight.pop(notice.notice_id, None)
            self._wake.set()

    def _backoff(self, attempts):
        """Doubling, with jitter: half of it is chance."""
        full = min(self._retry_seconds_max, self._retry_seconds_min * 2 ** min(attempts - 1, 30))
        return full * random.uniform(0.5, 1.0)
