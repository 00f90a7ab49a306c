//! Placeholder page, replaced in the next commit.
