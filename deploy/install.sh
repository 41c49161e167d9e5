#!/usr/bin/env bash
# Installs the Debian 12 packages that building and testing Switchyard need. Does nothing when all of them are
# installed.
set -euo pipefail
exec </dev/null

PACKAGES=(
  # Build: Bazel 4.2.3 with the rules it resolves even for C++, compiler, code generators.
  bazel-bootstrap bazel-rules-java bazel-rules-proto bazel-skylib
  g++ pkg-config protobuf-compiler protobuf-compiler-grpc
  # RPC and its own dependencies, named because the link line names them.
  libgrpc++-dev libprotobuf-dev libabsl-dev libre2-dev libc-ares-dev libssl-dev zlib1g-dev
  # Logging, metrics, flags, JSON.
  libspdlog-dev libfmt-dev prometheus-cpp-dev libboost-dev libcli11-dev nlohmann-json3-dev
  # Digests of weights.
  libxxhash-dev
  # Matrix products and the exchange between CPU ranks.
  libdnnl-dev libopenblas-dev libgloo-dev
  # Tests, benchmarks, style.
  libgtest-dev libgmock-dev libbenchmark-dev clang clang-format clang-tidy shellcheck openssl
  # Used by the scripts, and to pack deploy:bundle.
  git curl python3 python3-venv patchelf xz-utils
)

fail() {
  echo "deploy/install.sh: $*" >&2
  exit 1
}

# Prints the packages that are not installed, one a line.
missing_packages() {
  local package
  for package in "${PACKAGES[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
  done
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "installing packages needs root, and there is no sudo: run this script as root once"
  fi
}

# Installs Prometheus and promtool, which a test runs. Only the programs, because their package would start a service.
install_prometheus() {
  command -v prometheus >/dev/null && command -v promtool >/dev/null && return
  local folder
  folder=$(mktemp -d)
  if (cd "$folder" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .) >"$folder/log" 2>&1; then
    echo "Installing prometheus and promtool into /usr/local/bin"
    as_root install -m 755 "$folder/usr/bin/prometheus" "$folder/usr/bin/promtool" /usr/local/bin/
  else
    echo "deploy/install.sh: no prometheus, so that its tests are skipped: $(tail -n 1 "$folder/log")" >&2
  fi
  rm -rf "$folder"
}

for tool in dpkg-query apt-get; do
  command -v "$tool" >/dev/null ||
    fail "'$tool' is not here: this script is for Debian 12. Elsewhere, install the counterparts of: ${PACKAGES[*]}"
done

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} > 0)); then
  echo "Installing ${#missing[@]} packages: ${missing[*]}"
  as_root apt-get update -qq || echo "apt-get update failed; going on with the package lists there are" >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
    fail "apt-get could not install the packages above; Switchyard is built on Debian 12 (bookworm), this is \
$(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME:-unknown}")"
fi
install_prometheus
