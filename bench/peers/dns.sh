#!/usr/bin/env bash
# Forebay beside dnsdist and Unbound, in one run: cache hits and misses, CPU per query.
#
#   bench/peers/dns.sh [ROUNDS [SECONDS]]        default: 3 rounds of 5 seconds
#
# Each server has one thread pinned to core 0. dnsperf (64 clients, 256 in flight) and NSD, the upstream, are pinned to
# core 1. Rounds are interleaved; the medians are printed, with the ratio to dnsdist. Needs a release build of forebay,
# and nsd, dnsdist, unbound and dnsperf (Debian's packages); what is missing is said. Stops only what it started.
set -euo pipefail
rounds=${1:-3} seconds=${2:-5}
. "$(dirname "$0")/../lib.sh"
need nsd dnsdist unbound dnsperf taskset bc
[ "$(nproc)" -ge 2 ] || { echo "two cores are needed" >&2; exit 1; }

nsd_config "$work" bench.test 15301
{
  printf '$ORIGIN bench.test.\n$TTL 3600\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n*.u A 192.0.2.77\n'
  seq 0 9999 | awk '{ printf "n%d A 10.0.%d.%d\n", $1, int($1 / 256), $1 % 256 }'
} > "$work/zone"
seq 0 19999 | awk 'BEGIN { srand(1) } { printf "n%d.bench.test A\n", int(rand() * 10000) }' > "$work/hit"
for n in $(seq 1 $((rounds * 3 + 1))); do
  seq 0 1499999 | awk -v n="$n" '{ printf "q%d-%d.u.bench.test A\n", n, $1 }' > "$work/miss.$n"
done
cat > "$work/dnsdist.conf" <<CONF
setLocal('127.0.0.1:15302')
setACL('127.0.0.0/8')
newServer({address='127.0.0.1:15301', checkInterval=60})
getPool(''):setCache(newPacketCache(1000000))
CONF
cat > "$work/unbound.conf" <<CONF
server:
  interface: 127.0.0.1
  port: 15303
  num-threads: 1
  username: ""
  chroot: ""
  directory: "$work"
  pidfile: "$work/unbound.pid"
  use-syslog: no
  do-daemonize: no
  do-not-query-localhost: no
  module-config: "iterator"
  outgoing-range: 4096
  num-queries-per-thread: 2048
  msg-cache-size: 64m
  rrset-cache-size: 128m
  local-zone: "test." nodefault
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@15301
CONF

start 1 nsd -d -c "$work/nsd.conf"
start 0 dnsdist --supervised --disable-syslog -C "$work/dnsdist.conf"; dnsdist=$!
start 0 unbound -d -c "$work/unbound.conf"; unbound=$!
start 0 "$forebay" dns --admin none --log warn --listen 127.0.0.1:15304 --upstream udp://127.0.0.1:15301 --workers 1; forebay_pid=$!
declare -A port=([dnsdist]=15302 [unbound]=15303 [forebay]=15304) pid=([dnsdist]=$dnsdist [unbound]=$unbound [forebay]=$forebay_pid)
sleep 2
ticks=$(getconf CLK_TCK)
cpu() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }

# load server file: prints QPS, microseconds of CPU per query, average latency in microseconds, queries lost.
load() {
  local before after out
  before=$(cpu "${pid[$1]}")
  out=$(taskset -c 1 dnsperf -s 127.0.0.1 -p "${port[$1]}" -d "$2" -c 64 -q 256 -l "$seconds" 2>/dev/null)
  after=$(cpu "${pid[$1]}")
  awk -v used=$((after - before)) -v ticks="$ticks" '
    /Queries completed/ { done = $3 } /Queries lost/ { lost = $3 } /Queries per second/ { qps = $4 }
    /Average Latency/ { latency = $4 * 1e6 }
    END { printf "%.0f %.2f %.0f %d\n", qps, used / ticks * 1e6 / done, latency, lost }' <<< "$out"
}

for server in dnsdist unbound forebay; do load "$server" "$work/hit" > /dev/null; done
n=0
for _ in $(seq "$rounds"); do
  for server in dnsdist unbound forebay; do
    load "$server" "$work/hit" >> "$work/result.hit.$server"
    n=$((n + 1))
    load "$server" "$work/miss.$n" >> "$work/result.miss.$server"
  done
done
printf '%-6s %-8s %10s %14s %12s %6s %14s\n' load server QPS 'CPU us/query' 'latency us' lost 'CPU / dnsdist'
for kind in hit miss; do
  base=$(median "$work/result.$kind.dnsdist" 2)
  for server in dnsdist unbound forebay; do
    file=$work/result.$kind.$server
    used=$(median "$file" 2)
    printf '%-6s %-8s %10s %14s %12s %6s %14s\n' "$kind" "$server" "$(median "$file" 1)" "$used" "$(median "$file" 3)" \
      "$(cut -d' ' -f4 "$file" | paste -sd+ | bc)" "$(awk -v a="$used" -v b="$base" 'BEGIN { printf "%.2f", a / b }')"
  done
done
