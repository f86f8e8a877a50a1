"""What a program that was written for OpenAI sees of Comptoir: the official client, of which nothing is changed but its base URL and its key.

`e2e/tests/it/openai.rs` starts the service and a worker, publishes models, and runs the classes below; the client reads OPENAI_BASE_URL and
OPENAI_API_KEY by itself. MODEL is an embedding model of the words `w0` to `w16`, of 16 tokens at most.
"""

import asyncio
import base64
import concurrent.futures
import json
import math
import os
import pathlib
import struct
import unittest

import openai

MODEL = os.environ["MODEL"]


def client(**options):
    return openai.OpenAI(max_retries=0, **options)


class Models(unittest.TestCase):
    def test_models_are_listed_and_found(self):
        listed = [it.id for it in client().models.list()]
        self.assertIn(MODEL, listed)
        found = client().models.retrieve(MODEL)
        self.assertEqual((found.id, found.object), (MODEL, "model"))
        self.assertGreater(found.created, 1_600_000_000)
        self.assertTrue(found.owned_by)

    def test_a_model_that_is_not_there_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as raised:
            client().models.retrieve("gpt-4")
        self.assertEqual(raised.exception.code, "not_found")


class Embeddings(unittest.TestCase):
    def vectors(self, given, **options):
        made = client().embeddings.create(model=MODEL, input=given, **options)
        self.assertEqual((made.object, made.model), ("list", MODEL))
        self.assertEqual([it.index for it in made.data], list(range(len(made.data))))
        return made, [it.embedding for it in made.data]

    def test_a_text_has_a_vector_of_length_one_and_its_tokens_are_counted(self):
        made, (vector,) = self.vectors("w1 w2 w3")
        self.assertAlmostEqual(math.sqrt(sum(it * it for it in vector)), 1, places=5)
        self.assertEqual((made.usage.prompt_tokens, made.usage.total_tokens), (3, 3))
        self.assertEqual(made.usage.cost, "3")

    def test_texts_have_the_vectors_that_each_has_alone(self):
        _, both = self.vectors(["w1 w2", "w3"])
        for text, vector in zip(["w1 w2", "w3"], both, strict=True):
            _, (alone,) = self.vectors(text)
            self.assertTrue(all(abs(a - b) < 1e-5 for a, b in zip(alone, vector, strict=True)))

    def test_tokens_have_the_vectors_of_their_text(self):
        _, (of_text,) = self.vectors("w1 w2")
        _, (of_tokens,) = self.vectors([1, 2])
        _, of_both = self.vectors([[1, 2], [3]])
        for vector in (of_tokens, of_both[0]):
            self.assertTrue(all(abs(a - b) < 1e-5 for a, b in zip(of_text, vector, strict=True)))

    def test_base64_which_the_client_asks_for_by_itself_has_the_same_numbers(self):
        _, (numbers,) = self.vectors("w5", encoding_format="float")
        _, (decoded,) = self.vectors("w5")
        self.assertEqual([struct.pack("<f", it) for it in numbers], [struct.pack("<f", it) for it in decoded])
        raw = client().embeddings.with_raw_response.create(model=MODEL, input="w5", encoding_format="base64")
        text = json.loads(raw.content)["data"][0]["embedding"]
        self.assertEqual(base64.b64decode(text), struct.pack(f"<{len(numbers)}f", *numbers))

    def test_each_answer_names_its_call_its_cost_and_its_receipt(self):
        raw = client().embeddings.with_raw_response.create(model=MODEL, input="w1", user="somebody")
        self.assertTrue(raw.headers["comptoir-call"].startswith("call_"))
        self.assertEqual(raw.headers["comptoir-cost"], "1")
        self.assertTrue(raw.headers["comptoir-receipt"].startswith("rcpt_"))
        self.assertTrue(raw.headers["x-request-id"])

    def test_many_at_once_have_their_own_vectors(self):

        shared = client()

        def embed(word):
            return shared.embeddings.create(model=MODEL, input=f"w{word}").data[0].embedding

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            made = list(pool.map(embed, [it % 4 for it in range(32)]))
        for place, vector in enumerate(made):
            self.assertTrue(all(abs(a - b) < 1e-5 for a, b in zip(vector, made[place % 4], strict=True)))


