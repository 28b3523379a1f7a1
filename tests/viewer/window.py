"""A window of the viewer without a browser: the websocket that viser's page would open, and what it sends."""

import math
import re
import socket
import time

import pytest

viser = pytest.importorskip("viser")  # so that the GPU tests of the rest run where it is not installed
msgspec, zstandard = pytest.importorskip("msgspec"), pytest.importorskip("zstandard")
connect = pytest.importorskip("websockets.sync.client").connect

SERVER = re.compile(r"http://localhost:(\d+)/\?token=(\S+)")


class Window:
    """One connection. `messages` are all that came, in order."""

    def __init__(self, port, token="", *, host=None, **headers):
        """Open it, or raise `InvalidStatus`. `headers` are further ones, `host` is what the browser calls the place."""
        place = f"{host or 'localhost'}:{port}"
        protocol = [f"viser-v{viser.__version__}"]
        query = f"?token={token}" if token else ""
        self._socket = connect(
            f"ws://{place}/{query}",
            sock=socket.create_connection(("127.0.0.1", port)),
            subprotocols=protocol,
            additional_headers=headers,
            max_size=None,
            compression=None,
        )
        self.messages = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def send(self, kind, **content):
        self._socket.send(msgspec.msgpack.encode({"type": kind, **content}))

    def look(self, turn=0.0, width=80, height=60, fov=0.9):
        """Move the camera."""
        wxyz = [math.cos(turn), 0, math.sin(turn), 0]
        pose = {"wxyz": wxyz, "position": [0, 0, -3], "look_at": [0, 0, 0], "up_direction": [0, -1, 0]}
        size = {"image_width": width, "image_height": height, "fov": fov, "near": 0.01, "far": 100.0}
        self.send("ViewerCameraMessage", **pose, **size)

    def read(self, seconds):
        """Take in what comes until nothing has for so many seconds."""
        try:
            while True:
                data = self._socket.recv(timeout=seconds)
                length = int.from_bytes(data[8:16], "little")
                text = zstandard.ZstdDecompressor().decompress(data[16 : 16 + length])
                self.messages += msgspec.msgpack.decode(text)["messages"]
        except TimeoutError:
            return self.messages

    def wait_for(self, text, seconds=30):
        """Read until a message has the text."""
        end = time.monotonic() + seconds
        while not any(text in str(message) for message in self.messages):
            assert time.monotonic() < end, f"no {text!r} came"
            self.read(0.1)

    def use(self, label, value):
        """Enter a value in the control with that label, or press that button."""
        self.wait_for(label)
        controls = [message for message in self.messages if message.get("props", {}).get("label") == label]
        self.send("GuiUpdateMessage", uuid=controls[-1]["uuid"], updates={"value": value})

    def delete(self, name):
        """Delete an object."""
        self.look()
        self.use("Selected", name)
        time.sleep(0.3)  # changes are done in threads, one after the other only if they do not come at once
        self.use("Edit", "Delete")
        self.wait_for("**not saved**")
