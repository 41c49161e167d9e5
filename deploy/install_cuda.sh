#!/usr/bin/env bash
# Makes a CUDA_HOME from NVIDIA's Python packages, for machines without CUDA: the compiler, the headers, the runtime,
# cuBLAS and NCCL, enough to build everything of Switchyard. Installs no driver and needs no root. Downloads 0.7 GB,
# fills 1.1 GB.
#
#   deploy/install_cuda.sh DIR
#   CUDA_HOME=DIR bazel build -c opt //...
#
# Needs python3 with pip. NVIDIA's licences, which the packages bring, are in DIR/licenses afterwards.
set -euo pipefail
exec </dev/null

fail() {
  echo "deploy/install_cuda.sh: $*" >&2
  exit 1
}

[[ $# == 1 && $1 != -* ]] || fail "usage: deploy/install_cuda.sh DIR"
[[ $(uname -sm) == "Linux x86_64" ]] || fail "these packages are for Linux on x86_64, this is $(uname -sm)"
[[ ! -e $1 || -z $(ls -A "$1") ]] || fail "$1 is not empty"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip (Debian: apt-get install python3-pip)"
mkdir -p "$1"
home=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

download() {
  cat >"$work/requirements.txt" <<'REQUIREMENTS'
nvidia-cublas==13.1.0.3 --hash=sha256:ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171
nvidia-cuda-cccl==13.0.85 --hash=sha256:e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-nccl-cu13==2.28.9 --hash=sha256:e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0
REQUIREMENTS
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --dest "$work/wheels" --requirement "$work/requirements.txt"
}

# Each package has its part of one CUDA folder under nvidia/cu13; NCCL has nvidia/nccl.
unpack() {
  local wheel part
  mkdir "$work/unpacked" "$home/licenses"
  for wheel in "$work"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/unpacked"
    rm "$wheel"
  done
  for part in cu13 nccl; do
    cp -R --link "$work/unpacked/nvidia/$part/." "$home" 2>/dev/null || cp -R "$work/unpacked/nvidia/$part/." "$home"
  done
  for part in "$work"/unpacked/*.dist-info; do
    cp "$part/licenses/License.txt" "$home/licenses/$(basename "$part" .dist-info).txt"
  done
}

# Sets the modes and links that a wheel cannot hold.
complete() {
  local library
  find "$home/bin" "$home/nvvm/bin" -type f -exec chmod +x {} +
  for library in "$home"/lib/lib*.so.*; do
    [[ -e ${library%.so.*}.so ]] || ln -s "$(basename "$library")" "${library%.so.*}.so"
  done
  ln -s lib "$home/lib64"
  mkdir -p "$home/targets/x86_64-linux"
  ln -s ../../include ../../lib "$home/targets/x86_64-linux"
}

download
unpack
complete
"$home/bin/nvcc" --version | tail -n 2
echo "Build with: CUDA_HOME=$home"
