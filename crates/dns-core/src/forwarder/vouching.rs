//! Cookies towards clients (RFC 7873, in the form of RFC 9018): a client that shows one of ours gets what we send it, so
//! that it is no forged address.
//!
//! ```text
//! option:  client cookie (8) │ version 1 (1) │ reserved (3) │ timestamp (4) │ hash (8)
//!                             hash = SipHash-2-4(secret; everything before it, client's address)
//! ```
//!
//! A client with a right cookie has a rate limit of its own: queries forged in its name do not use it up. Nobody is turned
//! away for want of a cookie.

use std::fmt;
use std::hash::Hasher;
use std::net::IpAddr;

use forebay_core::Instant;
use siphasher::sip::SipHasher24;

use super::{Client, Forwarder};
use crate::wire::{Query, scan_query};

/// Length of a whole cookie: the client's and ours, in bytes.
const COOKIE_LEN: usize = 24;
/// The version of ours (RFC 9018 §4.1).
const VERSION: u8 = 1;
/// How old a cookie may be (RFC 9018 §4.3), in seconds.
const AGE_MAX: i32 = 3600;
/// How far in the future it may be made, by another server whose clock is ahead (RFC 9018 §4.3), in seconds.
const AHEAD_MAX: i32 = 300;
/// How old it is when another is given (RFC 9018 §4.3), in seconds.
const RENEW_AGE: i32 = 1800;

/// What cookies for clients are made with. Servers behind one address share it (RFC 9018 §5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CookieSecret([u8; 16]);

impl CookieSecret {
    /// Makes a secret of 16 random bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// What a client shows: with a cookie that is right, or not.
    fn judge(&self, unix_secs: u32, address: IpAddr, shown: &[u8]) -> Shown {
        let Some(client) = shown.first_chunk::<8>() else { return Shown::Malformed };
        if !(shown.len() == 8 || (16..=40).contains(&shown.len())) {
            // RFC 7873 §5.2.2.
            return Shown::Malformed;
        }
        let fresh = || self.bake(*client, unix_secs, address);
        let Some(shown) = shown.first_chunk::<COOKIE_LEN>().filter(|_| shown.len() == COOKIE_LEN) else {
            return Shown::Unknown(fresh());
        };
        let made = u32::from_be_bytes([shown[12], shown[13], shown[14], shown[15]]);
        // RFC 9018 §4.3: serial arithmetic (RFC 1982), so that it holds beyond 2106.
        let age = unix_secs.wrapping_sub(made) as i32;
        // Compared as a whole, and not byte by byte until one differs.
        let same = u128::from_be_bytes(half(&self.bake(*client, made, address)))
            ^ u128::from_be_bytes(half(shown))
            == 0;
        if !same || !(-AHEAD_MAX..=AGE_MAX).contains(&age) {
            return Shown::Unknown(fresh());
        }
        Shown::Right(if age < RENEW_AGE { *shown } else { fresh() })
    }

    fn bake(&self, client: [u8; 8], made: u32, address: IpAddr) -> [u8; COOKIE_LEN] {
        let mut cookie = [0; COOKIE_LEN];
        cookie[..8].copy_from_slice(&client);
        cookie[8] = VERSION;
        cookie[12..16].copy_from_slice(&made.to_be_bytes());
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(&cookie[..16]);
        match address.to_canonical() {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()),
        }
        cookie[16..].copy_from_slice(&hasher.finish().to_le_bytes());
        cookie
    }
}

impl fmt::Debug for CookieSecret {
    /// Keeps the secret out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieSecret(secret)")
    }
}

/// Our part of a cookie.
fn half(cookie: &[u8; COOKIE_LEN]) -> [u8; 16] {
    let mut ours = [0; 16];
    ours.copy_from_slice(&cookie[8..]);
    ours
}

/// What a client's cookie is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// No length that a cookie can have.
    Malformed,
    /// None of ours, or too old: it gets this one.
    Unknown([u8; COOKIE_LEN]),
    /// Ours; it goes on with this one.
    Right([u8; COOKIE_LEN]),
}

impl Forwarder {
    /// Says what time it is for everybody else, in seconds since 1970: cookies for clients are dated. To be said at the start,
    /// and again now and then.
    pub fn set_clock(&mut self, now: Instant, unix_secs: u64) {
        self.clock = (now, unix_secs);
    }

