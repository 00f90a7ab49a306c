//! Whose fault a failure is, and what kind of failure it was.

use std::fmt;

/// Whose fault a failure is. **Only [`Blame::Upstream`] ever moves a breaker or a health state.**
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// This machine: no port, no descriptor, no memory, no route, a limit of our own.
    Local,
    /// The other side: it refused, timed out, reset, failed TLS or broke the protocol.
    Upstream,
    /// The caller: it gave up, cancelled, or sent something that cannot be served.
    Client,
}

impl Blame {
    /// Every value, in the order in which tables show them.
    pub const ALL: [Self; 3] = [Self::Local, Self::Upstream, Self::Client];

    /// Returns the word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Upstream => "upstream",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $blame:ident;)*) => {
        /// What went wrong, finely enough to act on. Each cause has exactly one [`Blame`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Cause {
            $($(#[$doc])* $variant,)*
        }

        impl Cause {
            /// Every cause, in the order in which tables show them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns whose fault this is.
            pub const fn blame(self) -> Blame {
                match self {
                    $(Self::$variant => Blame::$blame,)*
                }
            }

            /// Returns the word used in logs and metric labels.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

causes! {
    /// No local port was left for this destination.
    Ports = "ports", Local;
    /// No file descriptor was left, in this process or on this machine.
    Descriptors = "descriptors", Local;
    /// The kernel had no memory or no buffer space.
    Memory = "memory", Local;
    /// The local address asked for is not ours.
    Address = "address", Local;
    /// This machine has no route there, or its network is down.
    Route = "route", Local;
    /// A rule of this machine (a firewall, missing rights) forbade it.
    Permission = "permission", Local;
    /// A limit of our own configuration or budget was reached.
    Limit = "limit", Local;
    /// A failure of our own that fits no other word.
    Internal = "internal", Local;
    /// The upstream refused the connection.
    Refused = "refused", Upstream;
    /// The upstream reset or closed the connection.
    Reset = "reset", Upstream;
    /// The upstream did not answer in time.
    Timeout = "timeout", Upstream;
    /// The network said that the upstream cannot be reached.
    Unreachable = "unreachable", Upstream;
    /// The TLS handshake failed.
    Tls = "tls", Upstream;
    /// The upstream said something that its protocol does not allow.
    Protocol = "protocol", Upstream;
    /// The caller gave up or went away.
    Cancelled = "cancelled", Client;
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_causes_are_distinct() {
        for (i, a) in Cause::ALL.iter().enumerate() {
            for b in &Cause::ALL[i + 1..] {
                assert_ne!(a.as_str(), b.as_str());
            }
        }
    }
}
