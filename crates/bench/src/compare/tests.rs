//! Reports in, verdicts out.

use serde_json::{Value, json};

use super::*;

/// A report of `forebay bench http`, as the generator writes it.
fn report(rate: f64, p50: f64) -> Value {
    let latency = json!({
        "min_us": 1.0, "mean_us": p50 * 1.1, "p50_us": p50, "p90_us": p50 * 2.0, "p99_us": p50 * 4.0,
        "p999_us": p50 * 8.0, "max_us": p50 * 9.0,
    });
    json!({
        "url": "http://127.0.0.1:1/", "protocol": "http/1.1", "method": "GET", "body": 0, "pool": 64, "clients": 64,
        "pipeline": 1, "target_rate": null, "statuses": {"200": 1000}, "answered": 1000, "failed": 0, "rate": rate,
        "latency": latency, "cpu_us_per_request": 5.0, "server_cpu_us_per_request": 2e6 / rate,
        "generator_limit": null, "partial": null,
    })
}

fn side(name: &str, reports: &[Value]) -> Side {
    let readings = reports
        .iter()
        .enumerate()
        .flat_map(|(n, report)| read(&format!("{name}-{n}.json"), &report.to_string()).unwrap())
        .collect();
    Side { name: name.to_owned(), readings }
}

/// Reports around a rate, none like another.
fn around(rate: f64, rounds: u32) -> Vec<Value> {
    (0..rounds)
        .map(|n| report(rate * (1.0 + f64::from(n) / 1000.0), 1e6 / rate + f64::from(n) / 100.0))
        .collect()
}

fn verdict(of: &Comparison, figure: Figure) -> Verdict {
    of.figures.iter().find(|row| row.figure == figure).unwrap().verdict
}

#[test]
fn a_clear_difference_is_called_one_in_its_direction() {
    let (slow, fast) = (side("slow", &around(1000.0, 7)), side("fast", &around(1200.0, 7)));
    let found = compare(&slow, &fast, 1).unwrap();
    for figure in [Figure::Rate, Figure::Mean, Figure::P50, Figure::P99, Figure::ServerCpu] {
        assert_eq!(verdict(&found, figure), Verdict::Faster, "{found}");
    }
    let row = &found.figures[0];
    let (low, high) = row.interval.unwrap();
    assert!(low < 1.2 && 1.2 < high && (row.ratio.unwrap() - 1.2).abs() < 1e-9, "{row:?}");
    assert!((row.p - 2.0 / 3432.0).abs() < 1e-12, "{row:?}");
    assert_eq!(verdict(&found, Figure::GeneratorCpu), Verdict::NoDifferenceShown, "it is the same");
    let found = compare(&fast, &slow, 1).unwrap();
    assert_eq!(verdict(&found, Figure::Rate), Verdict::Slower);
    assert_eq!(verdict(&found, Figure::P99), Verdict::Slower);
    assert_eq!((found.partial, found.notes), (None, Vec::new()));
}

#[test]
fn a_side_differs_not_from_itself() {
    let found = compare(&side("one", &around(1000.0, 7)), &side("two", &around(1000.0, 7)), 1).unwrap();
    assert!(found.figures.iter().all(|row| row.verdict == Verdict::NoDifferenceShown), "{found}");
    assert!(found.figures.iter().all(|row| row.p > 0.9), "{found}");
}

#[test]
fn one_report_a_side_shows_nothing_and_says_so() {
    let found = compare(&side("one", &around(1000.0, 1)), &side("two", &around(9000.0, 1)), 1).unwrap();
    assert!(
        found.figures.iter().all(|row| row.verdict == Verdict::NoDifferenceShown && row.interval.is_none())
    );
    assert!(found.notes[0].contains("take 4 or more"), "{found}");
    let four = compare(&side("one", &around(1000.0, 4)), &side("two", &around(9000.0, 4)), 1).unwrap();
    assert_eq!(
        (verdict(&four, Figure::Rate), four.notes.len()),
        (Verdict::Faster, 0),
        "as many as are asked for"
    );
}