class Errors(unittest.TestCase):
    def raises(self, kind, status, code, **options):
        of = options.pop("of", None) or client()
        with self.assertRaises(kind) as raised:
            of.embeddings.create(**({"model": MODEL, "input": "w1"} | options))
        error = raised.exception
        self.assertIs(type(error), kind)
        self.assertEqual((error.status_code, error.code), (status, code))
        self.assertTrue(error.message and error.type and error.request_id)
        return error

    def test_a_key_that_nobody_has_is_no_authentication(self):
        error = self.raises(openai.AuthenticationError, 401, "unauthenticated", of=client(api_key="ck_nobody"))
        self.assertEqual(error.type, "authentication_error")

    def test_a_key_without_the_scope_is_denied(self):
        reader = client(api_key=os.environ["READER_KEY"])
        self.raises(openai.PermissionDeniedError, 403, "insufficient_scope", of=reader)

    def test_who_has_no_money_is_told_so(self):
        poor = client(api_key=os.environ["POOR_KEY"])
        error = self.raises(openai.APIStatusError, 402, "insufficient_funds", of=poor)
        self.assertEqual(error.type, "insufficient_quota")

    def test_a_model_that_is_not_there_is_not_found(self):
        self.raises(openai.NotFoundError, 404, "not_found", model="text-embedding-3-small")

    def test_what_does_not_fit_is_a_bad_request_that_names_its_field(self):
        for field, options in [
            ("input", {"input": "w1 " * 17}),
            ("input", {"input": ""}),
            ("input", {"input": ["w1"] * 2049}),
            ("input", {"input": [999]}),
            ("dimensions", {"dimensions": 3}),
            ("encoding_format", {"encoding_format": "hex"}),
        ]:
            error = self.raises(openai.BadRequestError, 400, "invalid_request", **options)
            self.assertEqual(error.param, field)

    def test_a_body_that_is_too_large_is_refused(self):
        self.raises(openai.APIStatusError, 413, "payload_too_large", input="w1 " * (3 << 20))


class Chat(unittest.TestCase):
    """WRITER is the model of examples/gpt, which costs a base unit for each token that is read and ten for each that is written."""

    def setUp(self):
        cases = json.loads(pathlib.Path(os.environ["WRITTEN"]).read_text())["cases"]
        self.case = cases[0]
        self.asked = {
            "model": os.environ["WRITER"],
            "messages": [{"role": "user", "content": "Who comes here?"}],
            "temperature": 0,
            "max_completion_tokens": len(self.case["written"]),
        }

    def test_a_conversation_is_answered_as_pytorch_would(self):
        said = client().chat.completions.create(**self.asked)
        (choice,) = said.choices
        self.assertEqual((choice.message.role, choice.message.content), ("assistant", self.case["text"]))
        self.assertEqual(choice.finish_reason, "length")
        read, wrote = len(self.case["ids"]), len(self.case["written"])
        self.assertEqual((said.usage.prompt_tokens, said.usage.completion_tokens), (read, wrote))
        self.assertEqual(said.usage.total_tokens, read + wrote)
        self.assertEqual(said.usage.cost, str(read + 10 * wrote))
        self.assertTrue(said.id.startswith("call_"))

    def test_what_is_streamed_is_the_same_and_ends_with_what_it_cost(self):
        chunks = list(client().chat.completions.create(**self.asked, stream=True))
        text = "".join(it.choices[0].delta.content or "" for it in chunks)
        self.assertEqual(text, self.case["text"])
        self.assertGreater(len(chunks), 10, "as it comes")
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")
        self.assertEqual(chunks[-1].usage.completion_tokens, len(self.case["written"]))
        options = {"include_usage": True}
        *chunks, last = client().chat.completions.create(**self.asked, stream=True, stream_options=options)
        self.assertEqual((last.choices, last.usage.prompt_tokens), ([], len(self.case["ids"])))
        self.assertTrue(all(it.usage is None for it in chunks))

    def test_stops_end_it_and_a_seed_draws_the_same_again(self):
        stop = self.case["text"][8:12]
        said = client().chat.completions.create(**self.asked, stop=stop)
        self.assertEqual(said.choices[0].message.content, self.case["text"].split(stop)[0])
        self.assertEqual(said.choices[0].finish_reason, "stop")
        drawn = {**self.asked, "temperature": 1.2, "top_p": 0.9}

        def content(seed):
            return client().chat.completions.create(**drawn, seed=seed).choices[0].message.content

        self.assertEqual(content(7), content(7))
        self.assertNotEqual(content(7), content(8))

    def test_many_conversations_at_once_have_their_own_answers(self):
        def answer(_):
            return client().chat.completions.create(**self.asked).choices[0].message.content

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(set(pool.map(answer, range(16))), {self.case["text"]})

    def test_the_asynchronous_client_reads_a_stream_and_may_leave_it(self):
        async def read():
            stream = await openai.AsyncOpenAI(max_retries=0).chat.completions.create(**self.asked, stream=True)
            async with stream:
                async for chunk in stream:
                    if chunk.choices[0].delta.content:
                        return chunk.choices[0].delta.content

        self.assertTrue(self.case["text"].startswith(asyncio.run(read())))

    def test_what_does_not_fit_is_a_bad_request_that_names_its_field(self):
        for changed, param in [({"n": 2}, "n"), ({"temperature": 3}, "temperature"), ({"max_completion_tokens": 1000}, "max_completion_tokens"),
                               ({"messages": []}, "messages"), ({"model": MODEL}, "model")]:
            with self.assertRaises(openai.BadRequestError) as raised:
                client().chat.completions.create(**{**self.asked, **changed})
            self.assertEqual(raised.exception.param, param)

    def test_who_has_no_money_is_told_so(self):
        with self.assertRaises(openai.APIStatusError) as raised:
            client(api_key=os.environ["POOR_KEY"]).chat.completions.create(**self.asked, stream=True)
        self.assertEqual((raised.exception.status_code, raised.exception.code), (402, "insufficient_funds"))


