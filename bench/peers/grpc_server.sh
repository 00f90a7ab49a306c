#!/usr/bin/env bash
# Forebay's gRPC server beside a stock server of tonic with the same settings, in one run: CPU per call, calls/s.
#
#   bench/peers/grpc_server.sh [ROUNDS [SECONDS [LOAD…]]]        default: 5 rounds of 5 seconds, both loads
#
#   1x64     one connection, 64 calls at once
#   10x10    ten connections, 10 calls at once on each
#
# Unary calls of greet.GreeterService/SayHello with a name of five letters. Each server has one thread pinned to core 0 and
# runs alone there; h2load has core 1. Rounds are interleaved; medians are printed, with ratios. CPU is what the kernel
# charged the server's process (user and system). Both servers have the settings of profile main, the same allocator and
# the same generated service.
#
# Needs a release build of forebay and of the peer (cargo build --release -p forebay-cli -p forebay-grpc --bins --examples),
# and h2load (Debian: nghttp2-client). Stops only what it started.
set -euo pipefail
rounds=${1:-5} seconds=${2:-5}
shift $(($# > 2 ? 2 : $#))
loads=${*:-1x64 10x10}
. "$(dirname "$0")/../lib.sh"
peer=$target/examples/tonic_server
need h2load taskset "$peer"
[ "$(nproc)" -ge 2 ] || { echo "two cores are needed" >&2; exit 1; }

# A message: no compression, seven bytes, field 1 with five letters.
printf '\0\0\0\0\7\n\5World' > "$work/hello"

start 0 "$forebay" grpc serve --listen 127.0.0.1:17051 --workers 1 --admin none --log error
forebay_pid=$!
start 0 "$peer" 127.0.0.1:17052 main
tonic_pid=$!
declare -A pid=([forebay]=$forebay_pid [tonic]=$tonic_pid) port=([forebay]=17051 [tonic]=17052)
for server in forebay tonic; do
  for _ in $(seq 100); do
    if (exec 3<> "/dev/tcp/127.0.0.1/${port[$server]}") 2> /dev/null; then continue 2; fi
    sleep 0.05
  done
  echo "$server does not listen: $(tail -n 3 "$work"/log.*)" >&2
  exit 1
done

ticks=$(getconf CLK_TCK)
cpu() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
# load SERVER CONNECTIONS STREAMS: prints calls/s, microseconds of CPU per call, mean latency in us, calls that failed.
load() {
  local before after out
  before=$(cpu "${pid[$1]}")
  out=$(taskset -c 1 h2load -t1 -c"$2" -m"$3" -D"$seconds" -d "$work/hello" -H 'content-type: application/grpc' \
    -H 'te: trailers' "http://127.0.0.1:${port[$1]}/greet.GreeterService/SayHello")
  after=$(cpu "${pid[$1]}")
  awk -v used=$((after - before)) -v ticks="$ticks" '
    function us(text) { return text ~ /us$/ ? text + 0 : text ~ /ms$/ ? text * 1000 : text * 1000000 }
    /^finished in/ { rate = $4 } /^requests:/ { done = $6; bad = $10 + $12 + $14 } /^time for request:/ { mean = us($6) }
    END { printf "%.0f %.2f %.0f %d\n", rate, used / ticks * 1e6 / (done ? done : 1), mean, bad }' <<< "$out"
}

for load in $loads; do
  for round in $(seq 0 "$rounds"); do
    for server in forebay tonic; do
      result=$(load "$server" "${load%x*}" "${load#*x}")
      # The first round warms up.
      [ "$round" = 0 ] || echo "$result" >> "$work/result.$load.$server"
    done
  done
done

printf '%-8s %-8s %9s %12s %9s %7s %12s %14s\n' load server calls/s 'CPU us/call' 'mean us' failed 'CPU / tonic' 'rate / tonic'
for load in $loads; do
  for server in forebay tonic; do
    file=$work/result.$load.$server tonic=$work/result.$load.tonic
    rate=$(median "$file" 1) used=$(median "$file" 2)
    printf '%-8s %-8s %9s %12s %9s %7s %12s %14s\n' "$load" "$server" "$rate" "$used" "$(median "$file" 3)" \
      "$(cut -d' ' -f4 "$file" | awk '{ sum += $1 } END { print sum + 0 }')" \
      "$(awk -v a="$used" -v b="$(median "$tonic" 2)" 'BEGIN { printf "%.2f", b ? a / b : 0 }')" \
      "$(awk -v a="$rate" -v b="$(median "$tonic" 1)" 'BEGIN { printf "%.2f", b ? a / b : 0 }')"
  done
done