#[test]
fn a_paced_load_says_nothing_of_speed_but_of_latency() {
    let paced = |p50: f64| -> Vec<Value> {
        (0..5)
            .map(|n| {
                let mut one = report(2000.0 + f64::from(n) / 10.0, p50 + f64::from(n));
                one["target_rate"] = json!(2000.0);
                one
            })
            .collect()
    };
    let found = compare(&side("one", &paced(100.0)), &side("two", &paced(50.0)), 1).unwrap();
    assert_eq!(verdict(&found, Figure::Rate), Verdict::Paced);
    assert_eq!(verdict(&found, Figure::P50), Verdict::Faster);
}

#[test]
fn what_half_ran_is_left_out_and_marked() {
    let mut reports = around(1000.0, 5);
    reports[3]["partial"] = json!("no answer after 1.00 s of 5.00 s");
    let found = compare(&side("one", &reports), &side("two", &around(1000.0, 5)), 1).unwrap();
    assert_eq!((found.a.reports, found.b.reports, found.figures[0].a_values.len()), (4, 5, 4));
    assert_eq!(found.partial.as_deref(), Some("1 of 10 reports were left out"));
    assert_eq!(found.a.left_out, ["one-3.json: no answer after 1.00 s of 5.00 s"]);
    assert!(found.to_string().contains("left out    A: one-3.json: no answer"), "{found}");
    let none = side(
        "dead",
        &[json!({"partial": "gone"}), json!({})].map(|_| {
            let mut one = report(0.0, 1.0);
            (one["answered"], one["latency"]) = (json!(0), Value::Null);
            one
        }),
    );
    let error = compare(&none, &side("two", &around(1000.0, 5)), 1).unwrap_err().to_string();
    assert_eq!(error, "nothing to compare: A (dead) has no whole report: dead-0.json: nothing was answered");
}

