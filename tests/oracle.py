"""Says whether a house is whole: reads every context's rows as they are stored, and compares them with what was acknowledged.

    oracle.settle(house)                       # waits until every saga has ended and views have caught up
    verdict = oracle.judge(house, acknowledged)
    print(verdict)                             # 0 lost, 0 doubled, 0 stuck

Independent of the product: SQL and generated stubs only. Invariants (design.md §7):
  1. a REJECTED or CANCELLED order holds nothing: money, stock, acceptance, shipment, cart, dealer;
  2. a COMPLETED order holds exactly what its storefront's `place` says, once; one that waits for people, what is done of it;
  3. the ledger sums to zero, transaction by transaction, and an order's captured - refunded is its price or nothing;
  4. stock = initial - held, never below zero;
  5. every acknowledged order exists, and every saga has ended, or waits for nothing but people;
  6. views equal their sources, and refused orders have none.
"""

import collections
import dataclasses

from google.protobuf import descriptor_pool
from google.protobuf import text_format

from gaekju_house import TimedOut, eventually
from stubs import CONTEXTS, assignment_pb, cart_pb, catalog_pb, delivery_pb, notification_pb, order_pb, payment_pb, step_pb
from stubs import store_pb, storefront_pb, view_pb

TABLES = {
    order_pb.OrderRecord: "orders",
    order_pb.PlacedRequest: "placed_requests",
    payment_pb.Payment: "payments",
    payment_pb.LedgerEntry: "ledger_entries",
    catalog_pb.Product: "products",
    catalog_pb.Reservation: "reservations",
    store_pb.Item: "items",
    store_pb.Acceptance: "acceptances",
    delivery_pb.Delivery: "deliveries",
    cart_pb.Cart: "carts",
    assignment_pb.Assignment: "assignments",
    notification_pb.Notice: "notices",
    view_pb.OrderView: "order_views",
}
NOTICES_SHOWN = 100  # by one view

State = order_pb.Order.State
ENDED = {State.STATE_COMPLETED, State.STATE_CANCELLED, State.STATE_REJECTED}


def rows(house, context, message_class, **columns):
    """Every resource of a kind, or those whose columns have these values, by their keys: orders oldest first. None of a context that
    the house is without."""
    if context not in getattr(house, "contexts", CONTEXTS):
        return []
    where = " AND ".join(f'"{name}" = %({name})s' for name in columns) or "true"
    found = house.ask(context, f'SELECT body FROM "{TABLES[message_class]}" WHERE {where} ORDER BY key', columns)
    return [message_class.FromString(body) for (body,) in found]


def _context(call):
    """Of "payment.Capture", or of the method's full name."""
    return call.split(".")[0 if call.count(".") == 1 else 1]


def _is_held(call):
    """Whether a step's contract names what takes it back."""
    context, method = _context(call), call.rsplit(".", 1)[1]
    try:
        service = descriptor_pool.Default().FindServiceByName(f"gaekju.{context}.v1.{context.capitalize()}Service")
    except KeyError:  # a context of another language: nobody here can tell
        return False
    return bool(service.methods_by_name[method].GetOptions().Extensions[step_pb.step].undo)


def holdings(house):
    """storefront id -> context -> the step ids of `place` that hold something: what a completed order holds."""
    found = {}
    for file in sorted(house.storefronts.glob("*.textproto")):
        shop = text_format.Parse(file.read_text(), storefront_pb.Storefront())
        found[shop.id] = {}
        for step in shop.place.step:
            if _is_held(step.call):
                found[shop.id].setdefault(_context(step.call), set()).add(step.id)
    return found


def waits_for_people(record):
    """An order that goes no further by itself: nothing is asked, and somebody's answer is waited for."""
    asked = order_pb.TASK_STATE_ASKED
    return (record.order.state == State.STATE_PLACED
            and all(task.state != asked and task.undo_state != asked for task in record.saga.tasks)
            and any(task.state == order_pb.TASK_STATE_PENDING for task in record.saga.tasks))


def _wanted(record, wants):
    """context -> step ids that the order should hold."""
    if record.order.state == State.STATE_COMPLETED:
        return wants[record.order.storefront]
    if not waits_for_people(record):
        return {}
    done = {task.step_id for task in record.saga.tasks if task.state == order_pb.TASK_STATE_DONE}
    return {context: step_ids & done for context, step_ids in wants[record.order.storefront].items()}


