"""An inference that takes long: the server of these tests computes many steps.

Nothing here is held against a clock: what is asked is in which order things arrive.
"""

import threading
import unittest
from unittest import mock

from openpi_client.websocket_client_policy import WebsocketClientPolicy
import websockets.exceptions
import websockets.sync.client
import wire

CONNECT = websockets.sync.client.connect


class Patience(unittest.TestCase):
    def test_pings_are_answered_while_the_model_runs(self):
        connection = wire.socket(ping_interval=None)
        connection.send(wire.pack(wire.observation()))
        pongs, answer = [], None
        while answer is None:
            pongs.append(connection.ping())
            try:
                answer = connection.recv(timeout=0.02)
            except TimeoutError:
                before = sum(pong.is_set() for pong in pongs)
        self.assertGreater(len(pongs), 2, "it was answered at once: nothing is tried here")
        self.assertGreater(before, 0, f"none of {len(pongs) - 1} pings came back before the answer")
        self.assertIn("actions", wire.unpack(answer))

    def test_the_client_lives_through_it_with_its_own_pings(self):
        # The client package has no setting for it, so its connection is opened with other ones around it.
        with mock.patch("websockets.sync.client.connect", lambda *args, **more: CONNECT(*args, **more, ping_interval=0.05)):
            client = WebsocketClientPolicy(host=wire.HOST, port=wire.PORT)
        for _ in range(2):
            self.assertEqual(client.infer(wire.observation())["actions"].shape, (wire.HORIZON, wire.WIDTH))

    def test_another_client_is_told_the_metadata_meanwhile(self):
        busy = wire.socket()
        busy.send(wire.pack(wire.observation()))
        self.assertEqual(wire.client().get_server_metadata(), wire.METADATA)
        with self.assertRaises(TimeoutError, msg="the first was answered already: nothing is tried here"):
            busy.recv(timeout=0)
        self.assertIn("actions", wire.unpack(busy.recv()))

    def test_a_client_that_leaves_meanwhile_harms_no_other(self):
        leaving = wire.socket()
        leaving.send(wire.pack(wire.observation()))
        leaving.socket.close()
        answers = []
        thread = threading.Thread(target=lambda: answers.append(wire.client().infer(wire.observation())))
        thread.start()
        thread.join()
        self.assertEqual([answer["actions"].shape for answer in answers], [(wire.HORIZON, wire.WIDTH)])


if __name__ == "__main__":
    unittest.main()
