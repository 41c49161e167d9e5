"""Who may connect and call: TLS, mutual TLS with certificates that change, tokens, administrators' calls."""

import socket
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException

from certificates import Authority, replace
from conftest import MODEL, Server

DIM = 128
CODE = grpc.StatusCode


def start(*flags):
    return Server(f"--model=m={MODEL}", "--local_workers=1", *flags)


def stop(server):
    server.terminate()
    assert server.wait() == 0, server.log()


def rows():
    values = np.random.default_rng(0).standard_normal((4, DIM), dtype=np.float32)
    tensor = triton.InferInput("hidden_states", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


def infer(client, token=None):
    headers = {"authorization": f"Bearer {token}"} if token else None
    return client.infer("m.0", rows(), headers=headers, client_timeout=30).as_numpy("output")


def secure_client(server, root, pair=(None, None)):
    return triton.InferenceServerClient(server.target, ssl=True, root_certificates=root, certificate_chain=pair[0],
                                        private_key=pair[1])


def refusal(call, *arguments):
    """The code with which a call fails."""
    with pytest.raises((InferenceServerException, grpc.RpcError)) as caught:
        call(*arguments)
    error = caught.value
    return error.code().name if isinstance(error, grpc.RpcError) else error.status().removeprefix("StatusCode.")


def bearer(token):
    return [("authorization", f"Bearer {token}")] if token else []


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(str(tmp_path_factory.mktemp("certificates") / "ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return Authority(str(tmp_path_factory.mktemp("certificates") / "theirs"))


@pytest.fixture
def live(tmp_path, ours):
    """The paths of the server's files, and a function that replaces both, the certificate first."""
    cert, key = str(tmp_path / "live.pem"), str(tmp_path / "live.key")

    def renew(name):
        new_cert, new_key = ours.issue(name)
        replace(cert, new_cert)
        replace(key, new_key)

    renew("first")
    return cert, key, renew


# ---- TLS


@pytest.fixture(scope="module")
def tls_server(ours):
    cert, key = ours.issue("server")
    running = start(f"--tls_cert={cert}", f"--tls_key={key}")
    yield running
    stop(running)


def test_tls(tls_server, ours):
    with secure_client(tls_server, ours.root) as client:
        assert client.is_server_ready()
        assert infer(client).shape == (4, DIM)


def test_a_client_that_trusts_others_refuses_the_server(tls_server, theirs):
    with secure_client(tls_server, theirs.root) as client:
        assert refusal(infer, client) == "UNAVAILABLE"


def test_a_client_without_tls_gets_nowhere(tls_server):
    with triton.InferenceServerClient(tls_server.target) as client:
        assert refusal(infer, client) == "UNAVAILABLE"


def test_old_protocol_versions_are_refused(tls_server, ours):
    def handshake(version):
        return subprocess.run(["openssl", "s_client", "-connect", tls_server.target, "-CAfile", ours.root, "-alpn", "h2",
                               "-cipher", "DEFAULT@SECLEVEL=0", version], stdin=subprocess.DEVNULL, capture_output=True,
                              check=False).returncode
    assert handshake("-tls1_3") == 0
    assert handshake("-tls1_2") == 0
    assert handshake("-tls1_1") != 0


def test_the_command_line_connects(tls_server, ours):
    def status(*flags):
        return subprocess.run(["client/switchyard", "status", f"--target={tls_server.target}", "--timeout_ms=5000",
                               *flags], capture_output=True, text=True)
    assert "serving" in status(f"--tls_ca={ours.root}").stdout
    assert status().returncode == 3
    assert "tls_ca=/absent: cannot be read" in status("--tls_ca=/absent").stderr


# ---- Mutual TLS


@pytest.fixture(scope="module")
def mutual_server(ours):
    cert, key = ours.issue("mutual")
    running = start(f"--tls_cert={cert}", f"--tls_key={key}", f"--tls_client_ca={ours.root}")
    yield running
    stop(running)


def test_mutual_tls(mutual_server, ours):
    with secure_client(mutual_server, ours.root, ours.issue("client")) as client:
        assert infer(client).shape == (4, DIM)


def test_strangers_are_refused(mutual_server, ours, theirs):
    for pair in [(None, None), theirs.issue("stranger"), ours.issue_expired("expired")]:
        with secure_client(mutual_server, ours.root, pair) as client:
            assert refusal(infer, client) == "UNAVAILABLE", pair


# ---- Certificates that change


def test_rotation_drops_no_call(live, ours):
    cert, key, renew = live
    server = start(f"--tls_cert={cert}", f"--tls_key={key}", f"--tls_client_ca={ours.root}")
    pair = ours.issue("caller")
    done, failures, counts = threading.Event(), [], [0, 0]

    def keep_calling(index, connect_each_time):
        client = secure_client(server, ours.root, pair)
        while not done.is_set():
            try:
                infer(client)
                counts[index] += 1
            except InferenceServerException as error:
                failures.append(str(error))
            if connect_each_time:
                client.close()
                client = secure_client(server, ours.root, pair)
        client.close()

    threads = [threading.Thread(target=keep_calling, args=(index, bool(index))) for index in (0, 1)]
    for thread in threads:
        thread.start()
    serials = set()
    for number in range(10):
        renew(f"renewed-{number}")
        before = list(counts)
        while not failures and any(count < old + 2 for count, old in zip(counts, before)):
            time.sleep(0.01)
        serials.add(shown_serial(server, ours, pair))
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(serials) == 10
    stop(server)


def shown_serial(server, authority, pair):
    """The serial number of the certificate that the server shows to a new connection."""
    shown = subprocess.run(["openssl", "s_client", "-connect", server.target, "-CAfile", authority.root, "-alpn", "h2",
                            "-cert", pair[0], "-key", pair[1]], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return subprocess.run(["openssl", "x509", "-noout", "-serial"], input=shown.stdout, capture_output=True,
                          check=True).stdout


def test_a_certificate_without_its_key_is_not_taken(live, ours):
    cert, key, _ = live
    server = start(f"--tls_cert={cert}", f"--tls_key={key}")
    replace(cert, ours.issue("without-key")[0])
    with secure_client(server, ours.root) as client:
        assert infer(client).shape == (4, DIM)
    assert "the certificate in use stays: --tls_key=" in server.log()
    stop(server)


@pytest.mark.parametrize("flags, message", [
    (["--tls_cert={cert}"], "--tls_key is needed with it"),
    (["--tls_cert={cert}", "--tls_key=/absent"], "--tls_key=/absent: cannot be read"),
    (["--tls_cert={key}", "--tls_key={key}"], "expected a certificate in PEM form"),
    (["--tls_cert={cert}", "--tls_key={other}"], "is not the key of the certificate"),
    (["--tls_client_ca={cert}"], "--tls_client_ca="),
    (["--auth_token_file=/absent"], "--auth_token_file=/absent: cannot be read"),
    (["--host=0.0.0.0", "--auth_token_file={cert}"], "tokens would cross the network in clear"),
    (["--host=0.0.0.0", "--admin_token_file={cert}"], "tokens would cross the network in clear"),
])
def test_wrong_files_refuse_the_start(ours, flags, message):
    cert, key = ours.issue("refused")
    other = ours.issue("other")[1]
    with pytest.raises(RuntimeError, match=message):
        start(*[flag.format(cert=cert, key=key, other=other) for flag in flags])


# ---- Tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "users").write_text("# people\nalice:user-token\n")
    (folder / "admins").write_text("admin-token\n")
    return folder


@pytest.fixture(scope="module")
def token_server(tokens):
    running = start(f"--auth_token_file={tokens}/users", f"--admin_token_file={tokens}/admins")
    yield running
    stop(running)


@pytest.fixture(scope="module")
def token_channel(token_server):
    with grpc.insecure_channel(token_server.target) as channel:
        yield channel


def test_tokens(token_server):
    with triton.InferenceServerClient(token_server.target) as client:
        assert infer(client, "user-token").shape == (4, DIM)
        assert infer(client, "admin-token").shape == (4, DIM)
        assert refusal(infer, client) == "UNAUTHENTICATED"
        for wrong in ["user-toke", "user-token2", "alice", "alice:user-token"]:
            assert refusal(infer, client, wrong) == "UNAUTHENTICATED"


def test_tokens_are_asked_for_by_every_method(token_channel):
    def empty(message):
        return message

    for path in ["/inference.GRPCInferenceService/ServerLive", "/switchyard.v1.Switchyard/ListModels",
                 "/switchyard.v1.Switchyard/Forward", "/inference.GRPCInferenceService/ModelInfer", "/no.such/Method"]:
        call = token_channel.unary_unary(path, request_serializer=empty, response_deserializer=empty)
        assert refusal(lambda: call(b"", timeout=30)) == "UNAUTHENTICATED", path
    stream = token_channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", request_serializer=empty,
                                         response_deserializer=empty)
    assert refusal(lambda: list(stream(iter([]), timeout=30))) == "UNAUTHENTICATED"
    reflection = reflection_pb2_grpc.ServerReflectionStub(token_channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    assert refusal(lambda: list(reflection.ServerReflectionInfo(iter([question])))) == "UNAUTHENTICATED"
    answers = reflection.ServerReflectionInfo(iter([question]), metadata=bearer("user-token"))
    assert next(answers).list_services_response.service


def test_probes_need_no_token(token_channel):
    health = health_pb2_grpc.HealthStub(token_channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_the_command_line_brings_its_token(token_server, tokens):
    def status(*flags):
        return subprocess.run(["client/switchyard", "status", f"--target={token_server.target}", *flags],
                              capture_output=True, text=True)
    assert "serving" in status(f"--token_file={tokens}/users").stdout
    refused = status()
    assert refused.returncode == 3 and "UNAUTHENTICATED" in refused.stderr


def test_tokens_change_while_the_server_runs(tmp_path):
    tokens, others = tmp_path / "tokens", tmp_path / "others"
    tokens.write_text("old")
    server = start(f"--auth_token_file={tokens}")
    with triton.InferenceServerClient(server.target) as client:
        infer(client, "old")
        others.write_text("new")
        replace(str(tokens), str(others))
        while True:
            try:
                infer(client, "new")
                break
            except InferenceServerException as error:
                assert error.status() == "StatusCode.UNAUTHENTICATED"
        assert refusal(infer, client, "old") == "UNAUTHENTICATED"
    stop(server)


# ---- Administrators


def admin_calls(channel, token=None):
    """The code of each call that changes the server, by name; OK when the call is not refused."""
    stub = rpc.GRPCInferenceServiceStub(channel)
    log = pb.LogSettingsRequest()
    log.settings["log_info"].bool_param = True
    trace = pb.TraceSettingRequest()
    trace.settings["trace_rate"].value.append("10")
    requests = {"LogSettings": log, "TraceSetting": trace,
                "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="absent"),
                "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name="absent"),
                "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest(name="absent"),
                "CudaSharedMemoryUnregister": pb.CudaSharedMemoryUnregisterRequest(name="absent")}
    codes = {}
    for name, request in requests.items():
        try:
            getattr(stub, name)(request, timeout=30, metadata=bearer(token))
            codes[name] = CODE.OK
        except grpc.RpcError as error:
            codes[name] = error.code()
    return codes


def test_administrators_have_tokens_of_their_own(token_channel):
    assert set(admin_calls(token_channel).values()) == {CODE.UNAUTHENTICATED}
    assert set(admin_calls(token_channel, "user-token").values()) == {CODE.PERMISSION_DENIED}
    codes = admin_calls(token_channel, "admin-token")
    assert codes["LogSettings"] == CODE.OK
    assert not {CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED} & set(codes.values())
    stub = rpc.GRPCInferenceServiceStub(token_channel)
    assert stub.LogSettings(pb.LogSettingsRequest(), metadata=bearer("user-token")).settings


def test_only_admin_calls_need_an_admin_when_only_those_tokens_are_given(tokens):
    server = start(f"--admin_token_file={tokens}/admins")
    with triton.InferenceServerClient(server.target) as client:
        assert infer(client).shape == (4, DIM)
    with grpc.insecure_channel(server.target) as channel:
        assert set(admin_calls(channel).values()) == {CODE.PERMISSION_DENIED}
        assert admin_calls(channel, "admin-token")["LogSettings"] == CODE.OK
    stop(server)


@pytest.mark.parametrize("flags, refused", [([], True), (["--allow_remote_admin"], False)])
def test_without_tokens_nobody_changes_a_server_that_others_reach(flags, refused):
    server = start("--host=0.0.0.0", *flags)
    assert "--host=0.0.0.0 is reachable from other hosts" in server.log()
    with grpc.insecure_channel(server.target.replace("0.0.0.0", "127.0.0.1")) as channel:
        assert (CODE.PERMISSION_DENIED in admin_calls(channel).values()) == refused
        assert (admin_calls(channel)["LogSettings"] == CODE.OK) != refused
    stop(server)


# ---- The worker port


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_workers_join_over_mutual_tls(ours, theirs):
    def flags(pair, root):
        return [f"--worker_tls_cert={pair[0]}", f"--worker_tls_key={pair[1]}", f"--worker_tls_ca={root}"]

    def worker(join_timeout_ms, more):
        return subprocess.Popen(["worker/switchyard_worker", f"--front=127.0.0.1:{port}", "--device=cpu",
                                 f"--join_timeout_ms={join_timeout_ms}", *more])

    port = free_port()
    joined = worker(20000, flags(ours.issue("worker"), ours.root))
    server = Server(f"--model=m={MODEL}", "--await_workers=1", f"--worker_port={port}",
                    *flags(ours.issue("front"), ours.root))
    for stranger in [[], flags(theirs.issue("other-worker"), ours.root), flags(ours.issue("fooled"), theirs.root)]:
        refused = worker(1000, stranger)
        assert refused.wait(timeout=60) == 3, stranger
    with triton.InferenceServerClient(server.target) as client:
        assert infer(client).shape == (4, DIM)
    stop(server)
    assert joined.wait(timeout=60) == 0
