//! DNS load.
