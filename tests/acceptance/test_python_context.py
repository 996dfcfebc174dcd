"""A context in Python (clients/giftwrap) that joins storefronts by its .proto alone: the order service was not built with it."""

import asyncio
import random
import signal
import subprocess
import sys
import uuid

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
import nats
import nats.js.errors
import pytest

from gaekju_house import House, Process, STOREFRONTS, eventually, free_ports, gaekju_binary
from kakao_channel import CLIENTS, client_environment
from shop import SECONDS_TO_ANSWER, Shop, refused
from stubs import ROOT, StorefrontStub, order_pb, storefront_service
from test_up import Up, clear, fresh_directory, left_behind

pytestmark = pytest.mark.timeout(300)

SERVICE = "example.giftwrap.v1.GiftwrapService"

SHOP = """
id: "{id}"
display_name {{ ko: "선물" en: "Gifts" }}
currency_code: "KRW"
place {{
  step {{ id: "price" call: "catalog.Quote" via: GRPC }}
  step {{ id: "pay" call: "payment.Capture" via: GRPC after: "price" }}
  step {{
    id: "wrap" call: "example.giftwrap.v1.GiftwrapService.Wrap" via: {via} after: "pay"
    with {{ [type.googleapis.com/example.giftwrap.v1.WrapRequest] {{ paper: "red" }} }}
  }}
}}
cancel {{
  step {{ undo: "wrap" via: {via} }}
  step {{ undo: "pay" after: "wrap" }}
}}
status {{ stage: PLACED code: "ORDERED" text {{ ko: "주문" en: "Ordered" }} }}
status {{ done: "wrap" code: "WRAPPED" text {{ ko: "포장완료" en: "Wrapped" }} }}
status {{ stage: CANCELLED code: "CANCELLED" text {{ ko: "취소" en: "Cancelled" }} }}
"""
# In gifts a refused order is readable; in gifts-direct it has never been.
READABLE = """status { stage: REJECTED code: "REJECTED" text { ko: "거절" en: "Rejected" } }
"""


def shop_text(shop):
    return SHOP.format(id=shop, via="GRPC") if shop == "gifts-direct" else SHOP.format(id=shop, via="JETSTREAM") + READABLE


def descriptor_set(target, *files, folder=CLIENTS / "giftwrap"):
    """As clients/README.md says to make it."""
    subprocess.run([sys.executable, "-m", "gaekju_client.contracts", "--proto", str(folder), "--descriptor-set", str(target),
                    *files], env=client_environment(), check=True, timeout=60)
    return target


@pytest.fixture(scope="module")
def contracts(tmp_path_factory):
    return descriptor_set(tmp_path_factory.mktemp("contracts") / "giftwrap.binpb", "giftwrap.proto")


class Messages:
    """The context's messages, from the descriptor set."""

    def __init__(self, contracts):
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(contracts.read_bytes()).file:
            pool.Add(file)
        self._pool = pool

    def __getattr__(self, name):
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"example.giftwrap.v1.{name}"))


