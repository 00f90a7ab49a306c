# What the scripts beside this one share; sourced, after `set -euo pipefail`.
#
# Sets $root (the project), $target and $forebay (release builds; CARGO_TARGET_DIR and FOREBAY are heeded), $work (a
# folder that goes at the end), and $pids (what was started, and is ended at the end: nothing else is).
PATH=$PATH:/usr/sbin
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}/release
forebay=${FOREBAY:-$target/forebay}
work=$(mktemp -d)
pids=()
cleanup() { for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done; wait 2> /dev/null || true; rm -rf "$work"; }
trap cleanup EXIT

# need PROGRAM…: ends, and says what is missing, unless these programs and forebay are there.
need() {
  local program missing=()
  for program; do command -v "$program" > /dev/null || missing+=("$program"); done
  [ -x "$forebay" ] || missing+=("$forebay (cargo build --release)")
  if [ ${#missing[@]} -gt 0 ]; then printf 'missing: %s\n' "${missing[@]}" >&2; exit 1; fi
}

# start CORE PROGRAM…: runs it in the background, pinned; $! is its id.
start() { local core=$1; shift; taskset -c "$core" "$@" > "$work/log.${#pids[@]}" 2>&1 & pids+=($!); }

# Makes $work/cert.pem and $work/key.pem, for localhost and 127.0.0.1.
certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
    -keyout "$work/key.pem" -out "$work/cert.pem" 2> /dev/null
}

# nsd_config FOLDER ZONE PORT [TLS_PORT]: writes FOLDER/nsd.conf for a server of one process, with the zone of
# $work/zone; with a TLS_PORT it has the certificate.
nsd_config() {
  local folder=$1 zone=$2 port=$3 tls=${4:-}
  {
    printf 'server:\n  ip-address: 127.0.0.1@%s\n' "$port"
    if [ -n "$tls" ]; then
      printf '  ip-address: 127.0.0.1@%s\n  tls-port: %s\n' "$tls" "$tls"
      printf '  tls-service-key: "%s"\n  tls-service-pem: "%s"\n' "$work/key.pem" "$work/cert.pem"
    fi
    cat << CONF
  username: ""
  chroot: ""
  zonesdir: "$work"
  database: ""
  pidfile: "$folder/nsd.pid"
  xfrdfile: "$folder/xfrd"
  zonelistfile: "$folder/zones"
  server-count: 1
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: $zone
  zonefile: zone
CONF
  } > "$folder/nsd.conf"
}

# median FILE COLUMN: of a column of a file with a run on each line.
median() { cut -d' ' -f"$2" "$1" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
