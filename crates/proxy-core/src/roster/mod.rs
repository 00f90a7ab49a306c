//! The backends of a proxy: which there are, how they are, and who serves the next client.
