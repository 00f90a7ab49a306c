//! Bytes that nobody reads for their meaning.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Lines of letters: any piece of it is printable.
const BLOCK: &[u8; 64 * 1024] = &block();

/// Writes `bytes` of filling, from a constant.
pub(super) async fn fill(stream: &mut (impl AsyncWrite + Unpin), bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(BLOCK.len() as u64);
        stream.write_all(&BLOCK[..piece as usize]).await?;
        left -= piece;
    }
    Ok(())
}

const fn block() -> [u8; 64 * 1024] {
    let mut block = [b'\n'; 64 * 1024];
    let mut at = 0;
    while at < block.len() {
        if at % 64 != 63 {
            block[at] = b'a' + (at % 26) as u8;
        }
        at += 1;
    }
    block
}
