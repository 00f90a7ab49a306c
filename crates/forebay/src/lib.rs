//! Placeholder page, replaced in the next commit.

pub mod blame;
pub mod sys;
pub mod units;
