//! Where frames end in a stream of HTTP/2 (RFC 9113 §4.1).

/// Bytes before what a frame carries.
const HEADER_BYTES: usize = 9;

/// DATA and HEADERS (RFC 9113 §6.1, §6.2): the frames that can end a stream.
const ENDING_TYPES: [u8; 2] = [0, 1];

/// END_STREAM.
const FLAG_END_STREAM: u8 = 1;

/// A place in a stream of frames.
#[derive(Clone, Copy)]
pub(super) struct Frames {
    /// What has been seen of a header.
    header: [u8; HEADER_BYTES],
    /// How much of it.
    seen: usize,
    /// How much is still to come of the frame after its header.
    left: usize,
}

impl Frames {
    /// The place before the first frame.
    pub(super) const fn new() -> Self {
        Self { header: [0; HEADER_BYTES], seen: 0, left: 0 }
    }

    /// Returns how many of these bytes, which come next, go up to the end of an answer: of the first frame that ends its
    /// stream. All of them, if none ends here.
    pub(super) fn until_answer_ends(mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..]);
            if self.is_between() && self.ends_stream() {
                break;
            }
        }
        at
    }

    /// Goes on by these bytes.
    pub(super) fn advance(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..]);
        }
    }

    /// Goes on within one frame, by the rest of its header or of what it carries. Returns how far.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.is_between() {
            self.seen = 0;
        }
        if self.seen < HEADER_BYTES {
            let n = bytes.len().min(HEADER_BYTES - self.seen);
            self.header[self.seen..self.seen + n].copy_from_slice(&bytes[..n]);
            self.seen += n;
            if self.seen == HEADER_BYTES {
                let [a, b, c, ..] = self.header;
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
            }
            n
        } else {
            let n = bytes.len().min(self.left);
            self.left -= n;
            n
        }
    }

    /// Whether a frame has just ended.
    const fn is_between(&self) -> bool {
        self.seen == HEADER_BYTES && self.left == 0
    }

    /// Whether the frame whose header was seen last ends its stream.
    fn ends_stream(&self) -> bool {
        ENDING_TYPES.contains(&self.header[3]) && self.header[4] & FLAG_END_STREAM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.resize(HEADER_BYTES + length, 0xFF);
        bytes
    }

    #[test]
    fn an_answer_ends_where_its_last_frame_does_however_it_is_cut() {
        // Settings with the acknowledging flag, which has the same bit; an answer of two frames; an empty one; a part.
        let answers = [
            [frame(4, 1, 0), frame(1, 4, 20), frame(0, 1, 300)].concat(),
            frame(1, 5, 10),
            [frame(1, 4, 3), frame(0, 1, 0)].concat(),
            frame(0, 0, 7),
        ];
        let stream = answers.concat();
        for piece in [1, 2, 9, 10, 50, 1000] {
            let (mut frames, mut at, mut ends) = (Frames::new(), 0, Vec::new());
            let mut record = 0;
            while at < stream.len() {
                let bytes = &stream[at..stream.len().min(at + piece)];
                let n = frames.until_answer_ends(bytes);
                frames.advance(&bytes[..n]);
                at += n;
                record += n;
                if frames.is_between() && frames.ends_stream() {
                    ends.push(record);
                    record = 0;
                }
            }
            assert_eq!(ends, answers[..3].iter().map(Vec::len).collect::<Vec<_>>(), "in pieces of {piece}");
            assert_eq!(record, answers[3].len());
        }
    }
}
