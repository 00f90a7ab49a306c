//! The proxy: settings in, `start` out.
