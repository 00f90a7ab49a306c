//! The PROXY protocol, versions 1 and 2: who the client really is.
