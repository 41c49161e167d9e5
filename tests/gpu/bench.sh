#!/usr/bin/env bash
# Measures on this machine's GPUs: from the unpacked bundle or, after `bazel build -c opt //deploy:bundle`, from the
# source tree. Needs CUDA 13 and NCCL; torch and transformers for the peers, a second GPU for what has two ranks, and
# matplotlib for the plot. It leaves out what cannot be measured here, and says so. Leave the machine idle meanwhile.
#
#   tests/gpu/bench.sh                       everything, about fourteen minutes
#   tests/gpu/bench.sh --only=engine,peers   some parts: engine, peers, exchange, ranks, service, wire
#   tests/gpu/bench.sh --shapes=qwen3        of mixtral, qwen3, deepseek, tutel (engine and peers)
#   tests/gpu/bench.sh --rows=1,1024         of the rows of the table (engine and peers)
#   tests/gpu/bench.sh --min_time_ms=30      per measurement, 100 without it
#   tests/gpu/bench.sh --output=FOLDER       where results go, gpu-benchmarks without it
#   tests/gpu/bench.sh --document=gpu.md     puts the tables between the marks of that file, too
#
# FOLDER gets PART.jsonl (what was measured) and PART.log of each part, gpu.md (tables) and gpu.png (plot); wire, which
# needs no GPU, has its tables in wire.log. Parts that were measured there before and are not now keep their figures.
set -euo pipefail
exec </dev/null
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

parts=engine,peers,exchange,ranks,service,wire
output=gpu-benchmarks
document=
selection=()
for argument in "$@"; do
  case $argument in
    --only=*) parts=${argument#*=} ;;
    --shapes=* | --rows=* | --min_time_ms=*) selection+=("$argument") ;;
    --output=*) output=${argument#*=} ;;
    --document=*) document=${argument#*=} ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$here/bench.sh"; exit 0 ;;
    *) echo "bench.sh: unknown argument '$argument'; see --help" >&2; exit 2 ;;
  esac
done

for part in ${parts//,/ }; do
  [[ ,engine,peers,exchange,ranks,service,wire, == *,$part,* ]] || {
    echo "bench.sh: --only: unknown part '$part'; see --help" >&2
    exit 2
  }
done

# shellcheck source=tests/gpu/environment.sh
source "$here/environment.sh"
mkdir -p "$output"
if ! command -v nvidia-smi >/dev/null || ! num_gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU '); then
  echo "bench.sh: there is no GPU on this machine" >&2
  exit 2
fi
failed=()

wants() { [[ ,$parts, == *,$1,* ]]; }

skip() { printf '\n==== %s\nskipped: %s\n' "$1" "$2"; }

# Whether the part is wanted and there are two GPUs for it.
wants_two_gpus() {
  wants "$1" || return 1
  ((num_gpus < 2)) || return 0
  skip "$1" "needs 2 GPUs, this machine has $num_gpus"
  return 1
}

has_torch() { python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; }

# measure PART SECONDS COMMAND…: shows what it prints and keeps it; a failure does not stop the other parts.
measure() {
  local part=$1 limit=$2 began=$SECONDS
  shift 2
  printf '\n==== %s\n' "$part"
  rm -f "$output/$part.jsonl"
  if ! timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$output/$part.log"; then
    failed+=("$part")
    echo "$part failed"
  fi
  echo "$part: $((SECONDS - began)) s"
}

describe_machine() {
  python3 - "$output/machine.jsonl" <<'END'
import json, platform, subprocess, sys
query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
gpus = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
cpus = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
line = {"source": "machine", "gpus": gpus, "cpu": cpus[0] if cpus else platform.machine(), "cores": len(cpus)}
open(sys.argv[1], "w").write(json.dumps(line) + "\n")
END
}

describe_machine
if wants engine; then
  measure engine 900 "$root/tests/cuda_engine_benchmark" --out="$output/engine.jsonl" ${selection[@]+"${selection[@]}"}
fi
if wants peers && ! has_torch; then
  skip peers "python3 has no torch"
elif wants peers; then
  measure peers 900 python3 "$here/peers.py" --out="$output/peers.jsonl" ${selection[@]+"${selection[@]}"}
fi
if wants_two_gpus exchange; then
  measure exchange 300 "$root/tests/device_exchange_benchmark" --ranks=2 --max_ctas=0 --out="$output/exchange.jsonl"
fi
if wants_two_gpus ranks; then
  measure ranks 300 "$root/tests/two_gpu_benchmark" --out="$output/ranks.jsonl"
fi
if wants service; then
  workers=1
  ((num_gpus < 2)) || workers=1,2
  measure service 300 python3 "$here/bench_service.py" --root="$root" --workers="$workers" --exchange=nccl,direct --out="$output/service.jsonl"
fi

if wants wire; then
  measure wire 600 "$root/tests/wire_benchmark"
fi

printf '\n==== report\n'
python3 "$here/report.py" "$output" >"$output/gpu.md" && cat "$output/gpu.md" || failed+=(report)
python3 "$here/plot.py" "$output" "$output/gpu.png" || failed+=(plot)
if [[ -n $document ]]; then
  python3 "$here/report.py" "$output" --document="$document" || failed+=(document)
fi
echo
echo "Results are in $output"
[[ ${#failed[@]} == 0 ]] || { echo "failed: ${failed[*]}"; exit 1; }
