//! Any bytes as the beginning of a connection: a PROXY header, none, or not yet one. What was read can be written and
//! read again.

#![no_main]

use forebay_proxy_core::proxy_header::{Addresses, LEN_MAX, Version, parse, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let result = parse(input);
    assert!(input.len() < LEN_MAX || result != Ok(None));
    // More bytes never change what was said.
    if input.len() < LEN_MAX && result != Ok(None) {
        let mut longer = input.to_vec();
        longer.push(0);
        assert_eq!(parse(&longer), result);
    }
    let Ok(Some(header)) = result else { return };
    assert!(header.len <= input.len());
    for cut in 0..header.len {
        assert_eq!(parse(&input[..cut]), Ok(None));
    }
    for version in [Version::V1, Version::V2] {
        let mut out = Vec::new();
        write(&mut out, version, &header.addresses);
        let again = parse(&out).expect("our own header").expect("all of it");
        assert_eq!((again.version, again.len), (version, out.len()));
        assert_eq!(matches!(again.addresses, Addresses::Tcp { .. }), matches!(header.addresses, Addresses::Tcp { .. }));
    }
});
