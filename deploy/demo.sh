#!/usr/bin/env bash
# Serves the bundled model on this machine and checks its answers:
#   one front, two workers with half of the experts each; every MoE layer is called over gRPC with activations that were
#   recorded from the real model, and the answer is compared with the recorded output.
# Installs what is missing and builds first. The exit code is 0 when every layer agrees and the server ends well.
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=jargon-moe
FOLDER=tests/testdata/$MODEL
GOLDEN=$FOLDER/golden.safetensors
RTOL=1e-4
ATOL=1e-5
START_SECONDS=60

work=$(mktemp -d)
server=  # the server's process id, while it runs

# shellcheck disable=SC2317  # the trap calls it
clean_up() {
  [[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

heading() { printf '\n== %s\n' "$*"; }

# Bazel keeps its outputs under HOME, which is not set on some runners.
bazel() {
  if [[ -n ${HOME:-} ]]; then
    command bazel "$@"
  else
    command bazel --output_user_root="${TMPDIR:-/tmp}/bazel-$(id -u)" "$@"
  fi
}

build() {
  heading "Building (minutes the first time, seconds afterwards)"
  bazel build -c opt //server:switchyard_server //worker:switchyard_worker //client:switchyard
}

# Starts the server in the background and waits for its READY line. The ports are 0, so that it takes free ones.
start_server() {
  local command=(bazel-bin/server/switchyard_server --model="$MODEL=$FOLDER" --local_workers=2 --device=cpu
    --compute_dtype=fp32 --port=0 --http_port=0)
  heading "Starting the server"
  echo "${command[*]}"
  "${command[@]}" >"$work/ready" 2>"$work/log" &
  server=$!
  local tenths
  for ((tenths = 0; tenths < START_SECONDS * 10; ++tenths)); do
    ! grep -q '^READY ' "$work/ready" || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  if ! grep '^READY ' "$work/ready"; then
    echo "The server is not ready. Its log:" >&2
    cat "$work/log" >&2
    exit 1
  fi
  grpc=$(sed -n 's/^READY .*grpc=\([^ ]*\).*/\1/p' "$work/ready")
  http=$(sed -n 's/^READY .*http=\([^ ]*\).*/\1/p' "$work/ready")
}

switchyard() {
  local subcommand=$1
  shift
  bazel-bin/client/switchyard "$subcommand" --target="$grpc" "$@"
}

# The names of the model's layers, one a line.
layers() {
  switchyard models --format=json | python3 -c '
import json, sys
for model in json.load(sys.stdin)["models"]:
    for layer in model["layers"]:
        print(layer["name"])'
}

# Calls one layer and prints its line of the table. Fails when the answer does not agree.
check_layer() {
  local key=model.layers.$1.mlp
  switchyard infer --model=$MODEL --layer="$1" --input="$GOLDEN:$key.input" --expect="$GOLDEN:$key.output" \
    --rtol=$RTOL --atol=$ATOL --format=json >"$work/answer" || [[ -s $work/answer ]] || return 1
  python3 -c '
import json, sys
answer = json.load(sys.stdin)
error = answer["max_abs_error"]  # null when it is infinite
print("%5s %6d %15s %9.2f ms %21d   %s" % (
    answer["layer"], answer["rows"], "infinite" if error is None else "%.2e" % error, answer["latency_ms"],
    answer["rows_crossed"], "ok" if answer["within_tolerance"] else "FAIL"))
sys.exit(not answer["within_tolerance"])' <"$work/answer"
}

check_layers() {
  local layer
  heading "Calling every layer with recorded activations (agreement: rtol $RTOL, atol $ATOL)"
  echo "layer   rows   largest error      latency   rows that crossed    result"
  for layer in $(layers); do
    check_layer "$layer" || result=1
  done
}

# The sum of a metric over its labels.
metric() { awk -v name="$1" '$1 ~ "^" name "([{]|$)" { sum += $2 } END { printf "%.0f", sum }' "$work/metrics"; }

show_metric() { printf '%-34s %10s   %s\n' "$1" "$(metric "$1")" "$2"; }

show_metrics() {
  heading "Some metrics from http://$http/metrics"
  curl -fsS "http://$http/metrics" >"$work/metrics"
  show_metric switchyard_rows_total "rows that went through steps"
  show_metric switchyard_steps_total "steps the two workers ran together"
  show_metric switchyard_expert_rows_total "(row, expert) pairs computed: rows times top-k"
  show_metric switchyard_rows_crossed_total "copies of rows sent to the other worker"
  show_metric switchyard_exchanged_bytes_total "bytes of rows and partial sums between workers"
  show_metric switchyard_ranks_serving "workers in the group"
  show_metric switchyard_recoveries_total "times the group had to re-form"
}

stop_server() {
  heading "Stopping the server (SIGTERM: it answers what is in flight, then ends its workers)"
  local code=0
  kill -TERM "$server"
  wait "$server" || code=$?
  server=
  echo "it exited with $code"
  ((code == 0)) || result=1
}

deploy/install.sh
build
start_server
result=0
check_layers
heading "switchyard status"
switchyard status
show_metrics
stop_server
echo
if ((result == 0)); then
  echo "Every layer agrees with the recorded outputs."
else
  echo "Something failed: see above. The server's log:" >&2
  cat "$work/log" >&2
fi
exit "$result"
