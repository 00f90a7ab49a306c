//! What may be reused, replayed and passed on.
