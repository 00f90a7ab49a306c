//! Somebody who guesses answers: from the upstream's own address and port, to ports that he knows, for names that he
//! knows; only the message ids must be guessed.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use forebay::sys::{SendBatch, now};
use forebay_core::Rng;

use super::answer::{self, Lies, Received};
use super::{Responder, Script, Shared};

/// Queries that the guesser knows of at once: the latest.
const TARGETS_MAX: usize = 64;

/// What the guesser is told of each query.
#[derive(Debug, Default)]
pub(super) struct Targets {
    on: AtomicBool,
    latest: Mutex<VecDeque<Target>>,
}

#[derive(Clone, Debug)]
struct Target {
    peer: SocketAddr,
    local: Option<IpAddr>,
    query: Vec<u8>,
}

impl Targets {
    pub(super) fn note(&self, peer: SocketAddr, local: Option<IpAddr>, query: &[u8]) {
        if !self.on.load(Relaxed) {
            return;
        }
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == TARGETS_MAX {
            latest.pop_front();
        }
        latest.push_back(Target { peer, local, query: query.to_vec() });
    }
}

/// A guesser at work. Dropping it ends it.
#[derive(Debug)]
pub struct Attack {
    shared: Arc<Shared>,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Attack {
    /// Returns how many guesses were sent.
    pub fn guesses(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.shared.targets.on.store(false, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; a second one here would hide it.
            let _ = thread.join();
        }
    }
}

impl Responder {
    /// Begins to send guesses at full speed, from this responder's own address: right in everything but the message id,
    /// which is random, and the address that they give, which is not [`expected_a`](super::expected_a).
    ///
    /// # Errors
    ///
    /// When no descriptor or thread is left.
    pub fn attack(&self) -> io::Result<Attack> {
        let socket = self.udp.try_clone()?;
        let (shared, sent, stop) = (Arc::clone(&self.shared), Arc::default(), Arc::default());
        shared.targets.on.store(true, Relaxed);
        let thread = {
            let (shared, sent, stop) = (Arc::clone(&shared), Arc::clone(&sent), Arc::clone(&stop));
            std::thread::Builder::new()
                .name("guesser".into())
                .spawn(move || guess(&socket, &shared.targets, &sent, &stop))?
        };
        Ok(Attack { shared, sent, stop, thread: Some(thread) })
    }
}

fn guess(socket: &UdpSocket, targets: &Targets, sent: &AtomicU64, stop: &AtomicBool) {
    let mut batch = SendBatch::new(64, 64 * 512);
    let mut rng = Rng::new(now().as_nanos());
    let script = Script::default();
    let lies = Lies { address: true, ..Lies::default() };
    while !stop.load(Relaxed) {
        let known: Vec<Target> =
            targets.latest.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        if known.is_empty() {
            std::thread::yield_now();
            continue;
        }
        for _ in 0..64 {
            let target = &known[rng.below(known.len() as u32) as usize];
            let Received::Query(query) = answer::read(&target.query) else { continue };
            let id = (rng.next_u64() as u16).to_be_bytes();
            batch.push(Some(target.peer), target.local, |out| {
                let start = out.len();
                answer::write(out, &query, &script, None, lies, true);
                out[start..start + 2].copy_from_slice(&id);
            });
        }
        let waiting = batch.len() as u64;
        match batch.flush(socket.as_fd()) {
            Ok(flush) => {
                sent.fetch_add(waiting - flush.left as u64 - flush.failed as u64, Relaxed);
                if flush.left > 0 {
                    batch.clear();
                }
            }
            // What ICMP says about sockets that are closed.
            Err(_) => batch.clear(),
        }
    }
}
