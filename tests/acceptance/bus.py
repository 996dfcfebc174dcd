"""Reads the bus from outside: every event that JetStream still has, decoded.

    for event in bus.events(house.nats_url): print(event.type, event.order_id)

Written from the CloudEvents NATS binding and from proto/io/cloudevents, not from the product's own codec: a message is either
one event (binary mode: ce-* headers, the payload as body) or a turn (a CloudEventBatch).
"""

import asyncio
import dataclasses
import datetime
import urllib.parse

import nats
import nats.errors
import nats.js.api
import nats.js.errors

from stubs import CloudEventBatch, message_class


@dataclasses.dataclass(frozen=True)
class Event:
    """One event (or command, or answer) as it stood on the bus."""
    stream_seq: int
    subject: str
    id: str
    source: str            # the context: "order"
    type: str              # full name of the payload's message
    time: datetime.datetime
    order_id: str
    attributes: dict       # all of them, by name
    payload: object        # decoded, or bytes when the type is not one of ours

    @property
    def name(self):
        """The type without its package: "OrderPlaced"."""
        return self.type.rsplit(".", 1)[-1]


def _decode(message, stream_seq):
    headers = {key.lower(): urllib.parse.unquote(value) for key, value in (message.headers or {}).items()}
    content_type = headers.get("content-type", "")
    if content_type.startswith("application/cloudevents-batch+protobuf"):
        for event in CloudEventBatch.FromString(message.data).events:
            attributes = {}
            for key, value in event.attributes.items():
                kind = value.WhichOneof("attr")
                attributes[key] = getattr(value, kind) if kind else None
                if kind == "ce_timestamp":
                    attributes[key] = value.ce_timestamp.ToDatetime(datetime.timezone.utc)
            attributes |= {"id": event.id, "source": event.source, "type": event.type,
                           "specversion": event.spec_version}
            yield _event(message, stream_seq, attributes, event.binary_data)
    else:
        attributes = {key[3:]: value for key, value in headers.items() if key.startswith("ce-")}
        yield _event(message, stream_seq, attributes, message.data)


def _event(message, stream_seq, attributes, data):
    assert attributes.get("specversion") == "1.0", f"not a CloudEvent: {attributes} on {message.subject}"
    time = attributes["time"]
    if not isinstance(time, datetime.datetime):
        time = datetime.datetime.fromisoformat(time.replace("Z", "+00:00"))
    payload_class = message_class(attributes["type"])
    return Event(
        stream_seq=stream_seq,
        subject=message.subject,
        id=attributes["id"],
        source=attributes["source"].removeprefix("/gaekju/"),
        type=attributes["type"],
        time=time,
        order_id=str(attributes.get("orderid", "")),
        attributes=attributes,
        payload=payload_class.FromString(data) if payload_class else data)


async def _read(url, stream, known=None):
    """What is in a stream, as (when it was made, its last sequence number, events). `known`: the same, of an earlier time: only what
    came since is read."""
    connection = await nats.connect(url, connect_timeout=5, max_reconnect_attempts=1, allow_reconnect=False)
    try:
        jetstream = connection.jetstream(timeout=5)
        try:
            info = await jetstream.stream_info(stream)
        except nats.js.errors.NotFoundError:
            return None, 0, []
        made, last = info.created, info.state.last_seq
        _, read, found = known if known and known[0] == made and known[1] <= last else (made, 0, [])
        if last == read:
            return made, last, found
        subscription = await jetstream.subscribe(
            ">", stream=stream, ordered_consumer=True, pending_msgs_limit=0, pending_bytes_limit=0,
            config=nats.js.api.ConsumerConfig(
                deliver_policy=nats.js.api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=read + 1))
        info = await subscription.consumer_info()
        if info.num_pending == 0 and info.delivered.stream_seq == 0:
            return made, last, found  # everything has aged out
        found = list(found)
        while True:
            message = await subscription.next_msg(timeout=10)
            seq = message.metadata.sequence.stream
            found.extend(_decode(message, seq))
            if seq >= last or message.metadata.num_pending == 0:
                return made, seq, found
    finally:
        await connection.close()


def read(url, stream):
    """Everything in a stream, in its order."""
    return asyncio.run(_read(url, stream))[-1]


_known = {}  # url -> what events() has read there


def events(url):
    """Every event, each once (a relay may publish again), in the order of their times."""
    _known[url] = asyncio.run(_read(url, "GAEKJU_EVENTS", _known.get(url)))
    seen = {}
    for event in _known[url][-1]:
        seen.setdefault((event.source, event.id), event)
    return sorted(seen.values(), key=lambda event: (event.time, event.stream_seq))
