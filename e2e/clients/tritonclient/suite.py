"""What a program that was written for Triton sees of Comptoir: its client, of which nothing is changed but the address and a header with a key.

`e2e/tests/it/triton.rs` starts the service and a worker, publishes MODEL (examples/digits/mlp.pt2, 7 base units a call), and runs the classes below.
"""

import asyncio
import concurrent.futures
import json
import os
import pathlib
import struct
import time
import unittest

import numpy
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

ADDRESS, MODEL, KEY = os.environ["ADDRESS"], os.environ["MODEL"], os.environ["KEY"]
DIGITS = pathlib.Path(os.environ["DIGITS"])


def with_key(key=KEY):
    return {"Authorization": f"Bearer {key}"}


def client(**options):
    return triton.InferenceServerClient(ADDRESS, **options)


def tensor(path, name):
    """A tensor of a safetensors file, of 32-bit numbers."""
    file = path.read_bytes()
    (length,) = struct.unpack("<Q", file[:8])
    info = json.loads(file[8 : 8 + length])[name]
    begin, end = (8 + length + at for at in info["data_offsets"])
    return numpy.frombuffer(file[begin:end], "<f4").reshape(info["shape"])


IMAGES = tensor(DIGITS / "test.safetensors", "images")
EXPECTED = tensor(DIGITS / "vectors/mlp_inference.safetensors", "output")


def images(rows, binary=True, kind="FP32", name="x"):
    given = triton.InferInput(name, list(rows.shape), kind)
    given.set_data_from_numpy(rows, binary_data=binary)
    return [given]


class Server(unittest.TestCase):
    def test_it_is_alive_and_ready_and_says_what_it_is(self):
        self.assertTrue(client().is_server_live())
        self.assertTrue(client().is_server_ready())
        told = client().get_server_metadata()
        self.assertEqual(told["name"], "comptoir")
        self.assertIn("binary_tensor_data", told["extensions"])

    def test_a_model_says_what_it_takes_and_gives(self):
        self.assertTrue(client().is_model_ready(MODEL, headers=with_key()))
        told = client().get_model_metadata(MODEL, headers=with_key())
        self.assertEqual(told["name"], MODEL)
        self.assertEqual(told["inputs"], [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 8, 8]}])
        (output,) = told["outputs"]
        self.assertEqual((output["datatype"], output["shape"]), ("FP32", [-1, 10]))
        (version,) = told["versions"]
        self.assertTrue(client().is_model_ready(MODEL, version, headers=with_key()))
        again = client().get_model_metadata(MODEL, version, headers=with_key())
        self.assertEqual(again, told)


class Infer(unittest.TestCase):
    def output(self):
        (output,) = client().get_model_metadata(MODEL, headers=with_key())["outputs"]
        return output["name"]

    def close(self, found, expected):
        self.assertEqual(found.dtype, numpy.float32)
        numpy.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_bytes_and_numbers_in_both_directions_are_those_of_pytorch(self):
        name = self.output()
        for binary in (True, False):
            for binary_out in (True, False, None):
                outputs = None if binary_out is None else [triton.InferRequestedOutput(name, binary_data=binary_out)]
                answer = client().infer(MODEL, images(IMAGES[:37], binary), outputs=outputs, request_id="mine", headers=with_key())
                self.close(answer.as_numpy(name), EXPECTED)
                told = answer.get_response()
                self.assertEqual((told["id"], told["model_name"]), ("mine", MODEL))

    def test_a_version_is_called_by_its_name(self):
        (version,) = client().get_model_metadata(MODEL, headers=with_key())["versions"]
        answer = client().infer(MODEL, images(IMAGES[:2]), model_version=version, headers=with_key())
        self.close(answer.as_numpy(self.output()), EXPECTED[:2])
        self.assertEqual(answer.get_response()["model_version"], version)

    def test_many_at_once_have_their_own_rows(self):
        name, shared = self.output(), client(concurrency=8)

        def row(at):
            return shared.infer(MODEL, images(IMAGES[at : at + 1]), headers=with_key()).as_numpy(name)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for at, found in enumerate(pool.map(row, range(37))):
                self.close(found, EXPECTED[at : at + 1])

    def test_answers_that_are_waited_for_later_are_the_same(self):
        pending = [client().async_infer(MODEL, images(IMAGES[at : at + 1]), headers=with_key()) for at in range(4)]
        for at, it in enumerate(pending):
            self.close(it.get_result().as_numpy(self.output()), EXPECTED[at : at + 1])

    def test_the_asynchronous_client_is_answered_too(self):
        async def ask():
            async with triton_aio.InferenceServerClient(ADDRESS) as there:
                self.assertTrue(await there.is_server_ready())
                answer = await there.infer(MODEL, images(IMAGES[:3]), headers=with_key())
                return answer.as_numpy(self.output())

        self.close(asyncio.run(ask()), EXPECTED[:3])


class Errors(unittest.TestCase):
    def raises(self, status, asked, **options):
        options = {"headers": with_key(), **options}
        with self.assertRaises(InferenceServerException) as raised:
            client().infer(options.pop("model", MODEL), asked, **options)
        self.assertEqual(raised.exception.status(), str(status), raised.exception.message())
        return raised.exception.message()

    def test_who_has_no_key_or_the_wrong_one_is_told_so(self):
        self.raises(401, images(IMAGES[:1]), headers={})
        self.raises(401, images(IMAGES[:1]), headers=with_key("ck_nobodys"))
        self.raises(403, images(IMAGES[:1]), headers=with_key(os.environ["READER_KEY"]))

    def test_who_has_no_money_is_told_so(self):
        self.raises(402, images(IMAGES[:1]), headers=with_key(os.environ["POOR_KEY"]))

    def test_what_does_not_fit_is_refused_by_its_name(self):
        self.assertIn("/inputs/0", self.raises(422, images(IMAGES[:1].reshape(1, 64))))
        self.assertIn("/inputs/0", self.raises(422, images(IMAGES[:1].astype(numpy.float64), kind="FP64")))
        self.raises(422, images(IMAGES[:1], name="y"))
        self.raises(422, images(IMAGES[:0]))

    def test_what_is_not_there_is_not_found(self):
        self.raises(404, images(IMAGES[:1]), model="digits")
        self.assertFalse(client().is_model_ready("digits", headers=with_key()))
        with self.assertRaises(InferenceServerException) as raised:
            client().get_model_config(MODEL, headers=with_key())
        self.assertEqual(raised.exception.status(), "404")

    def test_compressed_bodies_are_refused(self):
        self.raises(415, images(IMAGES[:1]), request_compression_algorithm="gzip")


class Away(unittest.TestCase):
    """No worker is there, and one comes when AWAY was touched."""

    def test_who_asks_again_is_answered_once_somebody_is_there(self):
        until = time.monotonic() + 60
        while True:
            try:
                answer = client().infer(MODEL, images(IMAGES[:1]), headers=with_key())
                break
            except InferenceServerException as error:
                self.assertEqual(error.status(), "503", error.message())
                self.assertLess(time.monotonic(), until)
                pathlib.Path(os.environ["AWAY"]).touch()
                time.sleep(0.5)
        self.assertEqual(answer.get_response()["model_name"], MODEL)


if __name__ == "__main__":
    unittest.main(verbosity=2)
