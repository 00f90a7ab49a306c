//! Scenarios of others and of our own, run against a forwarder in virtual time.
//!
//! Those of others ship with the crate `domain`, whose client cache and server they test; [`NOT_APPLICABLE`] says of
//! each that is not run why a forwarder does not, or must not, do as it says. Ours stand in `scenarios/`.
//!
//! Two flags are a forwarder's own and not compared: AA, which it never sets, and RA, which it always sets. Where a
//! scenario defines `local-data` of a server, the upstream has it.

mod rpl;
mod stage;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Scenarios of `domain` that are not run, by the first fit, and why.
const NOT_APPLICABLE: &[(&str, &str)] = &[
    ("validator/", "DNSSEC validation is the upstream's work: a forwarder passes DO, CD and AD on"),
    ("server/auth_zones", "serves zones"),
    ("server/axfr_out", "serves zones; a forwarder refuses transfers"),
    ("server/axfr_large_out", "serves zones; a forwarder refuses transfers"),
    ("server/notify", "serves zones; a forwarder takes no NOTIFY"),
    ("server/tsig", "TSIG keys belong to zone transfers and updates, which a forwarder refuses"),
    ("client-cache/cache_notify", "a NOTIFY is answered with NOTIMP and never sent upstream"),
    (
        "client-cache/cache_ad_rev",
        "every query to an upstream sets AD (RFC 6840 §5.7), so one answer serves both kinds of clients",
    ),
    ("client-cache/cache_do_q_nsec", "the same: it expects another answer for a query with AD"),
    ("client-cache/cache_do_q_rrsig", "the same: it expects another answer for a query with AD"),
    ("client-cache/cache_chaos", "questions of class CH are about a server itself; a forwarder refuses them"),
    ("client-cache/cache_delegation", "a referral says that the upstream does not recurse: nothing to keep"),
    (
        "client-cache/cache_rd",
        "answers for RD=0 are kept apart: who may not ask may not look into the cache either",
    ),
    (
        "client-cache/cache_do_nsec",
        "answers with and without DNSSEC records are kept apart: the other is asked for",
    ),
    (
        "client-cache/cache_do_nsec3",
        "answers with and without DNSSEC records are kept apart: the other is asked for",
    ),
    (
        "client-cache/cache_refused",
        "a remembered failure is SERVFAIL with extended error 13 (RFC 9520), whatever code the upstream gave",
    ),
    (
        "server/edns_downstream_cookies",
        "tests an access rule that demands cookies; a forwarder's own clients are served without",
    ),
];

/// Where the scenarios that ship with `domain` are: in its source, which cargo has.
fn theirs() -> PathBuf {
    // What other platforms would need is not there.
    let rustc = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let rustc = String::from_utf8_lossy(&rustc.stdout);
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc tells");
    let metadata = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--filter-platform",
            host,
            "--offline",
            "--locked",
            "--format-version",
            "1",
            "--manifest-path",
        ])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("cargo tells");
    let packages = metadata["packages"].as_array().expect("there are packages");
    let domain = packages.iter().find(|package| package["name"] == "domain").expect("domain is one of them");
    Path::new(domain["manifest_path"].as_str().expect("a path")).with_file_name("test-data")
}

fn found_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rpl") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn run(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    stage::run(&rpl::parse(&text)?)
}

#[test]
fn scenarios_of_the_domain_crate_hold() {
    let folder = theirs();
    let (mut passed, mut not_applicable, mut failed) = (0, 0, 0);
    for path in found_in(&folder) {
        let name = path.strip_prefix(&folder).expect("inside").display().to_string();
        let is = |(what, _): &&(&str, &str)| {
            name.starts_with(what) && what.ends_with('/') || name == format!("{what}.rpl")
        };
        if let Some((_, why)) = NOT_APPLICABLE.iter().find(is) {
            println!("{name}: not applicable: {why}");
            not_applicable += 1;
            continue;
        }
        match run(&path) {
            Ok(()) => {
                println!("{name}: passed");
                passed += 1;
            }
            Err(problem) => {
                println!("{name}: FAILED: {problem}");
                failed += 1;
            }
        }
    }
    println!("scenarios of domain: {passed} passed, {not_applicable} not applicable, {failed} failed");
    assert_eq!(failed, 0);
    assert!(passed >= 14, "{passed} of domain's scenarios were run: are they still where they were?");
}

#[test]
fn our_scenarios_hold() {
    let paths = found_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios"));
    assert!(!paths.is_empty());
    for path in paths {
        run(&path).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
        println!("{}: passed", path.file_name().unwrap_or_default().display());
    }
}