#[test]
fn what_else_is_to_be_known_is_told() {
    let mut limited = around(1000.0, 5);
    limited[0]["generator_limit"] = json!("it used 99 % of a core");
    limited[1]["failed"] = json!(500);
    let mut other = around(1000.0, 5);
    for one in &mut other {
        one["clients"] = json!(128);
    }
    let found = compare(&side("one", &limited), &side("two", &other), 1).unwrap();
    assert_eq!((found.a.generator_limited, found.b.generator_limited), (1, 0));
    assert_eq!(found.differences, ["clients: 64 and 128"]);
    let text = found.to_string();
    for expected in [
        "A was limited by the generator in 1 of 5 reports",
        "9.09 % of A's and 0.00 % of B's requests failed",
        "differs     clients: 64 and 128",
        "no difference shown",
        "A           one, 5 reports",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn different_kinds_of_load_are_refused() {
    let http = side("http", &around(1000.0, 2));
    let dns = json!({
        "transport": "udp", "clients": 1, "in_flight": 1, "rate": null, "qps": 5.0, "rcodes": {}, "sent": 5, "answered": 5,
        "lost": 0, "wrong": 0, "latency": null, "cpu_us_per_query": 1.0, "server": {"cpu_us_per_query": 2.0},
    });
    let dns = side("dns", &[dns]);
    assert_eq!(dns.readings[0].figures[&Figure::ServerCpu], 2.0);
    let error = compare(&http, &dns, 1).unwrap_err().to_string();
    assert!(error.contains("http-0.json is http") && error.contains("dns-0.json is dns"), "{error}");
    let mut paced = report(1000.0, 1.0);
    paced["target_rate"] = json!(1000.0);
    let error = compare(&http, &side("paced", &[paced]), 1).unwrap_err().to_string();
    assert!(error.contains("as fast as answers come, but paced-0.json is http at 1000/s"), "{error}");
    let mut mixed = around(1000.0, 2);
    mixed[1]["pool"] = Value::Null;
    let error = compare(&side("mixed", &mixed), &http, 1).unwrap_err().to_string();
    assert!(error.contains("runs of one load, but differ in pool: 64 and none"), "{error}");
}

#[test]
fn what_is_no_report_is_told_with_what_is() {
    let error = |text: &str| read("f.json", text).unwrap_err().to_string();
    assert!(
        error("{\"answered\": 1").starts_with("f.json is damaged: EOF while parsing"),
        "{}",
        error("{\"answered\": 1")
    );
    assert_eq!(error(" \n"), "f.json is damaged: there is nothing in it");
    assert!(error("[1]").contains("f.json is no report to compare: it is no JSON object"));
    assert!(error("{\"a\": 1}").contains("it has not the fields of one; `forebay bench dns|tcp|http|grpc"));
    assert!(error("{\"claims\": []}").contains("has both its sides in it"));
    assert!(error("{\"one_task_ratio\": 1}").contains("bench pool"));
    let whole = report(1000.0, 1.0).to_string();
    let cut = format!("{whole}\n{}", &whole[..whole.len() / 2]);
    assert!(error(&cut).contains("after 1 whole report(s)"), "{}", error(&cut));
    for (field, wrong, expected) in [
        ("rate", json!("fast"), "`rate` is \"fast\" and should be a number"),
        ("answered", json!(-1), "`answered` is -1 and should be a number of requests"),
        ("latency", json!({"p50_us": 1}), "`latency.mean_us` is missing and should be a number"),
        ("partial", json!(true), "`partial` is true and should be a text"),
    ] {
        let mut damaged = report(1000.0, 1.0);
        damaged[field] = wrong;
        assert!(error(&damaged.to_string()).contains(expected), "{}", error(&damaged.to_string()));
    }
}

#[test]
fn several_reports_may_be_in_one_text() {
    let (one, two) = (report(1000.0, 1.0).to_string(), report(2000.0, 1.0).to_string());
    for text in [format!("{one}\n{two}"), format!("[{one}, {two}]"), format!("{one}{two}")] {
        let found = read("f", &text).unwrap();
        let rates: Vec<f64> = found.iter().map(|one| one.figures[&Figure::Rate]).collect();
        assert_eq!((rates, found[1].name.as_str()), (vec![1000.0, 2000.0], "f#2"));
    }
}

#[test]
fn what_the_generators_write_is_read() {
    let dns = crate::dns::DnsReport {
        target: "127.0.0.1:53".to_owned(),
        transport: crate::dns::Transport::Udp,
        clients: 1,
        in_flight: 2,
        arrivals: crate::dns::Arrivals::Even,
        rate: Some(100.0),
        elapsed_seconds: 1.0,
        sent: 10,
        answered: 9,
        lost: 1,
        wrong: 0,
        unexpected: 0,
        truncated: 0,
        rcodes: std::collections::BTreeMap::new(),
        qps: 9.0,
        latency: None,
        sockets: 1,
        closed: 0,
        errors: 0,
        last_error: None,
        cpu_seconds: 0.1,
        cpu_us_per_query: Some(3.0),
        server: None,
        unsent: 0,
        held_back: 0,
        generator_limited: false,
        generator_limit: None,
        partial: None,
    };
    let figures = crate::load::Figures { answered: 5, rate: 5.0, ..Default::default() };
    let tcp = crate::tcp::TcpReport {
        target: "127.0.0.1:7".parse().unwrap(),
        pattern: crate::tcp::Pattern::Kept,
        pool: None,
        clients: 1,
        size: 64,
        target_rate: None,
        figures: figures.clone(),
    };
    let http = crate::http::HttpReport {
        url: "http://x/".to_owned(),
        protocol: "h2",
        method: "GET".to_owned(),
        body: 0,
        pool: Some(1),
        clients: 1,
        pipeline: 1,
        target_rate: None,
        statuses: std::collections::BTreeMap::new(),
        figures: figures.clone(),
    };
    let grpc = crate::grpc::GrpcReport {
        url: "http://x".to_owned(),
        method: "a.B/C".to_owned(),
        is_streaming: false,
        message_bytes: 5,
        clients: 1,
        requests: None,
        connections: None,
        target_rate: None,
        messages_received: 5,
        figures,
    };
    for (kind, text, paced) in [
        (Kind::Dns, serde_json::to_string(&dns).unwrap(), Some(100.0)),
        (Kind::Tcp, serde_json::to_string(&tcp).unwrap(), None),
        (Kind::Http, serde_json::to_string(&http).unwrap(), None),
        (Kind::Grpc, serde_json::to_string(&grpc).unwrap(), None),
    ] {
        let found = &read("f", &text).unwrap()[0];
        assert_eq!((found.kind, found.paced, found.partial.as_ref()), (kind, paced, None));
        assert!(!found.settings.is_empty() && found.figures[&Figure::Rate] > 0.0);
    }
}
