//! Any text as a hosts file, a block list and records: read or told why not; names are read back as they are shown.

#![no_main]

use forebay_dns_core::local::{BlockListBuilder, LocalDataBuilder, LocalRecord};
use forebay_dns_core::wire::{HashSeed, NameText, parse_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let seed = HashSeed::from_bytes([7; 16]);
    let mut block = BlockListBuilder::new(seed);
    let mut local = LocalDataBuilder::new(seed, 60);
    let lines = bytes.split(|byte| *byte == b'\n').count();
    local.add_hosts(bytes, |line, fault| {
        assert!((1..=lines).contains(&line));
        assert!(!fault.to_string().is_empty());
    });
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Err(fault) = block.add_line(line) {
            assert!(!fault.to_string().is_empty());
        }
        let Ok(text) = std::str::from_utf8(line) else { continue };
        match LocalRecord::parse(text) {
            Ok(record) => local.add_record(&record),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        if let Ok(name) = parse_name(text) {
            assert_eq!(parse_name(&NameText(&name).to_string()), Ok(name));
        }
    }
    let list = block.finish();
    assert!(list.names() <= bytes.len());
    local.finish(|problem| assert!(!problem.to_string().is_empty()));
});
