//! Bytes from one stream to another without coming to this process: `splice(2)` through a pipe.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A pipe for `splice`, and how much stands in it.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity_bytes: usize,
    filled_bytes: usize,
}

impl Pipe {
    /// Makes a pipe that holds about `bytes`; the kernel's default is 64 KiB. One that holds more than
    /// `/proc/sys/fs/pipe-max-size`, or for which this user has no pages left, is as large as the kernel makes it:
    /// see [`Pipe::capacity_bytes`].
    ///
    /// # Errors
    ///
    /// Those of `pipe2(2)`: no descriptors left.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: `ends` has room for two descriptors, and the call keeps no pointer to it.
        super::check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
        // SAFETY: both are open, and nobody else knows them.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        // SAFETY: the calls take no pointer. A size that is refused leaves the pipe as it was.
        let set = super::check(unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, wanted) });
        // SAFETY: as above.
        let size =
            set.or_else(|_| super::check(unsafe { libc::fcntl(write.as_raw_fd(), libc::F_GETPIPE_SZ) }))?;
        Ok(Self { read, write, capacity_bytes: size as usize, filled_bytes: 0 })
    }

    /// Returns how much it holds at most, in bytes. Small pieces fill it sooner: each takes a page.
    pub const fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// Returns how much stands in it, in bytes.
    pub const fn filled_bytes(&self) -> usize {
        self.filled_bytes
    }

    /// Whether nothing stands in it: then it may serve another pair of streams.
    pub const fn is_empty(&self) -> bool {
        self.filled_bytes == 0
    }

    /// Moves at most `bytes` out of a stream into the pipe. Returns how many; zero means that the stream has ended.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when nothing has come **or** the pipe takes nothing more: look at
    /// [`Pipe::is_empty`] to tell the two apart, and empty it first. Those of the stream.
    pub fn fill(&mut self, from: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
        let moved = splice(from, self.write.as_fd(), bytes)?;
        self.filled_bytes += moved;
        Ok(moved)
    }

    /// Moves what stands in the pipe into a stream, as much as it takes now. Returns how much; zero only if nothing does.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when the stream takes nothing now. Those of the stream.
    pub fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        if self.filled_bytes == 0 {
            return Ok(0);
        }
        let moved = splice(self.read.as_fd(), to, self.filled_bytes)?;
        self.filled_bytes -= moved;
        Ok(moved)
    }
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    loop {
        // SAFETY: null offsets are what descriptors without positions want; the call keeps no pointer.
        let moved = unsafe {
            libc::splice(
                from.as_raw_fd(),
                std::ptr::null_mut(),
                to.as_raw_fd(),
                std::ptr::null_mut(),
                bytes,
                libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
            )
        };
        if moved >= 0 {
            return Ok(moved as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Two ends of a connection over loopback.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        (one, other)
    }

    #[test]
    fn bytes_go_through_a_pipe_in_order_and_the_end_after_them() {
        const TOTAL: usize = 3 << 20;
        let ((mut client, from), (to, mut server)) = (connection(), connection());
        let pattern = |n: usize| (n * 7 + n / 251) as u8;
        let writing = std::thread::spawn(move || {
            let bytes: Vec<u8> = (0..TOTAL).map(pattern).collect();
            client.write_all(&bytes).unwrap();
        });
        let moving = std::thread::spawn(move || {
            // Blocking sockets: only the pipe says that it would block.
            let mut pipe = Pipe::new(256 << 10).unwrap();
            assert!(pipe.capacity_bytes() >= 64 << 10);
            loop {
                if pipe.fill(from.as_fd(), 1 << 20).unwrap() == 0 {
                    return;
                }
                while !pipe.is_empty() {
                    match pipe.drain(to.as_fd()) {
                        Ok(moved) => assert!(moved > 0),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
            }
        });
        let mut came = Vec::new();
        server.read_to_end(&mut came).unwrap();
        writing.join().unwrap();
        moving.join().unwrap();
        assert_eq!(came.len(), TOTAL);
        assert!(came.iter().enumerate().all(|(n, byte)| *byte == pattern(n)));
    }

    #[test]
    fn a_pipe_counts_what_stands_in_it() {
        let ((mut client, from), (to, _server)) = (connection(), connection());
        from.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new(64 << 10).unwrap();
        assert_eq!(pipe.fill(from.as_fd(), 10).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(pipe.drain(to.as_fd()).unwrap(), 0, "nothing is in it");
        client.write_all(b"hello").unwrap();
        crate::sys::tests::wait_readable(from.as_fd());
        assert_eq!((pipe.fill(from.as_fd(), 3).unwrap(), pipe.filled_bytes()), (3, 3));
        assert_eq!((pipe.drain(to.as_fd()).unwrap(), pipe.is_empty()), (3, true));
    }

    #[test]
    fn a_reset_is_an_error_of_the_stream() {
        let (client, from) = connection();
        crate::sys::socket::reset_on_close(&client).unwrap();
        drop(client);
        crate::sys::tests::wait_readable(from.as_fd());
        let error = Pipe::new(1).unwrap().fill(from.as_fd(), 10).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}
