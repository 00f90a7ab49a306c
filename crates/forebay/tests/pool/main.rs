//! The pool against connectors made for the purpose: what is promised, one sentence a test.

mod basics;
mod fake;
mod limits;
mod promises;
mod shared;
