"""Bus messages <-> events: CloudEvents 1.0 over NATS, one event in headers (binary mode) or a turn of them (batch mode).

    for event in decode(message.headers, message.data): ...
    headers, body = encode(Event(type=..., source="/gaekju/giftwrap", attributes={...}, payload=...))
"""

import dataclasses
import datetime
import urllib.parse
import uuid

from gaekju_client import contracts

BINARY = "application/protobuf"
BATCH = "application/cloudevents-batch+protobuf"
_PLAIN = "".join(chr(code) for code in range(0x21, 0x7f) if chr(code) not in '"%')  # the binding's section 3.1.3.1


class NotAnEvent(ValueError):
    """A message that cannot be understood, now or later."""


@dataclasses.dataclass
class Event:
    """One event, command or answer. `attributes` has what is not a field, as text."""
    type: str
    source: str
    payload: bytes = b""
    attributes: dict = dataclasses.field(default_factory=dict)
    id: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))
    traceparent: str = ""

    def __getitem__(self, name):
        """An attribute; empty when there is none."""
        return self.attributes.get(name, "")

    @property
    def undo(self):
        return self["undo"].lower() == "true"


def decode(headers, body):
    """The events of a message, in their order. Raises NotAnEvent."""
    headers = {name.lower(): value for name, value in (headers or {}).items()}
    content_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == BATCH:
        return _decode_batch(body)
    if content_type.startswith("application/cloudevents"):
        raise NotAnEvent(f"content-type {content_type} is not read here")
    attributes = {name[3:]: urllib.parse.unquote(value) for name, value in headers.items() if name.startswith("ce-")}
    return [_event(attributes, body, headers.get("traceparent", ""))]


def parts(headers, body):
    """The message cut into messages of one event each, under the same headers; one that cannot be cut is its only part."""
    if not any(name.lower() == "content-type" and value.startswith(BATCH) for name, value in (headers or {}).items()):
        return [body]
    try:
        events = _batch(body).events
    except NotAnEvent:
        return [body]
    return [_message_class()(events=[event]).SerializeToString() for event in events] or [body]


def _message_class():
    return contracts.message_class("io.cloudevents.v1.CloudEventBatch")


def _batch(body):
    batch = _message_class()()
    try:
        batch.ParseFromString(body)
    except Exception as error:
        raise NotAnEvent(f"the batch is broken: {error}") from error
    return batch


def _decode_batch(body):
    events = []
    for raw in _batch(body).events:
        attributes = {"id": raw.id, "source": raw.source, "type": raw.type, "specversion": raw.spec_version}
        for name, value in raw.attributes.items():
            kind = value.WhichOneof("attr")
            if kind == "ce_boolean":
                attributes[name] = "true" if value.ce_boolean else "false"
            elif kind == "ce_timestamp":
                attributes[name] = value.ce_timestamp.ToJsonString()
            elif kind:
                attributes[name] = str(getattr(value, kind))
        data = raw.proto_data.value if raw.WhichOneof("data") == "proto_data" else raw.binary_data
        events.append(_event(attributes, data, attributes.pop("traceparent", "")))
    return events


def _event(attributes, payload, traceparent):
    if attributes.pop("specversion", "") != "1.0":
        raise NotAnEvent("specversion is not 1.0")
    missing = [name for name in ("id", "source", "type") if not attributes.get(name)]
    if missing:
        raise NotAnEvent(f"{' and '.join(missing)} is missing")
    return Event(id=attributes.pop("id"), source=attributes.pop("source"), type=attributes.pop("type"),
                 payload=payload, attributes=attributes, traceparent=traceparent)


def encode(event):
    """Headers and body of a message that carries one event."""
    attributes = {"id": event.id, "source": event.source, "specversion": "1.0", "type": event.type,
                  "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z"),
                  **event.attributes}
    headers = {f"ce-{name}": urllib.parse.quote(value, safe=_PLAIN) for name, value in attributes.items() if value}
    headers["content-type"] = BINARY
    if event.traceparent:
        headers["traceparent"] = event.traceparent
    return headers, event.payload
