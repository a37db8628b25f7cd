"""A server that refuses every connection with one SQLSTATE, in Russian: ``python refusing_server.py 57P03``."""

from __future__ import annotations

import socket
import struct
import sys

_SSL_OR_GSS = (80877103, 80877104)


def refusal(state: str) -> bytes:
    """The ErrorResponse message."""
    fields = {"S": "ВАЖНО", "V": "FATAL", "C": state, "M": "система баз данных запускается"}
    body = b"".join(name.encode() + value.encode() + b"\0" for name, value in fields.items()) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


def answer(client: socket.socket, state: str) -> None:
    while len(head := client.recv(4)) == 4:
        message = client.recv(struct.unpack("!I", head)[0] - 4)
        if struct.unpack("!I", message[:4])[0] in _SSL_OR_GSS:
            client.sendall(b"N")
        else:
            client.sendall(refusal(state))
            return


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            with client:
                answer(client, sys.argv[1])


if __name__ == "__main__":
    main()
