//! openpi's websocket protocol: a server that holds, and a client.
//!
//! Invariants: what goes over the wire is what openpi's server and client send, byte for byte; what this project adds
//! stands under one key, [`EXTENSIONS`], and nobody who does not ask for it sees it. Foreign bytes never panic and never
//! make us hold more than their limit. A policy is a trait here: nothing in this room knows a network. Source: openpi
//! 15a9616, serving/websocket_policy_server.py, packages/openpi-client.
//!
//! - [`tree`]: what a message is made of
//! - [`wire`]: its bytes, both ways
//! - [`request`]: a message as a request, an answer as a message
//! - [`policy`]: what a server asks of a policy
//! - [`server`]: serves it
//! - [`client`]: a blocking client
//! - [`broker`]: one action at a time, from chunks
//! - [`recorded`]: a request and its answer as openpi's recorder keeps them, and back
//! - [`recorder`]: keeps them while the server runs
//! - [`compare`]: a recorded answer held against a new one

pub mod broker;
pub mod client;
pub mod compare;
pub mod policy;
pub mod recorded;
pub mod recorder;
pub mod request;
pub mod server;
pub mod tree;
pub mod wire;

/// The key under which requests and answers carry what openpi's protocol does not have.
pub const EXTENSIONS: &str = "pi0";
