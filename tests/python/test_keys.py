"""A server that wants a key."""

import os
import unittest

import websockets.exceptions
import wire

KEY = os.environ.get("PI0_KEY")


@unittest.skipIf(wire.REFERENCE, "openpi's server asks for no key")
class Keys(unittest.TestCase):
    def test_the_right_key_is_served(self):
        client = wire.client(KEY)
        self.assertEqual(client.infer(wire.observation())["actions"].shape, (wire.HORIZON, wire.WIDTH))

    def test_a_wrong_key_and_none_are_turned_away(self):
        for key in ("wrong", KEY[:-1], KEY + "x", None):
            with self.assertRaises(websockets.exceptions.InvalidStatus) as raised:
                wire.client(key)
            self.assertEqual(raised.exception.response.status_code, 401)


if __name__ == "__main__":
    unittest.main()
