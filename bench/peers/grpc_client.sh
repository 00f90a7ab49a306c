#!/usr/bin/env bash
# The pooled channel beside channels of tonic, in one run: calls per second, CPU of the client per call, latency.
#
#   bench/peers/grpc_client.sh [ROUNDS [SECONDS]]        default: 5 rounds of 5 seconds
#
# One object with 256 calls in flight: a pooled channel, against 1, 2, 4 and 8 channels of tonic among which callers are dealt
# out by hand; then one call at a time. The server is tonic's own, on core 0; the client runs alone on core 1. Rounds are
# interleaved; medians are printed. CPU is what the kernel charged the client's process.
#
# Needs cargo build --release -p forebay-grpc --examples. Stops only what it started.
set -euo pipefail
rounds=${1:-5} seconds=${2:-5}
. "$(dirname "$0")/../lib.sh"
need taskset
channels=$target/examples/channels server=$target/examples/tonic_server
for program in "$channels" "$server"; do
  [ -x "$program" ] || { echo "missing: $program (cargo build --release -p forebay-grpc --examples)" >&2; exit 1; }
done
start 0 "$server" 127.0.0.1:16151
sleep 0.5
run() { taskset -c 1 "$channels" 127.0.0.1:16151 "$1" "$2" "$seconds" >> "$work/$1.$2"; }
for _ in $(seq "$rounds"); do
  for who in pooled tonic:1 tonic:2 tonic:4 tonic:8; do run "$who" 256; done
  for who in pooled tonic:1; do run "$who" 1; done
done
median() { awk -v column="$2" '{ print $column }' "$1" | sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
printf '%-10s %9s %9s %12s %8s %8s %7s\n' channel in-flight calls/s 'CPU us/call' 'p50 us' 'p99 us' failed
for file in pooled.256 tonic:1.256 tonic:2.256 tonic:4.256 tonic:8.256 pooled.1 tonic:1.1; do
  printf '%-10s %9s %9.0f %12.2f %8.0f %8.0f %7d\n' "${file%.*}" "${file##*.}" "$(median "$work/$file" 2)" \
    "$(median "$work/$file" 3)" "$(median "$work/$file" 4)" "$(median "$work/$file" 5)" \
    "$(awk '{ sum += $6 } END { print sum }' "$work/$file")"
done
