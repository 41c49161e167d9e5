"""A real Prometheus against a front: it scrapes the front, and answers the queries of an operator."""

import contextlib
import json
import re
import shutil
import socket
import statistics
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton

from conftest import MODEL, Server

RULES = "deploy/prometheus/alerts.yml"
DASHBOARD = "deploy/prometheus/dashboard.json"
LAYERS = ["m.0", "m.1"]
# Names that are Triton's and do not follow Prometheus' conventions.
FOREIGN = re.compile(r"nv_\w+ (counter metrics should have \"_total\" suffix|"
                     r"metric names should not contain abbreviated units|"
                     r"non-histogram and non-summary metrics should not have \"_count\" suffix)")


pytestmark = pytest.mark.skipif(not all(map(shutil.which, ["prometheus", "promtool"])),
                                reason="prometheus and promtool are not installed; see deploy/install.sh")


def fetch(address, path, **query):
    url = f"http://{address}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def free_ports(count):
    """The first of `count` consecutive free ports, below those that systems hand out."""
    for first in range(20_000, 30_000, count):
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sockets.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise RuntimeError("no free ports")


@pytest.fixture(scope="module")
def worker_port():
    return free_ports(2)


@pytest.fixture(scope="module")
def front(worker_port):
    running = Server(f"--model=m={MODEL}", "--local_workers=2", "--compute_dtype=fp32", "--warmup=off",
                     f"--worker_http_port={worker_port}")
    yield running
    running.terminate()
    assert running.wait() == 0, running.log()


class Prometheus:
    """A Prometheus that scrapes a front four times a second."""

    def __init__(self, targets, folder):
        config = {
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "alerts.yml")],
            "scrape_configs": [{"job_name": "switchyard", "static_configs": [
                {"targets": targets}]}],
        }
        shutil.copyfile(RULES, folder / "alerts.yml")
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML as well
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             "--web.listen-address=127.0.0.1:0"], stderr=subprocess.PIPE, text=True)
        for line in self._process.stderr:
            found = re.search(r'msg="Listening on" address=(\S+)', line)
            if found:
                self._address = found.group(1)
                break
        else:
            raise RuntimeError("prometheus did not start")
        self._drain = threading.Thread(target=self._process.stderr.read)
        self._drain.start()

    def stop(self):
        self._process.terminate()
        self._process.wait(timeout=30)
        self._drain.join()

    def ask(self, path, **query):
        return json.loads(fetch(self._address, "/api/v1/" + path, **query))["data"]

    def query(self, expression):
        """Labels and value of every series."""
        return [(series["metric"], float(series["value"][1]))
                for series in self.ask("query", query=expression)["result"]]

    def value(self, expression):
        """The value of the only series; None while there is none."""
        series = self.query(expression)
        return series[0][1] if series else None

    def wait_for(self, expression, holds):
        for _ in range(600):
            with contextlib.suppress(OSError):  # Prometheus answers 503 while it starts
                value = self.value(expression)
                if value is not None and holds(value):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"{expression} is {self.query(expression)}")


@pytest.fixture(scope="module")
def prometheus(front, worker_port, tmp_path_factory):
    workers = [f"127.0.0.1:{worker_port + rank}" for rank in range(2)]
    running = Prometheus([front.http, *workers], tmp_path_factory.mktemp("prometheus"))
    yield running
    running.stop()


