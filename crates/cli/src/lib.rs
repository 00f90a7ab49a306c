//! The command `forebay`.

pub mod config;