    fn unix_secs(&self, now: Instant) -> u32 {
        let (at, secs) = self.clock;
        secs.wrapping_add(now.saturating_duration_since(at).as_secs()) as u32
    }

    /// Looks at a client's cookie, and has the reply carry ours. Returns false if it is malformed (RFC 7873 §5.2.2).
    pub(super) fn vouch(&mut self, now: Instant, client: &Client, query: &mut Query<'_>) -> bool {
        let Some(secret) = self.safety.server_cookies else { return true };
        let Some(shown) = query.edns.as_ref().and_then(|edns| edns.options.cookie()) else { return true };
        let cookie = match secret.judge(self.unix_secs(now), client.address(), shown) {
            Shown::Malformed => return false,
            Shown::Unknown(cookie) => cookie,
            Shown::Right(cookie) => {
                self.counters.cookies_right += 1;
                cookie
            }
        };
        if let Some(edns) = &mut query.asked.edns {
            edns.cookie = Some(cookie);
        }
        true
    }

    /// Whether a client over the rate limit shows a right cookie, and is within the limit that it has for itself then.
    #[cold]
    pub(super) fn is_vouched_for(&mut self, now: Instant, client: &Client, bytes: &[u8]) -> bool {
        let (Some(secret), Some(limit)) = (self.safety.server_cookies, &self.vouched) else { return false };
        let Ok(query) = scan_query(bytes) else { return false };
        let Some(shown) = query.edns.as_ref().and_then(|edns| edns.options.cookie()) else { return false };
        let right = matches!(secret.judge(self.unix_secs(now), client.address(), shown), Shown::Right(_));
        let served = right && limit.admit(now, client.address());
        self.counters.limited_vouched += u64::from(served);
        served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn secret(text: &str) -> CookieSecret {
        CookieSecret::new(hex(text).try_into().unwrap())
    }

    /// RFC 9018, appendix A.1: learning a new server cookie.
    #[test]
    fn the_cookie_is_that_of_the_rfc() {
        let secret = secret("e5e973e5a6b2a43f48e7dc849e37bfcf");
        let address = "198.51.100.100".parse().unwrap();
        let cookie = hex("2464c4abcf10c957010000005cf79f111f8130c3eee29480");
        let Shown::Unknown(given) = secret.judge(1_559_731_985, address, &cookie[..8]) else { panic!() };
        assert_eq!(given[..], cookie[..]);
        assert!(
            matches!(secret.judge(1_559_731_985 + 1000, address, &cookie), Shown::Right(same) if same[..] == cookie[..])
        );
    }

    #[test]
    fn a_cookie_is_right_for_its_address_its_client_and_an_hour_and_renewed_after_half_of_one() {
        let secret = secret("000102030405060708090a0b0c0d0e0f");
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let now = 1_700_000_000;
        let cookie = secret.bake(*b"clientxx", now, address);
        let right =
            |at: u32, address, cookie: &[u8]| matches!(secret.judge(at, address, cookie), Shown::Right(_));
        assert!(right(now, address, &cookie) && right(now + 3600, address, &cookie));
        assert!(!right(now + 3601, address, &cookie), "too old");
        assert!(right(now - 300, address, &cookie) && !right(now - 301, address, &cookie), "from the future");
        assert!(!right(now, "2001:db8::2".parse().unwrap(), &cookie), "another's");
        for at in 0..COOKIE_LEN {
            let mut other = cookie;
            other[at] ^= 1;
            assert!(!right(now, address, &other), "byte {at}");
        }
        let renewed =
            |at| matches!(secret.judge(at, address, &cookie), Shown::Right(given) if given != cookie);
        assert!(!renewed(now + 1799) && renewed(now + 1800));
    }

    #[test]
    fn any_length_is_judged() {
        let secret = secret("000102030405060708090a0b0c0d0e0f");
        for len in 0..100 {
            let shown = secret.judge(0, "192.0.2.1".parse().unwrap(), &vec![7; len]);
            let good = len == 8 || (16..=40).contains(&len);
            assert_eq!(shown == Shown::Malformed, !good, "{len}");
        }
    }
}
