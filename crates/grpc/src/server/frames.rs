//! Frames of HTTP/2 in the bytes that a client sends (RFC 9113 §4.1): h2 answers pings without a word, so they are
//! counted on their way.

/// Bytes of a frame's header: length, kind, flags, stream.
const HEADER_BYTES: usize = 9;

/// Bytes that a client sends before its first frame (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;

/// PING (RFC 9113 §6.7).
const PING: u8 = 6;

/// The flag of a PING that answers one.
const FLAG_ACK: u8 = 1;

/// A place in a stream of frames.
#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; HEADER_BYTES],
    /// How much of the header has been seen.
    seen: usize,
    /// How much is still to be skipped: the preface, or the rest of a frame.
    left: usize,
}

impl Frames {
    /// The place before the preface.
    pub(super) const fn new() -> Self {
        Self { header: [0; HEADER_BYTES], seen: 0, left: PREFACE_BYTES }
    }

    /// Goes on by these bytes. Returns how many pings begin in them that want an answer.
    pub(super) fn pings_in(&mut self, mut bytes: &[u8]) -> u32 {
        let mut pings = 0;
        loop {
            if self.left >= bytes.len() {
                self.left -= bytes.len();
                return pings;
            }
            bytes = &bytes[self.left..];
            self.left = 0;
            let n = bytes.len().min(HEADER_BYTES - self.seen);
            self.header[self.seen..self.seen + n].copy_from_slice(&bytes[..n]);
            self.seen += n;
            bytes = &bytes[n..];
            if self.seen < HEADER_BYTES {
                return pings;
            }
            let [a, b, c, kind, flags, ..] = self.header;
            self.seen = 0;
            self.left = u32::from_be_bytes([0, a, b, c]) as usize;
            pings += u32::from(kind == PING && flags & FLAG_ACK == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        // What a frame carries looks like pings here.
        bytes.extend([0, 0, 8, PING, 0].iter().copied().cycle().take(length));
        bytes
    }

    #[test]
    fn pings_are_counted_however_the_stream_is_cut() {
        let stream = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0),
            frame(PING, 0, 8),
            frame(1, 4, 40),
            frame(0, 1, 300),
            frame(PING, FLAG_ACK, 8),
            frame(PING, 0, 8),
            frame(0, 1, 0),
            frame(PING, 0, 8),
        ]
        .concat();
        for piece in [1, 2, 8, 9, 10, 24, 33, 1000] {
            let mut frames = Frames::new();
            let pings: u32 = stream.chunks(piece).map(|bytes| frames.pings_in(bytes)).sum();
            assert_eq!(pings, 3, "in pieces of {piece}");
        }
    }
}
