//! What a person should know of, told once.

use std::collections::VecDeque;

use super::Forwarder;

/// Notices kept for a shell that does not ask for them; more are dropped.
const NOTICES_MAX: usize = 256;

/// Something about an upstream that a person should know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody sends guessed answers in its name. Told when a burst begins, and each minute that it lasts.
    Guessing {
        /// How many since the last notice.
        guesses: u64,
    },
    /// It gives so few answers on a stream that each is used for no more than that, for ten minutes.
    FewAnswers {
        /// How many.
        answers: u64,
    },
    /// It does not keep the letter case of questions, and is asked in lower case for ten minutes.
    CaseNotKept,
    /// It gave cookies and does so no more.
    CookiesLost,
}

#[derive(Debug, Default)]
pub(super) struct Notices(VecDeque<(u16, Notice)>);

impl Notices {
    pub(super) fn push(&mut self, endpoint: u16, notice: Notice) {
        if self.0.len() < NOTICES_MAX {
            self.0.push_back((endpoint, notice));
        }
    }
}

impl Forwarder {
    /// Takes the next notice for the log, with the name of the endpoint it is about.
    pub fn poll_notice(&mut self) -> Option<(Notice, &str)> {
        let (endpoint, notice) = self.notices.0.pop_front()?;
        Some((notice, &self.endpoints[usize::from(endpoint)].name))
    }
}
