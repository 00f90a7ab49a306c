#!/usr/bin/env bash
# Forebay's proxy beside HAProxy, nginx and Pingora, in one run: CPU per request and per GB, memory per idle client.
#
#   bench/peers/proxy.sh [ROUNDS [SECONDS [LOAD…]]]        default: 5 rounds of 5 seconds, all loads
#
#   kept            HTTP/1.1, 64 kept connections to the proxy
#   connect         HTTP/1.1, a client connection for each request
#   opaque          bytes passed on unread, 64 kept connections
#   opaque-connect  the same, a client connection for each request
#   bulk            1 GB passed on unread; HAProxy splices
#   idle-opaque     5,000 idle clients who have had an answer: memory of the process for each
#   idle-http       the same
#
# Each proxy has one thread pinned to core 0 and runs alone there; the backend (nginx, a small answer from memory) and
# wrk share core 1. Rounds are interleaved; medians are printed, with ratios to HAProxy and Pingora. CPU is what the
# kernel charged the proxy's process (user and system). Memory is its resident set: before, and with idle clients.
#
# Needs a release build of forebay, and haproxy, nginx with its stream module, wrk, curl, python3 (Debian: haproxy nginx
# libnginx-mod-stream wrk curl python3). Pingora is measured if it is there: (cd bench/peers/pingora && cargo build
# --release), for which cmake is needed; PINGORA says where it is else. Stops only what it started.
set -euo pipefail
rounds=${1:-5} seconds=${2:-5}
shift $(($# > 2 ? 2 : $#))
loads=${*:-kept connect opaque opaque-connect bulk idle-opaque idle-http}
. "$(dirname "$0")/../lib.sh"
need haproxy nginx wrk curl python3 taskset bc
[ "$(nproc)" -ge 2 ] || { echo "two cores are needed" >&2; exit 1; }
stream=$(ls /usr/lib/nginx/modules/ngx_stream_module.so /usr/lib64/nginx/modules/ngx_stream_module.so 2> /dev/null | head -1 || true)
[ -n "$stream" ] || { echo "missing: ngx_stream_module.so (libnginx-mod-stream)" >&2; exit 1; }
pingora=${PINGORA:-$root/bench/peers/pingora/target/release/pingora-peer}
[ -x "$pingora" ] || { echo "without Pingora: $pingora is missing (needs cmake to build)" >&2; pingora=; }
ulimit -n "$(ulimit -Hn)"
idle=5000
answer=$(printf 'x%.0s' $(seq 128))

nginx_config() { # FILE: the head of a configuration of one process
  printf 'daemon off;\nmaster_process off;\nworker_processes 1;\npid %s.pid;\nerror_log %s.log crit;\n' "$1" "$1"
  printf 'worker_rlimit_nofile %s;\nevents { worker_connections 19000; }\n' "$(ulimit -n)"
}
quiet="access_log off; client_body_temp_path $work/b; proxy_temp_path $work/p; fastcgi_temp_path $work/f;
  uwsgi_temp_path $work/u; scgi_temp_path $work/s; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_header_timeout 3600s;"
{
  nginx_config "$work/backend"
  echo "http { $quiet sendfile on; server { listen 127.0.0.1:16000 backlog=4096; root $work/files;
    location = / { default_type text/plain; return 200 $answer; } } }"
} > "$work/backend.conf"
{
  echo "load_module $stream;"
  nginx_config "$work/front"
  echo "http { $quiet upstream back { server 127.0.0.1:16000; keepalive 256; keepalive_requests 1000000000; }
    server { listen 127.0.0.1:16021 backlog=4096;
      location / { proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering on; } } }
  stream { server { listen 127.0.0.1:16022 backlog=4096; proxy_pass 127.0.0.1:16000; proxy_timeout 3600s; } }"
} > "$work/front.conf"
cat > "$work/haproxy.cfg" << CONF
global
  nbthread 1
  maxconn 7500
defaults
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend http
  mode http
  bind 127.0.0.1:16011 backlog 4096
  default_backend http
backend http
  mode http
  server one 127.0.0.1:16000
frontend always
  mode http
  bind 127.0.0.1:16013 backlog 4096
  default_backend always
backend always
  mode http
  http-reuse always
  server one 127.0.0.1:16000
frontend opaque
  mode tcp
  bind 127.0.0.1:16012 backlog 4096
  default_backend opaque
backend opaque
  mode tcp
  option splice-auto
  server one 127.0.0.1:16000
