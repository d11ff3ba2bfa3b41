"""A robot's program asks and is answered."""

import json
import os
from pathlib import Path
import subprocess
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.base_policy import BasePolicy
from openpi_client.runtime.agents.policy_agent import PolicyAgent
from openpi_client.runtime.environment import Environment
from openpi_client.runtime.runtime import Runtime
import numpy as np
import wire

FLOW = "PI0_NO_NOISE" not in os.environ


class Counted(BasePolicy):
    """A policy that counts how often it is asked."""

    def __init__(self, policy):
        self.policy, self.asked = policy, 0

    def infer(self, obs):
        self.asked += 1
        return self.policy.infer(obs)


class Arm(Environment):
    """A robot of noise that keeps what it was told to do."""

    def __init__(self):
        self.done = []

    def reset(self):
        self.begun = True

    def is_episode_complete(self):
        return False

    def get_observation(self):
        return wire.observation(len(self.done))

    def apply_action(self, action):
        self.done.append(action["actions"])


class Actions(unittest.TestCase):
    def test_metadata_come_first_and_are_the_presets(self):
        self.assertEqual(wire.client().get_server_metadata(), wire.METADATA)

    def test_an_answer_has_openpis_keys_shapes_and_types(self):
        answer = wire.client().infer(wire.observation())
        self.assertEqual(list(answer), ["actions", "policy_timing", "server_timing"])
        actions = answer["actions"]
        self.assertEqual((actions.shape, actions.dtype), ((wire.HORIZON, wire.WIDTH), np.dtype(np.float64)))
        self.assertTrue(np.isfinite(actions).all())
        self.assertEqual(list(answer["policy_timing"]), ["infer_ms"])
        self.assertGreater(answer["policy_timing"]["infer_ms"], 0)

    def test_the_time_of_the_answer_before_is_told_from_the_second_on(self):
        client = wire.client()
        timing = [client.infer(wire.observation(i))["server_timing"] for i in range(3)]
        self.assertEqual([list(one) for one in timing], [["infer_ms"]] + 2 * [["infer_ms", "prev_total_ms"]])
        for before, after in zip(timing, timing[1:]):
            self.assertGreaterEqual(after["prev_total_ms"], before["infer_ms"])

    def test_a_broker_hands_out_one_action_at_a_time(self):
        counted = Counted(wire.client())
        broker = ActionChunkBroker(counted, action_horizon=3)
        given = [broker.infer(wire.observation(i))["actions"] for i in range(7)]
        self.assertEqual((counted.asked, {action.shape for action in given}), (3, {(wire.WIDTH,)}))
        self.assertFalse(np.array_equal(given[0], given[1]))

    def test_the_clients_runtime_runs_an_episode(self):
        arm, counted = Arm(), Counted(wire.client())
        agent = PolicyAgent(ActionChunkBroker(counted, action_horizon=5))
        Runtime(arm, agent, [], max_hz=0, num_episodes=2, max_episode_steps=7).run()
        # openpi's runtime looks at its bound after the step: one more is done.
        self.assertEqual((len(arm.done), counted.asked), (16, 4))
        self.assertEqual({action.shape for action in arm.done}, {(wire.WIDTH,)})

    def test_two_clients_at_once_each_get_their_own_answers(self):
        def ask(index, into):
            client = wire.client()
            for i in range(5):
                into.append(client.infer(wire.observation(index))["actions"])

        answers = [[], []]
        threads = [threading.Thread(target=ask, args=(i, answers[i])) for i in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual([len(each) for each in answers], [5, 5])

    def test_a_health_check_and_a_browser_are_answered_without_a_websocket(self):
        with urllib.request.urlopen(f"http://{wire.HOST}:{wire.PORT}/healthz") as answer:
            self.assertEqual((answer.status, answer.read()), (200, b"OK\n"))
            self.assertTrue(answer.headers["Content-Type"].startswith("text/plain"))
        with self.assertRaises(urllib.error.HTTPError) as raised, urllib.request.urlopen(f"http://{wire.HOST}:{wire.PORT}/"):
            pass
        self.assertEqual(raised.exception.code, 426)
        raised.exception.close()


@unittest.skipIf(wire.REFERENCE or not FLOW, "noise over the wire is ours, and of models that begin with noise")
class Noise(unittest.TestCase):
    def ask(self, seed, changes=None):
        seen = wire.observation(seed)
        seen.update(changes or {})
        return wire.client().infer(seen | {"pi0": {"noise": wire.noise(seed)}})

    def test_the_same_noise_gives_the_same_bits_and_other_noise_others(self):
        first, again, other = (self.ask(seed)["actions"] for seed in (0, 0, 1))
        self.assertEqual(wire.bits(first), wire.bits(again))
        self.assertNotEqual(wire.bits(first), wire.bits(other))

    def test_who_does_not_ask_for_extensions_does_not_see_them(self):
        self.assertNotIn("pi0", wire.client().infer(wire.observation()))
        self.assertIn("pi0", self.ask(0))

    def test_a_seed_gives_the_same_bits_and_is_told(self):
        asked = wire.observation() | {"pi0": {"seed": 7}}
        first, again = (wire.client().infer(asked) for _ in range(2))
        self.assertEqual(wire.bits(first["actions"]), wire.bits(again["actions"]))
        self.assertEqual(first["pi0"]["seed"], 7)

    def test_numbers_and_words_come_in_any_form_that_numpy_has(self):
        state = np.round(wire.observation()[wire.STATE], 2).astype(np.float32)
        forms = [state, state.astype(np.float64), state.astype(">f4"), state.astype(">f8"), state[::-1].copy()[::-1]]
        answers = {wire.bits(self.ask(0, {wire.STATE: form})["actions"]) for form in forms}
        self.assertEqual(len(answers), 1)
        words = [np.str_("do something"), np.array("do something"), "do something"]
        answers = {wire.bits(self.ask(0, {"prompt": form})["actions"]) for form in words}
        self.assertEqual(len(answers), 1)

    def test_clients_at_once_get_the_bits_that_each_gets_alone(self):
        alone = {seed: wire.bits(self.ask(seed)["actions"]) for seed in range(4)}
        found = []

        def ask(seed):
            client = wire.client()
            for _ in range(4):
                asked = wire.observation(seed) | {"pi0": {"noise": wire.noise(seed)}}
                found.append((seed, wire.bits(client.infer(asked)["actions"])))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in alone]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual(len(found), 16)
        for seed, bits in found:
            self.assertEqual(bits, alone[seed], f"seed {seed}")

    def test_actions_over_the_wire_are_those_of_pi0_sample_bit_for_bit(self):
        seen, noise = wire.observation(3), wire.noise(3)
        over_the_wire = wire.client().infer(seen | {"pi0": {"noise": noise}})["actions"]
        with tempfile.TemporaryDirectory() as folder:
            # As openpi's PolicyRecorder keeps what a robot sent.
            kept = {f"inputs/{key}": value for key, value in seen.items() if key != "images"}
            kept |= {f"inputs/images/{key}": value for key, value in seen.get("images", {}).items()}
            kept["outputs/actions"] = over_the_wire
            np.save(Path(folder) / "step_0.npy", np.asarray(kept))
            np.save(Path(folder) / "noise.npy", noise)
            command = json.loads(os.environ["PI0_SAMPLE"])
            command += ["--observation", f"{folder}/step_0.npy", "--noise", f"{folder}/noise.npy", "--output", f"{folder}/out.npy"]
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            sampled = np.load(Path(folder) / "out.npy")
        sampled = sampled.reshape(over_the_wire.shape).astype(over_the_wire.dtype)
        self.assertEqual(wire.bits(sampled), wire.bits(over_the_wire))


if __name__ == "__main__":
    unittest.main()
