"""Python stubs of contracts, made by grpcio-tools when they are first needed, or beforehand:

    contracts.load("gaekju/notification/v1/notification_events.proto")
    from gaekju.notification.v1 import notification_events_pb2

    python -m gaekju_client.contracts --out stubs gaekju/notification/v1/notification_events.proto
    GAEKJU_STUBS=stubs python -m kakao          # such a machine needs no grpcio-tools
    python -m gaekju_client.contracts --proto clients/giftwrap --descriptor-set giftwrap.binpb giftwrap.proto

Stubs lie in a folder per content of the contracts, so that a stale one is never read.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

CLOUDEVENTS = "io/cloudevents/v1/cloudevents.proto"
STEP = "gaekju/flow/v1/step.proto"


def proto_folder():
    """Gaekju's proto/: of GAEKJU_PROTO, or of the checkout that this file is in."""
    return pathlib.Path(os.environ.get("GAEKJU_PROTO") or pathlib.Path(__file__).resolve().parents[3] / "proto")


def _protoc(folders, *arguments):
    import google.api  # googleapis-common-protos brings google/api and google/rpc
    import grpc_tools
    imports = [*folders, pathlib.Path(next(iter(google.api.__path__))).parents[1],
               pathlib.Path(grpc_tools.__file__).parent / "_proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *(f"-I{folder}" for folder in imports), *arguments],
                   check=True)


def write_descriptor_set(target, folders, files):
    """What `gaekju serve order --contracts` reads: the files and all that they import."""
    _protoc(folders, "--include_imports", f"--descriptor_set_out={target}", *files)


def generate(out, folders, files):
    """Stubs of the files and of those of ours that they import; and contracts.binpb, which has all of them."""
    from google.protobuf import descriptor_pb2
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_descriptor_set(out / "contracts.binpb", folders, [*files, STEP, CLOUDEVENTS])
    held = descriptor_pb2.FileDescriptorSet.FromString((out / "contracts.binpb").read_bytes())
    # google/ comes with the packages protobuf and googleapis-common-protos; `io` is a module of Python's own.
    ours = [file.name for file in held.file if not file.name.startswith(("google/", "io/"))]
    _protoc(folders, f"--python_out={out}", *ours)


def load(*files, folders=()):
    """Makes the stubs of the files importable. `folders`: where they are, besides Gaekju's proto/."""
    ready = os.environ.get("GAEKJU_STUBS")
    if not ready:
        folders = [*map(pathlib.Path, folders), proto_folder()]
        digest = hashlib.sha256(repr(sorted(files)).encode())
        for folder in folders:
            for file in sorted(folder.rglob("*.proto")):
                digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        target = cache / "gaekju" / "stubs" / digest.hexdigest()[:16]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = pathlib.Path(tempfile.mkdtemp(dir=target.parent))
            try:
                generate(scratch, folders, files)
                try:
                    scratch.rename(target)
                except OSError:  # another process was faster
                    if not target.exists():
                        raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        ready = str(target)
    if ready not in sys.path:
        sys.path.insert(0, ready)
        _load_cloudevents(pathlib.Path(ready) / "contracts.binpb")


def _load_cloudevents(descriptor_set):
    from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, timestamp_pb2  # noqa: F401, what it imports
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set.read_bytes()).file:
        if file.name == CLOUDEVENTS:
            descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


def message_class(full_name):
    """The class of a message whose stubs have been imported."""
    from google.protobuf import descriptor_pool, message_factory
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(full_name))


def main():
    parser = argparse.ArgumentParser(prog="python -m gaekju_client.contracts", description="Makes stubs, or a descriptor set.")
    parser.add_argument("files", nargs="+", help="as they are imported: gaekju/payment/v1/payment_service.proto")
    parser.add_argument("--proto", action="append", default=[], help="a folder of .proto files besides Gaekju's")
    parser.add_argument("--out", help="write Python stubs here")
    parser.add_argument("--descriptor-set", help="write a descriptor set here, for gaekju's --contracts")
    arguments = parser.parse_args()
    if not arguments.out and not arguments.descriptor_set:
        parser.error("say --out, or --descriptor-set")
    folders = [*arguments.proto, proto_folder()]
    if arguments.out:
        generate(arguments.out, folders, arguments.files)
    if arguments.descriptor_set:
        write_descriptor_set(arguments.descriptor_set, folders, arguments.files)


if __name__ == "__main__":
    main()
