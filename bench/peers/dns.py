#!/usr/bin/env python3
"""Forebay's DNS forwarder beside dnsdist, Unbound, smartdns and a raw UDP echo, in one run.

  bench/peers/dns.py [--rounds 5] [--seconds 5] [--json FILE] [--profile] [LOAD…]        default: all loads

  hit           10,000 names, all cached, over UDP
  miss          names that nobody has asked for, an upstream over UDP (NSD)
  zipf          200,000 names of exponent 0.9, three types, from an empty cache
  tcp, dot      hits over 64 kept connections, queries pipelined
  dot-upstream  misses, an upstream over TLS
  pace          hits at half of the rate that the slowest of dnsdist, Unbound and forebay can do (open loop): p50 and p99
  lone          one query at a time: p50
  memory        what a million small answers take in the cache
  workers       hits, one worker and two, on both cores, which the load shares: queries per second of CPU

Each server has one thread, pinned to core 0, and its defaults but for what the load needs; dnsperf (64 clients, 256 in
flight; pace and lone: forebay's own generator, which has percentiles) and NSD are pinned to core 1. Rounds are interleaved
and in changing order; the first is not counted; medians are printed. CPU is what the kernel charged the server's process. Needs release builds
(cargo build --release -p forebay-cli -p forebay-bench --bins --examples) and Debian's nsd, dnsdist, unbound, smartdns,
dnsperf and openssl: what is missing is said. With --profile (needs Linux's perf, and root), forebay alone runs under
each load: system calls per query, and where the time goes. Stops only what it started.
"""
import argparse
import bisect
import concurrent.futures
import itertools
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
FOREBAY = os.environ.get("FOREBAY", str(TARGET / "forebay"))
ECHO = str(TARGET / "examples" / "raw_echo")
LOADS = ["hit", "miss", "zipf", "tcp", "dot", "dot-upstream", "pace", "lone", "memory", "workers"]
PEERS = {
    "hit": ["echo", "dnsdist", "unbound", "smartdns", "forebay"],
    "miss": ["dnsdist", "unbound", "smartdns", "forebay"],
    "zipf": ["dnsdist", "unbound", "smartdns", "forebay"],
    "tcp": ["dnsdist", "unbound", "forebay"],
    "dot": ["dnsdist", "unbound", "forebay"],
    "dot-upstream": ["dnsdist", "unbound", "forebay"],
    "pace": ["echo", "dnsdist", "unbound", "forebay"],
    "lone": ["echo", "dnsdist", "unbound", "forebay"],
    "memory": ["dnsdist", "unbound", "forebay"],
    "workers": ["forebay", "forebay-2"],
}
HIT_NAMES = 10_000
ZIPF_NAMES, ZIPF_EXPONENT, ZIPF_TYPES = 200_000, 0.9, ["A", "AAAA", "MX"]
MEMORY_NAMES = 1_000_000
IN_FLIGHT, CLIENTS = 256, 64
TICK = os.sysconf("SC_CLK_TCK")
UPSTREAM, UPSTREAM_TLS = 15301, 15351
#: Of each server: over UDP and TCP, over TLS, and one whose upstream is asked over TLS.
PORTS = {"echo": (15310, 0, 0), "dnsdist": (15302, 15312, 15322), "unbound": (15303, 15313, 15323),
         "forebay": (15304, 15314, 15324), "forebay-2": (15306, 15316, 15326), "smartdns": (15305, 0, 0)}
#: Of a profile: what is counted.
CALLS = ["recvmmsg", "sendmmsg", "sendto", "recvfrom", "sendmsg", "recvmsg", "read", "write", "writev", "epoll_wait", "epoll_ctl",
         "futex"]


