//! Black-box tests: the real program and a real Mosquitto, as separate processes on separate loopback ports.
//!
//! They use only its command line, configuration, topics, metrics and exit codes.

#[allow(dead_code, reason = "shared with the benchmark; each uses a part")]
mod harness;

mod attack;
mod boards;
mod brokers;
mod cases;
mod config;
mod crash;
mod delivery;
mod deploy;
mod dev;
mod disk;
mod doctor;
mod documents;
mod everywhere;
mod fairness;
mod grants;
mod home_assistant;
mod http;
mod limits;
mod logs;
mod odd_brokers;
mod operator;
mod ops;
mod outage;
#[cfg(feature = "page")]
mod page;
mod recordings;
mod schedules;
mod selftest;
mod settings;
mod silences;
mod sinks;
mod takeover;
mod traces;
mod upstream;
mod wakes;
