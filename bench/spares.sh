#!/usr/bin/env bash
# What spares save: the time to the first byte of a new client, on a backend that is 1 ms away.
#
#   bench/spares.sh [ROUNDS [SECONDS [CLIENTS_PER_SECOND]]]        default: 3 rounds of 5 seconds, 200 clients a second
#
# Each client opens a connection, sends 64 bytes and waits for their echo: directly, through `passthrough`, through `opaque`
# with the pool off, and through `opaque` with spares. The backend is in a network namespace of its own, behind `delay`,
# 0.5 ms each way; clients and proxies are here. Medians of interleaved rounds. Needs root (namespaces, TUN),
# `cargo build --release` and `cargo build --release -p forebay-bench --example backend` (or BACKEND=FILE).
set -euo pipefail
rounds=${1:-3} seconds=${2:-5} rate=${3:-200}
. "$(dirname "$0")/lib.sh"
need ip python3 curl
backend=${BACKEND:-$target/examples/backend}
[ -x "$backend" ] || { echo "missing: $backend (cargo build --release -p forebay-bench --example backend)" >&2; exit 1; }

namespace=forebay-$$
ip netns add "$namespace"
trap 'ip netns del "$namespace"; cleanup' EXIT
ip -n "$namespace" link set lo up
start 1 "$root/bench/delay" "$namespace" 500
for _ in $(seq 50); do ip -n "$namespace" addr show back0 2> /dev/null | grep -q 10.153.0.2 && break; sleep 0.1; done
start 1 ip netns exec "$namespace" "$backend" echo 10.153.0.2:7000
declare -A address=([direct]=10.153.0.2:7000 [passthrough]=127.0.0.1:17010 [off]=127.0.0.1:17011 [spares]=127.0.0.1:17012)
declare -A options=([passthrough]='--mode passthrough' [off]='--mode opaque --pool off' [spares]='--mode opaque')
declare -A admin=([passthrough]=17020 [off]=17021 [spares]=17022)
cases=(direct passthrough off spares)
for name in passthrough off spares; do
  # shellcheck disable=SC2086
  start 0 "$forebay" proxy --listen "${address[$name]}" --backend 10.153.0.2:7000 --workers 1 --log error \
    --admin "127.0.0.1:${admin[$name]}" ${options[$name]}
done
sleep 2
bench() {
  "$forebay" bench tcp "${address[$1]}" --pattern connect --rate "$rate" --clients 64 --duration "$2" --pin 0 --json
}
for name in "${cases[@]}"; do bench "$name" 1s > /dev/null; done
for _ in $(seq "$rounds"); do
  for name in "${cases[@]}"; do
    bench "$name" "${seconds}s" > "$work/report"
    python3 - "$work/report" >> "$work/result.$name" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
lat = r["latency"]
print(*(round(lat[key]) for key in ("p50_us", "p99_us", "mean_us")), r["failed"], r["answered"])
PY
  done
done
of() { median "$work/result.$1" "$2"; }
printf '%-12s %8s %8s %8s %7s %9s\n' 'to backend' 'p50 us' 'p99 us' 'mean us' failed answered
for name in "${cases[@]}"; do printf '%-12s %8s %8s %8s %7s %9s\n' "$name" $(for i in 1 2 3 4 5; do of "$name" $i; done); done
figure() { curl -s "http://127.0.0.1:${admin[spares]}/metrics" | awk -v name="forebay_proxy_$1" '$1 ~ "^" name { n += $2 } END { print n + 0 }'; }
echo "clients that found a spare: $(figure spares_used), that waited for a dial: $(figure spares_missed)"
awk -v direct="$(of direct 1)" -v without="$(of off 1)" -v with="$(of spares 1)" 'BEGIN {
  printf "of the %d us without spares, spares save %d us: %.0f %%; a round trip to the backend is about %d us\n",
    without, without - with, 100 * (without - with) / without, direct / 2 }'
