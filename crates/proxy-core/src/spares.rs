//! How many connections to dial ahead for clients that are yet to come.
