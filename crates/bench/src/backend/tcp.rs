//! What a backend does with bytes that have no protocol.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::fill::fill;
use super::{Connection, End};

/// Bytes read at once.
const BUFFER: usize = 64 * 1024;

/// The longest line that is stamped, in bytes.
const LINE_MAX: usize = 1 << 20;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    pub(super) async fn echo(&mut self, greeting: &[u8]) -> io::Result<End> {
        self.stream.write_all(greeting).await?;
        // Small until much comes: thousands of connections may stand idle.
        let mut buffer = vec![0; 2048];
        loop {
            let count = self.stream.read(&mut buffer).await?;
            if count == 0 {
                return Ok(End::Close);
            }
            self.count_bytes(count);
            self.stream.write_all(&buffer[..count]).await?;
            if count == buffer.len() && count < BUFFER {
                buffer.resize(BUFFER, 0);
            }
        }
    }

    pub(super) async fn stamp(&mut self, first: bool) -> io::Result<End> {
        let number = self.number;
        if first {
            self.stream.write_all(format!("{number}\n").as_bytes()).await?;
        }
        let mut input = Vec::new();
        let mut output = Vec::new();
        loop {
            if self.stream.read_buf(&mut input).await? == 0 {
                return Ok(End::Close);
            }
            let mut at = 0;
            while let Some(length) = input[at..].iter().position(|&byte| byte == b'\n') {
                let line = &input[at..at + length];
                self.shared.count_request(number);
                output.extend_from_slice(format!("{number} ").as_bytes());
                output.extend_from_slice(line);
                output.extend_from_slice(format!(" {number}\n").as_bytes());
                at += length + 1;
            }
            self.count_bytes(at);
            input.drain(..at);
            if input.len() > LINE_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
            }
            self.stream.write_all(&output).await?;
            output.clear();
        }
    }

    pub(super) async fn swallow(&mut self) -> io::Result<End> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.stream.read(&mut buffer).await? {
                0 => return Ok(End::Close),
                count => self.count_bytes(count),
            }
        }
    }

    pub(super) async fn source(&mut self, bytes: u64) -> io::Result<End> {
        self.shared.counters.requests.fetch_add(1, Relaxed);
        fill(&mut self.stream, bytes).await?;
        self.stream.shutdown().await?;
        // Closing before the client has would reset, and could take the last bytes with it.
        self.swallow().await
    }
}
