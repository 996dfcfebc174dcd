"""Python stubs of the contracts, generated from proto/ when a test session starts.

    from stubs import order_pb, order_service     # gaekju/order/v1/order.proto and order_service.proto
    order_service.PlaceOrderRequest(storefront="fashion", ...)

They land in build/stubs/<hash of the contracts>, so nothing is generated twice and nothing stale is read.
"""

import hashlib
import importlib
import os
import pathlib
import shutil
import sys
import tempfile

import google.api  # googleapis-common-protos: brings google/api and google/rpc, as .proto and as Python
from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _generate():
    """Returns the folder with the stubs."""
    proto = ROOT / "proto"
    files = sorted(proto.rglob("*.proto"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(proto)).encode() + b"\0" + file.read_bytes() + b"\0")
    target = ROOT / "build" / "stubs" / digest.hexdigest()[:16]
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=target.parent))
    try:
        # In its own process: protoc would register the files in this one's descriptor pool.
        import subprocess
        import grpc_tools

        well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
        googleapis = pathlib.Path(next(iter(google.api.__path__))).parents[1]
        imports = [f"-I{proto}", f"-I{googleapis}", f"-I{well_known}"]
        names = [str(file.relative_to(proto)) for file in files]
        protoc = [sys.executable, "-m", "grpc_tools.protoc", *imports]
        # `io` is a module of Python's own, so CloudEvents is read through the descriptor set instead.
        ours = [name for name in names if name.startswith("gaekju/")]
        subprocess.run(
            [*protoc, f"--python_out={scratch}", f"--grpc_python_out={scratch}", *ours], check=True)
        subprocess.run(
            [*protoc, "--include_imports", f"--descriptor_set_out={scratch}/gaekju.binpb", *names], check=True)
        try:
            os.rename(scratch, target)
        except OSError:  # another test worker was faster
            if not target.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


_STUBS = _generate()
sys.path.insert(0, str(_STUBS))


def _load(name):
    return importlib.import_module(f"gaekju.{name}")


storefront_pb = _load("storefront.v1.storefront_pb2")
storefront_service = _load("storefront.v1.storefront_service_pb2")
StorefrontStub = _load("storefront.v1.storefront_service_pb2_grpc").StorefrontServiceStub
type_pb = _load("type.v1.type_pb2")
step_pb = _load("flow.v1.step_pb2")
assignment_pb = _load("assignment.v1.assignment_pb2")
assignment_service = _load("assignment.v1.assignment_service_pb2")
cart_pb = _load("cart.v1.cart_pb2")
cart_service = _load("cart.v1.cart_service_pb2")
catalog_pb = _load("catalog.v1.catalog_pb2")
catalog_service = _load("catalog.v1.catalog_service_pb2")
delivery_pb = _load("delivery.v1.delivery_pb2")
delivery_service = _load("delivery.v1.delivery_service_pb2")
notification_pb = _load("notification.v1.notification_pb2")
notification_service = _load("notification.v1.notification_service_pb2")
order_pb = _load("order.v1.order_pb2")
order_service = _load("order.v1.order_service_pb2")
payment_pb = _load("payment.v1.payment_pb2")
payment_service = _load("payment.v1.payment_service_pb2")
store_pb = _load("store.v1.store_pb2")
store_service = _load("store.v1.store_service_pb2")
view_pb = _load("view.v1.view_pb2")
view_service = _load("view.v1.view_service_pb2")
for _events in ("assignment", "cart", "catalog", "delivery", "notification", "order", "payment", "store"):
    _load(f"{_events}.v1.{_events}_events_pb2")

# context -> the class of its client stub
CLIENTS = {
    "assignment": _load("assignment.v1.assignment_service_pb2_grpc").AssignmentServiceStub,
    "cart": _load("cart.v1.cart_service_pb2_grpc").CartServiceStub,
    "catalog": _load("catalog.v1.catalog_service_pb2_grpc").CatalogServiceStub,
    "delivery": _load("delivery.v1.delivery_service_pb2_grpc").DeliveryServiceStub,
    "notification": _load("notification.v1.notification_service_pb2_grpc").NotificationServiceStub,
    "order": _load("order.v1.order_service_pb2_grpc").OrderServiceStub,
    "payment": _load("payment.v1.payment_service_pb2_grpc").PaymentServiceStub,
    "store": _load("store.v1.store_service_pb2_grpc").StoreServiceStub,
    "view": _load("view.v1.view_service_pb2_grpc").ViewServiceStub,
}
CONTEXTS = tuple(CLIENTS)


def message_class(full_name):
    """The class of a message of ours (or of google.rpc), or None."""
    try:
        return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(full_name))
    except KeyError:
        return None


def _cloudevents():
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((_STUBS / "gaekju.binpb").read_bytes()).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("io.cloudevents.v1.CloudEventBatch"))


CloudEventBatch = _cloudevents()
