//! Any text as a configuration file: what is read can be written and read again, and every problem stands in a line of
//! the file.

#![no_main]

use forebay_cli::config::{Config, File, Machine};
use libfuzzer_sys::fuzz_target;

/// More memory than this is not asked for while fuzzing: a cache is allocated to check that it can be.
const CACHE_BYTES_MAX: u64 = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let problems = match File::parse("f.toml", text) {
        Ok(file) => {
            let written = toml::to_string(&file).expect("a file can be written");
            assert_eq!(File::parse("f.toml", &written).expect("our own file"), file);
            if file.dns.is_some_and(|dns| dns.cache.size.bytes > CACHE_BYTES_MAX) {
                return;
            }
            let machine = Machine { cores: 1, ..Machine::default() };
            match Config::parse("f.toml", text, &machine) {
                Ok(config) => return assert!(!config.summary().is_empty()),
                Err(problems) => problems,
            }
        }
        Err(problems) => problems,
    };
    assert!(!problems.list().is_empty());
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    for problem in problems.list() {
        assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem:?}");
    }
    assert!(problems.to_string().starts_with("f.toml"));
});
