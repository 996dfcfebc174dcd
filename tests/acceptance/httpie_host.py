"""The real httpie, loaded once for many commands: each runs in a fork of this process, and so is spared half a second of loading.

    python httpie_host.py         # stdin is a listening socket
    bash -c "$(httpie_host.shell(port)); http GET localhost:8081/orders/1"

`shell` is what makes `http` in a shell a client of it: the shell takes the command apart, as ever, and hands on the words.
"""

import gc
import os
import signal
import socket
import sys


def shell(port):
    return (f'http() {{ exec 3<>/dev/tcp/127.0.0.1/{port}; printf "%s\\0" "$http_proxy" "$#" "$@" >&3; cat <&3; exec 3>&-; }}\n')


def _run(connection, main):
    text = b""
    while text.count(b"\0") < 2 or text.count(b"\0") < 2 + int(text.split(b"\0")[1]):
        text += connection.recv(65536)
    proxy, _, *words = text.decode().split("\0")[:-1]
    os.environ["http_proxy"] = proxy
    for output in (1, 2):
        os.dup2(connection.fileno(), output)
    status = main(["http", *words])
    sys.stdout.flush()
    return status.value


def serve():
    from httpie.cli import definition  # noqa: F401: what main() would load
    from httpie.core import main

    gc.freeze()  # a fork copies what is written to, and counting marks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(fileno=0)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            status = 1
            try:
                status = _run(connection, main)
            finally:
                os._exit(status)
        connection.close()


if __name__ == "__main__":
    serve()