@dataclasses.dataclass
class Verdict:
    orders: int = 0
    lost: list = dataclasses.field(default_factory=list)
    doubled: list = dataclasses.field(default_factory=list)
    stuck: list = dataclasses.field(default_factory=list)
    wrong: list = dataclasses.field(default_factory=list)   # books, stock or views that do not agree

    def __str__(self):
        return f"{len(self.lost)} lost, {len(self.doubled)} doubled, {len(self.stuck)} stuck"

    def good(self):
        return not (self.lost or self.doubled or self.stuck or self.wrong)

    def explain(self, most=10):
        lines = [f"{self} and {len(self.wrong)} wrong, of {self.orders} orders"]
        for name in ("lost", "doubled", "stuck", "wrong"):
            found = getattr(self, name)
            lines += [f"  {name}: {what}" for what in found[:most]]
            if len(found) > most:
                lines.append(f"  {name}: … and {len(found) - most} more")
        return "\n".join(lines)


def unfinished(house):
    """How many sagas have not ended, and wait for more than people."""
    found = house.ask("order", "SELECT body FROM orders WHERE state <> ALL(%s)", [list(ENDED)])
    return sum(not waits_for_people(order_pb.OrderRecord.FromString(body)) for (body,) in found)


def settle(house, timeout=120):
    """Waits until nothing is under way and views agree; returns quietly when it never does: judge() then says what is wrong."""
    try:
        eventually(lambda: unfinished(house) == 0, "every saga has ended", timeout, every=0.2)
        eventually(lambda: not view_differences(house), "views equal their sources", timeout, every=0.5)
    except TimedOut:
        pass


class Books:
    """Every row of the house, by order."""

    def __init__(self, house):
        self.records = {record.order.order_id: record for record in rows(house, "order", order_pb.OrderRecord)}
        self.payments = _by_order(rows(house, "payment", payment_pb.Payment))
        self.entries = rows(house, "payment", payment_pb.LedgerEntry)
        self.reservations = _by_order(rows(house, "catalog", catalog_pb.Reservation))
        self.products = rows(house, "catalog", catalog_pb.Product)
        self.acceptances = _by_order(rows(house, "store", store_pb.Acceptance))
        self.deliveries = _by_order(rows(house, "delivery", delivery_pb.Delivery))
        self.carts = _by_order(rows(house, "cart", cart_pb.Cart))
        self.assignments = _by_order(rows(house, "assignment", assignment_pb.Assignment))
        self.notices = _by_order(rows(house, "notification", notification_pb.Notice))
        # A row without an order's state is nobody's view: payment told of money that came and went back, for an order that was
        # refused or that the order context has not told of yet.
        self.views = {view.order_id: view for view in rows(house, "view", view_pb.OrderView) if view.order_state}


def _by_order(resources):
    found = collections.defaultdict(list)
    for resource in resources:
        found[resource.order_id].append(resource)
    return found


