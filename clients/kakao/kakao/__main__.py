"""python -m kakao [run|list|retry] …; see --help."""

import asyncio
import json
import sys

from gaekju_client import service

DESCRIPTION = """\
Sends a storefront's notices to its buyers as KakaoTalk messages.

  run     consume and send, until SIGTERM
  list    print what is in the database, newest first, a JSON object a line (--state DEAD: what was refused)
  retry   let dead notices (or the one that is named) be sent again

Each flag can be set by the environment too. GET /live, /ready and /status are served at --health."""


def flags():
    parser = service.Flags("KAKAO", prog="kakao", description=DESCRIPTION)
    parser.add_argument("command", nargs="?", choices=["run", "list", "retry"], default="run")
    parser.add_argument("notice_id", nargs="?", help="only this one (retry)")
    parser.flag("database", "kakao.db", help="the SQLite file")
    parser.flag("storefront", "tshop", help="whose notices")
    parser.flag("nats", "nats://127.0.0.1:4222", help="the bus; several: comma-separated")
    parser.flag("durable", help="the consumer's name on the bus; empty: kakao-<storefront>")
    parser.flag("ack-wait-seconds", 30.0, float, help="what a dead process had in hand comes again after so long")
    parser.flag("endpoint", "http://127.0.0.1:8090", help="Kakao's API, without /v2/send/kakao")
    parser.flag("token", "test-token", help="the bearer token; better by the environment")
    parser.flag("sender-key", "test-sender", help="the sending profile's key")
    parser.flag("sender-number", help="the number that the profile is registered with")
    parser.flag("idempotency-header", "idempotency-key", help="the header that carries the key")
    parser.flag("phones", help="a JSON file, {customer_id: phone number}; without it, the customer's id is the number")
    parser.flag("language", "ko", help="ko or en")
    parser.flag("concurrency", 4, int, help="messages under way at once")
    parser.flag("timeout-seconds", 10.0, float, help="of one request")
    parser.flag("refusals-max", 3, int, help="4xx answers until a notice is dead")
    parser.flag("retry-seconds-min", 0.5, float, help="before the second try; doubled each time")
    parser.flag("retry-seconds-max", 60.0, float, help="the longest")
    parser.flag("health", help="host:port of the health page; empty: none")
    parser.flag("log-level", "info", help="debug, info, warning or error")
    parser.add_argument("--state", choices=["WAITING", "SENT", "DEAD"], help="only those (list)")
    parser.add_argument("--limit", type=int, default=100, help="at most so many (list)")
    return parser


async def run(options, stop):
    from gaekju_client import bus
    from kakao import bizmessage, box, channel

    notices = box.Box(options.database)
    phones = {}
    if options.phones:
        with open(options.phones, encoding="utf-8") as file:
            phones = json.load(file)
    endpoint = bizmessage.Endpoint(options.endpoint, options.token, options.sender_key, options.sender_number,
                                   options.idempotency_header, options.timeout_seconds)
    wake = asyncio.Event()
    intake = channel.Intake(notices, options.storefront, options.language, wake)
    sender = channel.Sender(notices, endpoint, phones, wake, options.concurrency, options.refusals_max,
                            options.retry_seconds_min, options.retry_seconds_max)
    connection = bus.Bus(options.nats, "kakao")
    consumer = bus.Consumer(connection, "GAEKJU_EVENTS", options.durable or f"kakao-{options.storefront}",
                            "gaekju.event.notification", intake.handle, options.ack_wait_seconds)

    async def consume():  # what waits in the box is sent whether the bus is there or not
        if await service.until(stop, connection.connect()):
            await consumer.run(stop)

    async with service.Health(options.health, lambda: consumer.ready,
                              lambda: {"bus": connection.connected, "consuming": consumer.ready, **notices.counts()}):
        service.log("info", "started", storefront=options.storefront, endpoint=options.endpoint, **notices.counts())
        halves = [asyncio.ensure_future(consume()), asyncio.ensure_future(sender.run(stop))]
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({*halves, stopped}, return_when=asyncio.FIRST_COMPLETED)
        failed = not stop.is_set()  # neither half ends by itself: a bug, and a supervisor starts us again
        stop.set()
        wake.set()
        results = await asyncio.gather(*halves, return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                service.log("error", "ended by a bug", why=repr(error))
                failed = True
    await connection.close() if connection.connection else None
    service.log("info", "stopped", **notices.counts())
    notices.close()
    return 1 if failed else 0


def main():
    parser = flags()
    options = parser.parse_args()
    if options.language not in ("ko", "en"):
        parser.error("--language is ko or en")
    if options.log_level not in ("debug", "info", "warning", "error"):
        parser.error("--log-level is debug, info, warning or error")
    service.set_log_level(options.log_level)
    if options.command == "run":
        return service.run(lambda stop: run(options, stop))
    from kakao import box
    notices = box.Box(options.database)
    if options.command == "list":
        for notice in notices.list(options.state, options.limit):
            print(json.dumps(notice, ensure_ascii=False))
    else:
        print(f"{notices.revive(options.notice_id)} to be sent again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
