//! The house rules that a machine can check: arrows, purity, pages, furniture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each crate may depend on, of ours. ARCHITECTURE.md draws it.
const ARROWS: &[(&str, &[&str])] = &[
    ("forebay-core", &[]),
    ("forebay-dns-core", &["forebay-core"]),
    ("forebay", &["forebay-core"]),
    ("forebay-dns", &["forebay", "forebay-core", "forebay-dns-core"]),
    ("forebay-proxy-core", &["forebay-core"]),
    ("forebay-proxy", &["forebay", "forebay-core", "forebay-proxy-core"]),
    ("forebay-grpc", &["forebay", "forebay-core"]),
    ("forebay-bench", &["forebay", "forebay-core", "forebay-grpc"]),
    (
        "forebay-cli",
        &[
            "forebay",
            "forebay-core",
            "forebay-dns",
            "forebay-dns-core",
            "forebay-proxy",
            "forebay-grpc",
            "forebay-bench",
        ],
    ),
    ("forebay-sim", &["forebay-core", "forebay-dns-core"]),
];

/// Words of acts, which have no place among decisions.
const ACTS: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "std::thread",
    "thread::spawn",
    "tokio",
    "std::fs",
    "std::env",
    "getrandom",
];

/// What is left in the hall.
const FURNITURE: &[&str] = &["todo!(", "unimplemented!(", "dbg!(", "#[ignore"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in folders {
        rust_files(&root().join(folder), &mut found);
    }
    assert!(!found.is_empty(), "no sources in {folders:?}");
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("readable"))).collect()
}

#[test]
fn arrows_run_down_only() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let allowed =
            allowed.get(name).unwrap_or_else(|| panic!("{name} has no place in the house: add its arrows"));
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        for dependency in dependencies.iter().filter(|dependency| dependency["kind"].is_null()) {
            let to = dependency["name"].as_str().expect("a name");
            assert!(!ours.contains(to) || allowed.contains(&to), "{name} may not know {to}");
        }
    }
}

#[test]
fn decisions_know_no_acts() {
    for (path, text) in sources(&["crates/core/src", "crates/dns-core/src", "crates/proxy-core/src"]) {
        if path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for act in ACTS {
                assert!(!code.contains(act), "{}:{}: {act} is an act", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn every_page_says_what_it_is_for() {
    for (path, text) in sources(&["crates"]) {
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let is_page = path.components().any(|part| part.as_os_str() == "src");
        let is_tests =
            path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        assert!(!is_page || is_tests || first.starts_with("//!"), "{} begins without //!", path.display());
    }
}

#[test]
fn no_furniture_is_left_in_the_hall() {
    for (path, text) in sources(&["crates"]) {
        if path.ends_with("tests/house.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for piece in FURNITURE {
                assert!(!line.contains(piece), "{}:{}: {piece}", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn unsafe_stands_in_sys_alone() {
    for (path, text) in sources(&["crates"]) {
        let is_sys = path.components().any(|part| part.as_os_str() == "sys");
        // A counting allocator cannot be written without it.
        let is_test =
            path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches");
        if is_sys || is_test {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let word =
                code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl");
            assert!(!word, "{}:{}: unsafe outside sys", path.display(), number + 1);
        }
    }
}
