"""Stands for Kakao on this machine: takes messages as its API does, and keeps each key's message once.

    python -m kakao.stand_in --listen 127.0.0.1:8090 --messages messages.jsonl

    GET  /messages          what phones would show: one object a key, in the order in which they came
    GET  /requests          every request, also repeated and refused ones: [{"key": …, "status": …}]
    POST /behave {...}      {"status": 503, "times": 3, "retry_after": 1}   the next three are answered so, and nothing is taken
                            {"delay": 5}             every answer takes so long
                            {"hold": true}           a message is taken, and its answer waits until {"hold": false}
                            {"refuse_template": "X"} 400 for this template
                            {}                       well-behaved again

`--messages` is appended to before an answer leaves, so that a stand-in that is killed knows its keys when it is back.
"""

import argparse
import http.server
import json
import os
import pathlib
import threading
import time


class Kakao:
    def __init__(self, path, token):
        self.token = token
        self.lock = threading.Lock()
        self.messages = {}   # key -> body
        self.requests = []
        self.behavior = {}
        self.released = threading.Event()
        self.released.set()
        self._file = None
        if path:
            if pathlib.Path(path).exists():
                for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
                    message = json.loads(line)
                    self.messages[message["cid"]] = message
            self._file = open(path, "a", encoding="utf-8")

    def behave(self, behavior):
        with self.lock:
            self.behavior = behavior
        if behavior.get("hold"):
            self.released.clear()
        else:
            self.released.set()

    def send(self, key, headers, body):
        """Returns (status, headers, answer)."""
        with self.lock:
            behavior = self.behavior
            status, extra, answer = self._decide(key, headers, body, behavior)
            self.requests.append({"key": key, "status": status, "template_code": body.get("template_code")})
        if behavior.get("delay"):
            time.sleep(behavior["delay"])
        self.released.wait()
        return status, extra, answer

    def _decide(self, key, headers, body, behavior):
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {}, {"code": "401", "message": "no such token"}
        if behavior.get("status") and behavior.get("times", 1 << 30) > 0:
            behavior["times"] = behavior.get("times", 1 << 30) - 1
            extra = {"retry-after": str(behavior["retry_after"])} if "retry_after" in behavior else {}
            return behavior["status"], extra, {"code": str(behavior["status"]), "message": "as told"}
        missing = [name for name in ("message_type", "sender_key", "cid", "template_code", "phone_number", "message")
                   if not body.get(name)]
        if missing or not key or body["template_code"] == behavior.get("refuse_template"):
            return 400, {}, {"code": "400", "message": f"missing or unknown: {missing or 'template_code'}"}
        if key not in self.messages:
            self.messages[key] = body
            if self._file:
                self._file.write(json.dumps(body, ensure_ascii=False) + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())
        elif self.messages[key] != body:
            return 422, {}, {"code": "422", "message": "this key was used for another message"}
        return 200, {}, {"code": "200", "cid": body["cid"], "uid": f"m-{key}"}


def handler(kakao):
    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self, status, headers, body):
            text = json.dumps(body, ensure_ascii=False).encode()
            try:
                self.send_response(status)
                for name, value in {"content-type": "application/json", "content-length": str(len(text)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # the caller did not wait

        def do_GET(self):
            with kakao.lock:
                found = {"/messages": list(kakao.messages.values()), "/requests": list(kakao.requests)}.get(self.path)
            self._answer(404 if found is None else 200, {}, found)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            if self.path == "/behave":
                kakao.behave(body)
                self._answer(200, {}, {})
            elif self.path == "/v2/send/kakao":
                self._answer(*kakao.send(self.headers.get("idempotency-key", ""), self.headers, body))
            else:
                self._answer(404, {}, {})

        def log_message(self, *_):
            pass

    return Handler


def main():
    parser = argparse.ArgumentParser(prog="python -m kakao.stand_in", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:8090")
    parser.add_argument("--messages", default="", help="a file that outlives the process; empty: none")
    parser.add_argument("--token", default="test-token")
    options = parser.parse_args()
    host, port = options.listen.rsplit(":", 1)
    kakao = Kakao(options.messages, options.token)
    http.server.ThreadingHTTPServer((host, int(port)), handler(kakao)).serve_forever()


if __name__ == "__main__":
    main()
