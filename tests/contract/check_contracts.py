#!/usr/bin/env python3
"""Fails when a contract of ours leaves out what servers and sagas are generated from.

    check_contracts.py build/dev/gaekju.binpb      # the build runs this; prints one line per mistake
    check_contracts.py --self-test                 # shows that each rule can fail

Rules, for every service in a package that starts with "gaekju.":
  1. an RPC carries the option (gaekju.auth.v1.authorization), which names a role or a service;
  2. its owner_field, when set, is a field of the request;
  3. a step (gaekju.flow.v1.step) names an RPC of the same service as its undo, or says nothing_to_undo, not both;
  4. a step and its undo are unary, and their requests carry `string order_id` and `string step_id`;
  5. an undo is not itself a step;
  6. a step that closes another (gaekju.flow.v1.closes) has an undo, and the other is a step of the same service with nothing to undo.
"""

import argparse
import sys

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory

AUTHORIZATION = "gaekju.auth.v1.authorization"
STEP = "gaekju.flow.v1.step"
CLOSES = "gaekju.flow.v1.closes"
OURS = "gaekju."


class Contracts:
    """A descriptor set whose method options can be read with the extensions it defines itself."""

    def __init__(self, serialized):
        self.files = descriptor_pb2.FileDescriptorSet.FromString(serialized).file
        self.pool = descriptor_pool.DescriptorPool()
        for file in self.files:
            self.pool.Add(file)
        options = self.pool.FindMessageTypeByName("google.protobuf.MethodOptions")
        self._options_class = message_factory.GetMessageClass(options)
        self._extensions = {}
        for name in (AUTHORIZATION, STEP, CLOSES):
            try:
                self._extensions[name] = self.pool.FindExtensionByName(name)
            except KeyError:
                raise SystemExit(f"contract check: the descriptor set does not define {name}")
            # Registers the extension's class with the pool that parses the options.
            if self._extensions[name].message_type:
                message_factory.GetMessageClass(self._extensions[name].message_type)

    def option(self, method, name):
        """The method's option of that name, or None."""
        options = self._options_class.FromString(method.options.SerializeToString())
        extension = self._extensions[name]
        return options.Extensions[extension] if options.HasExtension(extension) else None

    def fields(self, type_name):
        """field name -> type of a request."""
        message = self.pool.FindMessageTypeByName(type_name.lstrip("."))
        return {field.name: field.type for field in message.fields}

    def services(self):
        for file in self.files:
            if file.package.startswith(OURS):
                for service in file.service:
                    yield file, service


def mistakes(serialized):
    """One string per mistake, with the file and the RPC."""
    contracts = Contracts(serialized)
    for file, service in contracts.services():
        methods = {method.name: method for method in service.method}
        for method in service.method:
            where = f"{file.name}: {service.name}.{method.name}"

            authorization = contracts.option(method, AUTHORIZATION)
            if authorization is None:
                yield f"{where}: has no option ({AUTHORIZATION}); say who may call it"
            else:
                if not authorization.roles and not authorization.services:
                    yield f"{where}: ({AUTHORIZATION}) names neither roles nor services, so nobody may call it"
                owner = authorization.owner_field
                if owner and owner not in contracts.fields(method.input_type):
                    yield f"{where}: owner_field '{owner}' is not a field of {method.input_type.lstrip('.')}"

            step = contracts.option(method, STEP)
            closes = contracts.option(method, CLOSES)
            if closes is not None:
                closed = contracts.option(methods[closes], STEP) if closes in methods else None
                if closed is None or not closed.nothing_to_undo:
                    yield f"{where}: closes '{closes}', which is no step of {service.name} with nothing to undo"
                if step is None or not step.undo:
                    yield f"{where}: closes a step, and has no undo that opens it again"
            if step is None:
                continue
            if bool(step.undo) == step.nothing_to_undo:
                yield f"{where}: a step names its undo or says nothing_to_undo, one of the two"
            keyed = [method]
            if step.undo and step.undo not in methods:
                yield f"{where}: undo '{step.undo}' is not an RPC of {service.name}; it has {', '.join(methods)}"
            elif step.undo:
                undo = methods[step.undo]
                keyed.append(undo)
                if contracts.option(undo, STEP) is not None:
                    yield f"{where}: undo '{step.undo}' is itself a step"
            for rpc in keyed:
                if rpc.client_streaming or rpc.server_streaming:
                    yield f"{where}: {rpc.name} streams; a step and its undo are unary"
                fields = contracts.fields(rpc.input_type)
                for key in ("order_id", "step_id"):
                    if fields.get(key) != descriptor_pb2.FieldDescriptorProto.TYPE_STRING:
                        yield f"{where}: {rpc.input_type.lstrip('.')} has no field 'string {key}', which keys a step"


