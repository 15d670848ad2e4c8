//! Black-box tests: the real program, a real Mosquitto, processes of their own on loopback ports of their own.
//!
//! They know the program by its command line, its configuration, its topics, its metrics and its exit codes, and nothing of
//! its inside; `architecture` reads its source and runs nothing.

#[allow(dead_code, reason = "the bench uses it too, and each of the two uses a part")]
mod harness;

mod boards;
mod brokers;
mod config;
mod crash;
mod delivery;
mod deploy;
mod disk;
mod doctor;
mod everywhere;
mod grants;
mod limits;
mod operator;
mod ops;
mod outage;
mod selftest;
mod upstream;
