//! Forwarding, without a socket or a clock: bytes in, bytes out, time by assignment.

mod behaviour;
mod front;
mod health;
mod kept;
mod manners;
mod safety;
mod strategies;
mod streams;
mod suspects;
mod world;
