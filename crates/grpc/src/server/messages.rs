//! Messages in what a stream carries: each is preceded by a byte of flags and its length (PROTOCOL-HTTP2).

/// Bytes before a message.
const PREFIX_BYTES: usize = 5;

/// Looks at the lengths that messages say they have, before anybody makes room for them.
#[derive(Debug)]
pub(super) struct Lengths {
    limit: u32,
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix has been seen.
    seen: u8,
    /// How much is still to come of the message.
    left: u32,
}

/// A message that is too long: what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) u32);

impl Lengths {
    /// Allows for so many bytes in each message.
    pub(super) const fn new(limit: u32) -> Self {
        Self { limit, prefix: [0; PREFIX_BYTES], seen: 0, left: 0 }
    }

    /// Goes on by these bytes.
    ///
    /// # Errors
    ///
    /// The first message that is too long.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) -> Result<(), TooLong> {
        loop {
            if self.left as usize >= bytes.len() {
                self.left -= bytes.len() as u32;
                return Ok(());
            }
            bytes = &bytes[self.left as usize..];
            self.left = 0;
            let seen = usize::from(self.seen);
            let n = bytes.len().min(PREFIX_BYTES - seen);
            self.prefix[seen..seen + n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if seen + n < PREFIX_BYTES {
                self.seen += n as u8;
                return Ok(());
            }
            let [_, length @ ..] = self.prefix;
            (self.seen, self.left) = (0, u32::from_be_bytes(length));
            if self.left > self.limit {
                return Err(TooLong(self.left));
            }
        }
    }

    /// Returns how many bytes a message may have.
    pub(super) const fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether a message has begun that has not ended.
    pub(super) const fn is_within(&self) -> bool {
        self.seen > 0 || self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.resize(PREFIX_BYTES + length, 0xFF);
        bytes
    }

    #[test]
    fn the_first_message_beyond_the_limit_is_seen_however_the_stream_is_cut() {
        let stream = [message(0), message(100), message(7), message(101)].concat();
        for piece in [1, 4, 5, 6, 50, 1000] {
            let mut lengths = Lengths::new(100);
            let mut pieces = stream.chunks(piece).map(|bytes| lengths.advance(bytes));
            assert_eq!(pieces.find(Result::is_err), Some(Err(TooLong(101))), "in pieces of {piece}");
        }
        let mut lengths = Lengths::new(101);
        assert_eq!(lengths.advance(&stream), Ok(()));
        assert!(!lengths.is_within());
        assert_eq!(lengths.advance(&message(5)[..3]), Ok(()));
        assert!(lengths.is_within());
    }
}
