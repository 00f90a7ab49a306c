//! Seeded worlds in which the pure crates of this workspace are lived in, hard, and watched at every step.
//!
//! A world draws everything from one number: policies, faults, callers, and when each of them does what. Two runs of
//! one seed are the same run, so a failure is a number that somebody else can replay.

pub mod pool;
