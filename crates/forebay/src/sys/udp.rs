//! Many datagrams per system call: `recvmmsg(2)` and `sendmmsg(2)`.
//!
//! All room is taken once, when a batch is made; receiving and sending allocate nothing afterwards.
//!
//! ```text
//! RecvBatch::recv ─▶ datagrams() ─▶ SendBatch::push … ─▶ SendBatch::flush
//!        one system call     answered in place          one system call
//! ```

use std::io;
use std::mem::{ManuallyDrop, zeroed};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use super::address::{RawAddress, RawControl};

/// The most datagrams that one batch carries. Beyond it a system call's fixed cost no longer shows.
pub const MESSAGES_MAX: usize = 64;

/// Receives up to [`MESSAGES_MAX`] datagrams at once, each with its sender.
pub struct RecvBatch {
    ring: RecvRing,
}

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// What it carries; cut off if `truncated`.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub peer: SocketAddr,
    /// The address of this machine that it came to, if the socket reports it
    /// ([`UdpOptions::report_local`](super::UdpOptions::report_local)).
    pub local: Option<IpAddr>,
    /// It was longer than the room for it, and its end is lost.
    pub truncated: bool,
}

impl RecvBatch {
    /// Makes room for `messages` datagrams of `bytes_each`.
    ///
    /// # Panics
    ///
    /// When `messages` is not between 1 and [`MESSAGES_MAX`], or `bytes_each` is 0.
    pub fn new(messages: usize, bytes_each: usize) -> Self {
        Self { ring: RecvRing::new(messages, bytes_each, true) }
    }

    /// Reads what has come, without waiting, and returns how many datagrams that was: at least one.
    ///
    /// What the batch held before is gone.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when nothing has come; otherwise those of `recvmmsg(2)`.
    pub fn recv(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.ring.recv(socket)
    }

    /// Returns the datagrams of the last [`recv`](Self::recv), oldest first.
    ///
    /// One whose sender has no Internet address is left out.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        (0..self.ring.received).filter_map(|index| {
            let (bytes, truncated) = self.ring.payload(index);
            let (peer, local) = self.ring.addresses(index)?;
            Some(Datagram { bytes, peer, local, truncated })
        })
    }

    /// Returns how many datagrams fit.
    pub fn capacity(&self) -> usize {
        self.ring.headers.len
    }
}

/// Receives up to [`MESSAGES_MAX`] datagrams at once from a connected socket, whose peer is known.
pub struct ConnectedRecvBatch {
    ring: RecvRing,
}

impl ConnectedRecvBatch {
    /// Makes room for `messages` datagrams of `bytes_each`.
    ///
    /// # Panics
    ///
    /// When `messages` is not between 1 and [`MESSAGES_MAX`], or `bytes_each` is 0.
    pub fn new(messages: usize, bytes_each: usize) -> Self {
        Self { ring: RecvRing::new(messages, bytes_each, false) }
    }

    /// Reads what has come, without waiting, and returns how many datagrams that was: at least one.
    ///
    /// What the batch held before is gone.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when nothing has come; what ICMP said about datagrams sent earlier
    /// (`ECONNREFUSED`, `EHOSTUNREACH`), once; otherwise those of `recvmmsg(2)`.
    pub fn recv(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.ring.recv(socket)
    }

    /// Returns the datagrams of the last [`recv`](Self::recv), oldest first, each with whether its end is lost
    /// because it was longer than the room for it.
    pub fn payloads(&self) -> impl Iterator<Item = (&[u8], bool)> {
        (0..self.ring.received).map(|index| self.ring.payload(index))
    }

    /// Returns how many datagrams fit.
    pub fn capacity(&self) -> usize {
        self.ring.headers.len
    }
}

/// Collects datagrams and sends them at once.
///
/// What could not be sent for lack of room in the socket stays, in order, for the next flush.
pub struct SendBatch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// The first entry that has not been sent.
    first: usize,
    messages_max: usize,
    names: Vec<RawAddress>,
    controls: Vec<RawControl>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

/// What [`SendBatch::flush`] did.
#[derive(Debug, Default)]
pub struct Flush {
    /// How many datagrams the kernel took.
    pub sent: usize,
    /// How many it refused for a reason of their own; they are skipped.
    pub failed: usize,
    /// How many are left, because the socket has no room: wait until it is writable and flush again.
    pub left: usize,
    /// The last error met. With `failed` 0 it spoke of datagrams sent earlier (ICMP), and sending went on.
    pub error: Option<io::Error>,
}

struct Entry {
    start: usize,
    length: usize,
    name_length: libc::socklen_t,
    control_length: usize,
}

