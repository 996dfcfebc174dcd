"""What every program here has: log lines, a stop by SIGTERM, flags that are environment variables too, and a health page."""

import argparse
import asyncio
import datetime
import json
import os
import signal
import sys

_LEVELS = ("debug", "info", "warning", "error")
_threshold = 1


def log(level, message, **fields):
    """One JSON object a line, on stderr, like Gaekju's own."""
    if _LEVELS.index(level) < _threshold:
        return
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(json.dumps({"ts": now, "level": level, "msg": message, **fields}, ensure_ascii=False), file=sys.stderr, flush=True)


class Flags(argparse.ArgumentParser):
    """Flags of which each can be set by the environment too: --nats by <PREFIX>_NATS."""

    def __init__(self, prefix, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._prefix = prefix

    def flag(self, name, default="", type=str, help=""):
        variable = f"{self._prefix}_{name.replace('-', '_').upper()}"
        given = os.environ.get(variable)
        # A text default goes through `type` too, so that a wrong variable is a usage error.
        self.add_argument(f"--{name}", default=default if given is None else given, type=type,
                          help=f"{help} [{variable}, default: {default!r}]".replace("%", "%%"))


def set_log_level(level):
    global _threshold
    _threshold = _LEVELS.index(level)


def run(main):
    """Runs `main(stop)` to its end; SIGTERM and SIGINT set `stop`, an asyncio.Event. Returns the exit code."""
    async def body():
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        return await main(stop)

    return asyncio.run(body()) or 0


async def wait(event, seconds):
    """Waits for the event, at most so long; whether it is set."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        pass
    return event.is_set()


async def until(stop, coroutine):
    """Runs the coroutine to its end, or until `stop` is set: then it is cancelled. Returns whether it ended by itself."""
    work, stopped = asyncio.ensure_future(coroutine), asyncio.ensure_future(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if work.done():
        work.result()
        return True
    work.cancel()
    await asyncio.wait({work})
    return False


class Health:
    """GET /live (200), /ready (200 or 503) and /status (what `status()` returns, as JSON) on host:port; an empty address: none."""

    def __init__(self, address, ready, status=dict):
        self._address, self._ready, self._status = address, ready, status
        self._server = None

    async def __aenter__(self):
        if self._address:
            host, port = self._address.rsplit(":", 1)
            self._server = await asyncio.start_server(self._answer, host, int(port))
        return self

    async def __aexit__(self, *_):
        if self._server:
            self._server.close()

    async def _answer(self, reader, writer):
        try:
            line = await asyncio.wait_for(reader.readline(), 5)
            while (await asyncio.wait_for(reader.readline(), 5)).strip():
                pass
            path = (line.split() + [b"", b""])[1].decode("ascii", "replace")
            code, body = {"/live": lambda: (200, {"live": True}),
                          "/ready": lambda: (200 if self._ready() else 503, {"ready": bool(self._ready())}),
                          "/status": lambda: (200, self._status())}.get(path, lambda: (404, {}))()
            text = json.dumps(body, ensure_ascii=False).encode() + b"\n"
            writer.write(b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
                         % (code, b"OK" if code == 200 else b"NO", len(text)) + text)
            await writer.drain()
        except (OSError, asyncio.TimeoutError, ValueError):
            pass
        finally:
            writer.close()