class Load:
    """Requests from a few threads for a while. Keeps how many there were and how long they took."""

    def __init__(self, target, num_threads=2, num_requests=400):
        self.seconds = []
        began = time.monotonic()
        threads = [threading.Thread(target=self._run, args=(target, number, num_requests // num_threads))
                   for number in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.duration = time.monotonic() - began

    def _run(self, target, seed, num_requests):
        rows = np.random.default_rng(seed).standard_normal((64, 128)).astype(np.float32)
        tensor = triton.InferInput("hidden_states", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows)
        with triton.InferenceServerClient(target) as client:
            for number in range(num_requests):
                began = time.monotonic()
                client.infer(LAYERS[number % len(LAYERS)], [tensor])
                self.seconds.append(time.monotonic() - began)


@pytest.fixture(scope="module")
def load(front, prometheus):
    prometheus.wait_for("sum(up)", lambda value: value == 3)
    done = Load(front.target)
    total = len(done.seconds)
    prometheus.wait_for('sum(switchyard_requests_total{code="OK"})', lambda value: value == total)
    prometheus.wait_for("sum(switchyard_worker_rows_total) - sum(switchyard_rank_rows_total)", lambda value: value == 0)
    return done


def test_metric_names_follow_the_conventions(front, worker_port, load):
    for address in [front.http, f"127.0.0.1:{worker_port}"]:
        checked = subprocess.run(["promtool", "check", "metrics"], input=fetch(address, "/metrics"), text=True,
                                 capture_output=True, check=False)
        complaints = (checked.stdout + checked.stderr).splitlines()
        assert [line for line in complaints if not FOREIGN.fullmatch(line)] == []


def test_rules_and_alerts_are_well_formed(prometheus, load):
    checked = subprocess.run(["promtool", "check", "rules", RULES], text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    prometheus.wait_for("count(switchyard:rank_imbalance:ratio_rate5m)", lambda count: count >= len(LAYERS))
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    firing = [rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] == "firing"]
    assert firing == []


def test_every_request_is_counted_once(prometheus, load):
    total = len(load.seconds)
    for layer, model in zip(["0", "1"], LAYERS):
        assert prometheus.value(f'switchyard_requests_total{{layer="{layer}",code="OK"}}') == total / 2
        assert prometheus.value(f'nv_inference_request_success{{model="{model}",version="1"}}') == total / 2
        assert prometheus.value(f'nv_inference_count{{model="{model}"}}') == total / 2
    assert prometheus.value("sum(switchyard_rows_total)") == 64 * total
    assert prometheus.value("sum(nv_inference_request_failure)") == 0
    assert prometheus.value("sum(switchyard_rank_rows_total)") == prometheus.value("sum(switchyard_expert_rows_total)")


def test_rate_of_requests(prometheus, load):
    """All requests came within the last minute, so it counts all of them, however long they took."""
    increase = prometheus.value('sum(increase(switchyard_requests_total{code="OK"}[1m]))')
    assert increase is not None and 0 < increase
    rate = prometheus.value('max_over_time(sum(rate(switchyard_requests_total{code="OK"}[1s]))[1m:250ms])')
    assert 0.3 * len(load.seconds) / load.duration < rate < 4 * len(load.seconds) / load.duration


def test_p99_of_requests(prometheus, load):
    """At least what most callers saw and at most what the slowest saw, within the precision of the buckets."""
    p99 = prometheus.value(
        'histogram_quantile(0.99, sum by (le) (rate(switchyard_stage_seconds_bucket{stage="total"}[1m])))')
    assert 0.05 * statistics.median(load.seconds) < p99 < 2.5 * max(load.seconds)
    mean = prometheus.value('sum(switchyard_stage_seconds_sum{stage="total"}) '
                            '/ sum(switchyard_stage_seconds_count{stage="total"})')
    assert 0 < mean < statistics.mean(load.seconds)


def test_imbalance_of_ranks(prometheus, load):
    """The counters of ranks agree with the imbalance that the front reports of its steps."""
    imbalances = prometheus.query("max by (model, layer) (switchyard_rank_rows_total) "
                                  "/ avg by (model, layer) (switchyard_rank_rows_total) > 0")
    assert {labels["layer"] for labels, _ in imbalances} >= {"0", "1"}
    for labels, imbalance in imbalances:
        assert 1 <= imbalance <= 2
        mean = prometheus.value("switchyard_step_imbalance_ratio_sum{layer=\"%s\"} "
                                "/ switchyard_step_imbalance_ratio_count" % labels["layer"])
        assert imbalance - 1e-9 <= mean <= 2
    assert 1 <= prometheus.value('switchyard_imbalance_ratio{layer="0"}') <= 2


def test_workers_tell_what_the_front_does(prometheus, load):
    """Workers count the rows that the front gave them; the metric of a worker's rank tells whose they are."""
    for rank in range(2):
        given = prometheus.value(f'sum(switchyard_rank_rows_total{{rank="{rank}"}})')
        done = prometheus.value(f"switchyard_worker_rows_total * on (instance) (switchyard_worker_rank == bool {rank}) > 0")
        assert given == done
    assert prometheus.value("sum(switchyard_worker_home_rows_total)") == prometheus.value("sum(switchyard_rows_total)")
    assert prometheus.value('min(switchyard_worker_steps_total{outcome="ok"})') == prometheus.value(
        "sum(switchyard_steps_total)")
    assert prometheus.value("min(switchyard_worker_group_epoch)") == prometheus.value("switchyard_group_epoch")
    assert prometheus.value("min(switchyard_worker_weight_bytes)") > 0


def test_the_dashboard_asks_for_what_there_is(prometheus, load):
    with open(DASHBOARD, encoding="utf-8") as file:
        panels = json.load(file)["panels"]
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"].replace("$instance", ".*").replace("$model", ".*")
            series = prometheus.query(expression.replace("$__rate_interval", "1m"))
            assert series or "nv_gpu_" in expression, expression


def test_the_process_and_its_build(prometheus, load):
    front = 'and on (instance) switchyard_ranks_serving == 2'
    assert prometheus.value(f"process_resident_memory_bytes {front}") > 1 << 20
    assert 0 <= prometheus.value(f"time() - (process_start_time_seconds {front})") < 600
    assert prometheus.value("count(switchyard_build_info == 1)") == 3
