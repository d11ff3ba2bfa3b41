"""What cannot be answered is refused by name, and the next client is served."""

import re
import struct
import unittest

import numpy as np
import websockets.exceptions
import wire


class Refusals(unittest.TestCase):
    def tearDown(self):
        self.assertEqual(wire.client().infer(wire.observation())["actions"].shape, (wire.HORIZON, wire.WIDTH))

    def refused(self, seen):
        """The words of the refusal, seen by the client as openpi's server would let it see them."""
        client = wire.client()
        client.infer(wire.observation())
        with self.assertRaises(RuntimeError) as raised:
            client.infer(seen)
        self.closed(client._ws)
        words = str(raised.exception)
        self.assertTrue(words.startswith("Error in inference server:\n"), words)
        return self.modest(words.removeprefix("Error in inference server:\n"))

    def refused_raw(self, frame):
        connection = wire.socket()
        connection.send(frame)
        words = connection.recv()
        self.assertIsInstance(words, str)
        self.closed(connection)
        return self.modest(words)

    def closed(self, connection):
        with self.assertRaises(websockets.exceptions.ConnectionClosedError) as raised:
            connection.recv()
        self.assertEqual((raised.exception.rcvd.code, raised.exception.rcvd.reason), (1011, wire.REASON))

    def modest(self, words):
        if not wire.REFERENCE:
            self.assertIsNone(re.search(r"Traceback|panicked|\.rs\b|(^|\s)/\w+/", words), words)
        return words

    def test_a_missing_camera_is_named(self):
        seen = wire.observation()
        del wire.cameras(seen)[wire.CAMERA]
        self.assertIn(wire.CAMERA, self.refused(seen))

    def test_a_missing_state_is_named(self):
        seen = wire.observation()
        del seen[wire.STATE]
        self.assertIn(wire.STATE, self.refused(seen))

    @unittest.skipIf(wire.REFERENCE, "openpi's server lets the model compute with it")
    def test_a_state_that_is_no_number_is_named(self):
        for value in (np.nan, np.inf):
            seen = wire.observation()
            seen[wire.STATE][2] = value
            self.assertIn(wire.STATE, self.refused(seen))

    def test_a_state_of_a_wrong_shape_is_refused(self):
        seen = wire.observation()
        seen[wire.STATE] = np.zeros((2, 3))
        words = self.refused(seen)
        if not wire.REFERENCE:
            self.assertIn(wire.STATE, words)

    def test_a_picture_of_a_wrong_shape_is_refused(self):
        for shape in ((224, 224), (0, 0, 3), (224, 224, 7)):
            seen = wire.observation()
            wire.cameras(seen)[wire.CAMERA] = np.zeros(shape, np.uint8)
            words = self.refused(seen)
            if not wire.REFERENCE:
                self.assertIn(wire.CAMERA, words)

    def test_words_where_numbers_belong_are_refused(self):
        seen = wire.observation()
        seen[wire.STATE] = "near the table"
        words = self.refused(seen)
        if not wire.REFERENCE:
            self.assertIn(wire.STATE, words)

    def test_bytes_that_are_no_message_are_refused(self):
        whole = wire.pack(wire.observation())
        for frame in (b"", b"\xc1", b"\x81", whole[: len(whole) // 2], wire.pack([1, 2]), wire.pack(None)):
            self.refused_raw(frame)

    def test_a_text_frame_is_refused(self):
        self.refused_raw("hello")

    def test_arrays_that_are_not_what_they_say_are_refused(self):
        def array(dtype, shape, data):
            return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}

        lies = [
            array("<f8", [14], b"\0" * 16),
            array("<f8", [1 << 62, 1 << 62], b""),
            array("nonsense", [1], b"\0" * 8),
            {b"__ndarray__": True},
        ]
        if not wire.REFERENCE:
            lies.append(array("<f8", [-1], b""))  # numpy makes an empty array of it
            lies.append(array("|O", [14], b"\1" * 8 * 14))  # and of this one pointers, which end openpi's server
        for lie in lies:
            seen = wire.observation()
            seen[wire.STATE] = lie
            self.refused_raw(wire.pack(seen))

    @unittest.skipIf(wire.REFERENCE, "openpi's server takes what msgpack takes")
    def test_a_length_that_is_only_announced_is_refused(self):
        # An array of 4 billion members, and a nest of a hundred thousand lists, in a few bytes.
        self.refused_raw(b"\xdd" + struct.pack(">I", 0xFFFFFFFF))
        self.refused_raw(b"\x91" * 100_000 + b"\xc0")


if __name__ == "__main__":
    unittest.main()