// SAFETY: the raw pointers inside `iovecs` and `headers` point into the same `SendBatch` and are written anew by each
// `flush` before the kernel reads them; nobody else ever follows them.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// Makes room for `messages` datagrams with `bytes` together; more bytes make the room grow, once.
    ///
    /// # Panics
    ///
    /// When `messages` is not between 1 and [`MESSAGES_MAX`].
    pub fn new(messages: usize, bytes: usize) -> Self {
        assert!(
            (1..=MESSAGES_MAX).contains(&messages),
            "a batch holds 1 to {MESSAGES_MAX} messages, not {messages}"
        );
        // SAFETY: all three are plain integers and pointers, for which zero is a valid value.
        let (name, control, header) = unsafe { (zeroed(), zeroed(), zeroed()) };
        Self {
            bytes: Vec::with_capacity(bytes),
            entries: Vec::with_capacity(messages),
            first: 0,
            messages_max: messages,
            names: vec![name; messages],
            controls: vec![control; messages],
            iovecs: vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; messages],
            headers: vec![header; messages],
        }
    }

    /// Returns whether the batch must be flushed before the next [`push`](Self::push).
    pub fn is_full(&self) -> bool {
        self.entries.len() == self.messages_max
    }

    /// Returns whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns how many datagrams wait to be sent.
    pub fn len(&self) -> usize {
        self.entries.len() - self.first
    }

    /// Adds the datagram that `fill` **appends** to the buffer it is given (which holds earlier datagrams: leave them).
    ///
    /// `peer` is `None` on a connected socket. With `source`, the datagram leaves from that address of this machine:
    /// give it [`Datagram::local`] of the query. Appending nothing adds nothing. Returns false, without calling
    /// `fill`, when the batch is full.
    ///
    /// # Panics
    ///
    /// When `fill` makes the buffer shorter.
    pub fn push(
        &mut self,
        peer: Option<SocketAddr>,
        source: Option<IpAddr>,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        if self.is_full() {
            return false;
        }
        let start = self.bytes.len();
        fill(&mut self.bytes);
        let length = self.bytes.len().checked_sub(start).expect("fill only appends");
        if length == 0 {
            return true;
        }
        let index = self.entries.len();
        let name_length = peer.map_or(0, |peer| self.names[index].set(peer));
        let control_length = source.map_or(0, |source| self.controls[index].set(source));
        self.entries.push(Entry { start, length, name_length, control_length });
        true
    }

    /// Sends what has been collected, without waiting.
    ///
    /// # Errors
    ///
    /// Only what makes the socket itself useless (`EBADF`, `ENOTSOCK`, `EFAULT`). What concerns single datagrams is in
    /// [`Flush`], and they are skipped.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<Flush> {
        let mut flush = Flush::default();
        let count = self.entries.len();
        if self.first == count {
            self.clear();
            return Ok(flush);
        }
        self.point();
        // Which datagram was tried again after an error that may have been about an earlier one.
        let mut retried = usize::MAX;
        while self.first < count {
            let headers = &mut self.headers[self.first..count];
            // SAFETY: `point` has just made every header of `first..count` refer to names, control messages and bytes
            // that `self` owns and that nothing changes before this function returns; the kernel only writes `msg_len`.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    headers.len() as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            let error = match super::check(sent) {
                Ok(sent) => {
                    flush.sent += sent as usize;
                    self.first += sent as usize;
                    continue;
                }
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => {
                    flush.left = count - self.first;
                    return Ok(flush);
                }
                Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT) => return Err(error),
                // A connected socket reports here what ICMP said about an earlier datagram: this one was not tried.
                Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENOPROTOOPT)
                    if retried != self.first =>
                {
                    retried = self.first;
                    flush.error = Some(error);
                }
                _ => {
                    flush.failed += 1;
                    flush.error = Some(error);
                    self.first += 1;
                }
            }
        }
        self.clear();
        Ok(flush)
    }

    /// Throws away what has not been sent.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.first = 0;
    }

    /// Writes the headers of the entries that have not been sent.
    fn point(&mut self) {
        let base = self.bytes.as_mut_ptr();
        let names = self.names.as_mut_ptr();
        let controls = self.controls.as_mut_ptr();
        let iovecs = self.iovecs.as_mut_ptr();
        for (index, entry) in self.entries.iter().enumerate().skip(self.first) {
            // SAFETY: `start` lies inside `bytes`, `index` below `messages_max`, the length of all four arrays.
            unsafe {
                *iovecs.add(index) =
                    libc::iovec { iov_base: base.add(entry.start).cast(), iov_len: entry.length };
                let header = &mut self.headers[index].msg_hdr;
                header.msg_iov = iovecs.add(index);
                header.msg_iovlen = 1;
                header.msg_namelen = entry.name_length;
                header.msg_name = match entry.name_length {
                    0 => ptr::null_mut(),
                    _ => names.add(index).cast(),
                };
                header.msg_controllen = entry.control_length as _;
                header.msg_control = match entry.control_length {
                    0 => ptr::null_mut(),
                    _ => controls.add(index).cast(),
                };
            }
        }
    }
}