class Limited(unittest.TestCase):
    """At a service that takes thirty calls a minute of a key."""

    def test_who_asks_too_often_is_told_and_the_client_waits_by_itself(self):
        hasty, patient = client(), openai.OpenAI(max_retries=5)
        with self.assertRaises(openai.RateLimitError) as raised:
            for _ in range(100):
                hasty.embeddings.create(model=MODEL, input="w1")
        self.assertEqual((raised.exception.code, raised.exception.type), ("rate_limited", "rate_limit_error"))
        self.assertGreaterEqual(int(raised.exception.response.headers["retry-after"]), 1)
        # On a busy machine another call is free by now; not many are.
        for _ in range(100):
            raw = patient.embeddings.with_raw_response.create(model=MODEL, input="w1")
            self.assertEqual(len(raw.parse().data), 1)
            if raw.retries_taken > 0:
                break
        self.assertGreaterEqual(raw.retries_taken, 1)


class Away(unittest.TestCase):
    """While no worker is there. One comes once the file AWAY exists."""

    def test_the_client_comes_back_until_somebody_answers(self):
        with self.assertRaises(openai.InternalServerError) as raised:
            client().embeddings.create(model=MODEL, input="w1")
        self.assertEqual((raised.exception.status_code, raised.exception.code), (503, "no_worker"))
        self.assertEqual(raised.exception.response.headers["retry-after"], "5")
        pathlib.Path(os.environ["AWAY"]).touch()
        patient = openai.OpenAI(max_retries=20)
        raw = patient.embeddings.with_raw_response.create(model=MODEL, input="w1")
        self.assertGreaterEqual(raw.retries_taken, 1)
        self.assertEqual(len(raw.parse().data), 1)


class Reference(unittest.TestCase):
    """MODEL is all-MiniLM-L6-v2, and VECTORS what PyTorch computed with it."""

    def test_embeddings_are_those_of_pytorch(self):
        cases = json.loads(pathlib.Path(os.environ["VECTORS"]).read_text())["cases"]
        made = client().embeddings.create(model=MODEL, input=[it["text"] for it in cases])
        self.assertEqual(made.usage.prompt_tokens, sum(len(it["ids"]) for it in cases))
        for case, ours in zip(cases, made.data, strict=True):
            a, b = ours.embedding, case["embedding"]
            self.assertEqual(len(a), len(b))
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            cosine = dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
            self.assertGreaterEqual(cosine, 0.9999, case["text"])
        print(f"{len(cases)} texts have PyTorch's embeddings")


if __name__ == "__main__":
    unittest.main(verbosity=2)