CONF
mkdir "$work/files"
truncate -s 1000000000 "$work/files/bulk"

declare -A port=([haproxy.http]=16011 [haproxy-always.http]=16013 [haproxy.opaque]=16012 [nginx.http]=16021 [nginx.opaque]=16022
  [pingora.http]=16031 [forebay.http]=16041 [forebay.opaque]=16042)
declare -A pid
proxies=(haproxy nginx forebay)
[ -z "$pingora" ] || proxies=(haproxy nginx pingora forebay)
# By default HAProxy opens a connection to the backend for the first request of each client; `haproxy-always` is the same
# process with `http-reuse always`.
contenders() { case $1 in connect) echo haproxy haproxy-always "${proxies[@]:1}" ;; *) echo "${proxies[@]}" ;; esac; }

# up PROXY MODE: starts it; ${pid[$PROXY.$MODE]} is its process.
up() {
  case $1 in
    haproxy) start 0 haproxy -db -f "$work/haproxy.cfg" ;;
    nginx) start 0 nginx -c "$work/front.conf" ;;
    pingora) start 0 "$pingora" 127.0.0.1:16031 127.0.0.1:16000 ;;
    forebay) start 0 "$forebay" proxy --admin none --log error --workers 1 --mode "$2" \
      --listen "127.0.0.1:${port[forebay.$2]}" --backend 127.0.0.1:16000 ;;
  esac
  pid[$1.$2]=$!
  for _ in $(seq 100); do
    if (exec 3<> "/dev/tcp/127.0.0.1/${port[$1.$2]}") 2> /dev/null; then return; fi
    sleep 0.05
  done
  echo "$1 does not listen: $(tail -3 "$work/log.$((${#pids[@]} - 1))")" >&2
  exit 1
}
# What does not end within a second of being asked to (Pingora waits five minutes for its clients) is killed.
down() {
  kill "$1" 2> /dev/null || true
  for _ in $(seq 20); do kill -0 "$1" 2> /dev/null || break; sleep 0.05; done
  kill -9 "$1" 2> /dev/null || true
  wait "$1" 2> /dev/null || true
  pids=("${pids[@]/#$1/}")
}
ticks=$(getconf CLK_TCK)
cpu() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
resident() { awk '/VmRSS/ { print $2 }' "/proc/$1/status"; }

modes_of() { case $1 in idle-*) ;; kept | connect) echo http ;; *) echo opaque ;; esac; }

start 1 nginx -c "$work/backend.conf"
sleep 0.5
for proxy in "${proxies[@]}"; do
  for mode in $(for load in $loads; do modes_of "$load"; done | sort -u); do
    case $proxy.$mode in
      haproxy.* | nginx.*) [ -n "${pid[$proxy.http]:-}" ] || up "$proxy" http
        pid[$proxy.opaque]=${pid[$proxy.http]} pid[$proxy-always.http]=${pid[$proxy.http]} ;;
      pingora.opaque) ;;
      *) up "$proxy" "$mode" ;;
    esac
  done
done

# wrk_load PROXY MODE ARGS…: prints RPS, microseconds of CPU per request, average and p99 latency in us, errors.
wrk_load() {
  local name=$1.$2 before after out
  shift 2
  before=$(cpu "${pid[$name]}")
  out=$(taskset -c 1 wrk -t1 -c64 -d"${seconds}s" --latency "$@" "http://127.0.0.1:${port[$name]}/" 2>&1)
  after=$(cpu "${pid[$name]}")
  awk -v used=$((after - before)) -v ticks="$ticks" '
    function us(text) { return text ~ /us$/ ? text + 0 : text ~ /ms$/ ? text * 1000 : text * 1000000 }
    / requests in / { done = $1 } /Requests\/sec/ { rps = $2 } /^ +Latency +[0-9]/ { average = us($2) }
    /^ +99%/ { p99 = us($2) } /Socket errors/ { gsub(",", ""); bad += $4 + $6 + $8 + $10 } /Non-2xx/ { bad += $NF }
    END { printf "%.0f %.2f %.0f %.0f %d\n", rps, used / ticks * 1e6 / (done ? done : 1), average, p99, bad }' <<< "$out"
}
# bulk_load PROXY: prints GB/s, milliseconds of CPU per GB.
bulk_load() {
  local name=$1.opaque before after took
  before=$(cpu "${pid[$name]}")
  took=$(taskset -c 1 curl -s -o /dev/null -w '%{time_total} %{size_download}' "http://127.0.0.1:${port[$name]}/bulk")
  after=$(cpu "${pid[$name]}")
  awk -v used=$((after - before)) -v ticks="$ticks" '{ printf "%.2f %.0f\n", $2 / 1e9 / $1, used / ticks * 1e3 / ($2 / 1e9) }' <<< "$took"
}
# idle_load PROXY MODE: prints bytes of resident memory per idle client, who has had one answer.
idle_load() {
  up "$1" "$2"
  local process=${pid[$1.$2]} before after
  wrk_load "$1" "$2" -d1s > /dev/null
  sleep 1
  before=$(resident "$process")
  after=$(python3 - "${port[$1.$2]}" "$idle" "$process" << 'PY'
import re, socket, sys, time
port, count, process = map(int, sys.argv[1:])
open_sockets = []
for _ in range(count):
    s = socket.create_connection(("127.0.0.1", port))
    s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert s.recv(4096).startswith(b"HTTP/1.1 200"), "no answer"
    open_sockets.append(s)
time.sleep(2)
print(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{process}/status").read())[1])
PY
)
  down "$process"
  echo $(((after - before) * 1024 / idle))
}

args_of() { case $1 in connect | opaque-connect) printf '%s\n' -H 'Connection: close' ;; esac; }
has() { [ -n "${pid[$1.$2]:-}" ]; }

