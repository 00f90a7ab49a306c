#!/usr/bin/env bash
# The seed's own case: 256 in flight, all misses, an upstream that answers after 0.78 ms.
#
#   bench/seed-case.sh [ROUNDS [SECONDS]]        default: 3 rounds of 5 seconds
#
# Beside each other: the default pool; the same upstream listed three times; one socket per query (--pool off); and an
# exclusive pool of ten that waits (the seed's V2). One worker pinned to core 0; load and upstream on core 1. Needs
# `cargo build --release` and `cargo build --release -p forebay-bench --example responder`.
set -euo pipefail
rounds=${1:-3} seconds=${2:-5}
. "$(dirname "$0")/lib.sh"
need curl taskset python3

responder=$target/examples/responder
[ -x "$responder" ] || { echo "missing: $responder (cargo build --release -p forebay-bench --example responder)" >&2; exit 1; }
start 1 "$responder" 127.0.0.1:15401 780us
one='upstreams = ["127.0.0.1:15401"]'
declare -A settings=(
  [default]="$one"
  [thrice]='upstreams = ["127.0.0.1:15401", "127.0.0.1:15401", "127.0.0.1:15401"]
strategy = "round_robin"'
  [off]="$one
pool = \"off\""
  [ten]="$one
[dns.udp]
connections_min = 0
connections_max = 10
capacity = 1"
)
declare -A port=([default]=15410 [thrice]=15411 [off]=15412 [ten]=15413) admin=([default]=15420 [thrice]=15421 [off]=15422 [ten]=15423)
declare -A pid
cases=(${CASES:-default thrice off ten})
for name in "${cases[@]}"; do
  printf '[admin]\nlisten = "127.0.0.1:%s"\n[log]\nlevel = "error"\n[dns]\nlisten = ["127.0.0.1:%s"]\nworkers = 1\ncache = { size = 0 }\n%s\n' \
    "${admin[$name]}" "${port[$name]}" "${settings[$name]}" > "$work/$name.toml"
  start 0 "$forebay" run -c "$work/$name.toml"
  pid[$name]=$!
done
sleep 2
sockets() { curl -s "http://127.0.0.1:${admin[$1]}/metrics" | awk '/^forebay_pool_dials_total\{.*result="(ok|success)"/ { n += $NF } END { print n + 0 }'; }
for _ in $(seq "$rounds"); do
  for name in "${cases[@]}"; do
    before=$(sockets "$name")
    "$forebay" bench dns --target "127.0.0.1:${port[$name]}" --clients 64 --in-flight 256 --names unique --verify \
      --duration "${seconds}s" --pin 1 --server-pid "${pid[$name]}" --json > "$work/report"
    after=$(sockets "$name")
    python3 - "$work/report" $((after - before)) >> "$work/result.$name" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
made = int(sys.argv[2])
lat = r["latency"]
print(round(r["qps"]), round(lat["mean_us"]), round(lat["p99_us"]), round(r["server"]["cpu_us_per_query"], 2), made, f'{1000 * made / max(1, r["answered"]):.2f}', r["lost"], r["wrong"])
PY
  done
done
printf '%-8s %9s %9s %9s %13s %9s %18s %6s %6s\n' pool QPS 'mean us' 'p99 us' 'CPU us/query' sockets 'sockets/1000 q' lost wrong
for name in "${cases[@]}"; do
  file=$work/result.$name
  printf '%-8s %9s %9s %9s %13s %9s %18s %6s %6s\n' "$name" $(for i in 1 2 3 4 5 6 7 8; do median "$file" $i; done)
done
