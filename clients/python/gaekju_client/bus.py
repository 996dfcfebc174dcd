"""A NATS connection that never gives up, and a durable JetStream consumer that is made again when the server has lost it.

    bus = Bus("nats://127.0.0.1:4222", name="kakao")
    await bus.connect()                                                  # waits for the server, however long
    consumer = Consumer(bus, "GAEKJU_EVENTS", "kakao-tshop", "gaekju.event.notification", handle)
    await consumer.run(stop)

`handle(events)` gets all events of one message. When it returns, the message is acknowledged; so it stores first. It raises
NotAnEvent for what can never be understood, and anything else for what may work later (the message comes again). Of a message that has
something that cannot be understood, the events come again one by one, and only those that cannot become dead letters.
Messages come more than once, and not in order: handle by id or by state.
"""

import asyncio
import uuid

import nats
import nats.errors
import nats.js.api
import nats.js.errors

from gaekju_client import cloudevents, service

ACK_WAIT_SECONDS = 30
FETCH_SECONDS = 1.0       # how long one look for messages waits; also how late a stop is noticed
RETRY_SECONDS_MAX = 30.0


class Bus:
    def __init__(self, url, name):
        self.url, self.name = url, name
        self.connection = None

    async def connect(self):
        async def noted(text):
            service.log("warning", text, bus=self._place())

        async def disconnected():
            await noted("the bus is gone; trying again")

        async def reconnected():
            service.log("info", "the bus is back", bus=self._place())

        async def failed(error):
            if not isinstance(error, (nats.errors.NoServersError, ConnectionError)):
                await noted(f"bus: {error!r}")

        self.connection = await nats.connect(
            [url.strip() for url in self.url.split(",")], name=self.name, max_reconnect_attempts=-1, reconnect_time_wait=0.3,
            connect_timeout=3, ping_interval=5, max_outstanding_pings=2, disconnected_cb=disconnected,
            reconnected_cb=reconnected, error_cb=failed)
        service.log("info", "connected to the bus", bus=self._place())

    def _place(self):
        url = self.connection.connected_url if self.connection else None
        return url.netloc.rsplit("@", 1)[-1] if url else ""

    @property
    def connected(self):
        return self.connection is not None and self.connection.is_connected

    @property
    def jetstream(self):
        return self.connection.jetstream(timeout=5)

    async def publish(self, subject, event):
        """Stores one event on the bus. Raises when that is not known to have worked."""
        headers, body = cloudevents.encode(event)
        # Of its own each time: what is said again has to arrive again.
        await self.jetstream.publish(subject, body, headers={**headers, "Nats-Msg-Id": str(uuid.uuid4())})

    async def close(self):
        if self.connection is not None:
            try:
                await asyncio.wait_for(self.connection.drain(), 3)
            except Exception:
                await self.connection.close()


class Consumer:
    def __init__(self, bus, stream, durable, subject, handle, ack_wait=ACK_WAIT_SECONDS):
        """`ack_wait`: what a dead process had in hand comes again after so many seconds."""
        self.bus, self.stream, self.durable, self.subject, self.handle = bus, stream, durable, subject, handle
        self.ack_wait = ack_wait
        self._subscription = None

    @property
    def ready(self):
        """Whether messages flow, as far as is known."""
        return self.bus.connected and self._subscription is not None

    async def run(self, stop):
        """Handles messages until `stop`, an asyncio.Event, is set."""
        failures = 0
        while not stop.is_set():
            try:
                if self._subscription is None:
                    await self._bind()
                failures = 0
                for message in await self._subscription.fetch(8, timeout=FETCH_SECONDS):
                    await self._take(message)
            except (nats.errors.TimeoutError, asyncio.TimeoutError):
                if not self.bus.connected or not await self._stands():
                    await self._unbind()
            except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
                # Restarted empty, the stream not made yet, the consumer deleted, the connection gone.
                if failures == 0:
                    service.log("warning", "the consumer is gone; it is made again", durable=self.durable, why=repr(error))
                failures += 1
                await self._unbind()
                await service.wait(stop, min(0.2 * 2 ** min(failures, 4), 2))

    async def _bind(self):
        jetstream = self.bus.jetstream
        # The same as before, if it is there; else from the beginning of what the stream has: what comes twice is known.
        await jetstream.add_consumer(self.stream, nats.js.api.ConsumerConfig(
            durable_name=self.durable, filter_subject=self.subject, deliver_policy=nats.js.api.DeliverPolicy.ALL,
            ack_policy=nats.js.api.AckPolicy.EXPLICIT, ack_wait=self.ack_wait, max_deliver=-1, max_ack_pending=64))
        self._subscription = await jetstream.pull_subscribe_bind(durable=self.durable, stream=self.stream)
        service.log("info", "consuming", stream=self.stream, durable=self.durable, subject=self.subject)

    async def _stands(self):
        try:
            await self.bus.jetstream.consumer_info(self.stream, self.durable)
            return True
        except (nats.errors.TimeoutError, asyncio.TimeoutError):
            return True  # slow, and not known to be lost
        except (nats.errors.Error, nats.js.errors.Error, OSError):
            return False

    async def _unbind(self):
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except (nats.errors.Error, OSError):
                pass

    async def _take(self, message):
        delivered = message.metadata.num_delivered
        try:
            await self._handle(message)
        except Exception as error:
            delay = min(0.5 * 2 ** min(delivered, 10), RETRY_SECONDS_MAX)
            service.log("error", "a message could not be handled; it comes again", subject=message.subject,
                        seq=message.metadata.sequence.stream, delivered=delivered, seconds=delay, why=repr(error))
            await message.nak(delay=delay)
            return
        await message.ack()

    async def _handle(self, message):
        try:
            await self.handle(cloudevents.decode(message.headers, message.data))
            return
        except cloudevents.NotAnEvent as error:
            parts = cloudevents.parts(message.headers, message.data)
            if len(parts) == 1:
                await self._bury(message, message.data, error)
                return
        for index, part in enumerate(parts):
            try:
                await self.handle(cloudevents.decode(message.headers, part))
            except cloudevents.NotAnEvent as error:
                await self._bury(message, part, error, index)

    async def _bury(self, message, data, error, index=0):
        reason, seq = str(error), message.metadata.sequence.stream
        service.log("error", "an event cannot be understood; it becomes a dead letter", subject=message.subject, seq=seq, index=index,
                    why=reason)
        headers = {key: value for key, value in (message.headers or {}).items() if key != "Nats-Msg-Id"}
        headers |= {"gaekju-dead-reason": " ".join(reason.split())[:1024] or "?", "gaekju-dead-subject": message.subject,
                    "gaekju-dead-stream": self.stream, "gaekju-dead-seq": str(seq),
                    # The same when the message comes again before all of it was settled.
                    "Nats-Msg-Id": f"dead:{self.durable}:{self.stream}:{seq}:{index}"}
        await self.bus.jetstream.publish(f"gaekju.dead.{self.bus.name}", data, headers=headers)
