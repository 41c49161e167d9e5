"""The native API as any gRPC client sees it: through Python's grpcio, with messages made from server reflection."""

import itertools
import queue
import sys

import grpc
import numpy as np
import pytest

sys.path.append("client/python/examples")
from native import NativeClient  # noqa: E402

FP32 = 2  # DATA_TYPE_FP32


class Client(NativeClient):
    """Sends rows of float32 to a layer of jargon-moe."""

    def request(self, rows, layer="1", **fields):
        return super().request("jargon-moe", layer, rows, **fields)

    def stream_request(self, id, rows, **fields):
        return self.message("ForwardStreamRequest", id=id, forward=self.request(rows, **fields))


@pytest.fixture(scope="module")
def native(server):
    with grpc.insecure_channel(server.target) as channel:
        yield Client(channel)


def rows_of(response, like):
    assert response.dtype == FP32 and response.num_rows == len(like)
    return np.frombuffer(response.rows, np.float32).reshape(like.shape)


def test_models_and_status(native):
    model, = native.ListModels(native.message("ListModelsRequest")).models
    assert (model.name, len(model.layers)) == ("jargon-moe", 4)
    status = native.GetStatus(native.message("GetStatusRequest"))
    assert status.state == "serving" and len(status.ranks) == 2


def test_forward(native, golden):
    rows, expected = golden.layer(1)
    response = native.Forward(native.request(rows, return_routing=True, return_balance_loss=True))
    np.testing.assert_allclose(rows_of(response, rows), expected, rtol=1e-4, atol=1e-5)
    assert len(response.routing.expert_ids) == len(rows) * response.routing.top_k
    assert response.stats.num_steps >= 1 and response.balance_loss > 0
    assert not native.Forward(native.request(rows, return_stats=False)).HasField("stats")


def test_forward_stream_matches_answers_by_id(native, golden):
    layers = {str(layer): golden.layer(layer) for layer in (1, 2)}
    wanted = {}
    def requests():
        for i, layer in zip(range(300), itertools.cycle(layers)):
            rows, expected = layers[layer]
            first = 7 * i % 400
            chosen = slice(first, first + 1 + i % 50)
            wanted[i] = expected[chosen]
            yield native.stream_request(i, rows[chosen], layer=layer if i % 10 else "nowhere", return_stats=i == 7)
    seen = set()
    for answer in native.ForwardStream(requests()):
        assert answer.id not in seen
        seen.add(answer.id)
        if answer.id % 10 == 0:
            assert answer.error.code == grpc.StatusCode.NOT_FOUND.value[0] and "nowhere" in answer.error.message
            continue
        expected = wanted[answer.id]
        np.testing.assert_allclose(rows_of(answer.response, expected), expected, rtol=1e-4, atol=1e-5)
        assert answer.response.HasField("stats") == (answer.id == 7)
    assert seen == set(range(300))


def test_forward_stream_timeout_and_cancel(native, golden):
    rows, _ = golden.layer(1)
    large = np.concatenate([rows] * 12)  # grpcio takes answers of up to 4 MiB
    sent = queue.Queue()
    answers = native.ForwardStream(iter(sent.get, None))
    for i in range(10):
        sent.put(native.stream_request(i, large))
    sent.put(native.stream_request(10, large, timeout_us=1))
    sent.put(native.message("ForwardStreamRequest", id=9, cancel=True))
    sent.put(native.message("ForwardStreamRequest", id=11))
    sent.put(None)
    codes = {answer.id: answer.error.code for answer in answers}
    assert codes.pop(10) == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert codes.pop(9) in (0, grpc.StatusCode.CANCELLED.value[0])
    assert codes.pop(11) == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert codes == dict.fromkeys(range(9), 0)
    assert answers.code() == grpc.StatusCode.OK
