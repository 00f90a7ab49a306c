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
PATH=$PATH:/usr/sbin
root=$(cd "$(dirname "$0")/.." && pwd)
forebay=${FOREBAY:-${CARGO_TARGET_DIR:-$root/target}/release/forebay}
missing=()
for program in nsd openssl curl taskset python3 bc; do command -v "$program" > /dev/null || missing+=("$program"); done
[ -x "$forebay" ] || missing+=("$forebay (cargo build --release)")
if [ ${#missing[@]} -gt 0 ]; then printf 'missing: %s\n' "${missing[@]}" >&2; exit 1; fi
work=$(mktemp -d)
pids=()
cleanup() { for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done; wait 2> /dev/null || true; rm -rf "$work"; }
trap cleanup EXIT
start() { local core=$1; shift; taskset -c "$core" "$@" > "$work/log.${#pids[@]}" 2>&1 & pids+=($!); }

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
  -keyout "$work/key.pem" -out "$work/cert.pem" 2> /dev/null
printf '$ORIGIN bench.example.\n$TTL 3600\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n* A 192.0.2.77\n' > "$work/zone"
cat > "$work/nsd.conf" << CONF
server:
  ip-address: 127.0.0.1@15600
  ip-address: 127.0.0.1@15601
  tls-port: 15601
  tls-service-key: "$work/key.pem"
  tls-service-pem: "$work/cert.pem"
  username: ""
  chroot: ""
  zonesdir: "$work"
  database: ""
  pidfile: "$work/nsd.pid"
  xfrdfile: "$work/xfrd"
  zonelistfile: "$work/zones"
  server-count: 1
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: bench.example
  zonefile: zone
CONF
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
median() { cut -d' ' -f"$2" "$1" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
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
