//! A UDP socket whose task wakes when something has come, and not because something has gone.
//!
//! The runtime's own UDP sockets listen for room, too, and kernels tell who does of every datagram that its receiver has
//! taken: each reply would wake the worker that sent it once more, for nothing.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll};

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use crate::sys;

/// A UDP socket of a worker.
#[derive(Debug)]
pub struct DatagramSocket(AsyncFd<UdpSocket>);

impl DatagramSocket {
    /// Makes one of a socket that does not block.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch it: no descriptor is left, or there is no runtime.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        sys::watch(socket, Interest::READABLE | Interest::ERROR).map(Self)
    }

    /// Returns the socket beneath, for its options and for sending.
    pub fn socket(&self) -> &UdpSocket {
        self.0.get_ref()
    }

    /// Wakes the task when there may be something to read: one task, the last that asked.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx).map_ok(drop)
    }

    /// Waits until there may be something to read, or the kernel has an error to tell.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, nothing is lost.
    pub async fn ready(&self) -> io::Result<Ready> {
        self.0.ready(Interest::READABLE | Interest::ERROR).await.map(|guard| guard.ready())
    }

    /// Reads by `recv`, which says how many datagrams came. Fewer than `enough` mean that the socket is empty: who waits
    /// then waits for news, instead of asking the kernel once more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WouldBlock`] when nothing has come; those of `recv`.
    pub fn read(
        &self,
        enough: usize,
        recv: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut came = 0;
        // Told within the read: what comes after it is news.
        let result = self.0.try_io(Interest::READABLE, |socket| {
            came = recv(socket.as_fd())?;
            if came < enough { Err(ErrorKind::WouldBlock.into()) } else { Ok(came) }
        });
        if came > 0 { Ok(came) } else { result }
    }

    /// Returns what the kernel has to tell of datagrams that were sent, if there is something.
    pub fn take_error(&self) -> Option<io::Error> {
        let look = |socket: &UdpSocket| socket.take_error()?.ok_or_else(|| ErrorKind::WouldBlock.into());
        self.0.try_io(Interest::ERROR, look).ok()
    }

    /// Waits until there is room to send. Only while somebody waits does the kernel tell of room.
    ///
    /// # Errors
    ///
    /// When no descriptor is left to watch with, or the runtime is shutting down.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, nothing is lost.
    pub async fn room(&self) -> io::Result<()> {
        let watched = sys::watch(self.socket().try_clone()?, Interest::WRITABLE)?;
        watched.writable().await.map(drop)
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    fn pair() -> (DatagramSocket, UdpSocket) {
        let (ours, theirs) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        ours.connect(theirs.local_addr().unwrap()).unwrap();
        theirs.connect(ours.local_addr().unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        (DatagramSocket::new(ours).unwrap(), theirs)
    }

    fn recv(socket: &DatagramSocket, enough: usize) -> io::Result<usize> {
        socket.read(enough, |_| socket.socket().recv(&mut [0; 16]).map(|_| 1))
    }

    async fn comes_within(socket: &DatagramSocket, millis: u64) -> bool {
        let readable = poll_fn(|cx| socket.poll_readable(cx));
        tokio::time::timeout(Duration::from_millis(millis), readable).await.is_ok()
    }

    #[tokio::test]
    async fn it_wakes_for_what_comes_and_not_for_what_has_gone() {
        let (ours, theirs) = pair();
        ours.socket().send(b"gone").unwrap();
        theirs.recv(&mut [0; 16]).unwrap();
        assert!(!comes_within(&ours, 50).await);
        theirs.send(b"one").unwrap();
        theirs.send(b"two").unwrap();
        assert!(comes_within(&ours, 5000).await);
        // Enough: it may be asked again at once.
        assert_eq!(recv(&ours, 1).unwrap(), 1);
        assert!(comes_within(&ours, 50).await);
        // Not enough: what comes next is news.
        assert_eq!(recv(&ours, 2).unwrap(), 1);
        assert!(!comes_within(&ours, 50).await);
        assert_eq!(recv(&ours, 1).unwrap_err().kind(), ErrorKind::WouldBlock);
        theirs.send(b"three").unwrap();
        assert!(comes_within(&ours, 5000).await);
    }

    #[tokio::test]
    async fn what_icmp_says_wakes_and_is_told() {
        let (ours, theirs) = pair();
        drop(theirs);
        ours.socket().send(b"nobody").unwrap();
        let ready = tokio::time::timeout(Duration::from_secs(5), ours.ready()).await.unwrap().unwrap();
        assert!(ready.is_error());
        let read = recv(&ours, 1).unwrap_err();
        let error = if read.kind() == ErrorKind::WouldBlock { ours.take_error().unwrap() } else { read };
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn where_there_is_room_nobody_waits() {
        let (ours, theirs) = pair();
        tokio::time::timeout(Duration::from_secs(5), ours.room()).await.expect("room").unwrap();
        ours.socket().send(b"goes").unwrap();
        theirs.recv(&mut [0; 16]).unwrap();
        // Whoever waited has left nothing behind that wakes.
        assert!(!comes_within(&ours, 50).await);
    }
}