def _differences(books):
    """One string per view that does not equal its sources."""
    # One that was refused at once is said nothing of, also where it is readable.
    visible = {order_id: record.order for order_id, record in books.records.items()
               if record.visible and record.order.HasField("place_time")}
    for order_id in books.views.keys() - visible.keys():
        yield f"view of {order_id}, which nobody may see"
    for order_id, order in visible.items():
        view = books.views.get(order_id)
        if view is None:
            yield f"no view of {order_id} ({State.Name(order.state)})"
            continue
        sources = {
            "storefront": order.storefront, "number": order.number, "customer_id": order.customer_id,
            "total": order.total, "order_state": order.state, "status_code": order.status_code,
            "status_text": order.status_text, "lines": list(order.lines), "place_time": order.place_time,
            "delivery_address": order.delivery_address,
            "payment_state": _told(books.payments[order_id], lambda payment: payment.HasField("capture_time")),
            "acceptance_state": _told(books.acceptances[order_id], lambda it: it.HasField("accept_time")),
            "delivery_state": _told(books.deliveries[order_id], lambda it: it.HasField("start_time")),
            "customer_name": order.customer_name,
            "payment_id": _told(books.payments[order_id], lambda it: it.HasField("capture_time"), "payment_id"),
            "cart_state": _told(books.carts[order_id], lambda it: it.HasField("create_time")),
            "cart_id": _told(books.carts[order_id], lambda it: it.HasField("create_time"), "cart_id"),
            "assignment_state": _told(books.assignments[order_id], lambda it: it.HasField("assign_time")),
            "assignment_id": _told(books.assignments[order_id], lambda it: it.HasField("assign_time"), "assignment_id"),
            "agency_name": _told(books.assignments[order_id], lambda it: it.HasField("assign_time"), "agency_name"),
            # Of a cancel that was refused later on, only the view knows.
            "cancelled": True if order.HasField("cancel_time") else None,
            "notices": [_notice(it) for it in sorted(books.notices[order_id], key=lambda it: it.number)][-NOTICES_SHOWN:],
        }
        for field, value in sources.items():
            mine = getattr(view, field)
            if field == "lines":
                mine = list(mine)
            if field == "notices":
                mine = [_notice(it) for it in mine]
            # A delivery's own address may stand in until the order's is known: they are the same text.
            if value is not None and mine != value:
                yield f"view of {order_id}: {field} is {_short(mine)}, its source says {_short(value)}"
        if view.parked:
            yield f"view of {order_id}: {len(view.parked)} events wait for a missing one"


def _told(resources, ever, field="state"):
    """A field of the one resource that told the world of itself (a void or waiting one has no event); None: cannot say."""
    told = [getattr(resource, field) for resource in resources if ever(resource)]
    return told[0] if len(told) == 1 else None


def _notice(notice):
    return (notice.number, notice.notice_id, notice.recipient, notice.code, notice.text.ko, notice.text.en,
            notice.create_time.ToMicroseconds())


def _short(value):
    return " ".join(str(value).split())[:120] or "empty"


def view_differences(house):
    return list(_differences(Books(house)))


