"""What the tests share: where the server is, what its robot sees, and the unmodified client.

The environment tells: PI0_PORT, PI0_ROBOT (aloha, droid, libero), PI0_HORIZON (steps of a chunk), PI0_METADATA (JSON), and PI0_REFERENCE=1
where openpi's own server answers, which has nothing of ours. PI0_SAMPLE is the JSON list that begins a command of `pi0 sample` on the same
checkpoint; PI0_KEY the key of a server that wants one.
"""

import json
import os
import warnings

import numpy as np

warnings.simplefilter("ignore", DeprecationWarning)

from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
import websockets.sync.client

HOST = "127.0.0.1"
PORT = int(os.environ["PI0_PORT"])
ROBOT = os.environ["PI0_ROBOT"]
HORIZON = int(os.environ["PI0_HORIZON"])
METADATA = json.loads(os.environ["PI0_METADATA"])
REFERENCE = "PI0_REFERENCE" in os.environ
WIDTH = {"aloha": 14, "droid": 8, "libero": 7}[ROBOT]
STATE = {"aloha": "state", "droid": "observation/joint_position", "libero": "observation/state"}[ROBOT]
CAMERA = {"aloha": "cam_high", "droid": "observation/exterior_image_1_left", "libero": "observation/image"}[ROBOT]
MODEL_WIDTH = 32
# What openpi's server says when it closes.
REASON = "Internal server error. Traceback included in previous frame."


def client(api_key=None):
    return WebsocketClientPolicy(host=HOST, port=PORT, api_key=api_key)


def socket(**more):
    """A connection as the client opens it, with nothing of the client around it; its metadata are read."""
    connection = websockets.sync.client.connect(f"ws://{HOST}:{PORT}", compression=None, max_size=None, **more)
    connection.recv()
    return connection


def observation(seed=0):
    """What the robot's own program sends, in its own keys and types."""
    chance = np.random.default_rng(seed)
    if ROBOT == "aloha":
        cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
        return {
            "state": chance.uniform(-1, 1, 14),
            "images": {name: chance.integers(256, size=(3, 224, 224), dtype=np.uint8) for name in cameras},
            "prompt": "do something",
        }
    picture = lambda: chance.integers(256, size=(224, 224, 3), dtype=np.uint8)
    if ROBOT == "droid":
        return {
            "observation/exterior_image_1_left": picture(),
            "observation/wrist_image_left": picture(),
            "observation/joint_position": chance.random(7),
            "observation/gripper_position": chance.random(1),
            "prompt": "do something",
        }
    return {
        "observation/state": chance.random(8),
        "observation/image": picture(),
        "observation/wrist_image": picture(),
        "prompt": "do something",
    }


def cameras(seen):
    """The dictionary that holds the pictures."""
    return seen["images"] if ROBOT == "aloha" else seen


def noise(seed=0):
    return np.random.default_rng(1000 + seed).standard_normal((HORIZON, MODEL_WIDTH)).astype(np.float32)


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def pack(message):
    return msgpack_numpy.packb(message)


def unpack(data):
    return msgpack_numpy.unpackb(data)