# ---------------------------------------------------------------- self-test

OPTIONS_PROTO = """
syntax = "proto3";
package gaekju.{package}.v1;
import "google/protobuf/descriptor.proto";
"""

SELF_TEST = [
    # (what is wrong, part of the message that must come, the service's text)
    ("nothing", None,
     'rpc Do(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = { undo: "Undo" }; }'
     'rpc Undo(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { services: "order" }; }'
     'rpc Tell(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 owner_field: "order_id" };'
     ' option (gaekju.flow.v1.step) = { nothing_to_undo: true }; }'),
    ("no authorization", "has no option (gaekju.auth.v1.authorization)", 'rpc Do(Keyed) returns (Keyed);'),
    ("empty authorization", "names neither roles nor services",
     'rpc Do(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { owner_field: "order_id" }; }'),
    ("unknown owner", "owner_field 'buyer' is not a field",
     'rpc Do(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 owner_field: "buyer" }; }'),
    ("unknown undo", "undo 'Undo' is not an RPC",
     'rpc Do(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = { undo: "Undo" }; }'),
    ("step without undo", "a step names its undo or says nothing_to_undo",
     'rpc Do(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = {}; }'),
    ("undo that is a step", "is itself a step",
     'rpc Do(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = { undo: "Do" }; }'),
    ("streaming step", "streams",
     'rpc Do(Keyed) returns (stream Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = { nothing_to_undo: true }; }'),
    ("closes what is no step", "which is no step of CaseService",
     'rpc Do(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = { undo: "Undo" }; option (gaekju.flow.v1.closes) = "Undo"; }'
     'rpc Undo(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { services: "order" }; }'),
    ("closes for ever", "has no undo that opens it again",
     'rpc Do(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = { nothing_to_undo: true }; }'
     'rpc Close(Keyed) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = { nothing_to_undo: true }; option (gaekju.flow.v1.closes) = "Do"; }'),
    ("step without key", "has no field 'string step_id'",
     'rpc Do(Bare) returns (Keyed) { option (gaekju.auth.v1.authorization) = { roles: 2 };'
     ' option (gaekju.flow.v1.step) = { nothing_to_undo: true }; }'),
]


def self_test():
    """Compiles one wrong service per rule with grpcio-tools' protoc and expects its message."""
    import importlib.resources
    import pathlib
    import tempfile
    from grpc_tools import protoc

    well_known = importlib.resources.files("grpc_tools").joinpath("_proto")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "auth.proto").write_text(OPTIONS_PROTO.format(package="auth") + """
            message Authorization { repeated int32 roles = 1; repeated string services = 2; string owner_field = 3; }
            extend google.protobuf.MethodOptions { Authorization authorization = 51001; }""")
        (root / "flow.proto").write_text(OPTIONS_PROTO.format(package="flow") + """
            message Step { string undo = 1; bool nothing_to_undo = 2; }
            extend google.protobuf.MethodOptions { Step step = 51002; string closes = 51003; }""")
        for wrong, expected, rpcs in SELF_TEST:
            (root / "case.proto").write_text(f"""
                syntax = "proto3";
                package gaekju.case.v1;
                import "auth.proto";
                import "flow.proto";
                message Keyed {{ string order_id = 1; string step_id = 2; }}
                message Bare {{ string order_id = 1; int32 step_id = 2; }}
                service CaseService {{ {rpcs} }}""")
            out = root / "case.binpb"
            if protoc.main(["protoc", f"-I{root}", f"-I{well_known}", "--include_imports",
                            f"--descriptor_set_out={out}", str(root / "case.proto")]) != 0:
                raise SystemExit(f"self-test: the case '{wrong}' does not compile")
            found = list(mistakes(out.read_bytes()))
            good = not found if expected is None else len(found) == 1 and expected in found[0]
            print(f"{'ok  ' if good else 'FAIL'} {wrong}: {found}")
            failed += not good
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("descriptor_set", nargs="?", help="file written by protoc --include_imports")
    parser.add_argument("--self-test", action="store_true", help="show that each rule can fail")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    if not args.descriptor_set:
        parser.error("a descriptor set is needed")
    with open(args.descriptor_set, "rb") as file:
        found = list(mistakes(file.read()))
    for mistake in found:
        print(f"contract check: {mistake}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
