"""Serves a context: its steps come as JetStream commands or as gRPC calls, the same messages and the same answers.

    context = Context(giftwrap_pb2.DESCRIPTOR.services_by_name["GiftwrapService"])

    @context.step("Wrap")                       # its undo is named by the contract: (gaekju.flow.v1.step) = { undo: "Unwrap" }
    def wrap(request, db): ...                  # returns the response, or raises Refused
    @context.undo("Unwrap")
    def unwrap(request, db): ...                # takes back a step that was done
    @context.rpc("GetWrapping")
    def get(request, db): ...                   # any other RPC, over gRPC only

    context.main()                              # flags, signals, health; see --help
"""

import asyncio
import sys

import grpc
from google.api import field_behavior_pb2
from google.rpc import status_pb2

from gaekju_client import bus, cloudevents, contracts, service, steps

Refused = steps.Refused


class Context:
    def __init__(self, descriptor):
        """`descriptor`: the service's."""
        from gaekju.flow.v1 import step_pb2
        parts = descriptor.file.package.split(".")
        while len(parts) > 1 and parts[-1][:1] == "v" and parts[-1][1:2].isdigit():
            parts.pop()
        self.name = parts[-1]  # as storefronts, subjects and --peers call it
        self.service = descriptor.full_name
        self._methods = {}     # name -> function(request) -> Answer
        self._requests = {method.name: contracts.message_class(method.input_type.full_name) for method in descriptor.methods}
        self._responses = {method.name: contracts.message_class(method.output_type.full_name) for method in descriptor.methods}
        self._undos = {method.GetOptions().Extensions[step_pb2.step].undo for method in descriptor.methods}
        self._takes_commands = {method.name for method in descriptor.methods
                                if method.GetOptions().HasExtension(step_pb2.step)} | (self._undos - {""})
        self._steps = None
        self._tables = []

    def table(self, sql):
        """CREATE TABLE IF NOT EXISTS …"""
        self._tables.append(sql)

    def step(self, method):
        def register(decide):
            self._methods[method] = lambda request: self._missing(request) or self._steps.do(request, decide)
            return decide
        return register

    def undo(self, method):
        assert method in self._undos, f"no step of {self.service} names {method} as its undo"

        def register(take_back):
            response = self._responses[method]
            self._methods[method] = lambda request: self._steps.undo(request, response(), take_back)
            return take_back
        return register

    def rpc(self, method):
        def register(answer):
            def call(request):
                try:
                    return steps.done(answer(request, self._steps.db))
                except Refused as no:
                    return steps.refusal(self.service, no.code, no.reason, str(no), no.field)
            self._methods[method] = call
            return answer
        return register

    def _missing(self, request):
        for field in request.DESCRIPTOR.fields:
            behavior = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
            if field_behavior_pb2.REQUIRED in behavior and not (
                    request.HasField(field.name) if field.has_presence else getattr(request, field.name)):
                return steps.refusal(self.service, "INVALID_ARGUMENT", "FIELD_INVALID", f"{field.name} is required", field.name)
        return None

    def _answer(self, method, payload):
        try:
            request = self._requests[method].FromString(payload)
        except Exception as error:
            raise cloudevents.NotAnEvent(f"the payload is no {self._requests[method].DESCRIPTOR.full_name}") from error
        return self._methods[method](request)

    # ------------------------------------------------------------------ JetStream
    async def _take_commands(self, events):
        answers = []
        with self._steps.turn():  # all commands of a message commit together; nothing leaves before
            for event in events:
                method = event.type.removeprefix(f"{self.service}.")
                if method not in self._takes_commands or method not in self._methods:
                    raise cloudevents.NotAnEvent(f"{self.name} does not know {event.type}")
                answers.append((event, self._answer(method, event.payload)))
        await asyncio.gather(*(self._publish(command, answer) for command, answer in answers if command["replyto"]))
        service.log("debug", "answered", commands=len(answers))

    async def _publish(self, command, answer):
        await self._bus.publish(f"gaekju.answer.{command['replyto']}", cloudevents.Event(
            type=answer.type, source=f"/gaekju/{self.name}", payload=answer.payload, traceparent=command.traceparent,
            attributes={"subject": command["orderid"], "orderid": command["orderid"], "stepid": command["stepid"],
                        "undo": "true" if command.undo else "", "outcome": answer.outcome}))

    # ------------------------------------------------------------------ gRPC
    def _grpc_handlers(self):
        def handler(method):
            async def call(payload, context):
                try:
                    with self._steps.turn():
                        answer = self._answer(method, payload)
                except cloudevents.NotAnEvent as error:
                    answer = steps.refusal(self.service, "INVALID_ARGUMENT", "MALFORMED_REQUEST", str(error))
                if answer.outcome == "DONE":
                    return answer.payload
                status = status_pb2.Status.FromString(answer.payload)
                context.set_trailing_metadata((("grpc-status-details-bin", answer.payload),))
                await context.abort(next(code for code in grpc.StatusCode if code.value[0] == status.code), status.message)
            return grpc.unary_unary_rpc_method_handler(call)  # bytes in, bytes out

        return grpc.method_handlers_generic_handler(self.service, {method: handler(method) for method in self._methods})

    # ------------------------------------------------------------------ the program
    def main(self):
        unserved = (self._takes_commands - {""}) - set(self._methods)
        assert not unserved, f"{self.service} has no {', '.join(sorted(unserved))} here"
        prefix = self.name.upper()
        flags = service.Flags(prefix, prog=self.name, description=f"Serves the context {self.name} ({self.service}).")
        flags.flag("database", f"{self.name}.db", help="the SQLite file")
        flags.flag("nats", "nats://127.0.0.1:4222", help="the bus; several: comma-separated")
        flags.flag("listen", "127.0.0.1:50061", help="where gRPC is served; empty: nowhere")
        flags.flag("log-level", "info", help="debug, info, warning or error")
        options = flags.parse_args()
        service.set_log_level(options.log_level)
        sys.exit(service.run(lambda stop: self._serve(options, stop)))

    async def _serve(self, options, stop):
        db = steps.open_database(options.database)
        self._steps = steps.Steps(db, self.service)
        for sql in self._tables:
            db.execute(sql)
        self._bus = bus.Bus(options.nats, self.name)
        consumer = bus.Consumer(self._bus, "GAEKJU_COMMANDS", self.name, f"gaekju.command.{self.name}", self._take_commands)
        server = None
        if options.listen:
            from grpc_health.v1 import health, health_pb2, health_pb2_grpc
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((self._grpc_handlers(),))
            state = health.aio.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(state, server)
            server.add_insecure_port(options.listen)
            await server.start()
            await state.set("", health_pb2.HealthCheckResponse.SERVING)
            service.log("info", "serving gRPC", listen=options.listen)
        # gRPC is served before the bus can be reached, and without it.
        if await service.until(stop, self._bus.connect()):
            await consumer.run(stop)
        service.log("info", "stopping")
        if server:
            await server.stop(3)
        await self._bus.close()
        db.close()
        return 0
