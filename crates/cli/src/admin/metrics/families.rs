//! The table of the metrics: name, kind, labels, help, and how each is read.

use super::*;

const POOL: &[&str] = &["upstream", "endpoint"];

/// Every metric that is declared here.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "forebay_build_info",
        kind: Kind::Gauge,
        labels: &["version"],
        help: "Always 1; the label says which version runs.",
        read: |_, samples| samples.put(&[env!("CARGO_PKG_VERSION")], 1),
    },
    Family {
        name: "forebay_uptime_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "How long the server has run.",
        read: |scrape, samples| samples.put(&[], format!("{:.3}", scrape.uptime.as_secs_f64())),
    },
    Family {
        name: "process_cpu_seconds_total",
        kind: Kind::Counter,
        labels: &[],
        help: "CPU time, user and system, of the process.",
        read: |_, samples| samples.put(&[], format!("{:.6}", clock::process_cpu_time().as_secs_f64())),
    },
    Family {
        name: "process_resident_memory_bytes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Memory of the process in RAM.",
        read: |_, samples| resident_bytes().into_iter().for_each(|bytes| samples.put(&[], bytes)),
    },
    Family {
        name: "process_open_fds",
        kind: Kind::Gauge,
        labels: &[],
        help: "Descriptors in use. Near process_max_fds pools stop growing.",
        read: |_, samples| process::descriptors_in_use().into_iter().for_each(|n| samples.put(&[], n)),
    },
    Family {
        name: "process_max_fds",
        kind: Kind::Gauge,
        labels: &[],
        help: "Descriptors that the process may have (RLIMIT_NOFILE).",
        read: |_, samples| {
            process::descriptor_limit().into_iter().for_each(|limit| samples.put(&[], limit.soft))
        },
    },
    Family {
        name: "forebay_pool_connections",
        kind: Kind::Gauge,
        labels: &["upstream", "endpoint", "state"],
        help: "Connections by state. All busy and many waiters: the pool is too small, or the upstream too slow.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                for (state, n) in states(pool) {
                    samples.put(&[of, at, state], n);
                }
            });
        },
    },
    Family {
        name: "forebay_pool_connections_max",
        kind: Kind::Gauge,
        labels: POOL,
        help: "The pool's size: connections in any state, at most.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| samples.put(&[of, at], pool.config.connections_max));
        },
    },
    Family {
        name: "forebay_pool_leases",
        kind: Kind::Gauge,
        labels: POOL,
        help: "Units of capacity in use: queries in flight.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.put(&[of, at], pool.in_use)),
    },
    Family {
        name: "forebay_pool_waiters",
        kind: Kind::Gauge,
        labels: POOL,
        help: "Requests waiting for a connection.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.put(&[of, at], pool.waiting)),
    },
    Family {
        name: "forebay_pool_acquires_total",
        kind: Kind::Counter,
        labels: &["upstream", "endpoint", "outcome"],
        help: "Acquires by how they ended. Many `fresh` beside `reused`: connections do not last.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                for outcome in AcquireOutcome::ALL {
                    samples.put(&[of, at, outcome.as_str()], pool.counters.acquires(*outcome));
                }
            });
        },
    },
    Family {
        name: "forebay_pool_wait_seconds",
        kind: Kind::Histogram,
        labels: POOL,
        help: "How long requests waited for a connection, of those that waited and got one.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.times(&[of, at], &pool.counters.wait)),
    },
    Family {
        name: "forebay_pool_dials_total",
        kind: Kind::Counter,
        labels: &["upstream", "endpoint", "result", "blame"],
        help: "Dials that ended: `ok`, or the cause of the failure and whose it was. `local` means this machine.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                samples.put(&[of, at, "ok", ""], pool.counters.dials_succeeded);
                for cause in Cause::ALL {
                    let labels = [of, at, cause.as_str(), cause.blame().as_str()];
                    samples.put(&labels, pool.counters.dial_failures(*cause));
                }
            });
        },
    },
    Family {
        name: "forebay_pool_dial_seconds",
        kind: Kind::Histogram,
        labels: POOL,
        help: "How long dials took that made a connection.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.times(&[of, at], &pool.counters.dial)),
    },
    Family {
        name: "forebay_pool_closes_total",
        kind: Kind::Counter,
        labels: &["upstream", "endpoint", "reason"],
        help: "Connections that ended, by why. Many `peer`: the upstream closes sooner than idle_timeout.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                for reason in CloseReason::ALL {
                    samples.put(&[of, at, reason.as_str()], pool.counters.closes(*reason));
                }
            });
        },
    },
    Family {
        name: "forebay_pool_uses",
        kind: Kind::Histogram,
        labels: POOL,
        help: "How many requests a connection had served when it ended.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.counts(&[of, at], &pool.counters.uses)),
    },
    Family {
        name: "forebay_pool_failures_total",
        kind: Kind::Counter,
        labels: POOL,
        help: "Requests that failed on a connection with the upstream to blame.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.put(&[of, at], pool.counters.failures)),
    },
    Family {
        name: "forebay_local_exhaustion_total",
        kind: Kind::Counter,
        labels: &["resource"],
        help: "Times this machine had no more of something when a connection was wanted, by what the kernel said; \
               `budget` is growth held back before the kernel had to say no. Look at this machine, not at the upstream.",
        read: |scrape, samples| {
            let mut all = Counters::default();
            scrape.pools.iter().for_each(|pool| all.merge(&pool.snapshot.counters));
            let mut kernel = 0;
            for cause in Cause::ALL.iter().filter(|cause| cause.blame() == Blame::Local) {
                let n = all.dial_failures(*cause);
                kernel += n;
                samples.put(&[cause.as_str()], n);
            }
            samples.put(&["budget"], all.local_exhaustions.saturating_sub(kernel));
        },
    },
    Family {
        name: "forebay_breaker_state",
        kind: Kind::Gauge,
        labels: POOL,
        help: "0 closed, 1 half-open (a probe decides), 2 open: the endpoint is left alone after failures in a row.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                let state = match pool.breaker {
                    BreakerState::Closed => 0,
                    BreakerState::HalfOpen => 1,
                    BreakerState::Open(_) => 2,
                };
                samples.put(&[of, at], state);
            });
        },
    },
    Family {
        name: "forebay_breaker_opened_total",
        kind: Kind::Counter,
        labels: POOL,
        help: "Times the breaker opened.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| samples.put(&[of, at], pool.counters.breaker_opened))
        },
    },
    Family {
        name: "forebay_health_state",
        kind: Kind::Gauge,
        labels: POOL,
        help: "0 healthy or not checked, 1 unhealthy: active checks fail (dns.health), and it is asked last.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| samples.put(&[of, at], u8::from(pool.health == Health::Unhealthy)));
        },
    },
    Family {
        name: "forebay_dns_latency_seconds",
        kind: Kind::Gauge,
        labels: POOL,
        help: "How long an endpoint takes to answer, smoothed, on the slowest worker: what parallel, racing and fastest \
               go by.",
        read: |scrape, samples| {
            scrape.each_endpoint(|of, at, figures| {
                if let Some((latency, _)) = figures.latency {
                    samples.put(&[of, at], format!("{:.6}", latency.as_secs_f64()));
                }
            });
        },
    },
    Family {
        name: "forebay_dns_latency_deviation_seconds",
        kind: Kind::Gauge,
        labels: POOL,
        help: "The mean deviation from that latency; a head start of racing is the latency and four of it.",
        read: |scrape, samples| {
            scrape.each_endpoint(|of, at, figures| {
                if let Some((_, deviation)) = figures.latency {
                    samples.put(&[of, at], format!("{:.6}", deviation.as_secs_f64()));
                }
            });
        },
    },
    Family {
        name: "forebay_dns_races_total",
        kind: Kind::Counter,
        labels: &["upstream", "endpoint", "result"],
        help: "Questions asked of several endpoints at once: how often each was first. Hardly ever `won`: it costs \
               queries and saves nobody any time.",
        read: |scrape, samples| {
            scrape.each_endpoint(|of, at, figures| {
                samples.put(&[of, at, "won"], figures.races_won);
                samples.put(&[of, at, "lost"], figures.races_lost);
            });
        },
    },
    Family {
        name: "forebay_dns_entropy_bits",
        kind: Kind::Gauge,
        labels: POOL,
        help: "How hard an answer over UDP is to guess, in bits, for somebody who knows the ports of all sockets, on the \
               worker where it is easiest: the logarithm of how many pairs of socket and unused message id a query's is \
               one of. Near 16: there is one socket; raise udp.connections_min.",
        read: |scrape, samples| {
            for pool in &scrape.pools {
                if let Some(bits) = pool.dns.and_then(|dns| dns.entropy_bits) {
                    samples.put(&[pool.upstream, &pool.endpoint], format!("{bits:.3}"));
                }
            }
        },
    },
    Family {
        name: "forebay_dns_workers",
        kind: Kind::Gauge,
        labels: &[],
        help: "Workers that answered when they were asked for these figures.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.workers)),
    },
    Family {
        name: "forebay_dns_questions",
        kind: Kind::Gauge,
        labels: &[],
        help: "Questions in flight to upstreams.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.questions)),
    },
    Family {
        name: "forebay_dns_waiting",
        kind: Kind::Gauge,
        labels: &[],
        help: "Clients waiting for the answers to them.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.waiting)),
    },
    Family {
        name: "forebay_dns_upstream_seconds",
        kind: Kind::Histogram,
        labels: &[],
        help: "How long questions took that went upstream, from the client's query to its reply.",
        read: |scrape, samples| scrape.dns(|stats| samples.times(&[], &stats.latency)),
    },
    Family {
        name: "forebay_dns_cache_entries",
        kind: Kind::Gauge,
        labels: &[],
        help: "Answers in the cache.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.entries)),
    },
    Family {
        name: "forebay_dns_cache_bytes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Memory of the cache in use.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.bytes)),
    },
    Family {
        name: "forebay_dns_cache_sets",
        kind: Kind::Gauge,
        labels: &[],
        help: "Those of the answers in the cache that nobody asked for: they came with others.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.sets)),
    },
    Family {
        name: "forebay_dns_cache_set_bytes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Memory that these take.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.set_bytes)),
    },
    Family {
        name: "forebay_dns_cache_inserts_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Answers put into the cache.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.inserts)),
    },
    Family {
        name: "forebay_dns_cache_evictions_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Answers that left the cache for others while still good: with many, dns.cache.size is small.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.evictions)),
    },
    Family {
        name: "forebay_dns_client_connections",
        kind: Kind::Gauge,
        labels: &[],
        help: "Clients' connections, over TCP, TLS and HTTPS.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.client_connections)),
    },
    Family {
        name: "forebay_dns_clients_rejected_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Clients' connections closed at once because clients.connections_max, connections_per_client or \
               handshakes_max was reached.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.clients_rejected)),
    },
    Family {
        name: "forebay_dns_tls_handshakes_total",
        kind: Kind::Counter,
        labels: &["side", "result"],
        help: "TLS handshakes, by side (`client`: clients with us; `upstream`: we with upstreams) and by result (`full`; \
               `resumed`, which is cheaper; `failed`).",
        read: |scrape, samples| {
            let Some(stats) = scrape.dns else { return };
            for (side, handshakes) in
                [("client", stats.client_handshakes), ("upstream", stats.upstream_handshakes)]
            {
                samples.put(&[side, "full"], handshakes.full);
                samples.put(&[side, "resumed"], handshakes.resumed);
                samples.put(&[side, "failed"], handshakes.failed);
            }
        },
    },
    Family {
        name: "forebay_dns_certificate_expires_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "When the certificate of the encrypted listeners expires, in seconds since 1970; absent without one.",
        read: |scrape, samples| {
            if let Some(expires) = scrape.dns.and_then(|stats| stats.certificate_expires) {
                samples.put(&[], expires);
            }
        },
    },
    Family {
        name: "forebay_dns_clients_refused_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Clients' connections closed at once because protection.allow does not have their addresses.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.clients_refused)),
    },
    Family {
        name: "forebay_dns_local_names",
        kind: Kind::Gauge,
        labels: &[],
        help: "Names known from local.hosts and local.records.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.names.local)),
    },
    Family {
        name: "forebay_dns_blocked_names",
        kind: Kind::Gauge,
        labels: &[],
        help: "Names on the block lists.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.names.blocked)),
    },
    Family {
        name: "forebay_dns_blocked_names_bytes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Memory of the block lists, all workers together.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.names.blocked_bytes)),
    },
    Family {
        name: "forebay_dns_names_bad_lines",
        kind: Kind::Gauge,
        labels: &[],
        help: "Lines of hosts file and block lists that could not be read; the log shows the first of each file.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.names.bad_lines)),
    },
    Family {
        name: "forebay_dns_names_reloads_total",
        kind: Kind::Counter,
        labels: &["result"],
        help: "Times that a hosts file or block list had changed; `failed`: it could not be read, and the old one holds.",
        read: |scrape, samples| {
            let Some(stats) = scrape.dns else { return };
            samples.put(&["ok"], stats.names.reloads);
            samples.put(&["failed"], stats.names.reloads_failed);
        },
    },
    Family {
        name: "forebay_dns_query_log_lines_total",
        kind: Kind::Counter,
        labels: &["result"],
        help: "Lines of the query log; `dropped`: writer or disk were too slow, or the file cannot be written.",
        read: |scrape, samples| {
            let Some(stats) = scrape.dns else { return };
            samples.put(&["written"], stats.query_log.written);
            samples.put(&["dropped"], stats.query_log.dropped);
        },
    },
    Family {
        name: "forebay_grpc_calls_ended_total",
        kind: Kind::Counter,
        labels: &["code"],
        help: "Calls that have ended, by their code.",
        read: |scrape, samples| {
            let Some(figures) = &scrape.grpc else { return };
            for (code, name) in ServerFigures::CODES {
                samples.put(&[name], figures.ended(code));
            }
        },
    },
    Family {
        name: "forebay_dns_datagrams_dropped_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Datagrams that the kernel did not take from us.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.datagrams_dropped)),
    },
];