for load in $loads; do
  case $load in idle-*) continue ;; esac
  mode=$(modes_of "$load")
  mapfile -t args < <(args_of "$load")
  for round in $(seq 0 "$rounds"); do
    for proxy in $(contenders "$load"); do
      has "$proxy" "$mode" || continue
      case $load in
        bulk) result=$(bulk_load "$proxy") ;;
        *) result=$(wrk_load "$proxy" "$mode" "${args[@]}") ;;
      esac
      # The first round warms up.
      [ "$round" = 0 ] || echo "$result" >> "$work/result.$load.$proxy"
    done
  done
done

ratio() { [ -s "$2" ] && awk -v a="$1" -v b="$(median "$2" "$3")" 'BEGIN { printf "%.2f", b ? a / b : 0 }' || echo -; }
heading() { printf '%-15s %-14s %9s %13s %10s %8s %7s %14s %14s\n' load proxy RPS 'CPU us/req' 'average us' 'p99 us' errors 'CPU / haproxy' 'CPU / pingora'; }
for load in $loads; do
  case $load in idle-* | bulk) continue ;; esac
  heading
  for proxy in $(contenders "$load"); do
    file=$work/result.$load.$proxy
    [ -s "$file" ] || continue
    used=$(median "$file" 2)
    printf '%-15s %-14s %9s %13s %10s %8s %7s %14s %14s\n' "$load" "$proxy" "$(median "$file" 1)" "$used" \
      "$(median "$file" 3)" "$(median "$file" 4)" "$(cut -d' ' -f5 "$file" | paste -sd+ | bc)" \
      "$(ratio "$used" "$work/result.$load.haproxy" 2)" "$(ratio "$used" "$work/result.$load.pingora" 2)"
  done
done
case " $loads " in *' bulk '*)
  printf '\n%-15s %-14s %9s %13s %14s\n' load proxy GB/s 'CPU ms/GB' 'CPU / haproxy'
  for proxy in "${proxies[@]}"; do
    file=$work/result.bulk.$proxy
    [ -s "$file" ] || continue
    used=$(median "$file" 2)
    printf '%-15s %-14s %9s %13s %14s\n' bulk "$proxy" "$(median "$file" 1)" "$used" "$(ratio "$used" "$work/result.bulk.haproxy" 2)"
  done ;;
esac
for load in $loads; do
  case $load in idle-*) mode=${load#idle-} ;; *) continue ;; esac
  for name in "${!pid[@]}"; do down "${pid[$name]}"; done
  printf '\n%-15s %-14s %18s %14s\n' load proxy 'bytes per client' 'to haproxy'
  for proxy in "${proxies[@]}"; do
    if [ "$proxy.$mode" = pingora.opaque ]; then continue; fi
    idle_load "$proxy" "$mode" > "$work/result.$load.$proxy"
    used=$(cat "$work/result.$load.$proxy")
    printf '%-15s %-14s %18s %14s\n' "$load" "$proxy" "$used" "$(ratio "$used" "$work/result.$load.haproxy" 1)"
  done
done
