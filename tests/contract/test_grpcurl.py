"""grpcurl, which knows nothing of us but server reflection, lists, describes and calls every RPC of every context.

./dev test builds grpcurl (pinned in go.mod) and names it in GAEKJU_GRPCURL.
"""

import json
import os
import pathlib
import signal
import subprocess

from google.protobuf import descriptor_pb2
import pytest

from gaekju_house import House, Process, ROOT, eventually, free_ports, gaekju_binary
from stubs import CONTEXTS

GRPCURL = os.environ.get("GAEKJU_GRPCURL")
pytestmark = pytest.mark.skipif(not GRPCURL, reason="GAEKJU_GRPCURL does not name a grpcurl: use ./dev test --suite grpcurl")

# What an empty request may be answered with. UNIMPLEMENTED, INTERNAL and UNKNOWN are none of them.
ANSWERS = {"OK", "InvalidArgument", "NotFound", "FailedPrecondition"}


SERVED_BY = {"storefront": "order"}  # others serve what is theirs; the facade is a process of its own


def rpcs():
    """(context, full name of the service, RPC, whether it streams) of the whole contract."""
    file = os.environ.get("GAEKJU_DESCRIPTOR_SET", str(ROOT / "build" / "release" / "gaekju.binpb"))
    with open(file, "rb") as contracts:
        for proto in descriptor_pb2.FileDescriptorSet.FromString(contracts.read()).file:
            if proto.package.startswith("gaekju."):
                for service in proto.service:
                    for method in service.method:
                        owner = proto.package.split(".")[1]
                        yield SERVED_BY.get(owner, owner), f"{proto.package}.{service.name}", method.name, method.server_streaming


RPCS = list(rpcs()) if GRPCURL else []


@pytest.fixture(scope="module")
def house(cluster, tmp_path_factory):
    storefronts = sorted((ROOT / "storefronts").glob("*.textproto"))
    with House(cluster, tmp_path_factory.mktemp("house"), storefronts=storefronts) as house:
        house.start()
        house.ports["facade"], metrics = free_ports(2)
        peers = ",".join(f"{context}=127.0.0.1:{house.ports[context]}" for context in CONTEXTS)
        facade = Process([gaekju_binary(), "facade", f"--listen=127.0.0.1:{house.ports['facade']}",
                          f"--metrics=127.0.0.1:{metrics}", f"--peers={peers}"], pathlib.Path(house.folder) / "facade.log")
        eventually(lambda: grpcurl(house, "facade", "grpc.health.v1.Health/Check", request={})[0] == "OK", "the facade serves")
        yield house
        facade.end(signal.SIGTERM)


def grpcurl(house, context, *words, request=None):
    """(gRPC code, what was printed) of one call."""
    options = ["-plaintext", "-max-time", "10"] + ([] if request is None else ["-d", json.dumps(request)])
    done = subprocess.run([GRPCURL, *options, f"127.0.0.1:{house.ports[context]}", *words], capture_output=True, text=True,
                          timeout=30)
    if done.returncode == 0:
        return "OK", done.stdout
    code = [line.split(":", 1)[1].strip() for line in done.stderr.splitlines() if line.strip().startswith("Code:")]
    return code[0] if code else "no answer", done.stdout + done.stderr


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_lists_its_service_health_and_reflection(house, context):
    code, listed = grpcurl(house, context, "list")
    assert code == "OK", listed
    services = listed.split()
    assert {service for owner, service, _, _ in RPCS if owner == context} <= set(services)
    assert "grpc.health.v1.Health" in services
    assert any(service.startswith("grpc.reflection.") for service in services)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_says_that_it_serves(house, context):
    code, answer = grpcurl(house, context, "grpc.health.v1.Health/Check", request={})
    assert code == "OK", answer
    assert json.loads(answer) == {"status": "SERVING"}


@pytest.mark.parametrize("context, service, rpc, streams", RPCS, ids=[f"{service}.{rpc}" for _, service, rpc, _ in RPCS])
def test_every_rpc_is_described_and_answers(house, context, service, rpc, streams):
    code, described = grpcurl(house, context, "describe", f"{service}.{rpc}")
    assert code == "OK", described
    assert "gaekju.auth.v1.authorization" in described, "the contract that reflection gives tells who may call"
    code, answer = grpcurl(house, context, f"{service}/{rpc}", request={})
    assert code in ANSWERS, answer