class Giftwrap:
    """The Python process."""

    def __init__(self, folder, nats_url, contracts):
        self.folder, self.nats_url, self.messages = folder, nats_url, Messages(contracts)
        self.port = free_ports(1)[0]
        self.process = None
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=[
            ("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])

    def start(self):
        assert self.process is None
        self.process = Process(
            [sys.executable, CLIENTS / "giftwrap" / "giftwrap.py", f"--database={self.folder}/giftwrap.db",
             f"--nats={self.nats_url}", f"--listen=127.0.0.1:{self.port}", "--log-level=debug"],
            self.folder / "giftwrap.log", env=client_environment())
        eventually(self._up, "giftwrap serves", 30)

    def _up(self):
        assert self.process.alive(), self.process.log_tail()
        answer = health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def kill(self):
        if self.process:
            self.process.end(signal.SIGKILL)
            self.process = None

    def stop(self):
        process, self.process = self.process, None
        return process.end(signal.SIGTERM)

    def call(self, method, request):
        response = getattr(self.messages, f"{method}Response")
        return self.channel.unary_unary(f"/{SERVICE}/{method}", lambda message: message.SerializeToString(),
                                        response.FromString)(request, timeout=10)

    def wrapping(self, order):
        return self.call("GetWrapping", self.messages.GetWrappingRequest(order_id=getattr(order, "order_id", order)))


@pytest.fixture(scope="module")
def module_house(cluster, tmp_path_factory, contracts):
    folder = tmp_path_factory.mktemp("gifts")
    for shop in ["gifts", "gifts-direct"]:
        (folder / f"{shop}.textproto").write_text(shop_text(shop))
    with House(cluster, folder / "house", storefronts=[STOREFRONTS[0], *folder.glob("*.textproto")]) as house:
        house.gifts = Giftwrap(folder, house.nats_url, contracts)
        peers = ",".join(f"{name}=127.0.0.1:{port}" for name, port in [*house.ports.items(), ("giftwrap", house.gifts.port)])
        house.flags["order"] = [f"--contracts={contracts}", f"--peers={peers}"]
        house.start()
        house.gifts.start()
        yield house
        house.gifts.kill()


@pytest.fixture
def house(module_house):
    module_house.heal()
    if module_house.gifts.process is None:
        module_house.gifts.start()
    # A circuit that a test before left open closes within seconds.
    probe = Shop(module_house, "gifts-direct")
    probe.buy(probe.buyer(), probe.product())
    return module_house


@pytest.fixture(params=["gifts", "gifts-direct"])
def shop(request, house):
    return Shop(house, request.param)


@pytest.fixture
def gifts(house):
    return Shop(house, "gifts")


def test_an_order_comes_to_its_end_and_a_cancel_undoes_it(house, shop):
    order = shop.place(shop.buyer(), shop.product(price=7_000), quantity=3)
    done = shop.until(order, "COMPLETED")
    assert (done.status_code, done.status_text.ko) == ("WRAPPED", "포장완료")
    wrapping = house.gifts.wrapping(order)
    # Filled from the order by name, and from the storefront's constants.
    assert (wrapping.card, wrapping.paper, wrapping.ribbon_count) == ("For jang", "red", 3)
    assert not wrapping.unwrapped
    shop.insist(lambda: shop.cancel(order))
    shop.until(order, "CANCELLED")
    wrapping = house.gifts.wrapping(order)
    assert (wrapping.wrap_count, wrapping.unwrap_count) == (1, 1)
    assert shop.payment_state(order) == "REFUNDED"


def test_its_refusal_takes_back_what_was_done(house, gifts):
    order = gifts.place(gifts.buyer(), gifts.product(), quantity=101)
    assert gifts.until(order, "REJECTED").reject_reason == "OUT_OF_RIBBON"
    assert gifts.payment_state(order) == "REFUNDED"
    with refused("NOT_FOUND", "WRAPPING_NOT_FOUND", SERVICE):
        house.gifts.wrapping(order)


def test_its_refusal_is_told_to_a_buyer_who_waits(house):
    direct = Shop(house, "gifts-direct")
    buyer = direct.buyer()
    with refused("FAILED_PRECONDITION", "OUT_OF_RIBBON", SERVICE) as refusal:
        direct.place(buyer, direct.product(), quantity=101)
    assert refusal.message == "101 ribbons on one parcel; at most 100"
    assert direct.orders_of(buyer) == []


def test_orders_wait_for_a_context_that_is_down(house, gifts):
    house.gifts.kill()
    product = gifts.product()
    orders = [gifts.place(gifts.buyer(), product) for _ in range(5)]
    cancelled = gifts.place(gifts.buyer(), product)
    gifts.cancel(cancelled)
    house.gifts.start()
    for order in orders:
        gifts.until(order, "COMPLETED")
        assert house.gifts.wrapping(order).wrap_count == 1
    gifts.until(cancelled, "CANCELLED")


def test_a_buyer_who_waits_is_told_when_it_is_down(house):
    direct = Shop(house, "gifts-direct")
    product, buyer = direct.product(), direct.buyer()
    house.gifts.kill()
    with refused("UNAVAILABLE", "STEP_UNREACHABLE") as refusal:
        direct.place(buyer, product)
    assert refusal.retry_delay
    house.gifts.start()
    order = direct.buy(buyer, product)
    direct.until(order, "COMPLETED")


def test_kills_in_mid_saga_lose_and_double_nothing(house, gifts):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    product = gifts.product()
    kept, cancelled = [], []
    for _ in range(6):
        for _ in range(10):
            order = gifts.buy(gifts.buyer(), product)
            if chance.random() < 0.4:
                gifts.insist(lambda order=order: gifts.cancel(order))
                cancelled.append(order)
            else:
                kept.append(order)
        house.gifts.kill()
        house.gifts.start()
    for order in kept:
        gifts.until(order, "COMPLETED")
        wrapping = house.gifts.wrapping(order)
        assert (wrapping.wrap_count, wrapping.unwrap_count) == (1, 0)
    for order in cancelled:
        gifts.until(order, "CANCELLED")
        try:
            wrapping = house.gifts.wrapping(order)
        except grpc.RpcError as error:  # the cancel was first
            assert error.code() == grpc.StatusCode.NOT_FOUND
        else:
            assert (wrapping.wrap_count, wrapping.unwrap_count) == (1, 1)


def test_a_wiped_bus_in_mid_saga(house, gifts):
    house.gifts.kill()
    orders = [gifts.place(gifts.buyer(), gifts.product()) for _ in range(5)]
    house.wipe_bus()
    house.gifts.start()
    for order in orders:
        gifts.until(order, "COMPLETED")
        assert house.gifts.wrapping(order).wrap_count == 1


def test_duplicates_do_nothing(house, gifts):
    order = gifts.place(gifts.buyer(), gifts.product())
    gifts.until(order, "COMPLETED")
    messages = house.gifts.messages
    # What the saga asked, as it stands on the bus, thrice more.
    answers = asyncio.run(_ask_again(house, order.order_id, times=3))
    assert len(answers) == 3 and len(set(answers)) == 1, "the same answer each time"
    assert answers[0][0] == "DONE" and messages.WrapResponse.FromString(answers[0][1]).card == "For jang"
    wrapping = house.gifts.wrapping(order)
    assert (wrapping.wrap_count, wrapping.unwrap_count) == (1, 0)


async def _ask_again(house, order_id, times):
    """Publishes the command of an order again and returns (outcome, payload) of the answers to that."""
    connection = await nats.connect(house.nats_url)
    try:
        jetstream = connection.jetstream()
        last = (await jetstream.stream_info("GAEKJU_COMMANDS")).state.last_seq
        command = None
        for seq in range(1, last + 1):
            try:
                message = await jetstream.get_msg("GAEKJU_COMMANDS", seq)
            except nats.js.errors.NotFoundError:
                continue
            if message.subject == "gaekju.command.giftwrap" and (message.headers or {}).get("ce-orderid") == order_id:
                command = message
        assert command, "the command is on the bus, by itself"
        heard = await connection.subscribe("gaekju.answer.probe")
        for _ in range(times):
            headers = {key: value for key, value in command.headers.items() if key != "Nats-Msg-Id"}
            await jetstream.publish("gaekju.command.giftwrap", command.data, headers={**headers, "ce-replyto": "probe"})
        found = []
        for _ in range(times):
            message = await heard.next_msg(timeout=30)
            assert message.headers["ce-orderid"] == order_id and message.headers["ce-source"] == "/gaekju/giftwrap"
            found.append((message.headers["ce-outcome"], message.data))
        return found
    finally:
        await connection.close()


def test_an_undo_that_comes_first_is_a_tombstone(house):
    messages = house.gifts.messages
    ids = {"order_id": uuid.uuid4().hex, "step_id": "wrap"}
    for _ in range(2):
        house.gifts.call("Unwrap", messages.UnwrapRequest(**ids))
    request = messages.WrapRequest(**ids, customer_name="jang")
    request.lines.add(product_id="p", quantity=1)
    for _ in range(2):
        with refused("FAILED_PRECONDITION", "STEP_UNDONE", SERVICE):
            house.gifts.call("Wrap", request)


def test_the_same_step_with_other_content_is_refused(house):
    messages = house.gifts.messages
    request = messages.WrapRequest(order_id=uuid.uuid4().hex, step_id="wrap")
    request.lines.add(product_id="p", quantity=1)
    house.gifts.call("Wrap", request)
    request.paper = "blue"
    with refused("ALREADY_EXISTS", "STEP_REUSED", SERVICE):
        house.gifts.call("Wrap", request)
    assert house.gifts.wrapping(request.order_id).wrap_count == 1


def test_bad_requests_name_the_field(house):
    messages = house.gifts.messages
    with refused("INVALID_ARGUMENT", "FIELD_INVALID", SERVICE, field="lines"):
        house.gifts.call("Wrap", messages.WrapRequest(order_id="o", step_id="s"))
    with refused("INVALID_ARGUMENT", "FIELD_INVALID", SERVICE, field="order_id"):
        house.gifts.call("Unwrap", messages.UnwrapRequest(order_id="a/b", step_id="s"))


def test_a_command_that_it_does_not_know_is_a_dead_letter(house, gifts):
    async def publish_and_look():
        connection = await nats.connect(house.nats_url)
        try:
            jetstream = connection.jetstream()
            await jetstream.publish("gaekju.command.giftwrap", b"", headers={
                "content-type": "application/protobuf", "ce-id": "1", "ce-source": "/gaekju/order", "ce-specversion": "1.0",
                "ce-type": f"{SERVICE}.Burn", "ce-orderid": "o", "ce-stepid": "s", "ce-replyto": "order"})
            for _ in range(600):
                try:
                    letter = await jetstream.get_last_msg("GAEKJU_DEAD", "gaekju.dead.giftwrap")
                    return letter.headers
                except nats.js.errors.NotFoundError:
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()

    headers = asyncio.run(publish_and_look())
    assert "does not know" in headers["gaekju-dead-reason"]
    order = gifts.place(gifts.buyer(), gifts.product())
    gifts.until(order, "COMPLETED")


def test_it_stops_cleanly(house):
    assert house.gifts.stop() == 0


def test_an_audit_reads_its_storefronts(house, contracts, gifts):
    order = gifts.place(gifts.buyer(), gifts.product())
    gifts.until(order, "COMPLETED")
    dsn = house.cluster.dsn(f"{house.name}_{{context}}")
    run = subprocess.run([gaekju_binary(), "audit", f"--database={dsn}", f"--contracts={contracts}", "--settle=30s"],
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


# ---------------------------------------------------------------------- --contracts
def _without_paper(contracts, folder):
    """The context's contract, changed so that the shop's constants do not fit any more."""
    held = descriptor_pb2.FileDescriptorSet.FromString(contracts.read_bytes())
    [request] = [message for file in held.file for message in file.message_type if message.name == "WrapRequest"]
    [paper] = [field for field in request.field if field.name == "paper"]
    request.field.remove(paper)
    changed = folder / "changed.binpb"
    changed.write_bytes(held.SerializeToString())
    return changed


def _order_starts_with(house, contracts):
    assert house.stop("order") == 0
    flags = [flag for flag in house.flags["order"] if not flag.startswith("--contracts=")]
    house.flags["order"] = [*flags, *([f"--contracts={contracts}"] if contracts else [])]
    house.start("order")


def _held(house):
    """Orders whose time to go on is put off: by their column, as SQL sees it."""
    with house.connect("order") as connection:
        return connection.execute("SELECT count(*) FROM orders WHERE due_time_us < 0").fetchone()[0]


@pytest.mark.parametrize("change", ["dropped", "changed"])
def test_orders_whose_contract_is_not_known_stay_as_they_are_until_it_is(house, contracts, gifts, change, tmp_path):
    house.gifts.kill()
    product = gifts.product()
    kept = [gifts.place(gifts.buyer(), product) for _ in range(4)]
    dropped = gifts.place(gifts.buyer(), product)
    gifts.cancel(dropped)
    under_way = [*kept, dropped]
    revision = gifts.get(kept[0]).storefront_revision

    def records():
        found = {}
        for order in under_way:
            [record] = gifts.records(order.customer_id)
            record.due_time_us = abs(record.due_time_us)
            found[order.order_id] = record
        return found

    log = house.folder / "order.log"
    said_before = log.read_text().count("cannot be read any more")
    _order_starts_with(house, _without_paper(contracts, tmp_path) if change == "changed" else None)
    try:
        before = records()
        with house.connect("order") as connection:  # whatever they wait for, its time has come
            connection.execute("UPDATE orders SET due_time_us = 1 WHERE due_time_us > 0")
        eventually(lambda: _held(house) == len(under_way), "their time is put off")

        # Everything else is served.
        fashion = Shop(house, "fashion")
        fashion.until(fashion.buy(fashion.buyer(), fashion.product()), "COMPLETED")
        # Who touches them is told, and they can be read.
        with refused("UNAVAILABLE", "STOREFRONT_REVISION_UNREADABLE", field="order_id") as refusal:
            gifts.cancel(kept[0])
        assert refusal.retry_delay and revision in refusal.message
        assert gifts.get(kept[0]).state == order_pb.Order.STATE_PLACED
        with refused("NOT_FOUND", "STOREFRONT_UNKNOWN", field="storefront"):
            gifts.place(gifts.buyer(), product)
        # What they asked for is answered meanwhile, and nobody can take the answer.
        house.gifts.start()
        eventually(lambda: all(house.gifts.wrapping(order).wrap_count == 1 for order in kept), "they are wrapped")
        listings = {it.id: it for it in StorefrontStub(house.channel("order")).ListStorefronts(
            storefront_service.ListStorefrontsRequest(), timeout=SECONDS_TO_ANSWER).storefronts}
        [unreadable] = listings["gifts"].unreadable
        assert unreadable.revision == revision
        assert ('unknown field "paper"' if change == "changed" else 'unknown type "example.giftwrap.v1.') in unreadable.mistakes[0]
        assert not listings["fashion"].unreadable
        # Told once, and as they were; nothing looks at them over and over.
        assert records() == before
        lines = [line for line in log.read_text().splitlines() if "cannot be read any more" in line][said_before:]
        assert len([line for line in lines if revision in line and "--contracts" in line]) == 1, lines
        assert _held(house) == len(under_way)
        eventually(lambda: house.metric("order", "gaekju_orders_held") == len(under_way), "the metric says how many", 30)
        assert house.metric("order", "gaekju_timer_items_total") < 3 * len(under_way)
    finally:
        _order_starts_with(house, contracts)
    for order in kept:
        assert gifts.until(order, "COMPLETED").status_code == "WRAPPED"
        assert house.gifts.wrapping(order).wrap_count == 1
    gifts.until(dropped, "CANCELLED")
    assert gifts.payment_state(dropped) == "REFUNDED"
    assert _held(house) == 0
    gifts.until(gifts.place(gifts.buyer(), product), "COMPLETED")


def _check(*arguments):
    return subprocess.run([gaekju_binary(), "check", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def _serve_order(contracts):
    """`gaekju serve order` with a set that it cannot start with."""
    return subprocess.run([gaekju_binary(), "serve", "order", "--listen=127.0.0.1:0", "--metrics=", f"--contracts={contracts}",
                           f"--storefronts={ROOT}/storefronts"], capture_output=True, text=True, timeout=60)


def test_check_says_what_it_cannot_prove(tmp_path, contracts):
    file = tmp_path / "gifts.textproto"
    text = shop_text("gifts")
    file.write_text("".join(line for line in text.splitlines(keepends=True) if "paper" not in line))
    unknown = _check(file)
    assert unknown.returncode == 2 and "unknown service" in unknown.stderr and "descriptor set" in unknown.stderr
    file.write_text(text)
    known = _check(file, f"--contracts={contracts}")
    assert known.returncode == 2 and known.stdout == ""
    assert "how giftwrap decides is not part of this program" in known.stderr
    assert "the file itself is well-formed" in known.stderr
    file.write_text(text.replace("paper:", "papier:"))
    wrong = _check(file, f"--contracts={contracts}")
    assert wrong.returncode == 2 and "papier" in wrong.stderr and f"{file}:" in wrong.stderr


_PROTO = """
syntax = "proto3";
package {package};
import "gaekju/flow/v1/step.proto";
{imports}
service AnyService {{
  rpc Do(DoRequest) returns (DoResponse) {{ {option} }}
}}
message DoRequest {{ string order_id = 1; string step_id = 2; {more} }}
message DoResponse {{}}
"""


def _set(folder, name, package="example.any.v1", option="option (gaekju.flow.v1.step) = {nothing_to_undo: true};", imports="",
         more=""):
    (folder / f"{name}.proto").write_text(_PROTO.format(package=package, option=option, imports=imports, more=more))
    return descriptor_set(folder / f"{name}.binpb", f"{name}.proto", folder=folder)


def _without(file, dropped):
    """The set with one file less."""
    held = descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes())
    kept = [proto for proto in held.file if proto.name != dropped]
    assert len(kept) == len(held.file) - 1
    out = file.with_suffix(".less")
    out.write_bytes(descriptor_pb2.FileDescriptorSet(file=kept).SerializeToString())
    return out


def _bad_sets(folder):
    """name -> (--contracts, what is said)."""
    (folder / "text.binpb").write_text("this is no descriptor set")
    (folder / "empty.binpb").write_bytes(b"")
    (folder / "other.proto").write_text('syntax = "proto3"; package example.other; message Other {}')
    importing = _set(folder, "importing", imports='import "other.proto";', more="example.other.Other other = 3;")
    broken = descriptor_pb2.FileDescriptorSet.FromString(_set(folder, "broken").read_bytes())
    broken.file[-1].message_type[0].field.add(name="lost", number=9, label=1, type=11, type_name=".example.any.v1.Nobody")
    (folder / "broken.binpb").write_bytes(broken.SerializeToString())
    first = _set(folder, "twice")
    kept = folder / "first.binpb"
    kept.write_bytes(first.read_bytes())
    second = _set(folder, "twice", more="string third = 3;")
    return {
        "missing": (folder / "nowhere.binpb", "cannot read"),
        "text": (folder / "text.binpb", "is not a descriptor set"),
        "empty": (folder / "empty.binpb", "is not a descriptor set"),
        "import": (_without(importing, "other.proto"), "imports other.proto, which is not in the set"),
        "broken": (folder / "broken.binpb", "Nobody"),
        "steps": (_set(folder, "steps", option=""), "has no RPC with the option (gaekju.flow.v1.step)"),
        "ours": (_set(folder, "ours", package="example.payment.v1"), 'is the context "payment", which this program has itself'),
        "conflict": (f"{kept},{second}", "is not that of"),
        "names": (f"{_set(folder, 'one', package='example.same.v1')},{_set(folder, 'two', package='sample.same.v1')}",
                  'is the context "same", and so is example.same.v1'),
        "symbols": (f"{_set(folder, 'left', package='example.l.v1')},{_set(folder, 'right', package='example.l.v1')}",
                    "is already defined"),
    }


def test_a_bad_descriptor_set_is_told_at_start(tmp_path):
    for name, (files, said) in _bad_sets(tmp_path).items():
        check = _check(ROOT / "storefronts" / "fashion.textproto", f"--contracts={files}")
        assert check.returncode == 2, (name, check)
        assert said in check.stderr and "--contracts" in check.stderr, (name, check.stderr)
        serve = _serve_order(files)
        assert serve.returncode == 78, (name, serve)
        assert said in serve.stderr, (name, serve.stderr)


def test_a_set_from_an_older_release_goes_on_working(tmp_path, contracts):
    held = descriptor_pb2.FileDescriptorSet.FromString(contracts.read_bytes())
    for file in held.file:
        if file.name == "gaekju/type/v1/type.proto":
            del file.message_type[-1]  # it had a message less
    older = tmp_path / "older.binpb"
    older.write_bytes(held.SerializeToString())
    file = tmp_path / "gifts.textproto"
    file.write_text(shop_text("gifts"))
    assert "is not part of this program" in _check(file, f"--contracts={older}").stderr


def test_up_serves_a_shop_with_a_context_that_somebody_else_runs(tmp_path, contracts):
    (tmp_path / "storefronts").mkdir()
    (tmp_path / "storefronts" / "gifts-direct.textproto").write_text(shop_text("gifts-direct"))
    gifts = Giftwrap(tmp_path, "", contracts)
    data = fresh_directory()
    up = Up(data, f"--storefronts={tmp_path}/storefronts", f"--contracts={contracts}", f"--peers=giftwrap=127.0.0.1:{gifts.port}")
    try:
        up.wait_ready()
        gifts.nats_url = up.state()["nats"]["url"]  # with its password
        gifts.start()
        up.call("catalog.CreateProduct", {"product_id": "TEA", "display_name": "Tea", "available_count": 10,
                                          "unit_price": {"currency_code": "KRW", "minor_units": 5000}})
        order_id = up.call("order.PlaceOrder", {
            "storefront": "gifts-direct", "customer_id": "c", "customer_name": "jang", "delivery_address": "seoul",
            "lines": [{"product_id": "TEA", "quantity": 2}]}, "--pick=order.order_id").strip()
        eventually(lambda: up.completed(order_id), "the order is completed")
        assert gifts.wrapping(order_id).ribbon_count == 2
        assert up.end() == 0
    finally:
        gifts.kill()
        up.end(signal.SIGKILL)
        eventually(lambda: not left_behind(data), "nothing is left behind", 20)
        clear(data)


@pytest.mark.parametrize("flag, said", [
    ("--contracts=/nowhere.binpb", "cannot read /nowhere.binpb"),
    ("--peers=payment=127.0.0.1:1", "`up` itself chooses where payment is"),
])
def test_up_says_what_it_cannot_do(tmp_path, flag, said):
    data = fresh_directory()
    try:
        run = subprocess.run([gaekju_binary(), "up", f"--data={data}", "--port_base=0", flag], capture_output=True, text=True,
                             timeout=60)
        assert run.returncode != 0 and said in run.stderr, run
    finally:
        clear(data)
