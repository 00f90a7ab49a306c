#!/usr/bin/env bash
# The same load over each upstream transport: what does encryption cost, and are connections reused?
#
#   bench/transports.sh [ROUNDS [SECONDS]]        default: 3 rounds of 5 seconds
#
# 256 queries in flight, all misses, to NSD over UDP, TCP and TLS (server-count 1). One worker pinned to core 0, NSD and
# the load on core 1; rounds are interleaved, medians printed, with the ratio of QPS to TCP. Connections, reuse and TLS
# handshakes are those of all rounds. Needs `cargo build --release`, nsd, openssl, curl, python3 and bc. Stops only what it started.
set -euo pipefail
rounds=${1:-3} seconds=${2:-5}
. "$(dirname "$0")/lib.sh"
need nsd openssl curl taskset python3 bc

certificate
printf '$ORIGIN bench.example.\n$TTL 3600\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n* A 192.0.2.77\n' > "$work/zone"
nsd_config "$work" bench.example 15600 15601
start 1 nsd -d -c "$work/nsd.conf"
kinds=(udp tcp tls)
declare -A upstream=([udp]=udp://127.0.0.1:15600 [tcp]=tcp://127.0.0.1:15600
  [tls]="tls://127.0.0.1:15601?name=localhost&ca=$work/cert.pem")
declare -A port=([udp]=15610 [tcp]=15611 [tls]=15612) admin=([udp]=15620 [tcp]=15621 [tls]=15622)
declare -A pid
for kind in "${kinds[@]}"; do
  printf '[admin]\nlisten = "127.0.0.1:%s"\n[log]\nlevel = "error"\n[dns]\nlisten = ["127.0.0.1:%s"]\nworkers = 1\ncache = { size = 0 }\nupstreams = ["%s"]\n' \
    "${admin[$kind]}" "${port[$kind]}" "${upstream[$kind]}" > "$work/$kind.toml"
  start 0 "$forebay" run -c "$work/$kind.toml"
  pid[$kind]=$!
done
sleep 2
for _ in $(seq "$rounds"); do
  for kind in "${kinds[@]}"; do
    "$forebay" bench dns --target "127.0.0.1:${port[$kind]}" --clients 64 --in-flight 256 --names unique --zone bench.example \
      --duration "${seconds}s" --pin 1 --server-pid "${pid[$kind]}" --json > "$work/report"
    python3 - "$work/report" >> "$work/result.$kind" << 'PY'
import json, sys
r = json.load(open(sys.argv[1]))
print(round(r["qps"]), round(r["server"]["cpu_us_per_query"], 2), r["lost"])
PY
  done
done
metric() { curl -s "http://127.0.0.1:${admin[$1]}/metrics" | awk -v re="$2" '$0 ~ re { n += $NF } END { print n + 0 }'; }
base=$(median "$work/result.tcp" 1)
printf '%-5s %9s %9s %13s %12s %12s %10s %9s %6s\n' over QPS 'QPS / tcp' 'CPU us/query' connections 'reused %' 'full TLS' resumed lost
for kind in "${kinds[@]}"; do
  qps=$(median "$work/result.$kind" 1)
  dials=$(metric "$kind" '^forebay_pool_dials_total.*result="ok"')
  reused=$(metric "$kind" '^forebay_pool_acquires_total.*outcome="(reused|waited)"')
  all=$(metric "$kind" '^forebay_pool_acquires_total.*outcome="(reused|waited|fresh|temporary)"')
  printf '%-5s %9s %9s %13s %12s %12s %10s %9s %6s\n' "$kind" "$qps" "$(awk -v a="$qps" -v b="$base" 'BEGIN { printf "%.2f", a / b }')" \
    "$(median "$work/result.$kind" 2)" "$dials" "$(awk -v a="$reused" -v b="$all" 'BEGIN { printf "%.4f", 100 * a / (b ? b : 1) }')" \
    "$(metric "$kind" 'handshakes_total.*side="upstream".*result="full"')" "$(metric "$kind" 'handshakes_total.*side="upstream".*result="resumed"')" \
    "$(cut -d' ' -f3 "$work/result.$kind" | paste -sd+ | bc)"
done
