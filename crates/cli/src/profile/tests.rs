use std::hint::black_box;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use flate2::read::GzDecoder;
use prost::Message;

use super::pprof::PprofProfile;
use super::*;

/// There is one sampler in a process, and tests run in one.
static ONE: Mutex<()> = Mutex::new(());

#[inline(never)]
fn burns_cpu_for_the_profile(stop: &AtomicBool) -> u64 {
    let mut sum = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..1000 {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
    }
    sum
}

#[inline(never)]
fn calls_what_burns(stop: &AtomicBool) -> u64 {
    black_box(burns_cpu_for_the_profile(stop)) + 1
}

/// Takes a profile of half a second beside a busy thread.
fn taken() -> Profile {
    let stop = Arc::new(AtomicBool::new(false));
    let busy = thread::Builder::new().name("burner".to_owned());
    let busy = busy.spawn({
        let stop = Arc::clone(&stop);
        move || calls_what_burns(&stop)
    });
    let order = Order { duration: Duration::from_millis(500), hz: 199 };
    let profile = Profile::take(order, || true).unwrap();
    stop.store(true, Ordering::Relaxed);
    busy.unwrap().join().unwrap();
    profile
}

fn parsed(packed: &[u8]) -> PprofProfile {
    let mut bytes = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    PprofProfile::decode(&*bytes).unwrap()
}

#[test]
fn a_profile_names_who_is_busy_and_who_called_it() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let profile = parsed(&taken().pprof());
    let text = |number: i64| profile.string_table[number as usize].as_str();
    assert_eq!(text(0), "");
    let types: Vec<_> = profile.sample_type.iter().map(|one| (text(one.kind), text(one.unit))).collect();
    assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
    assert_eq!(profile.period, 1_000_000_000 / 199);
    assert!(profile.duration_nanos >= 500_000_000 && profile.time_nanos > 1_700_000_000_000_000_000);
    let names = |sample: &pprof::Sample| -> Vec<&str> {
        let lines = sample.location_id.iter().flat_map(|id| &profile.location[*id as usize - 1].line);
        lines.map(|line| text(profile.function[line.function_id as usize - 1].name)).collect()
    };
    let mut ours = 0;
    for sample in profile.sample.iter().filter(|sample| text(sample.label[0].text) == "burner") {
        assert_eq!(text(sample.label[0].key), "thread");
        assert_eq!(sample.value[1], sample.value[0] * profile.period);
        let names = names(sample);
        let Some(at) = names.iter().position(|name| name.ends_with("burns_cpu_for_the_profile")) else {
            continue;
        };
        assert!(names[at..].iter().any(|name| name.ends_with("calls_what_burns")), "{names:?}");
        // It was followed to the thread's beginning.
        assert!(
            names.iter().any(|name| name.contains("std::thread") || name.contains("thread_start")),
            "{names:?}"
        );
        ours += sample.value[0];
    }
    assert!(ours >= 20, "{ours} samples of half a second at 199 Hz");
    for location in &profile.location {
        let mapping = location.mapping_id.checked_sub(1).map(|at| profile.mapping[at as usize]);
        if let Some(mapping) = mapping {
            assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
        }
        assert!(!location.line.is_empty());
    }
    let file =
        profile.function.iter().find(|one| text(one.name).ends_with("burns_cpu_for_the_profile")).unwrap();
    assert!(text(file.filename).ends_with("profile/tests.rs"), "{}", text(file.filename));
}

#[test]
fn a_flame_graph_names_who_is_busy() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let svg = taken().flame_graph();
    for name in ["burner", "burns_cpu_for_the_profile", "calls_what_burns"] {
        assert!(svg.contains(name), "{name} is missing");
    }
}

#[test]
fn a_share_is_of_the_threads_and_the_functions_that_were_asked_for() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let profile = taken();
    let within =
        |name: &'static str| move |names: &[String]| names.iter().any(|function| function.ends_with(name));
    let burns = profile.share("burner", within("burns_cpu_for_the_profile")).unwrap();
    assert!(burns > 0.5, "{burns}");
    assert_eq!(profile.share("burner", within("no such function")), Some(0.0));
    assert_eq!(profile.share("no such thread", |_| true), None);
    let innermost = |names: &[String]| names.first().is_some_and(|name| name.ends_with("thread_start"));
    assert!(profile.share("burner", innermost).unwrap() < 0.5, "the first is the innermost");
}

#[test]
fn a_profile_that_nobody_waits_for_ends_early() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let started = now();
    let order = Order { duration: Duration::from_secs(60), hz: 99 };
    assert!(matches!(Profile::take(order, || false), Err(ProfileError::Left)));
    assert!(now().saturating_duration_since(started) < Duration::from_secs(10));
}