class Bench:
    def __init__(self, options):
        self.options = options
        self.work = Path(tempfile.mkdtemp(prefix="forebay-bench."))
        self.running = []
        self.results = {}
        self.fresh = itertools.count()
        self.on_both = False

    # -- what runs ----------------------------------------------------------------------------------------------------

    def start(self, core, *command):
        log = open(self.work / f"log.{len(self.running)}", "wb")
        process = subprocess.Popen(["taskset", "-c", str(core), *map(str, command)], stdout=log, stderr=log, cwd=self.work)
        process.log = log.name
        self.running.append(process)
        return process

    def stop(self, process):
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.running.remove(process)

    def end(self):
        for process in list(self.running):
            self.stop(process)
        shutil.rmtree(self.work, ignore_errors=True)

    def prepare(self):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                        "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", self.work / "key.pem",
                        "-out", self.work / "cert.pem"], check=True, stderr=subprocess.DEVNULL)
        with open(self.work / "zone", "w") as zone:
            zone.write("$ORIGIN bench.test.\n$TTL 3600\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n"
                       "mail A 127.0.0.1\n*.u A 192.0.2.77\n*.z A 192.0.2.78\n*.z AAAA 2001:db8::78\n*.z MX 10 mail\n")
            zone.writelines(f"n{n} A 10.0.{n // 256}.{n % 256}\n" for n in range(HIT_NAMES))
        (self.work / "nsd.conf").write_text(f"""server:
  ip-address: 127.0.0.1@{UPSTREAM}
  ip-address: 127.0.0.1@{UPSTREAM_TLS}
  tls-port: {UPSTREAM_TLS}
  tls-service-key: "{self.work}/key.pem"
  tls-service-pem: "{self.work}/cert.pem"
  username: ""
  chroot: ""
  zonesdir: "{self.work}"
  database: ""
  pidfile: "{self.work}/nsd.pid"
  xfrdfile: "{self.work}/xfrd"
  zonelistfile: "{self.work}/zones"
  server-count: 1
  tcp-count: 2000
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: bench.test
  zonefile: zone
""")
        chooser = random.Random(1)
        with open(self.work / "hit", "w") as file:
            file.writelines(f"n{chooser.randrange(HIT_NAMES)}.bench.test A\n" for _ in range(2 * HIT_NAMES))
        self.start(1, "nsd", "-d", "-c", self.work / "nsd.conf")

    def server(self, name, over_tls=False):
        """Starts one; with an upstream over TLS, on its third port."""
        plain, tls, other = PORTS[name]
        port = other if over_tls else plain
        cert, key = self.work / "cert.pem", self.work / "key.pem"
        if name == "echo":
            return self.start(0, ECHO, f"127.0.0.1:{port}")
        if name == "dnsdist":
            upstream = (f"address='127.0.0.1:{UPSTREAM_TLS}', tls='openssl', subjectName='localhost', caStore='{cert}'"
                        if over_tls else f"address='127.0.0.1:{UPSTREAM}'")
            lines = [f"setLocal('127.0.0.1:{port}')", "setACL('127.0.0.0/8')", f"newServer({{{upstream}, checkInterval=60}})"]
            if not over_tls:
                lines.append(f"addTLSLocal('127.0.0.1:{tls}', '{cert}', '{key}')")
            lines.append("getPool(''):setCache(newPacketCache(2000000))")
            return self.start(0, "dnsdist", "--supervised", "--disable-syslog", "-C", self.write(f"dnsdist.{port}", lines))
        if name == "unbound":
            upstream = f"127.0.0.1@{UPSTREAM_TLS}#localhost" if over_tls else f"127.0.0.1@{UPSTREAM}"
            lines = ["server:", f"  interface: 127.0.0.1@{port}", "  num-threads: 1", '  username: ""', '  chroot: ""',
                     f'  directory: "{self.work}"', f'  pidfile: "{self.work}/unbound.{port}"', "  use-syslog: no",
                     "  do-daemonize: no", "  do-not-query-localhost: no", '  module-config: "iterator"',
                     "  outgoing-range: 4096", "  num-queries-per-thread: 2048", "  msg-cache-size: 512m",
                     "  rrset-cache-size: 512m", '  local-zone: "test." nodefault', f'  tls-cert-bundle: "{cert}"',
                     "  incoming-num-tcp: 128"]
            if not over_tls:
                lines += [f"  interface: 127.0.0.1@{tls}", f"  tls-port: {tls}", f'  tls-service-key: "{key}"',
                          f'  tls-service-pem: "{cert}"']
            lines += ["remote-control:", "  control-enable: no", "forward-zone:", '  name: "."', f"  forward-addr: {upstream}"]
            if over_tls:
                lines.append("  forward-tls-upstream: yes")
            return self.start(0, "unbound", "-d", "-c", self.write(f"unbound.{port}.conf", lines))
        if name == "smartdns":
            lines = [f"bind 127.0.0.1:{port}", f"server 127.0.0.1:{UPSTREAM}", "cache-size 2000000", "speed-check-mode none",
                     "response-mode fastest-response", "log-level error", f"log-file {self.work}/smartdns.log", "cache-persist no",
                     "force-qtype-SOA -1", "dualstack-ip-selection no", "audit-enable no"]
            return self.start(0, "smartdns", "-f", "-x", "-c", self.write("smartdns.conf", lines), "-p", "-")
        upstream = (f"tls://127.0.0.1:{UPSTREAM_TLS}?name=localhost&ca={cert}" if over_tls else f"udp://127.0.0.1:{UPSTREAM}")
        listen = [f"127.0.0.1:{port}"] + ([] if over_tls else [f"tls://127.0.0.1:{tls}"])
        workers = 2 if name == "forebay-2" else 1
        lines = ["[admin]", 'listen = "none"', "[log]", 'level = "error"', "[dns]", f"listen = {json.dumps(listen)}",
                 f"workers = {workers}",
                 f"upstreams = [{json.dumps(upstream)}]", 'cache = { size = "1GiB" }']
        if not over_tls:
            lines += ["[dns.tls]", f'certificate = "{cert}"', f'key = "{key}"']
        cores = "0,1" if self.on_both else "0"
        return self.start(cores, FOREBAY, "run", "-c", self.write(f"forebay.{port}.toml", lines))

    def ready(self, name, over_tls=False):
        """Starts a server and waits until it answers."""
        process = self.server(name, over_tls)
        query = bytes.fromhex("4242 0100 0001 0000 0000 0000") + b"\x02n1\x05bench\x04test\x00" + bytes.fromhex("0001 0001")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(0.2)
            asker.connect(("127.0.0.1", PORTS[name][2 if over_tls else 0]))
            for _ in range(50):
                try:
                    asker.send(query)
                    if asker.recv(512)[:2] == query[:2]:
                        return process
                except OSError:
                    time.sleep(0.1)
        raise SystemExit(f"{name} does not answer: {Path(process.log).read_text(errors='replace')[-500:]}")

    def write(self, name, lines):
        path = self.work / name
        path.write_text("\n".join(lines) + "\n")
        return path

    # -- what is asked ------------------------------------------------------------------------------------------------

    def misses(self, count):
        """A file of names that nobody has asked for."""
        path, mark = self.work / "miss", next(self.fresh)
        with open(path, "w") as file:
            file.writelines(f"q{mark}-{n}.u.bench.test A\n" for n in range(count))
        return path

    def zipf(self, count):
        """A file of names under a label that nobody has asked for: every server begins with an empty cache."""
        if not hasattr(self, "sums"):
            self.sums = list(itertools.accumulate(1 / (n + 1) ** ZIPF_EXPONENT for n in range(ZIPF_NAMES)))
            chooser = random.Random(2)
            self.drawn = [(bisect.bisect(self.sums, chooser.random() * self.sums[-1]), chooser.choice(ZIPF_TYPES))
                          for _ in range(count)]
        path, mark = self.work / "zipf", next(self.fresh)
        with open(path, "w") as file:
            file.writelines(f"n{n}.r{mark}.z.bench.test {kind}\n" for n, kind in self.drawn)
        return path

    # -- what is measured ---------------------------------------------------------------------------------------------

    @staticmethod
    def cpu(process):
        with open(f"/proc/{process.pid}/stat") as stat:
            fields = stat.read().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    @staticmethod
    def memory(process):
        with open(f"/proc/{process.pid}/smaps_rollup") as file:
            return int(re.search(r"^Rss:\s+(\d+)", file.read(), re.M).group(1)) * 1024

    def dnsperf(self, process, port, file, *more, limit=None):
        limit = limit or ["-l", str(self.options.seconds)]
        before = self.cpu(process)
        cores = "0,1" if self.on_both else "1"
        out = subprocess.run(["taskset", "-c", cores, "dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(file),
                              "-c", str(CLIENTS), "-q", str(IN_FLIGHT), *limit, *more], capture_output=True, text=True).stdout
        used = self.cpu(process) - before
        def number(name):
            found = re.search(rf"{name}:\s+([\d.]+)", out)
            return float(found.group(1)) if found else 0.0
        done = number("Queries completed")
        codes = re.search(r"Response codes:\s+(.*)", out)
        good = re.search(r"NOERROR (\d+)", codes.group(1)) if codes else None
        return {"qps": number("Queries per second"), "cpu_us": used * 1e6 / max(done, 1),
                "average_us": number(r"Average Latency \(s\)") * 1e6, "lost": number("Queries lost"),
                "bad": done - float(good.group(1)) if good else done}

    def own(self, process, port, *more):
        out = subprocess.run([FOREBAY, "bench", "dns", "--target", f"127.0.0.1:{port}", "--pin", "1", "--json", "--names",
                              f"file:{self.work}/hit", "--duration", f"{self.options.seconds}s", "--server-pid", str(process.pid),
                              *more], capture_output=True, text=True, check=True).stdout
        report = json.loads(out)
        latency = report["latency"]
        return {"qps": report["qps"], "cpu_us": report["server"]["cpu_us_per_query"], "p50_us": latency["p50_us"],
                "p99_us": latency["p99_us"], "lost": report["lost"]}

    def rounds(self, load, once, counted=None):
        """Runs `once(server)` for each peer of a load, in an order that changes, and keeps what it returns."""
        peers = PEERS[load]
        for number in range((counted or self.options.rounds) + 1):
            turn = number % len(peers)
            for name in peers[turn:] + peers[:turn]:
                result = once(name)
                if number > 0:
                    self.results.setdefault(load, {}).setdefault(name, []).append(result)

    def run(self, load):
        seconds = self.options.seconds
        over_tls = load == "dot-upstream"
        if load == "memory":
            return self.run_memory()
        self.on_both = load == "workers"
        peers = ["forebay"] if self.options.profile else PEERS[load]
        servers = {name: self.ready(name, over_tls) for name in peers}
        plain = {name: PORTS[name][2 if over_tls else 0] for name in servers}
        if load in ("hit", "tcp", "dot", "pace", "lone", "workers"):
            for name, process in servers.items():
                self.dnsperf(process, plain[name], self.work / "hit", limit=["-n", "1"])
        if load == "pace":
            most = {name: self.dnsperf(servers[name], plain[name], self.work / "hit")["qps"]
                    for name in servers if name != "echo"}
            rate = str(round(min(most.values()) / 2))
        def once(name):
            process, port = servers[name], plain[name]
            if load in ("miss", "dot-upstream"):
                return self.dnsperf(process, port, self.misses(200_000 * seconds))
            if load == "zipf":
                return self.dnsperf(process, port, self.zipf(250_000 * seconds))
            if load == "tcp":
                return self.dnsperf(process, port, self.work / "hit", "-m", "tcp")
            if load == "dot":
                return self.dnsperf(process, PORTS[name][1], self.work / "hit", "-m", "dot")
            if load == "pace":
                return self.own(process, port, "--rate", rate, "--clients", str(CLIENTS))
            if load == "lone":
                return self.own(process, port, "--in-flight", "1", "--clients", "1")
            return self.dnsperf(process, port, self.work / "hit")
        if self.options.profile:
            self.profile(load, servers["forebay"], once)
        else:
            self.rounds(load, once)
        for process in servers.values():
            self.stop(process)

    def profile(self, load, process, once):
        """What forebay does for a query of this load."""
        once("forebay")
        def during(*command):
            with concurrent.futures.ThreadPoolExecutor() as pool:
                result = pool.submit(once, "forebay")
                # Misses are written to a file first.
                before = self.cpu(process)
                while self.cpu(process) < before + 0.2:
                    time.sleep(0.05)
                out = subprocess.run(["perf", *command, "--", "sleep", str(self.options.seconds / 2)], capture_output=True, text=True)
                return result.result(), out.stderr
        events = ",".join(f"syscalls:sys_enter_{call}" for call in CALLS)
        result, text = during("stat", "-x,", "-e", events, "-p", str(process.pid))
        queries = result["qps"] * self.options.seconds / 2
        calls = {}
        for line in text.splitlines():
            fields = line.split(",")
            if len(fields) > 2 and fields[0].isdigit() and int(fields[0]) > queries / 1000:
                calls[fields[2].removeprefix("syscalls:sys_enter_")] = int(fields[0]) / queries
        data = self.work / "perf.data"
        result, _ = during("record", "-e", "cpu-clock", "-F", "4999", "-g", "-o", str(data), "-p", str(process.pid))
        def report(*more):
            out = subprocess.run(["perf", "report", "-i", data, "--stdio", "-g", "none", *more], capture_output=True, text=True).stdout
            return [line.split() for line in out.splitlines() if line.strip() and not line.startswith("#")]
        kernel = {}
        for fields in report("--children", "--sort", "symbol"):
            for name in fields:
                if name.startswith("__x64_sys_") and float(fields[0].rstrip("%")) >= 0.5:
                    kernel[name.removeprefix("__x64_sys_")] = fields[0]
        places = {fields[1]: fields[0] for fields in report("--no-children", "--sort", "dso") if float(fields[0].rstrip("%")) >= 0.5}
        ours = [(fields[0], " ".join(fields[2:]).removesuffix(" - -")) for fields in report("--no-children", "--sort", "symbol", "--dsos", Path(FOREBAY).name)]
        print(f"\n{load}: {result['cpu_us']:.2f} us of CPU per query")
        print("  system calls per query: " + ", ".join(f"{name} {count:.2f}" for name, count in calls.items()))
        print("  time in system calls:   " + ", ".join(f"{name} {share}" for name, share in kernel.items()))
        print("  time by place:          " + ", ".join(f"{name} {share}" for name, share in places.items()))
        print("  ours:                   " + "\n                          ".join(f"{share} {name}" for share, name in ours[:10]), flush=True)

    def run_memory(self):
        for name in PEERS["memory"]:
            process = self.ready(name)
            self.dnsperf(process, PORTS[name][0], self.work / "hit", limit=["-n", "1"])
            before = self.memory(process)
            result = self.dnsperf(process, PORTS[name][0], self.misses(MEMORY_NAMES), limit=["-n", "1"])
            result["bytes"] = (self.memory(process) - before) / MEMORY_NAMES
            # All of them are there: asked again, they are hits.
            path = self.work / "miss"
            result["again_qps"] = self.dnsperf(process, PORTS[name][0], path, limit=["-n", "1"])["qps"]
            self.results.setdefault("memory", {})[name] = [result]
            self.stop(process)

    # -- what is told -------------------------------------------------------------------------------------------------

    def medians(self, load):
        columns = [column for column in ("qps", "cpu_us", "average_us", "p50_us", "p99_us", "bytes", "again_qps")
                   if column in next(iter(self.results[load].values()))[0]]
        table = {}
        for name, rounds in self.results[load].items():
            table[name] = {column: statistics.median(one[column] for one in rounds) for column in columns}
            table[name]["lost"] = sum(one["lost"] for one in rounds)
            table[name]["bad"] = sum(one.get("bad", 0) for one in rounds)
        return table

    def show(self, load):
        table = self.medians(load)
        measure = {"pace": "p99_us", "lone": "p50_us", "memory": "bytes"}.get(load, "cpu_us")
        columns = list(next(iter(table.values())))
        print(f"\n{load:<13}" + "".join(f"{column:>12}" for column in columns) + "".join(
            f"{'/ ' + name:>11}" for name in table if name != "forebay") + f"   ({measure})")
        if load == "workers":
            both, one = table["forebay-2"], table["forebay"]
            print(f"two workers carry {2 * one['cpu_us'] / both['cpu_us']:.2f} times what one does, by CPU per query")
        for name, row in table.items():
            ratios = "".join(f"{row[measure] / (table[other][measure] or 1):>11.2f}" for other in table if other != "forebay")
            print(f"{name:<13}" + "".join(f"{row[column]:>12.2f}" if column.endswith("_us") else f"{row[column]:>12.0f}"
                                          for column in columns) + ratios, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="where to write all rounds and medians")
    parser.add_argument("--profile", action="store_true", help="what forebay does for a query, instead of a comparison")
    parser.add_argument("loads", nargs="*", metavar="LOAD")
    options = parser.parse_args()
    unknown = [load for load in options.loads if load not in LOADS]
    if unknown:
        sys.exit(f"unknown load: {', '.join(unknown)}; there are: {', '.join(LOADS)}")
    os.environ["PATH"] += ":/usr/sbin"
    missing = [name for name in ("nsd", "dnsdist", "unbound", "smartdns", "dnsperf", "openssl", "taskset") if not shutil.which(name)]
    if options.profile and not shutil.which("perf"):
        missing.append("perf")
    missing += [path for path in (FOREBAY, ECHO) if not os.access(path, os.X_OK)]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}")
    if os.cpu_count() < 2:
        sys.exit("two cores are needed")
    bench = Bench(options)
    try:
        bench.prepare()
        for load in options.loads or (LOADS[:-2] if options.profile else LOADS):
            bench.run(load)
            if load in bench.results:
                bench.show(load)
        if options.json:
            report = {load: {"medians": bench.medians(load), "rounds": bench.results[load]} for load in bench.results}
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    finally:
        bench.end()


if __name__ == "__main__":
    main()