def judge(house, acknowledged=(), cancelled=(), kept=(), initial_stock=None):
    """`acknowledged`: (customer_id, request_id, order_id) of every PlaceOrder that was answered OK.
    `cancelled`: order ids whose CancelOrder was answered OK. `kept`: order ids that nobody tried to cancel.
    `initial_stock`: product id -> how many there were."""
    books = Books(house)
    verdict = Verdict(orders=len(books.records))
    wants = holdings(house)

    # 5. nothing that was acknowledged is lost, and each request made one order
    made = {}
    for request in rows(house, "order", order_pb.PlacedRequest):
        made[request.request_key] = request.order_id
    answers = collections.defaultdict(set)
    for customer_id, request_id, order_id in acknowledged:
        record = books.records.get(order_id)
        if record is None or not record.visible:
            verdict.lost.append(f"{order_id} of {customer_id}: acknowledged, and not there")
            continue
        answers[customer_id, request_id].add(order_id)
        key = f"{record.order.storefront}/{customer_id}/{request_id}"
        if request_id and made.get(key) != order_id:
            verdict.doubled.append(f"request {key} made {made.get(key)}, and {order_id} was acknowledged")
    for (customer_id, request_id), order_ids in answers.items():
        if len(order_ids) > 1:
            verdict.doubled.append(f"request {request_id} of {customer_id} was answered with {sorted(order_ids)}")

    for order_ids, state in ((cancelled, State.STATE_CANCELLED), (kept, State.STATE_COMPLETED)):
        for order_id in order_ids:
            record = books.records.get(order_id)
            if record and record.order.state in ENDED and record.order.state != state:
                verdict.lost.append(f"{order_id} ended {State.Name(record.order.state)} ({record.order.reject_reason}), "
                                    f"and should have ended {State.Name(state)}")

    # 1, 2. each order ended, and holds what it should
    for order_id, record in books.records.items():
        order = record.order
        if order.state not in ENDED and not waits_for_people(record):
            verdict.stuck.append(f"{order_id} is {State.Name(order.state)}, due {record.due_time_us}: {_tasks(record)}")
            continue
        want = _wanted(record, wants)
        have = {
            "payment": [it for it in books.payments[order_id] if it.state == payment_pb.Payment.STATE_CAPTURED],
            "catalog": [it for it in books.reservations[order_id] if it.state == catalog_pb.Reservation.STATE_HELD],
            "store": [it for it in books.acceptances[order_id] if it.state in (
                store_pb.Acceptance.STATE_WAITING, store_pb.Acceptance.STATE_ACCEPTED,
                store_pb.Acceptance.STATE_CANCEL_WAITING)],
            "delivery": [it for it in books.deliveries[order_id] if it.state in (
                delivery_pb.Delivery.STATE_STARTED, delivery_pb.Delivery.STATE_IN_TRANSIT,
                delivery_pb.Delivery.STATE_DELIVERED, delivery_pb.Delivery.STATE_RECEIVED)],
            "cart": [it for it in books.carts[order_id] if it.state in (cart_pb.Cart.STATE_WAITING, cart_pb.Cart.STATE_PAID)],
            "assignment": [it for it in books.assignments[order_id] if it.state in (
                assignment_pb.Assignment.STATE_ASSIGNED, assignment_pb.Assignment.STATE_PICKED_UP)],
        }
        for context, resources in have.items():
            held, due = {it.step.step_id for it in resources}, want.get(context, set())
            state = State.Name(order.state)
            for step_id in due - held:
                verdict.lost.append(f"{order_id} is {state} without {context}/{step_id}")
            for step_id in held - due:
                verdict.doubled.append(f"{order_id} is {state} and holds {context}/{step_id}")
        for payment in have["payment"]:
            if order.HasField("total") and payment.amount != order.total:
                verdict.wrong.append(f"{order_id} costs {_short(order.total)}, paid was {_short(payment.amount)}")
    for context, resources in (("payment", books.payments), ("catalog", books.reservations),
                               ("store", books.acceptances), ("delivery", books.deliveries), ("cart", books.carts),
                               ("assignment", books.assignments)):
        for order_id in resources.keys() - books.records.keys():
            verdict.doubled.append(f"{context} has something of {order_id}, which does not exist")

    # 3. the ledger
    transactions = collections.defaultdict(list)
    per_order = collections.Counter()
    for entry in books.entries:
        transactions[entry.transaction_id].append(entry)
        if entry.account == "merchant":
            per_order[entry.order_id] += entry.amount
    for transaction_id, entries in transactions.items():
        if sum(entry.amount for entry in entries) != 0 or len(entries) != 2:
            verdict.wrong.append(f"ledger: {transaction_id} has {len(entries)} entries that sum to "
                                 f"{sum(entry.amount for entry in entries)}")
    total = sum(entry.amount for entry in books.entries)
    if total:
        verdict.wrong.append(f"ledger: sums to {total}")
    for order_id, record in books.records.items():
        ended = record.order.state in ENDED or waits_for_people(record)
        if ended and "payment" in wants[record.order.storefront]:
            due = record.order.total.minor_units if _wanted(record, wants).get("payment") else 0
            if per_order[order_id] != due:
                verdict.wrong.append(f"ledger: the merchant has {per_order[order_id]} of {order_id}, "
                                     f"which is {State.Name(record.order.state)} and costs {due}")

    # 4. stock
    held = collections.Counter()
    for reservations in books.reservations.values():
        for reservation in reservations:
            if reservation.state == catalog_pb.Reservation.STATE_HELD:
                for line in reservation.lines:
                    held[line.product_id] += line.quantity
    for product in books.products:
        if product.available_count < 0 or product.reserved_count != held[product.product_id]:
            verdict.wrong.append(f"stock: {product.product_id} has {product.available_count} available and "
                                 f"{product.reserved_count} reserved; reservations hold {held[product.product_id]}")
        initial = (initial_stock or {}).get(product.product_id)
        if initial is not None and product.available_count + product.reserved_count != initial:
            verdict.wrong.append(f"stock: {product.product_id} had {initial}, now "
                                 f"{product.available_count} + {product.reserved_count}")

    # 6. views
    verdict.wrong += _differences(books)
    return verdict


def _tasks(record):
    names = order_pb.TaskState.Name
    return ", ".join(f"{task.step_id}={names(task.state).removeprefix('TASK_STATE_')}"
                     f"/{names(task.undo_state).removeprefix('TASK_STATE_')}" for task in record.saga.tasks)
