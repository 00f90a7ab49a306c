#!/usr/bin/env bash
# A long mixed load while an upstream is restarted again and again: does a client notice, does anything grow?
#
#   bench/soak.sh [MINUTES [QPS]]        default: 30 minutes, 1000 queries a second over each transport
#
# Forebay stands before two NSD servers, asked over UDP for most names and over TLS for a subtree. dnsperf asks over UDP,
# TCP, DoT and DoH at once, for names that are cached and for names that never are. The first NSD is killed every 20 s
# and comes back a second later. At the end: queries, failures (lost, or another code than NOERROR), and memory and
# descriptors in the first and the last sixth of the time (five minutes of thirty). Exits with 1 if a client noticed
# or something grew by more than 5 %. Needs a release build, nsd, dnsperf and openssl. Stops only what it started.
set -euo pipefail
minutes=${1:-30} qps=${2:-1000}
. "$(dirname "$0")/lib.sh"
need nsd dnsperf openssl

certificate
{
  printf '$ORIGIN bench.test.\n$TTL 3600\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n'
  printf '*.u 1 A 192.0.2.77\n*.s 1 A 192.0.2.78\n'
  seq 0 9999 | awk '{ printf "n%d 3 A 10.0.%d.%d\n", $1, int($1 / 256), $1 % 256 }'
} > "$work/zone"
for kind in udp tcp dot doh; do
  seq 0 199999 | awk -v k="$kind" 'BEGIN { srand(7) }
    { r = rand(); if (r < 0.6) printf "n%d.bench.test A\n", int(rand() * 10000)
      else if (r < 0.8) printf "%s%d.u.bench.test A\n", k, $1; else printf "%s%d.s.bench.test A\n", k, $1 }' > "$work/names.$kind"
done

upstream() { # index: starts NSD on its ports
  local dir=$work/nsd$1
  mkdir -p "$dir"
  nsd_config "$dir" bench.test $((15500 + $1)) $((15510 + $1))
  nsd -d -c "$dir/nsd.conf" > "$dir/log" 2>&1 &
  pids+=($!)
}
upstream 0; first=${pids[-1]}
upstream 1
cat > "$work/forebay.toml" << CONF
[admin]
listen = "127.0.0.1:15520"
[dns]
listen = ["127.0.0.1:15521", "tls://127.0.0.1:15522", "https://127.0.0.1:15523"]
upstreams = ["udp://127.0.0.1:15500", "udp://127.0.0.1:15501"]
cache = { size = "8MiB" }
[dns.tls]
certificate = "$work/cert.pem"
key = "$work/key.pem"
[[dns.routes]]
suffix = "s.bench.test"
upstreams = ["tls://127.0.0.1:15510?name=localhost&ca=$work/cert.pem", "tls://127.0.0.1:15511?name=localhost&ca=$work/cert.pem"]
CONF
"$forebay" run -c "$work/forebay.toml" > "$work/forebay.log" 2>&1 &
server=$!
pids+=("$server")
sleep 2
kill -0 "$server" || { cat "$work/forebay.log" >&2; exit 1; }

seconds=$((minutes * 60))
declare -A port=([udp]=15521 [tcp]=15521 [dot]=15522 [doh]=15523)
loads=()
for kind in udp tcp dot doh; do
  dnsperf -m "$kind" -s 127.0.0.1 -p "${port[$kind]}" -d "$work/names.$kind" -c 8 -q 200 -Q "$qps" -l "$seconds" \
    > "$work/dnsperf.$kind" 2>&1 &
  loads+=($!)
  pids+=($!)
done
(
  # The cache is full and every pool has grown after a while: only then is growth of interest.
  sleep 20
  while kill -0 "$server" 2> /dev/null; do
    rss=$(awk '/VmRSS/ { print $2 }' "/proc/$server/status" 2> /dev/null) || break
    fds=$(find "/proc/$server/fd" -mindepth 1 2> /dev/null | wc -l)
    echo "$rss $fds"
    sleep 5
  done > "$work/samples"
) &
pids+=($!)
restarts=0
for ((elapsed = 0; elapsed + 25 < seconds; elapsed += 20)); do
  sleep 19
  kill -KILL "$first"
  wait "$first" 2> /dev/null || true
  sleep 1
  upstream 0; first=${pids[-1]}
  restarts=$((restarts + 1))
done
wait "${loads[@]}"

bad=0
printf '%-5s %12s %12s %8s %10s %14s\n' over sent answered lost 'not NOERROR' 'average ms'
for kind in udp tcp dot doh; do
  awk -v kind="$kind" '/Queries sent/ { sent = $3 } /Queries completed/ { done = $3 } /Queries lost/ { lost = $3 }
    /Response codes/ { for (i = 3; i < NF; i++) if ($i == "NOERROR") ok = $(i + 1) } /Average Latency/ { ms = $4 * 1000 }
    END { printf "%-5s %12d %12d %8d %10d %14.2f\n", kind, sent, done, lost, done - ok, ms; exit lost + done - ok > 0 || done == 0 }' \
    "$work/dnsperf.$kind" || bad=1
done
printf '%d restarts of one of two upstreams in %d s\n' "$restarts" "$seconds"
awk '{ rss[NR] = $1; fds[NR] = $2 } END {
  n = int(NR / 6); if (n < 1) n = 1
  for (i = 1; i <= n; i++) { r0 += rss[i]; f0 += fds[i]; r1 += rss[NR - n + i]; f1 += fds[NR - n + i] }
  printf "memory %.1f MiB, then %.1f MiB (%+.1f %%); descriptors %.0f, then %.0f (%+.1f %%); %d samples\n",
    r0 / n / 1024, r1 / n / 1024, 100 * (r1 / r0 - 1), f0 / n, f1 / n, 100 * (f1 / f0 - 1), NR
  exit r1 > 1.05 * r0 || f1 > 1.05 * f0 }' "$work/samples" || bad=1
grep -E 'WARN|ERROR' "$work/forebay.log" | sed -E 's/^[^ ]+ +//' | cut -c1-120 | sort | uniq -c | sort -rn | head -5 || true
exit $bad
