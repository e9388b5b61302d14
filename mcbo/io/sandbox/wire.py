"""What the two processes send each other: frames of JSON, and behind some of them bytes."""

import json
import socket
from typing import Any, TypeAlias

Frame: TypeAlias = dict[str, Any]

MAX_FRAME_BYTES = 2**26
"""A folder of a million slices has names of this many bytes; readers answer with a few hundred."""

READY = b"."
"""On the control socket: the connection has arrived, and its reader is imported."""

_SIZE_BYTES = 8


def send_frame(connection: socket.socket, frame: Frame) -> None:
    """Sends a frame; names that are not UTF-8 survive."""
    data = json.dumps(frame).encode("ascii")
    connection.sendall(len(data).to_bytes(_SIZE_BYTES, "big") + data)


def receive_frame(connection: socket.socket) -> Frame | None:
    """The next frame; None if the other side is gone, or sends none."""
    size = int.from_bytes(receive(connection, _SIZE_BYTES) or b"", "big")
    data = receive(connection, size) if 0 < size <= MAX_FRAME_BYTES else None
    try:
        frame = json.loads(data) if data else None
    except ValueError:
        return None
    return frame if isinstance(frame, dict) else None


def receive(connection: socket.socket, count: int) -> bytearray | None:
    """So many bytes; None if the other side is gone before. A timeout of the connection is one of each part."""
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        part = connection.recv_into(view[got:])
        if not part:
            return None
        got += part
    return data
