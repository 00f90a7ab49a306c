//! HTTP/1.1 messages, read strictly and written anew (RFC 9112).