/// What both kinds of receiving share.
struct RecvRing {
    bytes: Room<u8>,
    bytes_each: usize,
    names: Room<RawAddress>,
    controls: Room<RawControl>,
    /// Pointed at by `headers`.
    _iovecs: Room<libc::iovec>,
    headers: Room<libc::mmsghdr>,
    with_names: bool,
    received: usize,
}

impl RecvRing {
    fn new(messages: usize, bytes_each: usize, with_names: bool) -> Self {
        assert!(
            (1..=MESSAGES_MAX).contains(&messages),
            "a batch holds 1 to {MESSAGES_MAX} messages, not {messages}"
        );
        assert!(bytes_each > 0, "a message needs at least one byte of room");
        // SAFETY: all four are plain integers and pointers, for which zero is a valid value.
        let (name, control, header) = unsafe { (zeroed(), zeroed(), zeroed::<libc::mmsghdr>()) };
        let bytes = Room::new(vec![0u8; messages * bytes_each]);
        let names = Room::<RawAddress>::new(vec![name; if with_names { messages } else { 0 }]);
        let controls = Room::<RawControl>::new(vec![control; if with_names { messages } else { 0 }]);
        let iovecs = Room::new(
            (0..messages)
                .map(|index| libc::iovec {
                    iov_base: bytes.at(index * bytes_each).cast(),
                    iov_len: bytes_each,
                })
                .collect(),
        );
        let headers = Room::new(vec![header; messages]);
        for index in 0..messages {
            // SAFETY: `index` is inside; nobody else has a reference into the room that was just made.
            let header = unsafe { &mut (*headers.at(index)).msg_hdr };
            header.msg_iov = iovecs.at(index);
            header.msg_iovlen = 1;
            if with_names {
                header.msg_name = names.at(index).cast();
                header.msg_control = controls.at(index).cast();
            }
        }
        // Every header must say how much room it has before the first call: as if all had just been used.
        Self { bytes, bytes_each, names, controls, _iovecs: iovecs, headers, with_names, received: messages }
    }

    fn recv(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        if self.with_names {
            // The kernel wrote lengths into the headers that it used, and into no others.
            for index in 0..self.received {
                // SAFETY: `received` is at most the number of headers, and `&mut self` makes this the only reference.
                let header = unsafe { &mut (*self.headers.at(index)).msg_hdr };
                header.msg_namelen = RawAddress::ROOM;
                header.msg_controllen = RawControl::ROOM as _;
            }
        }
        self.received = 0;
        loop {
            // SAFETY: each header refers to a name, a control message and bytes in rooms that live as long as `self`
            // and do not move; `&mut self` means that nobody reads them meanwhile.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.at(0),
                    self.headers.len as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            };
            match super::check(count) {
                Ok(count) => {
                    self.received = count as usize;
                    return Ok(self.received);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn payload(&self, index: usize) -> (&[u8], bool) {
        let header = self.header(index);
        let length = (header.msg_len as usize).min(self.bytes_each);
        // SAFETY: the range is inside the room, whose bytes are initialised; the kernel writes to it only under
        // `&mut self`, which the returned borrow excludes.
        let bytes = unsafe { std::slice::from_raw_parts(self.bytes.at(index * self.bytes_each), length) };
        (bytes, header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0)
    }

    fn addresses(&self, index: usize) -> Option<(SocketAddr, Option<IpAddr>)> {
        let header = self.header(index);
        // SAFETY: both rooms have as many places as there are headers when names are asked for, which is when this is
        // called; the kernel writes to them only under `&mut self`.
        let (name, control) = unsafe { (&*self.names.at(index), &*self.controls.at(index)) };
        Some((name.get()?, control.get(header.msg_hdr.msg_controllen as usize)))
    }

    fn header(&self, index: usize) -> &libc::mmsghdr {
        // SAFETY: `at` checks the index; the kernel writes headers only under `&mut self`.
        unsafe { &*self.headers.at(index) }
    }
}

/// Places that never move, reached by pointer only, so that other places may point at them.
struct Room<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: a room owns its places as a `Vec` does, and is `Send` where that would be, apart from pointers inside
// them (`iovec`, `mmsghdr`), which point into rooms of the same `RecvRing` and so move with it.
unsafe impl<T> Send for Room<T> {}

impl<T> Room<T> {
    fn new(places: Vec<T>) -> Self {
        let mut places = ManuallyDrop::new(places.into_boxed_slice());
        let len = places.len();
        let start = NonNull::new(places.as_mut_ptr()).expect("a slice is never at null");
        Self { start, len }
    }

    fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len);
        // SAFETY: the index is inside.
        unsafe { self.start.as_ptr().add(index) }
    }
}

impl<T> Drop for Room<T> {
    fn drop(&mut self) {
        let slice = ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len);
        // SAFETY: `new` took this very slice out of a box, and nothing else frees it.
        drop(unsafe { Box::from_raw(slice) });
    }
}
