"""The views of requests that an operator has: ids, log lines, traces, and the settings that change them at run time."""

import json

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException

from conftest import MODEL, Server

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


def infer_request(num_rows=1, **fields):
    rows = np.ones((num_rows, 128), np.float32)
    request = pb.ModelInferRequest(raw_input_contents=[rows.tobytes()], **{"model_name": "m.3", **fields})
    request.inputs.add(name="hidden_states", datatype="FP32", shape=rows.shape)
    return request


class Watched:
    """A server whose log is JSON and whose traces go to a file."""

    def __init__(self, folder):
        self.trace_file = folder / "trace.json"
        self.server = Server(f"--model=m={MODEL}", "--local_workers=1", "--compute_dtype=fp32", "--log_format=json",
                             "--slow_request_ms=30", f"--trace_file={self.trace_file}")
        self.client = triton.InferenceServerClient(self.server.target)
        self._channel = grpc.insecure_channel(self.server.target, [("grpc.max_receive_message_length", -1)])
        self.stub = rpc.GRPCInferenceServiceStub(self._channel)

    def close(self):
        self.client.close()
        self._channel.close()
        self.server.terminate()
        assert self.server.wait() == 0, self.server.log()

    def infer(self, request, *metadata):
        """Sends a request; returns the id that comes back."""
        _, call = self.stub.ModelInfer.with_call(request, metadata=metadata)
        return dict(call.trailing_metadata())["x-request-id"]

    def lines(self, request_id, count=1):
        """The log lines of one call. They are written soon after the answer, so this waits until there are `count`."""
        for _ in range(10_000):
            whole = self.server.log().rpartition("\n")[0].splitlines()
            lines = [json.loads(line) for line in whole if line.startswith("{")]
            found = [line for line in lines if line.get("request_id") == request_id]
            if len(found) >= count:
                return found
        raise AssertionError(f"{count} lines expected, there are {found}")

    def traces(self, suffix=""):
        """The traces written so far. The writer may still be at work, so callers wait for the traces that must come."""
        return json.loads((self.trace_file.parent / (self.trace_file.name + suffix)).read_text())

    def set_traces(self, model=None, **settings):
        changed = self.client.update_trace_settings(model, settings, as_json=True)["settings"]
        return {name: shown["value"] for name, shown in changed.items()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    running = Watched(tmp_path_factory.mktemp("traces"))
    yield running
    running.close()


@pytest.fixture
def debug(watched):
    watched.client.update_log_settings({"log_verbose_level": 1})
    yield watched
    watched.client.update_log_settings({"log_verbose_level": 0})


# ---- Request ids


def test_the_callers_id_comes_back_and_is_in_the_log(debug):
    assert debug.infer(infer_request(id="mine"), ("x-request-id", "call-7"), ("traceparent", TRACEPARENT)) == "call-7"
    line, = debug.lines("call-7")
    assert (line["trace_id"], line["id"], line["model"], line["layer"]) == (TRACE_ID, "mine", "m", "3")
    assert (line["rows"], line["code"], line["level"]) == (1, "OK", "debug")
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert {"total_us", "queue_us", "gate_us", "plan_us", "step_us", "steps", "replays"} <= set(line)


def test_the_trace_id_stands_in_for_an_id(debug):
    assert debug.infer(infer_request(), ("traceparent", TRACEPARENT)) == TRACE_ID
    assert debug.lines(TRACE_ID)[0]["trace_id"] == TRACE_ID


@pytest.mark.parametrize("traceparent", ["", "00-0-0-0", TRACEPARENT.upper(), "ff" + TRACEPARENT[2:], TRACEPARENT + "-x"])
def test_ids_are_made_for_those_who_have_none(debug, traceparent):
    metadata = [("traceparent", traceparent)] if traceparent else []
    first, second = debug.infer(infer_request(), *metadata), debug.infer(infer_request(), *metadata)
    assert first and second and first != second
    assert "trace_id" not in debug.lines(first)[0]


def test_ids_are_cut_and_cleaned(debug):
    assert debug.infer(infer_request(), ("x-request-id", 'a "b\\c')) == "a__b_c"
    assert debug.infer(infer_request(), ("x-request-id", "x" * 5000)) == "x" * 128


def test_what_callers_send_cannot_forge_lines(debug):
    debug.infer(infer_request(id='x"}\n{"level":"error"'), ("x-request-id", "forger"))
    line, = debug.lines("forger")
    assert line["id"] == 'x"}\n{"level":"error"' and line["level"] == "debug"


def test_refused_requests_are_logged_with_their_ids(debug):
    with pytest.raises(grpc.RpcError) as caught:
        debug.infer(infer_request(model_name="nothing"), ("x-request-id", "refused-1"))
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "refused-1"
    line, = debug.lines("refused-1")
    assert line["code"] == "NOT_FOUND" and line["message"].startswith("request refused: ")


def test_streams_have_one_id(debug):
    call = debug.stub.ModelStreamInfer(iter([infer_request(id="1"), infer_request(id="2")]),
                                       metadata=[("x-request-id", "stream-1")])
    assert len(list(call)) == 2
    assert dict(call.trailing_metadata())["x-request-id"] == "stream-1"
    assert {line["id"] for line in debug.lines("stream-1", 2)} == {"1", "2"}


# ---- Slow requests


def test_slow_requests_are_logged_with_their_stages(debug):
    """At this log level all requests are logged, which shows how many rows are slow on this machine."""
    for num_rows in [2048, 8192, 32768, 114688]:
        debug.infer(infer_request(num_rows), ("x-request-id", f"of-{num_rows}"))
        line, = debug.lines(f"of-{num_rows}")
        assert (line["level"] == "warning") == line["message"].startswith("slow request") == (line["total_us"] >= 30_000)
        if line["level"] == "warning":
            break
    assert line["level"] == "warning" and line["rows"] == num_rows
    assert line["step_us"] > 0 and line["gate_us"] > 0 and line["steps"] >= 1


# ---- Log settings


def test_log_settings_have_tritons_names(watched):
    settings = watched.client.get_log_settings(as_json=True)["settings"]
    assert set(settings) == {"log_error", "log_warning", "log_info", "log_verbose_level", "log_format", "log_file"}
    assert settings["log_format"]["string_param"] == "ISO8601"  # lines are JSON
    assert settings["log_file"]["string_param"] == ""


@pytest.mark.parametrize("name, value", [("log_file", "/tmp/x"), ("log_format", "default"), ("log_format", "prose"),
                                         ("colour", True)])
def test_log_settings_that_cannot_be(watched, name, value):
    with pytest.raises(InferenceServerException) as caught:
        watched.client.update_log_settings({name: value})
    assert name in caught.value.message()
    assert watched.client.get_log_settings().settings["log_format"].string_param == "ISO8601"


# ---- Traces


def test_trace_settings_as_they_start(watched):
    shown = watched.client.get_trace_settings(as_json=True)["settings"]
    assert {name: setting["value"] for name, setting in shown.items()} == {
        "trace_level": ["OFF"], "trace_rate": ["1000"], "trace_count": ["-1"], "log_frequency": ["0"],
        "trace_file": [str(watched.trace_file)], "trace_mode": ["triton"]}
    assert watched.client.get_trace_settings("m.1").settings["trace_rate"].value == ["1000"]


def wait_for_traces(watched, count, suffix=""):
    for _ in range(10_000):
        try:
            traces = watched.traces(suffix)
        except (FileNotFoundError, json.JSONDecodeError):  # being written
            continue
        if len(traces) >= count:
            return traces
    raise AssertionError(f"{count} traces expected, there are {traces}")


def test_traces_are_written(watched):
    changed = watched.set_traces(trace_level="TIMESTAMPS", trace_rate="2", trace_count="3")
    assert (changed["trace_level"], changed["trace_rate"], changed["trace_count"]) == (["TIMESTAMPS"], ["2"], ["3"])
    for number in range(10):
        watched.infer(infer_request(id=f"n{number}"), ("x-request-id", f"t{number}"), ("traceparent", TRACEPARENT))
    traces = wait_for_traces(watched, 3)
    assert [trace["x_request_id"] for trace in traces] == ["t1", "t3", "t5"]
    assert watched.set_traces()["trace_count"] == ["0"]
    trace = traces[0]
    assert (trace["id"], trace["model_name"], trace["model_version"], trace["request_id"]) == (1, "m.3", 1, "n1")
    assert (trace["trace_id"], trace["parent_span_id"]) == (TRACE_ID, SPAN_ID)
    stamps = {stamp["name"]: stamp["ns"] for stamp in trace["timestamps"]}
    order = ["REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START",
             "COMPUTE_END", "REQUEST_END"]
    assert list(stamps) == order
    assert sorted(stamps.values()) == list(stamps.values())
    assert 0 < stamps["REQUEST_END"] - stamps["REQUEST_START"] < 60e9
    watched.set_traces(trace_level=None, trace_rate=None, trace_count=None)


def test_a_model_has_settings_of_its_own(watched):
    own = watched.set_traces("m.0", trace_level="TIMESTAMPS", trace_rate="1", trace_count="1")
    assert own["trace_level"] == ["TIMESTAMPS"]
    assert watched.set_traces()["trace_level"] == ["OFF"]
    watched.set_traces(log_frequency="1")
    for model in ["m.1", "m.0", "m.0"]:
        watched.infer(infer_request(model_name=model))
    assert [trace["model_name"] for trace in wait_for_traces(watched, 1, ".0")] == ["m.0"]
    cleared = watched.set_traces("m.0", trace_level=None, trace_rate=None, trace_count=None)
    assert cleared == watched.set_traces(log_frequency=None) | {"log_frequency": ["1"]}


@pytest.mark.parametrize("settings, text", [
    ({"trace_file": "/tmp/elsewhere"}, "trace_file"), ({"trace_mode": "opentelemetry"}, "trace_mode"),
    ({"trace_level": "TENSORS"}, "expected OFF or TIMESTAMPS"), ({"trace_rate": "0"}, "trace_rate"),
    ({"trace_count": "many"}, "trace_count"), ({"colour": "red"}, "colour")], ids=str)
def test_trace_settings_that_cannot_be(watched, settings, text):
    before = watched.set_traces()
    with pytest.raises(InferenceServerException) as caught:
        watched.client.update_trace_settings(settings=settings)
    assert "INVALID_ARGUMENT" in caught.value.status() and text in caught.value.message()
    assert watched.set_traces() == before


def test_traces_of_unknown_models(watched):
    with pytest.raises(InferenceServerException) as caught:
        watched.client.get_trace_settings("m.77")
    assert "NOT_FOUND" in caught.value.status()


def test_without_a_file_nothing_can_be_traced(client):
    assert client.get_trace_settings().settings["trace_file"].value == [""]
    with pytest.raises(InferenceServerException) as caught:
        client.update_trace_settings(settings={"trace_level": "TIMESTAMPS"})
    assert "--trace_file" in caught.value.message()
