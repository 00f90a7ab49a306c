//! Placeholder page, replaced in the next commit.

pub mod sys;
